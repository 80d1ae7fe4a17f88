"""terrace_kv against a real daemon."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import subprocess
import sys
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
    value = tokens[None, :, None] * 7 + layer * 31 + which * 101 + head * 13 + item
    return value.astype(np.uint8)


def store(client: terrace_kv.Client, model: terrace_kv.Model, tokens: np.ndarray,
          extra: bytes = b"") -> terrace_kv.CommitReport:
    with client.begin_store(model, tokens, extra=extra, cost_us=10_000_000) as writing:
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
        # Other processes read the same bytes: nobody changes them after commit.
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError):
            view.flags.writeable = True


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
    while not lease.expired:
        pass
    for use in (lambda: lease.part(0, 0, K), lambda: lease.renew(1), lambda: lease.wait(1)):
        with pytest.raises(errors.NotFound):
            use()
    lease.close()
    with pytest.raises(errors.FailedPrecondition):
        lease.part(0, 0, K)


def test_opaque_objects(client):
    for data in (bytearray(b"abc"), memoryview(b"abc"), np.frombuffer(b"abc", np.uint8)):
        copy = client.opaque_key(f"of a {type(data).__name__}")
        client.put(copy, data)
        with client.get(copy) as lease:
            lease.wait(10)
            assert lease.payload().tobytes() == b"abc"
        client.rm(copy)
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

            async def layer_of(lease: terrace_kv.Lease, layer: int) -> None:
                await asyncio.wait_for(lease.wait_layer_async(layer), 60)
                assert np.array_equal(lease.part(1, layer, V), part)

            async def load() -> None:
                with client.acquire(model, match) as lease:
                    await asyncio.gather(*(layer_of(lease, i) for i in range(geometry.layers)))
                    with pytest.raises(errors.InvalidArgument, match="layer"):
                        await lease.wait_layer_async(geometry.layers)

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
    assert not client.alive
    with pytest.raises(errors.TerraceError):  # nobody is there to connect to either
        terrace_kv.open(socket=daemon.socket_path)


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
    ({"model_id": "a\0b"}, "model_id"), ({"model_id": None}, "model_id"),
    ({"layers": 2.5}, "layers"), ({"layers": 2**32 + 2}, "layers"),
])
def test_geometries_that_make_no_sense(client, changes, named):
    fields = {"model_id": "m", "dtype": "float16", "layers": 2, "kv_heads": 2, "head_dim": 8}
    with pytest.raises(errors.InvalidArgument, match=named):
        client.register_kv(terrace_kv.KvGeometry(**(fields | changes)))


@pytest.mark.parametrize("tokens", [[-1], [2**32], [2**70], [0.5], [[1, 2], [3, 4]], [[1], [2, 3]],
                                    ["a"], 7])
def test_tokens_that_are_not_tokens(client, tokens):
    model = client.register_kv(GEOMETRY)
    with pytest.raises(errors.InvalidArgument, match="tokens"):
        client.match_prefix(model, tokens)


def test_an_object_larger_than_the_tier(client):
    huge = terrace_kv.KvGeometry(model_id="m", dtype="float32", layers=64, kv_heads=32,
                                 head_dim=128)
    with client.begin_store(client.register_kv(huge), prompt(256)) as writing:
        assert not writing.chunks[0].needed
        report = writing.commit()
        assert report.failed == 1 and "host" in report.why
    with pytest.raises(errors.InvalidArgument, match="host"):
        client.put(client.opaque_key("huge"), np.zeros(80 * MIB, np.uint8))


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
def test_times_that_are_no_times(client, seconds):
    model, tokens = client.register_kv(GEOMETRY), prompt(256)
    store(client, model, tokens)
    match = client.match_prefix(model, tokens)
    with client.acquire(model, match) as lease:
        for use in (lambda: client.acquire(model, match, ttl_s=seconds),
                    lambda: lease.wait(seconds), lambda: lease.renew(seconds),
                    lambda: client.get("00" * 32, ttl_s=seconds), lambda: client.flush(seconds)):
            with pytest.raises(errors.InvalidArgument, match="_s: "):
                use()


def test_numbers_do_not_wrap_around(client, directory):
    model = client.register_kv(GEOMETRY)
    with pytest.raises(errors.InvalidArgument, match="cost_us"):
        client.begin_store(model, prompt(256), cost_us=-1)
    with pytest.raises(errors.InvalidArgument, match="host_capacity_bytes"):
        terrace_kv.open(directory / "c", host_capacity_bytes=-1)
    store(client, model, prompt(256))
    match = client.match_prefix(model, prompt(256))
    with pytest.raises(errors.InvalidArgument, match="priority"):
        client.acquire(model, match, priority=256)
    with pytest.raises(errors.InvalidArgument, match='memory.*"device"'):
        client.acquire(model, match, memory="hbm")
    with pytest.raises(errors.FailedPrecondition, match="hbm.capacity"):
        client.acquire(model, match, memory="device")
    with client.acquire(model, match) as lease:
        lease.wait(10)
        for chunk, layer, which in ((1, 0, K), (-1, 0, K), (0, 3, K), (0, -1, K), (0, 0, 2)):
            with pytest.raises(errors.InvalidArgument):
                lease.part(chunk, layer, which)


def test_a_closed_client_and_bad_keys(client):
    for bad in ("ab", b"", "zz" * 32):
        with pytest.raises(errors.InvalidArgument, match="key: expected"):
            client.show(bad)
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


STRUCTURES = [
    (_capi.ConnectOptions, "terrace_connect_options"),
    (_capi.SpawnOptions, "terrace_spawn_options"), (_capi.KvGeometry, "terrace_kv_geometry"),
    (_capi.ChunkInfo, "terrace_chunk_info"), (_capi.StoreChunkInfo, "terrace_store_chunk_info_t"),
    (_capi.CommitReport, "terrace_commit_report"), (_capi.VerifyReport, "terrace_verify_report"),
]


def test_structures_are_laid_out_as_the_compiler_lays_out_the_header(directory):
    lines = []
    for struct, name in STRUCTURES:
        lines.append(f'printf("{name} %zu", sizeof({name}));')
        for field, _ in struct._fields_:
            size = f"sizeof((({name}*)0)->{field})"
            lines.append(f'printf(" {field}@%zu+%zu", offsetof({name}, {field}), {size});')
        lines.append('puts("");')
    source = directory / "layout.c"
    source.write_text("#include <stddef.h>\n#include <stdio.h>\n#include \"client/terrace_c.h\"\n"
                      "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    program = directory / "layout"
    subprocess.run(["cc", "-I", str(ROOT), "-o", str(program), str(source)], check=True)
    compiled = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    expected = [" ".join([name, str(ctypes.sizeof(struct)),
                          *(f"{f}@{getattr(struct, f).offset}+{getattr(struct, f).size}"
                            for f, _ in struct._fields_)]) for struct, name in STRUCTURES]
    assert compiled.splitlines() == expected


def test_structures_name_every_member_of_the_header():
    header = (ROOT / "client" / "terrace_c.h").read_text()
    for struct, name in STRUCTURES:
        body = header[: header.index(f"}} {name};")].rpartition("typedef struct {")[2]
        code = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        members = re.findall(r"(\w+)(?:\[\w+\])?\s*(?=[;,])", code)
        assert members == [field for field, _ in struct._fields_], name


@pytest.mark.parametrize("function, struct", [
    ("terrace_connect", _capi.ConnectOptions), ("terrace_spawn", _capi.SpawnOptions),
])
@pytest.mark.parametrize("wrong_by", [-8, 8])
def test_another_size_of_options_is_refused(function, struct, wrong_by):
    handle = ctypes.c_void_p()
    options = struct(struct_size=ctypes.sizeof(struct) + wrong_by)
    with pytest.raises(errors.InvalidArgument, match="struct_size"):
        _capi.call(function, ctypes.byref(options), ctypes.byref(handle))
    assert not handle.value


def test_another_size_of_geometry_is_refused(client):
    handle, geometry = ctypes.c_void_p(), GEOMETRY._to_c()
    geometry.struct_size -= 8
    with pytest.raises(errors.InvalidArgument, match="struct_size"):
        _capi.call("terrace_register_kv", client._h, ctypes.byref(geometry), ctypes.byref(handle))


def import_in(package_parent, **environment: object) -> subprocess.CompletedProcess[str]:
    """Imports the package that lies there in a fresh process, with nothing of ours named."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TERRACE")}
    return subprocess.run(
        [sys.executable, "-c", "from terrace_kv import _capi; print(_capi.lib._name)"],
        capture_output=True, text=True, cwd="/", timeout=60,
        env=clean | {"PYTHONPATH": str(package_parent)} |
        {name: str(value) for name, value in environment.items()})


def test_where_the_library_is_found(directory):
    parent = directory / "checkout" / "client" / "python"
    shutil.copytree(ROOT / "client" / "python" / "terrace_kv", parent / "terrace_kv")
    missing = import_in(parent)
    assert missing.returncode != 0 and "make build" in missing.stderr
    for variable in ("TERRACE_LIBRARY", "TERRACE_BUILD_DIR"):
        wrong = import_in(parent, **{variable: directory / "nowhere"})
        assert wrong.returncode != 0 and f"ImportError: {variable} is set" in wrong.stderr
    (directory / "text").write_text("not a library")
    other = import_in(parent, TERRACE_LIBRARY=directory / "text")
    assert other.returncode != 0 and "/text is not the libterrace of" in other.stderr
    library = BUILD / "libterrace.so"
    release = directory / "checkout" / "build" / "release" / "libterrace.so"
    beside = parent / "terrace_kv" / "libterrace.so"
    for place in (release, beside):  # each is preferred to those before
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(library)
        assert import_in(parent).stdout.strip() == str(place)
    assert import_in(parent, TERRACE_BUILD_DIR=BUILD).stdout.strip() == str(library)
    assert import_in(parent, TERRACE_BUILD_DIR="/nowhere",
                     TERRACE_LIBRARY=library).stdout.strip() == str(library)
