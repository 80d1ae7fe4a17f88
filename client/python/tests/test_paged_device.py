"""The order of a device's copies, on a device that is as late as it may be: what is queued on a
stream is done only when somebody waits for it. A wait that is missing leaves other bytes."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from terrace_kv.connectors import session
from terrace_kv.connectors.paged_device import DeviceMemory
from terrace_kv.connectors.paged_transfer import Blocks, StepPlan, StepTransfer
from torch.overrides import TorchFunctionMode

BLOCKS, LAYERS = 10, 4


class LateStream:
    def __init__(self) -> None:
        self._queue: collections.deque[Callable[[], object]] = collections.deque()
        self.queued = self.done = 0

    def push(self, work: Callable[[], object]) -> None:
        self._queue.append(work)
        self.queued += 1

    def run_until(self, count: int) -> None:
        while self.done < count:
            self.done += 1
            self._queue.popleft()()

    def wait_stream(self, other: LateStream) -> None:
        count = other.queued
        self.push(lambda: other.run_until(count))


class LateEvent:
    def __init__(self) -> None:
        self._stream, self._count = LateStream(), 0

    def record(self, stream: LateStream) -> None:
        self._stream, self._count = stream, stream.queued

    def query(self) -> bool:
        return self._stream.done >= self._count

    def synchronize(self) -> None:
        self._stream.run_until(self._count)


class _Queued(TorchFunctionMode):
    """Copies go to a stream."""

    def __init__(self, stream: LateStream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ not in ("copy_", "index_copy_", "index_select"):
            return func(*args, **(kwargs or {}))
        self._stream.push(lambda: func(*args, **(kwargs or {})))
        return args[0]


class LateDevice:
    """What of torch.cuda is used."""

    Stream, Event = LateStream, LateEvent

    def __init__(self) -> None:
        self.engine = LateStream()

    def current_stream(self) -> LateStream:
        return self.engine

    @contextlib.contextmanager
    def stream(self, stream: LateStream) -> Iterator[None]:
        with _Queued(stream):
            yield


@pytest.fixture
def device(monkeypatch) -> LateDevice:
    late = LateDevice()
    monkeypatch.setattr(torch, "get_device_module", lambda _: late)
    return late


@pytest.mark.parametrize("save_bytes", [1, 1 << 20])
def test_copies_keep_their_order_against_the_engine_and_each_other(daemon, device, save_bytes):
    layers = [torch.zeros(BLOCKS, 2, 8, dtype=torch.int32) for _ in range(LAYERS)]
    memory = DeviceMemory({f"layer{i}": layer for i, layer in enumerate(layers)}, BLOCKS,
                          slot_bytes=1, save_bytes=save_bytes)
    opened = session.BlockSession(lambda: session.connect(daemon.socket_path, None, "late"),
                                  [session.SpaceLayout("late", memory.part_bytes)])
    transfer = StepTransfer(opened, memory, 5)
    engine, read = device.engine, []

    def value(name: int, layer: int) -> int:
        return 100 * name + layer + 1

    def write(block: int, name: int, layer: int) -> None:
        engine.push(lambda: layers[layer][block].fill_(value(name, layer)))

    def step(loads: dict[int, int], saves: dict[int, int]) -> None:
        """Of {block: name}: reads what is loaded and computes what is saved."""
        def blocks(of: dict[int, int]) -> list[Blocks]:
            return [Blocks([b"%d" % name for name in of.values()], list(of))] if of else []

        transfer.begin(StepPlan(loads=blocks(loads), saves=blocks(saves), tokens=1))
        transfer.load()
        for layer in range(LAYERS):
            transfer.wait_part(layer + 1)
            for block, name in loads.items():
                engine.push(lambda b=block, n=name, i=layer: read.append(
                    (n, i, layers[i][b].unique().tolist())))
            for block, name in saves.items():
                write(block, name, layer)
            transfer.save_part(layer + 1)
        transfer.finish()
        assert not transfer.take_failed_blocks()

    try:
        step({}, {block: block for block in range(6)})
        step({}, {block: 10 + block for block in range(6)})  # in the same blocks
        assert transfer.counters["saved_blocks"] == 12
        for layer in range(LAYERS):  # what was queued before the next step still reads them
            engine.push(lambda i=layer: read.append((15, i, layers[i][5].unique().tolist())))
        step({5: 0, 4: 1, 3: 2, 2: 13, 1: 14, 0: 15}, {6: 20, 7: 21})
        for block in range(BLOCKS):
            for layer in range(LAYERS):
                write(block, 99, layer)
        step({9: 20, 8: 21, 7: 10, 6: 11}, {})
        engine.run_until(engine.queued)
    finally:
        opened.close()
    assert len(read) == LAYERS * (1 + 6 + 4)
    for name, layer, values in read:
        assert values == [value(name, layer)], (name, layer)


def test_a_block_costs_what_the_device_takes_to_compute_it(daemon, device):
    """Not what queueing its work takes. Of steps that compute a prompt; the first is not known."""
    memory = DeviceMemory({"layer0": torch.zeros(BLOCKS, 2, 8, dtype=torch.int32)}, BLOCKS)
    opened = session.BlockSession(lambda: session.connect(daemon.socket_path, None, "late"),
                                  [session.SpaceLayout("late", memory.part_bytes)])
    transfer = StepTransfer(opened, memory, 5)

    def cost_us(name: bytes, tokens: int, computing_s: float) -> int:
        """Of a block of two tokens, completed by a step of so many."""
        transfer.begin(StepPlan(saves=[Blocks([name], [0])], tokens=tokens, block_tokens=2))
        device.engine.push(lambda: time.sleep(computing_s))
        transfer.save_part(1)
        transfer.finish()
        return daemon.json("show", opened.spaces[0].key(name).hex())["cost_us"]

    assert cost_us(b"first", 4, 0.4) == 0
    assert cost_us(b"second", 1, 30e-6) >= 200_000
    assert cost_us(b"a token a step does not tell", 1, 0) >= 200_000
    opened.close()
