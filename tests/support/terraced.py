"""A real terraced and the real command line, for tests.

The programs come from TERRACE_BUILD_DIR, or from build/dev when it is not set. Every daemon has a
directory of its own and is ended by its pid.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD_DIR = pathlib.Path(os.environ.get("TERRACE_BUILD_DIR", REPOSITORY / "build" / "dev"))
START_TIMEOUT_S = 60  # generous: sanitizer builds on a busy machine
MIB = 1 << 20


def program(name: str) -> str:
    path = BUILD_DIR / name
    assert path.exists(), f"{path} is not built (set TERRACE_BUILD_DIR)"
    return str(path)


def config_text(directory: pathlib.Path, **changes: object) -> str:
    """A small configuration; `changes` replace single values, as read below."""
    nvme_bytes = int(changes.get("nvme_bytes", 256 * MIB))
    lines = [
        "[server]",
        f'socket_path = "{changes.get("socket", directory / "s")}"',
        f'state_dir = "{changes.get("state_dir", directory / "state")}"',
        "[host]",
        f"capacity = {changes.get('host_bytes', 64 * MIB)}",
        f"headroom = {changes.get('headroom', 16 * MIB)}",
        f'verify = "{changes.get("verify", "crossing")}"',
        "[nvme]",
        f"enabled = {'true' if nvme_bytes else 'false'}",
    ]
    if nvme_bytes:
        lines += [f"capacity = {nvme_bytes}", f"segment_size = {changes.get('segment', 8 * MIB)}"]
    return "\n".join(lines) + "\n" + str(changes.get("extra", ""))


class Terraced:
    """One daemon over one directory; start() after kill() continues with the same store."""

    def __init__(self, directory: pathlib.Path, **changes: object):
        self.directory = directory
        self.config_path = directory / "terrace.toml"
        self.log_path = directory / "log"
        self.socket_path = str(directory / "s")
        self.process: subprocess.Popen[bytes] | None = None
        self.config_path.write_text(config_text(directory, **changes))

    def __enter__(self) -> "Terraced":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def spawn(self) -> subprocess.Popen[bytes]:
        with open(self.log_path, "ab") as log:
            return subprocess.Popen(
                [program("terraced"), "--config", str(self.config_path)], stdout=log, stderr=log
            )

    def start(self) -> "Terraced":
        assert self.process is None
        self.process = self.spawn()
        deadline = time.monotonic() + START_TIMEOUT_S
        while terrace("--socket", self.socket_path, "status").returncode != 0:
            assert self.process.poll() is None, f"terraced ended at start:\n{self.log()}"
            assert time.monotonic() < deadline, f"terraced does not answer:\n{self.log()}"
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.process = None
        return code

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-4000:]

    def terrace(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return terrace("--socket", self.socket_path, *arguments)

    def json(self, *arguments: str) -> dict:
        result = self.terrace("--json", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def status(self) -> dict:
        return self.json("status")

    def wait_for(self, what: str, done, timeout_s: float = 30) -> dict:
        """Polls status until done(status); the condition, not the clock, decides."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if done(status):
                return status
            assert time.monotonic() < deadline, f"{what} did not happen: {status}"
            time.sleep(0.02)


def chain_lengths(objects: list[dict]) -> list[int]:
    """Of objects as `terrace ls` lists them: for each that is nobody's parent, how many follow each
    other up to it, itself included."""
    parents = {each["key"]: each["parent"] for each in objects}
    lengths = []
    for key in set(parents) - set(parents.values()):
        lengths.append(0)
        while key in parents:
            lengths[-1] += 1
            key = parents[key]
    return sorted(lengths)


def terrace(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("terrace"), *arguments], capture_output=True, text=True, timeout=timeout
    )


def stress_client(daemon: Terraced, *arguments: object) -> list[str]:
    """The command line of the load generator (tests/stress/stress_client.cc)."""
    return [program("stress_client"), "--socket", daemon.socket_path, *map(str, arguments)]


def run_stress(daemon: Terraced, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        stress_client(daemon, *arguments), capture_output=True, text=True, timeout=600
    )
