"""Pictures of many requests -> batches for one engine. No HTTP, no waiting for real time: the clock is given.

The engine never idles while something waits, and nothing waits for company: while a batch runs, others gather. How many
are taken together is decided by what batches were measured to take: the smallest number with (nearly) the best rate, of
those with which the oldest picture stays within the latency budget. Where batches gain nothing, as on many CPUs, pictures
go one by one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rapidetr.serving.limits import Refusal

NEARLY = 0.95  # of the best rate; less is not worth the longer wait
NEWEST = 0.2  # weight of the newest time in the running mean


class Costs:
    """Seconds that batches of each size take. Only sizes that were tried are known, and only known sizes are taken."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def learn(self, size: int, seconds: float) -> None:
        known = self.seconds.get(size, seconds)
        self.seconds[size] = known + NEWEST * (seconds - known)

    @property
    def per_picture_s(self) -> float:
        """At the best rate; 0 while nothing is known."""
        return min((s / n for n, s in self.seconds.items()), default=0.0)

    def choose(self, waiting: int, waited_s: float, budget_s: float | None) -> int:
        """How many of `waiting` pictures to take, the oldest of which has waited `waited_s`.

        When it is late with any number already, the rate alone counts: the sooner it is over for all.
        """
        sizes = sorted(n for n in self.seconds if n <= waiting) or [1]
        in_time = [n for n in sizes if budget_s is None or waited_s + self.seconds.get(n, 0.0) <= budget_s]
        rates = {n: n / self.seconds[n] if self.seconds.get(n) else float(n) for n in in_time or sizes}
        return min(n for n, rate in rates.items() if rate >= NEARLY * max(rates.values()))


class Runner(Protocol):
    """What runs batches. Pictures of one batch have the same runner, so a new model never meets the inputs of the old one."""

    costs: Costs

    def run(self, inputs: list[Any]) -> list[Any]:
        """One output for each input."""


@dataclass(eq=False)
class Job:
    """One picture on its way: `future` gives (output, seconds it waited)."""

    runner: Runner
    input: Any
    arrived: float
    deadline: float
    future: Future[tuple[Any, float]] = field(default_factory=Future)


class Batcher:
    """Holds at most `max_queue` pictures. `streams` threads call `work`; all else is called by any thread."""

    def __init__(
        self,
        *,
        max_queue: int,
        max_batch: int,
        budget_s: float | None = None,
        streams: int = 1,
        now: Callable[[], float] = time.monotonic,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.max_queue, self.max_batch, self.budget_s, self.streams = max_queue, max_batch, budget_s, streams
        self.now, self.on_batch = now, on_batch
        self.held = 0  # pictures that were admitted and not yet answered
        self.closed = False
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    @contextmanager
    def admit(self, pictures: int, deadline: float, runner: Runner) -> Iterator[None]:
        """Places for the pictures of one request, from before they are decoded until they are answered.

        Refusal where there is no place, or where the deadline would pass before their turn.
        """
        with self._changed:
            each = self.check_places(pictures, runner)
            if self.now() + (self.held + pictures) * each > deadline:
                raise self._overloaded(f"the answer would come after its deadline ({self.held} pictures before it)", each)
            self.held += pictures
        try:
            yield
        finally:
            with self._changed:
                self.held -= pictures
                self._changed.notify_all()

    def check_places(self, pictures: int, runner: Runner) -> float:
        """Seconds that one picture is foreseen to take; Refusal where there are no places for so many."""
        each = runner.costs.per_picture_s / self.streams
        if self.closed:
            raise Refusal(503, "Draining", "the server is going down; send the request to another one", retry_after_s=1)
        if self.held + pictures > self.max_queue:
            raise self._overloaded(f"{self.held} of {self.max_queue} places are taken, {pictures} more were asked for", each)
        return each

    def _overloaded(self, why: str, each_s: float) -> Refusal:
        retry = max(1, math.ceil(self.held * each_s))
        return Refusal(503, "Overloaded", f"{why}; try again in {retry} s", retry_after_s=retry)

    def submit(self, runner: Runner, input: Any, deadline: float) -> Future[tuple[Any, float]]:
        """What becomes of an input; call inside `admit`."""
        job = Job(runner, input, self.now(), deadline)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def take(self) -> list[Job]:
        """The next batch, oldest first, all of one runner. Jobs that are late or that nobody waits for are dropped before."""
        with self._changed:
            now, fresh, late = self.now(), deque[Job](), list[Job]()
            for job in self._jobs:
                if job.deadline <= now:
                    late.append(job)
                elif not job.future.cancelled():
                    fresh.append(job)
            self._jobs = fresh
            batch: list[Job] = []
            if fresh:
                first = fresh[0]
                same = sum(1 for _ in leading(fresh, first.runner))
                size = first.runner.costs.choose(min(same, self.max_batch), now - first.arrived, self.budget_s)
                batch = [fresh.popleft() for _ in range(size)]
        for job in late:
            resolve(job, problem=Refusal(504, "DeadlinePassed", f"its deadline passed after {now - job.arrived:.3f} s in the queue"))
        return [job for job in batch if job.future.set_running_or_notify_cancel()]

    def step(self, timeout_s: float | None = None) -> bool:
        """Run the next batch; False where nothing came within `timeout_s`."""
        with self._changed:
            if not self._jobs:
                self._changed.wait(timeout_s)
        batch = self.take()
        if batch:
            self.run(batch)
        return bool(batch)

    def run(self, batch: Sequence[Job]) -> None:
        runner, began = batch[0].runner, self.now()
        self.on_batch(len(batch))
        try:
            outputs = runner.run([job.input for job in batch])
        except Exception as problem:  # whatever it is belongs to those who asked
            for job in batch:
                job.future.set_exception(problem)
            return
        if len(batch) in runner.costs.seconds:
            runner.costs.learn(len(batch), self.now() - began)
        for job, output in zip(batch, outputs, strict=True):
            job.future.set_result((output, began - job.arrived))

    def work(self) -> None:
        """Run batches until closed and empty; the threads of the engine live here."""
        while not self.closed or self.held:
            self.step(0.5)

    def close(self) -> None:
        """Admit nobody any more; what was admitted is still answered."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def leading(jobs: deque[Job], runner: Runner) -> Iterator[Job]:
    for job in jobs:
        if job.runner is not runner:
            return
        yield job


def resolve(job: Job, *, problem: Exception) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(problem)
