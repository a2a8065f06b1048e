"""Throughput of `rapidetr batch` on Ray against a plain loop in as many processes, on one machine.

    python benchmarks/batch_vs_loop.py --images 512 --processes 2 --rounds 3

Both do the same shards of the same rendered scenes with the same model, one thread a process, in turns. `steady` counts from when
every process has done its first shard to the end of the last one, by the times of the records that the processes write; `whole`
counts everything, Ray's start and the loading of models too. Ray keeps processes of its own busy: leave it a core. Its workers, which yield
to all else by default (nice 15), run here as the loop's do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from measure import write

from rapidetr.batch.job import Job, open_job
from rapidetr.batch.predictor import Predictor
from rapidetr.batch.recipe import Recipe, pin_model
from rapidetr.batch.run import Pool, plan_of, run_here, run_on_ray


def loop(job: Job, predictor: Predictor, processes: int) -> None:
    """Every process takes each `processes`-th shard."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=part, args=(job, predictor, i, processes)) for i in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def part(job: Job, predictor: Predictor, first: int, step: int) -> None:
    list(run_here(replace(job, todo=job.todo[first::step]), predictor))


def ray(job: Job, predictor: Predictor, processes: int) -> None:
    list(run_on_ray(job, predictor, Pool(processes, processes)))


def measure(run: Callable[[Job, Predictor, int], None], source: Path, out: Path, args: argparse.Namespace) -> dict[str, float]:
    """Pictures a second."""
    model = pin_model(args.model)
    job = open_job(str(out), Recipe((str(source),), model.sha256, shard_size=args.shard_size), model)
    began = time.perf_counter()
    run(job, Predictor(plan_of(job, device="cpu", threads=1, batch_size=args.batch_size, prefetch=1)), args.processes)
    whole = time.perf_counter() - began
    counts = {place.number: place.count for place in job.todo}
    ends = sorted((file.stat().st_mtime, counts[int(file.stem)]) for file in (out / "records").iterdir())
    start, end = ends[args.processes - 1][0], ends[-1][0]
    steady = sum(count for _, count in ends[args.processes :]) / (end - start)
    return {"steady": round(steady, 3), "whole": round(sum(counts.values()) / whole, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="pico")
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--out", help="default: a file in this folder, named by hardware and date")
    args = parser.parse_args()
    if args.images <= args.processes * args.shard_size:
        parser.error("expected more pictures than fit into the first shard of every process")
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray writes it so
    from rapidetr.demo import write_dataset

    found: dict[str, list[Any]] = {"loop": [], "ray": []}
    with tempfile.TemporaryDirectory() as place:
        write_dataset(Path(place) / "scenes", args.images, 1, split="test", size_hw=(480, 640))
        for turn in range(args.rounds):
            for name, run in (("loop", loop), ("ray", ray)) if turn % 2 == 0 else (("ray", ray), ("loop", loop)):
                found[name].append(measure(run, Path(place) / "scenes" / "test", Path(place) / f"{name}-{turn}", args))
    rates = {name: {kind: median(r[kind] for r in rounds) for kind in ("steady", "whole")} for name, rounds in found.items()}
    ratio = {kind: round(rates["ray"][kind] / rates["loop"][kind], 4) for kind in ("steady", "whole")}
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    write("batch_vs_loop", {**settings, "images_per_s": found, "median": rates, "ray_to_loop": ratio}, args.out)


if __name__ == "__main__":
    main()
