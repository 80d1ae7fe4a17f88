"""terrace_kv against a real daemon."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import threading

import numpy as np
import pytest

import terrace_kv
from conftest import BUILD, ROOT
from terrace_kv import K, V, _capi, errors
from terraced import MIB, Terraced

GEOMETRY = terrace_kv.KvGeometry(model_id="pytest", dtype="float16", order="head_major", layers=3,
                                 kv_heads=2, head_dim=8)
ITEM = 8 * 2  # bytes of one head of one token


def prompt(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50_000, count)


def kv(tokens: np.ndarray, layer: int, which: int) -> np.ndarray:
    """uint8 [heads, tokens, ITEM]: a function of what it stands for."""
    head = np.arange(2)[:, None, None]
    item = np.arange(ITEM)[None, None, :]
    return (tokens[None, :, None] * 7 + layer * 31 + which * 101 + head * 13 + item).astype(np.uint8)


def store(client: terrace_kv.Client, model: terrace_kv.Model, tokens: np.ndarray,
          extra: bytes = b"") -> terrace_kv.CommitReport:
    with client.begin_store(model, tokens, extra=extra, cost_us=1000) as writing:
        for chunk in writing.chunks:
            if not chunk.needed:
                continue
            end = chunk.token_begin + chunk.token_count
            for layer in range(GEOMETRY.layers):
                for which in (K, V):
                    part = kv(tokens, layer, which)[:, chunk.token_begin : end]
                    writing.write(chunk.index, layer, which, part)
        return writing.commit()


def check(lease: terrace_kv.Lease, tokens: np.ndarray) -> None:
    for index, chunk in enumerate(lease.chunks):
        end = chunk.token_begin + chunk.matched_tokens
        for layer in range(GEOMETRY.layers):
            for which in (K, V):
                part = lease.part(index, layer, which).reshape(2, chunk.object_tokens, ITEM)
                want = kv(tokens, layer, which)[:, chunk.token_begin : end]
                assert np.array_equal(part[:, : chunk.matched_tokens], want)


def test_store_match_load(client):
    model, tokens = client.register_kv(GEOMETRY), prompt(600)
    assert client.match_prefix(model, tokens).tokens == 0
    report = store(client, model, tokens)
    assert (report.stored, report.failed) == (3, 0)
    assert store(client, model, tokens).already == 3
    match = client.match_prefix(model, tokens)
    assert match.tokens == 592  # 16-token grain
    assert [c.matched_tokens for c in match.chunks] == [256, 256, 80]
    assert {c.tier for c in match.chunks} == {"host"}
    with client.acquire(model, match) as lease:
        lease.wait(10)
        assert lease.usable_tokens == 592
        check(lease, tokens)
        assert client.status()["leases"] == 1
    client.flush(10)  # releases are not waited for; calls keep their order
    assert client.status()["leases"] == 0
    other = tokens.copy()
    other[300] += 1
    assert client.match_prefix(model, other).tokens == 288
    assert client.match_prefix(model, tokens, extra=b"adapter").tokens == 0
    assert len(model.grain_keys(tokens)) == 37 and model.fingerprint != client.opaque_key("x")


def test_views_are_shared_memory_and_not_copies(client):
    model, tokens = client.register_kv(GEOMETRY), prompt(256)
    with client.begin_store(model, tokens) as writing:
        for layer in range(GEOMETRY.layers):
            for which in (K, V):
                writing.buffer(0, layer, which)[:] = kv(tokens, layer, which).reshape(-1)
        assert writing.commit().stored == 1
    with client.acquire(model, client.match_prefix(model, tokens)) as lease:
        lease.wait(10)
        check(lease, tokens)
        view = lease.part(0, 1, V)
        assert view.ctypes.data == lease.part(0, 1, V).ctypes.data
        mapping = next(line for line in open("/proc/self/maps") if "terrace-host" in line)
        begin, end = (int(x, 16) for x in mapping.split()[0].split("-"))
        assert begin <= view.ctypes.data < end


def test_rows_in_and_out(client):
    model, tokens = client.register_kv(GEOMETRY), prompt(300)
    whole = [[kv(tokens, layer, which) for which in (K, V)] for layer in range(GEOMETRY.layers)]
    with client.begin_store(model, tokens) as writing:
        for chunk in writing.chunks:
            for layer in range(GEOMETRY.layers):
                for which in (K, V):
                    source = whole[layer][which]
                    writing.write_rows(chunk.index, layer, which,
                                       source.ctypes.data + chunk.token_begin * ITEM, 2,
                                       chunk.token_count * ITEM, source.strides[0])
        assert writing.commit().stored == 2
    with client.acquire(model, client.match_prefix(model, tokens)) as lease:
        lease.wait(10)
        out = np.zeros((2, 310, ITEM), np.uint8)
        lease.read_rows(2, V, 270, out.ctypes.data, 2, out.strides[0])
        assert np.array_equal(out[:, :270], whole[2][V][:, :270])
        assert not out[:, 270:].any()
        for bad in ((2, V, 289, 2, out.strides[0]), (2, V, 270, 3, out.strides[0]),
                    (2, V, 270, 2, 16), (99, V, 16, 2, out.strides[0]), (0, 7, 16, 2, 16)):
            layer, which, count, rows, stride = bad
            with pytest.raises(errors.InvalidArgument):
                lease.read_rows(layer, which, count, out.ctypes.data, rows, stride)


def test_leaving_a_store_gives_everything_back(client):
    model, tokens = client.register_kv(GEOMETRY), prompt(512)
    with pytest.raises(ZeroDivisionError):
        with client.begin_store(model, tokens) as writing:
            writing.write(0, 0, K, kv(tokens, 0, K)[:, :256])
            1 / 0
    status = client.status()
    assert status["reservations"] == 0 and status["objects"] == 0
    with client.begin_store(model, tokens) as writing:
        with pytest.raises(errors.InvalidArgument, match="chunk 0: part 1 was not written"):
            writing.commit()
    assert client.match_prefix(model, tokens).tokens == 0


def test_a_lease_that_ran_out_says_so(client):
    model, tokens = client.register_kv(GEOMETRY), prompt(256)
    store(client, model, tokens)
    lease = client.acquire(model, client.match_prefix(model, tokens), ttl_s=0.05)
    lease.wait(10)
    while not lease.expired:
        pass
    for use in (lambda: lease.part(0, 0, K), lambda: lease.renew(1), lambda: lease.wait(1)):
        with pytest.raises(errors.TerraceError):
            use()
    lease.close()
    with pytest.raises(errors.FailedPrecondition):
        lease.part(0, 0, K)


def test_opaque_objects(client):
    key = client.opaque_key("session/1")
    assert key == client.opaque_key(b"session/1") != client.opaque_key("session/2")
    with pytest.raises(errors.NotFound):
        client.get(key)
    data = os.urandom(100_001)
    client.put(key, data)
    with client.get(key) as lease:
        lease.wait(10)
        assert lease.payload().tobytes() == data
    with pytest.raises(errors.AlreadyExists):
        client.put(key, b"other")
    client.rm(key)
    with pytest.raises(errors.NotFound):
        client.show(key)


def test_what_operators_do(client):
    model = client.register_kv(GEOMETRY)
    store(client, model, prompt(600))
    client.flush(30)
    objects = client.ls()
    assert len(objects) == 3 and all(item["in_nvme"] for item in objects)
    key = objects[0]["key"]
    client.pin(key)
    assert client.show(key)["pinned"]
    client.pin(bytes.fromhex(key), False)
    assert not client.show(key)["pinned"]
    report = client.verify()
    assert report["checked"] == 3 and report["corrupt"] == 0
    assert client.tenant == "default" and client.daemon_pid == 0 and client.alive


def test_asyncio_waits_for_a_load_from_nvme(directory):
    # 36 MiB of KV from a daemon that has just started.
    geometry = terrace_kv.KvGeometry(model_id="large", dtype="float32", order="head_major",
                                     layers=36, kv_heads=4, head_dim=64)
    tokens = prompt(512)
    with Terraced(directory) as daemon:
        with terrace_kv.open(socket=daemon.socket_path) as client:
            model = client.register_kv(geometry)
            part = np.random.default_rng(2).integers(0, 255, 256 * 4 * 64 * 4).astype(np.uint8)
            with client.begin_store(model, tokens) as writing:
                for chunk in (0, 1):
                    for layer in range(geometry.layers):
                        writing.write(chunk, layer, K, part)
                        writing.write(chunk, layer, V, part)
                assert writing.commit().stored == 2
            client.flush(60)
        daemon.kill()
        daemon.start()
        with terrace_kv.open(socket=daemon.socket_path) as client:
            model = client.register_kv(geometry)
            match = client.match_prefix(model, tokens)
            assert {c.tier for c in match.chunks} == {"nvme"}

            async def load() -> None:
                with client.acquire(model, match) as lease:
                    for layer in range(geometry.layers):
                        await asyncio.wait_for(lease.wait_layer_async(layer), 60)
                        assert np.array_equal(lease.part(1, layer, V), part)

            asyncio.run(load())


def test_spawned_daemon_is_private_and_ends_with_its_client(directory):
    tokens = prompt(256)
    options = {"daemon": str(BUILD / "terraced"), "host_capacity_bytes": 64 * MIB,
               "nvme_capacity_bytes": 256 * MIB}
    with terrace_kv.open(directory / "cache", **options) as client:
        pid = client.daemon_pid
        assert pid > 0 and client.socket_path.parent == directory / "cache"
        with terrace_kv.open(directory / "cache", **options) as second:
            assert second.daemon_pid == 0
            store(second, second.register_kv(GEOMETRY), tokens)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with terrace_kv.open(directory / "cache", **options) as client:
        assert client.match_prefix(client.register_kv(GEOMETRY), tokens).tokens == 256


def test_death_of_the_daemon_is_unavailable(daemon, client):
    model, tokens = client.register_kv(GEOMETRY), prompt(256)
    store(client, model, tokens)
    lease = client.acquire(model, client.match_prefix(model, tokens))
    lease.wait(10)
    daemon.kill()
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(_status_error(client)))
    thread.start()
    thread.join(30)
    assert results == [errors.Unavailable]
    check(lease, tokens)  # what was there stays mapped
    lease.close()
    with pytest.raises(errors.Unavailable):
        client.match_prefix(model, tokens)


def _status_error(client: terrace_kv.Client) -> type[BaseException] | None:
    try:
        client.status()
    except errors.TerraceError as error:
        return type(error)
    return None


def test_nobody_answers(directory):
    with pytest.raises(errors.TerraceError, match="nobody"):
        terrace_kv.open(socket=directory / "nobody")
    with pytest.raises(errors.InvalidArgument, match="path"):
        terrace_kv.open(directory, socket="/s")
    with pytest.raises(errors.NotFound, match="no-such-program"):
        terrace_kv.open(directory, daemon=f"{directory}/no-such-program")


def test_unknown_tenant(daemon):
    with pytest.raises(errors.PermissionDenied, match="nobody"):
        terrace_kv.open(socket=daemon.socket_path, tenant="nobody")


@pytest.mark.parametrize("changes, named", [
    ({"kv_heads": 0}, "kv_heads"), ({"layers": 0}, "layers"), ({"head_dim": 0}, "head_dim"),
    ({"dtype": "complex64"}, "dtype"), ({"order": "diagonal"}, "order"),
    ({"kv_heads": 2**31, "head_dim": 2**31}, "bytes|head|overflow"), ({"layers": -1}, "layers"),
    ({"tp_rank": 2, "tp_size": 2}, "tp_rank"), ({"model_id": ""}, "model_id"),
])
def test_geometries_that_make_no_sense(client, changes, named):
    fields = {"model_id": "m", "dtype": "float16", "layers": 2, "kv_heads": 2, "head_dim": 8}
    with pytest.raises(errors.InvalidArgument, match=named):
        client.register_kv(terrace_kv.KvGeometry(**(fields | changes)))


@pytest.mark.parametrize("tokens", [[-1], [2**32], [0.5], [[1, 2], [3, 4]], ["a"]])
def test_tokens_that_are_not_tokens(client, tokens):
    model = client.register_kv(GEOMETRY)
    with pytest.raises(errors.InvalidArgument, match="tokens"):
        client.match_prefix(model, tokens)


def test_an_object_larger_than_the_tier(client):
    huge = terrace_kv.KvGeometry(model_id="m", dtype="float32", layers=64, kv_heads=32,
                                 head_dim=128)
    with client.begin_store(client.register_kv(huge), prompt(256)) as writing:
        assert not writing.chunks[0].needed
        assert writing.commit().failed == 1
    with pytest.raises(errors.InvalidArgument, match="host"):
        client.put(client.opaque_key("huge"), np.zeros(80 * MIB, np.uint8))


def test_a_closed_client_and_bad_keys(client):
    with pytest.raises(errors.InvalidArgument, match="32 bytes"):
        client.show("ab")
    client.close()
    client.close()
    assert not client.alive
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        client.status()


def test_every_function_of_the_header_is_declared():
    header = (ROOT / "client" / "terrace_c.h").read_text()
    exported = set(re.findall(r"TERRACE_EXPORT [\w\s*]+?(terrace_\w+)\(", header))
    declared = set(_capi._FUNCTIONS)
    assert declared <= exported
    for name in declared:
        prototype = re.search(rf"\b{name}\(([^;]*)\);", header)
        arguments = [a for a in prototype[1].replace("\n", " ").split(",") if a.strip() != "void"]
        assert len(arguments) == len(_capi._FUNCTIONS[name][1]), name


@pytest.mark.parametrize("struct, name", [
    (_capi.ConnectOptions, "terrace_connect_options"), (_capi.SpawnOptions, "terrace_spawn_options"),
    (_capi.KvGeometry, "terrace_kv_geometry"), (_capi.ChunkInfo, "terrace_chunk_info"),
    (_capi.StoreChunkInfo, "terrace_store_chunk_info_t"),
    (_capi.CommitReport, "terrace_commit_report"), (_capi.VerifyReport, "terrace_verify_report"),
])
def test_structures_match_the_header(struct, name):
    header = (ROOT / "client" / "terrace_c.h").read_text()
    body = header[: header.index(f"}} {name};")].rpartition("typedef struct {")[2]
    code = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    fields = re.findall(r"(\w+)(?:\[\w+\])?\s*(?=[;,])", code)
    assert fields == [field for field, _ in struct._fields_]
    assert ctypes.sizeof(struct) % ctypes.alignment(struct) == 0
