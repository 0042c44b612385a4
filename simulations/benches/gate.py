"""Measure the cost of the site's gate: milliseconds per message, and seconds to verify a ledger.

    python -m simulations.benches.gate [--messages 300] [--entries 10000] [--folder DIR]

The folded payload of a ViT-B/16 (12 × 197 sinks) passes a gate in both directions. Every message waits once for the
disk of --folder, so the time is also printed without that wait. Then a ledger with --entries entries is written and
verified, first by its tip, then also by the signature of every line.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from client.gate.gate import Gate
from client.gate.policy import Policy
from client.gate.privacy_budget import BudgetLedger
from client.gate.run_history import PromptStore
from client.ledger.ledger import Ledger, Record, tip_path
from client.ledger.verify import examine
from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.protocol.frames import Introduce, encode_frame
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.protocol.messages import TRAIN_METRICS, Header, RoundReply, RoundRequest
from ept_fed.protocol.proposal import SiteIntroduction, propose

_LAYOUT = PayloadLayout((("sinks", (12, 197)),), ("embedding concat", *(f"layer {layer}" for layer in range(12))))
_RUN, _BACKBONE, _SITE = "bench", "0" * 64, "north"
_BOUND = 5.0  # milliseconds per message


def main() -> None:
    """Time the messages and the verification, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the ledger is written; default: the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _time_messages(Path(folder) / "messages", arguments.messages)
        _time_verification(Path(folder) / "ledger", arguments.entries)


def _time_messages(folder: Path, count: int) -> None:
    ledger = Ledger(folder / "ledger.jsonl", ec.generate_private_key(ec.SECP384R1()), site=_SITE)
    policy = Policy.model_validate({"schema": 1, "incoming": {"backbone": "first", "rounds": [1, count]}})
    gate = Gate(policy, ledger, PromptStore(folder / "prompts"), BudgetLedger(folder / "budget.jsonl"), site=_SITE)
    classes = {"source": "phantoms", "classes": ["a", "b"]}
    proposal = propose(Experiment.model_validate({"data": classes}))
    gate.admit_proposal(_RUN, proposal, encode_frame(Introduce(_RUN, proposal)))
    initial = np.full(_LAYOUT.size, 4.6, np.float32)
    met = SiteIntroduction(_SITE, _RUN, proposal.digest, _BACKBONE, _LAYOUT, initial, 40)
    gate.release_introduction(_RUN, met, encode_frame(met), counts={"train": 40, "validation": 40, "test": 40})
    waited = _count_waiting()
    taken: dict[str, list[tuple[float, float]]] = {"in": [], "out": []}
    settings = TrainingSettings()
    for number in range(1, count + 1):
        header = Header(_RUN, number, _BACKBONE, _LAYOUT.hash)
        request = RoundRequest(header, "train", count, initial, "train", settings)
        frame = encode_frame(request)
        reply = RoundReply(header, "train", initial + np.float32(0.01), 40, dict.fromkeys(TRAIN_METRICS, 1.0))
        acts: dict[str, Callable[[], object]] = {
            "in": partial(gate.admit, request, proposal, _LAYOUT, frame),
            "out": partial(gate.release, request, reply, _LAYOUT),
        }
        for direction, act in acts.items():
            waited.clear()
            taken[direction].append((_milliseconds(act), sum(waited)))
    gate.close()
    print(f"{_LAYOUT.size:,} floats; per message, median (95th percentile) of {count} in each direction:")
    for direction, times in taken.items():
        whole, disk = (np.array([pair[place] for pair in times]) for place in (0, 1))
        own = whole - disk
        print(
            f"  {direction:>3}: {np.median(whole):.2f} ms ({np.percentile(whole, 95):.2f}), "
            f"{100 * np.mean(whole > _BOUND):.0f} % above {_BOUND:g} ms, of which the disk {np.median(disk):.2f} "
            f"({np.percentile(disk, 95):.2f}); without it {np.median(own):.2f} ({np.percentile(own, 95):.2f})"
        )


def _count_waiting() -> list[float]:
    """Patch os.fsync to record the time of each call in milliseconds; return the list of these times."""
    waited: list[float] = []
    wait = os.fsync

    def timed(handle: int) -> None:
        waited.append(_milliseconds(lambda: wait(handle)))

    os.fsync = timed  # type: ignore[assignment]
    return waited


def _time_verification(folder: Path, count: int) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, key, site=_SITE)
    os.fsync = _do_not_wait  # type: ignore[assignment]
    message = Record(
        "out",
        "train",
        "passed",
        policy="0" * 64,
        run=_RUN,
        round=1,
        tensors=_LAYOUT.shapes,
        metrics=TRAIN_METRICS,
        images=40,
        bytes=10_100,
        sha256="0" * 64,
    )
    for _ in range(count - 1):
        ledger.append(message)
    ledger.close()
    content, tip = path.read_bytes(), tip_path(path).read_bytes()
    print(f"{count:,} entries, {len(content) / 1e6:.1f} MB, {len(content) / count:.0f} bytes each:")
    for name, every in (("chain, totals and tip", False), ("every signature too", True)):
        times, processor = [], []
        for _ in range(3):
            started = time.process_time()
            times.append(_milliseconds(partial(examine, content, tip, key.public_key(), every_signature=every)))
            processor.append(time.process_time() - started)
        print(f"  {name}: {statistics.median(times) / 1e3:.2f} s ({statistics.median(processor):.2f} s of a processor)")


def _do_not_wait(_handle: int) -> None:
    """Replace os.fsync where the disk must not be part of the measured time."""


def _milliseconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
