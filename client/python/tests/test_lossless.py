"""The codecs that need no profile: every byte comes back, and the reader written from the format's page
agrees."""

from __future__ import annotations

import numpy as np
import pytest

from terrace_kv import errors
from terrace_kv.codec import Codec, Shape, decode, encode
from test_codec import decoded_by_reader, make_profile

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}
CODECS = ["raw", "lossless-fast", "lossless", "zstd"]


def values_of(shape: Shape, kind: str) -> np.ndarray:
    """Bytes: anything at all, or numbers as a model has them with some that are none among them."""
    rng = np.random.default_rng(7)
    count = shape.layers * shape.heads * (shape.k_dim + shape.v_dim) * shape.tokens
    if kind == "any":
        return rng.integers(0, 256, count * BYTES[shape.dtype], dtype=np.uint8)
    values = (rng.normal(size=count) * np.exp2(rng.integers(-3, 3, count))).astype(np.float32)
    if count > 40:
        values[:8] = [np.inf, -np.inf, np.nan, -np.nan, 0, -0.0, 1e-41, -3e38]
    with np.errstate(over="ignore", invalid="ignore"):
        if shape.dtype == "float32":
            return values.view(np.uint8)
        if shape.dtype == "float16":
            return values.astype(np.float16).view(np.uint8)
        if shape.dtype == "bfloat16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        if shape.dtype == "int8":
            return np.nan_to_num(values * 30).clip(-128, 127).astype(np.int8).view(np.uint8)
        half = values.astype(np.float16).view(np.uint16)  # e5m2 is its upper byte
        return (half >> 8).astype(np.uint8)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", list(BYTES))
@pytest.mark.parametrize("kind", ["any", "model"])
@pytest.mark.parametrize(("heads", "k_dim", "v_dim", "tokens"), [
    (2, 16, 8, 0), (2, 16, 8, 1), (3, 5, 3, 33), (1, 24, 1, 129), (2, 16, 8, 300)])
def test_bytes_come_back_and_an_independent_reader_agrees(codec, dtype, kind, heads, k_dim, v_dim,
                                                          tokens):
    for head_major in (False, True):
        shape = Shape(1, heads, k_dim, v_dim, tokens, dtype=dtype, head_major=head_major)
        kv = values_of(shape, kind)
        container = encode(codec, kv, shape)
        assert decode(container, kv.nbytes).tobytes() == kv.tobytes()
        assert decoded_by_reader(container) == kv.tobytes()
        assert len(container) < kv.nbytes + 1000  # what does not become smaller stays as it is


def test_bfloat16_takes_twelve_bits_and_then_fewer():
    shape = Shape(2, 4, 64, 64, 1024)
    kv = values_of(shape, "model")
    sizes = {codec: 8 * len(encode(codec, kv, shape)) / (kv.nbytes / 2) for codec in CODECS}
    assert sizes["lossless-fast"] < 12.1 and sizes["lossless"] < 11.5 and sizes["raw"] > 16


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_is_an_error_or_changes_nothing(codec):
    shape = Shape(1, 2, 16, 8, 300)
    kv = values_of(shape, "model")
    container = encode(codec, kv, shape)
    refused = (errors.DataLoss, errors.InvalidArgument, errors.FailedPrecondition)
    unchanged = 0
    for at in range(0, len(container), 13):
        with pytest.raises(refused):
            decode(container[:at], kv.nbytes)
        spoiled = bytearray(container)
        spoiled[at] ^= 1 << at % 8
        try:
            unchanged += 1
            assert decode(bytes(spoiled), kv.nbytes).tobytes() == kv.tobytes()
        except refused:
            unchanged -= 1
    assert unchanged <= 64 / 13 + 1  # the bytes between header and first section are padding


def test_errors_name_what_is_wrong():
    shape = Shape(1, 2, 16, 8, 40)
    kv = values_of(shape, "model")
    with pytest.raises(errors.InvalidArgument, match="must be one of 0 .raw., 1 .lossless-fast."):
        encode("lzma", kv, shape)
    with pytest.raises(errors.InvalidArgument, match="needs a profile"):
        encode("profile", kv, shape)
    with pytest.raises(errors.InvalidArgument, match="kv_heads must be 1"):
        encode("lossless", kv, Shape(1, 0, 16, 8, 40))
    container = Codec(make_profile("head", "half")).encode(np.zeros(2 * 48 * 40 * 2, np.uint16),
                                                           Shape(2, 2, 16, 8, 40), 0)
    with pytest.raises(errors.FailedPrecondition, match="another profile"):
        decode(container, 4 * 48 * 40 * 2)
    spoiled = bytearray(encode("lossless", kv, shape))
    spoiled[-1] ^= 1
    with pytest.raises(errors.DataLoss, match="section 1: checksum of tile 0"):
        decode(bytes(spoiled), kv.nbytes)
