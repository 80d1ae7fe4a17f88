"""An engine's paged KV memory: where the bytes of a block lie in each layer, and the copies between
there and the store. This one is memory of the CPU, copied by pointer; paged_device.py's is not."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from terrace_kv import blocks, errors
from terrace_kv.blocks import BlockLease, BlockStore


class Tensor(Protocol):
    """What of torch.Tensor is used here."""

    shape: Sequence[int]

    def stride(self) -> Sequence[int]: ...
    def data_ptr(self) -> int: ...
    def element_size(self) -> int: ...


def _natural(name: str) -> list[object]:
    return [int(text) if text.isdigit() else text for text in re.split(r"(\d+)", name)]


@dataclasses.dataclass(frozen=True)
class LayerMemory:
    """One layer's cache: block b is `len(offsets)` runs of `run_bytes` bytes that begin at
    address + offsets[i] + b * block_stride."""

    address: int
    block_stride: int
    offsets: tuple[int, ...]
    run_bytes: int

    @property
    def part_bytes(self) -> int:
        return len(self.offsets) * self.run_bytes

    @classmethod
    def of(cls, name: str, tensor: Tensor, num_blocks: int) -> LayerMemory:
        """Raises InvalidArgument naming the layer when no axis counts blocks, or when the bytes of
        a block behind that axis do not lie together."""
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        axis = next((i for i, size in enumerate(shape[:2]) if size == num_blocks), None)
        size = tensor.element_size()
        if axis is not None:
            inner = sorted(zip(strides[axis + 1:], shape[axis + 1:]))
            dense = all(stride == math.prod(length for _, length in inner[:i])
                        for i, (stride, length) in enumerate(inner) if length > 1)
            if dense:
                steps = [range(0, length * stride, stride) if stride else range(1)
                         for length, stride in zip(shape[:axis], strides[:axis])]
                offsets = tuple(sum(place) * size for place in itertools.product(*steps))
                return cls(tensor.data_ptr(), strides[axis] * size, offsets,
                           math.prod(shape[axis + 1:]) * size)
        raise errors.InvalidArgument(
            f"{name}: a KV cache of shape {list(shape)} and strides {list(strides)} is not "
            f"{num_blocks} blocks of contiguous bytes")


class PagedMemory:
    """All layers, in the order of their numbers; layers that share memory are one part. Immutable.
    The tensors must outlive it."""

    def __init__(self, caches: Mapping[str, Tensor], num_blocks: int) -> None:
        """`caches`: by layer name. Raises InvalidArgument naming the layer."""
        self._part_of: dict[str, int] = {}
        layers: list[LayerMemory] = []
        for name in sorted(caches, key=_natural):
            layer = LayerMemory.of(name, caches[name], num_blocks)
            if layer not in layers:
                layers.append(layer)
            self._part_of[name] = layers.index(layer) + 1
        if not layers:
            raise errors.InvalidArgument("kv_caches: empty; expected a tensor a layer")
        self.layers = tuple(layers)

    @property
    def part_bytes(self) -> tuple[int, ...]:
        return tuple(layer.part_bytes for layer in self.layers)

    def part_of(self, name: str) -> int:
        """The number of a layer's part, from 1."""
        return self._part_of[name]

    def target(self, block_ids: Sequence[int]) -> LoadTarget:
        """Blocks to be loaded, in the order of a lease; the engine's work so far still reads what
        they held before."""
        return self._place(np.arange(len(block_ids)), block_ids)

    def source(self, block_ids: Sequence[int], indices: np.ndarray) -> SaveSource:
        """Blocks to be stored, which are `indices` of a store."""
        return self._place(indices, block_ids)

    def _place(self, indices: np.ndarray, block_ids: Sequence[int]) -> _Pointers:
        ids = np.asarray(block_ids, np.uint64)
        of_part = []
        for part, layer in enumerate(self.layers, 1):
            offsets = np.array(layer.offsets, np.uint64) + np.uint64(layer.address)
            address = ids[:, None] * np.uint64(layer.block_stride) + offsets
            of_part.append(blocks.pieces(indices[:, None], part, address, layer.run_bytes))
        return _Pointers(of_part, [len(layer.offsets) for layer in self.layers])


class LoadTarget(Protocol):
    def load(self, lease: BlockLease, part: int, leading: int) -> None:
        """Copies a part of the leading blocks, which the lease has. What the engine does from now
        on sees it. Raises as BlockLease.scatter()."""


class SaveSource(Protocol):
    def save(self, store: BlockStore, part: int) -> None:
        """Copies a part of all blocks as the engine's work so far leaves it, until finish() at the
        latest. Raises as BlockStore.gather()."""

    def finish(self, store: BlockStore) -> None:
        """Waits until everything is copied. Raises as save()."""


class _Pointers:
    """A list of pieces a part, each in the order of blocks: a target and a source."""

    def __init__(self, of_part: list[np.ndarray], runs: list[int]) -> None:
        self._of_part = of_part
        self._runs = runs

    def load(self, lease: BlockLease, part: int, leading: int) -> None:
        lease.scatter(self._of_part[part - 1][: leading * self._runs[part - 1]])

    def save(self, store: BlockStore, part: int) -> None:
        store.gather(self._of_part[part - 1])

    def finish(self, store: BlockStore) -> None:
        pass
