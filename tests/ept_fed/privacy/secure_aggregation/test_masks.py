"""Masks: both sites of a pair derive the same mask, the masks sum to zero, and every purpose has its own key."""

import secrets

import numpy as np
import pytest

from ept_fed.privacy.secure_aggregation.masks import (
    KEY_BYTES,
    agree,
    derive_key,
    expand_mask,
    public_bytes,
    signed_mask,
)
from ept_fed.protocol.messages import MessageRefusedError


def test_two_sites_agree_and_their_masks_cancel() -> None:
    one, other = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
    keys = agree(one, public_bytes(other), b"x"), agree(other, public_bytes(one), b"x")
    assert keys[0] == keys[1]
    for dtype in (np.dtype("<u4"), np.dtype("<u8")):
        masks = [expand_mask(key, 100, dtype) for key in keys]
        assert len(np.unique(masks[0])) > 90
        total = signed_mask(masks[0], "a", "b") + signed_mask(masks[1], "b", "a")
        assert not total.any()


def test_each_purpose_has_its_own_key() -> None:
    one, other = secrets.token_bytes(KEY_BYTES), public_bytes(secrets.token_bytes(KEY_BYTES))
    assert agree(one, other, b"x") != agree(one, other, b"y")
    assert derive_key(one, b"x") != derive_key(one, b"y")


def test_the_keystream_is_that_of_rfc_8439() -> None:
    """Appendix A.1, test vector 1: key, nonce and counter zero."""
    words = expand_mask(bytes(32), 2, np.dtype("<u8"))
    assert words.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


@pytest.mark.parametrize("public", [bytes(32), (1).to_bytes(32, "little"), bytes(31)])
def test_a_public_key_with_a_predictable_shared_secret_is_refused(public: bytes) -> None:
    with pytest.raises(MessageRefusedError, match="no site can have made"):
        agree(secrets.token_bytes(KEY_BYTES), public, b"")


def test_a_site_makes_no_pair_with_itself() -> None:
    with pytest.raises(ValueError, match="itself"):
        signed_mask(np.zeros(1, np.uint64), "a", "a")
