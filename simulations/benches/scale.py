"""Measure the memory of a federation of many virtual sites, beyond that of its backbone and its images.

    python -m simulations.benches.scale CONFIG [--set KEY=VALUE …]

The script prepares the experiment and reads the resident memory (libraries, one backbone, one model, the cached
images). Then it runs all rounds and the last evaluation into a temporary folder, and prints how far the peak is above
the first reading. It works on Linux only, because it reads and resets the kernel's high-water mark.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ept_fed.progress import Silent
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.federate import federate
from simulations.engine.virtual_sites import prepare_federation

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Prepare the federation, run it and print its memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    federation = prepare_federation(load_experiment(arguments.config, arguments.overrides))
    plan = federation.plan()
    images = sum(
        len(split) for site in federation.data.sites.values() for split in (site.train, site.validation, site.test)
    )
    print(f"{len(plan.sites)} sites, {images} images, {federation.experiment.model.backbone}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        run.create(federation.experiment.to_yaml())
        sites = {
            name: federation.create_site(data, federation.keep_states(run, "federated", name))
            for name, data in federation.data.sites.items()
        }
        # Train one site first: torch's memory for a forward and a backward pass does not depend on the number of sites.
        next(iter(sites.values())).fit(federation.experiment.training, 1, 1)
        before = _read("VmRSS")
        _RESET.write_text("5")
        started = time.perf_counter()
        result = federate(federation, plan, sites, run, Silent())
        seconds = time.perf_counter() - started
        peak = _read("VmHWM")
        kept = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    asked = sum(len(record.asked) for record in result.rounds)
    print(f"{len(result.rounds)} rounds, {asked} trainings, {len(sites)} evaluations in {seconds:.0f} s")
    print(f"resident before the run {before / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB: {(peak - before) / 1e6:+.0f} MB")
    print(f"on disk {kept / 1e6:.0f} MB")


def _read(field: str) -> int:
    """Return a field of the process status in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{_STATUS} has no {field}")


if __name__ == "__main__":
    main()
