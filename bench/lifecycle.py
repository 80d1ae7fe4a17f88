#!/usr/bin/env python3
"""How long terraced takes to start with an empty store, and to free what a killed client held.

    build/venv/bin/python bench/lifecycle.py

Prints the median and the range of 11 rounds each, in milliseconds.
"""

from __future__ import annotations

import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "examples")]

import numpy as np  # noqa: E402

import terrace_kv  # noqa: E402
from demo import Daemon  # noqa: E402

ROUNDS = 11
GEOMETRY = terrace_kv.KvGeometry(model_id="bench", dtype="float16", layers=2, kv_heads=2,
                                 head_dim=64)
STORED, RESERVED = np.arange(2560), np.arange(5000, 7560)  # 10 chunks each


def empty_start_ms(directory: pathlib.Path) -> float:
    """From fork to the first call that is answered."""
    daemon = Daemon(directory)
    started = time.perf_counter()
    client = daemon.start()
    client.status()
    elapsed = time.perf_counter() - started
    client.close()
    daemon.stop()
    return elapsed * 1000


def hold(socket: str) -> None:
    """What the killed client does: a lease of 10 chunks and 10 reservations."""
    client = terrace_kv.open(socket=socket)
    model = client.register_kv(GEOMETRY)
    lease = client.acquire(model, client.match_prefix(model, STORED))
    store = client.begin_store(model, RESERVED)
    print("holding", lease.usable_tokens, len(store.chunks), flush=True)
    time.sleep(60)


def free_ms(client: terrace_kv.Client, socket: pathlib.Path) -> float:
    """From SIGKILL of the client to a status without its leases and reservations."""
    victim = subprocess.Popen([sys.executable, __file__, str(socket)], stdout=subprocess.PIPE)
    victim.stdout.readline()
    status = client.status()
    assert (status["leases"], status["reservations"]) == (1, 10), status
    victim.kill()
    started = time.perf_counter()
    while status["leases"] or status["reservations"]:
        status = client.status()
    elapsed = time.perf_counter() - started
    victim.wait()
    return elapsed * 1000


def store_chunks(client: terrace_kv.Client) -> None:
    with client.begin_store(client.register_kv(GEOMETRY), STORED) as store:
        part = np.zeros(256 * 2 * 64 * 2, np.uint8)
        for chunk in store.chunks:
            for layer in range(GEOMETRY.layers):
                store.write(chunk.index, layer, terrace_kv.K, part)
                store.write(chunk.index, layer, terrace_kv.V, part)
        store.commit()


def show(what: str, times_ms: list[float]) -> None:
    print(f"{what}: {statistics.median(times_ms):.1f} ms "
          f"({min(times_ms):.1f} - {max(times_ms):.1f}, {len(times_ms)} rounds)")


def main() -> None:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="lifecycle-", dir="/var/tmp"))
    try:
        show("start with an empty store", [empty_start_ms(directory / "a") for _ in range(ROUNDS)])
        daemon = Daemon(directory / "b")
        client = daemon.start()
        try:
            store_chunks(client)
            show("a killed client's holdings freed",
                 [free_ms(client, daemon.socket) for _ in range(ROUNDS)])
        finally:
            client.close()
            daemon.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        hold(sys.argv[1])
    else:
        main()
