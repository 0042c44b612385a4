"""Secure aggregation: the sum equals the plaintext sum for any dropout, and a single input looks random."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.masks import derive_key, expand_mask
from ept_fed.privacy.secure_aggregation.messages import Kind, decode_message
from ept_fed.privacy.secure_aggregation.session import AggregationAbandonedError, AggregationSession, default_threshold
from ept_fed.protocol.messages import MessageRefusedError
from tests.effort import examples

_BEFORE_THE_SUM = (Kind.ADVERTISEMENT, Kind.SHARES, Kind.MASKED_INPUT)
_FALSE_ALARM = 1e-8


def inputs_of(session: AggregationSession, seed: int = 0) -> dict[str, tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(4.6, 2, session.size).astype(np.float32), int(rng.integers(1, session.encoding.heaviest + 1)))
        for name in session.sites
    }


def require_plain_mean(consortium, session: AggregationSession, leaves: dict[str, Kind]) -> None:
    inputs = inputs_of(session)
    found = consortium.aggregate(session, inputs, leaves)
    stayed = [name for name in session.sites if leaves.get(name) not in _BEFORE_THE_SUM]
    vectors, weights = (np.array([inputs[name][part] for name in stayed], np.float64) for part in (0, 1))
    assert found.sites == tuple(stayed)
    assert found.weight == weights.sum()
    expected = np.average(vectors, axis=0, weights=weights)
    np.testing.assert_allclose(found.mean, expected, rtol=2.0**-23, atol=session.encoding.step / 2)


def is_survivable(session: AggregationSession, leaves: Iterable[Kind]) -> bool:
    left = list(leaves)
    early = sum(stage in _BEFORE_THE_SUM for stage in left)
    count = len(session.sites)
    return count - early >= session.minimum and count - len(left) >= session.threshold


def patterns(sites: tuple[str, ...], maximum: int, stages: tuple[Kind, ...]) -> Iterable[dict[str, Kind]]:
    """Yield every way in which up to `maximum` sites leave, each before one of the stages."""
    for count in range(maximum + 1):
        for who in itertools.combinations(sites, count):
            for when in itertools.product(stages, repeat=count):
                yield dict(zip(who, when, strict=True))


@pytest.mark.parametrize(("sites", "threshold"), [(3, 2), (3, 3), (4, 3), (5, 4)])
def test_the_sum_equals_the_plaintext_sum_for_every_pattern_of_dropout(consortium, sites: int, threshold: int) -> None:
    session = consortium.session(sites, threshold=threshold)
    survived = 0
    for leaves in patterns(session.sites, sites - threshold + 1, consortium.stages):
        if is_survivable(session, leaves.values()):
            require_plain_mean(consortium, session, leaves)
            survived += 1
        elif len(leaves) <= 1:
            with pytest.raises(AggregationAbandonedError, match="are needed"):
                require_plain_mean(consortium, session, leaves)
    assert survived >= 1 + sites * len(consortium.stages) * (sites > max(3, threshold))


@examples(4)
@given(st.data())
def test_the_sum_equals_the_plaintext_sum_for_3_to_20_sites(consortium, data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 20))
    threshold = data.draw(st.sampled_from([default_threshold(sites), sites // 2 + 1]))
    session = consortium.session(sites, threshold=threshold, size=data.draw(st.integers(1, 30)))
    who = data.draw(st.lists(st.sampled_from(session.sites), max_size=sites - threshold + 1, unique=True))
    leaves = {name: data.draw(st.sampled_from(consortium.stages)) for name in who}
    if is_survivable(session, leaves.values()):
        require_plain_mean(consortium, session, leaves)
    else:
        with pytest.raises(AggregationAbandonedError):
            require_plain_mean(consortium, session, leaves)


def test_words_of_32_bits_sum_as_well(consortium) -> None:
    coding = FixedPoint(sites=4, heaviest=100, step=2.0**-12, bound=32.0, bits=32)
    require_plain_mean(consortium, consortium.session(4, encoding=coding), {"site-01": Kind.MASKED_INPUT})


def statistic(content: bytes) -> float:
    """Return Pearson's chi-squared statistic against a uniform byte, with 255 degrees of freedom."""
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    expected = len(content) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_a_masked_input_is_indistinguishable_from_uniform_bytes(consortium) -> None:
    """Four tests at 1e-8 each give one false alarm in 25 million runs. The same numbers without a mask fail clearly."""
    session = consortium.session(3, size=2364)
    bound = chi2.isf(_FALSE_ALARM, 255)
    flat = {name: (np.zeros(session.size, np.float32), 1) for name in session.sites}
    inputs = inputs_of(session)
    assert statistic(session.encoding.encode(*inputs["site-00"]).tobytes()) > 10 * bound
    masked = []
    for given_inputs in (inputs, flat, inputs):
        consortium.aggregate(session, given_inputs)
        sent = consortium.seen[Kind.MASKED_INPUT, "site-00"]
        masked.append(np.frombuffer(decode_message(session, Kind.MASKED_INPUT, sent)["site-00"], np.uint64))
    for words in (*masked, masked[0] - masked[2]):
        assert statistic(words.tobytes()) < bound


def test_pairwise_masks_hide_an_input_once_its_own_mask_is_known(consortium) -> None:
    """After unmasking, the server sees a survivor's input in this form. Two more tests at 1e-8."""
    session = consortium.session(3, size=2364)
    consortium.aggregate(session, {name: (np.zeros(2364, np.float32), 1) for name in session.sites})
    stripped = []
    for name in session.sites:
        sent = decode_message(session, Kind.MASKED_INPUT, consortium.seen[Kind.MASKED_INPUT, name])[name]
        key = derive_key(consortium.sites[name]._seed, session.bind("own mask", name))
        stripped.append(np.frombuffer(sent, np.uint64) - expand_mask(key, session.words, np.dtype("<u8")))
    for words in (stripped[0], stripped[0] + stripped[1]):
        assert statistic(words.tobytes()) < chi2.isf(_FALSE_ALARM, 255)
    assert sum(stripped).tolist() == [0] * 2364 + [3]


def test_a_survivor_reveals_one_secret_of_each_site_and_never_both(consortium) -> None:
    session = consortium.session(4)
    sites = {name: consortium.site(session, name) for name in session.sites}
    server = consortium.server(session)
    inputs = inputs_of(session)
    for name, site in sites.items():
        server.take(name, site.advertise())
    requests = server.advance()
    for name, site in sites.items():
        server.take(name, site.share_keys(requests[name]))
    requests = server.advance()
    for name in session.sites[:3]:
        server.take(name, sites[name].mask_input(requests[name], *inputs[name]))
    requests = server.advance()
    for name in session.sites[:3]:
        server.take(name, sites[name].confirm(requests[name]))
    requests = server.advance()
    revealed = decode_message(session, Kind.UNMASKING, sites["site-00"].unmask(requests["site-00"]))
    assert sorted(revealed) == list(session.sites)
    held = sites["site-00"]._shares
    assert revealed["site-01"] == held["site-01"][33:]
    assert revealed["site-03"] == held["site-03"][:33]
    with pytest.raises(MessageRefusedError, match="nothing more"):
        sites["site-00"].unmask(requests["site-00"])


def test_the_mean_of_one_session_does_not_depend_on_its_randomness(consortium) -> None:
    session = consortium.session(3)
    first, second = (consortium.aggregate(session, inputs_of(session)) for _ in range(2))
    assert first.mean.tobytes() == second.mean.tobytes()
    messages = dict(consortium.seen)
    consortium.aggregate(session, inputs_of(session))
    assert all(consortium.seen[key] != content for key, content in messages.items())
