"""Sizes that change while a real daemon serves: the command, SIGHUP, and no byte wrong meanwhile."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from terraced import BUILD_DIR, MIB, Terraced, config_text, run_stress, stress_client  # noqa: E402

KEYS = 4000  # of 100 KiB as a rule: about 400 MiB
OK, ERROR, USAGE, NOT_REACHABLE, CORRUPT, NOT_FOUND = range(6)


@pytest.fixture
def directory():
    path = pathlib.Path(tempfile.mkdtemp(prefix="resize-", dir=BUILD_DIR))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def tier(status, name):
    return next(tier for tier in status["tiers"] if tier["name"] == name)


def shared_memory_bytes(daemon):
    text = pathlib.Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.search(r"RssShmem:\s+(\d+) kB", text).group(1)) * 1024


def test_shrinks_and_grows_under_load(directory):
    with Terraced(directory, host_bytes=512 * MIB, nvme_bytes=512 * MIB, headroom=64 * MIB) as daemon:
        # Every client checks every byte it loads, and that nothing it leased goes away.
        clients = [
            subprocess.Popen(
                stress_client(daemon, "--seed", seed, "--keys", KEYS, "--seconds", 600),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for seed in range(3)
        ]
        try:
            daemon.wait_for("a full tier", lambda s: tier(s, "host")["used_bytes"] > 256 * MIB, 120)
            for size, bytes_ in (("128MiB", 128 * MIB), ("400MiB", 400 * MIB), ("96MiB", 96 * MIB)):
                assert daemon.terrace("resize", "host", size, "--no-wait").returncode == OK
                # What the clients hold on to may keep a little of the old end for as long.
                status = daemon.wait_for(
                    f"{size}", lambda s: tier(s, "host")["populated_bytes"] <= bytes_, 120
                )
                assert tier(status, "host")["capacity_bytes"] == bytes_
                assert daemon.terrace("resize", "nvme", "256MiB", "--no-wait").returncode == OK
                time.sleep(0.5)
                for client in clients:
                    assert client.poll() is None, f"a client found something wrong: {client.poll()}"
                assert daemon.terrace("resize", "nvme", "512MiB").returncode == OK
        finally:
            for client in clients:
                client.kill()
                client.wait()
        daemon.wait_for("everything being released", lambda s: s["leases"] == s["reservations"] == 0)
        result = daemon.json("resize", "host", "96MiB")
        assert result["done"] and result["current_bytes"] == result["target_bytes"] == 96 * MIB
        status = daemon.status()
        assert tier(status, "host")["used_bytes"] <= 96 * MIB
        assert status["counters"]["corrupt_objects"] == 0
        assert status["counters"]["moved_objects"] > 0
        assert status["counters"]["resizes"] >= 5
        daemon.wait_for("memory given back", lambda _: shared_memory_bytes(daemon) <= 104 * MIB)
        checked = run_stress(daemon, "--keys", KEYS, "--check")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert daemon.terrace("flush").returncode == OK
        assert daemon.terrace("verify").returncode == OK


def test_bad_input_of_the_command(directory):
    with Terraced(directory, host_bytes=64 * MIB, nvme_bytes=256 * MIB) as daemon:
        for arguments, code, text in (
            (["hbm", "1GiB"], NOT_FOUND, "no tier 'hbm'"),
            (["host", "1MiB"], ERROR, "at least 4194304 bytes"),
            (["host", "99TiB"], ERROR, "what this process may use"),
            (["nvme", "8MiB"], ERROR, "at least two segments"),
            (["nvme", "999TiB"], ERROR, "what its file system has"),
            (["host", "1GiB", "--tenant", "nobody"], NOT_FOUND, "no tenant 'nobody'"),
            (["host", "1GiB", "--tenant", "default"], ERROR, "what is left of host.capacity"),
            (["host", "fish"], USAGE, "not a size"),
            (["host", "-5"], USAGE, ""),
            (["host", "0"], USAGE, "a size of 0"),
            (["host", "101%"], USAGE, "percentage out of range"),
            (["host"], USAGE, "SIZE"),
        ):
            result = daemon.terrace("resize", *arguments)
            assert result.returncode == code, (arguments, result)
            assert text in result.stderr, (arguments, result.stderr)
        assert tier(daemon.status(), "host")["capacity_bytes"] == 64 * MIB
        assert daemon.terrace("resize", "host", "48MiB").stdout == "host is 48.0 MiB now\n"
        part = daemon.json("resize", "host", "50%", "--tenant", "default")
        assert part["target_bytes"] == 24 * MIB


def reload(daemon, directory, **changes):
    daemon.config_path.write_text(config_text(directory, **changes))
    before = len(daemon.log_path.read_text())
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while True:
        new = daemon.log_path.read_text()[before:]
        if "configuration read anew" in new or "SIGHUP" in new:
            time.sleep(0.1)  # what follows at once
            return daemon.log_path.read_text()[before:]
        assert time.monotonic() < deadline, new
        time.sleep(0.02)


def test_sighup_applies_sizes_and_refuses_a_bad_file(directory):
    with Terraced(directory, host_bytes=64 * MIB, nvme_bytes=256 * MIB) as daemon:
        log = reload(daemon, directory, host_bytes=32 * MIB, nvme_bytes=128 * MIB, verify="always")
        assert "read anew: host.capacity nvme.capacity" in log
        assert re.search(r"warning.*only at the next start: host.verify", log)
        status = daemon.wait_for("32 MiB", lambda s: tier(s, "host")["populated_bytes"] <= 32 * MIB)
        assert tier(status, "host")["capacity_bytes"] == 32 * MIB
        assert tier(status, "nvme")["capacity_bytes"] == 128 * MIB

        log = reload(daemon, directory, host_bytes='"9x"', nvme_bytes=64 * MIB)
        assert re.search(r"terrace.toml:5: key 'host.capacity' = \"9x\"", log), log
        log = reload(daemon, directory, host_bytes=64 * MIB, extra="[[tenants]]\nname = 'x'\n")
        assert re.search(r"terrace.toml:\d+: key 'tenants\[0\].uids': missing", log), log
        log = reload(daemon, directory, host_bytes=64 * MIB, extra='log_level = "debug"\n')
        assert re.search(r"terrace.toml:\d+: key", log), log
        status = daemon.status()
        assert tier(status, "host")["capacity_bytes"] == 32 * MIB
        assert tier(status, "nvme")["capacity_bytes"] == 128 * MIB

        # An operator's size lasts until the file is read again.
        assert daemon.terrace("resize", "host", "40MiB").returncode == OK
        reload(daemon, directory, host_bytes=32 * MIB, nvme_bytes=128 * MIB)
        assert tier(daemon.status(), "host")["capacity_bytes"] == 32 * MIB
        assert daemon.stop() == 0
