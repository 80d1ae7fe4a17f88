"""Encoded KV at the seam of libterrace_codec, against a reader written from the format's pages."""

from __future__ import annotations

import pathlib
import struct
import sys

import numpy as np
import pytest

from terrace_kv import codec, errors
from terrace_kv.calibration.profile_file import Point, Profile, Section, quantised_frequencies
from terrace_kv.codec import Codec, DefaultRope, Shape, default_profile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tests" / "formats"))
import kv_reader  # noqa: E402


def make_profile(transform: str, pairing: str, *, layers=2, heads=2, k_dim=16, v_dim=8,
                 levels=True, seed=1, model_id="", points=()) -> bytes:
    rng = np.random.default_rng(seed)
    distance = np.abs(np.arange(32) - 15)
    tables = [quantised_frequencies(np.exp(-distance / 2.0 ** max(-1, (t - 20) / 8)), 1 << 31)
              for t in range(61)]
    tables += [quantised_frequencies(np.ones(32), 0xFFFFFFFF)] * 3
    sections = []
    for s in range(2 * layers):
        channels = heads * (v_dim if s % 2 else k_dim)
        block = {"channel": 1, "head": channels // heads, "layer": channels}[transform]
        decode = rng.normal(size=(channels, block)) + 3 * np.eye(block)[np.arange(channels) % block]
        weights = rng.normal(size=heads * (k_dim + v_dim) + 3) * 0.05
        sections.append(Section(rng.integers(-16, 30, channels).astype(np.int16),
                                rng.normal(size=channels), decode, 200,
                                weights if levels else np.zeros(0)))
    frequencies = np.zeros(0, np.uint64)
    if pairing != "none":
        frequencies = rng.integers(0, 2**63, k_dim // 2 - 1, dtype=np.uint64)
    return Profile("test", transform, layers, heads, k_dim, v_dim, levels, np.stack(tables), sections,
                   pairing, frequencies, model_id, points).to_bytes()


def make_kv(shape: Shape, seed=2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape.layers * shape.heads * (shape.k_dim + shape.v_dim)
                        * shape.tokens).astype(np.float32) * 3
    if shape.dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"float16": np.float16, "float32": np.float32}[shape.dtype])


def decoded_by_reader(container: bytes, profile: bytes | None = None) -> bytes:
    chunk = kv_reader.Chunk(container, profile and kv_reader.Profile(profile))
    return b"".join(chunk.section(s) for s in range(2 * chunk.layers))


@pytest.mark.parametrize("transform", ["channel", "head", "layer"])
@pytest.mark.parametrize("pairing", ["none", "half", "interleaved"])
@pytest.mark.parametrize(("tokens", "dtype", "lambda16"), [
    (1, "bfloat16", -16), (31, "float16", -40), (32, "float32", 0), (129, "bfloat16", -70),
    (200, "float16", -200), (1200, "bfloat16", -30)])
def test_an_independent_reader_agrees_bit_for_bit(transform, pairing, tokens, dtype, lambda16):
    shape = Shape(2, 2, 16, 8, tokens, position=77777, dtype=dtype, head_major=tokens % 2 == 0)
    profile = make_profile(transform, pairing)
    kv = make_kv(shape)
    container = Codec(profile).encode(kv, shape, lambda16, raw_head=1)
    decoded = Codec(profile).decode(container, kv.nbytes)
    assert decoded.tobytes() == decoded_by_reader(container, profile)


@pytest.mark.parametrize("transform", ["channel", "head", "layer"])
@pytest.mark.parametrize(("tokens", "dtype"), [(1, "float32"), (150, "bfloat16"), (260, "float16")])
def test_an_independent_reader_agrees_on_refinement_wherever_it_is_cut(transform, tokens, dtype):
    shape = Shape(2, 2, 16, 8, tokens, dtype=dtype, head_major=False)
    profile = make_profile(transform, "half")
    kv = make_kv(shape)
    container = Codec(profile).encode(kv, shape, -30, raw_head=tokens // 2, refined=True)
    base = struct.unpack_from("<Q", container, 112)[0]
    seen = set()
    for end in (base, base + 20, (base + len(container)) // 2, len(container) - 1, len(container)):
        decoded = Codec(profile).decode(container[:end], kv.nbytes)
        assert decoded.tobytes() == decoded_by_reader(container[:end], profile)
        seen.add(decoded.tobytes())
    assert len(seen) >= 3


def test_a_container_with_its_profile_needs_none():
    shape = Shape(2, 2, 16, 8, 40)
    profile = make_profile("head", "half")
    kv = make_kv(shape)
    container = Codec(profile).encode(kv, shape, -30, embed=True)
    assert codec.decode(container, kv.nbytes).tobytes() == decoded_by_reader(container)
    assert len(container) > len(profile)


def test_the_reader_finds_the_model_and_the_operating_points():
    points = [Point(-200, 2.5, 0.0009765625), Point(-160, 1.5, 0.0078125)]
    profile = make_profile("head", "half", model_id="smollm2 \u00e9", points=points)
    Codec(profile)
    reader = kv_reader.Profile(profile)
    assert reader.model_id == "smollm2 \u00e9"
    assert reader.points == [(p.lambda16, p.bits_per_value, p.mean_kl) for p in points]
    with pytest.raises(errors.InvalidArgument, match="operating point 1: lambda16 and mean KL"):
        Codec(make_profile("head", "half", points=points[::-1]))


def test_a_smaller_step_comes_closer_and_raw_tokens_come_back():
    shape = Shape(2, 2, 16, 8, 150, dtype="float32", head_major=False)
    codec, kv = Codec(make_profile("layer", "half")), make_kv(shape)
    errors_by_step = []
    for lambda16 in (0, -32, -64, -96):
        container = codec.encode(kv, shape, lambda16, raw_head=4, raw_tail=3)
        decoded = codec.decode(container, kv.nbytes).view(np.float32)
        errors_by_step.append(np.abs(decoded - kv).mean())
        first = shape.heads * shape.k_dim
        assert (decoded[:4 * first] == kv[:4 * first]).all()
        assert (decoded[147 * first:150 * first] == kv[147 * first:150 * first]).all()
    assert errors_by_step[3] < errors_by_step[2] / 2 < errors_by_step[1] / 4 < errors_by_step[0] / 8


def test_values_that_are_not_numbers_survive():
    shape = Shape(2, 2, 16, 8, 40)
    codec, kv = Codec(make_profile("head", "half")), make_kv(shape)
    kv[5 * 16 + 3], kv[7 * 16] = 0x7FC1, 0xFF80  # a NaN with a payload, minus infinity
    kv[9 * 16:10 * 16] = 0x7F7F  # the largest numbers
    decoded = codec.decode(codec.encode(kv, shape, -16, raw_head=0), kv.nbytes).view(np.uint16)
    for token in (5, 7, 9):
        assert (decoded[token * 16:token * 16 + 16] == kv[token * 16:token * 16 + 16]).all()


def test_no_tokens():
    shape = Shape(2, 2, 16, 8, 0)
    profile = make_profile("head", "half")
    container = Codec(profile).encode(np.zeros(0, np.uint16), shape, 0)
    assert len(Codec(profile).decode(container, 0)) == 0


def test_every_cut_is_an_error_and_every_flipped_bit_outside_the_padding():
    shape = Shape(2, 2, 16, 8, 40)
    codec, kv = Codec(make_profile("head", "half")), make_kv(shape)
    container = codec.encode(kv, shape, -16)
    refused = (errors.DataLoss, errors.InvalidArgument, errors.FailedPrecondition)
    places = [struct.unpack_from("<QI", container, 128 + 16 * s) for s in range(4)]
    padding = {*range(192, len(container))} - {
        at for offset, size in places for at in range(offset, offset + size)}
    for at in range(0, len(container), 7):
        with pytest.raises(refused):
            codec.decode(container[:at], kv.nbytes)
        spoiled = bytearray(container)
        spoiled[at] ^= 1 << at % 8
        if at in padding:
            assert (codec.decode(bytes(spoiled), kv.nbytes) == codec.decode(container, kv.nbytes)).all()
            continue
        with pytest.raises(refused):
            codec.decode(bytes(spoiled), kv.nbytes)


def test_a_default_profile_is_made_of_one_chunk_and_the_reader_agrees():
    shape = Shape(2, 2, 16, 8, 100)
    kv = make_kv(shape)
    profile = default_profile(kv, shape, DefaultRope("half", 16, 10000.0), "a model")
    assert profile == default_profile(kv, shape, DefaultRope("half", 16, 10000.0), "a model")
    assert kv_reader.Profile(profile).model_id == "a model"
    container = Codec(profile).encode(kv, shape, -24)
    decoded = Codec(profile).decode(container, kv.nbytes)
    assert decoded.tobytes() == decoded_by_reader(container, profile)
    with pytest.raises(errors.InvalidArgument, match="rotary_dim must be even, at most k_dim"):
        default_profile(kv, shape, DefaultRope("half", 18, 10000.0))


def test_errors_name_what_is_wrong():
    shape = Shape(2, 2, 16, 8, 40)
    profile = make_profile("head", "half")
    codec, kv = Codec(profile), make_kv(shape)
    container = codec.encode(kv, shape, -16)
    with pytest.raises(errors.FailedPrecondition, match="another profile"):
        Codec(make_profile("head", "half", seed=5)).decode(container, kv.nbytes)
    with pytest.raises(errors.FailedPrecondition, match="is for 2 layers of 2 heads of 16 and 8"):
        codec.encode(kv, Shape(2, 2, 8, 16, 40), -16)
    with pytest.raises(errors.InvalidArgument, match="lambda16 must be -1024 .. 1024"):
        codec.encode(kv, shape, 5000)
    with pytest.raises(errors.InvalidArgument, match="kv_bytes is"):
        codec.decode(container, kv.nbytes - 2)
    spoiled = bytearray(container)
    spoiled[-1] ^= 1
    with pytest.raises(errors.DataLoss, match="section 3: checksum of tile 0"):
        codec.decode(bytes(spoiled), kv.nbytes)
    with pytest.raises(errors.DataLoss, match="truncated"):
        Codec(profile[:-1])
    with pytest.raises(errors.InvalidArgument, match="TKVPROF1"):
        Codec(b"x" * 200)
    newer = bytearray(profile)
    newer[8] = 2
    with pytest.raises(errors.FailedPrecondition, match="format 2"):
        Codec(bytes(newer))
