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


def connect(socket: str | None, tenant: str | None, client_name: str) -> Client:
    """A client whose calls give up early. Raises what terrace_kv.open raises."""
    return open_client(socket=socket, tenant=tenant, client_name=client_name,
                       call_timeout_s=CALL_TIMEOUT_S, room_timeout_s=ROOM_TIMEOUT_S)


class BlockSession:
    """Spaces of blocks while there is a daemon, nothing while there is none. After lost() a thread
    of its own connects anew, so that no caller ever waits for a daemon. Any thread."""

    def __init__(self, open_client: Callable[[], Client], layouts: Sequence[SpaceLayout]) -> None:
        """Connects at once: raises what `open_client` and Client.blocks() raise."""
        self._open = open_client
        self._layouts = tuple(layouts)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reconnects = 0
        self._spaces: tuple[BlockSpace, ...] | None = self._connect()

    @property
    def spaces(self) -> tuple[BlockSpace, ...] | None:
        """One a layout; None while there is no daemon. Never waits."""
        return self._spaces

    @property
    def reconnects(self) -> int:
        return self._reconnects

    def lost(self, error: errors.TerraceError, spaces: tuple[BlockSpace, ...]) -> None:
        """To be told of every error of a call: one that cost the client its session says that
        `spaces` are dead."""
        if spaces[0].client.alive and not isinstance(error, errors.Unavailable):
            return
        with self._lock:
            if self._spaces is not spaces or self._closed.is_set():
                return
            self._spaces = None
        _log.warning("terrace: no daemon, so KV is computed until it is back: %s", error)
        threading.Thread(target=self._reconnect, name="terrace-reconnect", daemon=True).start()

    def close(self) -> None:
        """Ends the session; `spaces` is None from now on."""
        self._closed.set()
        with self._lock:
            spaces, self._spaces = self._spaces, None
        if spaces:
            spaces[0].client.close()

    def _connect(self) -> tuple[BlockSpace, ...]:
        client = self._open()
        try:
            return tuple(client.blocks(each.space, each.part_bytes) for each in self._layouts)
        except errors.TerraceError:
            client.close()
            raise

    def _reconnect(self) -> None:
        while not self._closed.wait(RETRY_S):
            try:
                spaces = self._connect()
            except errors.TerraceError:
                continue
            with self._lock:
                if not self._closed.is_set():
                    self._spaces, spaces = spaces, ()
                    self._reconnects += 1
            if spaces:
                spaces[0].client.close()
            else:
                _log.warning("terrace: the daemon is back")
            return
