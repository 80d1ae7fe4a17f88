"""A storage backend of SGLang's hierarchical cache (HiCache): pages that leave its host pool are
kept by the daemon of the node, across restarts, for all SGLang processes that serve the same model.

    --hicache-storage-backend dynamic --hicache-storage-backend-extra-config '{
        "backend_name": "terrace", "module_path": "terrace_kv.connectors.sglang",
        "class_name": "TerraceHiCache", "interface_v1": 1, "terrace_model": "<name and revision>"}'

Pages are blocks under SGLang's own page hashes. They are copied between shared memory and the host
pool in place, one C call a batch. SGLang calls from threads that it does not start again: a failure
is an answer here (nothing found, nothing read, not stored), and never an exception.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from sglang.srt.mem_cache import hicache_storage

import terrace_kv
from terrace_kv import Client, errors
from terrace_kv.blocks import BlockLease, BlockSpace, chain, pieces
from terrace_kv.connectors.session import BlockSession, SpaceLayout

logger = logging.getLogger(__name__)
T = TypeVar("T")

KV_POOL = "kv"
LOAD_TIMEOUT_S = 10.0
OPTION_PREFIX = "terrace_"
OPTIONS = ("terrace_socket", "terrace_tenant", "terrace_model", "terrace_salt")

# What of a host pool decides the meaning of a page's bytes, where a pool has it.
POOL_FIELDS = ("layout", "page_size", "dtype", "layer_num", "start_layer", "end_layer", "head_num",
               "head_dim", "kv_lora_rank", "qk_rope_head_dim", "kv_cache_dim")


class _Pool:
    """A host pool of SGLang, and where its pages are stored."""

    def __init__(self, host_pool: object, text: str, open_client: Callable[[], Client]) -> None:
        """Raises InvalidArgument for a pool whose pages cannot be taken as bytes, and what
        `open_client` raises."""
        self.host_pool = host_pool
        self.page_tokens = int(getattr(host_pool, "page_size", 1) or 1)
        try:
            page = host_pool.get_dummy_flat_data_page()
        except NotImplementedError as error:
            raise errors.InvalidArgument(f"host pool: {error}") from error
        self.page_bytes = page.numel() * page.element_size()
        self.session = BlockSession(open_client, [SpaceLayout(text, (self.page_bytes,))])

    def pieces(self, pages: int, host_indices: torch.Tensor) -> np.ndarray:
        """Where the pages are: for each, the runs of bytes that SGLang names, in its order. Raises
        InvalidArgument when they are not whole pages of this pool."""
        if host_indices is None or host_indices.numel() != pages * self.page_tokens:
            given = None if host_indices is None else host_indices.numel()
            raise errors.InvalidArgument(f"host_indices: {given} of {pages} pages of "
                                         f"{self.page_tokens} tokens; expected one a token")
        addresses, sizes = self.host_pool.get_page_buffer_meta(host_indices)
        runs, rest = divmod(len(addresses), pages)
        sizes = np.asarray(sizes, np.uint64)
        if rest or (sizes.reshape(pages, runs).sum(axis=1) != self.page_bytes).any():
            raise errors.InvalidArgument(f"host pool: a page of {len(addresses)} / {pages} runs is "
                                         f"not {self.page_bytes} bytes")
        return pieces(np.repeat(np.arange(pages), runs), 1, np.asarray(addresses, np.uint64), sizes)


class TerraceHiCache(hicache_storage.HiCacheStorage):
    """Of one rank of one SGLang process. Any thread."""

    def __init__(self, storage_config: object, kwargs: Mapping[str, object] | None = None) -> None:
        """`storage_config` is SGLang's HiCacheStorageConfig; of its extra_config, what begins with
        terrace_ is ours: OPTIONS. Raises InvalidArgument naming an option, or what terrace_kv.open
        raises when no daemon answers."""
        options = _options(storage_config.extra_config or {})
        self._config = storage_config
        self._model = options.get("terrace_model") or storage_config.model_name
        if not self._model:
            raise errors.InvalidArgument(
                "terrace_model: SGLang gives no model name; expected a text that names the weights")
        self._salt = options.get("terrace_salt", "").encode()
        self._open = functools.partial(
            terrace_kv.open, socket=options.get("terrace_socket"),
            tenant=options.get("terrace_tenant"), client_name="sglang")
        self._open().close()
        self._pools: dict[str, _Pool] = {}

    def register_mem_pool_host(self, mem_pool_host: object) -> None:
        """Raises InvalidArgument for a pool whose pages cannot be stored."""
        super().register_mem_pool_host(mem_pool_host)
        self._add_pool(KV_POOL, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: object, host_pool_name: str) -> None:
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._add_pool(_name(host_pool_name), host_pool)

    # Pages of the pool of KV, named by the places of their tokens.

    def batch_get_v1(self, keys: list[str], host_indices: torch.Tensor,
                     extra_info: object | None = None) -> list[bool]:
        return self._read(KV_POOL, keys, lambda pool: pool.pieces(len(keys), host_indices))

    def batch_set_v1(self, keys: list[str], host_indices: torch.Tensor,
                     extra_info: object | None = None) -> list[bool]:
        return self._write(KV_POOL, keys, lambda pool: pool.pieces(len(keys), host_indices),
                           _prefix(extra_info))

    def batch_exists(self, keys: list[str], extra_info: object | None = None) -> int:
        return _leading(self._there(KV_POOL, keys))

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # The same of several pools.

    def batch_get_v2(self, transfers: Sequence[object],
                     extra_info: object | None = None) -> dict[str, list[bool]]:
        return {each.name: self._read(*self._transfer(each)) for each in transfers}

    def batch_set_v2(self, transfers: Sequence[object],
                     extra_info: object | None = None) -> dict[str, list[bool]]:
        prefix = _prefix(extra_info)
        return {each.name: self._write(*self._transfer(each), prefix if _is_whole(each) else None)
                for each in transfers}

    def batch_exists_v2(self, keys: list[str], pool_transfers: Sequence[object] | None = None,
                        extra_info: object | None = None) -> object:
        """The longest prefix of pages that every pool can serve: all of its pages, or the last ones
        of it, as many as the transfer has keys."""
        pages = _leading(self._there(KV_POOL, keys))
        hits = {KV_POOL: pages}
        trailing: list[tuple[str, int, np.ndarray]] = []
        for each in pool_transfers or []:
            there = self._there(_name(each.name), keys)
            if _name(each.hit_policy) == "all_pages":
                hits[each.name] = _leading(there)
                pages = min(pages, hits[each.name])
            else:
                trailing.append((each.name, max(1, len(each.keys or [])), there))
        while pages and not all(there[max(0, pages - last) : pages].all()
                                for _, last, there in trailing):
            pages -= 1
        hits.update((name, pages) for name, _, _ in trailing)
        return hicache_storage.PoolTransferResult(
            pages, {name: count for name, count in hits.items() if count})

    # Pages as tensors: what SGLang uses without "interface_v1".

    def get(self, key: str, target_location: torch.Tensor | None = None,
            target_sizes: object | None = None) -> torch.Tensor | None:
        return self.batch_get([key], [target_location])[0]

    def batch_get(self, keys: list[str],
                  target_locations: Sequence[torch.Tensor | None] | None = None,
                  target_sizes: object | None = None) -> list[torch.Tensor | None]:
        targets = [self.mem_pool_host.get_dummy_flat_data_page() if target is None else target
                   for target in target_locations or [None] * len(keys)]
        done = self._read(KV_POOL, keys, lambda pool: _pieces_of(targets, pool.page_bytes))
        return [target if ok else None for target, ok in zip(targets, done)]

    def set(self, key: str, value: torch.Tensor | None = None,
            target_location: torch.Tensor | None = None,
            target_sizes: object | None = None) -> bool:
        return self.batch_set([key], [target_location if value is None else value])

    def batch_set(self, keys: list[str], values: Sequence[torch.Tensor] | None = None,
                  target_locations: Sequence[torch.Tensor] | None = None,
                  target_sizes: object | None = None) -> bool:
        pages = [page.contiguous() for page in (target_locations if values is None else values)]
        return all(self._write(KV_POOL, keys, lambda pool: _pieces_of(pages, pool.page_bytes), []))

    def clear(self) -> bool:
        """False: other processes may use what is stored. Remove the tenant's objects with the
        command line, or give another terrace_salt."""
        logger.warning("terrace: the store is shared and was not cleared")
        return False

    def close(self) -> None:
        for pool in self._pools.values():
            pool.session.close()

    def _add_pool(self, name: str, host_pool: object) -> None:
        config = self._config
        meaning: dict[str, object] = {
            "engine": "sglang", "model": self._model, "pool": name,
            "pp": [config.pp_rank, config.pp_size],
            "cp": [getattr(config, "attn_cp_rank", 0), getattr(config, "attn_cp_size", 1)],
            # Latent KV is the same on every rank, and the first one stores it.
            "tp": None if config.is_mla_model else [config.tp_rank, config.tp_size],
        }
        for field in POOL_FIELDS:
            meaning[field] = getattr(host_pool, field, None)
        text = json.dumps(meaning, sort_keys=True, default=str)
        if name in self._pools:
            self._pools[name].session.close()
        self._pools[name] = _Pool(host_pool, text, self._open)

    def _there(self, name: str, keys: list[str]) -> np.ndarray:
        """bool [keys]: the page is stored."""
        def find(pool: _Pool, space: BlockSpace) -> np.ndarray:
            return space.find(self._keys(space, keys))["tier"] != 0
        return self._attempt(name, keys, np.zeros(len(keys), bool), find)

    def _transfer(self, transfer: object) -> tuple[str, list[str], Callable[[_Pool], np.ndarray]]:
        """Pool, keys and places of a transfer."""
        keys = list(transfer.keys or [])
        return (_name(transfer.name), keys,
                lambda pool: pool.pieces(len(keys), transfer.host_indices))

    def _read(self, name: str, keys: list[str],
              places: Callable[[_Pool], np.ndarray]) -> list[bool]:
        """Whether each page was read to its place; none behind one that was not."""
        def read(pool: _Pool, space: BlockSpace) -> list[bool]:
            to = places(pool)
            with space.acquire(self._keys(space, keys)) as lease:
                usable = _wait(lease)
                lease.scatter(to[to["block"] < usable])
                # What was read after the lease ran out may have been overwritten.
                return [i < usable and not lease.expired for i in range(len(keys))]
        return self._attempt(name, keys, [False] * len(keys), read)

    def _write(self, name: str, keys: list[str], places: Callable[[_Pool], np.ndarray],
               prefix: list[str] | None) -> list[bool]:
        """Whether each page is stored, now or since earlier. `prefix`: the pages before the first
        one in its prompt, as far as SGLang told; None: the pages do not follow each other."""
        def write(pool: _Pool, space: BlockSpace) -> list[bool]:
            source, names = places(pool), self._keys(space, keys)
            parents = positions = None
            if prefix is not None:
                before = self._keys(space, prefix[-1:])
                parents = chain(names, before.tobytes() if prefix else None)
            if prefix:
                positions = range(len(prefix), len(prefix) + len(keys))
            with space.begin(names, parents=parents, positions=positions) as store:
                store.gather(source)  # skips what is there
                report = store.commit()
            if report.failed == 0:
                return [True] * len(keys)
            logger.warning("terrace: %d of %d pages were not stored: %s", report.failed, len(keys),
                           report.why)
            return (space.find(names)["tier"] != 0).tolist()
        return self._attempt(name, keys, [False] * len(keys), write)

    def _keys(self, space: BlockSpace, keys: list[str]) -> np.ndarray:
        return space.keys([key.encode() for key in keys], self._salt)

    def _attempt(self, name: str, keys: list[str], otherwise: T,
                 work: Callable[[_Pool, BlockSpace], T]) -> T:
        pool = self._pools.get(name)
        if pool is None:
            logger.error("terrace: the pool %s was not registered", name)
            return otherwise
        spaces = pool.session.spaces
        if not keys or spaces is None:
            return otherwise
        try:
            return work(pool, spaces[0])
        except errors.NotFound:
            pass
        except errors.TerraceError as error:
            logger.warning("terrace: pages were not read, stored or looked for: %s", error)
            pool.session.lost(error, spaces)
        except Exception:  # noqa: BLE001 - it would end a thread of SGLang for good
            logger.exception("terrace: pages were not read, stored or looked for")
        return otherwise


def _options(given: Mapping[str, object]) -> dict[str, str]:
    ours = {name: value for name, value in given.items() if name.startswith(OPTION_PREFIX)}
    for name, value in ours.items():
        if name not in OPTIONS:
            raise errors.InvalidArgument(f"{name}: no such option; expected {', '.join(OPTIONS)}")
        if not isinstance(value, str):
            raise errors.InvalidArgument(f"{name}: {value!r}; expected a text")
    return ours


def _name(value: object) -> str:
    """Of a pool or a policy, which are enumerations of texts."""
    return str(getattr(value, "value", value))


def _prefix(extra_info: object | None) -> list[str]:
    """The pages before those of a call. SGLang leaves them out unless it is told to pass them, and
    before the first page there are none."""
    keys = getattr(extra_info, "prefix_keys", None) or []
    return list(keys) if all(isinstance(key, str) for key in keys) else []


def _is_whole(transfer: object) -> bool:
    """Pages that are of use only with all before them: they follow each other."""
    return _name(getattr(transfer, "hit_policy", None)) == "all_pages"


def _leading(there: np.ndarray) -> int:
    return len(there) if there.all() else int(np.argmin(there))


def _pieces_of(pages: Sequence[torch.Tensor], page_bytes: int) -> np.ndarray:
    for page in pages:
        if page.numel() * page.element_size() != page_bytes or not page.is_contiguous():
            raise errors.InvalidArgument(
                f"page: {page.dtype} {list(page.shape)}; expected {page_bytes} bytes in one run")
    addresses = np.array([page.data_ptr() for page in pages], np.uint64)
    return pieces(np.arange(len(pages)), 1, addresses, page_bytes)


def _wait(lease: BlockLease) -> int:
    """Waits for all that can be read, and returns how many leading pages those are."""
    while lease.usable > 0:
        try:
            lease.wait(LOAD_TIMEOUT_S)
            break
        except errors.DataLoss as error:  # fewer are usable now
            logger.warning("terrace: %s", error)
    return lease.usable
