"""vLLM's tiered offloading on a CPU: the leg between the engine's blocks and its offload region is
a copy of memory. vLLM itself refuses that platform; everything behind the region is its own."""

from __future__ import annotations

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """Copies at once; one block a chunk, one group."""

    def __init__(self, kv_caches, region) -> None:
        self._pairs = [
            (cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes),
             region.create_next_worker_view(cache.page_size_bytes))
            for cache in kv_caches.tensors]
        self._finished: list[TransferResult] = []

    def _copy(self, job_id: int, source: int, source_ids, target: int, target_ids) -> bool:
        for pair in self._pairs:
            for a, b in zip(source_ids.tolist(), target_ids.tolist()):
                pair[target][b].copy_(pair[source][a])
        self._finished.append(TransferResult(job_id, True))
        return True

    def submit_store(self, job_id, src_spec, dst_spec) -> bool:
        return self._copy(job_id, 0, src_spec.block_ids, 1, dst_spec.block_ids)

    def submit_load(self, job_id, src_spec, dst_spec) -> bool:
        return self._copy(job_id, 1, src_spec.block_ids, 0, dst_spec.block_ids)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids) -> None:
        pass


class CpuTieringSpec(TieringOffloadingSpec):
    def get_worker(self, kv_caches) -> OffloadingWorker:
        if not self._worker:
            region = SharedOffloadRegion(
                engine_id=self._engine_id, num_chunks=self.num_chunks,
                rank=self.config.parallel.rank, kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker)  # the scheduler opens the same file
            self._worker = CopyingWorker(kv_caches, region)
        return self._worker
