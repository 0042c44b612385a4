"""prompted_attention against the paper's own formula (Zu et al. 2024, Eq. 5)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ept_fed.models import fold, prompted_attention
from ept_fed.models.attention import find_kernel
from tests.effort import examples
from tests.needs import GPU

B, H, N, d = 3, 4, 37, 16
PROMPT_SHAPES = {"(N,)": (N,), "(B, N)": (B, N), "(B, H, N)": (B, H, N)}


def paper_attention(q: Tensor, k: Tensor, v: Tensor, P: Tensor) -> Tensor:
    """Concatenate the prompt columns to the scaled logits, softmax over all, drop the columns."""
    A = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    if P.dim() == 3:
        P = P.unsqueeze(1)
    columns = P.expand(*A.shape[:3], P.shape[-1])
    return torch.cat([columns, A], dim=-1).softmax(dim=-1)[..., P.shape[-1] :] @ v


def draw(shape: tuple[int, ...], M: int, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    qkv = [torch.randn(B, H, N, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
    P = torch.randn(*shape, M, generator=generator, dtype=torch.float64).to(dtype)
    return [*qkv, P], torch.randn(B, H, N, d, generator=generator, dtype=torch.float64).to(dtype)


def relative_error(have: Tensor, want: Tensor) -> float:
    have, want = have.detach().double(), want.detach().double()
    return float((have - want).norm() / want.norm())


def errors_against_paper(inputs: list[Tensor], grad: Tensor, backend: str) -> list[float]:
    """Return the relative errors of the output and the gradients of q, k, v and P, against the formula in float64."""
    mine = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out = prompted_attention(*mine[:3], fold(mine[3]), backend=backend)
    want = paper_attention(*exact)
    pairs = zip(
        (out, *torch.autograd.grad(out, mine, grad)),
        (want, *torch.autograd.grad(want, exact, grad.double())),
        strict=True,
    )
    return [relative_error(a, b) for a, b in pairs]


@pytest.mark.parametrize("M", [1, 5, 100])
@pytest.mark.parametrize("shape", PROMPT_SHAPES.values(), ids=PROMPT_SHAPES)
@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_float32_equals_the_papers_formula_forward_and_backward(M: int, shape: tuple[int, ...], backend: str) -> None:
    assert max(errors_against_paper(*draw(shape, M, torch.float32), backend)) <= 1e-6


@pytest.mark.parametrize("M", [1, 5, 100])
@pytest.mark.parametrize("shape", PROMPT_SHAPES.values(), ids=PROMPT_SHAPES)
def test_float64_equals_the_papers_formula_to_rounding(M: int, shape: tuple[int, ...]) -> None:
    assert max(errors_against_paper(*draw(shape, M, torch.float64), "portable")) <= 1e-12


@pytest.mark.parametrize("M", [1, 100])
@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_bfloat16_is_as_exact_as_its_format(M: int, backend: str) -> None:
    inputs, grad = draw((N,), M, torch.bfloat16)
    inputs[3] = inputs[3].float() + 4
    assert max(errors_against_paper(inputs, grad, backend)) <= 1.5e-2


@examples(10)
@given(sink=st.floats(-60, 60), scale=st.floats(0.01, 30), seed=st.integers(0, 2**16))
def test_extreme_sinks_and_logits_stay_exact_and_finite(sink: float, scale: float, seed: int) -> None:
    (q, k, v, _), grad = draw((N,), 1, torch.float32, seed)
    column = torch.full((N, 1), sink)
    out_error, *gradient_errors = errors_against_paper([q * scale, k, v, column], grad, "auto")
    assert out_error <= 1e-5
    # A gradient whose exact value underflows to zero has no relative error: the error is NaN, the gradient is zero.
    assert all(error <= 1e-3 or math.isnan(error) for error in gradient_errors)
    inputs = [x.clone().requires_grad_() for x in (q * scale, k, v, column[:, 0])]
    out = prompted_attention(*inputs)
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(out, inputs, grad))


def test_a_sink_of_minus_infinity_is_plain_attention() -> None:
    (q, k, v, _), _ = draw((N,), 1, torch.float32)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(prompted_attention(q, k, v, torch.full((N,), -torch.inf)), plain)


def test_queries_with_the_strides_of_a_qkv_projection_give_the_same_numbers() -> None:
    inputs, grad = draw((N,), 5, torch.float32)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[:3]] + [inputs[3]]
    assert max(errors_against_paper(strided, grad.transpose(1, 2).contiguous().transpose(1, 2), "auto")) <= 1e-6


def test_only_the_requested_gradients_are_computed() -> None:
    (q, k, v, P), grad = draw((N,), 5, torch.float32)
    sink = fold(P).requires_grad_()
    (alone,) = torch.autograd.grad(prompted_attention(q, k, v, sink), sink, grad)
    q.requires_grad_()
    dq, together = torch.autograd.grad(prompted_attention(q, k, v, sink), (q, sink), grad)
    assert dq.shape == q.shape
    assert torch.equal(alone, together)


def test_the_portable_path_can_be_differentiated_twice() -> None:
    (q, k, v, P), _ = draw((N,), 5, torch.float64)
    sink = fold(P).requires_grad_()
    out = prompted_attention(q[:1, :1, :, :4], k[:1, :1, :, :4], v[:1, :1, :, :4], sink, backend="portable")
    (first,) = torch.autograd.grad(out.square().sum(), sink, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), sink)
    assert second.abs().sum() > 0


def test_inputs_are_not_modified() -> None:
    inputs, _ = draw((N,), 5, torch.float32)
    before = [x.clone() for x in inputs]
    prompted_attention(*inputs[:3], fold(inputs[3]))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("shape", [(N + 1,), (B + 1, N), (B, H + 1, N), (1, B, H, N), ()])
def test_a_sink_that_does_not_fit_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    (q, k, v, _), _ = draw((N,), 1, torch.float32)
    with pytest.raises(ValueError, match=r"sink has shape .* must be"):
        prompted_attention(q, k, v, torch.zeros(shape))


def test_inputs_that_do_not_fit_each_other_are_refused() -> None:
    (q, k, v, _), _ = draw((N,), 1, torch.float32)
    sink = torch.zeros(N)
    for bad in (
        (q, k[:, :, :3], v),
        (q, k, v[..., :5]),
        (q, k.double(), v),
        (q[0], k[0], v[0]),
        (q.long(), k.long(), v.long()),
        (q, k, v.to("meta")),
    ):
        with pytest.raises(ValueError, match="must be floating"):
            prompted_attention(*bad, sink)


@pytest.mark.parametrize(
    ("dtype", "capability", "name"),
    [
        (torch.float32, (8, 0), "cuda memory-efficient"),
        (torch.bfloat16, (8, 0), "cuda flash"),
        (torch.float16, (9, 0), "cuda flash"),
        (torch.float16, (7, 5), None),
    ],
)
def test_cuda_kernels_accept_these_calls(
    dtype: torch.dtype, capability: tuple[int, int], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check only shapes and signatures by tracing, which needs no GPU; the next test checks the numbers on a GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        q, k, v, grad = (torch.empty(B, H, N, 64, device="cuda", dtype=dtype) for _ in range(4))
        kernel = find_kernel(q)
        if name is None:
            assert kernel is None
            return
        assert kernel is not None
        assert kernel.name == name
        out, lse, extras = kernel.forward(q, k, v)
        assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[:3], torch.float32)
        assert [g.shape for g in kernel.backward(grad, q, k, v, out, lse, extras)] == [q.shape] * 3


@GPU.mark
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("shape", PROMPT_SHAPES.values(), ids=PROMPT_SHAPES)
def test_cuda_equals_the_papers_formula(dtype: torch.dtype, bound: float, shape: tuple[int, ...]) -> None:
    inputs, grad = draw(shape, 5, dtype)
    assert max(errors_against_paper([x.cuda() for x in inputs], grad.cuda(), "auto")) <= bound
