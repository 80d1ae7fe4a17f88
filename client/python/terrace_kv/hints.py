"""What an engine expects to read, said ahead: the arguments of Client.hint."""

from __future__ import annotations

import ctypes as c
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from terrace_kv import _capi, errors

KINDS = {"queue": 0, "documents": 1, "session": 2, "experts": 3}


@dataclasses.dataclass(frozen=True)
class ExpectedRead:
    """One reason to read something soon: give `tokens` (a prompt) or `keys` (objects, in order of
    need). A second one with the same `request_id` and kind takes the place of the first."""

    request_id: int
    tokens: Sequence[int] | np.ndarray | None = None
    keys: Sequence[bytes | str] = ()  # 32 bytes or 64 hex digits each
    extra: bytes = b""  # of the prompt, as of match_prefix
    kind: str = "queue"  # or "documents", "session", "experts"
    order: int = 0  # place in the waiting queue, 0 is next
    eta_s: float = 0.0  # until its first byte is wanted, from now; 0: unknown
    deadline_s: float = 0.0  # after which nobody wants it, from now; 0: none
    confidence: float = 1.0  # 0 .. 1 that it is wanted at all


@dataclasses.dataclass(frozen=True)
class HintReport:
    """What became of hints."""

    accepted: int  # taken whole
    refused: int
    keys: int  # objects expected from now on, stored already or not
    why: str = ""  # of the first refused one


def _microseconds(name: str, seconds: float) -> int:
    if not 0 <= seconds <= 24 * 3600:  # NaN neither
        raise errors.InvalidArgument(f"{name}: {seconds}; expected 0 .. 86400 seconds")
    return math.ceil(seconds * 1e6)


def _within(name: str, value: int, bits: int) -> int:
    # ctypes would wrap around silently.
    if not 0 <= value < 2**bits:
        raise errors.InvalidArgument(f"{name}: {value} is outside 0 .. 2^{bits} - 1")
    return value


def to_c(read: ExpectedRead, tokens: np.ndarray, keys: bytes) -> _capi.ExpectedRead:
    """`tokens` (uint32) and `keys` (32 bytes each) are borrowed: keep them while it is used."""
    if read.kind not in KINDS:
        raise errors.InvalidArgument(
            f"kind: {read.kind!r}; expected one of {', '.join(map(repr, KINDS))}")
    return _capi.ExpectedRead(
        struct_size=c.sizeof(_capi.ExpectedRead), kind=KINDS[read.kind],
        order=_within("order", read.order, 32),
        request_id=_within("request_id", read.request_id, 64),
        eta_us=_microseconds("eta_s", read.eta_s),
        deadline_us=_microseconds("deadline_s", read.deadline_s), confidence=read.confidence,
        tokens=tokens.ctypes.data, token_count=len(tokens), extra=read.extra,
        extra_bytes=len(read.extra), keys=c.cast(c.c_char_p(keys), c.c_void_p),
        key_count=len(keys) // _capi.KEY_BYTES)


def report_of(raw: _capi.HintReport) -> HintReport:
    """Right after the call: the reason's text is the thread's last error."""
    why = _capi.lib.terrace_last_error().decode(errors="replace") if raw.why else ""
    return HintReport(raw.accepted, raw.refused, raw.keys, why)
