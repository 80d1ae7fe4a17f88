"""A connection of an engine that outlives the daemon: what a connector asks for blocks."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from terrace_kv import errors
from terrace_kv.blocks import BlockSpace
from terrace_kv.client import Client
from terrace_kv.client import open as open_client

CALL_TIMEOUT_S = 0.5  # of one call; past it the engine computes instead
ROOM_TIMEOUT_S = 0.02  # a store that finds no room soon is not worth a decode step
RETRY_S = 0.5

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SpaceLayout:
    """The arguments of Client.blocks()."""

    space: str
    part_bytes: tuple[int, ...]


def connect(socket: str | None, tenant: str | None, client_name: str,
            room_timeout_s: float = ROOM_TIMEOUT_S) -> Client:
    """A client whose calls give up early. Raises what terrace_kv.open raises."""
    return open_client(socket=socket, tenant=tenant, client_name=client_name,
                       call_timeout_s=CALL_TIMEOUT_S, room_timeout_s=room_timeout_s)


class BlockSession:
    """Spaces of blocks while there is a daemon, nothing while there is none. A thread of its
    own sees that the daemon is gone and connects anew, so that no caller ever waits for one. Any
    thread."""

    def __init__(self, open_client: Callable[[], Client], layouts: Sequence[SpaceLayout],
                 required: bool = True) -> None:
        """Connects at once: raises what `open_client` and Client.blocks() raise. Where a daemon is
        not `required`, one that is gone or slow to answer is waited for by the session instead."""
        self._open = open_client
        self._layouts = tuple(layouts)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._client: Client | None = None
        self._spaces: tuple[BlockSpace, ...] | None = None
        try:
            self._connect()
        except (errors.NotFound, errors.Unavailable) as error:
            if required:
                raise
            self._warn(error)
        threading.Thread(target=self._watch, name="terrace-session", daemon=True).start()

    @property
    def spaces(self) -> tuple[BlockSpace, ...] | None:
        """One a layout; None while there is no daemon. Never waits."""
        return self._spaces

    def lost(self, error: errors.TerraceError, spaces: tuple[BlockSpace, ...]) -> None:
        """To be told of every error of a call: one that cost the client its session says that
        `spaces` are dead."""
        if spaces[0].client.alive and not isinstance(error, errors.Unavailable):
            return
        with self._lock:
            if self._spaces is not spaces:
                return
            self._spaces = None
        self._warn(error)

    def _warn(self, error: errors.TerraceError) -> None:
        _log.warning("terrace: no daemon, so KV is computed until it is back: %s", error)

    def close(self) -> None:
        """Ends the session; `spaces` is None from now on."""
        self._closed.set()
        with self._lock:
            self._client = self._spaces = None

    def _connect(self) -> None:
        client = self._open()
        try:
            spaces = tuple(client.blocks(each.space, each.part_bytes) for each in self._layouts)
        except errors.TerraceError:
            client.close()
            raise
        with self._lock:
            # The one before closes when the last that uses it, maybe in a call now, lets go of it.
            if not self._closed.is_set():
                self._client, self._spaces = client, spaces

    def _watch(self) -> None:
        while not self._closed.wait(RETRY_S):
            client, spaces = self._client, self._spaces
            if client is not None and spaces is not None:
                if client.alive:
                    continue
                self.lost(errors.Unavailable("the daemon has ended"), spaces)
            try:
                self._connect()
            except errors.TerraceError:
                continue
            _log.warning("terrace: the daemon is back")
