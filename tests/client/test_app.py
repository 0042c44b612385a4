"""Tests of the app that SuperNode starts for every message: few imports, and a reply to any input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import app
from ept_fed.flower.records import SITE_AWAY, SITE_FAILED, SITE_REFUSED, encode_frame_record
from ept_fed.flower.transport import set_task_identity
from ept_fed.protocol.frames import Refusal, encode_frame

ROOT = Path(__file__).resolve().parents[2]


def answer(kind: str, records: RecordDict, tmp_path: Path, **config: Any) -> Any:
    set_task_identity(1)
    node = {"worker-socket": str(tmp_path / "patient" / "worker.sock"), **config}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    return app(Message(records, 1, kind), context)


@pytest.mark.integration
def test_it_loads_neither_torch_nor_monai() -> None:
    code = "import client.app, sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "flwr" in done.stdout.split()
    assert not set(done.stdout.split()) & {"torch", "monai", "timm", "torchvision", "sklearn", "scipy"}
    # Slow to import, and every message would wait for them.
    assert not set(done.stdout.split()) & {"ept_fed.protocol.frames", "pydantic"}


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"0": ConfigRecord({"frame": b"\x00" * 40})}),
        RecordDict({"0": ConfigRecord({"frame": "text"})}),
        RecordDict({"config": ConfigRecord({"frame": encode_frame(Refusal("no"))})}),
        RecordDict({"arrays": ArrayRecord({"payload": Array(np.zeros(3, np.float32))})}),
        encode_frame_record(encode_frame(Refusal("no"))[:-1]),
        encode_frame_record(encode_frame(Refusal("no")) + b"more"),
    ],
)
def test_input_that_is_no_request_is_refused_without_the_worker(kind: str, records: RecordDict, tmp_path: Path) -> None:
    assert answer(kind, records, tmp_path).error.code == SITE_REFUSED


@pytest.mark.integration
def test_a_missing_worker_is_reported_without_its_path(tmp_path: Path, proposal_record: RecordDict) -> None:
    reply = answer("query", proposal_record, tmp_path)
    assert reply.error.code == SITE_AWAY
    assert reply.error.reason == "the site's worker does not answer; the site has to start it"


def test_a_node_without_a_socket_in_its_config_still_answers(tmp_path: Path, proposal_record: RecordDict) -> None:
    set_task_identity(1)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = app(Message(proposal_record, 1, "query"), context)
    assert reply.error.code == SITE_FAILED
    assert "socket" not in reply.error.reason
