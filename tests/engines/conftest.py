"""Fixtures of the engines' tests. They run in build/engines/venv (`make test-engines`), each against
the engine itself and a real daemon; a package that is missing is a failure.

What is measured goes to build/engines.json, one row a figure (see EngineRows)."""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from daemon_fixtures import BUILD, ROOT, client, daemon, directory  # noqa: E402, F401

ENGINES = ROOT / "build" / "engines"  # redis-server is there
os.environ["PATH"] = f"{ENGINES}:{os.environ['PATH']}"
os.environ["HF_HUB_OFFLINE"] = "1"
# Engines start processes of their own, which find terrace_kv the same way.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT / "client" / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])


class EngineRows:
    """Rows of build/engines.json. A row of a name that is there already takes its place."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path

    def add(self, name: str, values: Sequence[float], reference_name: str,
            reference_values: Sequence[float]) -> None:
        """`values[i]` and `reference_values[i]` are one pair, measured one after the other in this
        run; the unit ends the name of the row where it is not a ratio. Kept are the medians, and
        median and range of value / reference."""
        if len(values) != len(reference_values) or not values:
            raise ValueError(f"{name}: {len(values)} values, {len(reference_values)} references; "
                             "expected as many, and some")
        ratios = [value / reference if reference else float("inf")
                  for value, reference in zip(values, reference_values)]
        row = {
            "name": name, "value": statistics.median(values), "reference_name": reference_name,
            "reference_value": statistics.median(reference_values),
            "ratio_median": statistics.median(ratios), "ratio_min": min(ratios),
            "ratio_max": max(ratios), "pairs": len(ratios),
        }
        rows = json.loads(self._path.read_text())["rows"] if self._path.exists() else []
        rows = [other for other in rows if other["name"] != name] + [row]
        self._path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        print(f"\n{name}: {row['value']:.4g}, {reference_name}: {row['reference_value']:.4g}, "
              f"ratio {row['ratio_median']:.3g} ({row['ratio_min']:.3g} - {row['ratio_max']:.3g}), "
              f"{row['pairs']} pairs")


@pytest.fixture(scope="session")
def engine_rows() -> EngineRows:
    return EngineRows(ROOT / "build" / "engines.json")


def _smollm2(what: str) -> pathlib.Path:
    # In the project's own environment: that of the engines has another transformers, and no model.
    command = [str(ROOT / "build" / "venv" / "bin" / "python"),
               str(ROOT / "examples" / "smollm2.py"), what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "client" / "python")})
    return pathlib.Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def smollm2_dir() -> pathlib.Path:
    """SmolLM2-135M-Instruct as a directory of transformers, in fp32; engines cast it on load."""
    return _smollm2("--directory")


@pytest.fixture(scope="session")
def smollm2_gguf() -> pathlib.Path:
    """The same model as a GGUF file (Q4_1)."""
    return _smollm2("--gguf")
