"""Ends an engine with all its processes, and frees what only a process that ends by itself would."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess

_SHARED_MEMORY = re.compile(r"(/dev/shm/\S+)$", re.MULTILINE)


def _members(group: int) -> list[pathlib.Path]:
    """The /proc folders of the group's processes."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            # Behind the name in parentheses: state, parent, group.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        if int(fields[2]) == group:
            found.append(folder)
    return found


def _signal(group: int, which: int) -> None:
    try:
        os.killpg(group, which)
    except ProcessLookupError:
        pass


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL to every process of the group that `process` leads; then removes the names of shared
    memory that they had mapped, which else hold gigabytes until the machine restarts."""
    _signal(process.pid, signal.SIGSTOP)  # nothing goes on while their mappings are read
    names: set[str] = set()
    for folder in _members(process.pid):
        try:
            names.update(_SHARED_MEMORY.findall((folder / "maps").read_text()))
        except OSError:
            continue
    _signal(process.pid, signal.SIGKILL)
    process.wait()
    for name in names:
        pathlib.Path(name).unlink(missing_ok=True)
