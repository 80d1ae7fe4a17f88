"""The backend of SGLang's HiCache against the published interface and a real daemon."""

from __future__ import annotations

import logging
import time

import hicache_interface
import pytest
import torch
from hicache_interface import (
    HiCacheStorage, HiCacheStorageConfig, HiCacheStorageExtraInfo, HostPool, PoolHitPolicy,
    PoolName, PoolTransfer,
)
from terraced import chain_lengths

import terrace_kv
from terrace_kv import errors

hicache_interface.install()
from terrace_kv.connectors.sglang import TerraceHiCache  # noqa: E402

KEYS = [f"{i:064x}" for i in range(8)]


@pytest.fixture(params=["page_first", "layer_first"])
def layout(request) -> str:
    return request.param


def backend_of(daemon, pool: HostPool | None, options: dict | None = None,
               **config: object) -> TerraceHiCache:
    """As SGLang makes one: by configuration, then the pool."""
    extra = {"backend_name": "terrace", "module_path": "terrace_kv.connectors.sglang",
             "class_name": "TerraceHiCache", "interface_v1": 1,
             "terrace_socket": daemon.socket_path, **(options or {})}
    backend = TerraceHiCache(HiCacheStorageConfig(extra_config=extra, **config), {})
    if pool is not None:
        backend.register_mem_pool_host(pool)
    return backend


def indices_of(pool: HostPool, pages: list[int]) -> torch.Tensor:
    starts = torch.tensor(pages) * pool.page_size
    return (starts[:, None] + torch.arange(pool.page_size)).flatten()


def test_pages_come_back_where_they_are_wanted(daemon, layout):
    pool = HostPool(layout)
    writer = backend_of(daemon, pool)
    assert isinstance(writer, HiCacheStorage)
    assert writer.batch_exists(KEYS) == 0
    assert writer.batch_set_v1(KEYS[:5], indices_of(pool, [0, 3, 1, 7, 4])) == [True] * 5
    assert writer.batch_exists(KEYS) == 5

    other = HostPool(layout)  # of another process, with other pages free
    reader = backend_of(daemon, other)
    before = other.kv_buffer.clone()
    assert reader.batch_get_v1(KEYS, indices_of(other, [9, 2, 5, 8, 1, 0, 3, 4])) == (
        [True] * 5 + [False] * 3)
    for ours, theirs in zip([9, 2, 5, 8, 1], [0, 3, 1, 7, 4]):
        assert torch.equal(other.page(4 * ours), pool.page(4 * theirs))
    for page in (0, 3, 4):  # not found, not touched
        axis = 1 if layout == "page_first" else 2
        assert torch.equal(other.page(4 * page), before.narrow(axis, 4 * page, 4))


def test_a_page_that_is_there_is_kept(daemon, layout):
    pool = HostPool(layout)
    backend = backend_of(daemon, pool)
    first = pool.page(0).clone()
    assert backend.batch_set_v1(KEYS[:1], indices_of(pool, [0])) == [True]
    assert backend.batch_set_v1(KEYS[:2], indices_of(pool, [1, 2])) == [True, True]
    assert backend.batch_get_v1(KEYS[:2], indices_of(pool, [5, 6])) == [True, True]
    assert torch.equal(pool.page(20), first)
    assert torch.equal(pool.page(24), pool.page(8))


def test_a_gap_ends_what_exists_and_what_is_read(daemon, layout):
    pool = HostPool(layout)
    backend = backend_of(daemon, pool)
    backend.batch_set_v1([KEYS[0], KEYS[2]], indices_of(pool, [0, 2]))
    assert backend.batch_exists(KEYS[:3]) == 1
    assert backend.exists(KEYS[2]) and not backend.exists(KEYS[1])
    assert backend.batch_get_v1(KEYS[:3], indices_of(pool, [4, 5, 6])) == [True, False, False]


def test_pages_as_tensors_are_the_same_pages(daemon, layout):
    pool = HostPool(layout)
    backend = backend_of(daemon, pool)
    assert backend.get(KEYS[0], pool.get_dummy_flat_data_page()) is None
    assert backend.set(KEYS[0], pool.get_data_page(0)) is True
    assert backend.batch_set(KEYS[1:3], [pool.get_data_page(4), pool.get_data_page(8)]) is True
    got = backend.batch_get(KEYS[:4], [pool.get_dummy_flat_data_page() for _ in range(4)])
    for i in range(3):
        assert torch.equal(got[i], pool.get_data_page(4 * i))
    assert got[3] is None
    assert torch.equal(backend.get(KEYS[1]), pool.get_data_page(4))
    # A page that is not of the pool's size is refused, not cut.
    assert backend.set(KEYS[5], pool.get_data_page(0)[:-1]) is False
    assert backend.get(KEYS[0], torch.zeros(3)) is None


def test_what_has_another_meaning_shares_nothing(daemon):
    pool = HostPool("page_first")
    backend = backend_of(daemon, pool)
    backend.batch_set_v1(KEYS[:1], indices_of(pool, [0]))
    for other in (
        backend_of(daemon, HostPool("layer_first")),
        backend_of(daemon, HostPool("page_first", page_size=8)),
        backend_of(daemon, pool, model_name="another model"),
        backend_of(daemon, pool, {"terrace_model": "another revision"}),
        backend_of(daemon, pool, {"terrace_salt": "another user"}),
        backend_of(daemon, pool, tp_rank=1, tp_size=2),
        backend_of(daemon, pool, pp_rank=1, pp_size=2),
        backend_of(daemon, pool, attn_cp_rank=1, attn_cp_size=2),
    ):
        assert not other.exists(KEYS[0])
    assert backend_of(daemon, pool, {"terrace_model": "a model"}).exists(KEYS[0])


def test_latent_kv_is_that_of_every_rank(daemon):
    pool = HostPool("page_first")
    backend_of(daemon, pool, is_mla_model=True, tp_rank=0, tp_size=2).batch_set_v1(
        KEYS[:1], indices_of(pool, [0]))
    assert backend_of(daemon, pool, is_mla_model=True, tp_rank=1, tp_size=2).exists(KEYS[0])


def test_several_pools(daemon):
    kv, state = HostPool("page_first"), HostPool("page_first", page_size=1)
    backend = backend_of(daemon, kv)
    for name, pool in ((PoolName.KV, kv), (PoolName.MAMBA, state), (PoolName.INDEXER, kv)):
        backend.register_mem_host_pool_v2(pool, name)
    written = backend.batch_set_v2([
        PoolTransfer(PoolName.KV, indices_of(kv, [0, 1, 2, 3]), KEYS[:4]),
        PoolTransfer(PoolName.MAMBA, indices_of(state, [5, 6]), KEYS[1:3]),
        PoolTransfer(PoolName.INDEXER, indices_of(kv, [0, 1, 2]), KEYS[:3]),
    ])
    assert written == {"kv": [True] * 4, "mamba": [True] * 2, "indexer": [True] * 3}

    def found(*pools: PoolTransfer) -> tuple[int, dict[str, int]]:
        result = backend.batch_exists_v2(KEYS, list(pools))
        return result.kv_hit_pages, result.extra_pool_hit_pages

    indexer = PoolTransfer(PoolName.INDEXER)
    last = PoolTransfer(PoolName.MAMBA, keys=KEYS[:1], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    last_three = PoolTransfer(PoolName.MAMBA, keys=KEYS[:3],
                              hit_policy=PoolHitPolicy.TRAILING_PAGES)
    assert found() == (4, {"kv": 4})
    assert found(indexer) == (3, {"kv": 4, "indexer": 3})
    assert found(last) == (3, {"kv": 4, "mamba": 3})
    assert found(last, indexer) == (3, {"kv": 4, "indexer": 3, "mamba": 3})
    assert found(last_three) == (0, {"kv": 4})

    read = backend.batch_get_v2([
        PoolTransfer(PoolName.KV, indices_of(kv, [8, 9]), KEYS[2:4]),
        PoolTransfer(PoolName.MAMBA, indices_of(state, [9]), KEYS[2:3]),
        PoolTransfer(PoolName.INDEXER, indices_of(kv, [10]), KEYS[3:4]),
    ])
    assert read == {"kv": [True, True], "mamba": [True], "indexer": [False]}
    assert torch.equal(kv.page(32), kv.page(8))
    assert torch.equal(state.page(9), state.page(6))


def chains(daemon) -> list[int]:
    with terrace_kv.open(socket=daemon.socket_path) as client:
        return chain_lengths(client.ls())


def test_pages_know_what_is_before_them(daemon):
    kv, state = HostPool("page_first"), HostPool("page_first", page_size=1)
    backend = backend_of(daemon, kv)
    # SGLang's own way of a node in mid-prompt: told what is before it, or not, or nothing at all.
    told = HiCacheStorageExtraInfo(prefix_keys=KEYS[:3])
    assert all(backend.batch_set_v1(KEYS[:3], indices_of(kv, [0, 1, 2]),
                                    HiCacheStorageExtraInfo(prefix_keys=[])))
    assert all(backend.batch_set_v1(KEYS[3:5], indices_of(kv, [3, 4]), told))
    assert chains(daemon) == [5]
    untold = HiCacheStorageExtraInfo(prefix_keys=(None,))  # the default of some versions
    assert all(backend.batch_set_v1(KEYS[5:7], indices_of(kv, [5, 6]), untold))
    assert backend.set(KEYS[7], kv.get_data_page(28))
    assert chains(daemon) == [1, 2, 5]

    for name, pool in ((PoolName.MAMBA, state), (PoolName.INDEXER, kv)):
        backend.register_mem_host_pool_v2(pool, name)
    for keys in (KEYS[:3], KEYS[3:5]):
        prefix = HiCacheStorageExtraInfo(prefix_keys=KEYS[: KEYS.index(keys[0])])
        backend.batch_set_v2([
            PoolTransfer(PoolName.INDEXER, indices_of(kv, list(range(len(keys)))), keys),
            PoolTransfer(PoolName.MAMBA, indices_of(state, [0, 1]), keys[-2:],
                         PoolHitPolicy.TRAILING_PAGES)], prefix)
    assert chains(daemon) == [1, 1, 1, 1, 1, 2, 5, 5]


def test_a_batch_is_as_long_as_sglang_makes_it(daemon):
    pool = HostPool("page_first", pages=128)
    keys = [f"page {i}" for i in range(128)]
    backend = backend_of(daemon, pool)
    assert all(backend.batch_set_v1(keys, indices_of(pool, list(range(128)))))
    before = pool.kv_buffer.clone()
    pool.kv_buffer.zero_()
    assert backend.batch_exists(keys) == 128
    assert all(backend.batch_get_v1(keys, indices_of(pool, list(range(128)))))
    assert torch.equal(pool.kv_buffer, before)
    assert backend.batch_get_v1([], indices_of(pool, [])) == []


def test_wrong_calls_are_failures_and_not_exceptions(daemon, caplog):
    pool = HostPool("page_first")
    backend = backend_of(daemon, pool)
    with caplog.at_level(logging.WARNING):
        assert backend.batch_set_v1(KEYS[:2], indices_of(pool, [0])) == [False, False]
        assert backend.batch_get_v1(KEYS[:1], None) == [False]
        assert backend.batch_get_v2([PoolTransfer(PoolName.MAMBA, indices_of(pool, [0]), KEYS[:1])]
                                    ) == {"mamba": [False]}
    assert "host_indices: 4 of 2 pages of 4 tokens" in caplog.text
    assert backend.clear() is False


def test_what_cannot_work_is_said_when_it_is_made(daemon, directory):
    for options, message in (
        ({"terrace_sokcet": "x"}, "terrace_sokcet: no such option; expected terrace_socket, "),
        ({"terrace_salt": 5}, "terrace_salt: 5; expected a text"),
    ):
        with pytest.raises(errors.InvalidArgument, match=message):
            backend_of(daemon, None, options)
    with pytest.raises(errors.InvalidArgument, match="terrace_model: SGLang gives no model name"):
        backend_of(daemon, None, model_name=None)
    with pytest.raises(errors.TerraceError, match="nowhere"):
        backend_of(daemon, None, {"terrace_socket": str(directory / "nowhere")})

    class WithoutPages(HostPool):
        def get_dummy_flat_data_page(self):
            raise NotImplementedError("scales lie elsewhere")

    with pytest.raises(errors.InvalidArgument, match="host pool: scales lie elsewhere"):
        backend_of(daemon, WithoutPages("page_first"))


def test_survives_its_daemon(daemon):
    pool = HostPool("page_first")
    backend = backend_of(daemon, pool)
    assert backend.batch_set_v1(KEYS[:4], indices_of(pool, [0, 1, 2, 3])) == [True] * 4
    with terrace_kv.open(socket=daemon.socket_path) as client:
        client.flush()
    daemon.kill()
    assert backend.batch_exists(KEYS) == 0
    assert backend.batch_get_v1(KEYS[:2], indices_of(pool, [6, 7])) == [False, False]
    assert backend.batch_set_v1(KEYS[:2], indices_of(pool, [0, 1])) == [False, False]
    assert backend.get(KEYS[0]) is None
    daemon.start()
    deadline = time.monotonic() + 30
    while backend.batch_exists(KEYS) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert backend.batch_exists(KEYS) == 4
    assert backend.batch_get_v1(KEYS[:2], indices_of(pool, [6, 7])) == [True, True]
    assert torch.equal(pool.page(24), pool.page(0))
    backend.close()
    assert backend.batch_exists(KEYS) == 0
