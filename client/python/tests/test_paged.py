"""The parts of paged engines' connectors that know no engine, against a real daemon."""

from __future__ import annotations

import signal
import time

import pytest
import terrace_kv
import torch
from terrace_kv import errors
from terrace_kv.connectors import session
from terrace_kv.connectors.options import PagedOptions
from terrace_kv.connectors.paged_device import DeviceMemory
from terrace_kv.connectors.paged_memory import PagedMemory
from terrace_kv.connectors.paged_transfer import Blocks, StepPlan, StepTransfer
from terrace_kv.connectors.vllm_lookup import PrefixLookup
from terraced import Terraced, chain_lengths

BLOCKS, PARTS = 12, 6


Caches = dict[str, torch.Tensor]


def caches(seed: int) -> Caches:
    """Layers of several layouts: blocks first, K and V first, heads and tokens swapped, two in one
    storage, bytes, and two that are the same."""
    random = torch.Generator().manual_seed(seed)

    def values(*shape: int, dtype: torch.dtype = torch.int16) -> torch.Tensor:
        return torch.randint(-100, 100, shape, dtype=dtype, generator=random)

    both = values(BLOCKS, 2, 16, 12)
    return {"model.layers.10.attn": values(BLOCKS, 2, 16, 8),
            "model.layers.2.attn": values(2, BLOCKS, 16, 2, 8),
            "model.layers.9.attn": values(BLOCKS, 16, 2, 8).permute(0, 2, 1, 3),
            "model.layers.11.attn": both[:, 0], "model.layers.12.attn": both[:, 1],
            "model.layers.13.attn": values(2, BLOCKS, 7, 3, dtype=torch.int8),
            "model.layers.14.attn": both[:, 1]}


def block_bytes(layers: Caches, block: int) -> list[bytes]:
    return [(each[:, block] if each.shape[0] == 2 else each[block]).contiguous().numpy().tobytes()
            for each in layers.values()]


def staged_memory(layers: Caches, num_blocks: int) -> DeviceMemory:
    """With so little staging memory that every copy waits for the one before."""
    return DeviceMemory(layers, num_blocks, slot_bytes=1, save_bytes=1)


@pytest.fixture(params=[PagedMemory, DeviceMemory, staged_memory])
def paged(request):
    return request.param


@pytest.fixture
def sessions(daemon):
    """A function that makes a session of the daemon, for the memory of an engine."""
    made = []

    def make(memory: PagedMemory) -> session.BlockSession:
        layout = session.SpaceLayout("paged", memory.part_bytes)
        made.append(session.BlockSession(
            lambda: session.connect(daemon.socket_path, None, "paged"), [layout]))
        return made[-1]

    yield make
    for each in made:
        each.close()


def run_step(transfer: StepTransfer, plan: StepPlan) -> set[int]:
    transfer.begin(plan)
    transfer.load()
    for part in range(1, PARTS + 1):
        transfer.wait_part(part)
        transfer.save_part(part)
    transfer.finish()
    return transfer.take_failed_blocks()


def test_layers_are_parts_in_the_order_of_their_numbers():
    memory = PagedMemory(caches(1), BLOCKS)
    assert [memory.part_of(f"model.layers.{i}.attn") for i in (2, 9, 10, 11, 12, 13)] == [
        1, 2, 3, 4, 5, 6]
    assert memory.part_bytes == (1024, 512, 512, 384, 384, 42)
    assert memory.part_of("model.layers.14.attn") == 5  # the same as 12


@pytest.mark.parametrize("tensor", [
    torch.zeros((BLOCKS + 1, 4)), torch.zeros((4, 4, BLOCKS)), torch.zeros((BLOCKS, 8))[:, ::2]])
def test_memory_that_is_not_paged_is_refused(paged, tensor):
    with pytest.raises(errors.InvalidArgument, match="layer0: a KV cache of shape"):
        paged({"layer0": tensor}, BLOCKS)


def test_memory_of_two_devices_is_refused():
    layers = {"layer0": torch.zeros(BLOCKS, 4), "layer1": torch.zeros(BLOCKS, 4, device="meta")}
    with pytest.raises(errors.InvalidArgument, match="kv_caches: on cpu, meta; expected one"):
        DeviceMemory(layers, BLOCKS)


def test_what_a_step_stores_another_loads(sessions, paged):
    stored, loaded = caches(1), caches(2)
    memory = paged(stored, BLOCKS)
    save = StepTransfer(sessions(memory), memory, 5)
    names = [f"block {i}".encode() for i in range(4)]
    assert not run_step(save, StepPlan(saves=[Blocks(names, [5, 0, 7, 2])], tokens=64,
                                       block_tokens=16))
    assert save.counters["saved_blocks"] == 4
    memory = paged(loaded, BLOCKS)
    load = StepTransfer(sessions(memory), memory, 5)
    before = {block: block_bytes(loaded, block) for block in range(BLOCKS)}
    plan = StepPlan(loads=[Blocks(names[:3], [1, 11, 3])],
                    saves=[Blocks(names, [1, 11, 3, 4])])  # all there but in other blocks
    assert not run_step(load, plan)
    for source, target in ((5, 1), (0, 11), (7, 3)):
        assert block_bytes(loaded, target) == block_bytes(stored, source)
    for block in set(range(BLOCKS)) - {1, 11, 3}:
        assert block_bytes(loaded, block) == before[block]
    assert load.counters["loaded_blocks"] == 3 and load.counters["saved_blocks"] == 0


def test_what_steps_store_is_one_chain(sessions):
    memory = PagedMemory(caches(1), BLOCKS)
    opened = sessions(memory)
    transfer = StepTransfer(opened, memory, 5)
    names = [f"block {i}".encode() for i in range(5)]
    run_step(transfer, StepPlan(saves=[Blocks(names[:2], [5, 0]), Blocks([b"else"], [1])],
                                tokens=1))
    run_step(transfer, StepPlan(saves=[Blocks([b"else"], [4], b"salt"),
                                       Blocks(names[2:], [7, 2, 3], b"", 2, names[1])], tokens=1))
    assert chain_lengths(opened.spaces[0].client.ls()) == [1, 1, 5]


@pytest.mark.parametrize("saves, loads", [(PagedMemory, DeviceMemory), (DeviceMemory, PagedMemory)])
def test_what_a_device_stores_another_memory_loads(sessions, saves, loads):
    stored, loaded = caches(1), caches(2)
    for layers, memory, plan in (
            (stored, saves, StepPlan(saves=[Blocks([b"a", b"b"], [3, 4])], tokens=1)),
            (loaded, loads, StepPlan(loads=[Blocks([b"a", b"b"], [9, 0])]))):
        placed = memory(layers, BLOCKS)
        assert not run_step(StepTransfer(sessions(placed), placed, 5), plan)
    assert block_bytes(loaded, 9) == block_bytes(stored, 3)
    assert block_bytes(loaded, 0) == block_bytes(stored, 4)


def test_a_step_that_was_cut_short_stores_nothing(sessions, paged):
    memory = paged(caches(1), BLOCKS)
    transfer = StepTransfer(sessions(memory), memory, 5)
    transfer.begin(StepPlan(saves=[Blocks([b"a"], [0])], tokens=1))
    for part in range(1, PARTS):  # the last layer raises, and the engine ends the step
        transfer.save_part(part)
    transfer.finish()
    assert transfer.counters["saved_blocks"] == 0
    assert run_step(transfer, StepPlan(loads=[Blocks([b"a"], [1])])) == {1}


def test_a_load_that_fails_names_its_blocks_and_stores_nothing(sessions, paged):
    layers = caches(1)
    memory = paged(layers, BLOCKS)
    transfer = StepTransfer(sessions(memory), memory, 5)
    run_step(transfer, StepPlan(saves=[Blocks([b"a"], [0])], tokens=1))
    plan = StepPlan(loads=[Blocks([b"a", b"missing", b"b"], [1, 2, 3])],
                    saves=[Blocks([b"rests on b"], [4])], tokens=1)
    assert run_step(transfer, plan) == {2, 3}
    assert block_bytes(layers, 1) == block_bytes(layers, 0)
    assert run_step(transfer, StepPlan(loads=[Blocks([b"rests on b"], [5])])) == {5}


def until_found(lookup: PrefixLookup, request_id: str, names: list[bytes], tokens: int,
                computed_tokens: int = 0, salt: bytes = b"") -> int:
    """As an engine that asks in every step."""
    while (found := lookup.find(request_id, names, tokens, computed_tokens, salt)) is None:
        time.sleep(0.001)
    return found


def test_a_session_comes_back_with_the_daemon(sessions, daemon):
    memory = PagedMemory(caches(1), BLOCKS)
    opened = sessions(memory)
    lookup, transfer = PrefixLookup(opened, 16), StepTransfer(opened, memory, 5)
    run_step(transfer, StepPlan(saves=[Blocks([b"a"], [0])], tokens=1))
    assert until_found(lookup, "r", [b"a"], 17) == 16
    daemon.kill()
    assert until_found(lookup, "r", [b"a"], 17) == 0
    assert run_step(transfer, StepPlan(loads=[Blocks([b"a"], [1])])) == {1}
    assert opened.spaces is None
    daemon.start()
    end = time.monotonic() + 30
    while opened.spaces is None and time.monotonic() < end:
        time.sleep(0.01)
    run_step(transfer, StepPlan(saves=[Blocks([b"c"], [0])], tokens=1))
    assert until_found(lookup, "r", [b"c"], 17) == 16


class Slow:
    """A daemon that stops answering and goes on."""

    def __init__(self, daemon: Terraced) -> None:
        self._daemon = daemon

    def __enter__(self) -> Slow:
        self._daemon.process.send_signal(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.process.send_signal(signal.SIGCONT)


def test_a_session_that_starts_without_a_daemon(daemon):
    """As of an engine that has loaded its model, while the daemon hangs or is gone."""
    def start(required: bool) -> session.BlockSession:
        return session.BlockSession(
            lambda: session.connect(daemon.socket_path, None, "paged"),
            [session.SpaceLayout("paged", (64,))], required)

    def comes(opened: session.BlockSession) -> bool:
        end = time.monotonic() + 30
        while opened.spaces is None and time.monotonic() < end:
            time.sleep(0.01)
        opened.close()
        return time.monotonic() < end

    with Slow(daemon):
        with pytest.raises(errors.Unavailable):
            start(required=True)
        hung = start(required=False)
        assert hung.spaces is None
    assert comes(hung)
    daemon.kill()
    gone = start(required=False)
    assert gone.spaces is None
    daemon.start()
    assert comes(gone)


def test_lookups_leave_a_token_and_promise_whole_blocks(sessions):
    memory = PagedMemory(caches(1), BLOCKS)
    opened = sessions(memory)
    names = [f"{i}".encode() for i in range(4)]
    run_step(StepTransfer(opened, memory, 5),
             StepPlan(saves=[Blocks(names, [0, 1, 2, 3])], tokens=1))
    lookup = PrefixLookup(opened, 16)
    assert until_found(lookup, "r", names, 64) == 48  # one token is left
    assert until_found(lookup, "r", names, 65) == 64
    assert until_found(lookup, "r", names, 65, 32) == 32
    assert until_found(lookup, "r", names, 65, 0, b"salt") == 0
    assert until_found(lookup, "r", [names[0], b"x", names[2]], 49) == 16
    assert until_found(lookup, "r", [], 10) == 0
    assert until_found(lookup, "r", names, 65, 16) == 48
    lookup.load("r", names, [9, 8, 7, 6], 32, b"")
    assert lookup.take_loads() == [Blocks([b"1", b"2"], [8, 7])] and not lookup.take_loads()
    assert lookup.sources("r", 32) == (32, 0)


PATIENT_S = 600  # what no test waits for


@pytest.fixture
def stored(daemon):
    """A session whose calls take as long as they take. The blocks a, b and c are stored."""
    memory = PagedMemory(caches(1), BLOCKS)
    opened = session.BlockSession(
        lambda: terrace_kv.open(socket=daemon.socket_path, call_timeout_s=PATIENT_S),
        [session.SpaceLayout("paged", memory.part_bytes)])
    run_step(StepTransfer(opened, memory, 5),
             StepPlan(saves=[Blocks([b"a", b"b", b"c"], [0, 1, 2])], tokens=1))
    yield opened
    opened.close()


def test_a_slow_daemon_holds_back_requests_not_the_scheduler(daemon, stored):
    lookup = PrefixLookup(stored, 16, PATIENT_S)
    with Slow(daemon):
        for request in ("r", "s", "r", "s"):
            assert lookup.find(request, [b"a", b"b"], 33, 0, b"") is None
        assert lookup.find("t", [b"a"], 16, 0, b"") == 0  # nothing to ask for
    assert until_found(lookup, "s", [b"a", b"b"], 33) == 32
    assert until_found(lookup, "r", [b"a", b"b"], 33) == 32
    assert lookup.counters["lookup_deferred"] == 2
    assert lookup.counters["lookup_blocks"] == lookup.counters["lookup_hit_blocks"] == 4
    # Preempted, and resumed: what was found before does not count.
    with Slow(daemon):
        assert lookup.find("r", [b"a", b"b"], 33, 0, b"") is None
    assert until_found(lookup, "r", [b"a", b"b"], 33) == 32


def test_an_answer_to_another_question_is_dropped(daemon, stored):
    lookup = PrefixLookup(stored, 16, PATIENT_S)
    with Slow(daemon):
        assert lookup.find("r", [b"a", b"b", b"c"], 49, 0, b"") is None
        assert lookup.find("r", [b"a", b"b", b"c"], 49, 16, b"") is None  # more is computed
    assert until_found(lookup, "r", [b"a", b"b", b"c"], 49, 16) == 32
    lookup.load("r", [b"a", b"b", b"c"], [7, 8, 9], 32, b"")
    assert lookup.take_loads() == [Blocks([b"b", b"c"], [8, 9])]
    with Slow(daemon):
        assert lookup.find("r", [b"a"], 17, 0, b"") is None
        lookup.forget("r")  # aborted; then another of the same name
        assert lookup.find("r", [b"x"], 17, 0, b"") is None
    assert until_found(lookup, "r", [b"x"], 17) == 0


def test_a_lookup_without_an_answer_in_time_finds_nothing(daemon, stored):
    lookup = PrefixLookup(stored, 16, timeout_s=1)
    with Slow(daemon):
        assert lookup.find("r", [b"a"], 17, 0, b"") is None
        time.sleep(1)
    time.sleep(0.2)  # for the answer, which is too late
    assert lookup.find("r", [b"a"], 17, 0, b"") == 0
    assert lookup.counters["lookup_failed"] == 1
    with Slow(daemon):
        assert until_found(lookup, "s", [b"a"], 17) == 0
        assert until_found(lookup, "t", [b"a"], 17) == 0  # which waits behind the other
    while until_found(lookup, "s", [b"a"], 17) == 0:
        pass
    assert lookup.counters["lookup_blocks"] == 1


def test_what_is_sooner_computed_is_not_loaded(directory):
    """Blocks on NVMe of a microsecond and of ten seconds, and of nobody knows what."""
    with Terraced(directory, extra='admission = "always"\n') as daemon:
        def connect() -> session.BlockSession:
            return session.BlockSession(
                lambda: session.connect(daemon.socket_path, None, "paged"),
                [session.SpaceLayout("paged", (1 << 20,))])

        opened = connect()
        space, = opened.spaces
        for name, cost_us in ((b"slow", 10**7), (b"quick", 1), (b"unknown", 0)):
            with space.begin(space.keys([name]), cost_us=cost_us) as store:
                store.part(0, 1)[:] = 1
                store.commit()
        lookup = PrefixLookup(opened, 16)
        assert until_found(lookup, "r", [b"quick"], 17) == 16  # from memory
        assert lookup.counters["lookup_recompute_blocks"] == 0
        opened.close()
        lookup.close()
        assert daemon.terrace("flush").returncode == 0 and daemon.stop() == 0
        daemon.start()
        opened = connect()
        lookup = PrefixLookup(opened, 16)
        for names, tokens in (([b"slow"], 16), ([b"unknown"], 16), ([b"quick"], 0),
                              ([b"slow", b"quick"], 16), ([b"quick", b"slow"], 32),
                              ([b"quick", b"missing", b"slow"], 0)):
            lookup.counters.clear()
            assert until_found(lookup, "r", names, 100) == tokens, names
            there = names.index(b"missing") if b"missing" in names else len(names)
            assert lookup.counters["lookup_hit_blocks"] == there
            assert lookup.counters["lookup_recompute_blocks"] == there - tokens // 16
        opened.close()
        lookup.close()


def test_blocks_are_saved_once_and_when_their_hash_is_known():
    lookup = PrefixLookup(None, 16)
    assert lookup.complete("r", 4, 0, 70) == (0, 4)
    assert lookup.complete("r", 4, 70, 9) == (4, 4)
    assert lookup.complete("r", 4, 79, 1)[1] == 4  # complete, but its hash is not known
    assert lookup.complete("r", 5, 80, 1) == (4, 5)
    assert lookup.complete("r", 5, 32, 48) == (2, 5)  # computed again after a failed load
    lookup.forget("r")
    assert lookup.complete("r", 5, 80, 1) == (0, 5)


def test_options_are_checked():
    assert PagedOptions.read({"socket": "/s", "load": False}).load is False
    for given, message in (({"sokcet": "x"}, "sokcet: no such option; expected load, namespace, "
                                             "save, socket, stall_s, tenant"),
                           ({"save": "yes"}, "save: 'yes'; expected bool"),
                           ({"socket": 1}, "socket: 1; expected str"),
                           ({"stall_s": True}, "stall_s: True; expected a number"),
                           ({"stall_s": 0}, "stall_s: 0; expected 0.01 .. 60")):
        with pytest.raises(errors.InvalidArgument, match=message.replace(".", r"\.")):
            PagedOptions.read(given)


def test_a_session_without_a_daemon_says_so(tmp_path):
    with pytest.raises(terrace_kv.TerraceError, match=str(tmp_path / "nobody")):
        session.BlockSession(lambda: session.connect(str(tmp_path / "nobody"), None, "x"), [])
