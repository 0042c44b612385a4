"""`ept-fed server` without a running server, and the display of a run."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from server.cli.run_display import RunDisplay, draw_server
from server.provisioning.provision import provision
from tests.command_line import call

SITE = {"round": 2, "loss": 0.5, "auc": None, "bytes_sent": 9000, "bytes_received": 8000, "refusals": 1}
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "federation": "three",
    "process": 7,
    "problem": None,
    "sites": {
        "north": {"status": "online", "location": None, "not_after": "2027-01-01"},
        "[red]south": {"status": "offline", "location": None, "not_after": "2027-01-01"},
    },
    "runs": [],
    "run": {
        "name": "first",
        "folder": "runs/first",
        "phase": "rounds",
        "ended": None,
        "round": 2,
        "rounds": 4,
        "seconds_left": 70.0,
        "silent_seconds": 1.0,
        "sites": {"north": SITE},
        "left_out": {"[red]south": "has another backbone"},
        "refused": [{"round": 1, "site": "north", "phase": "train", "reason": "did not answer in time"}],
    },
}


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump({"name": "three", "server": {"host": "localhost"}, "sites": [{"name": "north"}]}))
    provision(path, tmp_path / "kits", now=datetime.now(UTC))
    return tmp_path / "kits" / "server"


def ask(*words: str) -> tuple[int, str]:
    done = call("server", *words)
    return done.exit_code, done.output


def test_without_a_server_status_and_sites_say_so_and_fail(kit: Path) -> None:
    code, said = ask("status", str(kit), "--json")
    document = json.loads(said)
    assert (code, document["process"], document["run"]) == (1, None, None)
    assert "ept-fed server start" in document["problem"]
    code, said = ask("sites", str(kit))
    assert code == 1
    assert "north" in said
    assert "not registered" in said


def test_without_a_server_nothing_is_run_and_stopping_is_done(kit: Path, micro_file: Path) -> None:
    code, said = ask("run", str(micro_file), "--kit", str(kit))
    assert (code, "ept-fed server start" in said) == (1, True)
    assert json.loads(ask("run", str(micro_file), "--kit", str(kit), "--json")[1])["status"] == "failed"
    assert ask("stop", str(kit)) == (0, "nothing was running\n")
    assert ask("stop", str(kit), "--run")[0] == 1
    assert ask("log", str(kit))[0] == 1


def test_a_folder_that_is_no_kit_is_wrong_usage(tmp_path: Path) -> None:
    for words in (("start", str(tmp_path)), ("status", str(tmp_path)), ("stop", str(tmp_path)), ("log", str(tmp_path))):
        code, said = ask(*words)
        assert (code, "sites.json" in said) == (2, True)


def draw(width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw_server(DOCUMENT))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_screen_shows_rounds_sites_bytes_refusals_and_the_time_left() -> None:
    shown = draw()
    for words in ("round 2/4", "0:01:10 left", "online", "offline", "0.500", "9.0 kB", "did not answer in time"):
        assert words in shown
    assert "[red]south" in shown
    assert "another backbone" in shown


def test_without_a_terminal_every_event_is_one_line_once() -> None:
    console = Console(file=io.StringIO(), width=80)
    with RunDisplay(console) as display:
        display.show(DOCUMENT)
        display.show(DOCUMENT)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == len(set(lines)) == 4
    assert "round 2/4 north loss=0.500 auc=-" in lines
