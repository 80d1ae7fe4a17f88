"""The RESP front-end of a real daemon over raw sockets: what clients of Redis may do to it, and
what must not happen then."""

import contextlib
import os
import pathlib
import shutil
import socket
import sys
import tempfile
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from terraced import BUILD_DIR, MIB, Terraced  # noqa: E402

NIL = b"$-1\r\n"


@pytest.fixture
def directory():
    path = pathlib.Path(tempfile.mkdtemp(prefix="resp-", dir=BUILD_DIR))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(directory, settings="", **changes):
    """A daemon and the address of its front-end."""
    port = free_port()
    extra = f'[resp]\nlisten = "127.0.0.1:{port}"\n{settings}'
    with Terraced(directory, extra=extra, **changes) as daemon:
        yield daemon, ("127.0.0.1", port)


def command(*args) -> bytes:
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Client:
    """Reads replies as they are on the wire; RESP2 only."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=20)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError(f"closed after {line!r}")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            size = int(rest)
            if size < 0:
                return None
            data = self.file.read(size + 2)
            assert data[-2:] == b"\r\n", data[-10:]
            return data[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        return int(rest) if kind == b":" else line[:-2]

    def __call__(self, *args):
        self.send(command(*args))
        return self.reply()


def counter(daemon, name: str) -> int:
    return daemon.status()["counters"][name]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 4096, 262079, 262081, 1 << 20, (1 << 20) + 1,
                                  16 * MIB - 64, 16 * MIB])
def test_values_come_back_with_their_length(directory, size):
    value = os.urandom(size)
    with serving(directory, host_bytes=128 * MIB) as (_, address), Client(address) as client:
        assert client("SET", "k", value) == b"+OK"
        assert client("GET", "k") == value
        assert client("MGET", "k", "nothing", "k") == [value, None, value]


def test_commands_of_everyday(directory):
    with serving(directory) as (_, address), Client(address) as client:
        binary = bytes(range(256))
        assert client("PING") == b"+PONG" and client("ECHO", "x") == b"x"
        assert client("SET", binary, binary) == b"+OK" and client("GET", binary) == binary
        assert client("MSET", "a", "1", "b", "2") == b"+OK"
        assert client("EXISTS", "a", "b", "c", "a") == 3
        assert client("DBSIZE") == 3
        assert client("DEL", "a", "c") == 1 and client("EXISTS", "a") == 0
        assert client("SELECT", "0") == b"+OK" and client("SELECT", "1").startswith(b"-ERR")
        assert client("CONFIG", "GET", "save") == [b"save", b""]
        assert client("COMMAND", "DOCS") == []
        assert b"terrace_version:" in client("INFO") and isinstance(client("CLIENT", "ID"), int)
        assert dict(zip(*[iter(client("HELLO", "2"))] * 2))[b"proto"] == 2
        client.send(command("HELLO", "3") + command("GET", "nothing"))
        assert client.file.readline() == b"%7\r\n"
        while client.file.readline() != b"*0\r\n":
            pass
        assert client.file.readline() == b"_\r\n"


def test_replaced_at_once_and_only_then(directory):
    """Readers meanwhile get the one or the other, whole."""
    values = [bytes([i]) * (MIB + i) for i in range(8)]
    wrong, stop = [], threading.Event()

    def read(address):
        with Client(address) as client:
            while not stop.is_set():
                got = client("GET", "k")
                if got not in values:
                    wrong.append(got)
                if client("EXISTS", "k") != 1:
                    wrong.append("not there")

    with serving(directory, host_bytes=128 * MIB) as (_, address), Client(address) as client:
        client("SET", "k", values[0])
        readers = [threading.Thread(target=read, args=(address,)) for _ in range(3)]
        for reader in readers:
            reader.start()
        for i in range(60):
            assert client("SET", "k", values[i % 8]) == b"+OK"
        # One that is given up half-way leaves what was there.
        with Client(address) as other:
            other.send(command("SET", "k", b"x" * MIB)[:-1000])
        stop.set()
        for reader in readers:
            reader.join()
        assert wrong == [] and client("GET", "k") == values[59 % 8]


def test_nothing_of_a_broken_client_stays(directory):
    with serving(directory) as (daemon, address):
        used = daemon.status()["tiers"][0]["used_bytes"]
        for _ in range(20):
            with Client(address) as client:
                client.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20000000\r\n" + b"x" * 1000)
        with Client(address) as client:
            client("SET", "big", b"y" * (16 * MIB))
            readers = [Client(address) for _ in range(5)]
            for reader in readers:
                reader.send(command("GET", "big") * 3)
                reader.file.read(1000)
            for reader in readers:
                reader.__exit__()
            client("DEL", "big")
        wait_until(lambda: counter(daemon, "resp_clients") == 0)
        wait_until(lambda: daemon.status()["reservations"] == 0)
        wait_until(lambda: daemon.status()["tiers"][0]["used_bytes"] == used)


def test_room_for_the_next_value_is_given_back(directory):
    """It is reserved as a value is committed; a client that stays and stores no more keeps none."""
    with serving(directory) as (daemon, address), Client(address) as client:
        for i in range(10):
            assert client("SET", i % 2, b"x" * (MIB + i // 5)) == b"+OK"
        wait_until(lambda: daemon.status()["reservations"] == 0)
        assert client("MGET", 0, 1) == [b"x" * (MIB + 1)] * 2
        assert client("SET", "k", b"y" * MIB) == b"+OK"
    with serving(directory) as (daemon, address):
        with Client(address) as client:
            assert client("SET", "k", b"y" * MIB) == b"+OK"
        wait_until(lambda: daemon.status()["reservations"] == 0)


def test_exists_knows_what_was_evicted(directory):
    with serving(directory, "exists_lease_ms = 0\n", host_bytes=32 * MIB, nvme_bytes=0) as (
            daemon, address), Client(address) as client:
        for i in range(60):
            assert client("SET", i, b"%d" % i * MIB) == b"+OK"
        there = [client("EXISTS", i) for i in range(60)]
        assert 0 < sum(there) < 32 and sum(there) == client("DBSIZE")
        assert [client("GET", i) is not None for i in range(60)] == [bool(each) for each in there]


@pytest.mark.parametrize("request_bytes, error", [
    (b"*1\r\n$3\r\nFOO\r\n", b"-ERR unknown command 'FOO'"),
    (command("GET"), b"-ERR wrong number of arguments for 'get' command"),
    (command("SET", "k"), b"-ERR wrong number of arguments for 'set' command"),
    (command("MSET", "a", "1", "b"), b"-ERR wrong number of arguments for 'mset' command"),
    (command("SET", "k", "v", "EX", "10"), b"-ERR SET takes a key and a value"),
    (command("SET", "k", b"v" * 2000), b"-ERR value is longer than resp.max_value = 1024 bytes"),
    (command("GET", b"k" * (2 * MIB)), b"-ERR arguments are too long"),
    (b"GET\r\n", b"-ERR wrong number"),
])
def test_errors_keep_the_place_in_the_stream(directory, request_bytes, error):
    with serving(directory, 'max_value = "1KiB"\n') as (_, address), Client(address) as client:
        client.send(request_bytes + b"PING\r\n")
        assert client.reply().startswith(error)
        assert client.reply() == b"+PONG"
        assert client("EXISTS", "k") == 0


@pytest.mark.parametrize("violation", [
    b"*1\r\n:1\r\n", b"*-x\r\n", b"*1\r\n$99999999999\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nvv\r\n\r\n", b"x" * 70000,
])
def test_violations_end_that_client_only(directory, violation):
    with serving(directory) as (_, address), Client(address) as bystander:
        with Client(address) as client:
            client.send(violation)
            assert client.reply().startswith(b"-ERR Protocol error")
            assert client.file.read() == b""
        assert bystander("PING") == b"+PONG"


def test_inline_commands(directory):
    with serving(directory) as (_, address), Client(address) as client:
        client.send(b"SET k value\r\n\r\nGET k\nMSET a 1 b 2\r\nMGET a b\r\nQUIT\r\n")
        replies = [client.reply() for _ in range(5)]
        assert replies == [b"+OK", b"value", b"+OK", [b"1", b"2"], b"+OK"]
        assert client.file.read() == b""


def test_pipelines_answer_in_order(directory):
    with serving(directory) as (_, address), Client(address) as client:
        count = 2000
        client.send(b"".join(command("SET", i % 10, b"%d" % i) + command("GET", i % 10)
                             for i in range(count)))
        for i in range(count):
            assert client.reply() == b"+OK" and client.reply() == b"%d" % i


def test_password(directory):
    secret = directory / "password"
    secret.write_text("open sesame\n")
    with serving(directory, f'password_file = "{secret}"\n') as (_, address):
        with Client(address) as client:
            assert client("SET", "k", "v").startswith(b"-NOAUTH")
            assert client("GET", "k").startswith(b"-NOAUTH")
            assert client("AUTH", "open").startswith(b"-WRONGPASS")
            assert client("AUTH", "other", "open sesame").startswith(b"-WRONGPASS")
            assert client("AUTH", "open sesame") == b"+OK"
            assert client("SET", "k", "v") == b"+OK"
        with Client(address) as client:
            assert client("HELLO", "2", "AUTH", "default", "open sesame")[0] == b"server"
            assert client("GET", "k") == b"v"


def test_a_thousand_idle_clients(directory):
    with serving(directory) as (daemon, address):
        idle = [socket.create_connection(address, timeout=20) for _ in range(1000)]
        try:
            with Client(address) as client:
                assert client("SET", "k", b"v" * MIB) == b"+OK"
                assert client("GET", "k") == b"v" * MIB
            for connection in idle[::100]:
                connection.sendall(b"PING\r\n")
                assert connection.recv(100) == b"+PONG\r\n"
            assert counter(daemon, "resp_clients") == 1000
        finally:
            for connection in idle:
                connection.close()
        wait_until(lambda: counter(daemon, "resp_clients") == 0)


def test_one_client_too_many(directory):
    with serving(directory, "max_clients = 2\n") as (_, address):
        with Client(address) as first, Client(address) as second:
            assert first("PING") == second("PING") == b"+PONG"
            with Client(address) as third:
                assert third.reply() == b"-ERR max number of clients reached"
                assert third.file.read() == b""


def test_waits_for_room(directory):
    """Values that are on their way fill the memory: the next one waits instead of failing."""
    with serving(directory, host_bytes=32 * MIB, nvme_bytes=0, headroom=32 * MIB) as (_, address):
        half = command("SET", "first", b"1" * (20 * MIB))
        with Client(address) as first, Client(address) as second:
            first.send(half[: 10 * MIB])
            result = []
            waiting = threading.Thread(
                target=lambda: result.append(second("SET", "second", b"2" * (20 * MIB))))
            waiting.start()
            time.sleep(0.3)
            assert result == []
            first.send(half[10 * MIB:])
            assert first.reply() == b"+OK"
            waiting.join(10)
            assert result == [b"+OK"] and second("GET", "second") == b"2" * (20 * MIB)


def test_too_large_for_the_memory(directory):
    with serving(directory, host_bytes=32 * MIB) as (_, address), Client(address) as client:
        assert client("SET", "k", b"x" * (40 * MIB)).startswith((b"-ERR", b"-OOM"))
        assert client("PING") == b"+PONG"


def test_values_come_up_from_the_device_after_a_restart(directory):
    values = {f"key {i}": os.urandom(MIB + i) for i in range(20)}
    port = free_port()
    extra = f'[resp]\nlisten = "127.0.0.1:{port}"\n'
    daemon = Terraced(directory, nvme_bytes=256 * MIB, extra=extra)
    with open(daemon.config_path, "r+") as config:
        text = config.read().replace("[nvme]\n", '[nvme]\nadmission = "always"\n')
        config.seek(0)
        config.write(text)
    with daemon:
        with Client(("127.0.0.1", port)) as client:
            for key, value in values.items():
                assert client("SET", key, b"old") == b"+OK"
                assert client("SET", key, value) == b"+OK"
        daemon.stop()
        daemon.start()
        with Client(("127.0.0.1", port)) as client:
            assert client("EXISTS", *values) == len(values)
            assert client("MGET", *values) == list(values.values())


def test_misses_of_lmcache_are_as_long_as_headers(directory):
    key = "model@00000000@0@%032x"
    with serving(directory, "lmcache = true\n", host_bytes=32 * MIB) as (_, address):
        with Client(address) as client:
            assert client("SET", key % 1, b"x" * 5898240) == b"+OK"
            assert client("EXISTS", key % 1) == 1
            client.send(command("GET", key % 2))
            assert client.file.read(len("$5898240\r\n")) == b"-MISS___\r\n"
            assert client("GET", key % 1) == b"x" * 5898240
            # Of several keys a miss is what it is.
            assert client("MGET", key % 2) == [None]


@pytest.mark.parametrize("settings, message", [
    ('listen = "0.0.0.0:6380"\n', "resp.allow_remote"),
    ('listen = "localhost:6380"\n', "an IPv4 address"),
    ('listen = "127.0.0.1"\n', "an IPv4 address"),
    ('listen = "127.0.0.1:6380"\ntenant = "other"\n', "resp.tenant"),
    ('listen = "127.0.0.1:6380"\npassword_file = "/nonexistent"\n', "resp.password_file"),
])
def test_settings_that_cannot_be_used(directory, settings, message):
    daemon = Terraced(directory, extra="[resp]\n" + settings)
    process = daemon.spawn()
    assert process.wait(30) != 0
    assert message in daemon.log()


def test_port_in_use(directory):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        daemon = Terraced(directory, extra=f'[resp]\nlisten = "127.0.0.1:{port}"\n')
        assert daemon.spawn().wait(30) != 0
        assert "resp.listen" in daemon.log()
