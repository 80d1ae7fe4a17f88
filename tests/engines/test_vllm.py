"""vLLM with terrace's connector: what is loaded gives what vLLM's own prefix cache gives, bit by
bit, and whatever fails gives the right output by computing it.

The tests run in the order of this file and share engines and what they stored: starting an engine
takes longer than any of them. First bf16, then fp32, where the failures are: there a prompt
computed in other pieces gives the same tokens, which in bf16 it does not.
"""

from __future__ import annotations

import argparse
import asyncio.base_events
import contextlib
import difflib
import itertools
import json
import pathlib
import pickle
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
import terrace_kv
from lmcache_server import LmcacheServer
from terraced import MIB, Terraced, chain_lengths, program
from vllm_engine import VllmEngine, terrace_transfer

SOURCES = (argparse, asyncio.base_events, difflib)
PROMPT_TOKENS, NEW_TOKENS = 1500, 32
GROWN_TOKENS = 44  # so many more need another block
BLOCKS = PROMPT_TOKENS // 128
LONG_TOKENS = 3000
BLOCK_BYTES = 2_949_120  # bf16
LONG_BYTES = LONG_TOKENS // 128 * BLOCK_BYTES
LONG_CACHED = LONG_TOKENS // 256 * 256  # in chunks of LMCache's default
PAIRS = 7


@pytest.fixture(scope="module")
def place(request):
    path = pathlib.Path(tempfile.mkdtemp(prefix="terrace-vllm-", dir="/var/tmp"))
    yield path
    if not request.session.testsfailed:  # else the logs are of interest
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def store(place):
    """The daemon of all tests here. Its disk has room for everything, its memory for most, which
    is populated at once: a store that meets memory being populated gives up soon."""
    directory = place / "daemon"
    directory.mkdir()
    with Terraced(directory, host_bytes=768 * MIB, headroom=768 * MIB,
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


@contextlib.contextmanager
def reconnecting(engine: VllmEngine) -> Iterator[None]:
    """The daemon goes and comes back meanwhile. Waits until both sides of the engine say that they
    have found it: the daemon knows of their sessions sooner than they do."""
    def found() -> int:
        return engine.log().count("terrace: the daemon is back")

    before = found()
    yield
    end = time.monotonic() + 30
    while found() < before + 2:
        assert time.monotonic() < end, engine.log()[-2000:]
        time.sleep(0.02)


def restart(engine: VllmEngine, store: Terraced) -> None:
    with reconnecting(engine):
        assert store.terrace("flush").returncode == 0
        assert store.stop() == 0
        store.start()


def test_loaded_after_a_reset_is_bit_equal(bf16, bf16_references):
    bf16.reset()
    expect_loaded(bf16, bf16_references)


def test_a_prompt_is_a_chain(bf16, bf16_references, store):
    objects = [each for each in store.json("ls", "--limit", "0")["objects"] if each["kind"] == "kv"]
    assert chain_lengths(objects) == [BLOCKS] * len(SOURCES)


def test_loaded_after_a_daemon_restart_is_bit_equal(bf16, bf16_references, store):
    restart(bf16, store)
    bf16.reset()
    expect_loaded(bf16, bf16_references)


def test_counters_tell_what_was_moved(bf16, bf16_references):
    bf16.reset()
    before = bf16.metrics()
    prompt, reference = bf16_references[0]
    same(bf16.generate(prompt, NEW_TOKENS), reference)
    after = bf16.metrics()
    moved = {name.removeprefix("vllm:terrace_"): after[name] - before.get(name, 0)
             for name in after if name.startswith("vllm:terrace_")}
    assert moved.pop("load_us") > 0 and moved.pop("save_us") > 0  # asks what is not there yet
    moved.pop("lookup_deferred", 0)  # on a busy machine
    assert {name: count for name, count in moved.items() if count} == {
        "lookup_blocks": BLOCKS, "lookup_hit_blocks": BLOCKS, "load_requests": 1,
        "loaded_blocks": BLOCKS, "loaded_bytes": BLOCKS * BLOCK_BYTES}
    assert after["vllm:terrace_saved_blocks"] == len(SOURCES) * BLOCKS
    assert after["vllm:terrace_saved_bytes"] == len(SOURCES) * BLOCKS * BLOCK_BYTES
    hits = "vllm:external_prefix_cache_hits"  # vLLM's own count, in tokens
    assert after[hits] - before[hits] == BLOCKS * 128


def local_hit_ms(engine: VllmEngine, prompt: list[int]) -> float:
    """Of vLLM's own prefix hit. The first one after another process had the cores is not counted."""
    engine.generate(prompt, 1, None)
    return engine.generate(prompt, 1, None)["ms"]


def expect_stored(engine: VllmEngine, prompt: list[int]) -> None:
    """A store may take on what it was given after the engine has answered."""
    end = time.monotonic() + 30
    while engine.generate(prompt, 1, None)["cached"] < LONG_CACHED:
        assert time.monotonic() < end, engine.log()[-2000:]
        engine.reset()


def owned_ms(engine: VllmEngine, prompt: list[int], turns: int) -> float:
    """Loaded minus local hit, which take turns: the difference of their medians. Single answers
    differ by ten times what a load takes, whenever anything else gets a core."""
    engine.generate(prompt, 1, None)
    loads, hits = [], []
    for attempt in itertools.count():
        assert attempt < 3 * turns, engine.log()[-2000:]
        engine.reset()
        loaded = engine.generate(prompt, 1, None)
        hit = engine.generate(prompt, 1, None)
        if loaded["cached"] < LONG_CACHED:
            continue  # without a core for long, either store gives up
        assert loaded["ids"] == hit["ids"] or loaded["cached"] != hit["cached"]
        loads.append(loaded["ms"])
        hits.append(hit["ms"])
        if len(loads) == turns:
            return statistics.median(loads) - statistics.median(hits)


def measure_owned(bf16: VllmEngine, place: pathlib.Path, model: pathlib.Path, chunk_tokens: int,
                  mode: str, turns: int) -> tuple[list[float], list[float]]:
    """Loaded minus local hit, of terrace and of LMCache in turn: ms."""
    with LmcacheServer(place, chunk_tokens) as server:
        server.ready()
        with server.engine(model, f"lmcache-{mode}", mode) as other:
            other.ready()
            prompt = bf16.tokens(argparse, LONG_TOKENS)
            for each in (bf16, other):
                expect_stored(each, prompt)
            pairs = [(owned_ms(bf16, prompt, turns), owned_ms(other, prompt, turns))
                     for _ in range(PAIRS)]
    print("owned, terrace and LMCache, ms:", [[round(each, 1) for each in pair] for pair in pairs])
    ours, theirs = zip(*pairs)
    return list(ours), list(theirs)


def test_time_of_a_load_that_the_store_owns(bf16, place, smollm2_dir, engine_rows):
    ours, theirs = measure_owned(bf16, place, smollm2_dir, 128, "lmcache_driven", turns=7)
    engine_rows.add("vllm_owned_ms", ours, "LMCache server, chunk 128, lmcache_driven", theirs)


def test_time_of_a_load_against_lmcache_as_it_comes(bf16, place, smollm2_dir, engine_rows):
    ours, theirs = measure_owned(bf16, place, smollm2_dir, 256, "engine_driven", turns=3)
    engine_rows.add("vllm_owned_ms_default", ours, "LMCache server, chunk 256, engine_driven",
                    theirs)


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
        restart(bf16, store)
        before = local_hit_ms(bf16, prompt)
        bf16.reset()
        loaded = bf16.generate(prompt, 1, None)
        after = bf16.generate(prompt, 1, None)
        assert loaded["cached"] == after["cached"] and loaded["ids"] == after["ids"]
        ours.append(loaded["ms"] - (before + after["ms"]) / 2)
        device.append(fio_read_ms(place, LONG_BYTES))
    print("owned, ms:", [round(each, 1) for each in ours])
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
    restart(fp32, store)
    fp32.reset()
    expect_loaded(fp32, fp32_references)


def test_fp32_in_a_fresh_process_that_preempts(fp32_references, place, store, smollm2_dir):
    """Loaded bit-equal. Then prompts fill all blocks, and the last is preempted when they grow: two
    take a block from it, one of which was complete and comes back from the store."""
    with start(place, smollm2_dir, store, "fp32-fresh", dtype="float32", max_model_len=2048,
               num_gpu_blocks_override=1 + len(SOURCES) * (BLOCKS + 1)) as fresh:
        expect_loaded(fresh.ready(), fp32_references)
        prompts = [prompt for prompt, _ in fp32_references]
        alone = [fresh.generate(prompt, GROWN_TOKENS, None)["ids"] for prompt in prompts]
        fresh.reset()
        before = fresh.metrics()
        assert fresh.together(prompts, GROWN_TOKENS) == alone
        after = fresh.metrics()
        assert after["vllm:num_preemptions"] > before["vllm:num_preemptions"]
        loaded = after["vllm:terrace_loaded_blocks"] - before["vllm:terrace_loaded_blocks"]
        assert loaded > len(prompts) * BLOCKS


def test_a_daemon_killed_in_mid_load_costs_recomputation(fp32, fp32_references, store, engine_rows):
    prompt, reference = fp32_references[0]
    restart(fp32, store)
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
    with reconnecting(fp32):
        store.start()
    fp32.reset()
    assert fp32.generate(prompt, NEW_TOKENS)["ids"] == reference["ids"]


def test_a_daemon_that_hangs_costs_recomputation(fp32, fp32_references, store):
    prompt, reference = fp32_references[1]
    fp32.reset()
    with reconnecting(fp32):
        store.process.send_signal(signal.SIGSTOP)
        assert fp32.generate(prompt, NEW_TOKENS, None)["ids"] == reference["ids"]
        store.process.send_signal(signal.SIGCONT)
    fp32.reset()
    expect_loaded(fp32, fp32_references[1:2])


def test_a_daemon_that_hangs_holds_back_only_who_asks_it(fp32, fp32_references, store):
    """A prompt that is looked up comes first, one that is too short for it runs meanwhile."""
    waiting, reference = fp32_references[1]
    short = fp32_references[0][0][:100]
    alone = fp32.generate(short, NEW_TOKENS, None)["ids"]
    fp32.reset()
    deferred = fp32.counter("lookup_deferred")
    with reconnecting(fp32):
        store.process.send_signal(signal.SIGSTOP)
        answer = fp32.ask("together", prompts=[waiting, short], max_tokens=NEW_TOKENS)
        store.process.send_signal(signal.SIGCONT)
    assert answer["ids"] == [reference["ids"], alone]
    assert answer["first_token"][1] < answer["scheduled"][0]
    assert fp32.counter("lookup_deferred") == deferred + 1


def flip_bits(path: pathlib.Path) -> None:
    """One in every MiB, so that no object is spared."""
    with open(path, "r+b") as file:
        for place in range(MIB // 2, path.stat().st_size, MIB):
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 0x10]))


def test_a_corrupt_object_costs_recomputation(fp32, fp32_references, store):
    prompt, reference = fp32_references[2]
    with reconnecting(fp32):
        assert store.terrace("flush").returncode == 0
        assert store.stop() == 0
        for segment in (store.directory / "state" / "nvme").rglob("*.tseg"):
            flip_bits(segment)
        store.start()
    fp32.reset()
    failed = fp32.counter("load_failed_blocks")
    assert fp32.generate(prompt, NEW_TOKENS)["ids"] == reference["ids"]
    assert fp32.counter("load_failed_blocks") > failed
    # Every block is bad; a load that was given up at one may leave those behind it unseen. What was
    # recomputed is stored again, so each time more is good. Its bits are those of other pieces.
    for _ in range(BLOCKS):
        fp32.reset()
        loaded = fp32.counter("loaded_blocks")
        assert fp32.generate(prompt, NEW_TOKENS)["ids"] == reference["ids"]
        if fp32.counter("loaded_blocks") == loaded + BLOCKS:
            return
    raise AssertionError(fp32.log()[-2000:])


class OnFullDisk(Terraced):
    """The kernel refuses it every segment, from its start on, as a full file system would; a limit
    takes no privilege."""

    def spawn(self) -> subprocess.Popen[bytes]:
        with open(self.log_path, "ab") as log:
            return subprocess.Popen(["sh", "-c", 'trap "" XFSZ && exec "$@"', "sh",
                                     program("terraced"), "--config", str(self.config_path)],
                                    stdout=log, stderr=log)

    def start(self) -> Terraced:
        super().start()
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
        return self


def test_without_room_in_memory_and_on_disk_nothing_breaks(place, smollm2_dir, fp32_references):
    """The daemon has less memory than one prompt, and its disk is full."""
    directory = place / "small"
    directory.mkdir()
    with OnFullDisk(directory, host_bytes=16 * MIB, headroom=1 * MIB,
                     nvme_bytes=256 * MIB) as small:
        with start(place, smollm2_dir, small, "small", dtype="float32") as engine:
            engine.ready()
            for _ in range(2):
                for prompt, reference in fp32_references:
                    answer = engine.generate(prompt, NEW_TOKENS, None)
                    assert answer["ids"] == reference["ids"]
                engine.reset()
            assert engine.counter("save_dropped_blocks") > 0
            assert small.status()["counters"]["nvme_write_errors"] > 0
            assert "RESOURCE_EXHAUSTED" in small.log_path.read_text()


def test_a_wrong_socket_ends_the_start_and_is_named(place, smollm2_dir):
    nowhere = terrace_transfer("/nowhere/terraced.sock")
    with VllmEngine(place, smollm2_dir, "wrong", transfer=nowhere) as engine:
        engine.process.wait(timeout=200)
        assert engine.process.returncode != 0
        assert "/nowhere/terraced.sock: No such file or directory" in engine.log()
