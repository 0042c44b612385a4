"""Measure how much faster an experiment is if its frozen layers run once per image and view.

    python -m simulations.benches.frozen_layers CONFIG [--set KEY=VALUE …] [--turns 1]

Both ways run the whole experiment in turn: data, federation, baselines and report. They use the same views, so their
prompts must be equal; the largest difference is printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ept_fed.progress import Silent
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.simulate import simulate

_WAYS = {"every time": ("model.prefix_memory=0",), "once": ()}


def main() -> None:
    """Run the experiment both ways and print the times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    prompts: dict[str, dict[str, np.ndarray]] = {}
    for _ in range(arguments.turns):
        for way, more in _WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                experiment = load_experiment(arguments.config, [*arguments.overrides, *more])
                simulate(experiment, Path(folder) / "run", Silent())
                seconds[way].append(time.perf_counter() - started)
                prompts[way] = load_file(max((Path(folder) / "run" / "prompts").iterdir()))
            print(f"  frozen layers {way:10s} {seconds[way][-1]:7.1f} s", flush=True)
    slow, fast = (statistics.median(seconds[way]) for way in _WAYS)
    differences = [np.abs(prompts["once"][name] - tensor).max() for name, tensor in prompts["every time"].items()]
    print(
        f"{slow / fast:.2f} times as fast, {slow:.1f} s against {fast:.1f} s; prompts differ by {max(differences):.1e}"
    )


if __name__ == "__main__":
    main()
