"""Exceptions, one per status of the C ABI. A miss is NotFound and is always a valid answer."""

from __future__ import annotations


class TerraceError(Exception):
    """Base of all; `code` is the status code of client/terrace_c.h."""

    code = 2


class InvalidArgument(TerraceError):
    code = 3


class DeadlineExceeded(TerraceError):
    code = 4


class NotFound(TerraceError):
    code = 5


class AlreadyExists(TerraceError):
    code = 6


class PermissionDenied(TerraceError):
    code = 7


class ResourceExhausted(TerraceError):
    """Back-pressure or a configured limit: try again later, or do without."""

    code = 8


class FailedPrecondition(TerraceError):
    """Layout or protocol mismatch, or a lease that has run out."""

    code = 9


class Internal(TerraceError):
    code = 13


class Unavailable(TerraceError):
    """The daemon is gone or stopping: connect again."""

    code = 14


class DataLoss(TerraceError):
    """A checksum did not match, or a load failed: compute the rest."""

    code = 15


BY_CODE: dict[int, type[TerraceError]] = {
    error.code: error for error in TerraceError.__subclasses__()
}
