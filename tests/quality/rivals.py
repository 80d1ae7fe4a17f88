"""What others do to KV, emulated from their published descriptions: name -> (KV, bits a value).

A section is [heads, tokens, dim] in float32; bits are an ideal entropy coder's where one is used.
"""

from __future__ import annotations

import torch

CHUNK = 256  # tokens of an LMCache chunk


def _grouped(x: torch.Tensor, bits: int, dim: int, size: int = 32) -> torch.Tensor:
    """Asymmetric minimum-to-maximum quantisation of groups of `size` along `dim`."""
    x = x.transpose(dim, -1)
    groups = x.reshape(*x.shape[:-1], -1, size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).half().float().clamp_min(1e-8)
    low = low.half().float()
    return (((groups - low) / step).round().clamp(0, 2**bits - 1) * step + low).reshape(
        x.shape).transpose(dim, -1)


def fp8(kv):
    return [x.to(torch.float8_e4m3fn).float() for x in kv], 8.0


def int8_per_token(kv):
    out = []
    for x in kv:
        step = (x.abs().amax((0, 2), keepdim=True) / 127).half().float().clamp_min(1e-8)
        out.append((x / step).round().clamp(-127, 127) * step)
    return out, 8 + 16 / (kv[0].shape[0] * kv[0].shape[2])


def int4_per_token(kv):
    return [_grouped(x, 4, 2) for x in kv], 4 + 32 / 32


def kivi_int4(kv):
    """KIVI (arXiv:2402.02750): K along tokens, a channel at a time; V along channels."""
    return [_grouped(x, 4, 2 if s % 2 else 1) for s, x in enumerate(kv)], 4 + 32 / 32


def _cachegen(kv) -> tuple[list[torch.Tensor], float]:
    out, bits, values = [], 0.0, 0
    for s, x in enumerate(kv):
        layer = s // 2
        levels = 31 if layer < (2 if s % 2 else 10) else 15
        largest = x.abs().amax((0, 2), keepdim=True).clamp_min(1e-8)
        symbols = (x / largest * (levels // 2)).round()
        out.append(symbols * largest / (levels // 2))
        for chunk in symbols.split(CHUNK, dim=1):
            index = (chunk + 16).long()
            counts = torch.zeros(*chunk.shape[::2], 33).scatter_add_(
                2, index.transpose(1, 2), torch.ones_like(chunk.transpose(1, 2)))
            share = counts / chunk.shape[1]
            bits += float(-(counts * share.clamp_min(1e-12).log2()).sum())
        values += x.numel()
        bits += 16 * x.shape[1]  # the scale of each token
    return out, bits / values


def cachegen(kv):
    """LMCache's cachegen as shipped: per-token scales over all channels, 31 or 15 levels, and a table of
    33 u16 and a length of 32 bits for each channel of each chunk."""
    out, bits = _cachegen(kv)
    return out, bits + (33 * 16 + 32) / CHUNK


def cachegen_free_tables(kv):
    return _cachegen(kv)


RIVALS = {
    "fp8 e4m3": fp8, "int8 per token": int8_per_token, "int4 per token, groups of 32": int4_per_token,
    "KIVI int4": kivi_int4, "LMCache cachegen": cachegen,
    "LMCache cachegen, tables free": cachegen_free_tables,
}
