"""Client, leases and stores: client/terrace.h for Python. Arrays are views of shared memory: they
are valid while their lease is held, and copying them is the caller's choice."""

from __future__ import annotations

import asyncio
import ctypes as c
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from terrace_kv import _capi, errors
from terrace_kv._capi import call, lib

K, V = 0, 1
TIERS = {0: "none", 1: "host", 2: "nvme"}


def open(  # noqa: A001 - terrace_kv.open reads as it should
    path: str | os.PathLike[str] | None = None, *, socket: str | os.PathLike[str] | None = None,
    tenant: str | None = None, client_name: str = "terrace_kv", host_capacity_bytes: int = 0,
    nvme_capacity_bytes: int = 0, verify_always: bool = False, daemon: str | None = None,
) -> Client:
    """Connects to a daemon.

    With `path`, to a private daemon that keeps its state in that directory, started now unless one
    serves it already. Without, to `socket` or the default one (TERRACE_SOCKET,
    $XDG_RUNTIME_DIR/terrace/terraced.sock, /run/terrace/terraced.sock).

    Raises NotFound or Unavailable when no daemon answers, PermissionDenied when this user belongs
    to no tenant, FailedPrecondition when the protocol differs.
    """
    handle = c.c_void_p()
    if path is not None:
        if socket is not None or tenant is not None:
            raise errors.InvalidArgument("path starts a private daemon: give no socket or tenant")
        spawn = _capi.SpawnOptions(
            struct_size=c.sizeof(_capi.SpawnOptions), directory=os.fsencode(path),
            daemon_path=_encode(daemon), client_name=client_name.encode(),
            host_capacity_bytes=host_capacity_bytes, nvme_capacity_bytes=nvme_capacity_bytes,
            verify_always=int(verify_always))
        call("terrace_spawn", c.byref(spawn), c.byref(handle))
    else:
        connect = _capi.ConnectOptions(
            struct_size=c.sizeof(_capi.ConnectOptions),
            socket_path=None if socket is None else os.fsencode(socket),
            tenant=_encode(tenant), client_name=client_name.encode())
        call("terrace_connect", c.byref(connect), c.byref(handle))
    return Client(handle)


def _encode(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _tokens(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    wide = np.asarray(tokens)
    if wide.ndim != 1 or (wide.size and not np.issubdtype(wide.dtype, np.integer)):
        raise errors.InvalidArgument("tokens: expected a flat sequence of integers")
    if wide.size and (wide.min() < 0 or wide.max() > 0xFFFFFFFF):
        raise errors.InvalidArgument("tokens: every token must be within 0 .. 4294967295")
    return np.ascontiguousarray(wide, dtype=np.uint32)


def _key(key: bytes | str) -> c.Array:
    raw = bytes.fromhex(key) if isinstance(key, str) else bytes(key)
    if len(raw) != _capi.KEY_BYTES:
        raise errors.InvalidArgument(f"key: expected 32 bytes or 64 hex digits, got {len(raw)} bytes")
    return _capi.Key.from_buffer_copy(raw)


@dataclasses.dataclass(frozen=True)
class KvGeometry:
    """What decides the meaning of KV bytes. Field by field as in config/kv_geometry.h."""

    model_id: str
    dtype: str
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
        for name, value in values.items():
            if isinstance(value, str):
                values[name] = value.encode()
            elif isinstance(value, int) and not 0 <= value <= 0xFFFFFFFF:
                raise errors.InvalidArgument(f"{name}: {value} is outside 0 .. 4294967295")
        return _capi.KvGeometry(struct_size=c.sizeof(_capi.KvGeometry), **values)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One object of a match: a run of tokens of the prompt."""

    key: str
    token_begin: int
    matched_tokens: int  # leading tokens of the object that are the prompt's
    object_tokens: int  # length of the token axis of its parts
    bytes: int
    tier: str
    eta_us: int
    durable: bool
    pinned: bool

    @classmethod
    def _from_c(cls, info: _capi.ChunkInfo) -> Chunk:
        return cls(bytes(info.key).hex(), info.token_begin, info.matched_tokens,
                   info.object_tokens, info.bytes, TIERS[info.tier], info.eta_us,
                   bool(info.flags & 1), bool(info.flags & 2))


class _Handle:
    """Owner of one handle of the C ABI."""

    _free: str

    def __init__(self, handle: c.c_void_p) -> None:
        self._handle: c.c_void_p | None = handle

    @property
    def _h(self) -> c.c_void_p:
        if self._handle is None:
            raise errors.FailedPrecondition(f"this {type(self).__name__} is closed")
        return self._handle

    def close(self) -> None:
        """Gives the handle back; calling it twice is fine."""
        if self._handle is not None:
            getattr(lib, self._free)(self._handle)
            self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and lib is not None:
            self.close()


class Model(_Handle):
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
        """The chain value after each full grain of 16 tokens."""
        array = _tokens(tokens)
        capacity = len(array) // 16
        out = np.empty((max(capacity, 1), _capi.KEY_BYTES), np.uint8)
        count = c.c_size_t()
        call("terrace_grain_keys", self.client._h, self._h, array.ctypes.data, len(array), extra,
             len(extra), out.ctypes.data, capacity, c.byref(count))
        return [row.tobytes().hex() for row in out[: count.value]]


class Match(_Handle):
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


class Lease(_Handle):
    """A pin on stored KV. Use as a context manager; views die with it."""

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
        """Blocks until K and V of `layer` are there for every chunk.

        Raises DataLoss when a load failed, Unavailable when the daemon died, DeadlineExceeded.
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
        """The bytes of one part, uint8, a view of shared memory. `kv` is K or V.

        Raises FailedPrecondition before wait_layer succeeded or after the lease ran out, DataLoss
        when the checksum does not match (daemons with verify = "always").
        """
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_part", self._h, chunk, layer, kv, c.byref(data), c.byref(size))
        return _view(data, size, self)

    def read_rows(self, layer: int, kv: int, tokens: int, address: int, rows: int,
                  stride_bytes: int) -> None:
        """Copies the first `tokens` tokens of a layer's K or V, out of all chunks, to `rows` runs
        (KV heads when head-major, 1 when token-major) that begin `stride_bytes` apart in memory.

        Raises as part(), and InvalidArgument when the shape does not fit the layout.
        """
        call("terrace_read_rows", self._h, layer, kv, tokens, address, rows, stride_bytes)

    def payload(self) -> np.ndarray:
        """The bytes of an opaque object (Client.get), uint8, a view of shared memory."""
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_lease_bytes", self._h, c.byref(data), c.byref(size))
        return _view(data, size, self)

    def renew(self, ttl_s: float) -> None:
        call("terrace_renew", self._h, int(ttl_s * 1000))


def _timeout_ms(timeout_s: float | None) -> int:
    return _capi.NO_TIMEOUT if timeout_s is None else min(int(timeout_s * 1000), 0xFFFFFFFE)


def _drain(descriptor: int) -> None:
    try:
        os.read(descriptor, 8)
    except BlockingIOError:
        pass


def _view(data: c.c_void_p, size: c.c_size_t, owner: object) -> np.ndarray:
    if size.value == 0:
        return np.empty(0, np.uint8)
    buffer = (c.c_uint8 * size.value).from_address(data.value)
    buffer._owner = owner  # the lease lives as long as any view of it
    return np.frombuffer(buffer, np.uint8)


@dataclasses.dataclass(frozen=True)
class StoreChunk:
    index: int
    token_begin: int
    token_count: int
    needed: bool  # False: stored already, or being stored by someone else


@dataclasses.dataclass(frozen=True)
class CommitReport:
    stored: int
    already: int
    failed: int
    stored_bytes: int


class Store(_Handle):
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
        """Copies a whole part, contiguous, and checksums it in the same pass."""
        flat = np.ascontiguousarray(source)
        call("terrace_store_write", self._h, chunk, layer, kv, flat.ctypes.data, flat.nbytes)

    def write_rows(self, chunk: int, layer: int, kv: int, address: int, rows: int, row_bytes: int,
                   stride_bytes: int) -> None:
        """Copies a part that lies in memory as `rows` runs of `row_bytes`, `stride_bytes` apart."""
        call("terrace_store_write_rows", self._h, chunk, layer, kv, address, rows, row_bytes,
             stride_bytes)

    def buffer(self, chunk: int, layer: int, kv: int) -> np.ndarray:
        """The part's place in shared memory, uint8, to be filled in place before commit."""
        data, size = c.c_void_p(), c.c_size_t()
        call("terrace_store_buffer", self._h, chunk, layer, kv, c.byref(data), c.byref(size))
        return _view(data, size, self)

    def commit(self) -> CommitReport:
        report = _capi.CommitReport()
        call("terrace_store_commit", self._h, c.byref(report))
        return CommitReport(report.stored, report.already, report.failed, report.stored_bytes)


class Client(_Handle):
    """A session with a daemon. Thread-safe. After Unavailable, open a new one."""

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
        handle = c.c_void_p()
        call("terrace_register_kv", self._h, c.byref(geometry._to_c()), c.byref(handle))
        return Model(handle, self, geometry)

    def match_prefix(self, model: Model, tokens: Sequence[int] | np.ndarray,
                     extra: bytes = b"") -> Match:
        """The longest stored prefix, at a grain of 16 tokens. No side effect."""
        array, handle = _tokens(tokens), c.c_void_p()
        call("terrace_match_prefix", self._h, model._h, array.ctypes.data, len(array), extra,
             len(extra), c.byref(handle))
        return Match(handle)

    def acquire(self, model: Model, match: Match, *, ttl_s: float = 0, priority: int = 0) -> Lease:
        """Pins what was matched and starts bringing up what is not in memory, in layer order."""
        handle = c.c_void_p()
        call("terrace_acquire", self._h, model._h, match._h, int(ttl_s * 1000), priority,
             c.byref(handle))
        return Lease(handle, self, model)

    def begin_store(self, model: Model, tokens: Sequence[int] | np.ndarray, *, extra: bytes = b"",
                    cost_us: int = 0) -> Store:
        """Reserves space for the chunks of `tokens` that are not stored yet. A tail of fewer than
        16 tokens is left out. `cost_us` is the time it took to compute all of them."""
        array, handle = _tokens(tokens), c.c_void_p()
        call("terrace_begin_store", self._h, model._h, array.ctypes.data, len(array), extra,
             len(extra), cost_us, c.byref(handle))
        return Store(handle)

    def opaque_key(self, name: str | bytes) -> str:
        raw = name.encode() if isinstance(name, str) else name
        out = _capi.Key()
        call("terrace_opaque_key", self._h, raw, len(raw), out)
        return bytes(out).hex()

    def put(self, key: bytes | str, data: bytes | np.ndarray) -> None:
        """Stores bytes under a key. Raises AlreadyExists."""
        flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
        call("terrace_put", self._h, _key(key), flat.ctypes.data, flat.nbytes)

    def get(self, key: bytes | str, *, ttl_s: float = 0) -> Lease:
        """Pins the object of a key; wait() and read payload(). Raises NotFound."""
        handle = c.c_void_p()
        call("terrace_get", self._h, _key(key), int(ttl_s * 1000), c.byref(handle))
        return Lease(handle, self)

    # What operators do; the `terrace` command does the same.

    def status(self) -> dict:
        return json.loads(_capi.take_text("terrace_status_json", self._h))

    def ls(self) -> list[dict]:
        objects, cursor = [], 0
        while True:
            page = json.loads(_capi.take_text("terrace_ls_json", self._h, cursor, 1000))
            objects += page["objects"]
            cursor = page["next_cursor"]
            if cursor == 0:
                return objects

    def show(self, key: bytes | str) -> dict:
        return json.loads(_capi.take_text("terrace_show_json", self._h, _key(key)))

    def rm(self, key: bytes | str) -> None:
        call("terrace_remove", self._h, _key(key))

    def pin(self, key: bytes | str, pinned: bool = True) -> None:
        call("terrace_pin", self._h, _key(key), int(pinned))

    def flush(self, timeout_s: float | None = None) -> None:
        """Waits until everything committed so far is durable on NVMe."""
        call("terrace_flush", self._h, _timeout_ms(timeout_s))

    def verify(self) -> dict[str, int]:
        """Reads everything of this tenant back and checks it."""
        report = _capi.VerifyReport()
        call("terrace_verify", self._h, c.byref(report))
        return {name: getattr(report, name) for name, _ in report._fields_}
