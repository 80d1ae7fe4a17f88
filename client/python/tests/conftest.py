"""Fixtures of the client's tests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tests" / "support"))

from daemon_fixtures import BUILD, ROOT, client, daemon, directory  # noqa: E402, F401
