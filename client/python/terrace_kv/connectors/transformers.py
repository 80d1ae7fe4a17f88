"""A prefix cache for transformers: any causal language model with standard KV (DynamicCache of
transformers 5), on any device, batch size 1.

    cache = TerracePrefixCache(terrace_kv.open("/var/tmp/my-cache"), model)
    output = cache.generate(input_ids, max_new_tokens=64, do_sample=False)

The stored prefix of the prompt is restored, what was computed is stored, and output is what the
model alone would give. Restoring copies each layer once, when the model first needs it, straight
from shared memory into the concatenation that transformers performs anyway.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from terrace_kv import K, V, Client, KvGeometry, Lease, errors

logger = logging.getLogger(__name__)

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
LOAD_TIMEOUT_S = 30.0


class LoadFailed(Exception):
    """Stored KV could not be read after all: run again without it."""


@dataclasses.dataclass
class Stats:
    prompts: int = 0
    prompt_tokens: int = 0
    restored_tokens: int = 0
    stored_bytes: int = 0
    recomputed: int = 0  # prompts whose restored prefix could not be read
    errors: int = 0  # calls to the daemon that failed; generation went on


class _Restored:
    """A lease shared by the layers of one cache; given back when the last one has been read."""

    def __init__(self, lease: Lease, tokens: int, layers: int) -> None:
        self.tokens = tokens
        self._lease = lease
        self._layers_left = layers

    def read(self, layer: int, keys: torch.Tensor, values: torch.Tensor):
        """K and V of `layer` with the new ones behind: [1, kv_heads, tokens, head_dim] each."""
        try:
            self._lease.wait_layer(layer, LOAD_TIMEOUT_S)
            joined = self._join(layer, K, keys), self._join(layer, V, values)
        except errors.TerraceError as error:
            raise LoadFailed(str(error)) from error
        self._layers_left -= 1
        if self._layers_left == 0:
            self._lease.close()
        return joined

    def _join(self, layer: int, kv: int, new: torch.Tensor) -> torch.Tensor:
        """One copy out of shared memory, into the place where the new tokens follow."""
        heads, dim = new.shape[1], new.shape[3]
        on_cpu = new.device.type == "cpu"
        length = self.tokens + (new.shape[2] if on_cpu else 0)
        joined = torch.empty((1, heads, length, dim), dtype=new.dtype)
        self._lease.read_rows(layer, kv, self.tokens, joined.data_ptr(), heads,
                              joined.stride(1) * joined.element_size())
        if not on_cpu:
            return torch.cat([joined.to(new.device), new], dim=-2)
        joined[:, :, self.tokens :] = new
        return joined


class _RestoredLayer(DynamicLayer):
    """A layer whose content stays in shared memory until the model reaches it."""

    def __init__(self, restored: _Restored, layer: int) -> None:
        super().__init__()
        self._restored: _Restored | None = restored
        self._layer = layer

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if self._restored is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._restored.read(self._layer, key_states, value_states)
        self.is_initialized = True
        self._restored = None
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._restored.tokens if self._restored is not None else super().get_seq_length()


def _refuse_unless_standard(model: PreTrainedModel) -> None:
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise errors.InvalidArgument("model: encoder-decoder models are not supported")
    layers = DynamicCache(config=config).layers
    other = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    if other:
        raise errors.InvalidArgument(
            f"model: only standard KV is supported, this one has {', '.join(sorted(other))}")
    if model.dtype not in DTYPES:
        raise errors.InvalidArgument(
            f"model: dtype {model.dtype} is not one of {', '.join(map(str, DTYPES))}")


def weights_identity(model: PreTrainedModel) -> str:
    """A digest of the config and a sample of every parameter: names, shapes, and up to 1,024 values
    spread over each. Equal models agree across processes; fine-tuned ones differ."""
    digest = hashlib.sha256()
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype",
                     "quantization_config"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1024)][:1024].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(sample.contiguous().numpy().tobytes())
    return digest.hexdigest()


def geometry_of(model: PreTrainedModel, weights_id: str | None = None) -> KvGeometry:
    """The layout of the model's KV, as transformers keeps it: [kv_heads, tokens, head_dim]."""
    _refuse_unless_standard(model)
    config = model.config.get_text_config(decoder=True)
    rope = dict(getattr(config, "rope_parameters", None) or {})
    theta = rope.pop("rope_theta", getattr(config, "rope_theta", None) or 0.0)
    heads = config.num_attention_heads
    return KvGeometry(
        model_id=weights_id or weights_identity(model),
        dtype=DTYPES[model.dtype],
        order="head_major",
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rope_theta=float(theta),
        rope_scaling=json.dumps(rope, sort_keys=True, default=str) if rope else "",
        engine_layout="transformers",
    )


class TerracePrefixCache:
    """Restores and stores the KV of prompts. Not thread-safe; one a model and process."""

    def __init__(self, client: Client, model: PreTrainedModel, *, weights_id: str | None = None,
                 extra: bytes = b"") -> None:
        """`weights_id` names the weights where hashing a sample of them is not wanted; `extra`
        separates prompts that must not share (an adapter, a user)."""
        self.model = model
        self.stats = Stats()
        self._client = client
        self._extra = extra
        self._geometry = geometry_of(model, weights_id)
        self._registered = client.register_kv(self._geometry)

    def restore(self, input_ids: torch.Tensor) -> tuple[DynamicCache, int]:
        """(cache with the longest stored prefix, its tokens). At least one token is left to
        compute. Raises LoadFailed later, from the model's forward, if a load fails."""
        tokens = self._prompt(input_ids)
        try:
            match = self._client.match_prefix(self._registered, tokens[:-1], self._extra)
            if match.tokens == 0:
                return DynamicCache(), 0
            lease = self._client.acquire(self._registered, match)
        except errors.TerraceError as error:
            self._note(error, "restore")
            return DynamicCache(), 0
        matched = min(match.tokens, lease.usable_tokens)
        if matched == 0:
            lease.close()
            return DynamicCache(), 0
        restored = _Restored(lease, matched, self._geometry.layers)
        cache = DynamicCache()
        cache.layers = [_RestoredLayer(restored, i) for i in range(self._geometry.layers)]
        return cache, matched

    def store(self, input_ids: torch.Tensor, cache: DynamicCache, *, cost_us: int = 0) -> int:
        """Stores the KV of the leading tokens that `cache` covers; returns the bytes written.
        A failure is counted and logged, never raised: the engine has its answer already."""
        length = cache.get_seq_length()
        tokens = input_ids.reshape(-1)[:length].cpu().numpy()
        try:
            with self._client.begin_store(self._registered, tokens, extra=self._extra,
                                          cost_us=cost_us) as store:
                for chunk in store.chunks:
                    if chunk.needed:
                        self._write_chunk(store, chunk, cache)
                written = store.commit().stored_bytes
        except errors.TerraceError as error:
            self._note(error, "store")
            return 0
        self.stats.stored_bytes += written
        return written

    def generate(self, input_ids: torch.Tensor, **kwargs) -> torch.Tensor:
        """model.generate with the stored prefix restored; stores prompt and answer. Returns the
        token ids [1, prompt + new]."""
        tokens = self._prompt(input_ids)
        started = time.monotonic()
        cache, matched = self.restore(input_ids)
        self.stats.prompts += 1
        self.stats.prompt_tokens += len(tokens)
        try:
            output = self._run(input_ids, cache, kwargs)
            self.stats.restored_tokens += matched
        except LoadFailed as error:
            logger.warning("terrace: %s; computing the whole prompt", error)
            self.stats.recomputed += 1
            output = self._run(input_ids, DynamicCache(), kwargs)
        cost_us = int((time.monotonic() - started) * 1e6)
        self.store(output.sequences, output.past_key_values, cost_us=cost_us)
        return output.sequences

    def _run(self, input_ids: torch.Tensor, cache: DynamicCache, kwargs: dict):
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        return self.model.generate(input_ids, past_key_values=cache, return_dict_in_generate=True,
                                   **kwargs)

    def _prompt(self, input_ids: torch.Tensor):
        if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
            raise errors.InvalidArgument(
                f"input_ids: expected shape [1, tokens], got {tuple(input_ids.shape)}")
        return input_ids[0].cpu().numpy()

    def _write_chunk(self, store, chunk, cache: DynamicCache) -> None:
        for index, layer in enumerate(cache.layers):
            for kv, tensor in ((K, layer.keys), (V, layer.values)):
                # [1, heads, tokens, dim]: one run of the chunk's tokens a head.
                tensor = tensor.cpu().contiguous()
                item = tensor.element_size() * tensor.shape[-1]
                store.write_rows(
                    chunk.index, index, kv, tensor.data_ptr() + chunk.token_begin * item,
                    tensor.shape[1], chunk.token_count * item, tensor.shape[2] * item)

    def _note(self, error: errors.TerraceError, what: str) -> None:
        self.stats.errors += 1
        logger.warning("terrace: %s failed, generation goes on without it: %s", what, error)
