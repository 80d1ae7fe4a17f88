"""The C ABI of libterrace (client/terrace_c.h) as ctypes signatures; nothing else."""

from __future__ import annotations

import ctypes as c
import os
import pathlib

import numpy as np

from terrace_kv import errors

KEY_BYTES = 32
NO_TIMEOUT = 0xFFFFFFFF

Key = c.c_uint8 * KEY_BYTES


class ConnectOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("socket_path", c.c_char_p), ("tenant", c.c_char_p),
        ("client_name", c.c_char_p), ("call_timeout_ms", c.c_uint32),
        ("room_timeout_ms", c.c_uint32),
    ]


class SpawnOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("directory", c.c_char_p), ("daemon_path", c.c_char_p),
        ("client_name", c.c_char_p), ("host_capacity_bytes", c.c_uint64),
        ("nvme_capacity_bytes", c.c_uint64), ("verify_always", c.c_uint32),
        ("start_timeout_ms", c.c_uint32), ("call_timeout_ms", c.c_uint32),
        ("room_timeout_ms", c.c_uint32),
    ]


class KvGeometry(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("model_id", c.c_char_p), ("dtype", c.c_char_p),
        ("order", c.c_char_p), ("layers", c.c_uint32), ("kv_heads", c.c_uint32),
        ("head_dim", c.c_uint32), ("v_head_dim", c.c_uint32), ("rope_theta", c.c_double),
        ("rope_scaling", c.c_char_p), ("tp_rank", c.c_uint32), ("tp_size", c.c_uint32),
        ("pp_rank", c.c_uint32), ("pp_size", c.c_uint32), ("lora", c.c_char_p),
        ("engine_layout", c.c_char_p),
    ]


class ChunkInfo(c.Structure):
    _fields_ = [
        ("key", Key), ("token_begin", c.c_uint32), ("matched_tokens", c.c_uint32),
        ("object_tokens", c.c_uint32), ("eta_us", c.c_uint32), ("bytes", c.c_uint64),
        ("tier", c.c_uint32), ("flags", c.c_uint32),
    ]


class StoreChunkInfo(c.Structure):
    _fields_ = [
        ("key", Key), ("token_begin", c.c_uint32), ("token_count", c.c_uint32),
        ("needed", c.c_uint32),
    ]


class CommitReport(c.Structure):
    _fields_ = [
        ("stored", c.c_uint32), ("already", c.c_uint32), ("failed", c.c_uint32),
        ("why", c.c_int32), ("stored_bytes", c.c_uint64),
    ]


class ExpectedRead(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("kind", c.c_uint32), ("order", c.c_uint32),
        ("request_id", c.c_uint64), ("eta_us", c.c_uint64), ("deadline_us", c.c_uint64),
        ("confidence", c.c_float), ("tokens", c.c_void_p), ("token_count", c.c_size_t),
        ("extra", c.c_char_p), ("extra_bytes", c.c_size_t), ("keys", c.c_void_p),
        ("key_count", c.c_size_t),
    ]


class HintReport(c.Structure):
    _fields_ = [
        ("accepted", c.c_uint32), ("refused", c.c_uint32), ("keys", c.c_uint64),
        ("why", c.c_int32),
    ]


class VerifyReport(c.Structure):
    _fields_ = [
        ("checked", c.c_uint64), ("corrupt", c.c_uint64), ("skipped", c.c_uint64),
        ("bytes", c.c_uint64),
    ]


# Arrays of these are numpy's: made by whole columns, not by elements.
BLOCK_INFO = np.dtype([("bytes", "<u8"), ("eta_us", "<u4"), ("tier", "u1"), ("flags", "u1"),
                       ("reserved", "<u2")])
BLOCK_PIECE = np.dtype([("block", "<u4"), ("part", "<u4"), ("address", "<u8"), ("bytes", "<u8")])

_P = c.c_void_p
_OUT = c.POINTER(c.c_void_p)
_U32, _U64, _SIZE, _STATUS = c.c_uint32, c.c_uint64, c.c_size_t, c.c_int32

# name: (result, arguments). A result of _STATUS is checked by call().
_FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "terrace_version": (c.c_char_p, []),
    "terrace_last_error": (c.c_char_p, []),
    "terrace_free": (None, [_P]),
    "terrace_connect": (_STATUS, [c.POINTER(ConnectOptions), _OUT]),
    "terrace_spawn": (_STATUS, [c.POINTER(SpawnOptions), _OUT]),
    "terrace_close": (None, [_P]),
    "terrace_alive": (c.c_int32, [_P]),
    "terrace_spawned_pid": (c.c_int32, [_P]),
    "terrace_event_fd": (c.c_int32, [_P]),
    "terrace_server_version": (c.c_char_p, [_P]),
    "terrace_socket_path": (c.c_char_p, [_P]),
    "terrace_tenant": (c.c_char_p, [_P]),
    "terrace_register_kv": (_STATUS, [_P, c.POINTER(KvGeometry), _OUT]),
    "terrace_model_free": (None, [_P]),
    "terrace_model_fingerprint": (_STATUS, [_P, Key]),
    "terrace_grain_keys": (
        _STATUS, [_P, _P, _P, _SIZE, _P, _SIZE, _P, _SIZE, c.POINTER(_SIZE)]),
    "terrace_match_prefix": (_STATUS, [_P, _P, _P, _SIZE, _P, _SIZE, _OUT]),
    "terrace_match_free": (None, [_P]),
    "terrace_match_tokens": (_U32, [_P]),
    "terrace_match_chunk_count": (_SIZE, [_P]),
    "terrace_match_chunk": (_STATUS, [_P, _SIZE, c.POINTER(ChunkInfo)]),
    "terrace_acquire_in": (_STATUS, [_P, _P, _P, _U32, c.c_uint8, c.c_uint8, _OUT]),
    "terrace_lease_release": (None, [_P]),
    "terrace_lease_chunk_count": (_SIZE, [_P]),
    "terrace_lease_chunk": (_STATUS, [_P, _SIZE, c.POINTER(ChunkInfo)]),
    "terrace_lease_usable_chunks": (_U32, [_P]),
    "terrace_lease_usable_tokens": (_U32, [_P]),
    "terrace_wait_layer": (_STATUS, [_P, _U32, _U32]),
    "terrace_wait_all": (_STATUS, [_P, _U32]),
    "terrace_ready_parts": (_U32, [_P, _SIZE]),
    "terrace_part": (_STATUS, [_P, _SIZE, _U32, _U32, _OUT, c.POINTER(_SIZE)]),
    "terrace_read_rows": (_STATUS, [_P, _U32, _U32, _U32, _P, _SIZE, _SIZE]),
    "terrace_renew": (_STATUS, [_P, _U32]),
    "terrace_expired": (c.c_int32, [_P]),
    "terrace_deadline_us": (_U64, [_P]),
    "terrace_begin_store": (_STATUS, [_P, _P, _P, _SIZE, _P, _SIZE, _U64, _OUT]),
    "terrace_store_free": (None, [_P]),
    "terrace_store_chunk_count": (_SIZE, [_P]),
    "terrace_store_chunk_info": (_STATUS, [_P, _SIZE, c.POINTER(StoreChunkInfo)]),
    "terrace_store_write": (_STATUS, [_P, _SIZE, _U32, _U32, _P, _SIZE]),
    "terrace_store_write_rows": (_STATUS, [_P, _SIZE, _U32, _U32, _P, _SIZE, _SIZE, _SIZE]),
    "terrace_store_buffer": (_STATUS, [_P, _SIZE, _U32, _U32, _OUT, c.POINTER(_SIZE)]),
    "terrace_store_commit": (_STATUS, [_P, c.POINTER(CommitReport)]),
    "terrace_store_abort": (_STATUS, [_P]),
    "terrace_register_blocks": (_STATUS, [_P, _P, _SIZE, c.POINTER(_U64), _SIZE, _OUT]),
    "terrace_block_keys": (_STATUS, [_P, _P, _P, _SIZE, _P, c.POINTER(_U32), _SIZE, _P]),
    "terrace_find_blocks": (_STATUS, [_P, _P, _P, _SIZE, _P]),
    "terrace_acquire_blocks": (_STATUS, [_P, _P, _P, _SIZE, _U32, c.c_uint8, _OUT]),
    "terrace_wait_parts": (_STATUS, [_P, _U32, _U32]),
    "terrace_block_part": (_STATUS, [_P, _SIZE, _U32, _OUT, c.POINTER(_SIZE)]),
    "terrace_scatter": (_STATUS, [_P, _P, _SIZE, _U32]),
    "terrace_begin_blocks": (_STATUS, [_P, _P, _P, _SIZE, _P, _P, _U64, _OUT]),
    "terrace_store_needed": (_STATUS, [_P, _P, _SIZE]),
    "terrace_gather": (_STATUS, [_P, _P, _SIZE, _U32]),
    "terrace_store_block_part": (_STATUS, [_P, _SIZE, _U32, _OUT, c.POINTER(_SIZE)]),
    "terrace_hint": (
        _STATUS, [_P, _P, c.POINTER(ExpectedRead), _SIZE, c.POINTER(HintReport)]),
    "terrace_withdraw": (_STATUS, [_P, c.POINTER(_U64), _SIZE, c.POINTER(HintReport)]),
    "terrace_opaque_key": (_STATUS, [_P, _P, _SIZE, Key]),
    "terrace_put": (_STATUS, [_P, Key, _P, _SIZE]),
    "terrace_get": (_STATUS, [_P, Key, _U32, _OUT]),
    "terrace_lease_bytes": (_STATUS, [_P, _OUT, c.POINTER(_SIZE)]),
    "terrace_status_json": (_STATUS, [_P, _OUT]),
    "terrace_ls_json": (_STATUS, [_P, _U64, _U32, _OUT]),
    "terrace_show_json": (_STATUS, [_P, Key, _OUT]),
    "terrace_remove": (_STATUS, [_P, Key]),
    "terrace_pin": (_STATUS, [_P, Key, c.c_int32]),
    "terrace_flush": (_STATUS, [_P, _U32]),
    "terrace_verify": (_STATUS, [_P, c.POINTER(VerifyReport)]),
}


def _library_path() -> pathlib.Path:
    """What the environment names, else what lies in the wheel, else the checkout's build."""
    for variable, suffix in (("TERRACE_LIBRARY", ""), ("TERRACE_BUILD_DIR", "libterrace.so")):
        if os.environ.get(variable):
            named = pathlib.Path(os.environ[variable]) / suffix
            if not named.is_file():
                raise ImportError(f"{variable} is set, but there is no library at {named}")
            return named
    here = pathlib.Path(__file__).resolve()
    candidates = [here.parent / "libterrace.so"]
    if len(here.parents) > 3:
        candidates.append(here.parents[3] / "build" / "release" / "libterrace.so")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ImportError(
        "libterrace.so was not found; build it with `make build`, or set TERRACE_LIBRARY. "
        f"Looked at: {', '.join(map(str, candidates))}"
    )


def _load() -> c.CDLL:
    path = _library_path()
    try:
        library = c.CDLL(str(path))
        functions = {name: getattr(library, name) for name in _FUNCTIONS}
    except (OSError, AttributeError) as error:  # another platform, another version
        raise ImportError(f"{path} is not the libterrace of this package: {error}") from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = functions[name]
        function.restype = result
        function.argtypes = arguments
    return library


lib = _load()


def raise_for(code: int) -> None:
    """Raises the exception of a status code that is not 0, with the library's message."""
    if code == 0:
        return
    message = lib.terrace_last_error().decode(errors="replace")
    error = errors.BY_CODE.get(code, errors.TerraceError)(message)
    error.code = code
    raise error


def call(name: str, *arguments: object) -> None:
    """Calls a function that returns a status; raises when it is not ok."""
    raise_for(getattr(lib, name)(*arguments))


def take_text(name: str, *arguments: object) -> str:
    """Calls a function whose last argument hands out text, and frees the text."""
    out = c.c_void_p()
    call(name, *arguments, c.byref(out))
    try:
        return c.string_at(out.value).decode()
    finally:
        lib.terrace_free(out)
