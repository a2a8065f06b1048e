"""What a server does, without HTTP: pictures in, answer out, while models come and go."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rapidetr.core.errors import ImageError
from rapidetr.pixels.decode import Encoded, ImageLimits
from rapidetr.runtime.aside import aside
from rapidetr.serving.batcher import Batcher
from rapidetr.serving.fetch import fetch_public
from rapidetr.serving.limits import Refusal, ServeLimits
from rapidetr.serving.metrics import Metrics
from rapidetr.serving.schema import Asked, Options
from rapidetr.serving.served import Prepared, Served, Wanted

FETCHERS = 8  # downloads at a time


class Service:
    """Owns the model in use, the threads of the engine (`streams`, one unless told) and a few threads that decode and select.

    A request stays with the model that was in use when it came. `swap` changes the model between two requests.
    """

    def __init__(
        self,
        model: Served,
        limits: ServeLimits,
        *,
        metrics: Metrics | None = None,
        fetch_urls: bool = False,
        streams: int = 1,
        now: Callable[[], float] = time.monotonic,
        fetch: Callable[..., Encoded] = fetch_public,
    ) -> None:
        self.limits, self.now, self.fetch_urls, self.fetch = limits, now, fetch_urls, fetch
        self.metrics = metrics or Metrics()
        self.draining = False
        self.reload_state: dict[str, Any] = {}  # what /readyz tells of the registry
        budget = limits.latency_budget_ms
        self.budget_s = None if budget is None else budget / 1000
        self.batcher = Batcher(
            max_queue=limits.max_queue,
            max_batch=limits.max_batch,
            budget_s=self.budget_s,
            streams=streams,
            now=now,
            on_batch=self.metrics.batch.observe,
        )
        self.pool = ThreadPoolExecutor(min(4, (os.cpu_count() or 1) + 1), "rapidetr-serve")
        self.fetchers = ThreadPoolExecutor(FETCHERS, "rapidetr-fetch")  # their own: strangers decide how long they take
        self.workers = [threading.Thread(target=self.batcher.work, name=f"rapidetr-engine-{i}", daemon=True) for i in range(streams)]
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        self.metrics.held.set_function(lambda: self.batcher.held)
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.swap(model)

    @property
    def alive(self) -> bool:
        return all(worker.is_alive() for worker in self.workers)

    @property
    def ready(self) -> bool:
        return self.alive and not self.draining

    def warm_up(self, model: Served) -> None:
        aside(lambda: model.warm_up(self.limits.max_batch, self.budget_s))

    def swap(self, model: Served) -> None:
        self.model = model
        self.metrics.name_model(model.id)

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Answer what was admitted, then end."""
        self.draining = True
        self.batcher.close()
        for worker in self.workers:
            if worker.ident is not None:
                worker.join()
        self.pool.shutdown()
        self.fetchers.shutdown(wait=False, cancel_futures=True)

    async def predict(self, asked: Asked, began: float, read_ms: float) -> bytes:
        """The JSON of an answer. `began`: when the headers came, by `self.now`; `read_ms`: what its body took."""
        model, options = self.model, asked.options
        wanted = self.want(options, model)
        if asked.urls and not self.fetch_urls:
            raise Refusal(422, "InvalidRequest", "this server takes no addresses; send the pictures (it may be started with --fetch-urls)")
        deadline = began + min(options.deadline_ms or self.limits.deadline_ms, self.limits.deadline_ms) / 1000
        sources: list[Encoded | str] = [*asked.pictures, *asked.urls]
        with self.batcher.admit(len(sources), deadline, model):
            answers = await together(*(self.answer(source, model, wanted, deadline) for source in sources))
        total = self.now() - began
        self.metrics.observe_total(total)
        times = f'{{"read": {read_ms:.3f}, "total": {1000 * total:.3f}}}'
        return f'{{"model": {json.dumps(model.id)}, "images": [{", ".join(answers)}], "times_ms": {times}}}'.encode()

    def want(self, options: Options, model: Served) -> Wanted:
        """ConfigError for a class that the model does not know, before anything is decoded."""
        names = model.detector.class_names
        classes = None
        if options.classes is not None:  # forms know no numbers
            classes = tuple(int(c) if isinstance(c, str) and c.isdecimal() and c not in names else c for c in options.classes)
            model.detector.labels.indices(classes)
        return Wanted(options.threshold, classes, options.max_detections, options.masks)

    async def download(self, url: str, deadline: float) -> Encoded:
        """The picture at an address, within the time of addresses; ImageError says where it did not come."""
        timeout_s = self.limits.url_timeout_s
        seconds = min(timeout_s, max(0.0, deadline - self.now()))  # finding a host's address has no time limit of its own
        fetch = partial(self.fetch, url, max_bytes=self.limits.max_body_bytes, timeout_s=timeout_s)
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self.fetchers, fetch), seconds)
        except TimeoutError:
            raise ImageError(f"{url[:200]}: did not deliver within {seconds:g} s; send the picture itself") from None

    async def answer(self, source: Encoded | str, model: Served, wanted: Wanted, deadline: float) -> str:
        """The JSON of one picture: read, decoded and prepared here, run with others, selected here."""
        loop = asyncio.get_running_loop()
        limits = ImageLimits(max_pixels=self.limits.max_pixels)
        picture = await self.download(source, deadline) if isinstance(source, str) else source

        def prepare() -> Prepared:
            if self.now() >= deadline:
                raise Refusal(504, "DeadlinePassed", "its deadline passed before it was decoded")
            return model.prepare(picture, limits)

        prepared = await loop.run_in_executor(self.pool, prepare)
        output, waited_s = await asyncio.wrap_future(self.batcher.submit(model, prepared, deadline))

        def select() -> str:
            found = model.select(prepared, output, wanted, waited_s)
            self.metrics.observe(found.times_ms)
            return json.dumps(found.to_dict(masks=wanted.masks))

        return await loop.run_in_executor(self.pool, select)


async def together(*parts: Any) -> list[str]:
    """All results; where some fail, the first failure, when all are done."""
    done = await asyncio.gather(*parts, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return [one for one in done if isinstance(one, str)]
