"""Counters of the vLLM connector on vLLM's own way to its log and to Prometheus."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics, KVConnectorStats,
)

# Name in `data`: what it counts.
COUNTERS = {
    "lookup_blocks": "Blocks looked for",
    "lookup_hit_blocks": "Blocks found",
    "lookup_recompute_blocks": "Blocks found that take longer to load than to compute",
    "lookup_deferred": "Lookups that the scheduler did not wait for",
    "lookup_failed": "Lookups without an answer in time, which count as misses",
    "load_requests": "Requests whose blocks were loaded",
    "loaded_blocks": "Blocks loaded",
    "loaded_bytes": "Bytes loaded",
    "load_us": "Microseconds that steps waited for loads",
    "load_failed_blocks": "Blocks that could not be loaded and were left to be computed",
    "saved_blocks": "Blocks stored",
    "saved_bytes": "Bytes stored",
    "save_us": "Microseconds that steps waited for stores",
    "save_dropped_blocks": "Blocks that found no room",
}


class TerraceStats(KVConnectorStats):
    """`data`: counts since the last time, by the names of COUNTERS."""

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, value in other.data.items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        return {f"terrace_{name}": self.data[name] for name in COUNTERS if name in self.data}

    def is_empty(self) -> bool:
        return not any(self.data.values())


class TerracePromMetrics(KVConnectorPromMetrics):
    """Counters vllm:terrace_*, one an engine."""

    def __init__(self, vllm_config: Any, metric_types: dict, labelnames: list[str],
                 per_engine_labelvalues: dict[int, list[object]]) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(name=f"vllm:terrace_{name}", documentation=text,
                                    labelnames=labelnames)
            for name, text in COUNTERS.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name in self._counters:
                labels = self.per_engine_labelvalues[engine_idx]
                self._counters[name].labels(*labels).inc(value)
