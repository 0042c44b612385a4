"""Bytes by site are counted from the proxy's log."""

import base64
from pathlib import Path
from typing import Any

import pytest

from simulations.deployment.traffic import Counted, count_traffic, is_idle, read_requests

KEYS = {"north": b"PEM of north", "south": b"PEM of south"}


def line(key: bytes, *, time: str = "2026-11-23T12:00:00+00:00", status: int = 200) -> dict[str, Any]:
    serialized = base64.b64encode(key).decode()
    sizes = {"received": 1000, "body": 100, "sent": 300, "sent_body": 200}
    return {"time": time, "key": serialized, "status": status, **sizes}


def test_requests_count_for_the_site_whose_key_they_show() -> None:
    lines = [line(b"PEM of north"), line(b"PEM of north"), line(b"PEM of south")]
    assert count_traffic(lines, KEYS) == {
        "north": Counted(2, 2000, 600, 200, 400),
        "south": Counted(1, 1000, 300, 100, 200),
    }


def test_strangers_and_declined_requests_count_for_nobody() -> None:
    lines = [line(b"intruder"), line(b"PEM of north", status=401), {**line(b""), "key": "no base64 ☃"}]
    assert count_traffic(lines, KEYS) == {"north": Counted(), "south": Counted()}


def test_only_what_lies_between_two_times_counts() -> None:
    lines = [line(b"PEM of north", time=f"2026-11-23T12:0{minute}:00+00:00") for minute in range(5)]
    noon = 1795435200.0
    assert count_traffic(lines, KEYS, since=noon + 60, until=noon + 180)["north"].requests == 3


def test_rotated_logs_are_read_oldest_first_and_other_lines_left_out(tmp_path: Path) -> None:
    log = tmp_path / "proxy.log"
    (tmp_path / "proxy.log.2").write_text('{"time": 1}\n')
    (tmp_path / "proxy.log.1").write_text('2026/11/23 [warn] something\n{"time": 2}\n{"time": cut o')
    log.write_text('{"time": 3}\n')
    assert [request["time"] for request in read_requests(log)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("act", "sent_body", "idle"),
    [
        ("pull-messages", 0, True),
        ("pull-messages", 330, False),
        ("send-node-heartbeat", 2, True),
        ("push-messages", 0, False),
        ("confirm-message-received", 0, False),
    ],
)
def test_what_comes_by_the_clock_is_told_from_what_a_message_costs(act: str, sent_body: int, idle: bool) -> None:
    assert is_idle({"path": f"/v1/fleet/{act}", "sent_body": sent_body}) == idle
