"""Blocks from Python, against a real daemon."""

from __future__ import annotations

import os
import select
import threading

import numpy as np
import pytest
import terrace_kv
from terrace_kv import blocks
from terraced import chain_lengths

PARTS = (4096, 128, 10000)


def memory(count: int, seed: int) -> list[np.ndarray]:
    """An engine's memory: for every part an array uint8 [blocks, bytes]."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (count, size), dtype=np.uint8) for size in PARTS]


def pieces_of(arrays: list[np.ndarray]) -> np.ndarray:
    count = len(arrays[0])
    addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
    sizes = np.array(PARTS, np.uint64)
    block = np.arange(count, dtype=np.uint64)[:, None]
    return blocks.pieces(block, np.arange(1, 4)[None, :], addresses + block * sizes, sizes)


def test_blocks_round_trip(client):
    space = client.blocks("test", PARTS)
    keys = space.keys([f"hash {i}".encode() for i in range(300)])
    assert space.key(b"hash 7") == keys[7].tobytes()
    assert not space.find(keys)["tier"].any()
    stored = memory(300, 1)
    with space.begin(keys, cost_us=10**7) as store:
        assert store.needed.all()
        store.gather(pieces_of(stored))
        assert store.commit().stored == 300
    found = space.find(keys)
    assert (found["tier"] == 1).all() and (found["bytes"] >= sum(PARTS)).all()
    loaded = [np.zeros_like(array) for array in stored]
    with space.acquire(keys) as lease:
        assert lease.usable == 300
        lease.wait_parts(3, timeout_s=30)
        assert lease.ready_parts(299) == 3
        assert (lease.part(299, 2) == stored[1][299]).all()
        lease.scatter(pieces_of(loaded), threads=2)
        assert not lease.expired
    assert all((a == b).all() for a, b in zip(loaded, stored))


def test_parts_in_place_and_stored_twice(client):
    space = client.blocks("in place", PARTS)
    keys = [space.key(b"one"), space.key(b"two")]
    with space.begin(keys[:1]) as store:
        for part, array in enumerate(memory(1, 2), 1):
            store.part(0, part)[:] = array[0]
        assert store.commit().stored == 1
    with space.begin(keys) as store:
        assert store.needed.tolist() == [False, True]
        store.gather(pieces_of(memory(2, 3)))
        report = store.commit()
        assert (report.stored, report.already) == (1, 1)
    with space.acquire(keys[:1]) as lease:
        lease.wait(30)
        assert (lease.part(0, 1) == memory(1, 2)[0][0]).all()


def test_blocks_know_what_is_before_them(client, daemon):
    space = client.blocks("chained", PARTS)
    keys = space.keys([b"0", b"1", b"2", b"3"])

    def store(some: np.ndarray, **places: object) -> None:
        with space.begin(some, **places) as stored:
            stored.gather(pieces_of(memory(len(some), 1)))
            assert stored.commit().stored == len(some)

    store(keys[:2], parents=blocks.chain(keys[:2]), positions=[0, 1])
    store(keys[2:3], parents=blocks.chain(keys[2:3], keys[1].tobytes()))
    store(keys[3:], positions=np.array([blocks.UNKNOWN_POSITION]))
    parents = [client.show(key.tobytes())["parent"] for key in keys]
    assert parents == [None, keys[0].tobytes().hex(), keys[1].tobytes().hex(), None]
    assert chain_lengths(client.ls()) == [1, 3]
    shown = daemon.json("show", keys[2].tobytes().hex())
    assert shown["parent"] == keys[1].tobytes().hex()
    assert blocks.chain([]).shape == (0, 32) and not blocks.chain(keys[:1]).any()


def test_salts_and_spaces_share_nothing(client):
    space, other = client.blocks("a", PARTS), client.blocks("b", PARTS)
    assert len({space.key(b"x"), space.key(b"x", b"salt"), other.key(b"x")}) == 3


def test_bad_arguments_are_named(client):
    for parts, field in (((), "part_bytes: 0"), ((0,), r"part_bytes\[0\]"), ((-1,), "part_bytes")):
        with pytest.raises(terrace_kv.InvalidArgument, match=field):
            client.blocks("x", parts)
    space = client.blocks("x", PARTS)
    with pytest.raises(terrace_kv.InvalidArgument, match="keys: "):
        space.find(np.zeros((2, 31), np.uint8))
    with pytest.raises(terrace_kv.InvalidArgument, match="key: expected 32 bytes"):
        space.find([b"short"])
    with pytest.raises(terrace_kv.NotFound):
        space.acquire([space.key(b"nothing")])
    one = space.keys([b"one"])
    for places, message in (
            ({"parents": np.zeros((2, 32), np.uint8)}, "parents: 2; expected one for each of 1"),
            ({"parents": np.zeros((1, 31), np.uint8)}, "parents: uint8"),
            ({"parents": one}, r"places\[0\].parent: the block itself"),
            ({"positions": [1, 2]}, "positions: 2; expected one for each of 1 keys"),
            ({"positions": [-1]}, "positions: int64"), ({"positions": [2**32]}, "positions: "),
            ({"positions": [0.5]}, "positions: float64")):
        with pytest.raises(terrace_kv.InvalidArgument, match=message):
            space.begin(one, **places)
    with space.begin([space.key(b"new")]) as store:
        with pytest.raises(terrace_kv.InvalidArgument, match="pieces"):
            store.gather(np.zeros(3))


def test_a_queue_collects_what_ended():
    work = blocks.TransferQueue(threads=2)
    go = threading.Event()
    work.submit("waits", lambda: go.wait(30) and "done")
    work.submit("fails", lambda: 1 // 0)
    assert select.select([work.event_fd], [], [], 30)[0]
    (job, result, error), = work.drain()
    assert (job, result) == ("fails", None) and isinstance(error, ZeroDivisionError)
    assert not select.select([work.event_fd], [], [], 0)[0] and work.pending == 1
    go.set()
    assert work.wait_idle(30)
    assert work.drain() == [("waits", "done", None)]
    descriptor = work.event_fd
    work.close()
    with pytest.raises(OSError):
        os.fstat(descriptor)
