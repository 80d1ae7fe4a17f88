"""Tiles of the lossless codecs, read as docs/formats/chunk.md says. Slow."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct

import numpy as np
from rans_reader import decode_rans, demand


def raw_tile(tile: bytes, count: int, dtype: int, value_bytes: int) -> bytes:
    demand(len(tile) == count * value_bytes, "length of a raw tile")
    return tile


def nibble_tile(tile: bytes, count: int, dtype: int, value_bytes: int) -> bytes:
    if tile[0] == 0:
        return raw_tile(tile[1:], count, dtype, value_bytes)
    demand(tile[0] == 1 and dtype == 3, "form of a tile")
    exponents, codes, rests = tile[1:16], tile[16:], tile[16 + (count + 1) // 2:]
    escapes = iter(rests[count:])
    values = []
    for i in range(count):
        code = codes[i // 2] >> 4 * (i % 2) & 15
        turned = (exponents[code] if code < 15 else next(escapes)) << 8 | rests[i]
        values.append(turned >> 1 | (turned & 1) << 15)
    demand(next(escapes, None) is None, "escapes left over")
    return np.array(values, "<u2").tobytes()


def zstd_tile(tile: bytes, count: int, dtype: int, value_bytes: int) -> bytes:
    library = ctypes.CDLL(ctypes.util.find_library("zstd"))
    library.ZSTD_decompress.restype = ctypes.c_size_t
    out = ctypes.create_string_buffer(count * value_bytes)
    size = library.ZSTD_decompress(out, ctypes.c_size_t(count * value_bytes), tile,
                                   ctypes.c_size_t(len(tile)))
    demand(size == count * value_bytes, "zstd frame")
    return np.frombuffer(out.raw, np.uint8).reshape(value_bytes, count).T.tobytes()


BY_BYTES = {0: raw_tile, 1: nibble_tile, 4: zstd_tile}


class Tables:
    def __init__(self, data: bytes, layers: int, channels: list[int]) -> None:
        count, = struct.unpack_from("<I", data)
        self.signs, self.shifts, frequencies = [], [], []
        for t in range(count):
            sign, shift, *frequency = struct.unpack_from("<BB32H", data, 4 + 66 * t)
            demand(sum(frequency) == 256, "frequencies")
            self.signs.append(sign)
            self.shifts.append(shift)
            frequencies.append(frequency)
        self.frequencies = np.array(frequencies)
        at, self.codes = 4 + 66 * count, []
        for s in range(2 * layers):
            n = channels[s % 2]
            ids, bases = struct.unpack_from(f"<{n}B", data, at), struct.unpack_from(
                f"<{n}H", data, at + n)
            self.codes.append(list(zip(ids, bases)))
            at += 3 * n
        demand(at == len(data), "bytes after the tables")


def channel_tile(tile: bytes, tables: Tables | None, section: int, tokens: int, channels: int,
                 dtype: int) -> np.ndarray:
    """[tokens, channels, bytes of a value]."""
    value_bytes = {1: 4, 2: 2, 3: 2}.get(dtype, 1)
    form, = struct.unpack_from("<I", tile)
    if form == 0:
        return np.frombuffer(raw_tile(tile[4:], tokens * channels, dtype, value_bytes),
                             np.uint8).reshape(tokens, channels, value_bytes)
    demand(form == 1 and tables is not None, "form of a tile")
    rans_bytes, escape_count = struct.unpack_from("<II", tile, 4)
    groups, floor = -(-tokens // 32), 8 if value_bytes == 1 else 0
    schedule = [table for table, _ in tables.codes[section] for _ in range(groups)]
    symbols = decode_rans(tables.frequencies, tile[12:12 + rans_bytes], tokens, groups * channels,
                          schedule)
    at = 12 + rans_bytes
    words, escaped = np.zeros((tokens, channels), np.uint16), []
    for r in range(groups * channels):
        c, first = r // groups, 32 * (r % groups)
        table, base = tables.codes[section][c]
        sign, shift = tables.signs[table], tables.shifts[table]
        places = [*range(floor, shift)] + ([15] if sign == 1 else [])
        planes = struct.unpack_from(f"<{len(places)}I", tile, at)
        at += 4 * len(places)
        for lane in range(min(32, tokens - first)):
            s = int(symbols[r, lane])
            if s == 31:
                escaped.append((first + lane, c))
                continue
            cell = (base & 0x7FFF) + (s % 15 if sign == 0 else s)
            negative = s >= 15 if sign == 0 else sign == 2 and base >> 15
            word = cell << shift & 0x7FFF | (0x8000 if negative else 0)
            for place, plane in zip(places, planes):
                word |= (plane >> lane & 1) << place
            words[first + lane, c] = word
    low_bytes = 2 if dtype == 1 else 0
    low = np.frombuffer(tile, np.uint8, tokens * channels * low_bytes, at)
    at += low.nbytes
    demand(len(escaped) == escape_count and at + 2 * escape_count == len(tile), "length of a tile")
    for (token, c), word in zip(escaped, struct.unpack_from(f"<{escape_count}H", tile, at)):
        words[token, c] = word
    if value_bytes == 1:
        values = (words >> 8).astype(np.uint8)
        if dtype == 6:
            values = np.where(values & 0x80, values ^ 0x7F, values).astype(np.uint8)
        return values[..., None]
    high = words.astype("<u2")[..., None].view(np.uint8)
    return np.concatenate([low.reshape(tokens, channels, low_bytes), high], axis=-1)
