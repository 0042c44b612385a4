"""Before round 1 the introductions of the sites must be consistent; an inconsistent site is named and left out."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.serverapp import Grid

from ept_fed.config.data import PhantomSettings
from ept_fed.config.experiment import Experiment, FederationSettings
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.flower.records import SITE_REFUSED, encode_frame_record
from ept_fed.flower.transport import set_task_identity
from ept_fed.protocol.frames import encode_frame
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.proposal import SiteIntroduction, propose
from server.deployment.agreement import Agreement, NoAgreementError, agree, name_run, reconcile
from server.deployment.polling_grid import NodeInfo, PollingGrid
from server.deployment.registered_grid import RegisteredGrid
from server.deployment.run_state import read_agreement, write_agreement

EXPERIMENT = Experiment(
    data=PhantomSettings(classes=tuple(STRUCTURES)), federation=FederationSettings(deadline=0.1, grace=0.1, quorum=2)
)
LAYOUT = PayloadLayout((("sinks", (2, 3)),))
SITES = ("north", "south", "west")


def introduction(
    site: str, *, backbone: str = "a" * 64, code: str | None = None, shift: float = 0.0
) -> SiteIntroduction:
    met = SiteIntroduction(
        site=site,
        run=name_run(propose(EXPERIMENT)),
        proposal=propose(EXPERIMENT).digest,
        backbone_digest=backbone,
        layout=LAYOUT,
        initial=np.full(6, 0.5 + shift, np.float32),
        examples=20,
    )
    return met if code is None else replace(met, code=code)


class Answering(PollingGrid):
    """Nodes 1, 2, … that answer with the given introductions, in the given order; None means no answer."""

    def __init__(self, answers: dict[str, SiteIntroduction | str | None], keys: dict[str, bytes] | None = None) -> None:
        self._answers, self._keys = answers, keys or {}

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=number + 1, name=name, public_key=self._keys.get(name, b""))
            for number, name in enumerate(self._answers)
        ]

    def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
        for question in messages:
            answer = list(self._answers.values())[question.metadata.dst_node_id - 1]
            if isinstance(answer, str):
                yield Message(Error(code=SITE_REFUSED, reason=answer), reply_to=question)
            elif answer is not None:
                yield Message(encode_frame_record(encode_frame(answer)), reply_to=question)


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_task_identity(1)


def meet(answers: dict[str, SiteIntroduction | str | None]) -> Agreement:
    grid: Grid = Answering(answers)
    return agree(grid, EXPERIMENT, SITES)


def test_sites_that_fit_make_the_plan() -> None:
    agreement = meet({name: introduction(name) for name in reversed(SITES)})
    assert agreement.plan.sites == SITES
    assert agreement.plan.max_examples == dict.fromkeys(SITES, 20)
    assert agreement.left_out == {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (introduction("west", backbone="b" * 64), "most sites have backbone aaaa"),
        (introduction("west", code="0.0.9"), "code: theirs 0.0.9"),
        (introduction("west", shift=1.0), "other initial prompts"),
        (introduction("south"), "introduces itself as 'south'"),
        ("incoming.methods", "the site refused: incoming.methods"),
        (None, "did not introduce itself"),
    ],
)
def test_a_misfit_is_named_and_left_out(answer: SiteIntroduction | str | None, said: str) -> None:
    agreement = meet({"north": introduction("north"), "south": introduction("south"), "west": answer})
    assert agreement.plan.sites == ("north", "south")
    assert said in agreement.left_out["west"]


def test_an_absent_site_is_named_and_left_out() -> None:
    agreement = meet({"north": introduction("north"), "south": introduction("south")})
    assert agreement.left_out == {"west": "is not online"}


def test_too_few_sites_are_no_federation_and_every_reason_is_told() -> None:
    with pytest.raises(NoAgreementError, match=r"1 of 3 sites .* south the site refused: no.* west is not online"):
        meet({"north": introduction("north"), "south": "no"})


def test_a_tie_is_nobodys_agreement() -> None:
    fitting, misfits = reconcile({"north": introduction("north"), "south": introduction("south", backbone="b" * 64)})
    assert fitting == {}
    assert all("no majority" in reason for reason in misfits.values())


def test_an_agreement_is_read_back_bit_for_bit(tmp_path) -> None:  # type: ignore[no-untyped-def]
    agreement = meet({"north": introduction("north"), "south": introduction("south")})
    write_agreement(tmp_path, agreement)
    again = read_agreement(tmp_path)
    assert again is not None
    assert again.left_out == agreement.left_out
    assert again.plan.initial.tobytes() == agreement.plan.initial.tobytes()
    assert replace(again.plan, initial=agreement.plan.initial) == agreement.plan


def test_a_node_with_a_sites_name_and_another_key_is_not_there() -> None:
    nodes = Answering({"north": None, "south": None, "stranger": None}, {"north": b"right", "south": b"wrong"})
    grid = RegisteredGrid(nodes, {"north": b"right", "south": b"right"})
    assert [node.name for node in grid.get_nodes()] == ["north"]
    assert grid.get_node_ids() == [1]
