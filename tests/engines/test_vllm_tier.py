"""vLLM's own offloading with terrace as its secondary tier, over a CPU leg of the tests."""

from __future__ import annotations

import argparse

from terraced import MIB, Terraced, chain_lengths
from vllm_engine import VllmEngine, tier_transfer

TOKENS = 1500
CACHED = TOKENS // 128 * 128


def test_a_fresh_process_loads_what_another_offloaded(directory, smollm2_dir):
    with Terraced(directory, host_bytes=256 * MIB, nvme_bytes=0) as store:
        transfer = tier_transfer(store.socket_path)
        with VllmEngine(directory, smollm2_dir, "tier", transfer=transfer) as engine:
            prompt = engine.ready().tokens(argparse, TOKENS)
            assert engine.generate(prompt)["cached"] == 0
            local = engine.generate(prompt)
            assert local["cached"] == CACHED
            store.wait_for("chunks stored", lambda status: status["objects"] >= TOKENS // 128)
            assert chain_lengths(store.json("ls", "--limit", "0")["objects"]) == [TOKENS // 128]
            engine.reset()
            answer = engine.generate(prompt)  # from vLLM's CPU memory or from terrace
            assert answer["cached"] == CACHED and answer["logprobs"] == local["logprobs"]
        with VllmEngine(directory, smollm2_dir, "tier-fresh", transfer=transfer) as fresh:
            answer = fresh.ready().generate(prompt)
            assert answer["cached"] == CACHED
            assert answer["ids"] == local["ids"] and answer["logprobs"] == local["logprobs"]
            store.kill()
            fresh.reset()
            assert len(fresh.generate(prompt[::-1], 2)["ids"]) == 2  # goes on without
