"""The scheduler's side of the vLLM connector: which blocks of a request are stored, and what of a
step is loaded and saved. Knows no engine's classes. One thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from terrace_kv import errors
from terrace_kv.connectors.paged_transfer import Blocks
from terrace_kv.connectors.session import BlockSession

_HOST, _NVME = 1, 2


class PrefixLookup:
    """Lookups have no side effects: what they find is loaded when the engine says so."""

    def __init__(self, session: BlockSession, block_tokens: int) -> None:
        self._session = session
        self._block_tokens = block_tokens
        self._found: dict[str, tuple[int, np.ndarray]] = {}  # first block, tiers of those behind
        self._loads: list[Blocks] = []
        self.requests: dict[str, Any] = {}  # by id, of the engine
        self.saved: dict[str, int] = {}  # leading blocks that were handed to workers
        self.counters: Counter[str] = Counter()

    def find(self, request_id: str, names: Sequence[bytes], tokens: int, computed_tokens: int,
             salt: bytes) -> int:
        """Tokens that can be loaded behind the `computed_tokens` first ones, in whole blocks and so
        that at least one of the request's `tokens` is left to compute."""
        first = computed_tokens // self._block_tokens
        wanted = [bytes(name) for name in names[first:(tokens - 1) // self._block_tokens]]
        self._found.pop(request_id, None)
        spaces = self._session.spaces
        if not wanted or spaces is None:
            return 0
        tiers = np.full(len(wanted), _NVME)
        try:
            for space in spaces:
                there = space.find(space.keys(wanted, salt))["tier"]
                tiers = np.minimum(tiers, there)
        except errors.TerraceError as error:
            self._session.lost(error, spaces)
            return 0
        gaps = np.flatnonzero(tiers == 0)
        count = int(gaps[0]) if len(gaps) else len(wanted)
        self.counters["lookup_blocks"] += len(wanted)
        self.counters["lookup_hit_blocks"] += count
        self._found[request_id] = (first, tiers[:count])
        return count * self._block_tokens

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
        _, tiers = self._found.get(request_id, (0, np.zeros(0)))
        count = external_tokens // self._block_tokens
        host = int((tiers[:count] == _HOST).sum()) * self._block_tokens
        return host, external_tokens - host

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
