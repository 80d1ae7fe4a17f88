"""LMCache's second level in terrace: a connector for its `native_plugin` adapter.

    --l2-adapter '{"type": "native_plugin", "module_path": "terrace_kv.connectors.lmcache",
                   "class_name": "TerraceConnector", "adapter_params": {}}'

Values go between LMCache's memory and the daemon's shared memory, with one call to the daemon for a
batch of keys. Needs nothing of LMCache: docs/engines/lmcache.md.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import terrace_kv
from terrace_kv import Client, errors
from terrace_kv.blocks import BlockLease, BlockSpace, pieces
from terrace_kv.connectors.session import BlockSession, SpaceLayout

# Moved at once: what is stored waits for room in such portions, what is loaded is copied out while
# the next ones come up.
PORTION_BYTES = 32 << 20
PORTIONS_AHEAD = 4
# Sizes of values that a tenant's connectors remember for each other: one a model and rank.
MAX_SIZES = 32
SPACE = "lmcache object"

# (id, whether all of it went well, what did not, and for each key whether it was there)
Completion = tuple[int, bool, str, list[bool] | None]

_log = logging.getLogger(__name__)


class TerraceConnector:
    """What LMCache's NativeConnectorL2Adapter asks of a connector. No call waits; any thread."""

    def __init__(self, socket: str | None = None, tenant: str | None = None,
                 path: str | None = None, num_workers: int = 2, copy_threads: int = 0,
                 host_capacity_gb: float = 0, nvme_capacity_gb: float = 0) -> None:
        """`adapter_params`: a daemon's `socket` (None: the default one) and `tenant`, or `path` of
        a private daemon with its capacities (0: the daemon's defaults). `num_workers` batches move
        at the same time, each with `copy_threads` (0: as many as may pay). Raises InvalidArgument,
        and what terrace_kv.open raises."""
        if not 1 <= num_workers <= 64:
            raise errors.InvalidArgument(f"num_workers: {num_workers}; expected 1 .. 64")
        if not 0 <= copy_threads <= 64:
            raise errors.InvalidArgument(f"copy_threads: {copy_threads}; expected 0 .. 64")

        gib = 1 << 30

        def connect(name: str) -> Client:
            return terrace_kv.open(
                path, socket=socket, tenant=tenant, client_name=name,
                host_capacity_bytes=int(host_capacity_gb * gib) if path else 0,
                nvme_capacity_bytes=int(nvme_capacity_gb * gib) if path else 0)

        self._spaces = _Spaces(lambda: connect("lmcache"))
        # Of its own: a lookup must not wait behind a store that waits for room.
        self._lookup_spaces = _Spaces(lambda: connect("lmcache lookups"))
        self._copy_threads = copy_threads
        self._sizes: list[int] = []
        self._sizes_lock = threading.Lock()
        self._movers = ThreadPoolExecutor(num_workers, "terrace-lmcache")
        self._finder = ThreadPoolExecutor(1, "terrace-lmcache-find")
        self._lock = threading.Lock()
        self._last_id = 0
        self._done: list[Completion] = []
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    # --- what LMCache calls ----------------------------------------------------------------------

    def event_fd(self) -> int:
        """Readable while drain_completions() has something. Borrowed."""
        return self._event_fd

    def submit_batch_set(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> int:
        """Stores; a key that is there already stays as it is, for keys name contents."""
        return self._submit(self._movers, lambda: self._store(keys, buffers), None)

    def submit_batch_get(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> int:
        """Fills each buffer whose value is there and has its length."""
        return self._submit(self._movers, lambda: self._load(keys, buffers), len(keys))

    def submit_batch_exists(self, keys: Sequence[str]) -> int:
        return self._submit(self._finder, lambda: ("", self._find(keys)), len(keys))

    def submit_batch_delete(self, keys: Sequence[str]) -> int:
        return self._submit(self._movers, lambda: ("", self._delete(keys)), len(keys))

    def drain_completions(self) -> list[Completion]:
        with self._lock:
            done, self._done = self._done, []
            if done:
                os.eventfd_read(self._event_fd)
        return done

    def close(self) -> None:
        """Waits for what was submitted."""
        self._movers.shutdown()
        self._finder.shutdown()
        self._lookup_spaces.close()
        self._spaces.close()
        if self._event_fd >= 0:
            os.close(self._event_fd)
            self._event_fd = -1

    # --- on threads of its own -------------------------------------------------------------------

    def _submit(self, threads: ThreadPoolExecutor,
                work: Callable[[], tuple[str, list[bool] | None]], keys: int | None) -> int:
        with self._lock:
            self._last_id += 1
            job_id = self._last_id
        threads.submit(self._run, job_id, work, keys)
        return job_id

    def _run(self, job_id: int, work: Callable[[], tuple[str, list[bool] | None]],
             keys: int | None) -> None:
        try:
            error, found = work()
        except Exception as raised:  # noqa: BLE001 - LMCache is told, and computes
            error, found = str(raised), None if keys is None else [False] * keys
            if isinstance(raised, errors.TerraceError):
                self._spaces.lost(raised)
                self._lookup_spaces.lost(raised)
            else:
                _log.exception("terrace: a batch of LMCache failed")
        with self._lock:
            self._done.append((job_id, not error, error, found))
            os.eventfd_write(self._event_fd, 1)

    def _store(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> tuple[str, None]:
        error = ""
        for space, portion in self._portions(buffers):
            self._remember(space.part_bytes[0])
            with space.begin(_names(space, keys, portion)) as store:
                index = np.flatnonzero(store.needed)
                store.gather(_pieces(index, [buffers[portion[i]] for i in index]),
                             self._copy_threads)
                report = store.commit()
            if report.failed:
                error = f"{report.failed} of {len(portion)} values: {report.why}"
        return error, None

    def _load(self, keys: Sequence[str], buffers: Sequence[memoryview]) -> tuple[str, list[bool]]:
        loaded = [False] * len(keys)
        ahead: list[tuple[BlockLease, list[int]]] = []
        for space, portion in self._portions(buffers):
            names = _names(space, keys, portion)
            there = np.flatnonzero(space.find(names)["tier"])
            while len(there) > 0:
                if len(ahead) >= PORTIONS_AHEAD:
                    self._take_out([ahead.pop(0)], buffers, loaded)
                try:
                    lease = space.acquire(names[there])
                except errors.NotFound:  # since
                    there = there[1:]
                    continue
                except errors.ResourceExhausted:
                    if not ahead:
                        return "no room to bring values up", loaded
                    self._take_out(ahead, buffers, loaded)  # it may be what this batch holds
                    continue
                got = lease.usable
                ahead.append((lease, [portion[i] for i in there[:got]]))
                there = there[got:]
        self._take_out(ahead, buffers, loaded)
        return "", loaded

    def _take_out(self, leases: list[tuple[BlockLease, list[int]]], buffers: Sequence[memoryview],
                  loaded: list[bool]) -> None:
        for lease, portion in leases:
            with lease:
                while True:
                    count = lease.usable
                    try:
                        lease.wait_parts(1)
                        into = [buffers[i] for i in portion[:count]]
                        lease.scatter(_pieces(np.arange(count), into), self._copy_threads)
                        break
                    except errors.DataLoss:
                        if lease.usable >= count:
                            raise
                for i in portion[:count]:
                    loaded[i] = True
        leases.clear()

    def _find(self, keys: Sequence[str]) -> list[bool]:
        found = np.zeros(len(keys), bool)
        encoded = [key.encode() for key in keys]
        known = 0
        while not found.all():
            sizes = self._known_sizes(known)
            for size in sizes[known:]:
                space = self._lookup_spaces.of(size)
                found |= space.find(space.keys(encoded))["tier"] != 0
            if len(sizes) == known:
                break
            known = len(sizes)
        return found.tolist()

    def _delete(self, keys: Sequence[str]) -> list[bool]:
        deleted = [False] * len(keys)
        for size in self._known_sizes(0):
            space = self._spaces.of(size)
            for i, key in enumerate(keys):
                try:
                    space.client.rm(space.key(key.encode()))
                    deleted[i] = True
                except errors.NotFound:
                    pass
        return deleted

    def _portions(self, buffers: Sequence[memoryview]) -> Iterator[tuple[BlockSpace, list[int]]]:
        """Indexes of buffers of one size, some at a time."""
        by_size: dict[int, list[int]] = {}
        for i, buffer in enumerate(buffers):
            by_size.setdefault(memoryview(buffer).nbytes, []).append(i)
        for size, indexes in by_size.items():
            step = max(PORTION_BYTES // max(size, 1), 1)
            for begin in range(0, len(indexes), step):
                yield self._spaces.of(size), indexes[begin : begin + step]

    # --- sizes -----------------------------------------------------------------------------------
    # A key tells nothing of its value's size, and a size is a space of its own. So those in use are
    # stored as well, for connectors that have only lookups to go by.

    def _remember(self, size: int) -> None:
        with self._sizes_lock:
            if size in self._sizes:
                return
            client = self._spaces.of(size).client
            self._read_sizes(client)
            while size not in self._sizes and len(self._sizes) < MAX_SIZES:
                key = client.opaque_key(f"lmcache size {len(self._sizes)}")
                try:
                    client.put(key, str(size).encode())
                    client.pin(key)
                except errors.AlreadyExists:
                    pass
                self._read_sizes(client)

    def _known_sizes(self, count: int) -> list[int]:
        """All sizes known; looks for more when there are no more than `count` of them."""
        with self._sizes_lock:
            if len(self._sizes) <= count:
                self._read_sizes(self._lookup_spaces.of(1).client)
            return list(self._sizes)

    def _read_sizes(self, client: Client) -> None:
        while len(self._sizes) < MAX_SIZES:
            try:
                with client.get(client.opaque_key(f"lmcache size {len(self._sizes)}")) as lease:
                    lease.wait()
                    self._sizes.append(int(bytes(lease.payload())))
            except (errors.NotFound, errors.DataLoss):
                return


class _Spaces:
    """Spaces of one connection, one a size. Any thread."""

    def __init__(self, open_client: Callable[[], Client]) -> None:
        self._session = BlockSession(open_client, [SpaceLayout(SPACE, (1,))])
        self._lock = threading.Lock()
        self._base: tuple[BlockSpace, ...] | None = None  # that the others are of
        self._by_size: dict[int, BlockSpace] = {}

    def of(self, size: int) -> BlockSpace:
        """Raises Unavailable while there is no daemon."""
        base = self._session.spaces
        if base is None:
            raise errors.Unavailable("there is no daemon")
        with self._lock:
            if base is not self._base:
                self._base, self._by_size = base, {}
            if size not in self._by_size:
                self._by_size[size] = base[0].client.blocks(SPACE, [size])
            return self._by_size[size]

    def lost(self, error: errors.TerraceError) -> None:
        """To be told of every error of a call."""
        base = self._session.spaces
        if base is not None and not base[0].client.alive:
            self._session.lost(error, base)

    def close(self) -> None:
        self._session.close()
        self._base, self._by_size = None, {}


def _names(space: BlockSpace, keys: Sequence[str], indexes: list[int]) -> np.ndarray:
    return space.keys([keys[i].encode() for i in indexes])


def _pieces(blocks: np.ndarray, buffers: Sequence[memoryview]) -> np.ndarray:
    """One piece a block: all of its buffer."""
    views = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
    return pieces(blocks, 1, np.array([view.ctypes.data for view in views], np.uint64),
                  np.array([view.nbytes for view in views], np.uint64))
