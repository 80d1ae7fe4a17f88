"""Sizes of the lossless codecs on a model's KV, every byte counted: the whole KV, and K alone as an
engine stores it that rotates keys when it reads them. Decoded values are compared bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from terrace_kv import codec
from terrace_kv.calibration.fit import Rope

CODECS = ("lossless-fast", "lossless", "zstd")


def rows(kvs: Sequence[list[torch.Tensor]], rope: Rope) -> list[dict]:
    """kvs: of each text, layer 0 K, layer 0 V, ..., [heads, tokens, dim], bfloat16."""
    result = []
    for name in CODECS:
        for what, of in (("whole KV", lambda kv: kv), ("K before rotation",
                                                       lambda kv: unrotated_keys(kv, rope))):
            bits = [bits_per_value(name, of(kv)) for kv in kvs]
            mean = sum(bits) / len(bits)
            result.append({"codec": "terrace", "profile": f"{name}, {what}", "bits_per_value": mean,
                           "ratio": 16 / mean, "ratio_low": 16 / max(bits), "mean_kl": 0.0, "p99_kl": 0.0, "top1": 1.0, "dnll": 0.0,
                           "dnll_low": 0.0, "dnll_high": 0.0, "texts": len(kvs)})
            print(f"{'terrace':22} {name + ', ' + what:30} {mean:6.3f} (exact; {16 / mean:.3f}x, "
                  f"{16 / max(bits):.3f} - {16 / min(bits):.3f})", flush=True)
    return result


def bits_per_value(name: str, sections: list[torch.Tensor]) -> float:
    heads, tokens, k_dim = sections[0].shape
    shape = codec.Shape(len(sections) // 2, heads, k_dim, sections[1].shape[-1], tokens)
    data = torch.cat([x.reshape(-1) for x in sections]).view(torch.uint8).numpy()
    container = codec.encode(name, data, shape)
    if not (codec.decode(container, data.nbytes) == data).all():
        raise SystemExit(f"{name} did not give the values back")
    return 8 * len(container) / sum(x.numel() for x in sections)


def unrotated_keys(sections: list[torch.Tensor], rope: Rope) -> list[torch.Tensor]:
    """Keys of two layers in the places of a layer's K and V."""
    radians = torch.tensor(rope.radians, dtype=torch.float64)
    pairs = len(radians)
    keys = []
    for key in sections[0::2]:
        angle = torch.arange(key.shape[1], dtype=torch.float64)[:, None] * radians
        cos, sin = angle.cos(), angle.sin()
        x, y = key[..., :pairs].double(), key[..., pairs:2 * pairs].double()
        turned = torch.cat([x * cos + y * sin, y * cos - x * sin, key[..., 2 * pairs:].double()], -1)
        keys.append(turned.bfloat16())
    return keys[:len(keys) // 2 * 2]
