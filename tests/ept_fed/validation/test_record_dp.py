"""training.privacy: the settings that it needs, and those that do not fit it."""

from collections.abc import Callable

import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError

PRIVATE = "training.privacy={clip: 1.0, noise_multiplier: 1.0}"


def test_training_is_not_private_unless_configured(micro: Callable[..., Experiment]) -> None:
    assert micro().training.privacy is None
    privacy = micro(PRIVATE).training.privacy
    assert privacy is not None
    assert (privacy.clip, privacy.noise_multiplier, privacy.epsilon, privacy.delta) == (1.0, 1.0, None, 1e-5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("{clip: 0, noise_multiplier: 1}", "clip"),
        ("{clip: .nan, noise_multiplier: 1}", "clip"),
        ("{clip: .inf, noise_multiplier: 1}", "clip"),
        ("{noise_multiplier: 1}", "clip"),
        ("{clip: 1}", "either noise_multiplier or epsilon"),
        ("{clip: 1, noise_multiplier: 1, epsilon: 8}", "either noise_multiplier or epsilon"),
        ("{clip: 1, noise_multiplier: 0}", "noise_multiplier"),
        ("{clip: 1, epsilon: -1}", "epsilon"),
        ("{clip: 1, epsilon: 1, delta: 0}", "delta"),
        ("{clip: 1, epsilon: 1, delta: 1}", "delta"),
        ("{clip: 1, epsilon: 1, sigma: 1}", "sigma"),
    ],
)
def test_impossible_numbers_are_refused_by_name(micro: Callable[..., Experiment], given: str, named: str) -> None:
    with pytest.raises(InputRefusedError, match=named):
        micro(f"training.privacy={given}")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        (("training.head=lda",), "training.head"),
        (("training.class_balanced=true",), "training.class_balanced"),
        (("training.head_first_epochs=1",), "training.head_first_epochs"),
        (("personalisation.ditto=0.1",), "personalisation.ditto"),
        (("personalisation.fine_tune_epochs=2",), "personalisation.fine_tune_epochs"),
        (("federation.strategy=scaffold", "federation.weights=uniform"), "federation.strategy"),
        (("federation.strategy=qfedavg",), "federation.strategy"),
        (("model.method=vpt", "federation.payload=raw"), "model.method"),
        (("model.embedding=multiply_concat", "federation.payload=raw"), "model.embedding"),
    ],
)
def test_settings_that_read_images_without_noise_are_refused_by_name(
    micro: Callable[..., Experiment], override: tuple[str, ...], field: str
) -> None:
    micro(*override)
    with pytest.raises(InputRefusedError) as refusal:
        micro(PRIVATE, *override)
    assert [problem.field for problem in refusal.value.problems] == [field]


def test_all_settings_that_do_not_fit_are_named_together(micro: Callable[..., Experiment]) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        micro(PRIVATE, "training.head=lda", "training.class_balanced=true")
    assert {problem.field for problem in refusal.value.problems} == {"training.head", "training.class_balanced"}
