"""A clock that knows stages, so that the benchmark times the very code that users call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

STAGES = ("read", "decode", "prepare", "transfer", "run", "select", "masks")


class StageClock:
    """Adds up seconds by stage name. `now` can be replaced: tests inject a clock, nothing here waits for real time."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.seconds: dict[str, float] = {}
        self._lock = Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = self.now()
        try:
            yield
        finally:
            seconds = self.now() - began
            with self._lock:  # prefetching threads share the clock of their caller
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @classmethod
    def sum(cls, clocks: Iterable[StageClock]) -> StageClock:
        """A new clock that begins with all their seconds."""
        total = cls()
        for clock in clocks:
            for name, seconds in clock.seconds.items():
                total.seconds[name] = total.seconds.get(name, 0.0) + seconds
        return total

    def milliseconds(self) -> dict[str, float]:
        return {name: 1000 * s for name, s in self.seconds.items()}
