"""Run an experiment with ten seeds, the demo by default, and print every seed's verdicts and time.

    python -m simulations.probes.demo_seeds [CONFIG] [--set KEY=VALUE …] [--seeds 10]

The README shows the demo with seed 0. This table shows whether that seed is a lucky one.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from ept_fed.progress import Silent
from ept_fed.reports.run.settings import BASELINE, verdict_setting
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.simulate import simulate

_VERDICTS = ("helped", "no clear difference", "local model kept", "harmed", "none")


def main() -> None:
    """Run every seed, and print a line for each and the totals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    print(f"seed  {'  '.join(_VERDICTS)}  AUC local  AUC used  seconds", flush=True)
    totals: Counter[str] = Counter()
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            experiment = load_experiment(arguments.config, [*arguments.overrides, f"seed={seed}"])
            report = simulate(experiment, Path(folder) / "run", Silent())
        seconds = time.perf_counter() - started
        verdicts = Counter(report["verdicts"].values())
        totals += verdicts
        mean = report["rows"][-1]
        counts = "  ".join(f"{verdicts[name]:{len(name)}d}" for name in _VERDICTS)
        used = mean[f"{verdict_setting(report['settings'])}_auc"]
        print(f"{seed:4d}  {counts}  {mean[f'{BASELINE}_auc']:9.3f}  {used:8.3f}  {seconds:7.0f}", flush=True)
    print(" all  " + "  ".join(f"{totals[name]:{len(name)}d}" for name in _VERDICTS))


if __name__ == "__main__":
    main()
