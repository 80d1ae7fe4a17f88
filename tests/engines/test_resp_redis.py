"""The RESP front-end under redis-cli and redis-benchmark, beside redis-server."""

import csv
import subprocess

import pytest
from redis_server import cpu_s, redis_server, resp_daemon

MIB = 1 << 20
GIB = 1 << 30
VALUE_BYTES = MIB
PAIRS = 15
REQUESTS = 1500


def redis_cli(port: int, *args: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(["redis-cli", "-p", str(port), *args], input=stdin, capture_output=True,
                          timeout=60)
    return (done.stdout + done.stderr).decode(errors="replace").strip()


def benchmark(port: int, *args: str) -> list[dict]:
    done = subprocess.run(["redis-benchmark", "-p", str(port), "--csv", *args], capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0 and "rror" not in done.stdout, done.stdout + done.stderr
    return list(csv.DictReader(done.stdout.splitlines()))


def bytes_per_s(port: int, test: str, requests: int) -> float:
    row, = benchmark(port, "-t", test, "-d", str(VALUE_BYTES), "-c", "8", "-n", str(requests))
    return float(row["rps"]) * VALUE_BYTES


def test_redis_cli(directory):
    with resp_daemon(directory) as (port, _):
        assert redis_cli(port, "ping") == "PONG"
        assert redis_cli(port, "-x", "set", "k", stdin=b"a\0b\r\n" * 1000) == "OK"
        assert redis_cli(port, "--raw", "get", "k").startswith("a\0b\r\n")
        assert redis_cli(port, "-3", "mget", "k", "none").endswith("2) (nil)") or \
            redis_cli(port, "-3", "get", "none") == ""
        assert redis_cli(port, "exists", "k") == "1"
        assert "redis_version" in redis_cli(port, "info")
        assert redis_cli(port, "set", "k", "v", "ex", "5").startswith("ERR SET takes")
        piped = redis_cli(port, "--pipe", stdin=b"SET a 1\r\nSET b 2\r\nPING\r\n")
        assert "errors: 0, replies: 3" in piped, piped


@pytest.mark.parametrize("pipeline", [1, 16])
def test_small_values_and_pipelines(directory, pipeline):
    with resp_daemon(directory) as (port, _):
        rows = benchmark(port, "-t", "ping,set,get,mset", "-d", "100", "-n", "2000", "-r", "1000",
                         "-P", str(pipeline))
        assert [row["test"] for row in rows][-3:] == ["SET", "GET", "MSET (10 keys)"]


def test_large_values_against_redis(directory, engine_rows):
    with (redis_server(directory) as (redis, redis_pid),
          resp_daemon(directory, host_bytes=GIB, nvme_bytes=0,
                      headroom=256 * MIB) as (port, daemon)):
        for server in (redis, port):  # what is first used is slow to touch, in both
            bytes_per_s(server, "set", 300)
        for test in ("set", "get"):
            rates, cpus = [], []
            for pair in range(PAIRS):
                both = [(redis, redis_pid), (port, daemon.process.pid)]
                measured = {}
                for server, pid in both if pair % 2 == 0 else both[::-1]:
                    before = cpu_s(pid)
                    rate = bytes_per_s(server, test, REQUESTS) / GIB
                    used = (cpu_s(pid) - before) / (REQUESTS * VALUE_BYTES / GIB)
                    measured[server] = rate, used
                rates.append((measured[port][0], measured[redis][0]))
                cpus.append((measured[port][1], measured[redis][1]))
            engine_rows.add(f"redis_benchmark_{test}", [a for a, _ in rates],
                            "redis-server, GiB/s", [b for _, b in rates])
            engine_rows.add(f"redis_benchmark_{test}_cpu_s_per_gib", [a for a, _ in cpus],
                            "redis-server, CPU s/GiB", [b for _, b in cpus])
