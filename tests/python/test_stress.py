"""Clients and daemons that die at random moments under load: no wrong byte, nothing leaked, nothing
durable lost.

TERRACE_STRESS_SECONDS (default 60) and TERRACE_CRASH_ROUNDS (default 50) scale the runs down for
sanitizer builds; TERRACE_STRESS_SEED repeats one.
"""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from terraced import BUILD_DIR, MIB, Terraced, run_stress, stress_client  # noqa: E402

SECONDS = float(os.environ.get("TERRACE_STRESS_SECONDS", "60"))
ROUNDS = int(os.environ.get("TERRACE_CRASH_ROUNDS", "50"))
CLIENTS = 8
CRASH_CLIENTS = 4
# 3,000 objects of up to 200 KiB, about 300 MiB in all: more than the host tier, so that loads cross
# tiers all the time. Removed objects are stored again and segments are append-only, so the NVMe tier
# is sized for all that is written in a run: nothing durable may be evicted while it is counted on.
KEYS = 3000
HOST_BYTES = 128 * MIB
NVME_BYTES = 16384 * MIB


@pytest.fixture
def directory():
    """On the build's file system: O_DIRECT does not work on every /tmp."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="stress-", dir=BUILD_DIR))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def seed():
    value = int(os.environ.get("TERRACE_STRESS_SEED", random.SystemRandom().randrange(2**31)))
    print(f"seed {value} (TERRACE_STRESS_SEED={value} repeats the choices)")
    return value


def start_client(daemon, seed, *arguments):
    # A file, not a pipe: nobody reads while the client runs, and a full pipe would stop it.
    output = tempfile.TemporaryFile("w+", dir=daemon.directory)
    client = subprocess.Popen(
        stress_client(daemon, "--seed", seed, "--keys", KEYS, *arguments),
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    client.output = output
    return client


def finish(client):
    """Waits for a client that was not killed; its output when it found nothing wrong."""
    code = client.wait(timeout=SECONDS + 120)
    client.output.seek(0)
    text = client.output.read()
    assert code == 0, f"client {client.args} ended with {code}:\n{text}"
    return text


def test_clients_killed_under_load(directory, seed):
    choose = random.Random(seed)
    with Terraced(directory, host_bytes=HOST_BYTES, nvme_bytes=NVME_BYTES) as daemon:
        began = time.monotonic()

        def start(index):
            left = max(1.0, SECONDS - (time.monotonic() - began))
            return start_client(
                daemon, choose.randrange(2**31), "--seconds", f"{left:.1f}", "--remove"
            )

        clients = [start(i) for i in range(CLIENTS)]
        killed = 0
        try:
            while time.monotonic() - began < SECONDS - 1:
                time.sleep(1)
                victim = choose.randrange(CLIENTS)
                # One that ended by itself found something: finish() below says what.
                if clients[victim].poll() is not None:
                    break
                clients[victim].kill()
                clients[victim].wait()
                killed += 1
                clients[victim] = start(victim)
            reports = [finish(client) for client in clients]
        finally:
            for client in clients:
                if client.poll() is None:
                    client.kill()
                    client.wait()
        assert daemon.alive(), daemon.log()
        print(f"{killed} clients killed\n" + "".join(reports))
        assert killed >= min(SECONDS / 3, 1)
        idle = daemon.wait_for(
            "everything being released", lambda s: s["leases"] == 0 and s["reservations"] == 0
        )
        assert idle["counters"]["corrupt_objects"] == 0
        # What the survivors left behind is whole too, from whichever tier holds it.
        checked = run_stress(daemon, "--keys", KEYS, "--check")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert daemon.terrace("flush").returncode == 0
        assert daemon.terrace("verify").returncode == 0
        assert daemon.stop() == 0, daemon.log()


def test_daemon_killed_under_load(directory, seed):
    choose = random.Random(seed)
    durable_log = directory / "durable.log"
    daemon = Terraced(directory, host_bytes=HOST_BYTES, nvme_bytes=NVME_BYTES)
    daemon.start()
    try:
        for round_number in range(ROUNDS):
            clients = [
                start_client(
                    daemon, choose.randrange(2**31), "--seconds", 600, "--until-daemon-dies",
                    "--remove", "--owner", owner, "--owners", CRASH_CLIENTS,
                    "--durable-log", durable_log,
                )
                for owner in range(CRASH_CLIENTS)
            ]
            time.sleep(choose.uniform(0.05, 1.0))
            daemon.kill()
            reports = [finish(client) for client in clients]
            daemon.start()
            # Every object that was reported durable is there; whatever else is visible is whole.
            checked = run_stress(daemon, "--keys", KEYS, "--check", "--durable-log", durable_log)
            assert checked.returncode == 0, (
                f"round {round_number}:\n{checked.stdout}{checked.stderr}\n"
                + "".join(reports) + daemon.log()
            )
            if round_number % 10 == 9:
                print(f"round {round_number + 1}: {checked.stdout.strip()}")
        assert durable_log.exists() and durable_log.stat().st_size > 0, "no object became durable"
        verified = daemon.terrace("verify")
        assert verified.returncode == 0, verified.stdout
        status = daemon.wait_for(
            "everything being released", lambda s: s["leases"] == 0 and s["reservations"] == 0
        )
        assert status["counters"]["dropped_nvme"] == 0, "the NVMe tier is too small for this test"
        assert daemon.stop() == 0, daemon.log()
    finally:
        daemon.kill()
