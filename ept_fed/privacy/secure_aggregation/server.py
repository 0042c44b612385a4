"""The server's side of a secure aggregation, as a state machine from bytes to bytes; any transport can carry it.

The transport identifies the site that sent a message. `ept_fed/privacy/secure_aggregation/session.py` lists the limits
of the protection.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from cryptography import x509

from ept_fed.privacy.secure_aggregation.identity import Advertisement, commit, read_advertisement, statement, verify
from ept_fed.privacy.secure_aggregation.masks import (
    KEY_BYTES,
    agree,
    derive_key,
    expand_mask,
    public_bytes,
    signed_mask,
)
from ept_fed.privacy.secure_aggregation.messages import Kind, decode_message, encode_message
from ept_fed.privacy.secure_aggregation.secret_sharing import SharesRefusedError, join_secret
from ept_fed.privacy.secure_aggregation.session import AggregationAbandonedError, AggregationSession
from ept_fed.protocol.layout import PayloadMismatchError, Vector
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["SecureAggregationServer", "SecureMean"]


@dataclass(frozen=True)
class SecureMean:
    """Result of a session.

    Attributes:
        mean: weighted mean, (n,) float32.
        weight: sum of the weights.
        sites: sites whose inputs are in the mean, sorted.
    """

    mean: Vector
    weight: int
    sites: tuple[str, ...]


class SecureAggregationServer:
    """Leads one session: `take` each site's answer, `advance` to the next stage, `finish` after the last stage.

    Call `advance` when no more answers are expected. A site is excluded if its answer is refused, or if it gives two
    different answers. A silent site has dropped out. The session tolerates both as long as enough sites are left.

    Attributes:
        refused: reason why a site was excluded, by name.
    """

    def __init__(self, session: AggregationSession, *, authority: x509.Certificate, now: datetime) -> None:
        """Begin with the stage in which every site advertises its keys."""
        self._session, self._authority, self._now = session, authority, now
        self.refused: dict[str, str] = {}
        self._stage: Kind | None = Kind.ADVERTISEMENT
        self._asked = frozenset(session.sites)
        self._answers: dict[str, dict[str, bytes]] = {}
        self._raw: dict[str, bytes] = {}
        self._told = b""
        self._peers: dict[str, Advertisement] = {}
        self._members: tuple[str, ...] = ()
        self._inputs: dict[str, bytes] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """Sites whose answers are still missing in this stage, sorted."""
        return tuple(sorted(self._asked - set(self._answers)))

    def take(self, site: str, content: bytes) -> None:
        """Take a site's answer to its last request; the same bytes twice count as one answer.

        Raises:
            MessageRefusedError: stating why the site is excluded from now on, or that nothing was requested from it.
        """
        stage = self._stage
        if stage is None or site not in self._asked:
            raise MessageRefusedError(f"nothing was requested from {site}")
        if self._raw.get(site) == content:
            return
        try:
            if site in self._raw:
                raise MessageRefusedError(f"{site} gave two different answers: {stage}")
            self._raw[site] = content
            self._answers[site] = self._read(stage, site, content)
        except MessageRefusedError as refusal:
            self.refused[site] = str(refusal)
            self._asked -= {site}
            self._answers.pop(site, None)
            raise

    def advance(self) -> dict[str, bytes]:
        """Close the stage and return the next request to each remaining site.

        Raises:
            AggregationAbandonedError: if too few sites are left.
        """
        stage, session, answers = self._stage, self._session, self._answers
        if stage is None or stage == Kind.UNMASKING:
            raise MessageRefusedError("no stage is left; call finish")
        self._stage = None
        self._require(session.threshold if stage == Kind.CONFIRMATION else session.minimum, stage)
        if stage == Kind.ADVERTISEMENT:
            entries = {site: answer[site] for site, answer in answers.items()}
            self._told = encode_message(session, Kind.ADVERTISEMENTS, entries)
            self._peers = {site: self._peers[site] for site in answers}
            requests = dict.fromkeys(answers, self._told)
        elif stage == Kind.SHARES:
            self._members = tuple(sorted(answers))
            requests = {
                site: encode_message(
                    session, Kind.DELIVERY, {peer: answers[peer][site] for peer in answers if peer != site}
                )
                for site in answers
            }
        elif stage == Kind.MASKED_INPUT:
            self._inputs = {site: answer[site] for site, answer in answers.items()}
            named = encode_message(session, Kind.SURVIVORS, dict.fromkeys(answers, b""))
            requests = dict.fromkeys(answers, named)
        else:
            entries = {site: answer[site] for site, answer in answers.items()}
            requests = dict.fromkeys(answers, encode_message(session, Kind.CONFIRMATIONS, entries))
        self._stage, self._asked = Kind(stage + 2), frozenset(answers)
        self._answers, self._raw = {}, {}
        return requests

    def finish(self) -> SecureMean:
        """Return the weighted mean of all masked inputs.

        Raises:
            AggregationAbandonedError: if too few sites helped to unmask, if a secret cannot be recovered from their
                shares, or if no numbers within the bound have this sum.
        """
        if self._stage != Kind.UNMASKING:
            raise MessageRefusedError("the session is not at its last stage")
        self._stage = None
        session, dtype = self._session, self._session.encoding.dtype
        self._require(session.threshold, Kind.UNMASKING)
        total = np.zeros(session.words, dtype)
        for site, content in self._inputs.items():
            total += np.frombuffer(content, dtype)
            seed = self._recover(site, self._is_seed)
            total -= expand_mask(derive_key(seed, session.bind("own mask", site)), session.words, dtype)
        for site in self._members:
            if site not in self._inputs:
                private = self._recover(site, self._is_mask_key)
                for peer in self._inputs:
                    pair = session.bind("pair mask", *sorted((site, peer)))
                    mask = expand_mask(agree(private, self._peers[peer].mask, pair), session.words, dtype)
                    total -= signed_mask(mask, peer, site)
        try:
            mean, weight = session.encoding.decode(total, len(self._inputs))
        except PayloadMismatchError as error:
            raise AggregationAbandonedError(f"the sum is impossible: {error}") from error
        return SecureMean(mean, weight, tuple(sorted(self._inputs)))

    def _read(self, stage: Kind, site: str, content: bytes) -> dict[str, bytes]:
        session = self._session
        entries = decode_message(session, stage, content)
        about = {site}
        if stage == Kind.SHARES:
            about = set(self._peers) - {site}
        elif stage == Kind.UNMASKING:
            about = set(self._members)
        if set(entries) != about:
            raise MessageRefusedError(f"{site}: {stage} must be about {', '.join(sorted(about))}, each once")
        if stage == Kind.ADVERTISEMENT:
            advertised = read_advertisement(session, site, entries[site], authority=self._authority, now=self._now)
            self._require_own_keys(site, advertised)
            self._peers[site] = advertised
        elif stage == Kind.CONFIRMATION:
            said = statement(session, self._told, self._members, self._inputs)
            if not verify(self._peers[site].identity, entries[site], said):
                raise MessageRefusedError(f"{site}: it did not confirm what the server sent to it")
        return entries

    def _require_own_keys(self, site: str, advertised: Advertisement) -> None:
        """Refuse keys that would make all other sites refuse: another site already uses them, or of small order."""
        taken = {key for peer in self._peers.values() for key in (peer.channel, peer.mask)}
        if advertised.channel == advertised.mask or taken & {advertised.channel, advertised.mask}:
            raise MessageRefusedError(f"{site}: it advertised a key that is already in use")
        for key in (advertised.channel, advertised.mask):
            agree(secrets.token_bytes(KEY_BYTES), key, b"")

    def _is_seed(self, site: str, seed: bytes) -> bool:
        return commit(self._session, site, seed) == self._peers[site].commitment

    def _is_mask_key(self, site: str, private: bytes) -> bool:
        return public_bytes(private) == self._peers[site].mask

    def _recover(self, owner: str, fits: Callable[[str, bytes], bool]) -> bytes:
        """Return a site's secret from the survivors' shares; one wrong share is tolerated if one share is to spare."""
        holders = sorted(self._answers)
        for suspect in (None, *holders):
            trusted = [holder for holder in holders if holder != suspect]
            secret = self._join(owner, trusted)
            if secret is not None and fits(owner, secret):
                if suspect is not None:
                    self.refused[suspect] = f"{suspect} holds, or received, a wrong share of a secret of {owner}"
                return secret
        raise AggregationAbandonedError(f"the shares of {', '.join(holders)} do not give the secret of {owner}")

    def _join(self, owner: str, holders: Sequence[str]) -> bytes | None:
        session = self._session
        shares = [(session.point(holder), int.from_bytes(self._answers[holder][owner], "big")) for holder in holders]
        points = [session.point(site) for site in self._peers]
        try:
            return join_secret(shares, session.threshold, points=points).to_bytes(KEY_BYTES, "big")
        except (SharesRefusedError, OverflowError):
            return None

    def _require(self, minimum: int, stage: Kind) -> None:
        if len(self._answers) < minimum:
            raise AggregationAbandonedError(
                f"{len(self._answers)} sites gave their {stage}; {minimum} are needed{_explain(self.refused)}"
            )


def _explain(refused: Mapping[str, str]) -> str:
    return "".join(f"; {reason}" for _, reason in sorted(refused.items()))
