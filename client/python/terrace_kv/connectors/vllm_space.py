"""The name of what a vLLM worker stores: everything that decides what the bytes of a block mean.
Two workers share blocks when their names are equal, and must not otherwise."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import vllm
from vllm.v1.kv_cache_interface import FullAttentionSpec

from terrace_kv import errors

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


def block_tokens(config: VllmConfig, cache: KVCacheConfig) -> int:
    """Tokens of a block. Raises InvalidArgument naming what is not supported."""
    groups = cache.kv_cache_groups
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    if len(groups) != 1 or not isinstance(groups[0].kv_cache_spec, FullAttentionSpec):
        raise errors.InvalidArgument(
            f"kv_cache_groups: {len(groups)} of {', '.join(sorted(set(kinds)))}; hybrid models are "
            "not supported, expected one group of full attention")
    parallel = config.parallel_config
    for name in ("pipeline_parallel_size", "decode_context_parallel_size",
                 "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise errors.InvalidArgument(f"{name}: {getattr(parallel, name)}; expected 1")
    tokens = groups[0].kv_cache_spec.block_size
    if cache.hash_block_size not in (None, tokens):
        raise errors.InvalidArgument(
            f"hash_block_size: {cache.hash_block_size}; expected the block size, {tokens}")
    algorithm = config.cache_config.prefix_caching_hash_algo
    if not algorithm.startswith("sha256"):
        raise errors.InvalidArgument(
            f"prefix_caching_hash_algo: {algorithm!r}; expected 'sha256' or 'sha256_cbor', whose "
            "hashes mean the same to every process")
    return tokens


def weights(model: str) -> str:
    """A local directory may hold other weights tomorrow: its files, by name, size and time."""
    directory = pathlib.Path(model)
    if not directory.is_dir():
        return model
    files = sorted(path for path in directory.iterdir()
                   if path.suffix in (".safetensors", ".bin", ".gguf", ".pt"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{directory.resolve()}#{digest(stats)}"


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def describe(config: VllmConfig, cache: KVCacheConfig, kv_caches: Mapping[str, torch.Tensor],
             layers: Mapping[str, Any], namespace: str) -> str:
    """The name, as JSON. `layers`: attention layers by name, which know their backend."""
    model, parallel = config.model_config, config.parallel_config
    tensors = [(name, str(tensor.dtype), list(tensor.shape[1:]) if tensor.shape[0] ==
                cache.num_blocks else list(tensor.shape[:1]) + list(tensor.shape[2:]))
               for name, tensor in sorted(kv_caches.items())]
    backends = sorted({f"{layer.get_attn_backend().get_name()}/{_isa(layer, config, cache)}"
                       for layer in layers.values()})
    return json.dumps({
        "engine": f"vllm {vllm.__version__}",
        "model": weights(model.model), "revision": model.revision,
        "config": digest(model.hf_config.to_dict()),
        "quantization": str(model.quantization), "dtype": str(model.dtype),
        "cache_dtype": config.cache_config.cache_dtype,
        "block_tokens": cache.kv_cache_groups[0].kv_cache_spec.block_size,
        "hash": config.cache_config.prefix_caching_hash_algo,
        "layout": str(cache.kv_cache_layout), "backends": backends,
        "rank": f"{parallel.rank % parallel.tensor_parallel_size}/{parallel.tensor_parallel_size}",
        "tensors": digest(tensors), "namespace": namespace,
    }, sort_keys=True)


def _isa(layer: Any, config: VllmConfig, cache: KVCacheConfig) -> str:
    """The instruction set whose kernels wrote the bytes, where the order of bytes depends on it."""
    if isa := getattr(layer, "isa", None):
        return isa
    if layer.get_attn_backend().get_name() != "CPU_ATTN":
        return ""
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    spec = cache.kv_cache_groups[0].kv_cache_spec
    return _get_attn_isa(config.model_config.dtype, spec.block_size, spec.head_size,
                         config.cache_config.cache_dtype)
