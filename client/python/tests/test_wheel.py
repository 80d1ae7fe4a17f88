"""The wheel holds all that a client needs, and says what is missing when it is built too early."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from conftest import BUILD, ROOT

USE = """
import sys, terrace_kv
assert terrace_kv.__file__.startswith(sys.argv[1]), terrace_kv.__file__
with terrace_kv.open(sys.argv[2], host_capacity_bytes=64 << 20, nvme_capacity_bytes=256 << 20) as c:
    assert c.daemon_pid > 0
    c.put(c.opaque_key("k"), b"value")
    with c.get(c.opaque_key("k")) as lease:
        lease.wait(10)
        print(lease.payload().tobytes())
"""


def pip_wheel(source, out, build) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(out),
         str(source)], capture_output=True, text=True, timeout=300,
        env=os.environ | {"TERRACE_BUILD_DIR": str(build)})


@pytest.fixture
def source(directory):
    copy = directory / "source"
    shutil.copytree(ROOT / "client" / "python", copy,
                    ignore=shutil.ignore_patterns("tests", "__pycache__", "build", "*.egg-info"))
    return copy


def test_a_wheel_works_by_itself(directory, source):
    built = pip_wheel(source, directory / "out", BUILD)
    assert built.returncode == 0, built.stderr
    wheel, = (directory / "out").iterdir()
    assert wheel.name.startswith("terrace_kv-") and "-py3-none-linux_" in wheel.name
    site = directory / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--target", str(site), str(wheel)], check=True, timeout=300)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TERRACE")}
    result = subprocess.run([sys.executable, "-c", USE, str(site), str(directory / "cache")],
                            capture_output=True, text=True, timeout=300,
                            env=clean | {"PYTHONPATH": str(site)}, cwd=directory)
    assert result.returncode == 0, result.stderr
    assert "b'value'" in result.stdout


def test_a_wheel_without_a_build_says_so(directory, source):
    built = pip_wheel(source, directory / "out", directory / "nothing")
    assert built.returncode != 0
    assert "make build" in built.stderr + built.stdout
