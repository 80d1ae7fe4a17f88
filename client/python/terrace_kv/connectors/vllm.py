"""terrace below vLLM's prefix cache: a KV connector for vLLM 0.32, loaded out of tree.

    KVTransferConfig(
        kv_connector="TerraceConnector", kv_role="kv_both",
        kv_connector_module_path="terrace_kv.connectors.vllm",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={"socket": "/run/terrace/terraced.sock"})

The scheduler looks a prompt's block hashes up and plans; each worker moves the bytes, layer by
layer. Options: terrace_kv.connectors.options.PagedOptions. See docs/engines/vllm.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1, KVConnectorHandshakeMetadata, KVConnectorMetadata, KVConnectorRole,
)
from vllm.logger import init_logger
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from terrace_kv.connectors import session, vllm_space
from terrace_kv.connectors.options import PagedOptions
from terrace_kv.connectors.paged_device import DeviceMemory
from terrace_kv.connectors.paged_memory import PagedMemory
from terrace_kv.connectors.paged_transfer import Blocks, StepPlan, StepTransfer
from terrace_kv.connectors.vllm_lookup import PrefixLookup
from terrace_kv.connectors.vllm_stats import TerracePromMetrics, TerraceStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger(__name__)


@dataclasses.dataclass
class TerraceMetadata(KVConnectorMetadata):
    """The scheduler's plan of a step, for the workers."""

    plan: StepPlan


@dataclasses.dataclass
class TerraceHandshake(KVConnectorHandshakeMetadata):
    """What a worker stores under, so that the scheduler looks for the same."""

    layout: session.SpaceLayout


class TerraceConnector(KVConnectorBase_V1):
    """Both sides: vLLM makes one in the scheduler's process and one in each worker's."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole,
                 kv_cache_config: KVCacheConfig) -> None:
        """Raises InvalidArgument naming an option or what of the model is not supported; NotFound
        or Unavailable naming the socket when there is no daemon."""
        super().__init__(vllm_config, role, kv_cache_config)
        self._options = PagedOptions.read(self._kv_transfer_config.kv_connector_extra_config)
        self._block_tokens = vllm_space.block_tokens(vllm_config, kv_cache_config)
        policy = self._kv_transfer_config.kv_load_failure_policy
        if policy != "recompute":
            logger.warning("terrace: kv_load_failure_policy is %r: a request whose KV cannot be "
                           "loaded fails; set it to 'recompute'", policy)
        self._session: session.BlockSession | None = None
        self._transfer: StepTransfer | None = None  # of a worker
        self._memory: PagedMemory | None = None
        self._layout: session.SpaceLayout | None = None
        self._lookup: PrefixLookup | None = None  # of the scheduler
        if role == KVConnectorRole.SCHEDULER:
            # A wrong socket is told before the model is loaded. Once it is, nothing of the daemon
            # keeps the engine from starting.
            self._connect((), required=True)
            self._session.close()

    def _connect(self, layouts: tuple[session.SpaceLayout, ...], required: bool = False) -> None:
        options, role = self._options, self._role.name.lower()
        self._session = session.BlockSession(
            lambda: session.connect(options.socket, options.tenant, f"vllm {role}"), layouts,
            required)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a cache: a save that is dropped is a later miss

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return True  # the hooks of layers must run

    def shutdown(self) -> None:
        if self._session is not None:
            self._session.close()
        if self._lookup is not None:
            self._lookup.close()

    # --- worker ---------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        on_cpu = all(tensor.device.type == "cpu" for tensor in kv_caches.values())
        memory = PagedMemory if on_cpu else DeviceMemory
        self._memory = memory(kv_caches, self._kv_cache_config.num_blocks)
        layers = get_layers_from_vllm_config(self._vllm_config, AttentionLayerBase, list(kv_caches))
        text = vllm_space.describe(self._vllm_config, self._kv_cache_config, kv_caches, layers,
                                   self._options.namespace)
        self._layout = session.SpaceLayout(text, self._memory.part_bytes)
        self._connect((self._layout,))
        self._transfer = StepTransfer(self._session, self._memory, self._options.stall_s)
        logger.info("terrace: %d blocks of %d bytes under %s", self._kv_cache_config.num_blocks,
                    sum(self._memory.part_bytes), text)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return None if self._layout is None else TerraceHandshake(self._layout)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._transfer is not None:
            self._transfer.begin(connector_metadata.plan)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._transfer is not None:
            self._transfer.load()

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._transfer is not None:
            self._transfer.wait_part(self._memory.part_of(layer_name))

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any,
                      **kwargs: Any) -> None:
        if self._transfer is not None:
            self._transfer.save_part(self._memory.part_of(layer_name))

    def wait_for_save(self) -> None:
        if self._transfer is not None:
            self._transfer.finish()

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._transfer is None else self._transfer.take_failed_blocks()

    # --- scheduler ------------------------------------------------------------------------------

    def set_xfer_handshake_metadata(
            self, metadata: Mapping[int, KVConnectorHandshakeMetadata]) -> None:
        """`metadata` by rank: a block is there when every rank's is."""
        self._connect(tuple(metadata[rank].layout for rank in sorted(metadata)))
        self._lookup = PrefixLookup(self._session, self._block_tokens)

    def get_num_new_matched_tokens(self, request: Request,
                                   num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._lookup is None or not self._options.load:
            return 0, False
        found = self._lookup.find(request.request_id, request.block_hashes, request.num_tokens,
                                  num_computed_tokens, _salt(request))
        return found, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks,
                                 num_external_tokens: int) -> None:
        if self._lookup is not None and num_external_tokens > 0:
            self._lookup.load(request.request_id, request.block_hashes, blocks.get_block_ids()[0],
                              num_external_tokens, _salt(request))

    def get_external_cache_hit_sources(
            self, request: Request, num_external_tokens: int) -> dict[CacheHitSource, int]:
        if num_external_tokens == 0 or self._lookup is None:
            return {}
        host, disk = self._lookup.sources(request.request_id, num_external_tokens)
        counts = {CacheHitSource.HOST: host, CacheHitSource.DISK: disk}
        return {source: tokens for source, tokens in counts.items() if tokens}

    def on_new_request(self, request: Request) -> None:
        if self._lookup is not None:
            self._lookup.requests[request.request_id] = request

    def request_finished(self, request: Request,
                         block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if self._lookup is not None:
            self._lookup.forget(request.request_id)
        return False, None

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        plan = StepPlan(tokens=scheduler_output.total_num_scheduled_tokens,
                        block_tokens=self._block_tokens)
        if self._lookup is not None:
            plan.loads = self._lookup.take_loads()
            if self._options.save:
                plan.saves = self._saves(scheduler_output)
        return TerraceMetadata(plan)

    def _saves(self, output: SchedulerOutput) -> list[Blocks]:
        """The blocks that are complete when this step is."""
        cached = output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        computed.update(zip(cached.req_ids, cached.num_computed_tokens))
        anew = {new.req_id for new in output.scheduled_new_reqs} | set(cached.resumed_req_ids)
        saves = []
        for request_id, scheduled in output.num_scheduled_tokens.items():
            request = self._lookup.requests.get(request_id)
            if request is None:
                continue
            if request_id in anew:
                self._lookup.saved.pop(request_id, None)
            begin, end = self._lookup.complete(request_id, len(request.block_hashes),
                                               computed[request_id], scheduled)
            if begin < end:
                ids = output.kv_connector_block_state.get_block_ids(request_id)[0]
                before = bytes(request.block_hashes[begin - 1]) if begin else None
                saves.append(Blocks([bytes(name) for name in request.block_hashes[begin:end]],
                                    list(ids[begin:end]), _salt(request), begin, before))
        return saves

    def reset_cache(self) -> bool | None:
        logger.warning("terrace: what is stored is shared and stays; `terrace rm` removes it")
        return False

    # --- metrics --------------------------------------------------------------------------------

    def get_kv_connector_stats(self) -> TerraceStats | None:
        side = self._transfer if self._transfer is not None else self._lookup
        if side is None or not side.counters:
            return None
        stats = TerraceStats(data=dict(side.counters))
        side.counters.clear()
        return stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> TerraceStats | None:
        return TerraceStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(cls, vllm_config: VllmConfig, metric_types: dict, labelnames: list[str],
                           per_engine_labelvalues: dict[int, list[object]]) -> TerracePromMetrics:
        return TerracePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _salt(request: Request) -> bytes:
    # vLLM's hashes hold it too; here it keeps keys of salts apart whatever a hash is made of.
    return (request.cache_salt or "").encode()
