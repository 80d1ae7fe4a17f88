"""The client of a connector, which lives as long as its engine, and so longer than a daemon may."""

from __future__ import annotations

import threading
import time

import terrace_kv
from terrace_kv import Client, errors
from terrace_kv.blocks import BlockSpace

RECONNECT_INTERVAL_S = 1.0


class ReconnectingClient:
    """Hands out spaces of blocks, and connects again when a shared daemon comes back; a private one ends
    with the client that started it. Any thread."""

    def __init__(self, client: Client, client_name: str) -> None:
        self._client = client
        self._name = client_name
        self._address = (client.socket_path, client.tenant) if client.daemon_pid == 0 else None
        self._spaces: dict[tuple[str, int], BlockSpace] = {}
        self._next_attempt_s = 0.0
        self._lock = threading.Lock()

    def space(self, text: str, block_bytes: int) -> BlockSpace:
        """The space of that text, of blocks of one part. Raises Unavailable while the daemon is gone,
        at once: it is tried once in RECONNECT_INTERVAL_S."""
        with self._lock:
            if not self._client.alive:
                self._reconnect()
            key = (text, block_bytes)
            if key not in self._spaces:
                self._spaces[key] = self._client.blocks(text, [block_bytes])
            return self._spaces[key]

    def close(self) -> None:
        with self._lock:
            self._address = None
            self._client.close()

    def _reconnect(self) -> None:
        now = time.monotonic()
        if self._address is None or now < self._next_attempt_s:
            raise errors.Unavailable("the daemon is gone")
        self._next_attempt_s = now + RECONNECT_INTERVAL_S
        socket, tenant = self._address
        self._client = terrace_kv.open(socket=socket, tenant=tenant, client_name=self._name)
        self._spaces.clear()
