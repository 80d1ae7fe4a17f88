"""From calibration KV and gradients to a profile.

- Weights: the mean outer product of the gradients of log-probabilities, sampled from the model's own
  predictions, with respect to KV (the Fisher matrix; Optimal Brain Damage, LeCun et al. 1990): a
  quadratic form that turns an error of KV into an expected KL divergence.
- Token levels: a ridge regression from a token's own K and V to the log of its gradient's energy; the
  precision of a token is 2^(level / 4). Weights are then of gradients divided by the precision, and the
  transform of data multiplied by it: the matrix describes directions, the level the token.
- Transform: the KLT of the un-rotated, mean-free KV in the space weighted by the square root of the
  weights, a head at a time or a layer; or none. One step in that space is the whole bit allocation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from terrace_kv.calibration import profile_file
from terrace_kv.calibration.profile_file import Profile, Section

SINKS = 4  # tokens at the start, kept raw, that no statistics are made of
LEVELS = 15  # quarter octaves either way
RIDGE = 300.0  # of features of unit variance, over some ten thousand tokens
LEVEL_SHRINK = 0.7  # of predicted log precisions, which overfit
WEIGHT_SHRINK = 0.05  # of the Fisher matrix towards its diagonal
PRIOR = 2000.0  # symbols that each table is taken to have seen before
STEP_OCTAVES = (-11.0, -10.0, -9.0, -8.0)  # steps whose symbols the tables are made of


@dataclasses.dataclass
class Sample:
    """One text: KV by section, [heads, tokens, dim], and its gradients, as many times as sampled."""

    kv: list[torch.Tensor]
    gradients: list[list[torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Form:
    """What kind of profile."""

    name: str
    transform: str = "layer"
    unrotate: bool = True
    centre: bool = True


FORMS = {form.name: form for form in (
    Form("archive", "layer"), Form("balanced", "head"), Form("fast", "channel"),
    Form("fastest", "channel", unrotate=False, centre=False))}


@dataclasses.dataclass(frozen=True)
class Rope:
    """pairing "half" or "interleaved"; radians a position of each pair."""

    pairing: str
    radians: tuple[float, ...]

    def turns(self) -> np.ndarray:
        return np.array([round(r / (2 * math.pi) * 2**64) % 2**64 for r in self.radians],
                        dtype=np.uint64)

    def undo(self, keys: torch.Tensor) -> torch.Tensor:
        """[heads, tokens, dim] turned back; the first token is at position 0."""
        return self._turned(keys, -1.0)

    def redo(self, keys: torch.Tensor) -> torch.Tensor:
        return self._turned(keys, 1.0)

    def _turned(self, keys: torch.Tensor, direction: float) -> torch.Tensor:
        pairs = len(self.radians)
        angles = torch.arange(keys.shape[1], dtype=torch.float64)[:, None] * torch.tensor(
            self.radians, dtype=torch.float64)
        cosine, sine = angles.cos().float(), direction * angles.sin().float()
        out = keys.clone()
        if self.pairing == "half":
            at, bt = slice(0, pairs), slice(pairs, 2 * pairs)
        else:
            at, bt = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        a, b = keys[..., at], keys[..., bt]
        out[..., at] = a * cosine - b * sine
        out[..., bt] = b * cosine + a * sine
        return out


def rows_of(section: torch.Tensor) -> torch.Tensor:
    """[heads, tokens, dim] to [tokens, channels]."""
    return section.permute(1, 0, 2).reshape(section.shape[1], -1)


def rough_log2(values: torch.Tensor) -> torch.Tensor:
    """As kernels/tile_math.h: linear between powers of two."""
    return (values.contiguous().view(torch.int32) - 0x3F800000).float() * 2.0**-23


def _stacked(samples: list[Sample], layer: int, rope: Rope | None, index: int,
             pick: Callable[[Sample], list[torch.Tensor]]) -> torch.Tensor:
    """[samples, tokens, channels] of one section, K turned back."""
    def rows(section: torch.Tensor) -> torch.Tensor:
        return rows_of(rope.undo(section.float()) if rope and index == 0 else section.float())
    return torch.stack([rows(pick(s)[2 * layer + index]) for s in samples])


def features_of(kv: Sequence[torch.Tensor]) -> torch.Tensor:
    """[samples, tokens, channels of K and of V + 3]: what a token's level is predicted from."""
    norms = [rough_log2(x.pow(2).sum(-1, keepdim=True).clamp_min(1e-30)) for x in kv]
    return torch.cat([*kv, *norms, torch.ones_like(norms[0])], dim=-1)


@dataclasses.dataclass
class _Weighed:
    """A section as all forms that treat keys alike see it."""

    data: torch.Tensor  # [samples, tokens, channels]
    level_weights: torch.Tensor
    level: torch.Tensor  # [samples, tokens], quarter octaves
    precision: torch.Tensor  # 2^(level / 4)
    fisher: torch.Tensor  # of gradients divided by the precision


def _weigh(samples: list[Sample], layer: int, rope: Rope | None) -> list[_Weighed]:
    kv = [_stacked(samples, layer, rope, index, lambda s: s.kv) for index in (0, 1)]
    features, weighed = features_of(kv), []
    for index in (0, 1):
        gradients = [_stacked(samples, layer, rope, index, lambda s, d=d: s.gradients[d])
                     for d in range(len(samples[0].gradients))]
        weights = _level_weights(features, gradients)
        level = torch.floor((features @ weights) * 4 + 0.5).clamp(-LEVELS, LEVELS)
        precision = 2 ** (level / 4)
        weighed.append(_Weighed(kv[index], weights, level, precision, _fisher(gradients, precision)))
    return weighed


def _level_weights(features: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Weights of the features whose sum is a token's log2 precision, 0 on average."""
    energy = torch.stack([g.pow(2).mean(-1) for g in gradients]).mean(0)
    target = 0.5 * torch.log2(energy[:, SINKS:] + 1e-30).reshape(-1)
    x = features[:, SINKS:].reshape(-1, features.shape[-1])
    mean, spread = x[:, :-1].mean(0), x[:, :-1].std(0).clamp_min(1e-6)
    x = (x[:, :-1] - mean) / spread
    ridge = torch.eye(x.shape[1], dtype=torch.float64) * RIDGE
    weights = torch.linalg.solve((x.T @ x).double() + ridge,
                                 (x.T @ (target - target.mean())).double())
    weights = weights * LEVEL_SHRINK / spread
    return torch.cat([weights, -(weights @ mean.double())[None]]).float()


def _fisher(gradients: list[torch.Tensor], precision: torch.Tensor) -> torch.Tensor:
    total = 0
    for gradient in gradients:
        g = (gradient / precision[..., None])[:, SINKS:].reshape(-1, gradient.shape[-1])
        # A magnitude that float32 squares without loss, whatever the gradients' own is.
        scale = g.abs().max().clamp_min(1e-30)
        total = total + ((g / scale).T @ (g / scale)).double() * float(scale) ** 2
    return total / (len(gradients) * g.shape[0])


def _transforms(form: Form, fisher: torch.Tensor, data: torch.Tensor,
                heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(encode [coefficient, channel], decode [channel, coefficient])."""
    diagonal = fisher.diagonal().clamp_min(1e-30)
    if form.transform == "channel":
        return torch.diag(diagonal.sqrt()), torch.diag(1 / diagonal.sqrt())
    fisher = (1 - WEIGHT_SHRINK) * fisher + WEIGHT_SHRINK * torch.diag(diagonal)
    if form.transform == "head":
        mask = torch.block_diag(*[torch.ones(len(fisher) // heads, len(fisher) // heads)] * heads)
    else:
        mask = torch.ones_like(fisher)
    values, vectors = torch.linalg.eigh(fisher * mask)
    values = values.clamp_min(values.max() * 1e-9).sqrt()
    root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
    weighted = data @ root
    _, basis = torch.linalg.eigh(weighted.T @ weighted / len(weighted) * mask)
    if form.transform == "head":  # eigh mixes equal eigenvalues of blocks; keep each in its own
        size = len(fisher) // heads
        basis = torch.block_diag(*[
            torch.linalg.eigh((weighted.T @ weighted)[h:h + size, h:h + size])[1]
            for h in range(0, len(fisher), size)])
    return basis.T @ root, inverse @ basis


@dataclasses.dataclass
class _Fitted:
    section: Section
    coefficients: torch.Tensor  # [tokens, C] of some tokens, times their precision
    sigma: torch.Tensor  # [C]
    shift: torch.Tensor  # [tokens], octaves by which the token's scale differs
    levels: torch.Tensor


def _fit_section(form: Form, weighed: _Weighed, is_key: bool, heads: int,
                 diagonal: bool) -> _Fitted:
    data, level, weights = weighed.data, weighed.level, weighed.level_weights
    mean = data[:, SINKS:].mean((0, 1)) if form.centre else torch.zeros(data.shape[-1])
    fisher = weighed.fisher
    if diagonal:
        fisher = torch.diag(fisher.diagonal())
    if not form.unrotate and is_key:
        fisher = torch.diag(_over_pairs(fisher.diagonal(), heads))
    scaled = ((data - mean) * weighed.precision[..., None])[:, SINKS:].reshape(-1, data.shape[-1])
    encode, decode = _transforms(form, fisher, scaled.double(), heads)
    coefficients = scaled @ encode.T.float()
    sigma = coefficients.pow(2).mean(0).sqrt().clamp_min(1e-12)
    log_scale = 0.5 * torch.log2((coefficients / sigma).pow(2).mean(-1).clamp_min(1e-9))
    used = level[:, SINKS:].reshape(-1)
    centred = used / 4 - used.mean() / 4
    slope = float((centred * log_scale).sum() / centred.pow(2).sum().clamp_min(1e-9))
    slope256 = max(-1024, min(1024, round(256 * slope)))
    # A token of level l has the scale sigma * 2^(slope * l / 4): sigma is of level 0.
    shift = slope256 / 256 * used / 4
    sigma = (coefficients * 2 ** -shift[:, None]).pow(2).mean(0).sqrt().clamp_min(1e-12)
    block = len(sigma) if form.transform == "layer" else (
        len(sigma) // heads if form.transform == "head" else 1)
    compact = torch.stack([decode[j, j // block * block:(j // block + 1) * block]
                           for j in range(len(sigma))])
    section = Section(
        torch.round(16 * torch.log2(sigma)).clamp(-2000, 2000).numpy().astype(np.int16),
        mean.numpy(), compact.numpy(), slope256, weights.numpy())
    return _Fitted(section, coefficients[::5], sigma, shift[::5], level[:, SINKS:])


def _over_pairs(diagonal: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels that turn together weigh the same: their turn depends on the position."""
    pairs = diagonal.reshape(heads, 2, -1)
    return pairs.mean(1, keepdim=True).expand_as(pairs).reshape(-1)


def expected_symbols() -> np.ndarray:
    """[SCALE_TABLES, SYMBOLS]: shares of the symbols of each table for coefficients that are half Gaussian,
    half Laplacian, both of the table's scale."""
    edges = np.arange(-15.5, 16.5)
    shares = []
    for table in range(profile_file.SCALE_TABLES):
        scale = table + profile_file.SMALLEST_SCALE
        sigma = 2.0 ** (scale / 4 - (scale // 4 - 1 if scale >= 8 else 0))
        below = np.array([0.5 * (1 + math.erf(x / sigma / math.sqrt(2))) for x in edges])
        tail = 0.5 * np.exp(-math.sqrt(2) * np.abs(edges) / sigma)
        both = 0.5 * (below + np.where(edges < 0, tail, 1 - tail))
        shares.append([*np.diff(both), 1 - both[-1] + both[0]])
    return np.array(shares)


class _TableCounts:
    """Symbols seen of each scale."""

    def __init__(self) -> None:
        self.counts = torch.zeros(profile_file.SCALE_TABLES * profile_file.SYMBOLS)
        self.levels = torch.zeros(profile_file.SYMBOLS)

    def add(self, fitted: _Fitted) -> None:
        self.levels += torch.bincount((fitted.levels.reshape(-1) + 16).long(),
                                      minlength=profile_file.SYMBOLS)
        for octaves in STEP_OCTAVES:
            self._add(fitted, 2.0**octaves)

    def _add(self, fitted: _Fitted, step: float) -> None:
        scale = torch.round(4 * (torch.log2(fitted.sigma / step) + fitted.shift[:, None]))
        table = (scale - profile_file.SMALLEST_SCALE).clamp(0, profile_file.SCALE_TABLES - 1).long()
        scale = table + profile_file.SMALLEST_SCALE
        bits = torch.where(scale >= 8, scale // 4 - 1, 0)
        quantised = torch.round(fitted.coefficients / step)
        high = torch.floor((quantised + (2**bits) // 2) / 2**bits)
        symbol = torch.where(high.abs() > 15, profile_file.ESCAPE, high + 15).long()
        self.counts += torch.bincount((table * profile_file.SYMBOLS + symbol).reshape(-1),
                                      minlength=len(self.counts))

    def tables(self) -> np.ndarray:
        counts = self.counts.reshape(-1, profile_file.SYMBOLS).numpy()
        rows = []
        for row in counts + PRIOR * expected_symbols():
            rows.append(profile_file.quantised_frequencies(row, 1 << profile_file.ESCAPE))
        rows.append(profile_file.quantised_frequencies(self.levels.numpy(), 0xFFFFFFFF))
        while len(rows) < profile_file.TABLES:
            rows.append(np.full(profile_file.SYMBOLS, 8, np.uint16))
        return np.stack(rows)


def fit(forms: Sequence[Form], samples: list[Sample], rope: Rope | None, model: str,
        model_id: str = "", diagonal: bool = False,
        progress: Callable[[int], None] = lambda layers_done: None) -> list[Profile]:
    """A profile a form, without operating points. `diagonal`: errors of two channels are taken to do
    their harm apart."""
    heads, _, k_dim = samples[0].kv[0].shape
    v_dim = samples[0].kv[1].shape[-1]
    layers = len(samples[0].kv) // 2
    sections: list[list[Section]] = [[] for _ in forms]
    counts = [_TableCounts() for _ in forms]
    for index in range(layers):
        weighed = {unrotate: _weigh(samples, index, rope if unrotate else None)
                   for unrotate in {form.unrotate for form in forms}}
        for f, form in enumerate(forms):
            for part, section in enumerate(weighed[form.unrotate]):
                fitted = _fit_section(form, section, part == 0, heads, diagonal)
                sections[f].append(fitted.section)
                counts[f].add(fitted)
        progress(index + 1)
    profiles = []
    for f, form in enumerate(forms):
        profile = Profile(f"{model} {form.name}", form.transform, layers, heads, k_dim, v_dim, True,
                          counts[f].tables(), sections[f], model_id=model_id)
        if rope and form.unrotate:
            profile.pairing, profile.frequencies = rope.pairing, rope.turns()
        profiles.append(profile)
    return profiles
