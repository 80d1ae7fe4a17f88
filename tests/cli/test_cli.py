"""The `terrace` command against a real daemon: output for people and machines, exit codes."""

import json
import pathlib
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from terraced import BUILD_DIR, MIB, REPOSITORY, Terraced, run_stress, terrace  # noqa: E402

KEYS = 40
OK, ERROR, USAGE, NOT_REACHABLE, CORRUPT, NOT_FOUND = range(6)


@pytest.fixture(scope="module")
def daemon():
    directory = pathlib.Path(tempfile.mkdtemp(prefix="cli-", dir=BUILD_DIR))
    with Terraced(directory, host_bytes=64 * MIB, nvme_bytes=256 * MIB) as running:
        log = directory / "durable"
        stored = run_stress(running, "--keys", KEYS, "--seconds", 1, "--durable-log", log)
        assert stored.returncode == 0, stored.stdout
        yield running
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def keys(daemon):
    return [item["key"] for item in daemon.json("ls", "--limit", "0")["objects"]]


def test_status_json_has_the_documented_keys(daemon):
    status = daemon.status()
    for key in ("version", "pid", "uptime_ms", "objects", "leases", "reservations", "counters"):
        assert key in status
    assert status["pid"] == daemon.process.pid
    assert [tier["name"] for tier in status["tiers"]] == ["host", "nvme"]
    for tier in status["tiers"]:
        assert 0 < tier["used_bytes"] <= tier["capacity_bytes"]
        assert {"detail", "objects", "populated_bytes", "huge_page_bytes"} <= tier.keys()
    assert [session["client_name"] for session in status["sessions"]] == ["terrace-cli"]
    assert status["counters"]["committed_objects"] >= status["objects"] > 0


def test_status_for_people_is_aligned(daemon):
    text = daemon.terrace("status").stdout
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("TIER"))
    host = next(line for line in lines if line.startswith("host"))
    assert host.index("MiB", header.index("CAPACITY") - 4) > 0
    assert "%" in host and "64.0 MiB" in host
    assert "lookup" in text and "terrace-cli" in text


def test_ls_limit_and_prefix(daemon, keys):
    assert len(keys) == len(set(keys)) > 10
    some = daemon.json("ls", "--limit", "3")
    assert len(some["objects"]) == 3 and some["more"]
    prefix = keys[0][:2]
    found = [o["key"] for o in daemon.json("ls", "--limit", "0", "--prefix", prefix)["objects"]]
    assert sorted(found) == sorted(key for key in keys if key.startswith(prefix))
    assert daemon.terrace("ls", "--prefix", "xyz").returncode == USAGE
    assert keys[0] in daemon.terrace("ls", "--limit", "0").stdout


def test_show_by_key_and_by_unique_prefix(daemon, keys):
    whole = daemon.json("show", keys[0])
    assert whole["key"] == keys[0] and whole["payload_bytes"] > 0
    length = next(n for n in range(1, 65) if sum(k.startswith(keys[0][:n]) for k in keys) == 1)
    assert daemon.json("show", keys[0][:length].upper())["key"] == keys[0]
    assert keys[0] in daemon.terrace("show", keys[0]).stdout


def test_keys_that_are_not_there_or_not_clear(daemon, keys):
    missing = daemon.terrace("show", "0" * 64)
    assert missing.returncode == NOT_FOUND and "0" * 64 in missing.stderr
    first_digits = [key[0] for key in keys]
    common = max(set(first_digits), key=first_digits.count)
    ambiguous = daemon.terrace("show", common)
    assert ambiguous.returncode == ERROR and "more than one" in ambiguous.stderr
    assert daemon.terrace("show", "not-hex").returncode == ERROR
    failure = json.loads(daemon.terrace("--json", "show", "0" * 64).stdout)
    assert failure["exit_code"] == NOT_FOUND


def test_pin_and_unpin(daemon, keys):
    assert daemon.json("pin", keys[0], keys[1]) == {"pinned": keys[:2], "failed": []}
    assert daemon.json("show", keys[0])["pinned"]
    assert daemon.json("unpin", keys[0], keys[1])["unpinned"] == keys[:2]
    assert not daemon.json("show", keys[0])["pinned"]


def test_rm_goes_on_after_a_failure(daemon, keys):
    result = daemon.terrace("--json", "rm", "0" * 64, keys[-1])
    assert result.returncode == NOT_FOUND
    answer = json.loads(result.stdout)
    assert answer["removed"] == [keys[-1]]
    assert [failed["key"] for failed in answer["failed"]] == ["0" * 64]
    assert daemon.terrace("show", keys[-1]).returncode == NOT_FOUND


def test_flush_and_verify(daemon, keys):
    assert daemon.json("flush")["pending_objects"] == 0
    verified = daemon.json("verify")
    assert verified["checked"] + verified["skipped"] == len(keys)
    assert verified["corrupt"] == 0 and verified["corrupt_keys"] == []
    assert verified["bytes"] > 0
    assert "0 corrupt" in daemon.terrace("verify").stdout


def test_top_counts_its_samples(daemon):
    lines = daemon.terrace("--json", "top", "--count", "3", "--interval", "0.05").stdout
    samples = [json.loads(line) for line in lines.splitlines()]
    assert len(samples) == 3
    assert all(sample["interval_s"] >= 0.05 for sample in samples)
    assert samples[0]["rates"].keys() == samples[0]["counters"].keys()
    people = daemon.terrace("top", "--count", "1", "--interval", "0.05").stdout
    assert people.startswith("terraced ") and "HIT RATE" in people and "\033" not in people


def test_usage_errors_and_help():
    assert terrace().returncode == USAGE
    assert terrace("nonsense").returncode == USAGE
    assert terrace("show").returncode == USAGE
    assert terrace("top", "--interval", "-1").returncode == USAGE
    text = terrace("--help")
    assert text.returncode == OK
    assert "Examples:" in text.stdout and "Exit codes:" in text.stdout
    for command in ("status", "top", "ls", "show", "rm", "pin", "unpin", "flush", "verify",
                    "config", "version"):
        assert command in text.stdout
        assert terrace(command, "--help").returncode == OK
        assert f"`{command}" in (REPOSITORY / "docs" / "cli.md").read_text()


def test_config_check_and_show(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text('[host]\ncapacity = "64MiB"\n')
    assert terrace("config", "check", str(good)).returncode == OK
    assert json.loads(terrace("--json", "config", "check", str(good)).stdout)["ok"] is True
    bad = tmp_path / "bad.toml"
    bad.write_text('[host]\ncapacity = "64MiB"\nno_such_key = 1\n')
    refused = terrace("config", "check", str(bad))
    assert refused.returncode == ERROR
    assert f"{bad}:3" in refused.stderr and "no_such_key" in refused.stderr
    shown = tmp_path / "shown.toml"
    shown.write_text(terrace("config", "show", "--config", str(good), "--effective").stdout)
    assert terrace("config", "check", str(shown)).returncode == OK
    effective = json.loads(terrace("--json", "config", "show", "--effective").stdout)
    assert effective["host"]["capacity"] > 0 and effective["server"]["socket_path"]
    assert terrace("config", "check", str(tmp_path / "none.toml")).returncode == ERROR


def test_version_is_the_daemons(daemon):
    version = json.loads(terrace("version", "--json").stdout)
    assert version["version"] == daemon.status()["version"]
    assert version["version"] in terrace("version").stdout
