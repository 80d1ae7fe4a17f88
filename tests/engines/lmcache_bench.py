"""LMCache's own `lmcache bench l2`, in one process for many adapters: its keys, its objects, its
runners and its check of what comes back, without the four seconds of imports a run."""

from __future__ import annotations

import argparse
import dataclasses
import json

from lmcache.cli.commands.bench.l2_adapter_bench import data, runner
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config

KIB, MIB = 1 << 10, 1 << 20
ALIGN_BYTES = 4096


@dataclasses.dataclass
class Figures:
    """Of one round: bytes a second; milliseconds for all keys."""

    store: float
    load: float
    lookup_ms: float


class Bench:
    """`num_keys` values of `value_bytes`, as the bench lays them out; rounds take new keys."""

    def __init__(self, num_keys: int = 64, value_bytes: int = 4 * MIB) -> None:
        self._keys, self._bytes = num_keys, value_bytes
        self._buffer = data.make_aligned_tensor(2 * num_keys * value_bytes, ALIGN_BYTES)
        self._stored = data.make_memory_objects(self._buffer, num_keys, value_bytes, 0)
        self._loaded = data.make_memory_objects(self._buffer, num_keys, value_bytes,
                                                num_keys * value_bytes, fill_offset=1)
        self._rounds = 0

    def adapter(self, **config: object):
        """An adapter by its JSON, as --l2-adapter takes it."""
        parsed = parse_args_to_l2_adapters_config(
            argparse.Namespace(l2_adapter=[json.dumps(config)]))
        memory = data.create_l1_memory_desc(self._buffer, align_bytes=ALIGN_BYTES)
        return create_l2_adapter(parsed.adapters[0], l1_memory_desc=memory)

    def round(self, adapter) -> Figures:
        """Stores, looks up and loads once; raises AssertionError when a byte is wrong."""
        keys = [data.make_object_keys(self._keys, key_offset=self._rounds * self._keys)]
        self._rounds += 1
        lines: list[str] = []
        log = lines.append
        whole = self._keys * self._bytes
        store = runner.bench_store(adapter, 1, self._keys, self._bytes, 1, lambda _: keys,
                                   lambda _: [self._stored], log)
        lookup = runner.bench_lookup(adapter, 1, self._keys, 1, lambda _: keys, log)
        load = runner.bench_load(adapter, 1, self._keys, self._bytes, 1, lambda _: keys,
                                 lambda _: [self._loaded], log)
        for result in (store, lookup, load):
            assert result.success_counts == [self._keys], lines
        assert data.verify_round_trip(keys[0], self._stored, self._loaded, log), lines
        adapter.delete(keys[0])
        return Figures(whole / store.round_durations[0], whole / load.round_durations[0],
                       lookup.round_durations[0] * 1e3)
