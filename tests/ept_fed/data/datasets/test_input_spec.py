from types import SimpleNamespace

import pytest

from ept_fed.data.datasets.input_spec import InputSpec

CFG = {"mean": [0.5, 0.5, 0.5], "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 0.9}


def test_dict_and_object_configurations_agree() -> None:
    from_dict = InputSpec.from_pretrained_cfg(CFG, 96)
    assert from_dict == InputSpec.from_pretrained_cfg(SimpleNamespace(**CFG), 96)
    assert from_dict == InputSpec(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


def test_missing_entries_are_all_named() -> None:
    with pytest.raises(ValueError, match="no std, interpolation"):
        InputSpec.from_pretrained_cfg({"mean": (0, 0, 0), "std": None}, 96)


@pytest.mark.parametrize(
    "changed", [{"mean": (0.5,)}, {"std": (0.5, 0.5, 0.0)}, {"interpolation": "nearest"}, {"size": 0}]
)
def test_unusable_input_is_refused(changed: dict[str, object]) -> None:
    good = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    with pytest.raises(ValueError, match="="):
        InputSpec(**(good | changed))
