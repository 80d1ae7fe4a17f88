"""Paged KV memory on a device, by torch: copies go through page-locked staging memory, so that the
engine's own work on the device goes on meanwhile.

    load:  lease -(scatter)-> staging -(stream of loads)-> the device -(indexed copy)-> blocks
    save:  blocks -(indexed gather)-> the device -(stream of saves)-> staging -(gather)-> store

What the engine queued on its stream is ordered against both streams by events: blocks are loaded
when what read them before is done, the engine's next layer waits for its own blocks only, and a
layer is saved when it is computed. The CPU waits where it touches staging memory itself: before it
fills a piece, for the copy that last read it, and before it reads one, for the copy that wrote it.

On the CPU torch's streams and events do nothing, and the same code copies at once.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from terrace_kv import errors
from terrace_kv.blocks import BlockLease, BlockStore, pieces
from terrace_kv.connectors.paged_memory import LayerMemory, PagedMemory

SLOT_BYTES = 8 << 20  # of one copy: long against its launch, short against a layer
LOAD_SLOTS = 4  # one is filled while others are read
SAVE_BYTES = 256 << 20  # what the device may be ahead of the copies into the store
THREADS = 0  # of a copy between staging memory and the store: as many as pay


@dataclasses.dataclass
class _Slot:
    """A piece of staging memory."""

    host: torch.Tensor  # uint8 [bytes], page-locked
    copied: Any  # event: the device's last copy from or to `host`


class _Staging:
    """Copies of one direction, in their order: a stream, and the memory that they need."""

    def __init__(self, device: torch.device, slots: int, slot_bytes: int) -> None:
        accelerator = torch.get_device_module(device)
        self.stream = accelerator.Stream()
        self._accelerator = accelerator
        self._device = device
        # Used on the stream only, whose order keeps one copy's bytes from the next.
        self._on_device = torch.empty(slot_bytes, dtype=torch.uint8, device=device)
        locked = device.type != "cpu"
        self._slots = [_Slot(torch.empty(slot_bytes, dtype=torch.uint8, pin_memory=locked),
                             accelerator.Event()) for _ in range(slots)]
        self._next = 0
        self.slot_bytes = slot_bytes

    @property
    def slots(self) -> int:
        return len(self._slots)

    def take(self) -> _Slot:
        """The slot that was taken longest ago. Waits until the device is done with it."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        slot.copied.synchronize()
        return slot

    def after_engine(self) -> None:
        """What is queued here from now on waits for what the engine has queued."""
        self.stream.wait_stream(self._accelerator.current_stream())

    def before_engine(self) -> None:
        """What the engine queues from now on waits for what is queued here."""
        self._accelerator.current_stream().wait_stream(self.stream)

    def ids(self, block_ids: Sequence[int]) -> torch.Tensor:
        """int64 [blocks] on the device, for the stream."""
        host = torch.from_numpy(np.asarray(block_ids, np.int64))
        if self._device.type == "cpu":
            return host
        with self._accelerator.stream(self.stream):
            return host.pin_memory().to(self._device, non_blocking=True)

    def to_blocks(self, slot: _Slot, view: torch.Tensor, ids: torch.Tensor) -> None:
        """`view`: [blocks of the engine, runs, words]. Queues the copy of the blocks `ids`."""
        with self._accelerator.stream(self.stream):
            on_device = _as(self._on_device, view, len(ids))
            on_device.copy_(_as(slot.host, view, len(ids)), non_blocking=True)
            view.index_copy_(0, ids, on_device)
            slot.copied.record(self.stream)

    def from_blocks(self, slot: _Slot, view: torch.Tensor, ids: torch.Tensor) -> None:
        with self._accelerator.stream(self.stream):
            on_device = _as(self._on_device, view, len(ids))
            torch.index_select(view, 0, ids, out=on_device)
            _as(slot.host, view, len(ids)).copy_(on_device, non_blocking=True)
            slot.copied.record(self.stream)


def _as(memory: torch.Tensor, view: torch.Tensor, blocks: int) -> torch.Tensor:
    """The first bytes of `memory` as so many blocks of a view."""
    size = blocks * view.shape[1] * view.shape[2] * view.element_size()
    return memory[:size].view(view.dtype).view(blocks, *view.shape[1:])


def _words(layer: LayerMemory, tensor: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A layer's memory as [blocks, runs, words], of the widest words that fit."""
    storage = tensor.untyped_storage()
    begin = layer.address - storage.data_ptr()
    step = layer.offsets[1] - layer.offsets[0] if len(layer.offsets) > 1 else layer.run_bytes
    places = (begin, layer.block_stride, step, layer.run_bytes)
    dtype = next(each for each in (torch.int64, torch.int32, torch.int16, torch.uint8)
                 if all(place % each.itemsize == 0 for place in places))
    begin, stride, step, run = (place // dtype.itemsize for place in places)
    return torch.empty(0, dtype=dtype, device=tensor.device).set_(
        storage, begin, (num_blocks, len(layer.offsets), run), (stride, step, 1))


class DeviceMemory(PagedMemory):
    """Of one device, the current one of the thread that uses it; any that torch has streams for."""

    def __init__(self, caches: Mapping[str, torch.Tensor], num_blocks: int, *,
                 slot_bytes: int = SLOT_BYTES, save_bytes: int = SAVE_BYTES) -> None:
        """As PagedMemory. `slot_bytes`: of one copy, at least a block's part; `save_bytes`: of the
        staging memory for saves, at least a slot."""
        super().__init__(caches, num_blocks)
        devices = {tensor.device for tensor in caches.values()}
        if len(devices) > 1:
            raise errors.InvalidArgument(
                f"kv_caches: on {', '.join(sorted(map(str, devices)))}; expected one device")
        tensors = {self.part_of(name): tensor for name, tensor in caches.items()}
        self.views = [_words(layer, tensors[part], num_blocks)
                      for part, layer in enumerate(self.layers, 1)]
        most = max(self.part_bytes)
        slot_bytes = max(most, min(slot_bytes, most * num_blocks))
        device, = devices
        self.loads = _Staging(device, LOAD_SLOTS, slot_bytes)
        self.saves = _Staging(device, max(save_bytes // slot_bytes, 1), slot_bytes)

    def target(self, block_ids: Sequence[int]) -> _Target:
        return _Target(self, block_ids)

    def source(self, block_ids: Sequence[int], indices: np.ndarray) -> _Source:
        return _Source(self, block_ids, indices)

    def slices(self, part: int, blocks: int) -> Iterator[slice]:
        """So many blocks, as many at a time as one slot holds of a part."""
        step = self.loads.slot_bytes // self.part_bytes[part - 1]
        return (slice(i, min(i + step, blocks)) for i in range(0, blocks, step))

    def staged(self, slot: _Slot, part: int, indices: np.ndarray) -> np.ndarray:
        """The pieces of a slot that holds a part of some blocks."""
        size = self.part_bytes[part - 1]
        return pieces(indices, part, slot.host.data_ptr() + np.arange(len(indices)) * size, size)


class _Target:
    """A LoadTarget."""

    def __init__(self, memory: DeviceMemory, block_ids: Sequence[int]) -> None:
        self._memory = memory
        self._staging = memory.loads
        self._ids = self._staging.ids(block_ids)
        self._staging.after_engine()

    def load(self, lease: BlockLease, part: int, leading: int) -> None:
        view = self._memory.views[part - 1]
        try:
            for some in self._memory.slices(part, leading):
                slot = self._staging.take()
                indices = np.arange(some.start, some.stop)
                lease.scatter(self._memory.staged(slot, part, indices), THREADS)
                self._staging.to_blocks(slot, view, self._ids[some])
        finally:  # also of what is loaded in vain: the engine computes those blocks
            self._staging.before_engine()


class _Source:
    """A SaveSource."""

    def __init__(self, memory: DeviceMemory, block_ids: Sequence[int],
                 indices: np.ndarray) -> None:
        self._memory = memory
        self._staging = memory.saves
        self._ids = self._staging.ids(block_ids)
        self._indices = indices
        self._copies: collections.deque[tuple[_Slot, np.ndarray]] = collections.deque()

    def save(self, store: BlockStore, part: int) -> None:
        self._staging.after_engine()
        view = self._memory.views[part - 1]
        for some in self._memory.slices(part, len(self._indices)):
            if len(self._copies) == self._staging.slots:
                self._gather(store)
            slot = self._staging.take()
            self._staging.from_blocks(slot, view, self._ids[some])
            self._copies.append((slot, self._memory.staged(slot, part, self._indices[some])))
        while self._copies and self._copies[0][0].copied.query():
            self._gather(store)

    def finish(self, store: BlockStore) -> None:
        while self._copies:
            self._gather(store)

    def _gather(self, store: BlockStore) -> None:
        slot, staged = self._copies.popleft()
        slot.copied.synchronize()
        store.gather(staged, THREADS)
