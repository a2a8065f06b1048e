"""Whole jobs on a local Ray cluster: a process that dies, an error, and the same results as without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidetr.batch.job import Job, finish, read_results
from rapidetr.batch.predictor import Predictor
from rapidetr.batch.run import Pool, cluster, run_here, run_on_ray
from rapidetr.core.errors import CheckpointMissing, RapidetrError

pytestmark = [
    pytest.mark.external,
    # Ray drops handles of processes that it started and still wants
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning", "ignore:`use_:DeprecationWarning:ray"
    ),
]
Start = Callable[..., tuple[Job, Predictor]]
ONE = Pool(cpus=1)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster that the tests of this process share."""
    with cluster(ONE) as ray:
        yield ray


@pytest.mark.usefixtures("ray")
def test_a_process_that_dies_costs_nothing(start: Start, scenes: Path, tmp_path: Path) -> None:
    """It dies once in the middle of the third shard; the job ends with what the plain loop gives, every picture once."""
    job, predictor = start(scenes, out=tmp_path / "plain", shard_size=8)
    plain = finish(job, list(run_here(job, predictor)))
    flag = tmp_path / "died"

    class Mortal(Predictor):  # made here, so that it travels whole: the processes of Ray cannot import tests
        def predict(self, shard: Any, detector: Any) -> Any:
            if shard.number == 2 and not flag.exists():
                flag.touch()
                os._exit(1)
            return super().predict(shard, detector)

    job, predictor = start(scenes, shard_size=8)
    records = list(run_on_ray(job, Mortal(predictor.plan), ONE))
    assert flag.exists()
    assert sorted((r["number"], r["attempt"]) for r in records) == [(0, 1), (1, 1), (2, 2), (3, 1), (4, 1), (5, 1)]
    assert {**finish(job, records), "out": ""} == {**plain, "out": ""}
    assert (plain["predicted"], plain["failed"]) == (40, 1)
    assert list(read_results(str(tmp_path / "out"))) == list(read_results(str(tmp_path / "plain")))


@pytest.mark.usefixtures("ray")
def test_an_error_of_ours_comes_out_of_ray_in_one_line(start: Start, scenes: Path) -> None:
    job, predictor = start(scenes, limit=2)
    lost = Predictor(replace(predictor.plan, model="gone.safetensors"))
    with pytest.raises(CheckpointMissing) as raised:
        list(run_on_ray(job, lost, ONE))
    assert str(raised.value).startswith("gone.safetensors: no such file")


@pytest.mark.usefixtures("ray")
def test_a_model_that_kills_every_process_ends_the_job(start: Start, scenes: Path) -> None:
    """As the kernel does where memory ends; Ray alone would start processes for ever."""

    class Doomed(Predictor):
        @property
        def detector(self) -> Any:
            os._exit(1)

    job, predictor = start(scenes, limit=2)
    with pytest.raises(RapidetrError, match=r"loading it killed its process 3 times; give processes more memory, or start fewer$"):
        list(run_on_ray(job, Doomed(predictor.plan), ONE))
