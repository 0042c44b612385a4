"""Measure the time, memory and bytes of a whole simulation, run in a process of its own.

    python -m simulations.benches.simulate CONFIG [--set KEY=VALUE …]

The script prints the wall time, the peak memory of the process as counted by the kernel, and for each site the bytes of
its largest update and of the tensors in it. The update is counted in serialised form, envelope included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Run the command once and print its cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    overrides = [part for override in arguments.overrides for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "ept_fed.cli", "simulate", arguments.config, "--out", str(out), "--json"]
        started = time.perf_counter()
        done = subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            sys.exit(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        report = json.loads(done.stdout)
        lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{seconds:.0f} s wall, {peak:.2f} GiB peak memory, {report['rounds']} rounds, {report['settings']}")
    payload = report["payload"]["bytes"]
    print(f"payload {report['payload']['layout']}: {payload:,} bytes")
    for site, traffic in report["traffic"].items():
        largest = traffic["largest_update"]
        print(f"  {site:20s} largest update {largest:,} bytes = payload + {largest - payload:,} of envelope")
    rounds = sorted(line["seconds"] for line in lines)
    print(f"median round {rounds[len(rounds) // 2]:.1f} s")


if __name__ == "__main__":
    main()
