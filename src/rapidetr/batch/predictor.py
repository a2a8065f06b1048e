"""Does shards: a small thing that travels to a process, and loads its model there when the first shard comes."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from rapidetr.batch.inputs import Shard, Value, load_item
from rapidetr.batch.job import PARTS, Place, Record, part_name, read_record, read_shard, record_name
from rapidetr.batch.recipe import Recipe, sha256_of_model
from rapidetr.batch.results import Row, encode_rows, row_of
from rapidetr.batch.store import Store
from rapidetr.core.errors import ImageError, RapidetrError
from rapidetr.pixels.decode import ImageLimits, Picture
from rapidetr.pixels.read import one_line
from rapidetr.runtime.load import load

if TYPE_CHECKING:
    from rapidetr.runtime.detector import Detector

ATTEMPTS = 3  # of one shard in one run; a picture that kills its process would do so for ever
KILLED = f"a process died on this or another picture of its shard, {ATTEMPTS} times; predict these with smaller shards"

DIED_LOADING = f"loading it killed its process {ATTEMPTS} times; give processes more memory, or start fewer"


@dataclass(frozen=True)
class Plan:
    """What a process must know. Nothing here changes results; `recipe` holds all that does."""

    out: str
    recipe: Recipe
    model: str
    masks: bool
    run: str  # a name of this run of the job: attempts of earlier ones do not count
    device: str = "auto"
    threads: int | None = None
    accept_license: str | None = None
    batch_size: int = 8
    prefetch: int = 2


class Predictor:
    """Picklable; used in one thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._detector: Detector | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "_detector": None}

    @property
    def detector(self) -> Detector:
        if self._detector is None:
            plan = self.plan
            how: dict[str, Any] = {"device": plan.device, "threads": plan.threads, "accept_license": plan.accept_license}
            try:
                detector = load(plan.model, **how, **plan.recipe.loading())
            except RapidetrError:
                raise
            except Exception as problem:  # of a driver or an engine that this machine does not have
                told = f"{plan.model}: cannot be loaded by a process of this job ({type(problem).__name__}: {one_line(problem)})"
                raise RapidetrError(f"{told}; try `rapidetr predict` with it on the same machine") from problem
            if (have := sha256_of_model(plan.model)) != plan.recipe.model_sha256:
                told = f"its sha256 is {have}, that of the job {plan.recipe.model_sha256}"
                raise RapidetrError(f"{plan.model}: is another model than the one the job began with ({told}); put that one back")
            self._detector = detector
        return self._detector

    def _load(self, store: Store, number: int, earlier: Record) -> Detector:
        """The model, loaded while the record of its first shard says so: what dies of it would be started again for ever.

        RapidetrError where that happened `ATTEMPTS` times, one after the other.
        """
        loads = 1 + earlier.get("loads", 0)
        if loads > ATTEMPTS:
            raise RapidetrError(f"{self.plan.model}: {DIED_LOADING}")
        record = {"number": number, "state": "loading", "run": self.plan.run, "attempt": earlier["attempt"], "loads": loads}
        store.write(record_name(number), json.dumps(record).encode())
        return self.detector

    def predict_shard(self, place: Place) -> Record:
        """The record of a shard that is done, and whose result file is in place; one that this run has done is not done again."""
        plan, store = self.plan, Store(self.plan.out)
        before = read_record(store, place.number) or {}
        mine = before.get("run") == plan.run
        if mine and before["state"] == "done":
            return before
        earlier = before if mine else {"attempt": 0}
        detector = self._detector or self._load(store, place.number, earlier)  # before the attempt counts
        attempt = 1 + earlier["attempt"]
        record: Record = {"number": place.number, "state": "started", "run": plan.run, "attempt": attempt}
        store.write(record_name(place.number), json.dumps(record).encode())
        shard = read_shard(store, place.offset, place.length)
        if attempt > ATTEMPTS:
            rows, errors = list[Row](), [_error(shard.first_id + i, shard.name(i), KILLED) for i in range(shard.count)]
        else:
            rows, errors = self.predict(shard, detector)
        data = encode_rows(rows, plan.recipe.format, masks=plan.masks)
        store.write(f"{PARTS}/{part_name(place.number, plan.recipe.format)}", data)
        found = {"detections": sum(len(row["annotations"]) for row in rows), "errors": errors}
        seal = {"count": shard.count, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        record = {**record, "state": "done", **seal, **found}
        store.write(record_name(place.number), json.dumps(record).encode())
        return record

    def predict(self, shard: Shard, detector: Detector) -> tuple[list[Row], list[dict[str, Any]]]:
        """(rows of good pictures, errors of the others), each in the order of the shard."""
        options = self.plan.recipe.keeping()
        rows, errors = list[Row](), list[dict[str, Any]]()
        loaded = _load_ahead(shard, self._limits(), self.plan.prefetch)
        while batch := list(islice(loaded, self.plan.batch_size)):
            good = [(image_id, name, found) for image_id, name, found in batch if isinstance(found, Picture)]
            errors += [_error(image_id, name, found) for image_id, name, found in batch if isinstance(found, str)]
            detections = detector.predict([p for _, _, p in good], batch_size=len(good), **options) if good else []
            rows += [row_of(d, image_id, name) for d, (image_id, name, _) in zip(detections, good, strict=True)]
        return rows, errors

    def _limits(self) -> ImageLimits:
        pixels = self.plan.recipe.max_pixels
        return ImageLimits() if pixels is None else replace(ImageLimits(), max_pixels=pixels)


def _error(image_id: int, name: str, message: str) -> dict[str, Any]:
    return {"image_id": image_id, "source": name, "message": message}


def _load_ahead(shard: Shard, limits: ImageLimits, prefetch: int) -> Iterator[tuple[int, str, Picture | str]]:
    """(image_id, name, picture or what is wrong with it), read and decoded by `prefetch` threads ahead of their use."""

    def load_one(image_id: int, name: str, value: Value) -> tuple[int, str, Picture | str]:
        try:
            return image_id, name, load_item(name, value, limits)
        except ImageError as problem:
            return image_id, name, str(problem)

    items = shard.items()
    with ThreadPoolExecutor(max(prefetch, 1), "rapidetr-batch") as pool:
        waiting = deque(pool.submit(load_one, *item) for item in islice(items, prefetch + 1))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(load_one, *item) for item in islice(items, 1))
