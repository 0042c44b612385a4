"""A site's side of a secure aggregation, as a state machine from bytes to bytes; any transport can carry it.

`ept_fed/privacy/secure_aggregation/session.py` lists the limits of the protection.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.certificates import public_key
from ept_fed.pki.keys import same_key
from ept_fed.privacy.secure_aggregation.identity import (
    Advertisement,
    advertise,
    commit,
    read_advertisement,
    sign,
    statement,
    verify,
)
from ept_fed.privacy.secure_aggregation.masks import (
    KEY_BYTES,
    agree,
    derive_key,
    expand_mask,
    public_bytes,
    signed_mask,
)
from ept_fed.privacy.secure_aggregation.messages import Kind, decode_message, encode_message
from ept_fed.privacy.secure_aggregation.secret_sharing import SHARE_BYTES, split_secret
from ept_fed.privacy.secure_aggregation.session import AggregationSession
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import MessageRefusedError

__all__ = ["SecureAggregationSite"]

_NONCE = bytes(12)  # constant, because `_encrypt` uses a key for one message only


class SecureAggregationSite:
    """Takes part in one session, once: advertise, share keys, mask the input, confirm, unmask, in this order.

    Any refusal ends the session for the site. It then answers no later stage, so it never helps to unmask a sum after a
    refusal. Keys and seeds come from the operating system's cryptographic source and exist only in this object.
    """

    def __init__(
        self,
        session: AggregationSession,
        site: str,
        *,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        authority: x509.Certificate,
        now: datetime,
    ) -> None:
        """Take the session that the site itself agreed to, and the site's key, certificate and authority (tls/ca.crt).

        Raises:
            InputRefusedError: if the site is not in the session, or the key is not the certificate's.
        """
        problems = []
        if site not in session.sites:
            problems.append(Problem("site", site, f"is not one of the session's sites: {', '.join(session.sites)}"))
        if not same_key(key.public_key(), public_key(certificate)):
            problems.append(Problem("keys/site.key", site, "is not the key of tls/site.crt; get the kit again"))
        if problems:
            raise InputRefusedError(problems)
        self._session, self._site, self._key, self._certificate = session, site, key, certificate
        self._authority, self._now = authority, now
        self._channel_private, self._mask_private = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
        self._seed = secrets.token_bytes(KEY_BYTES)
        self._next: Kind | None = Kind.ADVERTISEMENT
        self._own = self._told = b""
        self._peers: dict[str, Advertisement] = {}
        self._shares: dict[str, bytes] = {}
        self._survivors: frozenset[str] = frozenset()

    def advertise(self) -> bytes:
        """Return this site's keys for the session, signed."""
        with self._stage(Kind.ADVERTISEMENT):
            self._own = advertise(
                self._session,
                self._site,
                channel=public_bytes(self._channel_private),
                mask=public_bytes(self._mask_private),
                commitment=commit(self._session, self._site, self._seed),
                key=self._key,
                certificate=self._certificate,
            )
            return encode_message(self._session, Kind.ADVERTISEMENT, {self._site: self._own})

    def share_keys(self, advertisements: bytes) -> bytes:
        """Return shares of this site's secrets, encrypted for each other site that advertised.

        Raises:
            MessageRefusedError: for too few sites, keys that their site did not sign, or altered keys of this site.
        """
        with self._stage(Kind.SHARES):
            session = self._session
            told = decode_message(session, Kind.ADVERTISEMENTS, advertisements)
            self._require(told, session.minimum, "advertised keys")
            if told.get(self._site) != self._own:
                raise MessageRefusedError("the server altered this site's keys")
            peers = {
                site: read_advertisement(session, site, content, authority=self._authority, now=self._now)
                for site, content in told.items()
            }
            if len({key for peer in peers.values() for key in (peer.channel, peer.mask)}) != 2 * len(peers):
                raise MessageRefusedError("two sites advertised the same key")
            shares = self._split(list(peers))
            self._told, self._peers, self._shares[self._site] = advertisements, peers, shares.pop(self._site)
            return encode_message(
                session, Kind.SHARES, {peer: self._encrypt(peer, content) for peer, content in shares.items()}
            )

    def mask_input(self, delivery: bytes, values: Vector, weight: int) -> bytes:
        """Return the site's numbers and weight with all its masks added.

        Args:
            delivery: the shares of the other sites.
            values: (n,) float32, within the session's bound; the gate has accepted them.
            weight: 1 to the encoding's heaviest.

        Raises:
            MessageRefusedError: for too few sites, or a share that its owner did not encrypt for this site and session.
            PayloadMismatchError: for numbers that cannot be summed.
        """
        with self._stage(Kind.MASKED_INPUT):
            session = self._session
            encrypted = decode_message(session, Kind.DELIVERY, delivery)
            if not set(encrypted) <= set(self._peers) - {self._site}:
                raise MessageRefusedError("shares came from a site that advertised no keys, or from this site")
            self._shares |= {peer: self._open(peer, content) for peer, content in encrypted.items()}
            self._require(self._shares, session.minimum, "shared their secrets")
            if values.shape != (session.size,):
                raise MessageRefusedError(f"the session sums {session.size} numbers, not {values.shape}")
            total = session.encoding.encode(values, weight)
            dtype = session.encoding.dtype
            total += expand_mask(derive_key(self._seed, session.bind("own mask", self._site)), session.words, dtype)
            for peer in sorted(encrypted):
                pair = session.bind("pair mask", *sorted((self._site, peer)))
                mask = expand_mask(agree(self._mask_private, self._peers[peer].mask, pair), session.words, dtype)
                total += signed_mask(mask, self._site, peer)
            return encode_message(session, Kind.MASKED_INPUT, {self._site: total.tobytes()})

    def confirm(self, survivors: bytes) -> bytes:
        """Return this site's signature over the set of sites whose inputs are summed.

        Raises:
            MessageRefusedError: for too few survivors, one that shared no secrets, or a set without this site.
        """
        with self._stage(Kind.CONFIRMATION):
            named = decode_message(self._session, Kind.SURVIVORS, survivors)
            self._require(named, self._session.minimum, "gave an input")
            if self._site not in named or not set(named) <= set(self._shares):
                raise MessageRefusedError("the survivors lack this site, or include one that shared no secrets")
            self._survivors = frozenset(named)
            signature = sign(self._key, self._statement())
            return encode_message(self._session, Kind.CONFIRMATION, {self._site: signature})

    def unmask(self, confirmations: bytes) -> bytes:
        """Return a share of each survivor's own-mask seed, and a share of the mask key of each dropped site.

        It never returns both for one site: with both, the server could read that site's input.

        Raises:
            MessageRefusedError: unless at least `threshold` survivors signed exactly the set that this site received.
        """
        with self._stage(Kind.UNMASKING):
            signed = decode_message(self._session, Kind.CONFIRMATIONS, confirmations)
            self._require(signed, self._session.threshold, "confirmed")
            if not set(signed) <= self._survivors:
                raise MessageRefusedError("a site confirmed that is not one of the survivors")
            said = self._statement()
            for peer, signature in signed.items():
                if not verify(self._peers[peer].identity, signature, said):
                    raise MessageRefusedError(f"{peer} did not confirm what the server sent to this site")
            revealed = {
                peer: content[SHARE_BYTES:] if peer in self._survivors else content[:SHARE_BYTES]
                for peer, content in self._shares.items()
            }
            return encode_message(self._session, Kind.UNMASKING, revealed)

    def _statement(self) -> bytes:
        return statement(self._session, self._told, self._shares, self._survivors)

    def _split(self, holders: list[str]) -> dict[str, bytes]:
        """Return for each holder its share of the mask key, followed by its share of the seed."""
        points = [self._session.point(holder) for holder in holders]
        masks, seeds = (
            split_secret(int.from_bytes(secret, "big"), self._session.threshold, points)
            for secret in (self._mask_private, self._seed)
        )
        return {
            holder: masks[point].to_bytes(SHARE_BYTES, "big") + seeds[point].to_bytes(SHARE_BYTES, "big")
            for holder, point in zip(holders, points, strict=True)
        }

    def _encrypt(self, peer: str, content: bytes) -> bytes:
        key = agree(self._channel_private, self._peers[peer].channel, self._session.bind("shares", self._site, peer))
        return ChaCha20Poly1305(key).encrypt(_NONCE, content, None)

    def _open(self, peer: str, encrypted: bytes) -> bytes:
        key = agree(self._channel_private, self._peers[peer].channel, self._session.bind("shares", peer, self._site))
        try:
            return ChaCha20Poly1305(key).decrypt(_NONCE, encrypted, None)
        except InvalidTag as error:
            raise MessageRefusedError(f"the share from {peer} fails authentication") from error

    def require(self, kind: Kind) -> None:
        """Raise MessageRefusedError, and end this site's part, unless `kind` is its next message."""
        if self._next != kind:
            asked = "nothing more" if self._next is None else f"its {self._next}"
            self._next = None
            raise MessageRefusedError(f"this site has to send {asked} in this session, not its {kind}")

    @contextmanager
    def _stage(self, kind: Kind) -> Iterator[None]:
        """Run one stage; after a failure the object cannot be used any more."""
        self.require(kind)
        self._next = None
        yield
        self._next = Kind(kind + 2) if kind < Kind.UNMASKING else None

    @staticmethod
    def _require(sites: Mapping[str, object], minimum: int, did: str) -> None:
        if len(sites) < minimum:
            raise MessageRefusedError(f"{len(sites)} sites {did}; {minimum} are needed")
