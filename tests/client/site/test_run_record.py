"""The payload that a site keeps of a run, for its own report."""

from pathlib import Path

import numpy as np
import pytest

from client.site.run_record import RunRecord
from ept_fed.protocol.messages import Header, RoundRequest
from ept_fed.storage.checkpoint_file import DamagedCheckpointError


def asked(round_number: int, phase: str, best_round: int = 0) -> RoundRequest:
    split = "train" if phase == "train" else "validation"
    payload = np.full(3, round_number, np.float32)
    return RoundRequest(Header("r", round_number, "b", "l"), phase, 9, payload, split, best_round=best_round)  # type: ignore[arg-type]


def test_the_last_payload_is_kept_with_the_round_that_made_it(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, run="r", site="a")
    assert record.read_received() is None
    for request, made_in in ((asked(4, "train"), 3), (asked(4, "evaluate"), 4), (asked(5, "train"), 4)):
        record.accept(request, "data")
        received = record.read_received()
        assert received is not None
        assert (received.prompts_of, received.chosen) == (made_in, False)


def test_an_older_payload_replaces_a_newer_one_only_if_it_was_chosen(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, run="r", site="a")
    record.accept(asked(9, "evaluate"), "data")
    record.accept(asked(6, "evaluate"), "data")
    assert record.read_received().round == 9  # type: ignore[union-attr]
    record.accept(asked(9, "evaluate", best_round=6), "data")
    received = record.read_received()
    assert received is not None
    assert (received.round, received.prompts_of, received.chosen) == (9, 6, True)


def test_the_payload_of_another_run_is_refused(tmp_path: Path) -> None:
    RunRecord(tmp_path, run="r", site="a").accept(asked(1, "evaluate"), "data")
    with pytest.raises(DamagedCheckpointError, match="belongs elsewhere"):
        RunRecord(tmp_path, run="s", site="a").read_received()
