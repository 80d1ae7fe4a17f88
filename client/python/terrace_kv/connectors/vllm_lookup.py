"""The scheduler's side of the vLLM connector: which blocks of a request are stored, and what of a
step is loaded and saved. Knows no engine's classes. One thread; lookups run on one of their own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from terrace_kv import errors
from terrace_kv.blocks import leading_run
from terrace_kv.connectors.paged_transfer import Blocks
from terrace_kv.connectors.session import CALL_TIMEOUT_S, BlockSession

PATIENCE_S = 0.005  # of a scheduler with an answer, which usually takes a tenth of it

_NVME = 2


@dataclasses.dataclass
class _Found:
    """The leading blocks that are there."""

    on_nvme: np.ndarray  # bool [blocks], of any rank
    load: int  # leading ones that are worth it


@dataclasses.dataclass
class _Asked:
    """A lookup under way. `answer` None: there is none in time."""

    first: int  # block
    names: list[bytes]  # from that one on
    deadline: float  # of time.monotonic()
    answer: concurrent.futures.Future[_Found | None]


class PrefixLookup:
    """Lookups have no side effects: what they find is loaded when the engine says so. A daemon that
    is slow to answer holds back the request, not the scheduler."""

    def __init__(self, session: BlockSession, block_tokens: int,
                 timeout_s: float = CALL_TIMEOUT_S) -> None:
        """`timeout_s`: a request waits no longer for an answer, and nothing is found."""
        self._session = session
        self._block_tokens = block_tokens
        self._timeout_s = timeout_s
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "terrace-lookup")
        self._asked: dict[str, _Asked] = {}
        self._last: concurrent.futures.Future[_Found | None] | None = None  # that was asked for
        self._found: dict[str, tuple[int, _Found]] = {}  # first block, what is there from it on
        self._loads: list[Blocks] = []
        self.requests: dict[str, Any] = {}  # by id, of the engine
        self.saved: dict[str, int] = {}  # leading blocks that were handed to workers
        self.counters: Counter[str] = Counter()

    def find(self, request_id: str, names: Sequence[bytes], tokens: int, computed_tokens: int,
             salt: bytes) -> int | None:
        """Tokens to load behind the `computed_tokens` first ones, in whole blocks and so that at
        least one of the request's `tokens` is left to compute. None: not known yet, ask again. An
        answer to other arguments than these is dropped."""
        first = computed_tokens // self._block_tokens
        wanted = [bytes(name) for name in names[first:(tokens - 1) // self._block_tokens]]
        self._found.pop(request_id, None)
        asked = self._asked.pop(request_id, None)
        if not wanted or self._session.spaces is None:
            return 0
        if asked is None or (asked.first, asked.names) != (first, wanted):
            deadline = asked.deadline if asked else time.monotonic() + self._timeout_s
            asked = self._ask(first, wanted, deadline, salt)
        if not asked.answer.done() and time.monotonic() < asked.deadline:
            self._asked[request_id] = asked
            return None
        found = asked.answer.result() if asked.answer.done() else None
        if found is None:
            self.counters["lookup_failed"] += 1
            return 0
        self.counters["lookup_blocks"] += len(wanted)
        self.counters["lookup_hit_blocks"] += len(found.on_nvme)
        self.counters["lookup_recompute_blocks"] += len(found.on_nvme) - found.load
        self._found[request_id] = (first, found)
        return found.load * self._block_tokens

    def _ask(self, first: int, names: list[bytes], deadline: float, salt: bytes) -> _Asked:
        """Waits a moment for the answer, but not behind another lookup: together they may be many."""
        idle = self._last is None or self._last.done()
        self._last = self._thread.submit(self._look_up, names, deadline, salt)
        if idle:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                self._last.exception(PATIENCE_S)
        if not self._last.done():
            self.counters["lookup_deferred"] += 1
        return _Asked(first, names, deadline, self._last)

    def _look_up(self, names: list[bytes], deadline: float, salt: bytes) -> _Found | None:
        """On the thread of lookups."""
        spaces = self._session.spaces
        if spaces is None or time.monotonic() > deadline:
            return None
        there = load = len(names)
        on_nvme = np.zeros(there, bool)
        try:
            for space in spaces:
                found = space.find(space.keys(names, salt))
                on_nvme |= found["tier"] == _NVME
                there, load = map(min, (there, load), leading_run(found))
        except errors.TerraceError as error:
            self._session.lost(error, spaces)
            return None
        return _Found(on_nvme[:there], load) if time.monotonic() <= deadline else None

    def load(self, request_id: str, names: Sequence[bytes], block_ids: Sequence[int],
             external_tokens: int, salt: bytes) -> None:
        """The engine has made room: `block_ids` are all of the request's."""
        first, _ = self._found[request_id]
        end = first + external_tokens // self._block_tokens
        self._loads.append(Blocks([bytes(name) for name in names[first:end]],
                                  list(block_ids[first:end]), salt))

    def take_loads(self) -> list[Blocks]:
        loads, self._loads = self._loads, []
        return loads

    def sources(self, request_id: str, external_tokens: int) -> tuple[int, int]:
        """The tokens that come from host memory and from NVMe."""
        _, found = self._found[request_id]
        blocks = external_tokens // self._block_tokens
        from_nvme = int(found.on_nvme[:blocks].sum()) * self._block_tokens
        return external_tokens - from_nvme, from_nvme

    def complete(self, request_id: str, names: int, computed_tokens: int,
                 scheduled_tokens: int) -> tuple[int, int]:
        """Blocks [begin, end) that are complete after a step and were not saved before. All from
        the first on when the request is new: the daemon may have forgotten what the engine has.
        `names`: hashes that are known; a block without waits for its hash."""
        end = min((computed_tokens + scheduled_tokens) // self._block_tokens, names)
        begin = min(self.saved.get(request_id, 0), computed_tokens // self._block_tokens)
        if end > begin:
            self.saved[request_id] = end
        return begin, end

    def forget(self, request_id: str) -> None:
        self.requests.pop(request_id, None)
        self.saved.pop(request_id, None)
        self._found.pop(request_id, None)
        self._asked.pop(request_id, None)

    def close(self) -> None:
        """Once the session is closed. Does not wait for a lookup under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)
