"""What Python tests of a client or an engine share: terrace_kv from the checkout, the library and the
programs of one build, and a real daemon for every test that asks for one. A conftest.py imports it."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.setdefault("TERRACE_BUILD_DIR", str(ROOT / "build" / "release")))
os.environ.setdefault("TERRACE_LIBRARY", str(BUILD / "libterrace.so"))
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "tests" / "support"),
                str(ROOT / "examples")]

import terrace_kv  # noqa: E402
from terraced import Terraced  # noqa: E402


@pytest.fixture
def directory():
    # O_DIRECT does not work everywhere /tmp may be, and paths of sockets must be short.
    path = pathlib.Path(tempfile.mkdtemp(prefix="terrace-py-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def daemon(directory):
    with Terraced(directory) as running:
        yield running


@pytest.fixture
def client(daemon):
    with terrace_kv.open(socket=daemon.socket_path, client_name="pytest") as opened:
        yield opened
