"""Faults of a site, the server or the network in secure aggregation are refused with their source and leak nothing."""

import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.errors import InputRefusedError
from ept_fed.pki.keys import new_key
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.identity import advertise, commit
from ept_fed.privacy.secure_aggregation.masks import public_bytes
from ept_fed.privacy.secure_aggregation.messages import Kind, decode_message, encode_message
from ept_fed.privacy.secure_aggregation.session import (
    AggregationAbandonedError,
    AggregationSession,
    default_threshold,
    serialize,
)
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError
from server.provisioning.authority import Authority
from tests.effort import examples

A, B, C, D, E = (f"site-{number:02d}" for number in range(5))


def inputs_of(session):
    return {name: (np.full(session.size, place, np.float32), 1) for place, name in enumerate(session.sites)}


def change(content: bytes, place: int = -1) -> bytes:
    altered = bytearray(content)
    altered[place] ^= 1
    return bytes(altered)


def altering(kind: Kind, site: str, how):
    return lambda stage, name, content: how(content) if (stage, name) == (kind, site) else content


def test_a_share_that_fails_authentication_is_refused_by_name_and_the_round_goes_on(consortium) -> None:
    session = consortium.session(5)
    found = consortium.aggregate(session, inputs_of(session), down=altering(Kind.MASKED_INPUT, A, change))
    assert found.sites == (B, C, D, E)
    assert consortium.declined == {A: f"the share from {E} fails authentication"}
    assert found.mean.tolist() == [2.5] * session.size


def test_one_wrong_share_is_tolerated_and_its_holder_is_named(consortium) -> None:
    session = consortium.session(5)
    server = consortium.server(session)
    leaves = {E: Kind.MASKED_INPUT}
    with pytest.raises(AggregationAbandonedError, match=f"do not give the secret of {A}"):
        consortium.aggregate(
            session, inputs_of(session), leaves, up=altering(Kind.UNMASKING, B, lambda content: change(content, 60))
        )
    found = consortium.aggregate(
        session,
        inputs_of(session),
        up=altering(Kind.UNMASKING, B, lambda content: change(content, 60)),
        server=server,
    )
    assert found.mean.tolist() == [2.0] * session.size
    assert server.refused == {B: f"{B} holds, or received, a wrong share of a secret of {A}"}


@pytest.mark.parametrize("leaves", [{}, {C: Kind.MASKED_INPUT}])
def test_a_share_outside_the_field_is_a_wrong_share(consortium, leaves: dict[str, Kind]) -> None:
    session = consortium.session(5, threshold=3)

    def widen(content: bytes) -> bytes:
        entries = decode_message(session, Kind.UNMASKING, content)
        return encode_message(session, Kind.UNMASKING, entries | {C: b"\xff" * 33})

    found = consortium.aggregate(session, inputs_of(session), leaves, up=altering(Kind.UNMASKING, A, widen))
    assert found.mean.tolist() == [2.0] * session.size


def test_the_server_cannot_put_its_own_keys_between_two_sites(consortium) -> None:
    session = consortium.session(4)

    def impersonate(content: bytes) -> bytes:
        entries = decode_message(session, Kind.ADVERTISEMENTS, content)
        own = public_bytes(bytes(range(32)))
        return encode_message(session, Kind.ADVERTISEMENTS, entries | {B: own + entries[B][32:]})

    found = consortium.aggregate(session, inputs_of(session), down=altering(Kind.SHARES, A, impersonate))
    assert consortium.declined[A] == f"{B}: its keys are not signed by its certificate's key"
    assert found.sites == (B, C, D)


@pytest.mark.parametrize("wrong", ["authority", "name", "key"])
def test_a_foreign_signature_is_refused_by_server_and_sites(consortium, tmp_path, wrong: str) -> None:
    session = consortium.session(4)
    reason = {
        "authority": "is not the consortium's",
        "name": "its certificate names another site",
        "key": "are not signed by its certificate's key",
    }[wrong]
    key, certificate = consortium.keys[A], consortium.certificates[A]
    if wrong == "authority":
        key = new_key()
        impostor = Authority(tmp_path / "impostor", "skin", consortium.now, 10)
        certificate = impostor.issue_site(A, key.public_key(), "", now=consortium.now, days=5).parse()
    elif wrong == "name":
        key, certificate = consortium.keys[B], consortium.certificates[B]
    else:
        key = new_key()
    secret = bytes(range(32))
    forged = advertise(
        session,
        A,
        channel=public_bytes(secret),
        mask=public_bytes(secret[::-1]),
        commitment=commit(session, A, secret),
        key=key,
        certificate=certificate,
    )
    server = consortium.server(session)
    with pytest.raises(MessageRefusedError, match=reason):
        server.take(A, encode_message(session, Kind.ADVERTISEMENT, {A: forged}))
    assert reason in server.refused[A]
    site = consortium.site(session, B)
    entries = decode_message(session, Kind.ADVERTISEMENT, site.advertise())
    for name in (C, D):
        entries |= decode_message(session, Kind.ADVERTISEMENT, consortium.site(session, name).advertise())
    with pytest.raises(MessageRefusedError, match=reason):
        site.share_keys(encode_message(session, Kind.ADVERTISEMENTS, entries | {A: forged}))
    with pytest.raises(MessageRefusedError, match="nothing more"):
        site.share_keys(encode_message(session, Kind.ADVERTISEMENTS, entries))


@pytest.mark.parametrize("reused", ["the other's channel", "the other's mask", "its own", "of small order"])
def test_a_key_that_is_in_use_or_predictable_is_refused_by_server_and_sites(consortium, reused: str) -> None:
    session = consortium.session(4)
    sites = {name: consortium.site(session, name) for name in session.sites}
    entries = {
        name: decode_message(session, Kind.ADVERTISEMENT, site.advertise())[name] for name, site in sites.items()
    }
    own = public_bytes(bytes(range(32)))
    taken = {"the other's channel": entries[A][:32], "the other's mask": entries[A][32:64], "its own": own}
    for channel, mask in ((own, taken.get(reused, bytes(32))), (taken.get(reused, bytes(32)), own)):
        again = advertise(
            session,
            B,
            channel=channel,
            mask=mask,
            commitment=commit(session, B, bytes(32)),
            key=consortium.keys[B],
            certificate=consortium.certificates[B],
        )
        server = consortium.server(session)
        server.take(A, encode_message(session, Kind.ADVERTISEMENT, {A: entries[A]}))
        with pytest.raises(MessageRefusedError, match=r"already in use|no site can have made"):
            server.take(B, encode_message(session, Kind.ADVERTISEMENT, {B: again}))
        assert list(server.refused) == [B]
        if mask != bytes(32):  # with such a mask key, a site refuses to mask its input
            told = encode_message(session, Kind.ADVERTISEMENTS, entries | {B: again})
            with pytest.raises(MessageRefusedError, match=r"two sites advertised the same|no site can have made"):
                sites.popitem()[1].share_keys(told)


def test_a_certificate_that_has_ended_is_refused(consortium) -> None:
    session = consortium.session(3)
    sent = consortium.site(session, A).advertise()
    late = dataclasses.replace(consortium, now=datetime.now(UTC) + timedelta(days=400))
    with pytest.raises(MessageRefusedError, match="ended on"):
        late.server(session).take(A, sent)
    early = dataclasses.replace(consortium, now=datetime.now(UTC) - timedelta(days=400))
    with pytest.raises(MessageRefusedError, match="is not valid before"):
        early.server(session).take(A, sent)


def test_a_certificate_that_cannot_be_read_is_refused(consortium) -> None:
    session = consortium.session(3)
    sent = decode_message(session, Kind.ADVERTISEMENT, consortium.site(session, A).advertise())[A]
    for content in (sent + b"\0", sent[:-1], sent[:192] + b"\0"):
        with pytest.raises(MessageRefusedError, match="certificate cannot be read"):
            consortium.server(session).take(A, encode_message(session, Kind.ADVERTISEMENT, {A: content}))


def test_a_site_that_sends_two_different_commitments_is_excluded(consortium) -> None:
    session = consortium.session(4)
    server = consortium.server(session)
    first, second = (consortium.site(session, A).advertise() for _ in range(2))
    server.take(A, first)
    server.take(A, first)
    with pytest.raises(MessageRefusedError, match="two different answers: advertisement"):
        server.take(A, second)
    with pytest.raises(MessageRefusedError, match="nothing was requested"):
        server.take(A, first)
    sites = {name: consortium.site(session, name) for name in (B, C, D)}
    for name, site in sites.items():
        server.take(name, site.advertise())
    told = server.advance()
    assert sorted(told) == [B, C, D]
    assert A not in decode_message(session, Kind.ADVERTISEMENTS, told[B])


@pytest.mark.parametrize("same_channel", [True, False])
def test_different_commitments_sent_to_different_sites_are_detected(consortium, same_channel: bool) -> None:
    """A site that colludes with the server signs two sets of keys; the server sends each to different sites."""
    session = consortium.session(3, threshold=3)

    def tell(content: bytes) -> bytes:
        entries = decode_message(session, Kind.ADVERTISEMENTS, content)
        other = bytes(range(32))
        second = advertise(
            session,
            C,
            channel=public_bytes(consortium.sites[C]._channel_private if same_channel else other),
            mask=public_bytes(other[::-1]),
            commitment=commit(session, C, other),
            key=consortium.keys[C],
            certificate=consortium.certificates[C],
        )
        return encode_message(session, Kind.ADVERTISEMENTS, entries | {C: second})

    server = consortium.server(session)
    with pytest.raises(AggregationAbandonedError):
        consortium.aggregate(session, inputs_of(session), down=altering(Kind.SHARES, A, tell), server=server)
    if same_channel:
        assert server.refused == {A: f"{A}: it did not confirm what the server sent to it"}
    else:
        assert consortium.declined == {
            name: f"the share from {C if name == A else A} fails authentication" for name in (A, C)
        }
    assert not any(stage == Kind.UNMASKING for stage, _ in consortium.seen)


def test_different_survivor_lists_are_not_confirmed(consortium) -> None:
    """To get both kinds of shares of one site, a server reports it as survivor to some and as dropout to others."""
    session = consortium.session(4)

    def hide(content: bytes) -> bytes:
        entries = decode_message(session, Kind.SURVIVORS, content)
        return encode_message(session, Kind.SURVIVORS, {name: entries[name] for name in (A, B, C)})

    server = consortium.server(session)
    with pytest.raises(AggregationAbandonedError):
        consortium.aggregate(
            session,
            inputs_of(session),
            {C: Kind.CONFIRMATION},
            down=altering(Kind.CONFIRMATION, A, hide),
            server=server,
        )
    assert server.refused == {A: f"{A}: it did not confirm what the server sent to it"}
    assert not any(stage == Kind.UNMASKING for stage, _ in consortium.seen)


def test_a_site_reveals_nothing_on_confirmations_of_another_set(consortium) -> None:
    session = consortium.session(3, threshold=2)
    consortium.aggregate(session, inputs_of(session))
    old = {name: consortium.seen[Kind.CONFIRMATION, name] for name in session.sites}
    signed = {name: decode_message(session, Kind.CONFIRMATION, content)[name] for name, content in old.items()}
    replayed = encode_message(session, Kind.CONFIRMATIONS, signed)
    with pytest.raises(AggregationAbandonedError):
        consortium.aggregate(
            session, inputs_of(session), down=lambda stage, _, sent: replayed if stage == Kind.UNMASKING else sent
        )
    assert set(consortium.declined) == {A, B, C}
    assert all("did not confirm what the server sent to this site" in reason for reason in consortium.declined.values())


@pytest.mark.parametrize(
    ("stage", "kind", "kept", "why"),
    [
        (Kind.SHARES, Kind.ADVERTISEMENTS, (A, B), "2 sites advertised keys; 3 are needed"),
        (Kind.SHARES, Kind.ADVERTISEMENTS, (B, C, D), "altered this site's keys"),
        (Kind.MASKED_INPUT, Kind.DELIVERY, (B,), "2 sites shared their secrets; 3 are needed"),
        (Kind.CONFIRMATION, Kind.SURVIVORS, (A, B), "2 sites gave an input; 3 are needed"),
        (Kind.CONFIRMATION, Kind.SURVIVORS, (B, C, D), "lack this site"),
        (Kind.UNMASKING, Kind.CONFIRMATIONS, (A, B), "2 sites confirmed; 3 are needed"),
    ],
)
def test_a_site_refuses_a_session_with_too_few_others(consortium, stage: Kind, kind: Kind, kept, why: str) -> None:
    session = consortium.session(4)

    def cut(content: bytes) -> bytes:
        entries = decode_message(session, kind, content)
        return encode_message(session, kind, {name: entry for name, entry in entries.items() if name in kept})

    consortium.aggregate(session, inputs_of(session), down=altering(stage, A, cut))
    assert why in consortium.declined[A]


@pytest.mark.parametrize(
    ("stage", "kind", "added", "why"),
    [
        (Kind.MASKED_INPUT, Kind.DELIVERY, {A: bytes(82)}, "advertised no keys, or from this site"),
        (Kind.MASKED_INPUT, Kind.DELIVERY, {E: bytes(82)}, "advertised no keys, or from this site"),
        (Kind.CONFIRMATION, Kind.SURVIVORS, {E: b""}, "include one that shared no secrets"),
        (Kind.UNMASKING, Kind.CONFIRMATIONS, {D: bytes(96)}, "not one of the survivors"),
    ],
)
def test_a_site_refuses_a_message_about_a_site_that_has_left(consortium, stage: Kind, kind: Kind, added, why) -> None:
    session = consortium.session(5, threshold=3)
    leaves = {E: Kind.ADVERTISEMENT, D: Kind.MASKED_INPUT}

    def add(content: bytes) -> bytes:
        return encode_message(session, kind, decode_message(session, kind, content) | added)

    with contextlib.suppress(AggregationAbandonedError):
        consortium.aggregate(session, inputs_of(session), leaves, down=altering(stage, A, add))
    assert list(consortium.declined) == [A]
    assert why in consortium.declined[A]


def test_of_three_sites_all_must_give_an_input(consortium) -> None:
    """A sum of two inputs would reveal each site's input to the other."""
    session = consortium.session(3, threshold=2)
    with pytest.raises(AggregationAbandonedError, match="2 sites gave their masked input; 3 are needed"):
        consortium.aggregate(session, inputs_of(session), {A: Kind.MASKED_INPUT})


_ELSEWHERE = "another run, round or attempt"


@pytest.mark.parametrize("differing", [{"round": 2}, {"attempt": 2}, {"run": "other"}, {"layout_hash": "other"}])
def test_a_site_s_message_of_another_round_is_refused_at_every_stage(consortium, differing) -> None:
    session, other = consortium.session(3, threshold=3), consortium.session(3, threshold=3, **differing)
    consortium.aggregate(other, inputs_of(other))
    sent = dict(consortium.seen)
    for stage in consortium.stages:
        server = consortium.server(session)
        replay = altering(stage, B, partial(lambda content, _: content, sent[stage, B]))
        with pytest.raises(AggregationAbandonedError, match=_ELSEWHERE):
            consortium.aggregate(session, inputs_of(session), up=replay, server=server)
        assert list(server.refused) == [B]


@pytest.mark.parametrize("differing", [{"round": 2}, {"attempt": 2}, {"run": "other"}, {"layout_hash": "other"}])
def test_the_server_s_message_of_another_round_is_refused_at_every_stage(consortium, differing) -> None:
    session, other = consortium.session(3), consortium.session(3, **differing)
    heard: dict[tuple[Kind, str], bytes] = {}

    def listen(stage: Kind, name: str, content: bytes) -> bytes:
        heard[stage, name] = content
        return content

    consortium.aggregate(other, inputs_of(other), down=listen)
    for stage in consortium.stages[1:]:
        replay = altering(stage, B, partial(lambda content, _: content, heard[stage, B]))
        with contextlib.suppress(AggregationAbandonedError):
            consortium.aggregate(session, inputs_of(session), down=replay)
        assert list(consortium.declined) == [B]
        assert _ELSEWHERE in consortium.declined[B]


@examples(10)
@given(st.data())
def test_an_altered_message_never_gives_a_wrong_mean(consortium, data: st.DataObject) -> None:
    """Masked inputs are excluded: a site may choose them freely, and the transport keeps others from changing them."""
    session = consortium.session(4, size=1)
    stage = data.draw(st.sampled_from([stage for stage in consortium.stages if stage != Kind.MASKED_INPUT]))

    def alter(content: bytes) -> bytes:
        place = data.draw(st.integers(0, len(content) - 1))
        end = place + data.draw(st.integers(0, 3))
        return content[:place] + data.draw(st.binary(max_size=3)) + content[end:]

    inputs = inputs_of(session)
    with contextlib.suppress(AggregationAbandonedError):
        found = consortium.aggregate(session, inputs, up=altering(stage, A, alter))
        assert found.mean.tolist() == [np.float32(np.mean([inputs[name][0][0] for name in found.sites]))]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_one_kind_of_error(consortium, content: bytes) -> None:
    session = consortium.session(3)
    for kind in Kind:
        with pytest.raises(MessageRefusedError):
            decode_message(session, kind, content)


@given(st.data())
def test_a_value_has_exactly_one_serialization(consortium, data: st.DataObject) -> None:
    session = consortium.session(4)
    content = encode_message(session, Kind.UNMASKING, {name: bytes([place]) * 33 for place, name in enumerate((A, C))})
    place = data.draw(st.integers(0, len(content) - 1))
    altered = content[:place] + data.draw(st.binary(max_size=3)) + content[place + data.draw(st.integers(0, 3)) :]
    try:
        entries = decode_message(session, Kind.UNMASKING, altered)
    except MessageRefusedError:
        return
    assert encode_message(session, Kind.UNMASKING, entries) == altered


def test_a_message_that_is_cut_anywhere_is_refused(consortium) -> None:
    session = consortium.session(4)
    content = encode_message(session, Kind.UNMASKING, {A: bytes(33), C: bytes(33)})
    for cut in range(len(content)):
        with pytest.raises(MessageRefusedError):
            decode_message(session, Kind.UNMASKING, content[:cut])


LENGTHS = {
    Kind.ADVERTISEMENT: (193, 192 + 4096),
    Kind.ADVERTISEMENTS: (193, 192 + 4096),
    Kind.SHARES: (82, 82),
    Kind.DELIVERY: (82, 82),
    Kind.MASKED_INPUT: (64, 64),
    Kind.SURVIVORS: (0, 0),
    Kind.CONFIRMATION: (96, 96),
    Kind.CONFIRMATIONS: (96, 96),
    Kind.UNMASKING: (33, 33),
}


@pytest.mark.parametrize("kind", Kind)
def test_a_message_has_at_most_one_entry_of_each_site_and_of_the_kinds_length(consortium, kind: Kind) -> None:
    session = consortium.session(4)
    least, most = LENGTHS[kind]
    for sites in ((), (A,), session.sites):
        for length in (least, most):
            entries = dict.fromkeys(sites, bytes(length))
            content = encode_message(session, kind, entries)
            assert decode_message(session, kind, content) == entries
            for other in set(Kind) - {kind}:
                with pytest.raises(MessageRefusedError):
                    decode_message(session, other, content)
        for length in {max(0, least - 1), most + 1} - {least}:
            if sites:
                with pytest.raises(MessageRefusedError):
                    decode_message(session, kind, encode_message(session, kind, dict.fromkeys(sites, bytes(length))))


def test_stages_cannot_be_skipped_or_repeated(consortium) -> None:
    session = consortium.session(3)
    site = consortium.site(session, A)
    with pytest.raises(MessageRefusedError, match="to send its advertisement in this session, not its unmasking"):
        site.unmask(b"")
    with pytest.raises(MessageRefusedError, match="nothing more"):
        site.advertise()
    server = consortium.server(session)
    with pytest.raises(MessageRefusedError, match="last stage"):
        server.finish()
    with pytest.raises(AggregationAbandonedError, match="0 sites gave their advertisement; 3 are needed"):
        server.advance()
    with pytest.raises(MessageRefusedError, match="no stage is left"):
        server.advance()
    with pytest.raises(MessageRefusedError, match="nothing was requested"):
        server.take(A, b"")
    assert consortium.server(session).waiting == session.sites


def test_an_answer_about_other_sites_than_requested_is_refused(consortium) -> None:
    session = consortium.session(4)
    foreign = consortium.site(session, B).advertise()
    with pytest.raises(MessageRefusedError, match=f"{A}: advertisement must be about {A}"):
        consortium.server(session).take(A, foreign)

    def withhold(content: bytes) -> bytes:
        entries = decode_message(session, Kind.SHARES, content)
        return encode_message(session, Kind.SHARES, {B: entries[B]})

    server = consortium.server(session)
    found = consortium.aggregate(session, inputs_of(session), up=altering(Kind.SHARES, A, withhold), server=server)
    assert found.sites == (B, C, D)
    assert server.refused[A] == f"{A}: shares must be about {B}, {C}, {D}, each once"


def test_an_impossible_sum_is_abandoned(consortium) -> None:
    """Random words replace an input. The bound on the sum detects them; the chance to pass is 2^-50."""
    session = consortium.session(3)
    with pytest.raises(AggregationAbandonedError, match="the sum is impossible"):
        consortium.aggregate(
            session,
            inputs_of(session),
            up=altering(Kind.MASKED_INPUT, A, lambda content: content[:-8] + change(content[-8:])),
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, 65.0])
def test_numbers_that_cannot_be_summed_never_leave_the_site(consortium, value: float) -> None:
    session = consortium.session(3)
    inputs = inputs_of(session) | {B: (np.full(session.size, value, np.float32), 1)}
    with pytest.raises(PayloadMismatchError):
        consortium.aggregate(session, inputs)
    assert (Kind.MASKED_INPUT, B) not in consortium.seen


def test_a_vector_of_another_length_never_leaves_the_site(consortium) -> None:
    session = consortium.session(4)
    found = consortium.aggregate(session, inputs_of(session) | {A: (np.zeros(8, np.float32), 1)})
    assert found.sites == (B, C, D)
    assert consortium.declined == {A: "the session sums 7 numbers, not (8,)"}


def test_a_site_accepts_only_its_own_key_and_sessions_that_include_it(consortium) -> None:
    session = consortium.session(3)
    with pytest.raises(InputRefusedError) as refusal:
        consortium.site(session, D, key=consortium.keys[A])
    assert [problem.field for problem in refusal.value.problems] == ["site", "keys/site.key"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sites": (A, B), "encoding": FixedPoint(2, 1), "threshold": 2}, "sites"),
        ({"sites": (B, A, C)}, "sites"),
        ({"sites": (A, A, B)}, "sites"),
        ({"threshold": 1}, "threshold"),
        ({"threshold": 4}, "threshold"),
        ({"threshold": 2.0}, "threshold"),
        ({"size": 0}, "size"),
        ({"round": True}, "round"),
        ({"attempt": 0}, "attempt"),
        ({"encoding": FixedPoint(4, 1)}, "encoding.sites"),
    ],
)
def test_impossible_sessions_are_refused(consortium, changes, field: str) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        consortium.session(3, **changes)
    assert field in [problem.field for problem in refusal.value.problems]


def test_a_session_has_room_for_a_thousand_sites() -> None:
    names = tuple(f"site-{number:04d}" for number in range(1001))
    AggregationSession("run", 1, 1, names[:1000], 667, "start", "layout", 1, FixedPoint(1000, 1))
    with pytest.raises(InputRefusedError, match="3 to 1000"):
        AggregationSession("run", 1, 1, names, 668, "start", "layout", 1, FixedPoint(1001, 1))


def test_every_attribute_of_a_session_keys_its_messages(consortium) -> None:
    session = consortium.session(4)
    others = [
        consortium.session(4, **differing)
        for differing in (
            {"run": "other"},
            {"round": 2},
            {"attempt": 2},
            {"sites": (A, B, C, E)},
            {"threshold": 4},
            {"start": "other"},
            {"layout_hash": "other"},
            {"size": 8},
            {"encoding": FixedPoint(4, 999)},
            {"encoding": FixedPoint(4, 1000, step=2.0**-23)},
            {"encoding": FixedPoint(4, 1000, bound=63.0)},
            {"encoding": FixedPoint(4, 10, step=2.0**-18, bits=32)},
            {"encoding": FixedPoint(4, 10, step=2.0**-18)},
        )
    ]
    keys = [one.bind(*names) for one in (session, *others) for names in (("x",), ("y",), ("x", A), ("x", B))]
    assert len({one.digest for one in (session, *others)}) == 1 + len(others)
    assert len(set(keys)) == len(keys)


@given(st.integers(3, 1000))
def test_the_default_threshold_is_more_than_half_and_no_more_than_all(sites: int) -> None:
    assert sites < 2 * default_threshold(sites) <= 2 * sites


PARTS = st.lists(st.text(max_size=5) | st.integers() | st.binary(max_size=5), max_size=5)


@given(PARTS, PARTS)
def test_serializations_differ_exactly_where_parts_differ(one: list, other: list) -> None:
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (serialize(*one) == serialize(*other)) == same


@given(st.binary(max_size=5), st.binary(max_size=5))
def test_no_part_can_contain_the_part_after_it(one: bytes, other: bytes) -> None:
    assert serialize(one + serialize(other)) != serialize(one, other)
