"""Client, leases and stores: client/terrace.h for Python. Arrays are views of shared memory: they
are valid while their lease is held, and copying them is the caller's choice."""

from __future__ import annotations

import asyncio
import ctypes as c
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from terrace_kv import _capi, errors, hints
from terrace_kv._capi import call, lib
from terrace_kv._handle import Handle, view_of

if TYPE_CHECKING:
    from terrace_kv import blocks

K, V = 0, 1
TIERS = {0: "none", 1: "host", 2: "nvme", 3: "hbm"}
MEMORIES = {"host": 0, "device": 1}


def open(  # noqa: A001 - terrace_kv.open reads as it should
    path: str | os.PathLike[str] | None = None, *, socket: str | os.PathLike[str] | None = None,
    tenant: str | None = None, client_name: str = "terrace_kv", host_capacity_bytes: int = 0,
    nvme_capacity_bytes: int = 0, verify_always: bool = False, daemon: str | None = None,
    call_timeout_s: float = 0, room_timeout_s: float = 0,
) -> Client:
    """Connects to a daemon.

    With `path`, to a private daemon that keeps its state in that directory, started now unless one
    serves it already. Without, to `socket` or the default one (TERRACE_SOCKET,
    $XDG_RUNTIME_DIR/terrace/terraced.sock, /run/terrace/terraced.sock).

    The capacities, `verify_always` and `daemon` (path of terraced; else $TERRACED, next to the
    library, $PATH) are those of a private daemon; 0 means the daemon's default. A client is dead
    when one call takes more than `call_timeout_s` (0: 5 s); a store or load waits for room in host
    memory for `room_timeout_s` (0: 5 s).

    Raises NotFound or Unavailable when no daemon answers, PermissionDenied when this user belongs
    to no tenant, FailedPrecondition when the protocol differs.
    """
    handle = c.c_void_p()
    timeouts = {"call_timeout_ms": _milliseconds("call_timeout_s", call_timeout_s),
                "room_timeout_ms": _milliseconds("room_timeout_s", room_timeout_s)}
    if path is not None:
        if socket is not None or tenant is not None:
            raise errors.InvalidArgument("path starts a private daemon: give no socket or tenant")
        spawn = _capi.SpawnOptions(
            struct_size=c.sizeof(_capi.SpawnOptions), directory=os.fsencode(path),
            daemon_path=_encode(daemon), client_name=client_name.encode(),
            host_capacity_bytes=_u64("host_capacity_bytes", host_capacity_bytes),
            nvme_capacity_bytes=_u64("nvme_capacity_bytes", nvme_capacity_bytes),
            verify_always=int(verify_always), **timeouts)
        call("terrace_spawn", c.byref(spawn), c.byref(handle))
    else:
        connect = _capi.ConnectOptions(
            struct_size=c.sizeof(_capi.ConnectOptions),
            socket_path=None if socket is None else os.fsencode(socket),
            tenant=_encode(tenant), client_name=client_name.encode(), **timeouts)
        call("terrace_connect", c.byref(connect), c.byref(handle))
    return Client(handle)


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _tokens(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    try:
        wide = np.asarray(tokens)
    except ValueError as error:  # lists of different lengths
        raise errors.InvalidArgument(f"tokens: {error}") from error
    if wide.ndim != 1 or (wide.size and not np.issubdtype(wide.dtype, np.integer)):
        raise errors.InvalidArgument("tokens: expected a flat sequence of integers")
    if wide.size and (wide.min() < 0 or wide.max() > 0xFFFFFFFF):
        raise errors.InvalidArgument("tokens: every token must be within 0 .. 4294967295")
    return np.ascontiguousarray(wide, dtype=np.uint32)


def _key(key: bytes | str) -> c.Array:
    try:
        raw = bytes.fromhex(key) if isinstance(key, str) else bytes(key)
    except ValueError as error:
        raise errors.InvalidArgument(f"key: expected 64 hex digits: {error}") from error
    if len(raw) != _capi.KEY_BYTES:
        raise errors.InvalidArgument(
            f"key: expected 32 bytes or 64 hex digits, got {len(raw)} bytes")
    return _capi.Key.from_buffer_copy(raw)


def _u64(name: str, value: int) -> int:
    # ctypes would wrap around silently.
    if not 0 <= value < 2**64:
        raise errors.InvalidArgument(f"{name}: {value} is outside 0 .. 2^64 - 1")
    return value


def _milliseconds(name: str, seconds: float) -> int:
    """Rounded up, so that a little is not nothing: 0 is a default to some calls."""
    if not seconds >= 0:  # NaN too
        raise errors.InvalidArgument(f"{name}: {seconds}; expected 0 or more seconds")
    return min(math.ceil(min(seconds, 2**32) * 1000), _capi.NO_TIMEOUT - 1)


def _timeout_ms(timeout_s: float | None) -> int:
    return _capi.NO_TIMEOUT if timeout_s is None else _milliseconds("timeout_s", timeout_s)


@dataclasses.dataclass(frozen=True)
class KvGeometry:
    """What decides the meaning of KV bytes: two geometries that differ in anything share nothing.

    The bytes of one part (a layer's K or V of one chunk) are [tokens, kv_heads, head_dim] when
    token-major and [kv_heads, tokens, head_dim] when head-major, row-major, without padding.
    """

    model_id: str  # identity of the weights
    dtype: str  # "float32", "float16", "bfloat16", "float8_e4m3fn" ...
    layers: int
    kv_heads: int
    head_dim: int
    v_head_dim: int = 0  # 0: as head_dim
    order: str = "token_major"  # or "head_major"
    rope_theta: float = 0.0
    rope_scaling: str = ""
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    lora: str = ""
    engine_layout: str = ""

    def _to_c(self) -> _capi.KvGeometry:
        values = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            name, value = field.name, values[field.name]
            if field.type == "str":
                if not isinstance(value, str) or "\0" in value:
                    raise errors.InvalidArgument(f"{name}: {value!r} is not a text without NUL")
                values[name] = value.encode()
            elif field.type == "int":
                if not isinstance(value, int) or not 0 <= value <= 0xFFFFFFFF:
                    raise errors.InvalidArgument(
                        f"{name}: {value!r} is not an integer within 0 .. 4294967295")
        return _capi.KvGeometry(struct_size=c.sizeof(_capi.KvGeometry), **values)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One object of a match: a run of tokens of the prompt."""

    key: str  # 64 hex digits
    token_begin: int
    matched_tokens: int  # leading tokens of the object that are the prompt's
    object_tokens: int  # length of the token axis of its parts
    bytes: int  # of all parts
    tier: str  # where the match found it: "hbm", "host" or "nvme"
    eta_us: int  # until it can be read, as the daemon estimates
    durable: bool  # on NVMe
    pinned: bool

    @classmethod
    def _from_c(cls, info: _capi.ChunkInfo) -> Chunk:
        return cls(bytes(info.key).hex(), info.token_begin, info.matched_tokens,
                   info.object_tokens, info.bytes, TIERS[info.tier], info.eta_us,
                   bool(info.flags & 1), bool(info.flags & 2))


class Model(Handle):
    """A registered KV geometry."""

    _free = "terrace_model_free"

    def __init__(self, handle: c.c_void_p, client: Client, geometry: KvGeometry) -> None:
        super().__init__(handle)
        self.client = client
        self.geometry = geometry

    @property
    def fingerprint(self) -> str:
        out = _capi.Key()
        call("terrace_model_fingerprint", self._h, out)
        return bytes(out).hex()

    def grain_keys(self, tokens: Sequence[int] | np.ndarray, extra: bytes = b"") -> list[str]:
        """The chain value after each full grain of 16 tokens, as 64 hex digits each."""
        array = _tokens(tokens)
        capacity = len(array) // 16
        out = np.empty((max(capacity, 1), _capi.KEY_BYTES), np.uint8)
        count = c.c_size_t()
        call("terrace_grain_keys", self.client._h, self._h, array.ctypes.data, len(array), extra,
             len(extra), out.ctypes.data, capacity, c.byref(count))
        return [row.tobytes().hex() for row in out[: count.value]]


class Match(Handle):
    """The longest stored prefix of a prompt. A snapshot: acquire it to be sure of it."""

    _free = "terrace_match_free"

    @property
    def tokens(self) -> int:
        return lib.terrace_match_tokens(self._h)

    @property
    def chunks(self) -> list[Chunk]:
        info = _capi.ChunkInfo()
        chunks = []
        for i in range(lib.terrace_match_chunk_count(self._h)):
            call("terrace_match_chunk", self._h, i, c.byref(info))
            chunks.append(Chunk._from_c(info))
        return chunks


class Lease(Handle):
    """A pin on stored KV. Use as a context manager. It also ends by itself when its time is up.
    Not thread-safe, except that any thread may wait.

    Arrays from part() and payload() are read-only views: after close() their memory belongs to
    others or to nobody, so copy what must outlive the lease.
    """

    _free = "terrace_lease_release"

    def __init__(self, handle: c.c_void_p, client: Client, model: Model | None = None) -> None:
        super().__init__(handle)
        self._client = client
        self._model = model
        self._chunks: list[Chunk] | None = None

    @property
    def chunks(self) -> list[Chunk]:
        if self._chunks is None:
            info = _capi.ChunkInfo()
            self._chunks = []
            for i in range(lib.terrace_lease_chunk_count(self._h)):
                call("terrace_lease_chunk", self._h, i, c.byref(info))
                self._chunks.append(Chunk._from_c(info))
        return self._chunks

    @property
    def usable_tokens(self) -> int:
        """Leading tokens of the prompt that can be read; shrinks when a load fails."""
        return lib.terrace_lease_usable_tokens(self._h)

    @property
    def expired(self) -> bool:
        """Look after reading: bytes read from an expired lease may be anything."""
        return bool(lib.terrace_expired(self._h))

    def wait_layer(self, layer: int, timeout_s: float | None = None) -> None:
        """Blocks until K and V of `layer` are there for every usable chunk.

        Raises DataLoss when a load failed (usable_tokens has shrunk), NotFound when the lease ran
        out, Unavailable when the daemon died, DeadlineExceeded.
        """
        call("terrace_wait_layer", self._h, layer, _timeout_ms(timeout_s))

    def wait(self, timeout_s: float | None = None) -> None:
        """As wait_layer, for everything."""
        call("terrace_wait_all", self._h, _timeout_ms(timeout_s))

    async def wait_layer_async(self, layer: int) -> None:
        """wait_layer for an asyncio program: waits on the session's eventfd, blocks nothing."""
        loop = asyncio.get_running_loop()
        descriptor = os.dup(lib.terrace_event_fd(self._client._h))
        try:
            while True:
                changed = loop.create_future()

                def on_change(future: asyncio.Future[None] = changed) -> None:
                    if not future.done():
                        future.set_result(None)

                loop.add_reader(descriptor, on_change)
                try:
                    self.wait_layer(layer, 0)
                    return
                except errors.DeadlineExceeded:
                    # The eventfd is shared by the session's leases, so it is never drained blindly:
                    # a short timeout covers an edge that another reader took.
                    try:
                        await asyncio.wait_for(changed, 0.01)
                    except TimeoutError:
                        pass
                    _drain(descriptor)
                finally:
                    loop.remove_reader(descriptor)
        finally:
            os.close(descriptor)

    def part(self, chunk: int, layer: int, kv: int) -> np.ndarray:
        """The bytes of one part, a read-only view of shared memory: uint8 [bytes], which
        view(dtype).reshape() makes [object_tokens, kv_heads, head_dim] of a token-major layout and
        [kv_heads, object_tokens, head_dim] of a head-major one. `kv` is K or V; only the chunk's
        first matched_tokens are the prompt's.

        Raises Unavailable before wait_layer succeeded, NotFound after the lease ran out,
        DataLoss when the checksum does not match (daemons with verify = "always").
        """
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_part", self._h, chunk, layer, kv, c.byref(data), c.byref(size))
        return view_of(data, size, self, writable=False)

    def read_rows(self, layer: int, kv: int, tokens: int, address: int, rows: int,
                  stride_bytes: int) -> None:
        """Copies the first `tokens` tokens of a layer's K or V, out of all chunks, to `rows` runs
        (KV heads when head-major, 1 when token-major) that begin `stride_bytes` apart in memory.
        `address` is the first one's, such as array.ctypes.data or tensor.data_ptr(): the caller
        answers for rows * stride_bytes writable bytes behind it.

        Raises as part(), and InvalidArgument when the shape does not fit the layout.
        """
        call("terrace_read_rows", self._h, layer, kv, tokens, address, rows, stride_bytes)

    def payload(self) -> np.ndarray:
        """The bytes of an opaque object (Client.get), uint8 [bytes], a read-only view of shared
        memory. Raises as part()."""
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_lease_bytes", self._h, c.byref(data), c.byref(size))
        return view_of(data, size, self, writable=False)

    def renew(self, ttl_s: float) -> None:
        """The lease now runs out `ttl_s` from now; 0 is the daemon's default. Raises NotFound when
        it has run out already."""
        call("terrace_renew", self._h, _milliseconds("ttl_s", ttl_s))


def _drain(descriptor: int) -> None:
    try:
        os.read(descriptor, 8)
    except BlockingIOError:
        pass


@dataclasses.dataclass(frozen=True)
class StoreChunk:
    """One object of a store; its parts are [token_count, ...] as KvGeometry says."""

    index: int
    token_begin: int
    token_count: int
    needed: bool  # False: stored already, being stored by someone else, or there was no room


@dataclasses.dataclass(frozen=True)
class CommitReport:
    """Chunks by what became of them."""

    stored: int
    already: int  # stored before, or by someone else meanwhile
    failed: int  # no room, not written, or refused
    stored_bytes: int
    why: str = ""  # of the first failed chunk


class Store(Handle):
    """KV on its way in: write every part of every needed chunk, then commit. Leaving the context
    without commit() gives everything back."""

    _free = "terrace_store_free"

    @property
    def chunks(self) -> list[StoreChunk]:
        info = _capi.StoreChunkInfo()
        chunks = []
        for i in range(lib.terrace_store_chunk_count(self._h)):
            call("terrace_store_chunk_info", self._h, i, c.byref(info))
            chunks.append(StoreChunk(i, info.token_begin, info.token_count, bool(info.needed)))
        return chunks

    def write(self, chunk: int, layer: int, kv: int, source: np.ndarray) -> None:
        """Copies a whole part and checksums it in the same pass. `source` has any dtype and shape
        of the part's bytes in the part's order; one that is not contiguous is copied twice.

        Raises InvalidArgument when the size differs, FailedPrecondition when the chunk is not
        needed or the store is over.
        """
        flat = np.ascontiguousarray(source)
        call("terrace_store_write", self._h, chunk, layer, kv, flat.ctypes.data, flat.nbytes)

    def write_rows(self, chunk: int, layer: int, kv: int, address: int, rows: int, row_bytes: int,
                   stride_bytes: int) -> None:
        """As write(), from a part that lies at `address` as `rows` runs of `row_bytes` that begin
        `stride_bytes` apart."""
        call("terrace_store_write_rows", self._h, chunk, layer, kv, address, rows, row_bytes,
             stride_bytes)

    def buffer(self, chunk: int, layer: int, kv: int) -> np.ndarray:
        """The part's place in shared memory, uint8 [bytes], to be filled in place before commit
        and left alone after it."""
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_store_buffer", self._h, chunk, layer, kv, c.byref(data), c.byref(size))
        return view_of(data, size, self, writable=True)

    def commit(self) -> CommitReport:
        """Publishes every needed chunk that is complete and gives the others back.

        Raises InvalidArgument naming the first part that was not written (complete chunks are
        published nevertheless), FailedPrecondition the second time.
        """
        report = _capi.CommitReport()
        call("terrace_store_commit", self._h, c.byref(report))
        why = lib.terrace_last_error().decode(errors="replace") if report.why else ""
        return CommitReport(report.stored, report.already, report.failed, report.stored_bytes, why)


class Client(Handle):
    """A session with a daemon. Thread-safe. After Unavailable, open a new one. Closing it ends its
    leases and stores, and waits for the private daemon it started, which makes what was committed
    durable before it ends."""

    _free = "terrace_close"

    @property
    def alive(self) -> bool:
        return self._handle is not None and bool(lib.terrace_alive(self._handle))

    @property
    def daemon_pid(self) -> int:
        """Of the private daemon this client started; 0 when it started none."""
        return lib.terrace_spawned_pid(self._h)

    @property
    def socket_path(self) -> pathlib.Path:
        return pathlib.Path(os.fsdecode(lib.terrace_socket_path(self._h)))

    @property
    def tenant(self) -> str:
        return lib.terrace_tenant(self._h).decode()

    def register_kv(self, geometry: KvGeometry) -> Model:
        """Raises InvalidArgument naming the field that makes no sense."""
        handle = c.c_void_p()
        call("terrace_register_kv", self._h, c.byref(geometry._to_c()), c.byref(handle))
        return Model(handle, self, geometry)

    def match_prefix(self, model: Model, tokens: Sequence[int] | np.ndarray,
                     extra: bytes = b"") -> Match:
        """The longest stored prefix of `tokens` (each within u32), at a grain of 16 tokens. `extra`
        is hashed into the keys: prompts with different ones share nothing. No side effect.

        A miss is a match of 0 tokens. Raises InvalidArgument naming tokens, Unavailable.
        """
        array, handle = _tokens(tokens), c.c_void_p()
        call("terrace_match_prefix", self._h, model._h, array.ctypes.data, len(array), extra,
             len(extra), c.byref(handle))
        return Match(handle)

    def acquire(self, model: Model, match: Match, *, ttl_s: float = 0, priority: int = 0,
                memory: str = "host") -> Lease:
        """Pins what was matched and starts bringing up what is not in memory, in layer order.

        `ttl_s` 0 is the daemon's default; `priority` is 0 (demand) .. 4 (background). `memory` is
        "host", or "device" to have it in the HBM tier, where views then point to. What was evicted
        since the match shortens the lease's usable_tokens. Raises NotFound when nothing is left,
        FailedPrecondition when it was stored with another layout or there is no HBM tier,
        ResourceExhausted past the tenant's limits.
        """
        if memory not in MEMORIES:
            raise errors.InvalidArgument(f'memory: {memory!r}; expected "host" or "device"')
        if not 0 <= priority <= 4:
            raise errors.InvalidArgument(f"priority: {priority}; expected 0 .. 4")
        handle = c.c_void_p()
        call("terrace_acquire_in", self._h, model._h, match._h, _milliseconds("ttl_s", ttl_s),
             priority, MEMORIES[memory], c.byref(handle))
        return Lease(handle, self, model)

    def begin_store(self, model: Model, tokens: Sequence[int] | np.ndarray, *, extra: bytes = b"",
                    cost_us: int = 0) -> Store:
        """Reserves space for the chunks of `tokens` that are not stored yet. A tail of fewer than
        16 tokens is left out. `cost_us` is the time it took to compute all of them."""
        array, handle = _tokens(tokens), c.c_void_p()
        call("terrace_begin_store", self._h, model._h, array.ctypes.data, len(array), extra,
             len(extra), _u64("cost_us", cost_us), c.byref(handle))
        return Store(handle)

    def blocks(self, space: str | bytes, part_bytes: Sequence[int]) -> blocks.BlockSpace:
        """Objects under an engine's own keys: see terrace_kv.blocks. `space` holds everything that
        decides what the bytes mean; `part_bytes` are the sizes of an object's parts."""
        from terrace_kv.blocks import BlockSpace  # which builds on this module

        return BlockSpace(self, space, part_bytes)

    def hint(self, reads: Sequence[hints.ExpectedRead],
             model: Model | None = None) -> hints.HintReport:
        """Says what will be read and when: what is wanted soon then stays in memory, or is brought
        there meanwhile. Never waits for a disk, promises nothing; ends with this client. `model`
        is that of the prompts. Raises InvalidArgument naming the field."""
        tokens = [_tokens(() if read.tokens is None else read.tokens) for read in reads]
        keys = [b"".join(bytes(_key(key)) for key in read.keys) for read in reads]
        array = (_capi.ExpectedRead * len(reads))(*map(hints.to_c, reads, tokens, keys))
        report = _capi.HintReport()
        call("terrace_hint", self._h, None if model is None else model._h, array, len(reads),
             c.byref(report))
        return hints.report_of(report)

    def withdraw(self, request_ids: Sequence[int]) -> hints.HintReport:
        """Those requests are gone. Unknown ones are fine."""
        ids = [_u64("request_ids", request_id) for request_id in request_ids]
        report = _capi.HintReport()
        call("terrace_withdraw", self._h, (c.c_uint64 * len(ids))(*ids), len(ids), c.byref(report))
        return hints.report_of(report)

    def opaque_key(self, name: str | bytes) -> str:
        """The key of this tenant's object of that name, for put() and get(): 64 hex digits."""
        raw = name.encode() if isinstance(name, str) else name
        out = _capi.Key()
        call("terrace_opaque_key", self._h, raw, len(raw), out)
        return bytes(out).hex()

    def put(self, key: bytes | str, data: bytes | bytearray | memoryview | np.ndarray) -> None:
        """Stores bytes, or those of an array, under a key. Raises AlreadyExists, InvalidArgument
        when they are more than the host tier holds, ResourceExhausted when there is no room."""
        array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        flat = np.ascontiguousarray(array)
        call("terrace_put", self._h, _key(key), flat.ctypes.data, flat.nbytes)

    def get(self, key: bytes | str, *, ttl_s: float = 0) -> Lease:
        """Pins the object of a key; wait() and read payload(). Raises NotFound."""
        handle = c.c_void_p()
        call("terrace_get", self._h, _key(key), _milliseconds("ttl_s", ttl_s), c.byref(handle))
        return Lease(handle, self)

    # What operators do; the `terrace` command does the same.

    def status(self) -> dict:
        """Tiers, sessions, leases and counters, as `terrace --json status` prints them."""
        return json.loads(_capi.take_text("terrace_status_json", self._h))

    def ls(self) -> list[dict]:
        """All objects of this tenant, each as show() describes it."""
        objects, cursor = [], 0
        while True:
            page = json.loads(_capi.take_text("terrace_ls_json", self._h, cursor, 1000))
            objects += page["objects"]
            cursor = page["next_cursor"]
            if cursor == 0:
                return objects

    def show(self, key: bytes | str) -> dict:
        """One object: kind, tokens, bytes, tiers, pinned. Raises NotFound."""
        return json.loads(_capi.take_text("terrace_show_json", self._h, _key(key)))

    def rm(self, key: bytes | str) -> None:
        """Removes an object from all tiers. Raises NotFound."""
        call("terrace_remove", self._h, _key(key))

    def pin(self, key: bytes | str, pinned: bool = True) -> None:
        """Keeps an object from eviction, or no longer. Raises NotFound."""
        call("terrace_pin", self._h, _key(key), int(pinned))

    def flush(self, timeout_s: float | None = None) -> None:
        """Waits until everything committed so far is durable on NVMe. Raises DeadlineExceeded."""
        call("terrace_flush", self._h, _timeout_ms(timeout_s))

    def verify(self) -> dict[str, int]:
        """Reads everything of this tenant back and checks it: how many objects were `checked`,
        `corrupt` and `skipped`, and their `bytes`."""
        report = _capi.VerifyReport()
        call("terrace_verify", self._h, c.byref(report))
        return {name: getattr(report, name) for name, _ in report._fields_}
