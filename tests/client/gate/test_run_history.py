"""Tests of the prompts that the gate accepted last: prompts that are not surely those of the run count as lost."""

from pathlib import Path

import numpy as np
import pytest

from client.gate.run_history import PromptStore
from ept_fed.protocol.layout import PayloadLayout
from tests.client.gated_kit import INITIAL, LAYOUT, RUN, WITH_TOKENS

LONG = np.arange(WITH_TOKENS.size, dtype=np.float32)


def test_the_prompts_kept_last_come_back_also_after_a_restart_and_where_longer_ones_were(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "prompts")
    assert store.latest(RUN, LAYOUT) is None
    store.keep(RUN, WITH_TOKENS, 2, LONG)
    mine = INITIAL.copy()
    store.keep(RUN, LAYOUT, 3, mine)
    mine[:] = 0
    for reader in (store, PromptStore(tmp_path / "prompts")):
        found = reader.latest(RUN, LAYOUT)
        assert found is not None
        assert found[0] == 3
        assert np.array_equal(found[1], INITIAL)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "prompts", *(tmp_path / "prompts").iterdir()))


@pytest.mark.parametrize("layout", [PayloadLayout((("sinks", (3, 2)),), LAYOUT.meaning), WITH_TOKENS])
def test_prompts_of_another_layout_count_as_lost(tmp_path: Path, layout: PayloadLayout) -> None:
    PromptStore(tmp_path).keep(RUN, LAYOUT, 1, INITIAL)
    assert PromptStore(tmp_path).latest(RUN, layout) is None


def test_prompts_of_another_run_and_damaged_ones_count_as_lost(tmp_path: Path) -> None:
    PromptStore(tmp_path).keep("run-b", LAYOUT, 1, INITIAL)
    (other,) = tmp_path.iterdir()
    content = other.read_bytes()
    for left in (content, content[:-1], content[:-1] + b"x", b""):
        other.with_stem(RUN).write_bytes(left)
        assert PromptStore(tmp_path).latest(RUN, LAYOUT) is None
