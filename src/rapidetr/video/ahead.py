"""One stage works ahead of the next, in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Runs an iterable in a thread and gives its items, at most `size` of them ahead; its exception comes after its last item.

    With `newest` the thread never waits: an item that nobody took in time gives way to the next, and `dropped` counts it.
    """

    def __init__(self, items: Iterable[T], size: int, *, newest: bool = False) -> None:
        self.dropped = 0
        self._items, self._size, self._newest = items, size, newest
        self._ready: deque[T] = deque()
        self._change = Condition()
        self._ended = self._stopped = False
        self._problem: BaseException | None = None
        self._thread = Thread(target=self._run, name="rapidetr-video", daemon=True)

    def __iter__(self) -> Iterator[T]:
        self._thread.start()
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ready or self._ended or self._stopped)
                if self._stopped or not self._ready:
                    break
                item = self._ready.popleft()
                self._change.notify_all()
            yield item
        if self._problem is not None and not self._stopped:
            raise self._problem

    def stop(self) -> None:
        """Both sides end: who waits is woken, what is ready is thrown away."""
        with self._change:
            self._stopped = True
            self._ready.clear()
            self._change.notify_all()

    def join(self) -> None:
        """Wait for the thread, which ends once its iterable gives the next item, ends or fails."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            iterator = iter(self._items)
            try:
                for item in iterator:
                    if not self._put(item):
                        break
            finally:
                close = getattr(iterator, "close", None)
                if close is not None:
                    close()  # what a generator holds is given back in the thread that used it
        except BaseException as problem:
            self._problem = problem
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _put(self, item: T) -> bool:
        """Whether anybody still wants items."""
        with self._change:
            if self._newest and len(self._ready) >= self._size:
                self._ready.popleft()
                self.dropped += 1
            self._change.wait_for(lambda: len(self._ready) < self._size or self._stopped)
            if not self._stopped:
                self._ready.append(item)
                self._change.notify_all()
            return not self._stopped
