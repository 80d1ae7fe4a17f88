"""Owners of what the C ABI hands out: handles, and memory that is only borrowed."""

from __future__ import annotations

import ctypes as c

import numpy as np

from terrace_kv import errors
from terrace_kv._capi import lib


class Handle:
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


def view_of(data: c.c_void_p, size: c.c_size_t, owner: object, *, writable: bool) -> np.ndarray:
    """uint8 [size] over foreign memory. What others read too cannot be made writable again."""
    if size.value == 0:
        return np.empty(0, np.uint8)
    buffer = (c.c_uint8 * size.value).from_address(data.value)
    buffer._owner = owner  # the lease lives as long as any view of it
    return np.frombuffer(buffer if writable else memoryview(buffer).toreadonly(), np.uint8)
