"""The rANS streams of docs/formats/chunk.md, and how a reader says that bytes are damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np


class Damaged(Exception):
    pass


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Damaged(what)


def decode_rans(tables: np.ndarray, data: bytes, tokens: int, rounds: int, schedule: list[int],
                extend: Callable[[np.ndarray], list[int]] | None = None) -> np.ndarray:
    """Symbols [rounds, 32]. `schedule` has the table of each round, or of the first ones: then
    extend(symbols so far) has the others, and `schedule` is extended."""
    groups = -(-tokens // 32)
    tail = tokens - 32 * (groups - 1)
    states_stored = 32 if groups > 1 else tokens
    demand(len(data) >= 2 * states_stored, "states")
    states = list(struct.unpack_from(f"<{states_stored}H", data))
    states += [256] * (32 - states_stored)
    at = 2 * states_stored
    slots = [np.repeat(np.arange(32), row).tolist() for row in tables]
    starts = (np.cumsum(tables, axis=1) - tables).tolist()
    frequencies = tables.tolist()
    symbols = np.zeros((rounds, 32), int)
    for r in range(rounds):
        if r == len(schedule):
            schedule += extend(symbols)
        table = schedule[r]
        for lane in range(tail if r % groups == groups - 1 else 32):
            x = states[lane]
            slot = x & 255
            s = slots[table][slot]
            x = frequencies[table][s] * (x >> 8) + slot - starts[table][s]
            if x < 256:
                demand(at < len(data), "rANS bytes")
                x = x << 8 | data[at]
                at += 1
            states[lane] = x
            symbols[r, lane] = s
    demand(at == len(data) and all(x == 256 for x in states), "end of the rANS stream")
    return symbols
