"""A consortium of twenty certified sites, and sessions that run to their end although sites drop out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509

from ept_fed.pki.keys import new_key
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.messages import Kind
from ept_fed.privacy.secure_aggregation.server import SecureAggregationServer, SecureMean
from ept_fed.privacy.secure_aggregation.session import AggregationSession, default_threshold
from ept_fed.privacy.secure_aggregation.site import SecureAggregationSite
from ept_fed.protocol.messages import MessageRefusedError
from server.provisioning.authority import Authority

NAMES = tuple(f"site-{number:02d}" for number in range(20))
STAGES = (Kind.ADVERTISEMENT, Kind.SHARES, Kind.MASKED_INPUT, Kind.CONFIRMATION, Kind.UNMASKING)
Alter = Callable[[Kind, str, bytes], bytes]


def _leave_alone(_kind: Kind, _site: str, content: bytes) -> bytes:
    return content


@dataclass
class Consortium:
    authority: x509.Certificate
    now: datetime
    keys: dict[str, Any]
    certificates: dict[str, x509.Certificate]
    stages: tuple[Kind, ...] = STAGES
    names: tuple[str, ...] = NAMES
    declined: dict[str, str] = field(default_factory=dict)
    seen: dict[tuple[Kind, str], bytes] = field(default_factory=dict)
    sites: dict[str, SecureAggregationSite] = field(default_factory=dict)

    def session(self, count: int, **changes: Any) -> AggregationSession:
        size = changes.pop("size", 7)
        encoding = changes.pop("encoding", FixedPoint(sites=count, heaviest=1000))
        values: dict[str, Any] = {
            "run": "run",
            "round": 1,
            "attempt": 1,
            "sites": NAMES[:count],
            "threshold": default_threshold(count),
            "start": "start",
            "layout_hash": "layout",
            "size": size,
            "encoding": encoding,
        }
        return AggregationSession(**{**values, **changes})

    def site(self, session: AggregationSession, name: str, **changes: Any) -> SecureAggregationSite:
        given = {
            "key": self.keys[name],
            "certificate": self.certificates[name],
            "authority": self.authority,
            "now": self.now,
        }
        return SecureAggregationSite(session, name, **{**given, **changes})

    def server(self, session: AggregationSession) -> SecureAggregationServer:
        return SecureAggregationServer(session, authority=self.authority, now=self.now)

    def aggregate(
        self,
        session: AggregationSession,
        inputs: Mapping[str, tuple[np.ndarray, int]],
        leaves: Mapping[str, Kind] | None = None,
        *,
        up: Alter = _leave_alone,
        down: Alter = _leave_alone,
        server: SecureAggregationServer | None = None,
    ) -> SecureMean:
        """Run a session to its end.

        A site in `leaves` gives no answer from that stage on. `up` and `down` alter messages.
        """
        server = server or self.server(session)
        sites = self.sites = {name: self.site(session, name) for name in session.sites}
        gone = dict(leaves or {})
        # Answers may arrive in any order: here, in reverse.
        requests: dict[str, bytes] = dict.fromkeys(reversed(session.sites), b"")
        self.declined, self.seen = {}, {}
        for stage in STAGES:
            for name, request in requests.items():
                if gone.get(name, Kind.UNMASKING + 2) <= stage:
                    continue
                try:
                    answer = _answer(sites[name], stage, down(stage, name, request), inputs[name])
                except MessageRefusedError as refusal:
                    self.declined[name], gone[name] = str(refusal), stage
                    continue
                answer = self.seen[stage, name] = up(stage, name, answer)
                try:
                    server.take(name, answer)
                except MessageRefusedError:
                    gone[name] = stage
            if stage != Kind.UNMASKING:
                requests = server.advance()
        return server.finish()


def _answer(site: SecureAggregationSite, stage: Kind, request: bytes, given: tuple[np.ndarray, int]) -> bytes:
    if stage == Kind.ADVERTISEMENT:
        return site.advertise()
    if stage == Kind.SHARES:
        return site.share_keys(request)
    if stage == Kind.MASKED_INPUT:
        return site.mask_input(request, *given)
    return site.confirm(request) if stage == Kind.CONFIRMATION else site.unmask(request)


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    now = datetime.now(UTC)
    folder: Path = tmp_path_factory.mktemp("authority")
    authority = Authority(folder, "skin", now, 3650)
    keys = {name: new_key() for name in NAMES}
    certificates = {
        name: authority.issue_site(name, key.public_key(), "", now=now, days=365).parse() for name, key in keys.items()
    }
    return Consortium(authority.certificate, now, keys, certificates)
