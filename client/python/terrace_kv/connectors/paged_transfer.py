"""What a worker of a paged engine does in one step: loads blocks layer by layer ahead of attention,
and stores the blocks that the step completed. Knows no engine.

Nothing outlives the step: what is stored is copied before the engine may reuse a block, and what is
loaded is there before a layer reads it. A load that fails names its blocks and lets the engine
compute them; the step then stores nothing, as what it computed may rest on them. Nor does a step in
which a layer did not say that it is computed: it was cut short by an error.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from terrace_kv import errors
from terrace_kv.blocks import BlockLease, BlockSpace, BlockStore, chain
from terrace_kv.connectors.paged_memory import LoadTarget, PagedMemory, SaveSource
from terrace_kv.connectors.session import BlockSession

LEASE_TTL_S = 60  # longer than any step

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Blocks:
    """Blocks of one request: their names in the store and their places in the engine's memory."""

    names: list[bytes]
    block_ids: list[int]
    salt: bytes = b""
    # Of those to be stored: blocks of the prompt before the first one, and the name of the last of
    # these.
    position: int = 0
    before: bytes | None = None


@dataclasses.dataclass
class StepPlan:
    """What a scheduler asks of its workers for one step."""

    loads: list[Blocks] = dataclasses.field(default_factory=list)
    saves: list[Blocks] = dataclasses.field(default_factory=list)
    tokens: int = 0  # computed by the step
    block_tokens: int = 1


@dataclasses.dataclass
class _Load:
    wanted: Blocks
    spaces: tuple[BlockSpace, ...]
    lease: BlockLease
    target: LoadTarget
    usable: int  # leading blocks that are good so far


class StepTransfer:
    """One thread, in this order: begin(); load() and wait_part() where there are loads;
    save_part(); finish()."""

    def __init__(self, session: BlockSession, memory: PagedMemory, stall_s: float) -> None:
        """`stall_s`: a load without progress for so long has failed."""
        self._session = session
        self._memory = memory
        self._stall_s = stall_s
        self._parts = len(memory.part_bytes)
        self._plan = StepPlan()
        self._began = 0.0
        self._loads: list[_Load] = []
        self._loaded_parts = 0
        self._store: BlockStore | None = None
        self._store_spaces: tuple[BlockSpace, ...] | None = None
        self._source: SaveSource | None = None
        self._saved_parts: set[int] = set()
        self._store_tried = False
        self._failed: set[int] = set()
        self._load_failed = False
        self._token_us = 0.0  # to compute one, as last measured; 0: not yet
        self.counters: Counter[str] = Counter()

    def begin(self, plan: StepPlan) -> None:
        self.finish()  # a step that was cut short
        self._plan = plan
        self._began = time.monotonic()
        self._store_tried = self._load_failed = False

    # --- loading --------------------------------------------------------------------------------

    def load(self) -> None:
        """Leases what is to be loaded; the daemon brings it up from now on."""
        self._loaded_parts = 0
        for wanted in self._plan.loads:
            start = time.monotonic()
            self.counters["load_requests"] += 1
            spaces = self._session.spaces
            if spaces is None:
                self._fail(wanted.block_ids, "no daemon")
                continue
            try:
                lease = self._acquire(spaces[0], wanted)
            except errors.TerraceError as error:
                self._session.lost(error, spaces)
                self._fail(wanted.block_ids, error)
                continue
            load = _Load(wanted, spaces, lease, self._memory.target(wanted.block_ids),
                         len(wanted.names))
            self._loads.append(load)
            self._shrink(load, "gone since the lookup")
            self.counters["load_us"] += _elapsed_us(start)

    def _acquire(self, space: BlockSpace, wanted: Blocks) -> BlockLease:
        keys = space.keys(wanted.names, wanted.salt)
        end = time.monotonic() + self._stall_s
        while True:
            try:
                return space.acquire(keys, ttl_s=LEASE_TTL_S)
            except errors.ResourceExhausted:  # what waited for room a little, as a store does
                if time.monotonic() >= end:
                    raise

    def wait_part(self, part: int) -> None:
        """The parts up to and with `part` are in the engine's memory, but for failed blocks."""
        if not self._loads:
            return
        start = time.monotonic()
        for one in range(self._loaded_parts + 1, part + 1):
            for load in self._loads:
                self._load_part(load, one)
        self._loaded_parts = max(self._loaded_parts, part)
        self.counters["load_us"] += _elapsed_us(start)

    def _load_part(self, load: _Load, part: int) -> None:
        while load.usable:
            try:
                self._wait(load.lease, part)
                load.target.load(load.lease, part, load.usable)
                return
            except errors.DataLoss as error:  # a block is bad; those before it are not
                if not self._shrink(load, error):
                    self._give_up(load, error)
            except errors.TerraceError as error:
                self._session.lost(error, load.spaces)
                self._give_up(load, error)

    def _wait(self, lease: BlockLease, part: int) -> None:
        progress = _ready(lease)
        while True:
            try:
                return lease.wait_parts(part, self._stall_s)
            except errors.DeadlineExceeded:
                if (now := _ready(lease)) == progress:
                    raise
                progress = now

    def _shrink(self, load: _Load, why: object) -> bool:
        """Takes note of blocks that are no longer good; False: there are none."""
        usable = min(load.lease.usable, load.usable)
        if usable == load.usable:
            return False
        self._fail(load.wanted.block_ids[usable:load.usable], why)
        load.usable = usable
        return True

    def _give_up(self, load: _Load, why: object) -> None:
        self._fail(load.wanted.block_ids[: load.usable], why)
        load.usable = 0

    def _fail(self, block_ids: Sequence[int], why: object) -> None:
        _log.warning("terrace: %d blocks are computed, as they were not loaded: %s",
                     len(block_ids), why)
        self._load_failed = True
        self._failed.update(block_ids)
        self.counters["load_failed_blocks"] += len(block_ids)

    def take_failed_blocks(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    # --- storing --------------------------------------------------------------------------------

    def save_part(self, part: int) -> None:
        """The step has computed this part of its blocks."""
        if not self._plan.saves or self._load_failed or part in self._saved_parts:
            return  # layers may share a part: the first computes it
        start = time.monotonic()
        if not self._store_tried:
            self._begin_store()
        self._saved_parts.add(part)
        if self._source is not None:
            self._copy(lambda: self._source.save(self._store, part))
        self.counters["save_us"] += _elapsed_us(start)

    def _begin_store(self) -> None:
        self._store_tried = True
        self._store_spaces = spaces = self._session.spaces
        if spaces is None:
            return
        space = spaces[0]
        saves = self._plan.saves
        ids = [block for save in saves for block in save.block_ids]
        try:
            keys, parents = map(np.concatenate, zip(*(_chain(space, save) for save in saves)))
            positions = np.concatenate(
                [save.position + np.arange(len(save.names)) for save in saves])
            cost_us = int(self._token_us * self._plan.block_tokens * len(ids))
            self._store = space.begin(keys, cost_us=cost_us, parents=parents,
                                      positions=positions)
        except errors.TerraceError as error:
            self._session.lost(error, spaces)
            return
        needed = np.flatnonzero(self._store.needed)
        if len(needed):
            self._source = self._memory.source(np.asarray(ids)[needed], needed)

    def _copy(self, copy: Callable[[], None]) -> None:
        try:
            copy()
        except errors.TerraceError:  # the client is gone, as commit() will tell
            self._source = None

    def finish(self) -> None:
        """The step is computed: publishes what it stored and ends its loads."""
        if self._plan.loads:
            self.wait_part(self._parts)  # for layers that did not ask
        start = time.monotonic()
        if self._store is not None and not self._load_failed:
            if len(self._saved_parts) == self._parts:
                if self._source is not None:
                    self._copy(lambda: self._source.finish(self._store))
                    self._measure()
                self._commit()
            else:
                _log.warning("terrace: a step stored nothing, as only %d of its %d layers were "
                             "computed", len(self._saved_parts), self._parts)
            self.counters["save_us"] += _elapsed_us(start)
        for load in self._loads:
            self.counters["loaded_blocks"] += load.usable
            self.counters["loaded_bytes"] += load.usable * sum(self._memory.part_bytes)
            load.lease.close()
        if self._store is not None:
            self._store.close()
        self._store = self._source = None
        self._saved_parts.clear()
        self._loads.clear()
        self._plan = StepPlan()

    def _measure(self) -> None:
        """All that the step saved is computed by now, on a device too. Blocks are computed again as
        a prompt is: not token by token."""
        if self._plan.tokens >= self._plan.block_tokens and not self._loads:
            self._token_us = _elapsed_us(self._began) / self._plan.tokens

    def _commit(self) -> None:
        try:
            report = self._store.commit()
        except errors.TerraceError as error:
            self._session.lost(error, self._store_spaces)
            return
        self.counters["saved_blocks"] += report.stored
        self.counters["saved_bytes"] += report.stored_bytes
        self.counters["save_dropped_blocks"] += report.failed


def _chain(space: BlockSpace, save: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """The keys of blocks and of those before them: uint8 [n, 32] each."""
    keys = space.keys(save.names, save.salt)
    before = None if save.before is None else space.key(save.before, save.salt)
    return keys, chain(keys, before)


def _ready(lease: BlockLease) -> int:
    return sum(lease.ready_parts(block) for block in range(lease.usable))


def _elapsed_us(start: float) -> int:
    return int((time.monotonic() - start) * 1e6)
