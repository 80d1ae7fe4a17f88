"""Size and loss of encoded KV on a model: the KV of a prefix is encoded and decoded, and what the model
then says of the tokens after it is compared with what it says given the KV as it was (bfloat16)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from terrace_kv.calibration import collect
from terrace_kv.calibration.profile_file import Point
from terrace_kv.codec import Codec, Shape

KV = list[torch.Tensor]  # layer 0 K, layer 0 V, ..., each [heads, tokens, dim]


@dataclasses.dataclass
class Text:
    kind: str
    kv: KV
    continuation: list[int]
    reference: torch.Tensor  # log-probabilities given the KV as it was


@dataclasses.dataclass
class Loss:
    """Of one text, by token: KL divergence in nats, whether the likeliest token stayed, and the negative
    log-likelihood of the text with the decoded KV and with the KV as it was."""

    kl: torch.Tensor
    top1: torch.Tensor
    nll: torch.Tensor
    nll0: torch.Tensor


def text_of(model: PreTrainedModel, kind: str, ids: Sequence[int], prefix: int) -> Text:
    kv, continuation = collect.prefix_kv(model, ids[:prefix]), list(ids[prefix:])
    with torch.no_grad():
        reference = collect.log_probabilities(model, kv, continuation[:-1])
    return Text(kind, kv, continuation, reference)


def loss(model: PreTrainedModel, text: Text, kv: KV) -> Loss:
    with torch.no_grad():
        given = collect.log_probabilities(model, kv, text.continuation[:-1])
    kl = (text.reference.exp() * (text.reference - given)).sum(-1)
    truth = torch.tensor(text.continuation[1:])[:, None]
    return Loss(kl, (given.argmax(-1) == text.reference.argmax(-1)).float(),
                -given.gather(1, truth)[:, 0], -text.reference.gather(1, truth)[:, 0])


def through(codec: Codec, lambda16: int, refined: bool = False) -> Callable[[KV], tuple[KV, float]]:
    """KV to (KV after encoding and decoding, bits a value of the whole container)."""
    def apply(kv: KV) -> tuple[KV, float]:
        heads, tokens, k_dim = kv[0].shape
        shape = Shape(len(kv) // 2, heads, k_dim, kv[1].shape[-1], tokens)
        data = torch.cat([x.reshape(-1) for x in kv]).view(torch.uint8).numpy()
        container = codec.encode(data, shape, lambda16, refined=refined)
        decoded = torch.from_numpy(codec.decode(container, data.nbytes)).view(torch.bfloat16)
        sizes = [x.numel() for x in kv]
        return ([part.view(x.shape) for part, x in zip(decoded.split(sizes), kv)],
                8 * len(container) / sum(sizes))
    return apply


def _student_95(degrees: int) -> float:
    """The 97.5% quantile of Student's t, within .2% (Abramowitz and Stegun 26.7.5)."""
    if degrees < 3:
        return {1: 12.706, 2: 4.303}.get(degrees, math.inf)
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2) + (
        3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)


def row(model: PreTrainedModel, texts: Sequence[Text],
        apply: Callable[[KV], tuple[KV, float]]) -> dict:
    """What build/quality.json says of a codec. dNLL is relative to the NLL with the KV as it was, its
    interval (95%, paired, Student's t) over texts."""
    bits, losses = [], []
    for text in texts:
        kv, b = apply(text.kv)
        bits.append(b)
        losses.append(loss(model, text, kv))
    relative = torch.stack([x.nll.mean() / x.nll0.mean() - 1 for x in losses])
    mean = float(relative.mean())
    margin = 0.0 if len(texts) == 1 else (
        _student_95(len(texts) - 1) * float(relative.std()) / math.sqrt(len(texts)))
    kl = torch.cat([x.kl for x in losses])
    kinds = {kind: float(torch.cat([x.kl for x, t in zip(losses, texts) if t.kind == kind]).mean())
             for kind in dict.fromkeys(t.kind for t in texts)}
    kind_bits = {kind: [b for b, t in zip(bits, texts) if t.kind == kind] for kind in kinds}
    by_text = torch.stack([x.kl.mean() for x in losses])
    return {"bits_per_value": sum(bits) / len(bits), "mean_kl": float(kl.mean()),
            "kl_standard_error": float(by_text.std() / math.sqrt(len(texts))) if len(texts) > 1
            else 0.0,
            "p99_kl": float(kl.quantile(0.99)), "top1": float(torch.cat(
                [x.top1 for x in losses]).mean()), "dnll": mean, "dnll_low": mean - margin,
            "dnll_high": mean + margin, "texts": len(texts), "kl_by_kind": kinds,
            "bits_by_kind": {kind: sum(of) / len(of) for kind, of in kind_bits.items()},
            "worst_kind_ratio": max(kinds.values()) / max(float(kl.mean()), 1e-30)}


def operating_points(steps: Sequence[int], rows: Sequence[dict]) -> list[Point]:
    """Of rows measured at ascending steps; a KL that came out below a smaller step's is raised to
    it, so that no limit is met by luck."""
    points, largest = [], 1e-9
    for lambda16, measured in zip(steps, rows):
        largest = max(largest, measured["mean_kl"])
        points.append(Point(lambda16, measured["bits_per_value"], largest))
    return points
