"""llama.cpp's own process with prompts restored from a daemon: the same logits as without, and what
does not fit is computed."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator

# Threads of llama.cpp that wait for each other by spinning take minutes when others want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import llama_cpp
import numpy as np
import pytest
from daemon_fixtures import ROOT
from terraced import MIB, Terraced, chain_lengths

import terrace_kv
from terrace_kv import errors
from terrace_kv.connectors.llama_cpp import (
    BLOCK_TOKENS, CachedLlama, PromptCache, file_identity,
)

TOKENS = 2000
STORED = 1984  # whole blocks of 64 tokens that leave one token to compute
N_CTX = 2304
THREADS = 2

MakeLlama = Callable[..., llama_cpp.Llama]


def logits_of(llm: llama_cpp.Llama) -> np.ndarray:
    """Of the token after the last that was computed: float32 [vocabulary]."""
    row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, shape=(llm.n_vocab(),)).copy()


def sequence_state(llm: llama_cpp.Llama) -> np.ndarray:
    size = llama_cpp.llama_state_seq_get_size(llm.ctx, 0)
    out = np.empty(size, np.uint8)
    address = out.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    assert llama_cpp.llama_state_seq_get_data(llm.ctx, address, size, 0) == size
    return out


@pytest.fixture(scope="module")
def make(smollm2_gguf: pathlib.Path) -> MakeLlama:
    def make_llama(kind: type[llama_cpp.Llama] = llama_cpp.Llama, **options: object):
        return kind(**{"model_path": str(smollm2_gguf), "n_ctx": N_CTX, "n_threads": THREADS,
                       "flash_attn": True, "verbose": False, **options})
    return make_llama


@pytest.fixture(scope="module")
def prompt(make: MakeLlama) -> list[int]:
    # Text that does not change, and after which one token is far likelier than any other.
    text = (ROOT / "examples" / "data" / "musique_demo.json").read_bytes()
    return make(n_ctx=64).tokenize(text)[:TOKENS]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terraced]:
    path = pathlib.Path("/var/tmp") / f"terrace-llama-{tmp_path_factory.getbasetemp().name}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        with Terraced(path, host_bytes=160 * MIB, nvme_bytes=512 * MIB) as daemon:
            yield daemon
    finally:
        shutil.rmtree(path, ignore_errors=True)


def opener(running: Terraced) -> Callable[[], terrace_kv.Client]:
    return functools.partial(terrace_kv.open, socket=running.socket_path)


@pytest.fixture(scope="module")
def computed(make: MakeLlama, running: Terraced,
             prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The prompt computed and stored: (logits after it, state of its first STORED tokens)."""
    llm = make()
    cache = PromptCache(llm, opener(running))
    assert cache.restore(prompt) == 0
    llm.eval(prompt[:STORED])
    state = sequence_state(llm)
    assert cache.store() >= state.nbytes  # each block has a header of its own
    np.testing.assert_array_equal(sequence_state(llm), state)  # storing left it as it was
    llm.eval(prompt[STORED:])
    assert cache.store() == 0  # all of it is stored
    assert chain_lengths(running.json("ls", "--limit", "0")["objects"]) == [STORED // BLOCK_TOKENS]
    assert cache.stats.errors == 0
    return logits_of(llm), state


@pytest.fixture(scope="module")
def restored(make: MakeLlama, running: Terraced, computed) -> tuple[llama_cpp.Llama, PromptCache]:
    llm = make()
    return llm, PromptCache(llm, opener(running))


IN_ANOTHER_PROCESS = """
import hashlib, json, sys
import llama_cpp, numpy as np, terrace_kv
from terrace_kv.connectors.llama_cpp import PromptCache
model, socket = sys.argv[1:3]
prompt, options = map(json.loads, sys.argv[3:5])
llm = llama_cpp.Llama(model, verbose=False, **options)
cache = PromptCache(llm, lambda: terrace_kv.open(socket=socket))
restored = cache.restore(prompt)
llm.eval(prompt[restored:])
row = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
logits = np.ctypeslib.as_array(row, shape=(llm.n_vocab(),))
print(restored, hashlib.sha256(logits.tobytes()).hexdigest())
"""


def test_another_process_gets_the_same_logits(smollm2_gguf, running, prompt, computed):
    options = f'{{"n_ctx": {N_CTX}, "n_threads": {THREADS}, "flash_attn": true}}'
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, smollm2_gguf, running.socket_path, str(prompt),
         options], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    tokens, digest = done.stdout.split()
    assert int(tokens) == STORED
    assert digest == hashlib.sha256(computed[0].tobytes()).hexdigest()


def test_the_next_token_is_that_of_a_prompt_computed_at_once(make, prompt, computed):
    llm = make()
    llm.eval(prompt)
    assert logits_of(llm).argmax() == computed[0].argmax()


def test_state_is_that_of_computing(restored, prompt, computed):
    llm, cache = restored
    assert cache.restore(prompt) == STORED
    np.testing.assert_array_equal(sequence_state(llm), computed[1])
    assert llm.n_tokens == STORED
    llm.eval(prompt[STORED:])
    np.testing.assert_array_equal(logits_of(llm), computed[0])
    assert cache.restore(prompt) == TOKENS - 1  # held already; a token is left to compute


def test_a_prompt_that_forks_shares_what_is_equal(restored, prompt, computed):
    llm, cache = restored
    fork = prompt[:1000] + [0] + prompt[1001:]
    # Once out of the context, which holds this much itself; once out of the store.
    cache.restore(prompt)
    assert cache.restore(fork) == 1000
    assert cache.restore([1, 2, 3]) == 0
    assert llm.n_tokens == 0
    assert cache.restore(fork) == 960
    assert cache.restore(prompt) == STORED  # on top of blocks that are there
    np.testing.assert_array_equal(sequence_state(llm), computed[1])


def test_restore_takes_as_long_as_llama_cpp_needs(restored, prompt, computed, engine_rows):
    llm, cache = restored
    state, copy = computed[1], np.empty_like(computed[1])
    address = copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    memory = llama_cpp.llama_get_memory(llm.ctx)
    ours, theirs = [], []
    for _ in range(12):
        llm.reset()
        llama_cpp.llama_memory_clear(memory, False)
        begin = time.perf_counter()
        assert cache.restore(prompt) == STORED
        ours.append(1000 * (time.perf_counter() - begin))
        llama_cpp.llama_memory_clear(memory, False)
        begin = time.perf_counter()
        np.copyto(copy, state)
        assert llama_cpp.llama_state_seq_set_data(llm.ctx, address, len(copy), 0) == len(copy)
        theirs.append(1000 * (time.perf_counter() - begin))
    # The first pair is the first touch of both.
    engine_rows.add("llamacpp_restore", ours[1:], "memcpy and llama_state_seq_set_data, ms",
                    theirs[1:])


@pytest.mark.parametrize("options", [
    {}, {"flash_attn": False},
    {"type_k": llama_cpp.GGML_TYPE_Q8_0, "type_v": llama_cpp.GGML_TYPE_Q8_0},
], ids=["flash", "transposed V", "q8_0"])
def test_answers_are_those_of_llama_alone(make, running, prompt, options):
    text = str(options) + make(n_ctx=64).detokenize(prompt[:80]).decode(errors="replace")

    def answer(llm: llama_cpp.Llama) -> str:
        return llm(text, max_tokens=6, temperature=0.0)["choices"][0]["text"]

    alone = make(n_ctx=512, **options)
    first = make(CachedLlama, n_ctx=512, open_client=opener(running), **options)
    assert answer(first) == answer(alone)
    second = make(CachedLlama, n_ctx=512, open_client=opener(running), **options)
    answered = answer(second)
    restored = second.prompt_cache.stats.restored_tokens
    assert restored >= 64
    # Where a prompt is cut decides how sums are rounded: llama.cpp goes on from the same place.
    alone.n_tokens = restored
    assert answered == answer(alone)
    assert first.prompt_cache.stats.errors == second.prompt_cache.stats.errors == 0


@pytest.mark.parametrize("options, cache_options", [
    ({"type_k": llama_cpp.GGML_TYPE_Q8_0}, {}),
    ({"flash_attn": False}, {}),
    ({"rope_freq_base": 12345.0}, {}),
    ({"n_ctx": 16384}, {}),  # longer than in training
    ({}, {"model_id": "another"}),
    ({}, {"block_tokens": 128}),
    ({}, {"salt": b"another user"}),
], ids=["type_k", "flash_attn", "rope_freq_base", "n_ctx", "model_id", "block_tokens", "salt"])
def test_what_was_stored_otherwise_is_not_there(make, running, prompt, computed, options,
                                                cache_options):
    llm = make(**options)
    cache = PromptCache(llm, opener(running), **cache_options)
    assert cache.restore(prompt) == 0
    assert cache.stats.errors == 0


def test_another_size_of_context_shares(make, running, prompt, computed):
    llm = make(n_ctx=1024)
    cache = PromptCache(llm, opener(running))
    assert cache.restore(prompt[:1000]) == 960
    with pytest.raises(errors.InvalidArgument, match="tokens: 2000; .* n_ctx = 1024"):
        cache.restore(prompt)
    assert llm.n_tokens == 960


def test_another_model_is_told_by_its_weights(smollm2_gguf, tmp_path):
    other = tmp_path / "other.gguf"
    shutil.copyfile(smollm2_gguf, other)
    assert file_identity(other) == file_identity(smollm2_gguf)
    with open(other, "r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)
        file.seek(-1000, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert file_identity(other) != file_identity(smollm2_gguf)


def test_what_is_not_supported_is_named(make, running):
    client = opener(running)
    with pytest.raises(errors.InvalidArgument, match="llm: a context for embeddings"):
        PromptCache(make(embedding=True, n_ctx=128), client)
    llm = make(n_ctx=256)
    with pytest.raises(errors.InvalidArgument, match=r"block_tokens: 257; expected 1 \.\. 256"):
        PromptCache(llm, client, block_tokens=257)
    cache = PromptCache(llm, client)
    for tokens in ([[1, 2]], [1.5], [-1]):
        with pytest.raises(errors.InvalidArgument, match="tokens: expected ids"):
            cache.restore(tokens)
    assert cache.restore([]) == 0


@pytest.mark.parametrize("slow", [True, False])
def test_on_nvme_is_restored_what_is_slow_to_compute(make, directory, prompt, monkeypatch, slow):
    if not slow:  # a microsecond a block
        monkeypatch.setattr(llama_cpp, "llama_perf_context", lambda context: types.SimpleNamespace(
            t_p_eval_ms=1, n_p_eval=64_000))
    with Terraced(directory, host_bytes=160 * MIB, extra='admission = "always"\n') as daemon:
        llm = make(n_ctx=512)
        cache = PromptCache(llm, opener(daemon))
        assert cache.restore(prompt[:200]) == 0
        llm.eval(prompt[:128])
        assert cache.store() > 0
        assert daemon.terrace("flush").returncode == 0 and daemon.stop() == 0
        daemon.start()
        other = PromptCache(make(n_ctx=512), opener(daemon))
        assert other.restore(prompt[:200]) == (128 if slow else 0)
        assert other.stats.errors == 0


def test_survives_its_daemon(make, running, prompt, computed):
    llm = make()
    cache = PromptCache(llm, opener(running))
    with opener(running)() as client:
        client.flush()
    running.kill()
    assert cache.restore(prompt) == 0
    assert cache.stats.errors == 1
    llm.eval(prompt[:128])
    assert cache.store() == 0
    running.start()
    deadline = time.monotonic() + 30
    while cache.restore(prompt) == 128 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert llm.n_tokens == STORED  # from NVMe, on top of what it computed
    np.testing.assert_array_equal(sequence_state(llm), computed[1])
    assert cache.stats.errors == 1
    cache.close()
    assert cache.restore([0, *prompt]) == 0
