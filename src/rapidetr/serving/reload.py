"""Follows the pointer of a registry: what is promoted or rolled back there is served here, without a failed request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rapidetr.core.errors import CheckpointError
from rapidetr.runtime.places import POINTER, SHELF, find_artifact
from rapidetr.serving.served import Served
from rapidetr.serving.service import Service

POLL_S, LONGEST_S = 2.0, 300.0  # between two looks; and between two tries to load the same artifact
log = logging.getLogger("rapidetr.serving")


class Reloader:
    """Looks at the pointer now and then, loads what it names beside what runs, warms it up, and swaps.

    `load` makes a Served of an artifact's folder. What fails leaves the old model in use, is told by /readyz and metrics,
    and is tried again after twice the time, or at once when the pointer moves on.
    """

    def __init__(
        self,
        source: str,
        service: Service,
        load: Callable[[Path], Served],
        *,
        poll_s: float = POLL_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source, self.service, self.load, self.poll_s, self.now = source, service, load, poll_s, now
        self.failed: str | None = None  # what could not be loaded, or why the pointer could not be read
        self.failures = 0  # one after another, of the same
        self.again_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="rapidetr-reload", daemon=True)
        self.tell(None)

    def check(self) -> bool:
        """One look; True where the model was changed."""
        try:
            folder = find_artifact(self.source)
            if folder is None:
                raise CheckpointError(f"{self.source}: is no registry any more")
        except (CheckpointError, OSError) as problem:
            self.fail("pointer", str(problem))
            return False
        if folder == self.service.model.artifact:
            self.failed, self.failures = None, 0
            self.tell(None)
            return False
        if folder.name == self.failed and self.now() < self.again_at:
            return False
        try:
            model = self.load(folder)
            self.service.warm_up(model)
        except Exception as problem:  # whatever is wrong with the new one, the old one goes on
            self.fail(folder.name, f"{type(problem).__name__}: {problem}")
            return False
        before = self.service.model.id
        self.service.swap(model)
        self.failed, self.failures = None, 0
        self.service.metrics.reloads.labels("done").inc()
        self.tell(None)
        log.warning("now serving %s, before it was %s", model.id, before)
        return True

    def fail(self, what: str, message: str) -> None:
        self.failures = self.failures + 1 if what == self.failed else 1
        self.failed = what
        self.again_at = self.now() + min(LONGEST_S, self.poll_s * 2**self.failures)
        if what != "pointer" or self.failures == 1:
            self.service.metrics.reloads.labels("failed").inc()
            log.error("%s is not served, %s stays: %s", what, self.service.model.id, message)
        self.tell({"what": what, "message": message, "failures": self.failures})

    def tell(self, problem: dict[str, Any] | None) -> None:
        self.service.reload_state = {"follows": self.source, "problem": problem}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10 * self.poll_s)

    def _work(self) -> None:
        while not self._stop.wait(self.poll_s):
            try:
                self.check()
            except Exception:
                log.exception("looking at %s failed", self.source)


def is_registry(source: str) -> bool:
    """Whether a path means what a pointer names, which may change, and not a fixed artifact."""
    path = Path(source)
    registry = path.parent if path.name == POINTER else path
    return find_artifact(source) is not None and (registry / SHELF).is_dir() and (registry / POINTER).is_file()
