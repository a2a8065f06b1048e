"""Runs a job to its end: in this process, or on Ray."""

from __future__ import annotations

import logging
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rapidetr.batch.job import Job, Place, Record
from rapidetr.batch.predictor import Plan, Predictor
from rapidetr.core import errors
from rapidetr.core.errors import BackendMissing, ConfigError, RapidetrError
from rapidetr.pixels.read import one_line

OBJECT_STORE_BYTES = 128 * 2**20  # of a cluster started here; only places and records of shards travel through it
MOST_TASKS = 4096  # that Ray Data schedules for one run; above it a task takes several shards


@dataclass(frozen=True)
class Pool:
    """Processes on Ray, of `least` to `most`; each holds a model. Parts of a GPU are shared, not guarded."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None  # of a cluster; None: RAY_ADDRESS, or a cluster on this machine for this run

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most or self.cpus < 0 or self.gpus < 0:
            raise ConfigError(f"{self}; expected 1 <= least <= most, and no negative parts of CPUs or GPUs")


def plan_of(job: Job, model: str | None = None, **how: Any) -> Plan:
    """For a new run of `job`; `model`: where it lies now, if not where the job began with it. `how`: device, threads, accept_license,
    batch_size, prefetch.
    """
    return Plan(job.store.url, job.recipe, model or job.manifest["model"], job.masks, uuid.uuid4().hex, **how)


def run_here(job: Job, predictor: Predictor) -> Iterator[Record]:
    """Records of shards as they are done, one after the other in this process."""
    yield from map(predictor.predict_shard, job.todo)


def run_on_ray(job: Job, predictor: Predictor, pool: Pool) -> Iterator[Record]:
    """Records of shards as they are done, in any order; Ray restarts what dies and gives it its shards again."""
    if any(place.startswith("memory://") for place in (job.store.url, *job.recipe.sources)):
        raise ConfigError("memory:// lies in one process, where the others cannot read it; use --engine local")
    if not job.todo:
        return
    with cluster(pool) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        places = ray.data.from_items([asdict(place) for place in job.todo], override_num_blocks=min(len(job.todo), MOST_TASKS))
        strategy = ray.data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most)
        resources = {"num_gpus": pool.gpus} if pool.gpus else {"num_cpus": pool.cpus}
        options = {"compute": strategy, "fn_constructor_args": (predictor,), **resources}
        done = places.map_batches(Worker, batch_size=1, batch_format="numpy", **options)
        for row in done.iter_rows():
            if row["refused"]:  # Ray would wrap it in others, and lose it on the way between processes
                kind, _, told = row["refused"].partition(" ")
                raise getattr(errors, kind, RapidetrError)(told)
            yield row["record"]


class Worker:
    """What Ray Data makes in each process of the pool."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A record for each shard, or what refuses to go on: the name of an error of ours, and its message."""
        places = [Place(*map(int, values)) for values in zip(*(batch[name] for name in Place.__annotations__), strict=True)]
        try:
            return {"record": [self.predictor.predict_shard(place) for place in places], "refused": [""] * len(places)}
        except RapidetrError as problem:
            return {"record": [None] * len(places), "refused": [f"{type(problem).__name__} {problem}"] * len(places)}


@contextmanager
def cluster(pool: Pool) -> Iterator[Any]:
    """The ray package, connected. A cluster of this machine listens on loopback, has no dashboard, and ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    try:
        import ray
        import ray.data
    except ImportError as problem:
        raise BackendMissing(f"rapidetr batch needs Ray ({problem}); install it with: pip install 'rapidetr[ray]'") from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    mine = not ray.is_initialized()
    address = pool.address or os.environ.get("RAY_ADDRESS")
    if mine and address:
        ray.init(address=address, logging_level=logging.ERROR)
    elif mine:
        # at least two: an actor that takes the only one leaves none for the tasks that feed it. They are tickets, not cores.
        cpus = max(2, os.cpu_count() or 1, math.ceil(pool.most * pool.cpus) + 1)
        _start(ray, cpus)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _start(ray: Any, cpus: int) -> None:
    """A cluster on this machine."""
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    except Exception as problem:  # Ray gives its own processes 30 s to start, and raises a plain Exception
        told = f"Ray did not start ({one_line(problem)})"
        raise RapidetrError(f"{told}; try again when this machine has less to do, or use --engine local") from problem
