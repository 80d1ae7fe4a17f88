"""Client.hint against a real daemon."""

from __future__ import annotations

import time

import pytest

import terrace_kv
from terrace_kv import ExpectedRead, errors
from terraced import MIB, Terraced
from test_client import GEOMETRY, prompt, store


def tiers(client: terrace_kv.Client, model: terrace_kv.Model, tokens) -> set[str]:
    return {chunk.tier for chunk in client.match_prefix(model, tokens).chunks}


def test_an_announced_prompt_comes_up(directory):
    tokens = prompt(1024)
    with Terraced(directory, nvme_bytes=256 * MIB) as daemon:
        with terrace_kv.open(socket=daemon.socket_path) as client:
            store(client, client.register_kv(GEOMETRY), tokens)
            client.flush(60)
        daemon.kill()
        daemon.start()
        with terrace_kv.open(socket=daemon.socket_path) as client:
            model = client.register_kv(GEOMETRY)
            assert tiers(client, model, tokens) == {"nvme"}
            report = client.hint([ExpectedRead(7, tokens, order=3, eta_s=1.0)], model)
            assert (report.accepted, report.refused, report.keys, report.why) == (1, 0, 4, "")
            deadline = time.monotonic() + 30
            while tiers(client, model, tokens) != {"host"}:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with client.acquire(model, client.match_prefix(model, tokens)) as lease:
                lease.wait(30)
            counters = client.status()["counters"]
            assert counters["prefetch_queue_timely"] == 4
            assert counters["acquired_nvme"] == 0


def test_keys_kinds_and_withdrawal(client):
    keys = [client.opaque_key("a"), bytes.fromhex(client.opaque_key("b"))]
    reads = [ExpectedRead(i, keys=keys, kind=kind, confidence=0.5)
             for i, kind in enumerate(("documents", "session", "experts"))]
    assert client.hint(reads).keys == 6
    assert client.status()["counters"]["hint_expected_objects"] == 6
    assert client.withdraw([0, 1, 2, 3]).refused == 0
    assert client.status()["counters"]["hint_expected_objects"] == 0
    assert client.hint([]).accepted == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "guess"}, "kind: 'guess'; expected one of 'queue'"),
    ({"confidence": 1.5}, "hints.confidence: 1.5 is not 0 .. 1"),
    ({"confidence": float("nan")}, "hints.confidence"),
    ({"eta_s": -1.0}, "eta_s: -1.0; expected 0 .. 86400 seconds"),
    ({"deadline_s": float("nan")}, "deadline_s: nan"),
    ({"order": 2**32}, "order: 4294967296"),
    ({"request_id": -1}, "request_id: -1"),
    ({"tokens": [1, 2]}, "need a model"),
    ({"keys": ["00"]}, "key: expected 32 bytes"),
])
def test_bad_arguments_are_named(client, changes, message):
    with pytest.raises(errors.InvalidArgument, match=message.replace(".", r"\.")):
        client.hint([ExpectedRead(**{"request_id": 1, **changes})])
