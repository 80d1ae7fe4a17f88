"""A redis-server to compare with, and a terraced with its RESP front-end, on free ports."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

from terraced import Terraced

CLOCK_TICK_S = 0.01


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.02)


def cpu_s(pid: int) -> float:
    """Processor time of a process since it started."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * CLOCK_TICK_S


@contextlib.contextmanager
def redis_server(directory: pathlib.Path) -> Iterator[tuple[int, int]]:
    """(port, pid) of a server that keeps nothing on disk."""
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly",
         "no", "--dir", str(directory)], stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def resp_daemon(directory: pathlib.Path, settings: str = "",
                **changes: object) -> Iterator[tuple[int, Terraced]]:
    """(port, daemon); `changes` as of Terraced."""
    port = free_port()
    extra = f'[resp]\nlisten = "127.0.0.1:{port}"\n{settings}'
    with Terraced(directory, extra=extra, **changes) as daemon:
        yield port, daemon
