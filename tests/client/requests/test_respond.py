"""The same request gets the same answer, whether a simulation or a worker carries it through the site's gate."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from client.in_process_app import create_client_app
from ept_fed.catalog.methods import METHODS
from ept_fed.config.experiment import Experiment
from ept_fed.flower.records import SITE_REFUSED, encode_answer, encode_frame_record, read_frame_record
from ept_fed.flower.transport import set_task_identity
from ept_fed.protocol.frames import decode_frame, encode_frame
from ept_fed.protocol.messages import MessageRefusedError, RoundReply, RoundRequest, clean_text
from ept_fed.protocol.stage_messages import StageRequest
from simulations.engine.virtual_gates import introduce_sites, open_gates
from simulations.engine.virtual_sites import prepare_federation
from tests.client.gated_worker import POLICY, Gated, join_run
from tests.effort import examples

SITE = "site-1"


@dataclass
class Both:
    """The same site of the same run behind the same policy, in a simulation and in a worker."""

    app: ClientApp
    gated: Gated

    def simulated(self, content: bytes) -> object:
        context = Context(run_id=1, node_id=7, node_config={"site": SITE}, state=RecordDict(), run_config={})
        return compared(self.app(self.message(content), context))

    def deployed(self, content: bytes) -> object:
        """Return the answer of the worker, to which `client.app` forwards what it can read as a frame."""
        message = self.message(content)
        try:
            return compared(encode_answer(self.gated.worker.answer(read_frame_record(message)), message))
        except MessageRefusedError as refusal:
            return SITE_REFUSED, clean_text(str(refusal))

    @staticmethod
    def message(content: bytes) -> Message:
        set_task_identity(1)
        return Message(encode_frame_record(content), 7, "train")


def compared(answer: Message) -> object:
    """Return what two answers to one request have in common: everything but the time that it took."""
    if answer.has_error():
        return answer.error.code, answer.error.reason
    reply = decode_frame(read_frame_record(answer))
    if isinstance(reply, RoundReply):
        reply = dataclasses.replace(reply, metrics={**reply.metrics, "seconds": 0.0})
    return encode_frame(reply)


@pytest.fixture
def both(make_kit: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[[Experiment], Both]]:
    closing = []

    def make(experiment: Experiment) -> Both:
        federation = prepare_federation(experiment)
        policy = allow(federation.plan().layout.shapes, experiment)
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
        site = federation.create_site(federation.data.sites[SITE])
        opening = open_gates(tmp_path / "policy.yaml", [SITE], tmp_path / "gates")
        gates = opening.__enter__()
        closing.append(lambda: opening.__exit__(None, None, None))
        assert introduce_sites(experiment.run_id, federation.proposal, {SITE: site}, gates) == {}
        part = federation.take_part(site, gates[SITE])
        gated = join_run(make_kit(), federation.proposal, run=experiment.run_id, policy=policy)
        closing.append(gated.gate.close)
        return Both(create_client_app(lambda _: part), gated)

    yield make
    for close in closing:
        close()


def allow(shapes: tuple[tuple[str, tuple[int, ...]], ...], experiment: Experiment) -> dict[str, Any]:
    """Return a policy that allows an experiment, and not much more."""
    names = [name for name, _ in shapes if not name.startswith("head.")]
    head, share, method = experiment.federation.share != "prompts", experiment.federation.share, experiment.model.method
    outgoing = {**POLICY["outgoing"], "head": head, "tensors": names}
    incoming = {"share": [share], "methods": [method], "payload": [experiment.federation.payload]}
    return {**POLICY, "outgoing": outgoing, "incoming": {**POLICY["incoming"], **incoming}}


def requests(gated: Gated) -> Iterator[bytes]:
    """Yield sound, malformed and hostile frames, in an order in which the sound ones are answered."""
    asked = gated.request()
    start, header = gated.met.initial, asked.header
    poisoned = np.full_like(start, math.nan)
    evaluation: Mapping[str, Any] = {"phase": "evaluate", "settings": None}
    hostile: list[RoundRequest | StageRequest] = [
        gated.request(payload=poisoned),
        gated.request(payload=start[:-1]),
        gated.request(correction=poisoned),
        gated.request(correction=start),
        gated.request(wants_gradient=True),
        gated.request(rounds=9),
        gated.request(settings=None),
        gated.request(settings=asked.training.model_copy(update={"epochs": 19})),
        gated.request(split="test"),
        gated.request(header=dataclasses.replace(header, round=3)),
        gated.request(header=dataclasses.replace(header, backbone_digest="ab" * 32)),
        gated.request(header=dataclasses.replace(header, layout_hash="ab" * 32)),
        gated.request(header=dataclasses.replace(header, code="9.9")),
        gated.request(split="train", **evaluation),
        StageRequest(header, "masked input", b"keys"),
    ]
    yield from (encode_frame(request) for request in hostile)
    yield from (b"", b"junk", encode_frame(gated.met), encode_frame(asked)[:-1])
    yield encode_frame(asked)
    yield encode_frame(asked)
    yield encode_frame(gated.request(payload=start + np.float32(0.01)))
    yield encode_frame(gated.request(split="validation", **evaluation))
    yield encode_frame(gated.request(split="test", **evaluation))
    yield encode_frame(gated.request(header=dataclasses.replace(header, round=2)))


SHARES = [(name, share) for name in METHODS for share in ("prompts", "prompts+head")]
SHARES.remove(("linear", "prompts"))


@pytest.mark.parametrize(("method", "share"), SHARES)
def test_every_method_gets_the_same_answers_in_a_simulation_and_from_a_worker(
    both: Callable[[Experiment], Both], federation: Callable[..., Experiment], method: str, share: str
) -> None:
    payload = "folded" if method == "ept" else "raw"
    own = () if method == "ept" else ("model.tokens=0",)
    made = both(
        federation(f"model.method={method}", f"federation.share={share}", f"federation.payload={payload}", *own)
    )
    answers = [(made.simulated(content), made.deployed(content)) for content in requests(made.gated)]
    assert all(one == other for one, other in answers)
    replies = [isinstance(one, bytes) for one, _ in answers]
    assert replies == [False] * 19 + [True, True, False, True, True, True]


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["train", "evaluate"]),
        "split": st.sampled_from(["train", "validation", "test"]),
        "rounds": st.integers(-1, 4),
        "best_round": st.integers(-1, 3),
        "wants_gradient": st.booleans(),
        "shift": st.sampled_from([0.0, 0.01, 5.0, math.nan, math.inf]),
        "round": st.integers(0, 3),
    },
)


@pytest.fixture
def pair(both: Callable[[Experiment], Both], federation: Callable[..., Experiment]) -> Both:
    return both(federation())


@examples(40, suppress=(HealthCheck.function_scoped_fixture,))
@given(changes=FIELDS, damage=st.none() | st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=2)))
def test_any_request_gets_the_same_answer_after_the_ones_before_it(
    pair: Both, changes: dict[str, Any], damage: tuple[int, bytes] | None
) -> None:
    asked = pair.gated.request()
    payload = asked.payload + np.float32(changes.pop("shift", 0.0))
    header = dataclasses.replace(asked.header, round=changes.pop("round", 1))
    if changes.get("phase") == "evaluate":
        changes["settings"] = None
    content = bytearray(encode_frame(dataclasses.replace(asked, header=header, payload=payload, **changes)))
    if damage is not None:
        place = damage[0] % len(content)
        content[place : place + len(damage[1])] = damage[1]
    one, other = pair.simulated(bytes(content)), pair.deployed(bytes(content))
    if asks_for(bytes(content)) in (None, header.run):
        assert one == other
    else:
        # Only a worker has other runs to look for.
        assert not isinstance(one, bytes)
        assert not isinstance(other, bytes)


def asks_for(content: bytes) -> str | None:
    """Return the run that a request names; None for a frame that cannot be read."""
    try:
        frame = decode_frame(content)
    except MessageRefusedError:
        return None
    return frame.header.run if isinstance(frame, RoundRequest) else None
