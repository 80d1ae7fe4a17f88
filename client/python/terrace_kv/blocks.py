"""Blocks: objects under an engine's own keys, in batches, between a daemon and an engine's memory.

    space = client.blocks("my-model bf16 block=128 ...", part_bytes=[98304] * 30)
    keys = space.keys(block_hashes)                        # uint8 [n, 32]
    with space.begin(keys, parents=chain(keys)) as store:  # what is not there yet
        store.gather(pieces(block, part, address, bytes))  # one C call, without the GIL
        store.commit()
    with space.acquire(keys) as lease:                     # the leading run that is there
        lease.wait_parts(1)                                # the first part of every usable block
        lease.scatter(pieces(...))

Every call is one call to the daemon for up to its max_keys_per_call keys (256 by default), and
releases the GIL.
"""

from __future__ import annotations

import ctypes as c
import os
import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from terrace_kv import _capi, errors
from terrace_kv._capi import KEY_BYTES, call, lib
from terrace_kv._handle import Handle, view_of
from terrace_kv.client import Client, CommitReport, _key, _milliseconds, _timeout_ms, _u64

# uint8 [n, 32] or a sequence of keys (32 bytes or 64 hex digits each).
Keys = np.ndarray | Sequence[bytes | str]

NO_PARENT = bytes(KEY_BYTES)
UNKNOWN_POSITION = 2**32 - 1
RECOMPUTE = 4  # of BlockSpace.find(), in `flags`


def pieces(block: object, part: object, address: object, size: object) -> np.ndarray:
    """A list of pieces of memory, from arrays that broadcast against each other: `block` indexes
    the store's or lease's keys, `part` counts from 1, `address` is in this process, `size` in
    bytes. Pieces of the same part follow each other in its order."""
    columns = np.broadcast_arrays(block, part, address, size)
    out = np.empty(columns[0].size, _capi.BLOCK_PIECE)
    for name, column in zip(out.dtype.names, columns):
        out[name] = column.ravel()
    return out


def leading_run(found: np.ndarray) -> tuple[int, int]:
    """Of what BlockSpace.find() answers: how many leading blocks are there, and how many of those to
    load, as the others are expected to be there sooner when they are computed behind them."""
    absent = found["tier"] == 0
    return _until(absent), _until(absent | (found["flags"] & RECOMPUTE != 0))


def _until(ends: np.ndarray) -> int:
    return int(np.argmax(ends)) if ends.any() else len(ends)


def chain(keys: Keys, before: bytes | str | None = None) -> np.ndarray:
    """The parents of blocks that follow each other in one prompt: uint8 [n, 32], for
    BlockSpace.begin(). `before` is the key of the block before the first one; None: there is none,
    or it is not known."""
    array = _keys(keys)
    first = NO_PARENT if before is None else before
    return np.concatenate([_keys([first]), array[:-1]])[: len(array)]


def _keys(keys: Keys, field: str = "keys") -> np.ndarray:
    if isinstance(keys, np.ndarray):
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
            raise errors.InvalidArgument(
                f"{field}: {keys.dtype} {list(keys.shape)}; expected uint8 [n, {KEY_BYTES}]")
        return np.ascontiguousarray(keys)
    raw = b"".join(bytes(_key(key)) for key in keys)
    return np.frombuffer(raw, np.uint8).reshape(-1, KEY_BYTES)


def _positions(positions: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(positions)
    if array.size == 0:
        array = array.astype(np.uint32)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (
            array.size and not 0 <= array.min() <= array.max() <= UNKNOWN_POSITION):
        raise errors.InvalidArgument(
            f"positions: {array.dtype} {list(array.shape)}; expected [n] whole numbers of "
            f"0 .. {UNKNOWN_POSITION}")
    return np.ascontiguousarray(array, np.uint32)


def _one_a_key(field: str, array: np.ndarray, keys: int) -> np.ndarray:
    if len(array) != keys:
        raise errors.InvalidArgument(f"{field}: {len(array)}; expected one for each of {keys} keys")
    return array


def _pieces(array: np.ndarray) -> np.ndarray:
    if array.dtype != _capi.BLOCK_PIECE or array.ndim != 1:
        raise errors.InvalidArgument("pieces: expected what blocks.pieces() returns")
    return np.ascontiguousarray(array)


class BlockLease(Handle):
    """A pin on the leading run of keys that was there. Use as a context manager. One thread at a
    time, but that any may wait."""

    _free = "terrace_lease_release"

    def __init__(self, handle: c.c_void_p, client: Client) -> None:
        super().__init__(handle)
        self._client = client  # the session outlives what it handed out

    @property
    def usable(self) -> int:
        """Leading blocks that can be read; shrinks when a load fails."""
        return lib.terrace_lease_usable_chunks(self._h)

    @property
    def expired(self) -> bool:
        return bool(lib.terrace_expired(self._h))

    def wait_parts(self, part: int, timeout_s: float | None = None) -> None:
        """Blocks until the parts up to and with `part` are there, of every usable block.

        Raises DataLoss when a load failed (`usable` has shrunk; the next wait covers the rest),
        NotFound when the lease ran out, Unavailable when the daemon died, DeadlineExceeded.
        """
        call("terrace_wait_parts", self._h, part, _timeout_ms(timeout_s))

    def wait(self, timeout_s: float | None = None) -> None:
        """As wait_parts, for everything."""
        call("terrace_wait_all", self._h, _timeout_ms(timeout_s))

    def ready_parts(self, block: int) -> int:
        """Parts from the first on that are there now, of one block."""
        return max(lib.terrace_ready_parts(self._h, block) - 1, 0)

    def part(self, block: int, part: int) -> np.ndarray:
        """A part in place, uint8 [bytes], a read-only view that is good while the lease is held.
        Raises Unavailable before a wait for it, NotFound after the lease ran out, DataLoss."""
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_block_part", self._h, block, part, c.byref(data), c.byref(size))
        return view_of(data, size, self, writable=False)

    def scatter(self, to: np.ndarray, threads: int = 1) -> None:
        """Copies parts out to pieces of memory. The caller answers for the addresses. Raises as
        part(); the pieces may hold anything then. `threads` 0: as many as may pay."""
        array = _pieces(to)
        call("terrace_scatter", self._h, array.ctypes.data, len(array), threads)

    def renew(self, ttl_s: float = 0) -> None:
        """The lease now runs out `ttl_s` from now; 0 is the daemon's default. Raises NotFound."""
        call("terrace_renew", self._h, _milliseconds("ttl_s", ttl_s))


class BlockStore(Handle):
    """Blocks on their way in. Leaving the context without commit() gives everything back."""

    _free = "terrace_store_free"

    def __init__(self, handle: c.c_void_p, client: Client) -> None:
        super().__init__(handle)
        self._client = client

    @property
    def needed(self) -> np.ndarray:
        """bool [n]: the blocks to write. The others are stored, being stored, or had no room."""
        out = np.zeros(lib.terrace_store_chunk_count(self._h), np.uint8)
        call("terrace_store_needed", self._h, out.ctypes.data, len(out))
        return out.astype(bool)

    def gather(self, source: np.ndarray, threads: int = 1) -> None:
        """Copies pieces of memory into parts and checksums them in the same pass. The pieces of a
        part have its length together; those of blocks that are not needed are skipped."""
        array = _pieces(source)
        call("terrace_gather", self._h, array.ctypes.data, len(array), threads)

    def part(self, block: int, part: int) -> np.ndarray:
        """A part's place in shared memory, uint8 [bytes], to be filled before commit()."""
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_store_block_part", self._h, block, part, c.byref(data), c.byref(size))
        return view_of(data, size, self, writable=True)

    def commit(self) -> CommitReport:
        """Publishes every needed block that is complete and gives the others back. Raises
        InvalidArgument naming the first part that was not written, FailedPrecondition the second
        time."""
        report = _capi.CommitReport()
        call("terrace_store_commit", self._h, c.byref(report))
        why = lib.terrace_last_error().decode(errors="replace") if report.why else ""
        return CommitReport(report.stored, report.already, report.failed, report.stored_bytes, why)


class BlockSpace(Handle):
    """Blocks of one meaning and size: Client.blocks(). Any thread."""

    _free = "terrace_model_free"

    def __init__(self, client: Client, space: str | bytes, part_bytes: Sequence[int]) -> None:
        """Raises InvalidArgument: part_bytes must be 1 .. 439 sizes of at least 1 byte."""
        raw = space.encode() if isinstance(space, str) else bytes(space)
        sizes = [_u64("part_bytes", int(size)) for size in part_bytes]
        handle = c.c_void_p()
        call("terrace_register_blocks", client._h, raw, len(raw), (c.c_uint64 * len(sizes))(*sizes),
             len(sizes), c.byref(handle))
        super().__init__(handle)
        self.client = client
        self.part_bytes = tuple(sizes)

    def keys(self, names: Sequence[bytes], salt: bytes = b"") -> np.ndarray:
        """Keys of the engine's own names: uint8 [len(names), 32]. Other salts, other keys."""
        lengths = np.fromiter(map(len, names), np.uint32, len(names))
        out = np.empty((len(names), KEY_BYTES), np.uint8)
        call("terrace_block_keys", self.client._h, self._h, salt, len(salt), b"".join(names),
             lengths.ctypes.data_as(c.POINTER(c.c_uint32)), len(names), out.ctypes.data)
        return out

    def key(self, name: bytes, salt: bytes = b"") -> bytes:
        """The 32 bytes of one name's key."""
        return self.keys([name], salt).tobytes()

    def find(self, keys: Keys) -> np.ndarray:
        """One record a key: `tier` (0 nowhere, 1 host, 2 nvme, 3 hbm), `bytes`, `eta_us`, `flags` (1
        durable, 2 pinned, RECOMPUTE: see leading_run). A snapshot without side effects."""
        array = _keys(keys)
        out = np.zeros(len(array), _capi.BLOCK_INFO)
        call("terrace_find_blocks", self.client._h, self._h, array.ctypes.data, len(array),
             out.ctypes.data)
        return out

    def acquire(self, keys: Keys, *, ttl_s: float = 0, priority: int = 0) -> BlockLease:
        """Pins the leading run of keys that is there and starts loading what is not in memory, in
        order. `priority` is 0 (demand) .. 4 (background). Raises NotFound when the first is not
        there, ResourceExhausted past the tenant's limits."""
        if not 0 <= priority <= 4:
            raise errors.InvalidArgument(f"priority: {priority}; expected 0 .. 4")
        array, handle = _keys(keys), c.c_void_p()
        call("terrace_acquire_blocks", self.client._h, self._h, array.ctypes.data, len(array),
             _milliseconds("ttl_s", ttl_s), priority, c.byref(handle))
        return BlockLease(handle, self.client)

    def begin(self, keys: Keys, *, cost_us: int = 0, parents: Keys | None = None,
              positions: Sequence[int] | np.ndarray | None = None) -> BlockStore:
        """Reserves room for those that are not there yet. `cost_us` is what making all of them
        took; 0: unknown. `parents`, one a key, are the blocks before them in their prompts, which
        leave memory after them (chain(); NO_PARENT: none, or not known). `positions`, one a key,
        say how many blocks are before each in its prompt (or UNKNOWN_POSITION). Raises
        InvalidArgument naming what has another length than `keys`, or a block that is its own
        parent."""
        array, handle = _keys(keys), c.c_void_p()
        before = None if parents is None else _one_a_key(
            "parents", _keys(parents, "parents"), len(array))
        at = None if positions is None else _one_a_key("positions", _positions(positions),
                                                       len(array))
        call("terrace_begin_blocks", self.client._h, self._h, array.ctypes.data, len(array),
             None if before is None else before.ctypes.data,
             None if at is None else at.ctypes.data, _u64("cost_us", cost_us), c.byref(handle))
        return BlockStore(handle, self.client)


class TransferQueue:
    """Work of an engine that must not wait: jobs on threads of this queue, completions collected.
    Any thread; close() before the client."""

    def __init__(self, threads: int = 1, name: str = "terrace-transfer") -> None:
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._done: list[tuple[object, object, Exception | None]] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending = 0
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True)
                         for i in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def event_fd(self) -> int:
        """Readable while drain() has something. Borrowed."""
        return self._event_fd

    @property
    def pending(self) -> int:
        """Jobs that have not ended."""
        return self._pending

    def submit(self, job_id: object, work: Callable[[], object]) -> None:
        with self._lock:
            self._pending += 1
        self._jobs.put((job_id, work))

    def drain(self) -> list[tuple[object, object, Exception | None]]:
        """(job_id, result, error) of jobs that ended since the last call; error None: it went
        well."""
        with self._lock:
            done, self._done = self._done, []
            if done:
                os.eventfd_read(self._event_fd)
        return done

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Whether every job ended within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._pending == 0, timeout_s)

    def close(self) -> None:
        """Waits for what was submitted."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job_id, work = job
            result, error = None, None
            try:
                result = work()
            except Exception as raised:  # noqa: BLE001 - it is handed to whoever drains
                error = raised
            with self._changed:
                self._done.append((job_id, result, error))
                os.eventfd_write(self._event_fd, 1)
                self._pending -= 1
                self._changed.notify_all()
