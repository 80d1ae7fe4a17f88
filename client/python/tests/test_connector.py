"""The prefix cache for transformers: on a tiny random model, and once on SmolLM2."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import (
    DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache, GenerationConfig, LlamaConfig,
    LlamaForCausalLM, MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration,
)

import smollm2
import terrace_kv
from conftest import BUILD
from terrace_kv import errors
from terrace_kv.connectors.transformers import TerracePrefixCache, geometry_of
from terraced import MIB, Terraced


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of torch wait for each other awake: on a busy machine two are six times slower than
    one, also for SmolLM2."""
    torch.set_num_threads(1)


def tiny(dtype: torch.dtype = torch.float32, seed: int = 0, **changes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
                         bos_token_id=1, eos_token_id=None, pad_token_id=0, **changes)
    return LlamaForCausalLM(config).to(dtype).eval()


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 500, (1, length), generator=torch.Generator().manual_seed(seed))


def plain(model, ids: torch.Tensor, new: int) -> tuple[list[int], DynamicCache]:
    """Greedy tokens and cache of the model alone."""
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                            do_sample=False, return_dict_in_generate=True)
    return output.sequences[0].tolist(), output.past_key_values


def same_kv(a: DynamicCache, b: DynamicCache, tokens: int) -> bool:
    return all(torch.equal(x[:, :, :tokens], y[:, :, :tokens])
               for p, q in zip(a.layers, b.layers, strict=True)
               for x, y in ((p.keys, q.keys), (p.values, q.values)))


def test_announced_prompts_are_in_memory_when_their_turn_comes(directory):
    model, waiting = tiny(), [prompt(600, seed) for seed in (1, 2)]
    with Terraced(directory) as daemon:
        with terrace_kv.open(socket=daemon.socket_path) as client:
            cache = TerracePrefixCache(client, model)
            expected = [cache.generate(ids, max_new_tokens=4, do_sample=False) for ids in waiting]
            client.flush(60)
        daemon.kill()
        daemon.start()
        with terrace_kv.open(socket=daemon.socket_path) as client:
            cache = TerracePrefixCache(client, model)
            cache.announce([*waiting, prompt(600, 3)])  # one that is not stored
            deadline = time.monotonic() + 30
            while client.status()["tiers"][0]["objects"] < 4:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for ids, tokens in zip(waiting, expected, strict=True):
                again = cache.generate(ids, max_new_tokens=4, do_sample=False)
                assert torch.equal(again, tokens)
            assert client.status()["counters"]["prefetch_queue_timely"] >= 4
            cache.announce([])
            assert client.status()["counters"]["hint_requests"] == 0
            assert cache.stats.errors == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_prefix_gives_the_same_tokens_and_bytes(client, dtype):
    model = tiny(dtype)
    cache = TerracePrefixCache(client, model)
    ids = prompt(700)
    expected, computed = plain(model, ids, 24)
    assert cache.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist() == expected
    assert cache.stats.restored_tokens == 0 and cache.stats.stored_bytes > 0
    assert cache.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist() == expected
    assert cache.stats.restored_tokens == 688  # one token is left to compute, at a grain of 16
    restored, matched = cache.restore(ids)
    with torch.inference_mode():
        model(ids[:, matched:], past_key_values=restored)
    assert same_kv(restored, computed, matched)
    assert cache.stats.errors == 0 and client.status()["leases"] == 0


def test_a_conversation_grows_and_prompts_share(client):
    model = tiny()
    cache = TerracePrefixCache(client, model)
    history = prompt(300)
    for turn in range(3):
        answer = cache.generate(history, max_new_tokens=20, do_sample=False)
        assert answer[0].tolist() == plain(model, history, 20)[0]
        history = torch.cat([answer, prompt(50, seed=turn + 1)], dim=1)
    before = cache.stats.restored_tokens
    assert before >= 300 + 370 - 64
    # Another prompt that shares 400 tokens and then differs.
    other = torch.cat([history[:, :400], prompt(60, seed=9)], dim=1)
    assert cache.generate(other, max_new_tokens=20, do_sample=False)[0].tolist() == \
        plain(model, other, 20)[0]
    assert cache.stats.restored_tokens - before == 400


def test_models_and_extras_do_not_share(client):
    ids = prompt(300)
    one, two = tiny(seed=1), tiny(seed=2)
    TerracePrefixCache(client, one).generate(ids, max_new_tokens=1, do_sample=False)
    for cache in (TerracePrefixCache(client, two), TerracePrefixCache(client, one, extra=b"lora")):
        assert cache.restore(ids)[1] == 0
    same = TerracePrefixCache(client, tiny(seed=1))
    assert same.restore(ids)[1] == 288
    assert geometry_of(one) == geometry_of(tiny(seed=1)) != geometry_of(two)


def in_first_forward(model: LlamaForCausalLM, layer: int, action) -> None:
    """Runs `action` once, after `layer` of the model has run."""
    def hook(*_: object) -> None:
        handle.remove()
        action()
    handle = model.model.layers[layer].register_forward_hook(hook)


def store_as_slow(client: terrace_kv.Client, model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    """Stores the prompt of a model that takes so long that nobody would compute it anew."""
    in_first_forward(model, 0, lambda: time.sleep(1))
    TerracePrefixCache(client, model).generate(ids, max_new_tokens=1, do_sample=False)
    client.flush(60)


def test_from_nvme_after_sigkill(directory):
    model, ids = tiny(), prompt(600)
    expected, _ = plain(model, ids, 16)
    with Terraced(directory) as daemon:
        with terrace_kv.open(socket=daemon.socket_path) as client:
            store_as_slow(client, model, ids)
        daemon.kill()
        daemon.start()
        with terrace_kv.open(socket=daemon.socket_path) as client:
            cache = TerracePrefixCache(client, model)
            assert cache.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist() == expected
            assert cache.stats.restored_tokens == 592


def test_the_daemon_dies_and_generation_goes_on(daemon, client):
    model, ids = tiny(), prompt(400)
    expected, _ = plain(model, ids, 16)
    cache = TerracePrefixCache(client, model)
    cache.generate(ids, max_new_tokens=1, do_sample=False)
    daemon.kill()
    assert cache.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist() == expected
    assert cache.stats.errors > 0


def test_the_daemon_dies_in_the_middle_of_a_restored_prompt(directory):
    model, ids = tiny(), prompt(600)
    expected, _ = plain(model, ids, 16)
    with Terraced(directory) as daemon:
        with terrace_kv.open(socket=daemon.socket_path) as client:
            store_as_slow(client, model, ids)
        daemon.kill()
        daemon.start()
        with terrace_kv.open(socket=daemon.socket_path) as client:
            cache = TerracePrefixCache(client, model)
            in_first_forward(model, 0, daemon.kill)
            assert cache.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist() == expected
            # Layers that were up already are read; the answer cannot be stored.
            assert cache.stats.restored_tokens in (0, 256, 512, 592) and cache.stats.errors == 1


def test_a_layer_that_cannot_be_read_is_computed(client):
    model, ids = tiny(), prompt(400)
    expected, _ = plain(model, ids, 16)
    cache = TerracePrefixCache(client, model)
    cache.generate(ids, max_new_tokens=1, do_sample=False)
    in_first_forward(model, 1, client.close)  # layers 0 and 1 are restored, 2 is not
    assert cache.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist() == expected
    assert cache.stats.recomputed == 1 and cache.stats.restored_tokens == 0


def test_an_error_of_the_engine_gives_the_lease_back(client):
    model, ids = tiny(), prompt(400)
    cache = TerracePrefixCache(client, model)
    cache.generate(ids, max_new_tokens=1, do_sample=False)
    in_first_forward(model, 1, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        cache.generate(ids, max_new_tokens=1, do_sample=False)
    client.flush(10)  # releases are not waited for; calls keep their order
    assert client.status()["leases"] == 0 and raised.tb  # whose frames still hold the cache


def test_a_damaged_object_is_recomputed(directory):
    model, ids = tiny(), prompt(600)
    expected, _ = plain(model, ids, 16)
    with Terraced(directory) as daemon:
        with terrace_kv.open(socket=daemon.socket_path) as client:
            store_as_slow(client, model, ids)
        daemon.stop()  # after a kill it would be taken for a write that never ended
        segment = next((directory / "state" / "nvme").rglob("*.tseg"))
        content = bytearray(segment.read_bytes())
        # In the payload of the second object: a block of the segment, then a block and 256 tokens
        # of 1 KiB for each object.
        content[4096 + (4096 + 256 * 1024) + 4096 + 100_000] ^= 1
        segment.write_bytes(content)
        daemon.start()
        with terrace_kv.open(socket=daemon.socket_path) as client:
            cache = TerracePrefixCache(client, model)
            assert cache.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist() == expected
            assert cache.stats.recomputed == 1
            assert client.status()["counters"]["corrupt_objects"] == 1
            # What was computed instead is stored again.
            assert cache.generate(ids, max_new_tokens=16, do_sample=False)[0].tolist() == expected
            assert cache.stats.recomputed == 1 and cache.stats.restored_tokens > 500


def test_what_is_not_standard_kv_is_refused_by_name(client):
    sliding = MistralForCausalLM(MistralConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=64))
    with pytest.raises(errors.InvalidArgument, match="SlidingWindow"):
        TerracePrefixCache(client, sliding)
    with pytest.raises(errors.InvalidArgument, match="encoder-decoder"):
        TerracePrefixCache(client, T5ForConditionalGeneration(T5Config(
            vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)))
    latent = DeepseekV3ForCausalLM(DeepseekV3Config(
        vocab_size=100, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=8,
        kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=8, v_head_dim=16, qk_nope_head_dim=8))
    with pytest.raises(errors.InvalidArgument, match="kv_lora_rank"):
        TerracePrefixCache(client, latent)
    for dtype in (torch.float64, torch.float8_e4m3fn):
        with pytest.raises(errors.InvalidArgument, match=str(dtype)):
            TerracePrefixCache(client, tiny(dtype))
    dynamic = tiny(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
    with pytest.raises(errors.InvalidArgument, match="RoPE of type dynamic"):
        TerracePrefixCache(client, dynamic)


def test_prompts_whose_kv_depends_on_more_than_their_tokens_are_refused(client):
    model, ids = tiny(), prompt(40)
    cache = TerracePrefixCache(client, model)
    for bad in (ids[0], ids.repeat(2, 1), ids[:, :0]):
        with pytest.raises(errors.InvalidArgument, match="input_ids"):
            cache.generate(bad, max_new_tokens=1)
    masked = torch.ones_like(ids)
    masked[:, :3] = 0
    for name, value in (("attention_mask", masked), ("num_beams", 2), ("num_return_sequences", 2),
                        ("pixel_values", torch.zeros(1)), ("inputs_embeds", torch.zeros(1, 40, 64)),
                        ("past_key_values", DynamicCache()), ("use_cache", False)):
        with pytest.raises(errors.InvalidArgument, match=name):
            cache.generate(ids, max_new_tokens=1, do_sample=False, **{name: value})
    with pytest.raises(errors.InvalidArgument, match="num_beams"):
        cache.generate(ids, generation_config=GenerationConfig(num_beams=3, max_new_tokens=1))
    model.train()
    with pytest.raises(errors.InvalidArgument, match="training"):
        cache.generate(ids, max_new_tokens=1)
    model.eval()
    assert client.status()["objects"] == 0 and client.status()["leases"] == 0
    options = GenerationConfig(max_new_tokens=4, do_sample=False, repetition_penalty=1.2)
    cache.generate(ids, generation_config=options, attention_mask=torch.ones_like(ids))
    assert client.status()["objects"] == 1


def test_a_cache_that_is_not_one_prompts_is_not_stored(client):
    model, ids = tiny(), prompt(300)
    cache = TerracePrefixCache(client, model)
    _, computed = plain(model, ids, 1)
    two, half = plain(model, ids, 1)[1], plain(model, ids, 1)[1]
    two.batch_repeat_interleave(2)
    half.layers[2].keys = half.layers[2].keys.to(torch.float16)
    short = plain(model, ids, 1)[1]
    short.layers.pop()
    for bad in (two, half, short):
        assert cache.store(ids, bad) == 0
    assert cache.stats.errors == 3 and client.status()["objects"] == 0
    assert cache.store(ids, DynamicCache()) == 0 and cache.stats.errors == 3
    assert cache.store(ids, computed) > 0
    restored, matched = cache.restore(ids)
    assert matched == 288 and cache.store(ids, restored) == 0 and cache.stats.errors == 4
    with pytest.raises(errors.FailedPrecondition, match="cropped"):
        restored.layers[0].crop(-4)


def test_a_prompt_shorter_than_a_grain(client):
    model, ids = tiny(), prompt(9)
    cache = TerracePrefixCache(client, model)
    for _ in range(2):
        assert cache.generate(ids, max_new_tokens=3, do_sample=False)[0].tolist() == \
            plain(model, ids, 3)[0]
    assert cache.stats.restored_tokens == 0 and cache.stats.errors == 0


def test_smollm2_64_greedy_tokens(directory):
    model, tokenizer = smollm2.load()
    text = "The lighthouse keeper wrote in his log every evening. " * 28 + "One night"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.shape[1] > 256
    expected, computed = plain(model, ids, 64)
    options = {"daemon": str(BUILD / "terraced"), "host_capacity_bytes": 256 * MIB,
               "nvme_capacity_bytes": 512 * MIB}
    with terrace_kv.open(directory / "cache", **options) as client:
        cache = TerracePrefixCache(client, model)
        cache.store(ids, computed)
        assert cache.generate(ids, max_new_tokens=64, do_sample=False)[0].tolist() == expected
        assert cache.stats.restored_tokens == (ids.shape[1] - 1) // 16 * 16
        restored, matched = cache.restore(ids)
        with torch.inference_mode():
            model(ids[:, matched:], past_key_values=restored)
        assert same_kv(restored, computed, matched)
