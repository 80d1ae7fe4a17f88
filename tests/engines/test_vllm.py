"""vLLM with terrace's connector: what is loaded gives what vLLM's own prefix cache gives, bit by
bit, and whatever fails gives the right output by computing it.

The tests run in the order of this file and share engines and what they stored: starting an engine
takes longer than any of them. First bf16, then fp32, where the failures are: there a prompt
computed in other pieces gives the same tokens, which in bf16 it does not.
"""

from __future__ import annotations

import argparse
import asyncio.base_events
import difflib
import json
import pathlib
import pickle
import shutil
import signal
import subprocess
import tempfile

import pytest
import terrace_kv
from lmcache_server import LmcacheServer
from terraced import MIB, Terraced
from vllm_engine import VllmEngine, terrace_transfer

SOURCES = (argparse, asyncio.base_events, difflib)
PROMPT_TOKENS, NEW_TOKENS = 1500, 32
BLOCKS = PROMPT_TOKENS // 128
LONG_TOKENS = 3000
LONG_BYTES = LONG_TOKENS // 128 * 2_949_120  # of a block, bf16
PAIRS = 5


@pytest.fixture(scope="module")
def place(request):
    path = pathlib.Path(tempfile.mkdtemp(prefix="terrace-vllm-", dir="/var/tmp"))
    yield path
    if not request.session.testsfailed:  # else the logs are of interest
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def store(place):
    """The daemon of all tests here. Its disk has room for everything, its memory for most."""
    directory = place / "daemon"
    directory.mkdir()
    with Terraced(directory, host_bytes=768 * MIB, headroom=128 * MIB,
                  nvme_bytes=2048 * MIB, segment=64 * MIB) as daemon:
        yield daemon


def start(place, model, store, name: str, **settings: object) -> VllmEngine:
    return VllmEngine(place, model, name, transfer=terrace_transfer(store.socket_path), **settings)


@pytest.fixture(scope="module")
def bf16(place, store, smollm2_dir):
    with start(place, smollm2_dir, store, "bf16") as running:
        yield running.ready()


@pytest.fixture(scope="module")
def fp32(place, store, smollm2_dir):
    with start(place, smollm2_dir, store, "fp32", dtype="float32") as running:
        yield running.ready()


References = list[tuple[list[int], dict]]  # prompts, each with the answer on a hit of vLLM's own


@pytest.fixture(scope="module")
def bf16_references(bf16) -> References:
    return make_references(bf16)


@pytest.fixture(scope="module")
def fp32_references(fp32) -> References:
    return make_references(fp32, as_computed=True)  # which sees nothing of bf16's


def make_references(engine: VllmEngine, as_computed: bool = False) -> References:
    out = []
    for source in SOURCES:
        prompt = engine.tokens(source, PROMPT_TOKENS)
        cold = engine.generate(prompt, NEW_TOKENS)
        assert cold["cached"] == 0
        local = engine.generate(prompt, NEW_TOKENS)
        assert local["cached"] == BLOCKS * 128
        assert not as_computed or local["ids"] == cold["ids"]
        out.append((prompt, local))
    return out


def same(answer: dict, reference: dict) -> None:
    assert answer["ids"] == reference["ids"]
    assert answer["logprobs"] == reference["logprobs"]  # every bit


def expect_loaded(engine: VllmEngine, references) -> None:
    """Everything comes from terrace, and is what vLLM's own hit gives."""
    before = engine.counter("loaded_blocks")
    for prompt, reference in references:
        answer = engine.generate(prompt, NEW_TOKENS)
        assert answer["cached"] == BLOCKS * 128
        same(answer, reference)
    assert engine.counter("loaded_blocks") == before + len(references) * BLOCKS


def reconnect(store: Terraced) -> None:
    """Waits until both sides of an engine have found the daemon again."""
    store.wait_for("both sessions", lambda status: len(
        [each for each in status["sessions"] if each["client_name"].startswith("vllm")]) >= 2)


def restart(store: Terraced) -> None:
    store.terrace("flush")
    assert store.stop() == 0
    store.start()
    reconnect(store)


def test_loaded_after_a_reset_is_bit_equal(bf16, bf16_references):
    bf16.reset()
    expect_loaded(bf16, bf16_references)


def test_loaded_after_a_daemon_restart_is_bit_equal(bf16, bf16_references, store):
    restart(store)
    bf16.reset()
    expect_loaded(bf16, bf16_references)


def test_time_of_a_load_that_the_store_owns(bf16, place, smollm2_dir, engine_rows):
    """Loaded minus local hit, alternated with LMCache in the same run."""
    with LmcacheServer(place) as server:
        server.ready()
        with VllmEngine(place, smollm2_dir, "lmcache", transfer=server.transfer()) as other:
            other.ready()
            prompt = bf16.tokens(argparse, LONG_TOKENS)
            for each in (bf16, other):
                each.generate(prompt, 1, None)
            ours, theirs = [], []
            for _ in range(PAIRS):
                for each, owned in ((bf16, ours), (other, theirs)):
                    local = each.generate(prompt, 1, None)
                    each.reset()
                    loaded = each.generate(prompt, 1, None)
                    assert loaded["cached"] >= 2816, each.log()[-2000:]
                    assert loaded["ids"] == local["ids"]
                    owned.append(loaded["ms"] - local["ms"])
    engine_rows.add("vllm_owned_ms", ours, "LMCache server, chunk 128, lmcache_driven", theirs)


def fio_read_ms(directory: pathlib.Path, size: int) -> float:
    """What the device needs for as many bytes."""
    done = subprocess.run(
        ["fio", "--name=read", f"--directory={directory}", f"--size={size}", "--rw=read", "--bs=1m",
         "--direct=1", "--ioengine=io_uring", "--iodepth=8", "--output-format=json"],
        stdout=subprocess.PIPE, check=True, text=True)
    read = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["read"]
    return read["io_bytes"] / read["bw_bytes"] * 1e3


def test_time_of_a_first_touch_from_the_device(bf16, store, place, engine_rows):
    prompt = bf16.tokens(argparse, LONG_TOKENS)
    bf16.generate(prompt, 1, None)
    ours, device = [], []
    for _ in range(PAIRS):
        restart(store)
        bf16.reset()
        loaded = bf16.generate(prompt, 1, None)
        local = bf16.generate(prompt, 1, None)
        assert loaded["cached"] == local["cached"] and loaded["ids"] == local["ids"]
        ours.append(loaded["ms"] - local["ms"])
        device.append(fio_read_ms(place, LONG_BYTES))
    engine_rows.add("vllm_nvme_ratio", ours, "fio, O_DIRECT, 1 MiB, depth 8: ms", device)


def test_an_engine_killed_in_mid_store_leaves_nothing_behind(bf16, store):
    prompt = bf16.tokens(pickle, LONG_TOKENS)
    with terrace_kv.open(socket=store.socket_path) as client:
        stored = client.status()["objects"]
        bf16.send("generate", ids=prompt, max_tokens=1, logprobs=None)
        while client.status()["reservations"] == 0:
            pass
        bf16.kill()
        store.wait_for("reservations given back", lambda status: status["reservations"] == 0)
        assert client.status()["objects"] == stored


def test_loaded_by_a_fresh_process_is_bit_equal(bf16_references, place, store, smollm2_dir):
    with start(place, smollm2_dir, store, "fresh") as fresh:
        fresh.ready()
        for prompt, reference in bf16_references:
            answer = fresh.generate(prompt, NEW_TOKENS)
            assert answer["cached"] == BLOCKS * 128
            same(answer, reference)


def test_fp32_is_bit_equal_too(fp32, fp32_references, store):
    fp32.reset()
    expect_loaded(fp32, fp32_references)
    restart(store)
    fp32.reset()
    expect_loaded(fp32, fp32_references)


def test_fp32_loaded_by_a_fresh_process_is_bit_equal(fp32_references, place, store, smollm2_dir):
    with start(place, smollm2_dir, store, "fp32-fresh", dtype="float32") as fresh:
        expect_loaded(fresh.ready(), fp32_references)


def test_a_daemon_killed_in_mid_load_costs_recomputation(fp32, fp32_references, store, engine_rows):
    prompt, reference = fp32_references[0]
    restart(store)
    fp32.reset()
    waited, failed = fp32.counter("load_us"), fp32.counter("load_failed_blocks")
    with terrace_kv.open(socket=store.socket_path) as client:
        fp32.send("generate", ids=prompt, max_tokens=NEW_TOKENS, logprobs=None)
        while client.status()["leases"] == 0:
            pass
        store.kill()
    assert fp32.take()["ids"] == reference["ids"]
    engine_rows.add("vllm_daemon_kill_wait_ms", [(fp32.counter("load_us") - waited) / 1e3],
                    "the most that is allowed", [1000])
    print(f"blocks that failed: {fp32.counter('load_failed_blocks') - failed}")
    # Without a daemon: the same.
    fp32.reset()
    assert fp32.generate(prompt, NEW_TOKENS, None)["ids"] == reference["ids"]
    store.start()
    reconnect(store)
    fp32.reset()
    assert fp32.generate(prompt, NEW_TOKENS)["ids"] == reference["ids"]


def test_a_daemon_that_hangs_costs_recomputation(fp32, fp32_references, store):
    prompt, reference = fp32_references[1]
    fp32.reset()
    store.process.send_signal(signal.SIGSTOP)
    assert fp32.generate(prompt, NEW_TOKENS, None)["ids"] == reference["ids"]
    store.process.send_signal(signal.SIGCONT)
    reconnect(store)
    fp32.reset()
    expect_loaded(fp32, fp32_references[1:2])


def test_a_corrupt_object_costs_recomputation(fp32, fp32_references, store):
    prompt, reference = fp32_references[2]
    store.terrace("flush")
    assert store.stop() == 0
    for segment in (store.directory / "state" / "nvme").rglob("*.tseg"):
        with open(segment, "r+b") as file:
            for place in range(MIB // 2, segment.stat().st_size, MIB):
                file.seek(place)
                byte = file.read(1)
                file.seek(place)
                file.write(bytes([byte[0] ^ 0x10]))
    store.start()
    reconnect(store)
    fp32.reset()
    failed = fp32.counter("load_failed_blocks")
    assert fp32.generate(prompt, NEW_TOKENS)["ids"] == reference["ids"]
    assert fp32.counter("load_failed_blocks") > failed
    fp32.reset()  # what was recomputed is stored again
    expect_loaded(fp32, fp32_references[2:])


def test_without_room_nothing_is_stored_and_nothing_breaks(place, smollm2_dir, fp32_references):
    """A full tier: the daemon has less memory than one prompt and no disk."""
    directory = place / "small"
    directory.mkdir()
    prompt, reference = fp32_references[0]
    with Terraced(directory, host_bytes=16 * MIB, headroom=1 * MIB, nvme_bytes=0) as small:
        with start(place, smollm2_dir, small, "small", dtype="float32") as engine:
            engine.ready()
            assert engine.generate(prompt, NEW_TOKENS, None)["ids"] == reference["ids"]
            assert engine.counter("save_dropped_blocks") > 0
            engine.reset()
            assert engine.generate(prompt, NEW_TOKENS, None)["ids"] == reference["ids"]


def test_a_wrong_socket_ends_the_start_and_is_named(place, smollm2_dir):
    nowhere = terrace_transfer("/nowhere/terraced.sock")
    with VllmEngine(place, smollm2_dir, "wrong", transfer=nowhere) as engine:
        engine.process.wait(timeout=200)
        assert engine.process.returncode != 0
        assert "/nowhere/terraced.sock: No such file or directory" in engine.log()
