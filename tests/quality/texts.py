"""Texts of five kinds, cut to token ids. Test texts are of three kinds, one of which (licences) is never
calibrated on; no text is in both sets. What is read is on every Debian 12 with our packages, or in
the shared data."""

from __future__ import annotations

import json
import os
import pathlib
import random
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[2]
PREFIX, SCORED = 1024, 256
LENGTH = PREFIX + SCORED + 1
CHARACTERS = 9000  # more than LENGTH tokens of any of them


def _musique() -> list[str]:
    """Three questions with their paragraphs each."""
    data = pathlib.Path(os.environ.get("TERRACE_QA", ROOT.parent / "shared" / "data" / "qa"))
    if not (data / "musique_75.json").exists():
        raise SystemExit(f"{data}/musique_75.json is not there: set TERRACE_QA to its folder")
    questions = json.loads((data / "musique_75.json").read_text())
    parts = ["\n\n".join(f"{c['title']}\n{c['text']}" for c in q["ctxs"])
             + f"\n\nQuestion: {q['question']}\n" for q in questions]
    return ["\n".join(parts[i:i + 3]) for i in range(0, len(parts) - 2, 3)]


def _files(patterns: list[str], skip: int) -> list[str]:
    """The start of each large file, after `skip` characters of its usual heading."""
    paths = sorted(p for pattern in patterns for p in pathlib.Path("/").glob(pattern)
                   if p.is_file() and not p.is_symlink() and p.stat().st_size > CHARACTERS)
    random.Random(1).shuffle(paths)
    return [p.read_text(errors="ignore")[skip:skip + CHARACTERS] for p in paths]


def load(ids: Callable[[str], list[int]]) -> tuple[dict[str, list], dict[str, list]]:
    """(calibration, test): token ids of LENGTH, by kind."""
    site = str(ROOT / "build" / "venv" / "lib" / "python3*" / "site-packages").lstrip("/")
    kinds = {
        "musique": _musique(),
        "python": _files(["usr/lib/python3.11/*.py"], 500),
        "readme": _files([f"{site}/*.dist-info/METADATA"], 1500),
        "header": _files(["usr/include/*.h", "usr/include/linux/*.h"], 1200),
        "licence": _files(["usr/share/common-licenses/*"], 0),
    }
    cut = {kind: [t for t in (ids(text)[:LENGTH] for text in texts[:30]) if len(t) == LENGTH]
           for kind, texts in kinds.items()}
    calibration = {"musique": cut["musique"][:8], "python": cut["python"][:6],
                   "readme": cut["readme"][:6], "header": cut["header"][:4]}
    test = {"musique": cut["musique"][-4:], "python": cut["python"][-4:],
            "licence": cut["licence"][:4]}
    assert all(len(texts) >= 4 for texts in (*calibration.values(), *test.values()))
    return calibration, test
