"""Calibration texts: files that are given, else a mixture of what any machine with Python has."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence

HEADINGS = 1500  # characters at the start of a file: licences and imports, much alike
LARGEST = 1 << 18  # characters read of a file


@dataclasses.dataclass(frozen=True)
class Text:
    kind: str
    ids: tuple[int, ...]


def _documents() -> Iterator[tuple[str, str]]:
    """(kind, text): reference prose, source code, descriptions of packages, C headers, tables of
    characters."""
    import pydoc_data.topics
    topics = pydoc_data.topics.topics
    yield "reference", "\n\n".join(topics[name] for name in sorted(topics))
    standard = pathlib.Path(sysconfig.get_paths()["stdlib"])
    headers = pathlib.Path("/usr/include")
    for kind, paths in (("python", standard.glob("*.py")), ("header", headers.glob("*.h")),
                        ("header", headers.glob("linux/*.h"))):
        for path in paths:
            yield kind, path.read_text(errors="ignore")[HEADINGS:LARGEST]
    for package in importlib.metadata.distributions():
        yield "description", (package.metadata.get_payload() or "")[:LARGEST]


def _of_files(files: Sequence[pathlib.Path]) -> Iterator[tuple[str, str]]:
    for file in files:
        try:
            yield file.suffix.lstrip(".") or "text", file.read_text(errors="replace")
        except OSError as error:
            raise ValueError(f"--text {file}: {error.strerror}") from error


def texts(files: Sequence[pathlib.Path], tokenise: Callable[[str], list[int]], tokens: int,
          count: int) -> list[Text]:
    """`count` texts of `tokens` tokens each, as many of each kind as there are, in an order that is
    the same every time; no two overlap. ValueError when the files give fewer than 4."""
    documents = list(_of_files(files) if files else _documents())
    # Long files first give no more than others: each round takes one piece of each file.
    random.Random(1).shuffle(documents)
    kinds: dict[str, list[Text]] = {}
    need = count  # of any one kind, at most
    for kind, text in documents:
        have = kinds.setdefault(kind, [])
        if len(have) >= need or len(text) < tokens:
            continue
        ids = tokenise(text[:16 * tokens * need])
        pieces = [ids[i:i + tokens] for i in range(0, len(ids) - tokens + 1, tokens)]
        most = need if files or kind == "reference" else 2
        have += [Text(kind, tuple(piece)) for piece in pieces[:min(most, need - len(have))]]
    found = _in_turn(list(kinds.values()), count)
    if len(found) < 4:
        given = f"--text: {len(files)} files hold" if files else "this machine's own texts hold"
        raise ValueError(f"{given} {len(found)} texts of {tokens} tokens (--prefix and --scored "
                         "together and one); at least 4 are needed: give more or longer files, or "
                         "a smaller --prefix")
    return found


def _in_turn(lists: list[list[Text]], count: int) -> list[Text]:
    """One of each list, then another of each, until there are `count`."""
    longest = max((len(one) for one in lists), default=0)
    return [one[i] for i in range(longest) for one in lists if i < len(one)][:count]


def split(texts: Sequence[Text]) -> tuple[list[Text], list[Text]]:
    """(to calibrate on, held out to measure on): of each kind the second and every fourth after it;
    at least one is held out."""
    held = set()
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        if seen.setdefault(text.kind, 0) % 4 == 1:
            held.add(index)
        seen[text.kind] += 1
    held = held or {len(texts) - 1}
    return ([t for i, t in enumerate(texts) if i not in held],
            [t for i, t in enumerate(texts) if i in held])
