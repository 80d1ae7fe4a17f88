"""LMCache's second level on terrace: through its RESP client, and through its native_plugin
adapter, beside redis-server and LMCache's own adapter for files."""

import argparse
import json
import os
import select
import time

import lmcache_bench
import numpy as np
import pytest
from lmcache_bench import KIB, MIB, Bench
from lmcache_server import LmcacheServer
from redis_server import redis_server, resp_daemon
from terraced import Terraced

from terrace_kv import errors
from terrace_kv.connectors.lmcache import TerraceConnector

PAIRS = 15


def wait_for(connector: TerraceConnector, job: int):
    """The completion of a job: (ok, error, found)."""
    poller = select.poll()
    poller.register(connector.event_fd(), select.POLLIN)
    while poller.poll(20000):
        for done, *rest in connector.drain_completions():
            if done == job:
                return rest
    raise AssertionError("no completion")


def buffers(*values: bytes) -> list[memoryview]:
    return [memoryview(bytearray(value)) for value in values]


@pytest.fixture
def connector(daemon):
    opened = TerraceConnector(socket=daemon.socket_path)
    yield opened
    opened.close()


def plugin(bench: Bench, **params: object):
    return bench.adapter(type="native_plugin", module_path="terrace_kv.connectors.lmcache",
                         class_name="TerraceConnector", adapter_params=params)


# --- the connector's contract -------------------------------------------------------------------


def test_values_of_several_sizes(connector):
    values = [os.urandom(size) for size in (1, 4096, 4096, 1 << 20, 3)]
    keys = [f"model@0@0@{i}" for i in range(len(values))]
    assert wait_for(connector, connector.submit_batch_exists(keys)) == [True, "", [False] * 5]
    stored = wait_for(connector, connector.submit_batch_set(keys, buffers(*values)))
    assert stored == [True, "", None]
    assert wait_for(connector, connector.submit_batch_exists([*keys, "no"])) == \
        [True, "", [True] * 5 + [False]]
    # What is not there, or has another length, is left as it is, and the rest arrives.
    into = buffers(*[bytes(len(value)) for value in values], bytes(4096), bytes(5))
    done = wait_for(connector, connector.submit_batch_get([*keys, "no", keys[1]], into))
    assert done == [True, "", [True] * 5 + [False, False]]
    assert [bytes(buffer) for buffer in into] == [*values, bytes(4096), bytes(5)]
    assert wait_for(connector, connector.submit_batch_delete([keys[1], "no"])) == \
        [True, "", [True, False]]
    assert wait_for(connector, connector.submit_batch_exists(keys))[2] == \
        [True, False, True, True, True]


def test_another_process_finds_what_one_stored(daemon, connector):
    wait_for(connector, connector.submit_batch_set(["a", "b"], buffers(b"1" * 5000, b"2" * 6000)))
    other = TerraceConnector(socket=daemon.socket_path)
    assert wait_for(other, other.submit_batch_exists(["a", "b", "c"]))[2] == [True, True, False]
    into = buffers(bytes(5000))
    assert wait_for(other, other.submit_batch_get(["a"], into))[2] == [True]
    assert bytes(into[0]) == b"1" * 5000
    other.close()


def test_more_than_memory_holds_comes_from_the_device(daemon, connector):
    count = 40  # of 4 MiB: more than the 64 MiB of the daemon's memory
    values = np.random.default_rng(0).integers(0, 256, (count, 4 * MIB), np.uint8)
    keys = [f"m@0@0@{i}" for i in range(count)]
    for begin in range(0, count, 4):
        batch = slice(begin, begin + 4)
        assert wait_for(connector, connector.submit_batch_set(keys[batch], list(values[batch])))[0]
        into = [np.zeros(4 * MIB, np.uint8) for _ in range(4)]  # used twice: worth writing
        assert all(wait_for(connector, connector.submit_batch_get(keys[batch], into))[2])
        daemon.wait_for("writing behind", lambda s: s["counters"]["pending_write_objects"] == 0)
    into = [np.zeros(4 * MIB, np.uint8) for _ in range(count)]
    found = wait_for(connector, connector.submit_batch_exists(keys))[2]
    loaded = wait_for(connector, connector.submit_batch_get(keys, into))[2]
    assert sum(found) > 20 and sum(loaded) > 20
    for i in range(count):
        assert np.array_equal(into[i], values[i]) if loaded[i] else not into[i].any()


def test_a_daemon_that_dies_and_comes_back(daemon, connector):
    assert wait_for(connector, connector.submit_batch_set(["a"], buffers(b"x" * 4096)))[0]
    daemon.kill()
    begin = time.monotonic()
    ok, error, found = wait_for(connector, connector.submit_batch_get(["a"], buffers(bytes(4096))))
    assert not ok and error and found == [False]
    assert wait_for(connector, connector.submit_batch_exists(["a"]))[2] == [False]
    assert wait_for(connector, connector.submit_batch_set(["b"], buffers(b"y" * 4096)))[0] is False
    assert time.monotonic() - begin < 10
    daemon.start()
    deadline = time.monotonic() + 20
    while not wait_for(connector, connector.submit_batch_set(["b"], buffers(b"y" * 4096)))[0]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert wait_for(connector, connector.submit_batch_exists(["b"]))[2] == [True]


@pytest.mark.parametrize("params, error", [
    ({"num_workers": 0}, "num_workers: 0"), ({"copy_threads": 99}, "copy_threads: 99")])
def test_parameters_that_cannot_be_used(daemon, params, error):
    with pytest.raises(errors.InvalidArgument, match=error):
        TerraceConnector(socket=daemon.socket_path, **params)


def test_a_wrong_socket(directory):
    with pytest.raises(errors.TerraceError, match="nothing"):
        TerraceConnector(socket=str(directory / "nothing"))


# --- LMCache's server under vLLM ----------------------------------------------------------------


def test_vllm_over_lmcache_over_terrace(directory, smollm2_dir):
    """What one server stored, another one that knows nothing finds below it: ids and logprobs are
    those of vLLM's own prefix hit, bit for bit."""
    chunks = 11  # whole ones of 1,500 tokens, at 128
    with Terraced(directory, host_bytes=512 * MIB, headroom=128 * MIB) as store:
        second_level = json.dumps({
            "type": "native_plugin", "module_path": "terrace_kv.connectors.lmcache",
            "class_name": "TerraceConnector", "adapter_params": {"socket": store.socket_path}})

        def generate(name: str, times: int) -> list[dict]:
            with LmcacheServer(directory, arguments=("--l2-adapter", second_level)) as server:
                server.ready()
                with server.engine(smollm2_dir, name) as engine:
                    engine.ready()
                    prompt = engine.tokens(argparse, 1500)
                    answers = [engine.generate(prompt, 16) for _ in range(times)]
                    store.wait_for("storing", lambda status: status["objects"] >= chunks)
                    return answers

        _, local = generate("first", 2)
        before = store.status()["counters"]["acquired_host"]
        loaded, = generate("second", 1)
        assert store.status()["counters"]["acquired_host"] >= before + chunks
        assert local["cached"] == loaded["cached"] == chunks * 128
        assert loaded["ids"] == local["ids"] and loaded["logprobs"] == local["logprobs"]


# --- LMCache's own client of Redis --------------------------------------------------------------


def test_a_get_that_misses_leaves_the_connection_usable(directory):
    with resp_daemon(directory, "lmcache = true\n") as (port, daemon):
        bench = Bench(num_keys=8, value_bytes=256 * KIB)
        adapter = bench.adapter(type="resp", host="127.0.0.1", port=port, num_workers=1)
        bench.round(adapter)  # deletes what it stored
        keys = lmcache_bench.data.make_object_keys(8, key_offset=0)
        poller = select.poll()
        poller.register(adapter.get_load_event_fd(), select.POLLIN)
        task = adapter.submit_load_task(keys, bench._loaded)
        assert poller.poll(20000), "the client is stuck"
        lmcache_bench.data.consume_fd(adapter.get_load_event_fd())
        assert adapter.query_load_result(task).popcount() == 0
        bench.round(adapter)  # the same connection
        assert daemon.status()["counters"]["resp_get_misses"] == 8
        adapter.close()


# --- against others -----------------------------------------------------------------------------


def test_against_redis_and_files(directory, engine_rows):
    bench = Bench()
    with (redis_server(directory) as (redis, _),
          resp_daemon(directory, "lmcache = true\n", host_bytes=1280 * MIB, nvme_bytes=0,
                      headroom=640 * MIB) as (port, daemon)):
        workers = {"num_workers": 4}
        files = directory / "files"
        files.mkdir()
        adapters = {
            "redis": bench.adapter(type="resp", host="127.0.0.1", port=redis, **workers),
            "resp": bench.adapter(type="resp", host="127.0.0.1", port=port, **workers),
            "plugin": plugin(bench, socket=daemon.socket_path),
            "files": bench.adapter(type="fs_native", base_path=str(files), use_odirect=True,
                                   **workers),
        }
        figures = {name: [] for name in adapters}
        for pair in range(PAIRS + 2):
            for name, adapter in list(adapters.items())[::1 - pair % 2 * 2]:
                if name != "files" or pair >= 2:
                    measured = bench.round(adapter)
                    if pair >= 2:  # before, memory is touched for the first time
                        figures[name].append(measured)
        for adapter in adapters.values():
            adapter.close()
    for name, other in (("resp", "redis"), ("plugin", "redis"), ("plugin", "files")):
        for what, unit, scale in (("store", "GB/s", 1e9), ("load", "GB/s", 1e9),
                                  ("lookup_ms", "ms", 1)):
            label = {"lookup_ms": "lookup"}.get(what, what)
            engine_rows.add(f"{name}_{label}_vs_{other}",
                            [getattr(each, what) / scale for each in figures[name]],
                            f"{other}, {unit}",
                            [getattr(each, what) / scale for each in figures[other]])
