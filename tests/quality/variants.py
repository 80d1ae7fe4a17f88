"""What was tried and does not pay, or what others do inside our frame: name -> (KV, bits a value).

The frame is a profile's own: K un-rotated, mean, weights or KLT, token levels, one step. Its entropy coder
is an ideal one here, with the true standard deviation of each coefficient in each text at no cost:
variants differ from "fast, ideal coder" by what they are named after and by nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from transformers import AttentionInterface

from terrace_kv.calibration import collect, fit, measure
from terrace_kv.calibration.profile_file import Profile

SINKS = fit.SINKS
Coefficients = list[torch.Tensor]  # of each section, [tokens after the sinks, C]
Shifts = list[torch.Tensor]  # of each section, [tokens]: octaves by which the token's scale differs
Coder = Callable[[Coefficients, float, Shifts], tuple[Coefficients, float]]  # decoded, bits in all


def entropy(quantised: Sequence[torch.Tensor], shifts: Shifts) -> float:
    """Bits of an ideal coder with a table for each quarter octave of a coefficient's scale."""
    scales = []
    for q, shift in zip(quantised, shifts):
        deviation = (q * 2 ** -shift[:, None]).pow(2).mean(0).sqrt().clamp_min(1e-3)
        scales.append(4 * (torch.log2(deviation) + shift[:, None]))
    scale = torch.cat([x.reshape(-1) for x in scales]).round()
    q = torch.cat([x.reshape(-1) for x in quantised])
    scale -= scale.min()
    q -= q.min()
    _, pairs = (scale * (q.max() + 1) + q).double().unique(return_counts=True)
    of_scale = scale.long().bincount().double()
    of_scale = of_scale[of_scale > 0]
    pairs = pairs.double()
    return float((of_scale * of_scale.log2()).sum() - (pairs * pairs.log2()).sum())


def plain(z: Coefficients, step: float, shifts: Shifts):
    q = [(x / step).round() for x in z]
    return [x * step for x in q], entropy(q, shifts)


def hadamard(dim: int) -> Coder:
    """Of each head, before the quantiser (QuaRot, arXiv:2404.00456, and others)."""
    matrix = torch.ones(1, 1)
    while len(matrix) < dim:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = matrix / math.sqrt(dim)

    def turn(x: torch.Tensor) -> torch.Tensor:
        return (x.view(len(x), -1, dim) @ matrix).view(x.shape)

    def code(z: Coefficients, step: float, shifts: Shifts):
        decoded, bits = plain([turn(x) for x in z], step, shifts)
        return [turn(x) for x in decoded], bits
    return code


def autoregressive(z: Coefficients, step: float, shifts: Shifts):
    """Each coefficient predicted from the token before, as decoded; the best factor of each text."""
    x = torch.stack(z, 1).double().numpy()  # [tokens, sections, C]
    rho = (x[1:] * x[:-1]).sum(0) / np.maximum((x * x).sum(0), 1e-30)
    q, last, decoded = np.empty_like(x), np.zeros_like(x[0]), np.empty_like(x)
    for t in range(len(x)):
        q[t] = np.round((x[t] - rho * last) / step)
        last = decoded[t] = rho * last + q[t] * step
    return (list(torch.from_numpy(decoded).float().unbind(1)),
            entropy(list(torch.from_numpy(q).float().unbind(1)), shifts))


def low_rank_residual(heads: int, rank: int = 2) -> Coder:
    """GEAR (arXiv:2403.05527): a coarse quantiser, and its error of each head at a low rank, whose
    factors take 8 bits a number."""
    def code(z: Coefficients, step: float, shifts: Shifts):
        decoded, bits = plain(z, step, shifts)
        out = []
        for x, y in zip(z, decoded):
            error = (x - y).view(len(x), heads, -1).transpose(0, 1)
            u, s, v = torch.svd_lowrank(error, rank)
            out.append(y + (u * s[:, None]) .matmul(v.mT).transpose(0, 1).reshape(x.shape))
            bits += 8 * rank * heads * sum(error.shape[1:])
        return out, bits
    return code


@dataclasses.dataclass
class Frame:
    profile: Profile
    rope: fit.Rope
    levels: Callable | None = None  # (KV, section) -> [tokens] in quarter octaves; None: the profile's

    def __post_init__(self) -> None:
        self.decode = [self._whole(s.decode) for s in self.profile.sections]
        self.encode = [torch.linalg.inv(m) for m in self.decode]
        self.mean = [torch.from_numpy(s.mean) for s in self.profile.sections]

    @staticmethod
    def _whole(decode: np.ndarray) -> torch.Tensor:
        """[channel, coefficient] of all heads."""
        channels, block = decode.shape
        return torch.block_diag(*torch.from_numpy(decode).double().split(block)).float().view(
            channels, channels)

    def analyse(self, kv: Sequence[torch.Tensor]) -> tuple[Coefficients, list[torch.Tensor]]:
        z, levels = [], []
        for s in range(0, len(kv), 2):
            rows = [fit.rows_of(self.rope.undo(kv[s].float())), fit.rows_of(kv[s + 1].float())]
            features = fit.features_of(rows)
            for part in (0, 1):
                level = self._levels(kv, s + part, features)[SINKS:]
                precision = 2 ** (level / 4)
                z.append((rows[part][SINKS:] - self.mean[s + part]) @ self.encode[s + part].T
                         * precision[:, None])
                levels.append(level)
        return z, levels

    def _levels(self, kv, section: int, features: torch.Tensor) -> torch.Tensor:
        if self.levels is not None:
            return self.levels(kv, section)
        weights = torch.from_numpy(self.profile.sections[section].level_weights)
        return torch.floor(features @ weights * 4 + 0.5).clamp(-fit.LEVELS, fit.LEVELS)

    def restore(self, kv, z: Coefficients, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        out = []
        for s, (x, level) in enumerate(zip(z, levels)):
            rows = (x * 2 ** (-level / 4)[:, None]) @ self.decode[s].T + self.mean[s]
            heads, _, dim = kv[s].shape
            section = torch.cat([torch.zeros(SINKS, rows.shape[1]), rows]).view(
                -1, heads, dim).transpose(0, 1)
            section = self.rope.redo(section) if s % 2 == 0 else section.clone()
            section[:, :SINKS] = kv[s][:, :SINKS]
            out.append(section)
        return out

    def apply(self, coder: Coder, step: float):
        def run(kv):
            z, levels = self.analyse(kv)
            shifts = [section.level_slope / 256 * level / 4
                      for section, level in zip(self.profile.sections, levels)]
            decoded, bits = coder(z, step, shifts)
            for level in levels:
                share = level.unique(return_counts=True)[1] / len(level)
                bits -= len(level) * float((share * share.log2()).sum())
            bits += 16 * SINKS * sum(x.shape[0] * x.shape[2] for x in kv)
            return self.restore(kv, decoded, levels), bits / sum(x.numel() for x in kv)
        return run


class Saliency:
    """Two precisions by the attention a token gets (ZipCache, arXiv:2405.14256; MiKV,
    arXiv:2402.18096), here from the very tokens that are scored: better than a daemon could know.
    A third of the tokens have half the step."""

    NAME = "terrace_saliency"

    def __init__(self, model, tests: Sequence[measure.Text]) -> None:
        self.received: list[torch.Tensor] = []
        AttentionInterface.register(self.NAME, self._attend)
        usual = model.config._attn_implementation
        model.set_attn_implementation(self.NAME)
        self.by_text = []
        for text in tests:
            self.received = []
            with torch.no_grad():
                collect.log_probabilities(model, text.kv, text.continuation[:-1])
            self.by_text.append((text.kv[0], [self._levels(x, text.kv[0].shape[1])
                                              for x in self.received]))
        model.set_attn_implementation(usual)

    def _attend(self, module, query, key, value, attention_mask, scaling, **_):
        group = query.shape[1] // key.shape[1]
        keys, values = (x[0].repeat_interleave(group, 0) for x in (key, value))
        new, total = query.shape[2], key.shape[2]
        seen = torch.arange(total)[None] <= torch.arange(total - new, total)[:, None]
        share = (query[0] @ keys.mT * scaling).masked_fill(~seen, -torch.inf).softmax(-1)
        self.received.append(share.sum((0, 1)) / seen.sum(0))
        return (share @ values).transpose(0, 1)[None], None

    @staticmethod
    def _levels(received: torch.Tensor, prefix: int) -> torch.Tensor:
        least = received[SINKS:prefix].quantile(2 / 3)
        return 4.0 * (received[:prefix] > least)

    def __call__(self, kv, section: int) -> torch.Tensor:
        return next(levels for k, levels in self.by_text if torch.equal(k, kv[0]))[section // 2]


def of(fast: Profile, rope: fit.Rope, model,
       tests: Sequence[measure.Text]) -> Iterator[tuple[str, Callable, int]]:
    """(name, function, 16 log2 of its step), each at two steps. The first is what the others are
    compared with, at their KL."""
    frame = Frame(fast, rope)
    without = Frame(fast, rope, lambda kv, s: torch.zeros(kv[0].shape[1]))
    salient = Frame(fast, rope, Saliency(model, tests))
    heads, dim = fast.heads, fast.k_dim
    for name, of_frame, coder in (
            ("fast, ideal coder", frame, plain),
            ("no token levels", without, plain),
            ("saliency instead of levels", salient, plain),
            ("Hadamard", frame, hadamard(dim)),
            ("AR(1) over tokens", frame, autoregressive),
            ("low-rank residual", frame, low_rank_residual(heads))):
        # The first reaches as far as any other's loss.
        for lambda16 in (-168, -152, -132) if coder is plain and of_frame is frame else (-168, -152):
            yield name, of_frame.apply(coder, 2 ** (lambda16 / 16)), lambda16
