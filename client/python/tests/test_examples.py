"""The example of the README, as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from conftest import ROOT


def test_python_prefix_cache(directory):
    example = ROOT / "examples" / "python_prefix_cache.py"
    command = [sys.executable, str(example), str(directory / "c")]
    restored = []
    for _ in range(2):
        # One thread: two that wait for each other are slow on a busy machine.
        result = subprocess.run(command, capture_output=True, text=True, timeout=300,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        restored += [int(n) for n in re.findall(r"(\d+) of \d+ tokens restored", result.stdout)]
    cold, second, warm, also_warm = restored
    assert cold == 0 and second > 300 and warm > 300 and also_warm > 300
