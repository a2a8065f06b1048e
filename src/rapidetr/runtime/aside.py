"""Work in a thread that ends with it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def aside(work: Callable[[], T]) -> T:
    """What `work` returns or raises; the thread it ran in is gone.

    For loading and warming up what another thread may run later. GNU OpenMP, on which torch computes, keeps helpers for every
    thread that ever called it. As soon as there are more of them than cores, they sleep at each of a network's many barriers
    instead of spinning: pico took 66 ms instead of 37 (2 cores). A thread that has ended has no helpers.
    """
    with ThreadPoolExecutor(1, "rapidetr-aside") as pool:
        return pool.submit(work).result()
