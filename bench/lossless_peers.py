#!/usr/bin/env python3
"""The lossless codecs beside ZipNN (arXiv:2411.05239) and fp8, on one thread each.

    build/venv/bin/python -m pip install zipnn
    build/venv/bin/python bench/lossless_peers.py

Synthetic KV (Gaussian bfloat16, 8 heads of 128). Every round runs all of them, one after the other, and a
copy; the table has the median of the rounds and its range, in GB/s of bfloat16.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "client" / "python"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import zipnn  # noqa: E402

from terrace_kv import codec  # noqa: E402

ROUNDS = 7
SHAPE = codec.Shape(layers=4, heads=8, k_dim=128, v_dim=128, tokens=2048, head_major=False)


def main() -> None:
    torch.set_num_threads(1)
    values = 4 * 2 * 8 * 128 * SHAPE.tokens
    kv = torch.from_numpy(np.random.default_rng(1).normal(size=values).astype(np.float32)).bfloat16()
    data = kv.view(torch.uint8).numpy()
    coder = zipnn.ZipNN(bytearray_dtype="bfloat16", threads=1)
    # name: (encode, decode what it gave)
    ways = {
        **{name: (lambda n=name: codec.encode(n, data, SHAPE), lambda c: codec.decode(c, data.nbytes))
           for name in ("lossless-fast", "lossless", "zstd")},
        "ZipNN": (lambda: coder.compress(bytes(data)), lambda c: coder.decompress(c)),
        "fp8 e4m3 (lossy)": (lambda: kv.to(torch.float8_e4m3fn), lambda c: c.to(torch.bfloat16)),
    }
    encoding, decoding, ratios, copies = {}, {}, {}, []
    for _ in range(ROUNDS):
        for name, (encode, decode) in ways.items():
            start = time.perf_counter()
            encoded = encode()
            middle = time.perf_counter()
            decoded = decode(encoded)
            end = time.perf_counter()
            encoding.setdefault(name, []).append(data.nbytes / (middle - start) / 1e9)
            decoding.setdefault(name, []).append(data.nbytes / (end - middle) / 1e9)
            size = encoded.nbytes if isinstance(encoded, torch.Tensor) else len(encoded)
            ratios[name] = data.nbytes / size
            if "lossy" not in name and bytes(decoded) != bytes(data):
                raise SystemExit(f"{name} did not give the bytes back")
        start = time.perf_counter()
        data.copy()
        copies.append(data.nbytes / (time.perf_counter() - start) / 1e9)
    print(f"{'codec':18} {'ratio':>6}  encode GB/s           decode GB/s")
    for name in ways:
        print(f"{name:18} {ratios[name]:5.3f}x  {spread(encoding[name]):20}  {spread(decoding[name])}")
    print(f"{'copy':18} {'':6}  {spread(copies)}")


def spread(figures: list[float]) -> str:
    return f"{statistics.median(figures):.3g} ({min(figures):.3g} .. {max(figures):.3g})"


if __name__ == "__main__":
    main()
