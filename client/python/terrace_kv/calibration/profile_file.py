"""The stored form of a profile (docs/formats/profile.md)."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

import numpy as np

TABLES = 64
SCALE_TABLES = 61
LEVEL_TABLE = 61
SMALLEST_SCALE = -20
SYMBOLS = 32
ESCAPE = 31
TRANSFORMS = {"channel": 1, "head": 2, "layer": 3}
PAIRINGS = {"none": 0, "half": 1, "interleaved": 2}
MAX_MODEL_ID_BYTES = 512


@dataclasses.dataclass(frozen=True)
class Point:
    """What was measured at one step."""

    lambda16: int
    bits_per_value: float
    mean_kl: float


@dataclasses.dataclass
class Section:
    """Of one layer's K or V, with C channels."""

    scale16: np.ndarray  # [C] of coefficients: 16 log2 of the standard deviation
    mean: np.ndarray  # [C]
    decode: np.ndarray  # [C, C / blocks]: channel j = sum of decode[j, k] * coefficient k of its block
    level_slope: int
    level_weights: np.ndarray  # [K channels + V channels + 3], or empty


@dataclasses.dataclass
class Profile:
    name: str
    transform: str
    layers: int
    heads: int
    k_dim: int
    v_dim: int
    levels: bool
    tables: np.ndarray  # [TABLES, SYMBOLS], rows sum to 256
    sections: list[Section]
    pairing: str = "none"
    frequencies: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.uint64))  # [rotary_dim / 2], 2^-64 turns a position
    model_id: str = ""
    points: Sequence[Point] = ()  # lambda16 and mean KL ascending

    def to_bytes(self) -> bytes:
        model_id = self.model_id.encode()
        points = [struct.pack("<iff", p.lambda16, p.bits_per_value, p.mean_kl) for p in self.points]
        body = [model_id, *points, self.frequencies.astype("<u8").tobytes(),
                self.tables.astype("<u2").tobytes()]
        for section in self.sections:
            body += _section_bytes(section, self.transform)
        fixed = struct.pack(
            "<BBHIIIIBBH80s", TRANSFORMS[self.transform], PAIRINGS[self.pairing],
            2 * len(self.frequencies), self.layers, self.heads, self.k_dim, self.v_dim,
            self.levels, len(points), len(model_id), self.name.encode()[:80])
        rest = fixed + b"".join(body)
        start = b"TKVPROF1" + struct.pack("<HH", 1, 0)
        size = struct.pack("<Q", len(start) + 4 + 8 + len(rest))
        crc = crc32c(start + bytes(4) + size + rest)
        return start + struct.pack("<I", crc) + size + rest


@dataclasses.dataclass(frozen=True)
class Header:
    """What can be read of a profile without its sections."""

    name: str
    model_id: str
    points: Sequence[Point]


def read_header(profile: bytes) -> Header:
    """Of a profile that terrace_kv.codec.Codec takes."""
    points, model_id_bytes = struct.unpack_from("<BH", profile, 45)
    end = 128 + model_id_bytes
    return Header(profile[48:128].rstrip(bytes(1)).decode(errors="replace"),
                  profile[128:end].decode(errors="replace"),
                  [Point(*struct.unpack_from("<iff", profile, end + 12 * i)) for i in range(points)])


def _section_bytes(section: Section, transform: str) -> list[bytes]:
    """The transform in 16-bit integers, of which a unit is worth row_scale of each channel."""
    scale = np.abs(section.decode).max(axis=1)
    row_scale = scale.astype(np.float32) if transform == "channel" else (
        scale / 32767).astype(np.float32)
    parts = [section.scale16.astype("<i2").tobytes(), section.mean.astype("<f4").tobytes(),
             row_scale.astype("<f4").tobytes()]
    if transform != "channel":
        channels, block = section.decode.shape
        whole = np.rint(section.decode / row_scale[:, None].astype(np.float64))
        blocks = np.clip(whole, -32767, 32767).astype("<i2").reshape(channels // block, block, block)
        parts.append(np.ascontiguousarray(blocks.transpose(0, 2, 1)).tobytes())
    parts.append(struct.pack("<i", section.level_slope))
    parts.append(section.level_weights.astype("<f4").tobytes())
    return parts


def quantised_frequencies(counts: np.ndarray, always: int) -> np.ndarray:
    """32 frequencies that sum to 256 for counted symbols; those of the bits of `always` are at least 1.

    Greedy: one at a time, where the code length gains most or loses least.
    """
    counts = counts.astype(np.float64)
    forced = np.array([(always >> s) & 1 for s in range(SYMBOLS)], bool)
    share = counts / max(counts.sum(), 1e-300)
    frequencies = np.floor(share * 256 + 0.5)
    frequencies[(share > 2e-5) | forced] = np.maximum(
        frequencies, 1)[(share > 2e-5) | forced]
    while frequencies.sum() != 256:
        if frequencies.sum() < 256:
            gain = share * np.log2((frequencies + 1) / np.maximum(frequencies, 1e-9))
            gain[frequencies == 0] = -1
            frequencies[np.argmax(gain)] += 1
        else:
            loss = np.where(frequencies > 1, share * np.log2(
                np.maximum(frequencies, 2) / np.maximum(frequencies - 1, 1)), np.inf)
            frequencies[np.argmin(loss)] -= 1
    return frequencies.astype(np.uint16)


def _crc_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


def crc32c(data: bytes) -> int:
    """CRC32C (RFC 3720), a byte at a time: half a second a MiB."""
    table = _crc_table().tolist()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF
