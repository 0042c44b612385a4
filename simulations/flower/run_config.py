"""Load the experiment of a Flower run from its run config: `experiment` and `set`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.validation.load_experiment import load_experiment

__all__ = ["read_experiment"]

_APP = Path(__file__).resolve().parents[2]


def read_experiment(run_config: Mapping[str, Any]) -> Experiment:
    """Load `experiment`, a YAML file, with the space-separated `key.path=value` overrides in `set`.

    A relative path starts at the app, that is at the bundle or the checkout, because the working directory of a Flower
    process depends on where the SuperLink was started.

    Raises:
        InputRefusedError: with every problem of both.
    """
    name, overrides = str(run_config["experiment"]), str(run_config["set"])
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise InputRefusedError([Problem("set", overrides, f"has an open quote ({error}); close it")]) from error
    experiment = load_experiment(_APP / name, words)
    if experiment.federation.secure_aggregation is not None:
        fix = "needs certified sites, which flwr run does not have; use ept-fed simulate, or ept-fed server run"
        raise InputRefusedError([Problem("federation.secure_aggregation", "on", fix)])
    return experiment
