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
import inspect
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from terrace_kv import (
    K, V, Client, ExpectedRead, KvGeometry, Lease, Store, StoreChunk, errors,
)

logger = logging.getLogger(__name__)

DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
LOAD_TIMEOUT_S = 30.0

# What generate() passes on. Anything else a model takes (images, positions, embeddings) decides
# what its KV holds and is in no key. The cache and the shape of the result are ours.
PASSED_ON = frozenset(
    {*vars(GenerationConfig()), "attention_mask",
     *inspect.signature(GenerationMixin.generate).parameters}
    - {"self", "inputs", "kwargs", "custom_generate", "use_cache", "cache_implementation",
       "return_dict_in_generate"})


class LoadFailed(Exception):
    """Stored KV could not be read after all: run again without it."""


@dataclasses.dataclass
class Stats:
    """What generate() did since the cache was made."""

    prompts: int = 0
    prompt_tokens: int = 0
    restored_tokens: int = 0  # of prompt_tokens, not computed
    stored_bytes: int = 0
    recomputed: int = 0  # prompts whose restored prefix could not be read
    errors: int = 0  # calls to the daemon that failed; generation went on


class _Restored:
    """A lease shared by the layers of one cache; given back when the last one has been read."""

    def __init__(self, lease: Lease, tokens: int, layers: int) -> None:
        self.tokens = tokens
        self._lease = lease
        self._layers_left = layers

    def read(self, layer: int, keys: torch.Tensor,
             values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of `layer`, [1, kv_heads, restored + new tokens, head_dim] each. `keys` and
        `values` are the new ones. Raises LoadFailed."""
        try:
            self._lease.wait_layer(layer, LOAD_TIMEOUT_S)
            joined = self._join(layer, K, keys), self._join(layer, V, values)
        except errors.TerraceError as error:
            self.close()
            raise LoadFailed(str(error)) from error
        self._layers_left -= 1
        if self._layers_left == 0:
            self.close()
        return joined

    def close(self) -> None:
        self._lease.close()

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

    def crop(self, tokens_to_remove: int) -> None:
        if self._restored is not None:  # the base class would do nothing, silently
            raise errors.FailedPrecondition("restored KV cannot be cropped before the model ran")
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        self._restored = None
        super().reset()


def _rope_types(rope: Mapping[str, object]) -> Iterator[str]:
    """Of all layers: parameters may be nested once, by type of layer."""
    for name, value in rope.items():
        if isinstance(value, Mapping):
            yield from _rope_types(value)
        elif name == "rope_type":
            yield str(value)


def _refuse_unless_standard(model: PreTrainedModel) -> None:
    """Standard: each layer keeps one K and one V a token, and both depend on the tokens before it
    and on nothing else."""
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise errors.InvalidArgument("model: encoder-decoder models are not supported")
    if getattr(config, "kv_lora_rank", None):
        raise errors.InvalidArgument("model: latent attention (kv_lora_rank) is not supported")
    layers = DynamicCache(config=config).layers
    other = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    if other:
        raise errors.InvalidArgument(
            f"model: only standard KV is supported, this one has {', '.join(sorted(other))}")
    if len(layers) != config.num_hidden_layers:
        raise errors.InvalidArgument(f"model: {config.num_hidden_layers} layers share the KV of "
                                     f"{len(layers)}, which is not supported")
    for rope_type in _rope_types(getattr(config, "rope_parameters", None) or {}):
        if "dynamic" in rope_type or rope_type == "longrope":
            raise errors.InvalidArgument(
                f"model: with RoPE of type {rope_type}, KV depends on the length of the prompt")
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
    scaled = rope != {} and rope != {"rope_type": "default"}
    heads = config.num_attention_heads
    return KvGeometry(
        model_id=weights_id or weights_identity(model),
        dtype=DTYPES[model.dtype],
        order="head_major",
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        rope_theta=float(theta),
        rope_scaling=json.dumps(rope, sort_keys=True, default=str) if scaled else "",
        engine_layout="transformers",
    )


class TerracePrefixCache:
    """Restores and stores the KV of prompts. Not thread-safe; one a model and process. The weights
    are identified when it is made: make a new one after changing them."""

    def __init__(self, client: Client, model: PreTrainedModel, *, weights_id: str | None = None,
                 extra: bytes = b"") -> None:
        """`weights_id` names the weights where hashing a sample of them is not wanted; `extra`
        separates prompts that must not share (an adapter, a user). Raises InvalidArgument naming
        what is not standard about the model's KV, and what the daemon answers."""
        self.model = model
        self.stats = Stats()
        self._client = client
        self._extra = extra
        self._geometry = geometry_of(model, weights_id)
        self._registered = client.register_kv(self._geometry)
        self._announced = 0  # requests 0 .. n-1

    def restore(self, input_ids: torch.Tensor) -> tuple[DynamicCache, int]:
        """(cache with the longest stored prefix of `input_ids` [1, tokens], its length in tokens).
        At least one token is left to compute. The cache holds a lease until the model has read all
        its layers. The model's forward raises LoadFailed if a layer cannot be read after all."""
        cache, restored = self._restore(self._prompt(input_ids))
        return cache, restored.tokens if restored else 0

    def announce(self, waiting: Sequence[torch.Tensor]) -> None:
        """The prompts, [1, tokens] each, that generate() or restore() will be given next, in that
        order: what is stored of them is brought to memory meanwhile. Takes the place of what was
        announced before. A failure is counted and logged, never raised."""
        reads = [ExpectedRead(request_id=order, order=order, tokens=self._prompt(ids),
                              extra=self._extra) for order, ids in enumerate(waiting)]
        try:
            self._client.withdraw(range(len(reads), self._announced))
            self._client.hint(reads, self._registered)
        except errors.TerraceError as error:
            self._note(error, "announce")
        self._announced = len(reads)

    def store(self, input_ids: torch.Tensor, cache: DynamicCache, *, cost_us: int = 0) -> int:
        """Stores the KV of the leading tokens of `input_ids` [1, tokens] that `cache` covers, which
        took `cost_us` to compute; returns the bytes written. A failure, also of a cache that is not
        one prompt's of this model, is counted and logged, never raised: the engine has its answer
        already."""
        tokens = self._prompt(input_ids)
        try:
            tokens = tokens[: self._covered(cache)]
            with self._client.begin_store(self._registered, tokens, extra=self._extra,
                                          cost_us=cost_us) as store:
                needed = [chunk for chunk in store.chunks if chunk.needed]
                for index, layer in enumerate(cache.layers if needed else []):
                    self._write_layer(store, needed, index, K, layer.keys)
                    self._write_layer(store, needed, index, V, layer.values)
                written = store.commit().stored_bytes
        except errors.TerraceError as error:
            self._note(error, "store")
            return 0
        self.stats.stored_bytes += written
        return written

    def generate(self, input_ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """model.generate with the stored prefix restored; stores prompt and answer. `input_ids` is
        [1, prompt]; returns the token ids [1, prompt + new]. Takes the options of model.generate
        but for several sequences or beams, masked tokens and inputs other than token ids: these
        raise InvalidArgument, for KV would then depend on more than its key. When a load fails, the
        prompt is computed from its start; a streamer is then given the prompt a second time."""
        tokens = self._prompt(input_ids)
        self._refuse_what_is_in_no_key(kwargs)
        started = time.monotonic()
        cache, restored = self._restore(tokens)
        self.stats.prompts += 1
        self.stats.prompt_tokens += len(tokens)
        try:
            output = self._run(input_ids, cache, kwargs)
            self.stats.restored_tokens += restored.tokens if restored else 0
        except LoadFailed as error:
            logger.warning("terrace: %s; computing the whole prompt", error)
            self.stats.recomputed += 1
            output = self._run(input_ids, DynamicCache(), kwargs)
        finally:
            if restored:
                restored.close()
        cost_us = int((time.monotonic() - started) * 1e6)
        self.store(output.sequences, output.past_key_values, cost_us=cost_us)
        return output.sequences

    def _restore(self, tokens: np.ndarray) -> tuple[DynamicCache, _Restored | None]:
        try:
            match = self._client.match_prefix(self._registered, tokens[:-1], self._extra)
            if match.tokens == 0:
                return DynamicCache(), None
            lease = self._client.acquire(self._registered, match)
        except errors.NotFound:  # evicted since
            return DynamicCache(), None
        except errors.TerraceError as error:
            self._note(error, "restore")
            return DynamicCache(), None
        matched = min(match.tokens, lease.usable_tokens)
        if matched == 0:
            lease.close()
            return DynamicCache(), None
        restored = _Restored(lease, matched, self._geometry.layers)
        cache = DynamicCache()
        cache.layers = [_RestoredLayer(restored, i) for i in range(self._geometry.layers)]
        return cache, restored

    def _run(self, input_ids: torch.Tensor, cache: DynamicCache, kwargs: dict[str, object]):
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        return self.model.generate(input_ids, past_key_values=cache, return_dict_in_generate=True,
                                   **kwargs)

    def _prompt(self, input_ids: torch.Tensor) -> np.ndarray:
        if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
            raise errors.InvalidArgument(
                f"input_ids: expected shape [1, tokens], got {tuple(input_ids.shape)}")
        if self.model.training:
            raise errors.InvalidArgument("model: it is in training mode; call model.eval() first")
        return input_ids[0].cpu().numpy()

    def _refuse_what_is_in_no_key(self, kwargs: Mapping[str, object]) -> None:
        for name in kwargs:
            if name not in PASSED_ON:
                raise errors.InvalidArgument(
                    f"{name}: the prefix cache cannot pass this on to model.generate")
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(torch.as_tensor(mask).all()):
            raise errors.InvalidArgument("attention_mask: every token of the prompt must count")
        config = kwargs.get("generation_config") or self.model.generation_config
        for name in ("num_beams", "num_return_sequences"):
            value = kwargs.get(name, getattr(config, name, None)) or 1
            if value != 1:
                raise errors.InvalidArgument(f"{name}: {value}; only 1 is supported")

    def _covered(self, cache: DynamicCache) -> int:
        """Tokens in `cache`, once every layer is known to have the shape of this model's KV."""
        length = cache.get_seq_length()
        want = (1, self._geometry.kv_heads, length, self._geometry.head_dim)
        if length and len(cache.layers) != self._geometry.layers:
            raise errors.InvalidArgument(
                f"cache: {len(cache.layers)} layers; expected {self._geometry.layers}")
        for index, layer in enumerate(cache.layers if length else []):
            if not layer.is_initialized:
                raise errors.InvalidArgument(f"cache: the model has not run layer {index} yet")
            for tensor in (layer.keys, layer.values):
                if tuple(tensor.shape) != want or DTYPES.get(tensor.dtype) != self._geometry.dtype:
                    raise errors.InvalidArgument(
                        f"cache: layer {index} is {tensor.dtype} {tuple(tensor.shape)}; expected "
                        f"{self._geometry.dtype} {want}")
        return length

    @staticmethod
    def _write_layer(store: Store, chunks: list[StoreChunk], layer: int, kv: int,
                     tensor: torch.Tensor) -> None:
        """`tensor` is [1, kv_heads, tokens, head_dim]: one run of a chunk's tokens a head."""
        tensor = tensor.cpu().contiguous()
        item = tensor.element_size() * tensor.shape[3]
        for chunk in chunks:
            store.write_rows(chunk.index, layer, kv, tensor.data_ptr() + chunk.token_begin * item,
                             tensor.shape[1], chunk.token_count * item, tensor.shape[2] * item)

    def _note(self, error: errors.TerraceError, what: str) -> None:
        self.stats.errors += 1
        logger.warning("terrace: %s failed, generation goes on without it: %s", what, error)
