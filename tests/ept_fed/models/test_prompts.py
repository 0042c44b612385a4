import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.models import EmbeddedPrompts, fold, unfold
from ept_fed.models.prompts import INITS, init_prompts
from tests.effort import examples


@examples(12)
@given(M=st.integers(1, 120), scale=st.floats(0, 5), target=st.floats(-30, 30), seed=st.integers(0, 2**16))
def test_unfolding_then_folding_gives_the_received_sink(M: int, scale: float, target: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    P = scale * torch.randn(2, 9, M, generator=generator)
    sink = target + torch.randn(2, 9, generator=generator)
    torch.testing.assert_close(fold(unfold(P, sink)), sink, rtol=1e-6, atol=2e-6)


def test_unfolding_keeps_the_shape_of_the_columns() -> None:
    P = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = unfold(P, torch.zeros(2, 9, dtype=torch.float64))
    torch.testing.assert_close(moved - moved[..., :1], P - P[..., :1])


def test_unfolding_to_the_own_fold_changes_nothing_beyond_rounding() -> None:
    P = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unfold(P, fold(P)), P)


def test_a_sink_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="need"):
        unfold(torch.zeros(2, 9, 5), torch.zeros(9))


def test_folding_is_not_linear_so_the_mean_of_folds_is_at_least_the_fold_of_the_mean() -> None:
    P = torch.randn(3, 2, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (fold(P).mean(0) >= fold(P.mean(0))).all()


@pytest.mark.parametrize("init", INITS)
def test_every_init_is_seeded_and_starts_the_sink_near_log_m(init: str) -> None:
    first, second, other = (init_prompts((3, 50, 100), init, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert init == "zero" or not torch.equal(first, other)
    assert abs(float(fold(first).mean()) - math.log(100)) < 0.01


def test_inits_have_the_stated_spread() -> None:
    drawn = {init: init_prompts((4, 100, 100), init, torch.Generator().manual_seed(0)) for init in INITS}
    assert float(drawn["normal"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(drawn["uniform"].abs().max()) <= 0.08
    assert float(drawn["uniform"].std()) == pytest.approx(0.16 / math.sqrt(12), rel=0.02)
    assert float(drawn["zero"].abs().max()) == 0
    assert float(drawn["kaiming"].std()) == pytest.approx(math.sqrt(2 / 10_000), rel=0.02)


def test_context_tokens_have_their_own_sinks() -> None:
    prompts = EmbeddedPrompts(layers=3, tokens=10, length=5, embed_dim=8, context=2, init="normal", seed=0)
    assert prompts.prompts.shape == (3, 12, 5)
    assert prompts.tokens is not None
    assert prompts.tokens.shape == (3, 2, 8)
    assert prompts.fold().shape == (3, 12)
