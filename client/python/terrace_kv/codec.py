"""KV of a chunk to a container and back, in this process: what calibration measures with.

    codec = Codec(pathlib.Path("smollm2-archive.tkvp").read_bytes())
    container = codec.encode(kv, shape, lambda16=-160)
    kv = codec.decode(container, kv.nbytes)
    container = encode("lossless", kv, shape)  # codecs without a profile
    kv = decode(container, kv.nbytes)

Stored forms: docs/formats/chunk.md and profile.md. Errors are terrace_kv.errors, with the field or the
section that is wrong.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import pathlib

import numpy as np

from terrace_kv import errors

PAIRINGS = {"none": 0, "half": 1, "interleaved": 2}
DTYPES = {"float32": 1, "float16": 2, "bfloat16": 3, "fp8_e4m3": 4, "fp8_e5m2": 5, "int8": 6}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sections are layer 0 K, layer 0 V, ..., each [heads, tokens, dim] or, token-major,
    [tokens, heads, dim]."""

    layers: int
    heads: int
    k_dim: int
    v_dim: int
    tokens: int
    position: int = 0  # of the first token
    dtype: str = "bfloat16"
    head_major: bool = True


@dataclasses.dataclass(frozen=True)
class DefaultRope:
    """How keys were rotated: pair i by theta^(-2 i / rotary_dim) radians a position. Without a pairing
    they are taken as they are."""

    pairing: str = "none"  # "half" or "interleaved"
    rotary_dim: int = 0
    theta: float = 0.0


class _CShape(ctypes.Structure):
    _fields_ = [("position", ctypes.c_uint64)] + [
        (name, ctypes.c_uint32)
        for name in ("layers", "heads", "k_dim", "v_dim", "tokens", "dtype", "order")]


@functools.cache
def _library() -> ctypes.CDLL:
    here = pathlib.Path(__file__).resolve()
    names = [os.environ.get("TERRACE_CODEC_LIBRARY"), here.parent / "libterrace_codec.so",
             here.parents[3] / "build" / "release" / "libterrace_codec.so", "libterrace_codec.so"]
    for name in filter(None, names):
        try:
            library = ctypes.CDLL(str(name))
        except OSError:
            continue
        library.terrace_codec_last_error.restype = ctypes.c_char_p
        library.terrace_codec_free.argtypes = [ctypes.c_void_p]
        library.terrace_codec_close.argtypes = [ctypes.c_void_p]
        return library
    raise errors.Unavailable(
        "libterrace_codec.so not found: build it (make build), or set TERRACE_CODEC_LIBRARY")


def _check(code: int) -> None:
    if code != 0:
        error = errors.BY_CODE.get(code, errors.TerraceError)
        raise error(_library().terrace_codec_last_error().decode())


def _shape_of(shape: Shape) -> _CShape:
    return _CShape(shape.position, shape.layers, shape.heads, shape.k_dim, shape.v_dim, shape.tokens,
                   DTYPES[shape.dtype], 2 if shape.head_major else 1)


def _made(function, *arguments) -> bytes:
    """What a function of the library returns in its last two arguments."""
    out, size = ctypes.c_void_p(), ctypes.c_size_t()
    _check(function(*arguments, ctypes.byref(out), ctypes.byref(size)))
    try:
        return ctypes.string_at(out, size.value)
    finally:
        _library().terrace_codec_free(out)


def _encode(name: str, handle: ctypes.c_void_p | None, kv: np.ndarray, shape: Shape, lambda16: int,
            raw_head: int, raw_tail: int, options: int = 0) -> bytes:
    return _made(_library().terrace_codec_encode, name.encode(), handle,
                 ctypes.byref(_shape_of(shape)), ctypes.c_int32(lambda16), ctypes.c_uint32(raw_head),
                 ctypes.c_uint32(raw_tail), ctypes.c_uint32(options),
                 ctypes.c_void_p(kv.ctypes.data))


def default_profile(kv: np.ndarray, shape: Shape, rope: DefaultRope, model_id: str = "") -> bytes:
    """The profile of a model that nobody calibrated, made of one chunk of its KV: `kv` as encode()
    takes it, at least 68 tokens."""
    return _made(_library().terrace_codec_default_profile, ctypes.byref(_shape_of(shape)),
                 ctypes.c_uint32(PAIRINGS[rope.pairing]), ctypes.c_uint32(rope.rotary_dim),
                 ctypes.c_double(rope.theta), model_id.encode(), ctypes.c_void_p(kv.ctypes.data))


def _decode(handle: ctypes.c_void_p | None, container: bytes, kv_bytes: int) -> np.ndarray:
    kv = np.empty(kv_bytes, dtype=np.uint8)
    _check(_library().terrace_codec_decode(
        handle, container, ctypes.c_size_t(len(container)), ctypes.c_void_p(kv.ctypes.data),
        ctypes.c_size_t(kv_bytes)))
    return kv


def encode(name: str, kv: np.ndarray, shape: Shape) -> bytes:
    """With a codec that needs no profile: "raw", "lossless-fast", "lossless" or "zstd"."""
    return _encode(name, None, kv, shape, 0, 0, 0)


def decode(container: bytes, kv_bytes: int) -> np.ndarray:
    """The sections' bytes of a container that needs no profile, or has its own in it."""
    return _decode(None, container, kv_bytes)


class Codec:
    """A profile, ready to encode and decode. Threads may share it."""

    def __init__(self, profile: bytes) -> None:
        self._handle = ctypes.c_void_p()
        _check(_library().terrace_codec_open(profile, ctypes.c_size_t(len(profile)),
                                             ctypes.byref(self._handle)))

    def __del__(self) -> None:
        if self._handle:
            _library().terrace_codec_close(self._handle)

    def encode(self, kv: np.ndarray, shape: Shape, lambda16: int, raw_head: int = 4,
               raw_tail: int = 0, *, refined: bool = False, embed: bool = False) -> bytes:
        """`kv`: the sections' bytes one after the other, contiguous. lambda16: 16 log2 of the step.
        refined: with what makes the step a third, at the end, where it may be cut off. embed: with the
        profile, so that decode() of the module will do."""
        options = (1 if refined else 0) | (2 if embed else 0)
        return _encode("profile", self._handle, kv, shape, lambda16, raw_head, raw_tail, options)

    def decode(self, container: bytes, kv_bytes: int) -> np.ndarray:
        """The sections' bytes, as encode() took them."""
        return _decode(self._handle, container, kv_bytes)
