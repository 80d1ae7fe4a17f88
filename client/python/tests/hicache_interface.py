"""What SGLang publishes of a HiCache storage backend, restated from its interface of late 2026:
names, arguments and results, and a host pool that lays pages out as SGLang's do. SGLang itself is
not here."""

from __future__ import annotations

import abc
import dataclasses
import enum
import sys
import types

import torch


@dataclasses.dataclass
class HiCacheStorageConfig:
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    attn_cp_rank: int = 0
    attn_cp_size: int = 1
    is_mla_model: bool = False
    enable_storage_metrics: bool = False
    is_page_first_layout: bool = False
    model_name: str | None = "a model"
    extra_config: dict | None = None


@dataclasses.dataclass
class HiCacheStorageExtraInfo:
    prefix_keys: list[str] | None = None
    extra_info: dict | None = None


class PoolName(str, enum.Enum):
    KV = "kv"
    MAMBA = "mamba"
    INDEXER = "indexer"


class PoolHitPolicy(str, enum.Enum):
    ALL_PAGES = "all_pages"
    TRAILING_PAGES = "trailing_pages"


@dataclasses.dataclass
class PoolTransfer:
    name: PoolName
    host_indices: torch.Tensor | None = None
    keys: list[str] | None = None
    hit_policy: PoolHitPolicy = PoolHitPolicy.ALL_PAGES


@dataclasses.dataclass
class PoolTransferResult:
    kv_hit_pages: int
    extra_pool_hit_pages: dict[str, int]


class HiCacheStorage(abc.ABC):
    def register_mem_pool_host(self, mem_pool_host):
        self.mem_pool_host = mem_pool_host

    def register_mem_host_pool_v2(self, host_pool, host_pool_name):
        self.__dict__.setdefault("registered_pools", {})[host_pool_name] = host_pool

    def _not_implemented(self, *_args, **_kwargs):
        raise NotImplementedError

    batch_exists_v2 = batch_get_v2 = batch_set_v2 = _not_implemented
    batch_get_v1 = batch_set_v1 = _not_implemented

    @abc.abstractmethod
    def get(self, key, target_location=None, target_sizes=None): ...

    @abc.abstractmethod
    def batch_get(self, keys, target_locations=None, target_sizes=None): ...

    @abc.abstractmethod
    def set(self, key, value=None, target_location=None, target_sizes=None): ...

    @abc.abstractmethod
    def batch_set(self, keys, values=None, target_locations=None, target_sizes=None): ...

    @abc.abstractmethod
    def exists(self, key): ...


class HostPool:
    """K and V of `pages` pages: [2, tokens, layers, heads, dim] as page_first, and
    [2, layers, tokens, heads, dim] as layer_first."""

    def __init__(self, layout: str, pages: int = 16, page_size: int = 4, layers: int = 3,
                 heads: int = 2, dim: int = 8) -> None:
        self.layout, self.page_size, self.layer_num = layout, page_size, layers
        self.head_num, self.head_dim, self.dtype = heads, dim, torch.bfloat16
        self.start_layer, self.end_layer = 0, layers
        tokens = pages * page_size
        axes = (tokens, layers) if layout == "page_first" else (layers, tokens)
        self.kv_buffer = torch.randn(2, *axes, heads, dim).to(self.dtype)

    def page(self, token: int) -> torch.Tensor:
        """A view of the page that begins at a token."""
        axis = 1 if self.layout == "page_first" else 2
        return self.kv_buffer.narrow(axis, int(token), self.page_size)

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(self.page(0).numel(), dtype=self.dtype)

    def get_data_page(self, index, flat: bool = True) -> torch.Tensor:
        return self.page(index).flatten() if flat else self.page(index)

    def set_from_flat_data_page(self, index, data_page: torch.Tensor) -> None:
        self.page(index).copy_(data_page.reshape(self.page(index).shape))

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        addresses = []
        row = self.head_num * self.head_dim * self.dtype.itemsize
        for token in indices.tolist()[:: self.page_size]:
            k, v = self.page(token)
            if self.layout == "page_first":
                addresses += [k.data_ptr(), v.data_ptr()]
            else:
                for layer in range(self.layer_num):
                    addresses += [k[layer].data_ptr(), v[layer].data_ptr()]
        run = row * self.page_size * (self.layer_num if self.layout == "page_first" else 1)
        return addresses, [run] * len(addresses)


def install() -> None:
    """Makes this module what `sglang.srt.mem_cache.hicache_storage` imports as."""
    path = ""
    for part in ("sglang", "srt", "mem_cache"):
        path = f"{path}.{part}".lstrip(".")
        sys.modules.setdefault(path, types.ModuleType(path))
    module = sys.modules[__name__]
    sys.modules["sglang.srt.mem_cache.hicache_storage"] = module
    sys.modules["sglang.srt.mem_cache"].hicache_storage = module
