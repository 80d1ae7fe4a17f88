"""What operators, disks and strangers get wrong: a clear error or a counted miss, nothing lost."""

import json
import os
import pathlib
import random
import shutil
import socket
import sys
import tempfile
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from terraced import BUILD_DIR, MIB, Terraced, run_stress, terrace  # noqa: E402

KEYS = 200
OK, ERROR, USAGE, NOT_REACHABLE, CORRUPT, NOT_FOUND = range(6)


@pytest.fixture
def directory():
    path = pathlib.Path(tempfile.mkdtemp(prefix="bad-", dir=BUILD_DIR))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def stored(directory):
    """A daemon that has ended after storing objects, all durable, and their log."""
    daemon = Terraced(directory)
    daemon.start()
    log = directory / "durable"
    assert run_stress(daemon, "--keys", KEYS, "--seconds", 2, "--durable-log", log).returncode == 0
    assert daemon.terrace("flush").returncode == OK
    objects = daemon.status()["objects"]
    assert daemon.stop() == 0
    assert objects > KEYS / 4
    yield daemon, log, objects
    daemon.kill()


def refused(directory, **changes) -> str:
    """Starts a daemon that must end with 1 by itself; its log."""
    daemon = Terraced(directory, **changes)
    daemon.log_path.unlink(missing_ok=True)
    process = daemon.spawn()
    try:
        assert process.wait(timeout=60) == 1, daemon.log()
    finally:
        process.kill()
        process.wait()
    return daemon.log()


def test_daemon_absent(directory):
    result = terrace("--socket", f"{directory}/nobody", "status")
    assert result.returncode == NOT_REACHABLE
    assert f"{directory}/nobody" in result.stderr and "terraced" in result.stderr
    path = directory / "file"
    path.write_text("not a socket")
    assert terrace("--socket", str(path), "status").returncode == NOT_REACHABLE
    assert terrace("--socket", "/" + "x" * 300, "status").returncode in (ERROR, NOT_REACHABLE)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" * 4096])
def test_a_socket_of_something_else(directory, answer):
    path = f"{directory}/other"
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)

    def serve():
        peer, _ = server.accept()
        peer.recv(1)
        peer.sendall(answer)
        peer.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    result = terrace("--socket", path, "status", timeout=60)
    thread.join(timeout=60)
    server.close()
    assert result.returncode in (ERROR, NOT_REACHABLE), result.stderr
    assert result.stderr.startswith("terrace: ")


def test_strangers_do_not_stop_the_daemon(directory):
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    choose = random.Random(seed)
    with Terraced(directory) as daemon:
        for _ in range(50):
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(daemon.socket_path)
            stranger.sendall(choose.randbytes(choose.randrange(1, 5000)))
            stranger.close()
        assert daemon.alive()
        status = daemon.status()
        assert len(status["sessions"]) == 1 and status["leases"] == 0


def test_unknown_tenant(directory):
    with Terraced(directory) as daemon:
        result = daemon.terrace("--tenant", "nobody", "status")
        assert result.returncode == ERROR and "nobody" in result.stderr


def test_uid_of_no_tenant(directory):
    extra = f'[[tenants]]\nname = "else"\nuids = [{os.getuid() + 1}]\n'
    daemon = Terraced(directory, extra=extra)
    daemon.process = daemon.spawn()
    try:
        while not os.path.exists(daemon.socket_path):
            assert daemon.process.poll() is None, daemon.log()
        result = daemon.terrace("status")
        assert result.returncode == ERROR and str(os.getuid()) in result.stderr
    finally:
        daemon.kill()


def test_state_directory_that_cannot_be_written(directory):
    log = refused(directory, state_dir="/proc/terrace")
    assert "state_dir" in log and "/proc/terrace" in log


@pytest.mark.parametrize(
    "extra, named",
    [
        ("[surprise]\nkey = 1\n", "surprise"),
        ("[limits]\nmax_sessions = \"many\"\n", "max_sessions"),
        ("[limits]\nmax_sessions = 0\n", "max_sessions"),
        ("[limits\n", "terrace.toml"),
    ],
)
def test_config_errors_stop_the_start(directory, extra, named):
    log = refused(directory, extra=extra)
    assert named in log and "terrace.toml:" in log
    check = terrace("config", "check", str(directory / "terrace.toml"))
    assert check.returncode == ERROR and named in check.stderr


def test_second_daemon_is_refused(directory):
    with Terraced(directory) as daemon:
        second = directory / "second"
        second.mkdir()
        log = refused(second, state_dir=directory / "state")
        assert str(directory / "state") in log
        third = directory / "third"
        third.mkdir()
        log = refused(third, socket=daemon.socket_path)
        assert daemon.socket_path in log
        assert daemon.alive() and daemon.terrace("status").returncode == OK


def test_restart_keeps_everything(stored):
    daemon, log, objects = stored
    daemon.start()
    assert daemon.status()["objects"] == objects
    checked = run_stress(daemon, "--keys", KEYS, "--check", "--durable-log", log)
    assert checked.returncode == 0, checked.stdout


def flip_bytes(daemon, count):
    """Changes bytes of stored payloads all over the segments, headers included."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    choose = random.Random(seed)
    segments = [p for p in (daemon.directory / "state" / "nvme").rglob("*") if p.is_file()
                and p.stat().st_size >= MIB]
    assert segments, "no segment file found"
    for _ in range(count):
        path = choose.choice(segments)
        with open(path, "r+b") as file:
            written = path.stat().st_blocks * 512
            file.seek(choose.randrange(min(written, path.stat().st_size)))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ (1 << choose.randrange(8))]))


def test_corrupt_segments_are_counted_misses(stored):
    daemon, log, objects = stored
    flip_bytes(daemon, 200)
    daemon.start()
    strict = ("--keys", KEYS, "--check", "--durable-log", log)
    checked = run_stress(daemon, *strict, "--tolerate-misses")
    assert checked.returncode == 0, checked.stdout  # never a wrong byte
    status = daemon.status()
    assert 0 < status["counters"]["corrupt_objects"] < objects
    assert status["objects"] == objects - status["counters"]["corrupt_objects"]
    assert status["leases"] == 0
    assert run_stress(daemon, *strict).returncode == 1  # they are gone, not hidden
    assert daemon.alive()


def test_verify_finds_and_lists_corruption(stored):
    daemon, log, objects = stored
    flip_bytes(daemon, 200)
    daemon.start()
    result = daemon.terrace("--json", "verify")
    assert result.returncode == CORRUPT, result.stderr
    report = json.loads(result.stdout)
    assert report["corrupt"] == len(set(report["corrupt_keys"])) > 0
    assert daemon.terrace("show", report["corrupt_keys"][0]).returncode == NOT_FOUND
    assert daemon.terrace("verify").returncode == OK  # what was corrupt is dropped


def test_verify_lists_what_went_with_its_segment(stored):
    daemon, log, objects = stored
    next((daemon.directory / "state").rglob("*.tseg")).unlink()
    daemon.start()
    lost = daemon.status()["counters"]["nvme_lost_records"]
    assert daemon.status()["objects"] == objects - lost < objects
    result = daemon.terrace("--json", "verify")
    assert result.returncode == CORRUPT, result.stderr
    assert len(set(json.loads(result.stdout)["corrupt_keys"])) == lost
    checked = run_stress(daemon, "--keys", KEYS, "--check", "--durable-log", log, "--tolerate-misses")
    assert checked.returncode == 0, checked.stdout  # misses, never a wrong byte


@pytest.mark.parametrize("victim", ["CURRENT", "MANIFEST-*", "*.log", "*.sst"])
def test_corrupt_index_is_rebuilt(stored, victim):
    daemon, log, objects = stored
    current = next((daemon.directory / "state").rglob("CURRENT"))
    if victim == "*.sst":  # a restart makes RocksDB write its log into a table
        daemon.start()
        assert daemon.stop() == 0
    victims = [path for path in current.parent.glob(victim) if path.stat().st_size > 0]
    assert victims, f"RocksDB has no {victim} to corrupt"
    for path in victims:
        path.write_bytes(os.urandom(max(64, path.stat().st_size)))
    daemon.start()
    assert daemon.status()["objects"] == objects, daemon.log()
    checked = run_stress(daemon, "--keys", KEYS, "--check", "--durable-log", log)
    assert checked.returncode == 0, checked.stdout


def test_garbage_among_the_segments(stored):
    daemon, log, objects = stored
    nvme = daemon.directory / "state" / "nvme"
    (nvme / "README.txt").write_text("what is this?")
    (nvme / "lost+found").mkdir()
    daemon.start()
    assert daemon.status()["objects"] == objects
