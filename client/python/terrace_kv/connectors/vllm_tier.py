"""terrace below vLLM's own offloading to CPU memory: a secondary tier for vLLM 0.32, out of tree.

    "kv_connector": "OffloadingConnector",
    "kv_connector_extra_config": {
        "spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": ...,
        "secondary_tiers": [{"type": "TerraceSecondaryTier",
                             "module_path": "terrace_kv.connectors.vllm_tier",
                             "socket": "/run/terrace/terraced.sock"}]}

vLLM moves blocks between the accelerator and its own CPU memory; this tier copies chunks between
that memory and terrace's, on threads of its own. See docs/engines/vllm.md.
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import vllm
from vllm.v1.kv_offload.base import (
    LookupResult, Medium, OffloadKey, ReqContext, RequestOffloadingContext,
)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from terrace_kv import errors
from terrace_kv.blocks import NO_PARENT, UNKNOWN_POSITION, TransferQueue, pieces
from terrace_kv.connectors import session
from terrace_kv.connectors.vllm_space import digest, weights

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingSpec
    from vllm.v1.kv_offload.tiering.backpressure import BackpressureDetector

LEASE_TTL_S = 60
ROOM_TIMEOUT_S = 2  # on threads of the tier: no step waits for it
LOAD_TIMEOUT_S = 30  # vLLM computes other things meanwhile
OPTIONS = ("namespace", "socket", "tenant", "threads")


class _Prompt:
    """The chunks of a request that the tier was told of, by the token behind them. Of the
    scheduler's thread."""

    def __init__(self) -> None:
        self._ends: dict[int, OffloadKey] = {}

    @classmethod
    def of(cls, request: ReqContext) -> _Prompt:
        """Kept where vLLM lets a tier keep what it knows of a request."""
        if request.get_state(cls) is None:
            request.set_state(cls())
        return request.get_state(cls)

    def note(self, keys: Iterable[OffloadKey], request: ReqContext) -> None:
        for key in keys:
            end = request.get_offload_key_position(key)
            if end is not None:
                self._ends[end] = key

    def place(self, key: OffloadKey, request: ReqContext,
              chunk_tokens: int) -> tuple[OffloadKey | None, int]:
        """The chunk before it, if the tier was told of it, and how many chunks there are before
        it, or UNKNOWN_POSITION."""
        end = request.get_offload_key_position(key)
        if end is None or end % chunk_tokens:  # a chunk that is not full
            return None, UNKNOWN_POSITION
        return self._ends.get(end - chunk_tokens), end // chunk_tokens - 1


class TerraceSecondaryTier(SecondaryTierManager):
    """A chunk of vLLM's CPU memory is one object. Called by the scheduler's thread."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(self, offloading_spec: OffloadingSpec, primary_kv_view: memoryview, tier_type: str,
                 backpressure_detector: BackpressureDetector | None = None, *,
                 socket: str | None = None, tenant: str | None = None, namespace: str = "",
                 threads: int = 1, **unknown: Any) -> None:
        """Raises InvalidArgument naming an option; NotFound or Unavailable naming the socket."""
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        for name in unknown:
            raise errors.InvalidArgument(
                f"secondary_tiers.{name}: no such option; expected {', '.join(OPTIONS)}")
        if not 1 <= threads <= 64:
            raise errors.InvalidArgument(f"secondary_tiers.threads: {threads}; expected 1 .. 64")
        self._memory = np.asarray(primary_kv_view)  # [chunks, bytes of a chunk]
        layout = session.SpaceLayout(_describe(offloading_spec, namespace),
                                     (self._memory.strides[0],))
        self._session = session.BlockSession(
            lambda: session.connect(socket, tenant, "vllm tier", ROOM_TIMEOUT_S), [layout])
        self._queue = TransferQueue(threads, "terrace-tier")
        # Of several groups of layers, some may forget what is before a window: 0.
        self._chunk_tokens = 0
        groups = offloading_spec.config.groups
        if len(groups) == 1:
            self._chunk_tokens = groups[0].tokens_per_block * offloading_spec.blocks_per_chunk

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        self._note([key], req_context)
        spaces = self._session.spaces
        if spaces is None:
            return LookupResult.MISS
        try:
            found = spaces[0].find(spaces[0].keys([bytes(key)]))["tier"][0]
        except errors.TerraceError as error:
            self._session.lost(error, spaces)
            return LookupResult.MISS
        return LookupResult.HIT if found else LookupResult.MISS

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def submit_store(self, job_metadata: TransferJob) -> None:
        request = job_metadata.req_context
        self._note(job_metadata.keys, request)
        places = None
        if self._chunk_tokens:
            prompt = _Prompt.of(request)
            places = [prompt.place(key, request, self._chunk_tokens) for key in job_metadata.keys]
        self._submit(job_metadata, functools.partial(self._store, places=places))

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, self._load)

    def _note(self, keys: Iterable[OffloadKey], request: ReqContext) -> None:
        if self._chunk_tokens:
            _Prompt.of(request).note(keys, request)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        return [result for _, result, _ in self._queue.drain()]

    def has_pending_work(self) -> bool:
        return self._queue.pending > 0

    def drain_jobs(self) -> None:
        self._queue.wait_idle()

    def shutdown(self) -> None:
        self._queue.close()
        self._session.close()

    # --- on the queue's threads -----------------------------------------------------------------

    def _submit(self, job: TransferJob, move: Any) -> None:
        keys, chunks = list(job.keys), np.array(job.chunk_ids)

        def run() -> JobResult:
            start = time.monotonic()
            spaces = self._session.spaces
            count = 0
            if spaces is not None:
                try:
                    count = move(spaces[0], keys, chunks)
                except errors.TerraceError as error:
                    self._session.lost(error, spaces)
            done: Collection[OffloadKey] | None = keys[:count] if job.is_promotion else None
            return JobResult(job.job_id, count == len(keys), done, time.monotonic() - start,
                             count * self._memory.strides[0])

        self._queue.submit(job.job_id, run)

    def _pieces(self, chunks: np.ndarray) -> np.ndarray:
        stride = self._memory.strides[0]
        address = self._memory.ctypes.data + chunks.astype(np.uint64) * np.uint64(stride)
        return pieces(np.arange(len(chunks)), 1, address, stride)

    def _store(self, space: Any, keys: list[OffloadKey], chunks: np.ndarray,
               places: list[tuple[OffloadKey | None, int]] | None) -> int:
        """How many are there now, by whoever stored them. `places`: of each, as _Prompt.place."""
        parents = positions = None
        if places:
            before, positions = zip(*places)
            parents = [NO_PARENT if key is None else space.key(bytes(key)) for key in before]
        with space.begin(space.keys([bytes(key) for key in keys]), parents=parents,
                         positions=positions) as store:
            needed = np.flatnonzero(store.needed)
            if len(needed):
                copied = self._pieces(chunks[needed])
                copied["block"] = needed
                store.gather(copied)
            report = store.commit()
        return report.stored + report.already

    def _load(self, space: Any, keys: list[OffloadKey], chunks: np.ndarray) -> int:
        """How many of the leading ones were loaded."""
        with space.acquire(space.keys([bytes(key) for key in keys]), ttl_s=LEASE_TTL_S) as lease:
            while lease.usable:
                try:
                    lease.wait(LOAD_TIMEOUT_S)
                    lease.scatter(self._pieces(chunks[: lease.usable]))
                    return lease.usable
                except errors.DataLoss:  # a chunk is bad; those before it are not
                    continue
        return 0


def _describe(spec: OffloadingSpec, namespace: str) -> str:
    """The name of what this tier stores, as vllm_space.describe()."""
    config = spec.config
    parallel = config.parallel
    groups = [(group.tokens_per_block, group.layer_names) for group in config.groups]
    kernels = ""
    if vllm.platforms.current_platform.is_cpu():  # whose kernels order bytes by instruction set
        kernels = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} " \
                  f"{torch.cpu._is_amx_tile_supported()}"
    return json.dumps({
        "engine": f"vllm {vllm.__version__} tier", "model": weights(config.model.name),
        "dtype": str(config.model.dtype), "groups": digest(groups), "kernels": kernels,
        "chunk": [spec.blocks_per_chunk, config.cache.tokens_per_hash],
        "layout": [str(config.kv_cache_layout), config.canonical_layout, config.replicated_layout],
        "ranks": [parallel.rank, parallel.world_size, parallel.tp_size, parallel.pp_size,
                  parallel.pcp_size, parallel.dcp_size],
        "namespace": namespace,
    }, sort_keys=True)
