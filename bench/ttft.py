#!/usr/bin/env python3
"""Time to first token of SmolLM2 on a prefix of about 2,450 tokens, for `terrace-bench ttft`.

Every round measures, one after the other: the same KV already in the process, restored from host
memory, one memcpy of those bytes, restored from NVMe right after SIGKILL and restart, and fio reading
as many bytes. What terrace owns is restored minus in the process. Writes {"rows": [...]}.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import numpy as np  # noqa: E402
from transformers import DynamicCache  # noqa: E402

from demo import Daemon, Engine, TerracePrefixCache  # noqa: E402

ROUNDS = 11
COLD_ROUNDS = 5


class Bench:
    def __init__(self, directory: pathlib.Path) -> None:
        self.engine = Engine()
        self.prompt = self.engine.prompts[0]
        self.daemon = Daemon(directory / "terrace")
        self.client = self.daemon.start()
        self.fio_file = directory / "fio"
        cold = self.engine.run(self.prompt, DynamicCache(), new_tokens=1)
        self.terrace().store(self.prompt[:, : self.engine.prefix], cold.cache)
        self.client.flush()
        self.restored = self.from_terrace().restored
        self.kv = [(layer.keys[:, :, : self.restored].clone(),
                    layer.values[:, :, : self.restored].clone()) for layer in cold.cache.layers]
        self.kv_bytes = sum(t.nbytes for pair in self.kv for t in pair)
        self.source = np.ones(self.kv_bytes, np.uint8)
        self.target = np.ones(self.kv_bytes, np.uint8)
        self.times: dict[str, list[float]] = {}

    def terrace(self) -> TerracePrefixCache:
        return TerracePrefixCache(self.client, self.engine.model)

    def from_terrace(self):
        terrace = self.terrace()
        started = time.perf_counter()
        cache, _ = terrace.restore(self.prompt)
        return self.engine.run(self.prompt, cache, new_tokens=1, started=started)

    def cold_s(self) -> float:
        return self.engine.run(self.prompt, DynamicCache(), new_tokens=1).ttft_s

    def in_process_s(self) -> float:
        cache = DynamicCache()
        for i, (keys, values) in enumerate(self.kv):
            cache.update(keys, values, i)
        return self.engine.run(self.prompt, cache, new_tokens=1).ttft_s

    def host_s(self) -> float:
        return self.from_terrace().ttft_s

    def memcpy_s(self) -> float:
        started = time.perf_counter()
        np.copyto(self.target, self.source)
        return time.perf_counter() - started

    def nvme_s(self) -> float:
        self.client.close()
        self.daemon.kill()
        self.client = self.daemon.start()
        return self.from_terrace().ttft_s

    def fio_s(self) -> float:
        command = ["fio", "--name=read", f"--filename={self.fio_file}", "--rw=read", "--bs=1M",
                   f"--size={self.kv_bytes // 2**20}M", "--direct=1", "--ioengine=io_uring",
                   "--iodepth=16", "--output-format=json"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        read = json.loads(result.stdout)["jobs"][0]["read"]
        return self.kv_bytes / read["bw_bytes"]

    def measure(self) -> None:
        self.fio_s()  # lays its file out
        for i in range(ROUNDS):
            print(f"ttft: round {i + 1} of {ROUNDS}", file=sys.stderr, flush=True)
            names = ["in_process", "host", "memcpy", "nvme", "fio"]
            for name in ["cold", *names] if i < COLD_ROUNDS else names:
                self.times.setdefault(name, []).append(getattr(self, f"{name}_s")())

    def owned(self, what: str) -> list[float]:
        return [restored - held for restored, held in
                zip(self.times[what], self.times["in_process"], strict=True)]


def row(name: str, ours: list[float], reference_name: str, reference: list[float],
        note: str) -> dict[str, object]:
    ratios = [a / b for a, b in zip(ours, reference)]
    count = len(ratios)
    return {
        "name": name, "unit": "ms", "value": statistics.median(ours[:count]) * 1000,
        "reference_name": reference_name,
        "reference_value": statistics.median(reference[:count]) * 1000,
        "ratio_median": statistics.median(ratios), "ratio_min": min(ratios),
        "ratio_max": max(ratios), "pairs": count, "note": note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, required=True, help="where the rows go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.json.parent, prefix="ttft-") as directory:
        bench = Bench(pathlib.Path(directory))
        try:
            bench.measure()
        finally:
            bench.daemon.stop()
    kv = f"{bench.restored} tokens, {bench.kv_bytes / 2**20:.1f} MiB of KV"
    times = bench.times
    rows = [
        row("ttft_cold_over_host", times["cold"], "restored from host", times["host"], kv),
        row("ttft_cold_over_nvme", times["cold"], "restored from nvme", times["nvme"], kv),
        row("ttft_owned_host", bench.owned("host"), "memcpy", times["memcpy"],
            f"restored minus in the process; {kv}"),
        row("ttft_owned_nvme", bench.owned("nvme"), "fio, 1 MiB, QD 16", times["fio"],
            f"restored minus in the process; {kv}"),
    ]
    arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
