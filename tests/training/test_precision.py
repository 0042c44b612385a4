"""bfloat16 only where it is asked for, or where there are instructions for it: emulated it is many times as slow."""

import pytest
import torch

from ept_fed.training.precision import use_bfloat16

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
def test_a_processor_computes_in_what_it_is_fast_in(
    precision: str, capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert use_bfloat16(precision, CPU) is expected


@pytest.mark.parametrize("precision", ["auto", "fast"])
@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_does_so_too(precision: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert use_bfloat16(precision, torch.device("cuda")) is has


def test_the_names_are_those_that_torch_gives() -> None:
    capabilities = torch.cpu.get_capabilities()
    wanted = {"x86_64": {"amx_bf16", "avx512_bf16"}, "arm64": {"bf16"}}.get(capabilities["architecture"], set())
    assert wanted <= set(capabilities)
