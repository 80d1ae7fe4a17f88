"""A reader of encoded KV written from docs/formats/chunk.md and profile.md alone, for tests. Slow."""

from __future__ import annotations

import dataclasses
import struct

import lossless_reader
import numpy as np
from rans_reader import Damaged, decode_rans, demand  # noqa: F401

F32 = np.float32


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# Of 256: digits towards zero, and away from it.
SHARES = [(1, 1), (1, 1), (1, 1), (1, 1), (3, 3), (5, 5), (9, 9), (14, 13), (20, 19), (27, 25), (36, 31),
          (45, 37), (55, 43), (65, 47), (74, 50), (83, 53), (89, 55), (94, 57), (98, 59), (100, 60),
          (101, 62), (101, 64), (100, 66), (99, 68), (98, 70), (97, 72), (96, 74), (95, 75), (93, 77),
          (92, 78), (91, 79), (91, 80), (90, 81), (89, 81), (89, 82), (88, 82), (88, 83), (87, 83),
          (87, 84), (87, 84), (87, 84), (86, 84), (86, 84), (86, 85)]
REFINEMENT = np.zeros((64, 32), int)
for _t in range(61):
    _towards, _away = SHARES[_t] if _t < len(SHARES) else (85, 85)
    REFINEMENT[_t, 14:17] = _towards, 256 - _towards - _away, _away


@dataclasses.dataclass
class ProfileSection:
    block: int
    scale16: np.ndarray
    mean: np.ndarray
    row_scale: np.ndarray
    matrix: np.ndarray | None
    slope: int


class Profile:
    def __init__(self, data: bytes) -> None:
        demand(data[:8] == b"TKVPROF1" and data[8:10] == b"\1\0", "not a profile of format 1")
        crc, size = struct.unpack_from("<IQ", data, 12)
        demand(size == len(data), "length")
        demand(crc == crc32c(data[:12] + bytes(4) + data[16:]), "checksum")
        (self.transform, self.pairing, self.rotary_dim, self.layers, self.heads, k_dim, v_dim,
         levels, points, model_id_bytes) = struct.unpack_from("<BBHIIIIBBH", data, 24)
        at = 128 + model_id_bytes
        self.model_id = data[128:at].decode()

        def take(kind: str, count: int) -> np.ndarray:
            nonlocal at
            values = np.frombuffer(data, kind, count, at)
            at += values.nbytes
            return values

        self.points = [struct.unpack("<iff", take("u1", 12)) for _ in range(points)]
        self.frequencies = take("<u8", self.rotary_dim // 2)
        self.tables = take("<u2", 64 * 32).reshape(64, 32).astype(int)
        demand((self.tables.sum(1) == 256).all(), "tables")
        self.sections = []
        for index in range(2 * self.layers):
            dim = v_dim if index % 2 else k_dim
            channels = self.heads * dim
            block = {1: 1, 2: dim, 3: channels}[self.transform]
            scale16, mean, row = take("<i2", channels), take("<f4", channels), take("<f4", channels)
            matrix = None
            if self.transform != 1:
                matrix = take("<i2", channels * block).reshape(-1, block, block)
            slope = int(take("<i4", 1)[0])
            if levels:
                take("<f4", self.heads * (k_dim + v_dim) + 3)
            self.sections.append(ProfileSection(block, scale16, mean, row, matrix, slope))
        demand(at == len(data), "bytes after the last section")


def low_bits(table: int) -> int:
    return (table - 20) // 4 - 1 if table <= 60 and table - 20 >= 8 else 0


def power(exponent16: int) -> np.float32:
    root = F32(2.0 ** (exponent16 % 16 / 16))
    return F32(root * F32(2.0 ** max(-126, min(127, exponent16 // 16))))


def fma(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x y + z of float32, rounded once: the product is exact in float64, and a sum rounded to odd there
    rounds to float32 as the exact one does."""
    product, addend = np.multiply(x, y, dtype=np.float64), np.asarray(z, np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = np.ascontiguousarray(total).view(np.int64).reshape(total.shape) % 2 == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0) & np.isfinite(error), odd, total).astype(F32)


def turn(phase: int) -> tuple[np.float32, np.float32]:
    q = ((phase + 2**61) % 2**64) >> 62
    r = (phase - (q << 62)) % 2**64
    x = float(r - 2**64 if r >= 2**63 else r) * 3.4061215800865545e-19
    z = x * x
    sine = 1.6059043836821613e-10
    for c in (-2.505210838544172e-08, 2.7557319223985893e-06, -0.0001984126984126984,
              0.008333333333333333, -0.16666666666666666, 1.0):
        sine = sine * z + c
    sine *= x
    cosine = -1.1470745597729725e-11
    for c in (2.08767569878681e-09, -2.755731922398589e-07, 2.48015873015873e-05,
              -0.001388888888888889, 0.041666666666666664, -0.5, 1.0):
        cosine = cosine * z + c
    c, s = F32(cosine), F32(sine)
    return [(c, s), (-s, c), (-c, -s), (s, -c)][q]


def to_dtype(values: np.ndarray, dtype: int) -> np.ndarray:
    """Bytes [..., bytes of a value]."""
    if dtype == 1:
        return values.astype("<f4")[..., None].view(np.uint8)
    if dtype == 2:
        with np.errstate(over="ignore"):
            return values.astype("<f2")[..., None].view(np.uint8)
    bits = values.astype("<f4").view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = np.where(bits & 0x7F800000, rounded, bits >> 16 & 0x8000)
    return np.where(nan, bits >> 16 | 0x40, rounded).astype("<u2")[..., None].view(np.uint8)


class Chunk:
    def __init__(self, data: bytes, profile: Profile | None) -> None:
        self.data, self.profile = data, profile
        demand(data[:8] == b"TKVCHUNK" and data[8:10] == b"\1\0", "not a container of format 1")
        crc, length = struct.unpack_from("<II", data, 12)
        demand(crc == crc32c(data[:12] + bytes(4) + data[16:length]), "checksum of the header")
        self.tokens, self.position, self.dtype, self.order, self.codec, self.lambda16 = (
            struct.unpack_from("<IQBBBxi", data, 20))
        self.layers, self.heads, *self.dims = struct.unpack_from("<IIII", data, 40)
        self.value_bytes = {1: 4, 2: 2, 3: 2}.get(self.dtype, 1)
        offset, size, crc = struct.unpack_from("<QII", data, 96)
        tables = data[offset:offset + size]
        demand(len(tables) == size and (size == 0 or crc == crc32c(tables)), "tables")
        if self.codec == 3 and size and profile is None:
            self.profile = Profile(tables)
        offset, size, crc = struct.unpack_from("<QII", data, 112)
        places = data[offset:offset + size]
        self.refined = places if size and len(places) == size else None  # else cut off, or none
        demand(self.refined is None or crc == crc32c(places), "directory of the refinement")
        self.tables = None
        if self.codec == 2 and tables:
            self.tables = lossless_reader.Tables(tables, self.layers,
                                                 [self.heads * dim for dim in self.dims])

    def _tiles(self, place: bytes, index: int, may_be_cut: bool) -> list[bytes] | None:
        offset, length, crc = struct.unpack("<QII", place)
        data = self.data[offset:offset + length]
        if may_be_cut and len(data) < length:
            return None
        count = -(-self.tokens // 128)
        demand(len(data) == length and crc == crc32c(data[:8 * count]), f"tile table of {index}")
        at, tiles = 8 * count, []
        for t in range(count):
            size, crc = struct.unpack_from("<II", data, 8 * t)
            tiles.append(data[at:at + size])
            demand(len(tiles[t]) == size and crc == crc32c(tiles[t]), f"section {index} tile {t}")
            at += size
        demand(at == len(data), "bytes after the last tile")
        return tiles

    def section(self, index: int) -> bytes:
        """The section's bytes as they were encoded."""
        tiles = self._tiles(self.data[128 + 16 * index:144 + 16 * index], index, False)
        finer = None
        if self.refined is not None:
            finer = self._tiles(self.refined[16 * index:16 * index + 16], index, True)
        rows = []
        channels = self.heads * self.dims[index % 2]
        for t, tile in enumerate(tiles):
            tokens = min(128, self.tokens - 128 * t)
            if self.codec == 3:
                rows.append(self._tile(index, 128 * t, tokens, channels, tile,
                                       None if finer is None else finer[t]))
            elif self.codec == 2:
                rows.append(lossless_reader.channel_tile(
                    tile, self.tables, index, tokens, channels, self.dtype))
            else:
                rows.append(self._from_section_order(lossless_reader.BY_BYTES[self.codec](
                    tile, tokens * channels, self.dtype, self.value_bytes), tokens))
        if not rows:
            return b""
        values = np.concatenate(rows).reshape(self.tokens, self.heads, -1, self.value_bytes)
        return (values if self.order == 1 else values.transpose(1, 0, 2, 3)).tobytes()

    def _from_section_order(self, values: bytes, tokens: int) -> np.ndarray:
        """A tile in the section's order to [tokens, channels, bytes of a value]."""
        if self.order == 1:
            array = np.frombuffer(values, np.uint8)
        else:
            array = np.frombuffer(values, np.uint8).reshape(
                self.heads, tokens, -1, self.value_bytes).transpose(1, 0, 2, 3)
        return array.reshape(tokens, -1, self.value_bytes)

    def _tile(self, index: int, first: int, tokens: int, channels: int, tile: bytes,
              finer: bytes | None) -> np.ndarray:
        section = self.profile.sections[index]
        rans_bytes, escapes = struct.unpack_from("<II", tile)
        groups = -(-tokens // 32)
        order: list[int] = []
        levels: list[int] = []

        def schedule_of(symbols: np.ndarray) -> list[int]:
            levels.extend(int(x) for x in symbols[:groups].reshape(-1)[:tokens] - 16)
            order.extend(sorted(range(tokens), key=lambda t: levels[t]))
            shifts = []
            for g in range(groups):
                members = order[32 * g:32 * g + 32]
                shifts.append(4 * section.slope * sum(levels[t] for t in members)
                              // (256 * len(members)) - self.lambda16)
            return [max(0, min(60, ((int(section.scale16[c]) + shift + 2) >> 2) + 20))
                    for c in range(channels) for shift in shifts]

        schedule = [61] * groups
        symbols = decode_rans(self.profile.tables, tile[8:8 + rans_bytes], tokens,
                              groups * (1 + channels), schedule, schedule_of)
        at = 8 + rans_bytes
        coefficients = np.zeros((tokens, channels), int)
        escaped = []
        for r in range(groups, len(schedule)):
            k = low_bits(schedule[r])
            planes = struct.unpack_from(f"<{k}I", tile, at)
            at += 4 * k
            for lane, token in enumerate(order[32 * (r % groups):32 * (r % groups) + 32]):
                s = int(symbols[r, lane])
                low = sum((plane >> lane & 1) << b for b, plane in enumerate(planes))
                coefficients[token, r // groups - 1] = (s - 15) * 2**k - (2**k >> 1) + low
                if s == 31:
                    escaped.append((32 * r + lane, token, r // groups - 1))
        demand(len(escaped) == escapes, "escapes")
        for place, token, c in escaped:
            stored, q = struct.unpack_from("<Ih", tile, at)
            demand(stored == place, "place of an escape")
            coefficients[token, c] = q
            at += 6
        if finer is not None:
            digits = decode_rans(REFINEMENT, finer, tokens, groups * channels, schedule[groups:], None)
            for r in range(groups * channels):
                for lane, token in enumerate(order[32 * (r % groups):32 * (r % groups) + 32]):
                    base, digit = coefficients[token, r // groups], int(digits[r, lane]) - 15
                    coefficients[token, r // groups] = 3 * base + (-digit if base < 0 else digit)
        out = np.zeros((tokens, channels, self.value_bytes), np.uint8)
        for t in range(tokens):
            if levels[t] == -16:
                size = channels * self.value_bytes
                out[t] = np.frombuffer(tile, np.uint8, size, at).reshape(channels, -1)
                at += size
            else:
                out[t] = to_dtype(self._token(section, index, first + t, levels[t],
                                              coefficients[t], finer is not None), self.dtype)
        demand(at == len(tile), "length of a tile")
        return out

    def _token(self, section: ProfileSection, index: int, token: int, level: int,
               coefficients: np.ndarray, refined: bool) -> np.ndarray:
        sums = coefficients
        if section.matrix is not None:
            blocks = coefficients.reshape(-1, section.block)
            sums = np.einsum("bk,bkj->bj", blocks, section.matrix.astype(np.int64)).reshape(-1)
            sums = (sums + 2**31) % 2**32 - 2**31
        step = power(self.lambda16 - 4 * level)
        step = step / F32(3) if refined else step
        x = fma(sums.astype(F32), step * section.row_scale, section.mean)
        if index % 2 == 0 and self.profile.pairing:
            pairs = self.profile.rotary_dim // 2
            x = x.reshape(self.heads, -1).copy()
            for i in range(pairs):
                phase = (self.position + token) * int(self.profile.frequencies[i]) % 2**64
                c, s = turn(phase)
                a, b = (i, i + pairs) if self.profile.pairing == 1 else (2 * i, 2 * i + 1)
                p, q = x[:, a].copy(), x[:, b].copy()
                x[:, a], x[:, b] = fma(p, c, -(q * s)), fma(q, c, p * s)
            x = x.reshape(-1)
        return x
