"""Stand-ins for the gradients of collect.gradient_sample() that need no back-propagation through the
model. Each gives a Sample, whose "gradients" are random with the outer product that is meant: the
rest of calibration does not know the difference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AttentionInterface, PreTrainedModel

from terrace_kv.calibration import collect
from terrace_kv.calibration.fit import SINKS, Sample

NOISE = 0.1  # of a channel's root mean square
NOISE_SCORED = 64  # tokens whose predictions are compared for each section

_ATTENTION = "terrace_energies"


class _Energies:
    """Queries and outputs of one pass over a continuation. For an output error o of a layer's
    attention, what counts is |W_o o| relative to the residual stream: gradients of r . W_o o for
    random r, by hand, through this one attention only."""

    def __init__(self, prefix: int, draws: int) -> None:
        self.prefix, self.draws = prefix, draws
        self.by_layer: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # of each: draws of (K, V)

    def __call__(self, module, query, key, value, attention_mask, scaling, **_):
        query, key, value = query[0].float(), key[0].float(), value[0].float()
        heads, new, dim = query.shape
        group = heads // key.shape[0]
        keys, values = (x.repeat_interleave(group, 0) for x in (key, value))
        total = key.shape[1]
        seen = torch.arange(total)[None] <= torch.arange(total - new, total)[:, None]
        logits = (query @ keys.transpose(1, 2) * scaling).masked_fill(~seen, -torch.inf)
        share = logits.softmax(-1)
        output = share @ values
        self.by_layer.append([self._draw(module, query, values, share, output, scaling, group)
                              for _ in range(self.draws)])
        return output.transpose(0, 1)[None].to(module.o_proj.weight.dtype), None

    def _draw(self, module, query, values, share, output, scaling, group):
        heads, new, _ = query.shape
        weight = module.o_proj.weight.float()  # [hidden, heads * dim of V]
        wanted = (torch.randn(new, len(weight)) @ weight).view(new, heads, -1).transpose(0, 1)
        past = share[..., :self.prefix]
        of_v = past.transpose(1, 2) @ wanted
        change = (wanted @ values[:, :self.prefix].transpose(1, 2)
                  - (wanted * output).sum(-1, keepdim=True))
        of_k = (past * change).transpose(1, 2) @ query * scaling

        def by_kv_head(x: torch.Tensor) -> torch.Tensor:
            return x.view(heads // group, group, *x.shape[1:]).sum(1)
        return by_kv_head(of_k), by_kv_head(of_v)


def energy_sample(model: PreTrainedModel, text: Sequence[int], prefix: int, draws: int) -> Sample:
    """From the energies of queries and of attention's outputs: two passes, no back-propagation."""
    kv = collect.prefix_kv(model, text[:prefix])
    energies = _Energies(prefix, draws)
    AttentionInterface.register(_ATTENTION, energies)
    usual = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION)
    try:
        with torch.no_grad():
            output = model(torch.tensor([text[prefix:]]), use_cache=True, output_hidden_states=True,
                           past_key_values=collect.cache_of(model, [x.to(model.dtype) for x in kv]))
    finally:
        model.set_attn_implementation(usual)
    stream = [float(x.float().pow(2).sum(-1).mean().rsqrt()) for x in output.hidden_states[1:]]
    return Sample(kv, [[(x * scale).bfloat16() for layer, scale in zip(energies.by_layer, stream)
                        for x in layer[draw]] for draw in range(draws)])


def noise_sample(model: PreTrainedModel, text: Sequence[int], prefix: int, draws: int) -> Sample:
    """From the KL that noise in one section causes, as many passes as there are sections: a weight a
    section, spread over its channels by their variance; says nothing of tokens."""
    kv = collect.prefix_kv(model, text[:prefix])
    scored = text[prefix:prefix + NOISE_SCORED]

    def predicted(sections: list[torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return collect.log_probabilities(model, sections, scored)

    reference, weights = predicted(kv), []
    for index, section in enumerate(kv):
        spread = section.float()[:, SINKS:].pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        noisy = section.float() + NOISE * spread * torch.randn(section.shape)
        noisy[:, :SINKS] = section[:, :SINKS]
        given = predicted([*kv[:index], noisy, *kv[index + 1:]])
        kl = float((reference.exp() * (reference - given)).sum(-1).mean())
        weights.append((max(kl, 1e-9) ** 0.5 / NOISE / spread))
    return Sample(kv, [[(w * torch.randn(x.shape)).bfloat16() for w, x in zip(weights, kv)]
                       for _ in range(draws)])


# What `--weights` may be: how a text becomes a sample, and whether only the diagonal is used of it.
WEIGHTS = {
    "fisher": (collect.gradient_sample, False),
    "diagonal": (collect.gradient_sample, True),
    "energies": (energy_sample, False),
    "noise": (noise_sample, True),
}
