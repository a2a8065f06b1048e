"""`rapidetr batch`: many pictures in, result files out; goes on where it was cut off."""

from __future__ import annotations

import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import add_model_options, at_least, part, size_hw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rapidetr.batch.job import Job, Record
    from rapidetr.batch.recipe import Model, Recipe

EXAMPLES = """\
  rapidetr batch photos/ --model pico --out results/
  rapidetr batch 's3://bucket/day-17/' --model registry/current --out s3://bucket/results-17 --actors 4-64 --gpus-per-actor 0.5
  rapidetr batch images.parquet --model checkpoint.safetensors --format parquet --actors 8 --threads 1
  rapidetr batch 'photos/**/*.jpg' --engine local --limit 1000 --out trial/"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folders, patterns, Parquet files, also of object stores (s3://...)")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", default="nano", metavar="NAME|FILE", help="a name, a file, an artifact or registry/current (default: nano)"
    )
    add_model_options(group)
    group = parser.add_argument_group("what to keep; with model and sources, fixed when a job is started")
    group.add_argument("--threshold", type=float, default=0.5, metavar="T", help="scores must lie above it (default: 0.5)")
    group.add_argument("--classes", metavar="A,B", help="only these: names or indices, separated by commas")
    group.add_argument("--max-detections", type=at_least(1), metavar="N", help="at most this many a picture")
    group.add_argument("--nms", type=float, metavar="IOU", help="suppress boxes of one class that overlap by more")
    group.add_argument("--tile", type=size_hw, metavar="SIZE", help="cut large pictures into tiles of 640, or 640x480 (height x width)")
    group.add_argument("--overlap", type=part, default=0.2, metavar="PART", help="of neighboring tiles (default: 0.2)")
    group.add_argument("--max-pixels", type=at_least(1), metavar="N", help="refuse larger pictures, as decompression bombs are")
    group.add_argument("--column", metavar="NAME", help="of Parquet files (default: image, bytes, path, file_name or url)")
    group.add_argument("--limit", type=at_least(1), metavar="N", help="only the first pictures")
    group.add_argument("--shard-size", type=at_least(1), default=256, metavar="N", help="pictures in a result file (default: 256)")
    group.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl", help="of result files (default: jsonl)")
    group = parser.add_argument_group("going on with a job")
    group.add_argument("--retry-failed", action="store_true", help="do shards anew in which a picture failed")
    group.add_argument("--verify", action="store_true", help="read finished result files and compare their sha256")
    group = parser.add_argument_group("running; changes no result")
    group.add_argument("--engine", choices=("ray", "local"), default="ray", help="local: in this process, without Ray (default: ray)")
    group.add_argument("--actors", type=at_least_to_most, default=(1, 1), metavar="N|A-B", help="processes, or from A to B as needed")
    group.add_argument("--cpus-per-actor", type=part, default=1.0, metavar="N", help="that Ray sets aside without GPUs (default: 1)")
    group.add_argument("--gpus-per-actor", type=part, default=0.0, metavar="N", help="such as 0.5: two processes share one (default: 0)")
    group.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster (default: RAY_ADDRESS, or one on this machine)")
    group.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="pictures that go through together (default: 8)")
    group.add_argument("--prefetch", type=at_least(0), default=2, metavar="N", help="pictures read ahead, by as many threads (default: 2)")


def at_least_to_most(text: str) -> tuple[int, int]:
    """Argparse type: (2, 8) of '2-8', (4, 4) of '4'."""
    least, _, most = text.partition("-")
    pair = at_least(1)(least), at_least(1)(most or least)
    if pair[0] > pair[1]:
        raise ArgumentTypeError(f"expected a number, or a smaller and a larger one such as 2-8, got {text!r}")
    return pair


def run(args: Namespace, console: Console) -> int:
    from rapidetr.batch.job import finish, open_job
    from rapidetr.batch.predictor import Predictor
    from rapidetr.batch.recipe import pin_model
    from rapidetr.batch.run import Pool, plan_of, run_here, run_on_ray
    from rapidetr.batch.store import Store
    from rapidetr.core.errors import ConfigError

    if args.weights == "random":
        raise ConfigError("--weights random gives every process another network; save one first, and name its file")
    names = {"size_hw": args.size, "dtype": args.dtype, "decoder_layers": args.decoder_layers, "queries": args.queries}
    model = pin_model(args.model, accept_license=args.accept_license, model=args.variant, **names)
    out, recipe = args.out or "results", recipe_of(args, model)
    with Store(out).alone():
        job = open_job(out, recipe, model, retry_failed=args.retry_failed, verify=args.verify)
        how = {name: getattr(args, name) for name in ("device", "threads", "accept_license", "batch_size", "prefetch")}
        predictor = Predictor(plan_of(job, model.source, **how))
        if job.done:
            console.say(f"going on: {len(job.done)} of {job.manifest['shards']} shards are done")
        least, most = args.actors
        pool = Pool(least, most, args.cpus_per_actor, args.gpus_per_actor, args.address)
        began = time.perf_counter()
        records = collect(job, run_here(job, predictor) if args.engine == "local" else run_on_ray(job, predictor, pool), args.quiet)
        seconds = time.perf_counter() - began
        document = finish(job, records)
    document |= {"seconds": round(seconds, 3), "images_per_s": round(document["images_this_run"] / seconds, 2)}
    return report(document, console)


def collect(job: Job, done: Iterator[Record], quiet: bool) -> list[Record]:
    """All records, shown as they come."""
    records = []
    with tqdm(total=sum(place.count for place in job.todo), unit="picture", leave=False, disable=quiet or None) as bar:
        for record in done:
            records.append(record)
            bar.update(record["count"])
    return records


def recipe_of(args: Namespace, model: Model) -> Recipe:
    from rapidetr.batch.recipe import Recipe

    words = args.classes.split(",") if args.classes else []
    classes = [int(word) if word.isdecimal() and word not in model.labels.names else word for word in words]
    same = [name for name in Recipe.__annotations__ if name not in ("sources", "model_sha256", "size_hw", "classes")]
    return Recipe(
        sources=tuple(args.sources),
        model_sha256=model.sha256,
        size_hw=args.size,
        classes=tuple(map(int, model.labels.indices(classes))) if classes else None,
        **{name: getattr(args, name) for name in same},
    )


def report(document: dict[str, object], console: Console) -> int:
    """Say the sum; 1 where a picture failed."""
    console.say("{predicted} pictures, {detections} detections, {failed} failed; results in {out}".format(**document))
    if document["failed"]:
        console.error(f"{document['failed']} of {document['images']} pictures failed; see {document['out']}/errors.jsonl")
    console.finish(document)
    return 1 if document["failed"] else 0
