"""A progress bar with the time left, on stderr: redrawn in place on a terminal, else a line now and
then."""

from __future__ import annotations

import sys
import time

WIDTH = 24
QUIET_S = 10.0  # between lines that are not redrawn


def duration(seconds: float) -> str:
    whole = int(seconds + 0.5)
    return f"{whole // 60}:{whole % 60:02d}"


class Bar:
    """Of one stage. Call it with how much is done; `free` of it cost nothing and says nothing about
    the time left."""

    def __init__(self, what: str, total: int, free: int = 0) -> None:
        self.what, self.total, self.free = what, total, free
        self._start = self._said = time.monotonic()
        self._drawn = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        last = done >= self.total
        if not self._drawn and not last and now - self._said < QUIET_S:
            return
        self._said = now
        made = done - self.free
        left = (now - self._start) / made * (self.total - done) if made > 0 else 0.0
        end = f"took {duration(now - self._start)}" if last else f"{duration(left)} left"
        filled = WIDTH * done // max(self.total, 1)
        text = f"{self.what:32} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{self.total}  {end}"
        if self._drawn:
            print(f"\r{text}\x1b[K", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
