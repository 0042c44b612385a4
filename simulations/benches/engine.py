"""Measure the engine's own time per round, with sites that reply at once.

    python -m simulations.benches.engine [--rounds 10] [--turns 5] [--many 1000]

The payload is that of a ViT-B/16 (2,364 float32). Ten sites run under LocalGrid and under Flower's simulation runtime,
alternately and in one process. Then many sites run under LocalGrid only. The time of a round includes its share of the
evaluation after the last round. Flower's runtime needs Ray (ept-fed[flower-simulation]); without Ray it is skipped.
"""

import argparse
import importlib.util
import json
import logging
import tempfile
import time
from pathlib import Path

from simulations.benches.noop_sites import LAYOUT, LOCAL, RUNTIME, client_app, name_sites, run_federation
from simulations.benches.paired_timing import Timing, time_paired
from simulations.deployment.flower_processes import Loopback
from simulations.engine.local_grid import LocalGrid

FEW = 10
BOUNDS = {FEW: 20.0, 1000: 1500.0}
_APP = """
[project]
name = "engine-overhead"
version = "1.0.0"
[tool.flwr.app]
publisher = "ept-fed"
[tool.flwr.app.components]
serverapp = "simulations.benches.noop_sites:server_app"
clientapp = "simulations.benches.noop_sites:client_app"
[tool.flwr.app.config]
sites = {sites}
rounds = {rounds}
turns = {turns}
out = {out}
"""


def main() -> None:
    """Run the measurements for few and for many sites and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--many", type=int, default=1000)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    print(f"engine time per round, payload {4 * LAYOUT.size:,} bytes, medians of {arguments.turns} turns")
    if importlib.util.find_spec("ray") is None:
        print(f"{RUNTIME}: skipped, Ray is not installed (pip install 'ept-fed[flower-simulation]')")
        show(FEW, bench_local(FEW, arguments.rounds, arguments.turns), arguments.rounds)
    else:
        show(FEW, bench_beside_flower(arguments.rounds, arguments.turns), arguments.rounds)
    show(arguments.many, bench_local(arguments.many, arguments.rounds, arguments.turns), arguments.rounds)


def bench_local(sites: int, rounds: int, turns: int) -> dict[str, Timing]:
    """Time LocalGrid in this process."""
    names = name_sites(sites)
    grid = LocalGrid(client_app, names)
    started = time.process_time()
    timings = time_paired({LOCAL: lambda: run_federation(grid, names, rounds)}, turns=turns, warm_up=1)
    seconds = (time.process_time() - started) / ((turns + 1) * rounds)
    print(f"\n{sites} sites: {1e3 * seconds:.1f} ms of processor time per round under LocalGrid")
    return timings


def bench_beside_flower(rounds: int, turns: int) -> dict[str, Timing]:
    """Time LocalGrid and Flower's simulation runtime alternately, in the process that the runtime starts."""
    with tempfile.TemporaryDirectory() as folder:
        app, out, logs = Path(folder) / "engine-overhead", Path(folder) / "timings.json", Path(folder) / "logs"
        app.mkdir()
        logs.mkdir()
        settings = {"sites": FEW, "rounds": rounds, "turns": turns, "out": json.dumps(str(out))}
        (app / "pyproject.toml").write_text(_APP.format(**settings))
        with Loopback(logs) as loopback:
            loopback.start_superlink(simulation=True)
            nodes = f"num-supernodes={FEW} client-resources-num-cpus=1"
            loopback.run_app(app, {}, "--federation-config", nodes, limit=900.0)
        print(f"\n{FEW} sites")
        return {name: Timing(**timing) for name, timing in json.loads(out.read_text()).items()}


def show(sites: int, timings: dict[str, Timing], rounds: int) -> None:
    """Print one line per engine: the median time of a round, and its ratio to LocalGrid within each turn."""
    for name, timing in timings.items():
        bound = BOUNDS.get(sites) if name == LOCAL else None
        note = "" if bound is None else f"   (bound {bound:g} ms)"
        spread = f"   ×{timing.ratio:.1f}   (10–90 %: {timing.low:.1f}–{timing.high:.1f})" if len(timings) > 1 else ""
        print(f"  {name:28s} {timing.milliseconds / rounds:9.1f} ms{spread}{note}")


if __name__ == "__main__":
    main()
