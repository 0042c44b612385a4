"""Measure the time of data preparation: partition into virtual sites, filling of the cache, and the data doctor.

    python -m simulations.benches.data partition [--images 100000] [--sites 1000]
    python -m simulations.benches.data cache CONFIG [--set KEY=VALUE …] [--size 112]
    python -m simulations.benches.data doctor CONFIG [--set KEY=VALUE …]

`cache` reads every image of the experiment, not only its shots, alternately on one thread and on all cores.
Measured on two idle cores: 0.7 s for a Dirichlet partition of 100,000 images over 1,000 sites; 4.5 s on one thread and
5.1 s on two threads for HAM10000 from its zip at 112 px; 5.0 s for `ept-fed doctor data` on HAM10000. More threads do
not speed up the reading of such JPEGs.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

from ept_fed.config.partition import DirichletPartition, IIDPartition, QuantityPartition, ShardsPartition
from ept_fed.data.datasets import prepare as datasets
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.doctor import examine_data
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.partition import partition_records
from ept_fed.errors import InputRefusedError
from ept_fed.validation.data import validate_data
from ept_fed.validation.load_experiment import load_experiment
from simulations.benches.paired_timing import time_paired


def main() -> None:
    """Run the measurement that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    partition = commands.add_parser("partition")
    partition.add_argument("--images", type=int, default=100_000)
    partition.add_argument("--sites", type=int, default=1000)
    for name in ("cache", "doctor"):
        command = commands.add_parser(name)
        command.add_argument("config", type=Path)
        command.add_argument("--set", action="append", default=[], dest="overrides")
        command.add_argument("--size", type=int, default=112)
        command.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.command == "partition":
        measure_partitions(arguments.images, arguments.sites)
    else:
        experiment = load_experiment(arguments.config, arguments.overrides, check=validate_data)
        if arguments.command == "doctor":
            measure_doctor(experiment)
        else:
            measure_cache(experiment, arguments.size, arguments.turns)


def measure_partitions(images: int, sites: int) -> None:
    """Print the seconds that each partitioner takes for images of ten classes, one image per patient."""
    records = [ImageRecord(f"{n:08d}", (n % 10,), "all", f"{n:08d}", None) for n in range(images)]
    for partition in (
        IIDPartition(sites=sites),
        DirichletPartition(sites=sites, alpha=0.5),
        ShardsPartition(sites=sites),
        QuantityPartition(sites=sites, min_images=1),
    ):
        started = time.perf_counter()
        try:
            partition_records(records, partition, seed=0)
            outcome = "partitioned"
        except InputRefusedError as refusal:
            outcome = f"refused: {refusal}"
        print(f"{partition.kind:10s} {time.perf_counter() - started:6.2f} s  {outcome}")


def measure_cache(experiment: Any, size: int, turns: int) -> None:
    """Print the time to fill the cache from the source, on one thread and on all cores."""
    settings = experiment.data.model_copy(update={"shots": None, "validation_shots": None})
    spec = InputSpec(size, (0.5,) * 3, (0.5,) * 3, "bicubic")

    def fill() -> None:
        datasets.prepare_data(settings, spec, experiment.data_seed)

    def fill_alone() -> None:
        with mock.patch.object(datasets, "read_all", _read_alone):
            fill()

    for name, timing in time_paired({"one thread": fill_alone, "all cores": fill}, turns=turns, warm_up=1).items():
        print(f"{name:12s} {timing}")


def measure_doctor(experiment: Any) -> None:
    """Print the seconds that one run of the data doctor takes."""
    started = time.perf_counter()
    found = examine_data(experiment.data, experiment.data_seed)
    print(f"{found.images} images examined in {time.perf_counter() - started:.1f} s")


def _read_alone(read: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [read(item) for item in items]


if __name__ == "__main__":
    main()
