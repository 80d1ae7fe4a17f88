"""A model's KV of calibration texts and the gradients that say which of it matters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from terrace_kv.calibration.fit import Rope, Sample


def rope_of(model: PreTrainedModel) -> Rope:
    """Of models whose angles are position times a frequency; scaled ones included, as their own module
    computes the frequencies. ValueError otherwise."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model.model
    frequencies = getattr(getattr(inner, "rotary_emb", None), "inv_freq", None)
    if frequencies is None:
        raise ValueError(f"{type(model).__name__} has no rotary_emb with inv_freq: calibrate with "
                         "--forms fastest, which leaves keys rotated")
    return Rope("half", tuple(frequencies.double().tolist()))


def sections_of(cache: DynamicCache) -> list[torch.Tensor]:
    """Layer 0 K, layer 0 V, ..., each [heads, tokens, dim], of a batch of one."""
    return [x[0] for layer in cache.layers for x in (layer.keys, layer.values)]


def cache_of(model: PreTrainedModel, sections: Sequence[torch.Tensor]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    for index in range(len(sections) // 2):
        cache.update(sections[2 * index][None], sections[2 * index + 1][None], index)
    return cache


def prefix_kv(model: PreTrainedModel, tokens: Sequence[int]) -> list[torch.Tensor]:
    """Rounded to bfloat16, as an engine would store it."""
    with torch.no_grad():
        output = model(torch.tensor([tokens]), use_cache=True)
    return [x.bfloat16() for x in sections_of(output.past_key_values)]


def log_probabilities(model: PreTrainedModel, sections: Sequence[torch.Tensor],
                      continuation: Sequence[int]) -> torch.Tensor:
    """[tokens of the continuation, vocabulary], given the prefix's KV."""
    given = [x.to(model.dtype) for x in sections]
    output = model(torch.tensor([continuation]), past_key_values=cache_of(model, given),
                   use_cache=True)
    return torch.log_softmax(output.logits[0].float(), -1)


def gradient_sample(model: PreTrainedModel, text: Sequence[int], prefix: int,
                    draws: int) -> Sample:
    """`text`: token ids; the first `prefix` give KV, the others are what is predicted from it. The
    gradients are of the log-probabilities of `draws` continuations, each token drawn from the
    model's own prediction at its place in the text."""
    model.requires_grad_(False)
    kv = prefix_kv(model, text[:prefix])
    leaves = [x.to(model.dtype, copy=True).requires_grad_(True) for x in kv]
    predicted = log_probabilities(model, leaves, text[prefix:])
    gradients = []
    for draw in range(draws):
        drawn = torch.multinomial(predicted.detach().exp(), 1)
        gradients.append([g.bfloat16() for g in torch.autograd.grad(
            predicted.gather(1, drawn).sum(), leaves, retain_graph=draw < draws - 1)])
    return Sample(kv, gradients)
