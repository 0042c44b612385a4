"""bfloat16 is used only on request or with hardware instructions for it, because emulation is many times slower."""

from collections.abc import Callable

import pytest
import torch

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.training.precision import settle_precision, use_bfloat16

Micro = Callable[..., Experiment]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "capabilities", "expected"),
    [
        ("fast", {"avx2": True, "avx512_f": True}, False),
        ("fast", {"avx512_bf16": True}, True),
        ("fast", {"amx_bf16": True}, True),
        ("fast", {"neon": True, "bf16": False}, False),
        ("fast", {"neon": True, "bf16": True}, True),
        ("auto", {"amx_bf16": True, "avx512_bf16": True}, False),
        ("bfloat16", {}, True),
        ("float32", {"amx_bf16": True}, False),
    ],
)
def test_a_cpu_uses_bfloat16_only_on_request_or_if_it_is_fast(
    precision: str, capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert use_bfloat16(precision, CPU) is expected


@pytest.mark.parametrize("precision", ["auto", "fast"])
@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_uses_bfloat16_if_it_has_instructions_for_it(
    precision: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert use_bfloat16(precision, torch.device("cuda")) is has


def test_the_capability_names_are_those_of_torch() -> None:
    capabilities = torch.cpu.get_capabilities()
    wanted = {"x86_64": {"amx_bf16", "avx512_bf16"}, "arm64": {"bf16"}}.get(capabilities["architecture"], set())
    assert wanted <= set(capabilities)


@pytest.mark.parametrize("able", [False, True])
def test_auto_and_fast_become_the_precision_used_on_this_machine(
    able: bool, micro: Micro, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    device = "model.device=cpu"
    told = {name: micro(device, f"training.precision={name}") for name in ("auto", "fast", "float32", "bfloat16")}
    settled = {name: settle_precision(experiment) for name, experiment in told.items()}
    assert settled["auto"] == settled["float32"] == told["float32"]
    assert settled["fast"] == told["bfloat16" if able else "float32"]
    assert settled["bfloat16"] == told["bfloat16"]


def test_a_precision_for_a_missing_device_is_refused(micro: Micro, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputRefusedError, match="torch finds no CUDA device"):
        settle_precision(micro("model.device=cuda"))
    asked = micro("model.device=cuda", "training.precision=float32")
    assert settle_precision(asked) == asked
