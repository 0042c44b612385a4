"""A plaintext run that trains as a masked run does, since the identity of a masked run is part of its seed."""

from dataclasses import replace
from typing import Any

import pytest

from client.site.run_settings import RunSettings, derive_masked_seed
from ept_fed.config.experiment import Experiment

__all__ = ["train_as_masked"]


def train_as_masked(patch: pytest.MonkeyPatch, run: str) -> None:
    """Let every site train with the seed that it would have in this masked run."""
    make = RunSettings.of

    def as_masked(experiment: Experiment, *arguments: Any) -> RunSettings:
        return replace(make(experiment, *arguments), seed=derive_masked_seed(experiment.seed, run))

    patch.setattr(RunSettings, "of", as_masked)
