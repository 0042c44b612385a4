"""The apps of `flwr run`, run in this process, with nodes without names and sites that sleep between messages."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.progress import Silent
from simulations.engine.local_grid import LocalGrid
from simulations.engine.simulate import simulate
from simulations.flower import client as flower_client
from simulations.flower.client import app as client_app
from simulations.flower.named_grid import IntroductionError, NamedGrid
from simulations.flower.run_config import read_experiment
from simulations.flower.server import app as server_app

# Grid.get_nodes returns this type, which flwr 1.41 exports nowhere else.
from flwr.proto.node_pb2 import NodeInfo  # isort: skip

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ("data.phantom_sites=2", "model.tokens=1", "evaluation.baselines=[]", "federation.deadline=1.0")


class NamelessGrid(LocalGrid):
    """LocalGrid with nodes as in Flower's runtimes, which have a config but no name."""

    def __init__(self, node_configs: Sequence[dict[str, Any]], run_config: dict[str, Any]) -> None:
        super().__init__(client_app, [""] * len(node_configs))
        for context, node_config in zip(self._contexts.values(), node_configs, strict=True):
            context.node_config, context.run_config = node_config, run_config

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self._nodes]


class MuteGrid(NamelessGrid):
    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        return iter(())


class LateGrid(NamelessGrid):
    """A grid whose second node comes online after the first has introduced itself."""

    asked = 0

    def get_nodes(self) -> list[NodeInfo]:
        self.asked += 1
        return super().get_nodes()[: self.asked]


@pytest.fixture(autouse=True)
def _fresh_federation() -> Iterator[None]:
    flower_client._prepare.cache_clear()
    yield
    flower_client._prepare.cache_clear()


def run(
    path: Path,
    out: Path,
    node_configs: Sequence[dict[str, Any]],
    *settings: str,
    kind: type[NamelessGrid] = NamelessGrid,
) -> None:
    run_config = {"experiment": str(path), "set": " ".join((*SETTINGS, *settings)), "out": str(out)}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    server_app(kind(node_configs, run_config), context)


def partitions(count: int) -> list[dict[str, Any]]:
    return [{"partition-id": number, "num-partitions": count} for number in range(count)]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("orders", "settings"),
    [
        ((partitions(2), [{"site": "site-2"}, {"site": "site-1"}]), ()),
        (
            (partitions(2),),
            ("federation.strategy=fedprox", "federation.share=prompts+head", "training.optimizer=sgd"),
        ),
    ],
    ids=["partition-id and site, other order", "fedprox"],
)
def test_sites_that_sleep_between_messages_give_the_same_prompts(
    micro: Callable[..., Experiment],
    micro_file: Path,
    tmp_path: Path,
    orders: Sequence[list[dict[str, Any]]],
    settings: tuple[str, ...],
) -> None:
    simulate(micro(*SETTINGS, *settings), tmp_path / "local", Silent())
    for number, nodes in enumerate(orders):
        out = tmp_path / f"flower-{number}"
        run(micro_file, out, nodes, *settings)
        for name in (*(f"prompts/round-{number:03d}.safetensors" for number in (0, 1, 2)), "config.yaml"):
            assert (out / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([], "no node is online after 1 s; start the SuperNodes"),
        (partitions(3), "did not introduce itself .*partition-id"),
        ([{"site": "nowhere"}], "did not introduce itself .*site"),
        ([{}], "did not introduce itself"),
        ([{"site": "site-1"}, {"partition-id": 0}], "nodes 1 and 2 both represent 'site-1'"),
    ],
)
def test_nodes_that_make_no_federation_end_the_run(
    micro_file: Path, tmp_path: Path, nodes: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(IntroductionError, match=reason):
        run(micro_file, tmp_path / "out", nodes)


def test_nodes_with_other_plans_are_told_apart(micro_file: Path) -> None:
    grid = NamelessGrid(partitions(2), {"experiment": str(micro_file), "set": " ".join(SETTINGS)})
    grid._contexts[2].run_config = {"experiment": str(micro_file), "set": " ".join((*SETTINGS, "seed=1"))}
    with pytest.raises(IntroductionError, match=r"site-1 and site-2 plan different runs: .*seed"):
        NamedGrid(grid, deadline=1.0).agree_on_plan()


def test_a_node_that_comes_late_takes_part(micro_file: Path, tmp_path: Path) -> None:
    run(micro_file, tmp_path / "out", partitions(2), kind=LateGrid)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert [line["aggregated"] for line in lines] == [["site-1", "site-2"]] * 2


def test_nodes_that_stay_silent_are_named(micro_file: Path, tmp_path: Path) -> None:
    with pytest.raises(IntroductionError, match=r"nodes \[1, 2\] did not introduce themselves in 0.2 s"):
        run(micro_file, tmp_path / "out", partitions(2), "federation.deadline=0.2", kind=MuteGrid)


def test_a_run_that_averages_nothing_fails(micro_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no round averaged anything; .*rounds\.jsonl"):
        run(micro_file, tmp_path / "out", partitions(2), "training.head_lr=1e30", "training.epochs=3")


def test_a_folder_in_use_is_refused(micro_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="name another folder"):
        run(micro_file, micro_file.parent, partitions(2))


def test_a_relative_experiment_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_experiment({"experiment": "configs/demo.yaml", "set": "seed=3 data.shots=2"}).seed == 3


def test_an_open_quote_in_overrides_is_refused() -> None:
    with pytest.raises(InputRefusedError, match="open quote"):
        read_experiment({"experiment": "configs/demo.yaml", "set": "name='a"})


@pytest.mark.integration
def test_the_server_app_loads_no_torch() -> None:
    code = (
        "import sys, simulations.flower.server as _; print([m for m in ('torch', 'timm', 'monai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
