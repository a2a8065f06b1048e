"""`rapidetr bench`: what a model costs end to end on these pictures and this machine; faster or slower than another one."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import add_model_options, at_least, load_options, part, rate, several
from rapidetr.core.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from rapidetr.bench.compare import Comparison
    from rapidetr.bench.loads import LoadShape
    from rapidetr.bench.runner import Plan
    from rapidetr.core.reports import BenchReport
    from rapidetr.data.records import Dataset
    from rapidetr.runtime.detector import Detector

EXAMPLES = """\
  rapidetr bench nano --data photos/
  rapidetr bench runs/mine --data data/ --batches 1,2,4,8 --streams 1,2 --prefetch 0,2,4 --rates 2,5 --out reports/
  rapidetr bench --compare new/report.json old/report.json
  rapidetr bench --compare new.safetensors old.safetensors --data photos/ --rounds 40
  rapidetr bench new.safetensors --data photos/ --against reports/report.json --max-slowdown 5%"""
SCOPE = "T4, TensorRT fp16, forward only, COCO val2017"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a run folder, a checkpoint file or a name")
    parser.add_argument("--data", metavar="DATA", help="a folder of pictures, or a dataset (then AP is measured, too)")
    parser.add_argument("--split", metavar="NAME", help="of a dataset (default: valid, else test, else train)")
    group = parser.add_argument_group("what to measure: every combination is a setting")
    group.add_argument("--batches", type=several(at_least(1)), default=[1], metavar="N,N", help="pictures of one call (default: 1)")
    group.add_argument("--streams", type=several(at_least(1)), default=[1], metavar="N,N", help="calls at the same time (default: 1)")
    group.add_argument("--prefetch", type=several(at_least(0)), default=[0], metavar="N,N", help="threads that load ahead (default: 0)")
    group.add_argument("--thread-counts", type=several(at_least(1)), metavar="N,N", help="CPU threads (default: --threads)")
    group.add_argument("--rates", type=several(rate), default=[], metavar="R,R", help="also pictures a second that arrive by chance")
    group.add_argument("--cold-files", action="store_true", help="ask the system to forget each picture file before it is read")
    group.add_argument("--no-ap", action="store_true", help="leave accuracy out")
    group.add_argument("--no-cold-start", action="store_true", help="leave out the fresh process")
    _add_effort(parser)
    add_model_options(parser.add_argument_group("model"))
    group = parser.add_argument_group("comparison")
    group.add_argument("--compare", nargs=2, metavar=("NEW", "OLD"), help="two reports (.json), or two models in interleaved rounds")
    group.add_argument("--against", metavar="JSON", help="end with 1 if MODEL is slower than this report allows")
    group.add_argument("--max-slowdown", type=part, default=0.05, metavar="PART", help="that --against allows (default: 5%%)")


def _add_effort(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("how much to measure")
    group.add_argument("--rounds", type=at_least(1), default=20, metavar="N", help="of 3 calls each: 20 for p95, 100 for p99 (default: 20)")
    group.add_argument("--percentile", type=rate, metavar="P", help="refuse to start with too few rounds for it")
    group.add_argument("--seconds", type=rate, default=40.0, metavar="S", help="of one setting, at most (default: 40)")
    group.add_argument("--cool-down", type=float, default=2.0, metavar="S", help="between settings (default: 2)")
    group.add_argument("--pictures", type=at_least(1), default=64, metavar="N", help="to time with, spread over the data (default: 64)")
    group.add_argument("--threshold", type=float, default=0.5, metavar="T", help="of the timed predict (default: 0.5)")


def run(args: Namespace, console: Console) -> int:
    """0 done, 1 when --against finds the model too slow or cannot judge it."""
    from rapidetr.bench.loads import LoadShape

    counts = args.thread_counts or [args.threads]
    shapes = [LoadShape(b, s, p, None, t) for t, b, s, p in product(counts, args.batches, args.streams, args.prefetch)]
    shapes += [LoadShape(b, s, 0, r, t) for t, b, s, r in product(counts, args.batches, args.streams, args.rates)]
    if args.compare:
        return finish_comparison(compare(args, shapes), args, console)
    if not (args.model and args.data):
        raise ConfigError("expected MODEL and --data, or --compare with two reports or models")
    from rapidetr.core.reports import BenchReport

    baseline = BenchReport.read(args.against) if args.against else None
    report = measure(args, shapes, console)
    console.table(*report.to_table())
    for row in report.rows:
        for reason in row.reasons:
            console.say(f"{'note' if row.usable else 'NOT USABLE'}: {row.setting}: {reason}")
    if args.out:
        write(report, Path(args.out), console)
    if baseline is None:
        console.finish(report.to_dict())
        return 0
    return finish_judgement(report, baseline, args, console)


def measure(args: Namespace, shapes: Sequence[LoadShape], console: Console) -> BenchReport:
    """The report of one model: rows, time of a fresh process, AP where there are annotations, published figures."""
    from rapidetr.bench.cold import time_cold_start
    from rapidetr.bench.loads import spread_out
    from rapidetr.bench.runner import assemble, measure_ap, measure_rows
    from rapidetr.runtime.load import load
    from rapidetr.runtime.lock import sha256_of

    plan = plan_of(args)
    dataset, paths = find_pictures(args.data, args.split)
    options = load_options(args)
    detector = load(args.model, **options)
    options["device"] = detector.engine.device
    rows = []
    with tqdm(total=len(shapes), unit="setting", leave=False, disable=args.quiet or None) as bar:
        for row in measure_rows(detector, args.model, spread_out(paths, args.pictures), shapes, plan):
            rows.append(row)
            bar.update()
    if not args.no_cold_start:
        seconds = time_cold_start(args.model, paths[0], options)
        rows = [replace(row, cold_start_s=seconds) for row in rows]
    ap = None
    if dataset is not None and not args.no_ap:
        with tqdm(total=len(dataset), unit="picture", leave=False, disable=args.quiet or None) as bar:
            ap = measure_ap(detector, dataset, lambda done, total: bar.update(done - bar.n))
    return assemble(
        rows,
        command=shlex.join(["rapidetr", *sys.argv[1:]]),
        artifact_sha256=hash_weights(args),
        dataset={
            "path": args.data,
            "sha256": sha256_of(Path(args.data)) if Path(args.data).exists() else None,  # a pattern has none
            "pictures": len(paths),
            "split": dataset and dataset.split,
        },
        ap=ap,
        published=published(detector),
    )


def plan_of(args: Namespace) -> Plan:
    from rapidetr.bench.runner import Plan

    return Plan(
        rounds=args.rounds,
        seconds=args.seconds,
        cool_down_s=args.cool_down,
        threshold=args.threshold,
        cold_files=args.cold_files,
        percentile=args.percentile,
        seed=args.seed or 0,
    )


def find_pictures(data: str, split: str | None) -> tuple[Dataset | None, list[str]]:
    """(the split, its pictures) of a dataset; (None, pictures) of anything else that `predict` takes."""
    from rapidetr.data.read import find_splits, read_dataset
    from rapidetr.pixels.find import find_images

    try:
        there = find_splits(data)
    except DatasetError:
        if split:
            raise
        return None, find_images([data])
    dataset = read_dataset(data, split or next((s for s in ("valid", "test", "train") if s in there), next(iter(there))))
    return dataset, [record.path for record in dataset.images]


def hash_weights(args: Namespace) -> str | None:
    """sha256 of the file that was loaded; None for random weights."""
    from rapidetr.runtime.lock import sha256_of, weights_file

    return None if args.weights == "random" else sha256_of(weights_file(args.model))


def published(detector: Detector) -> dict[str, Any] | None:
    """What is published for this variant, with its scope; None where nothing is."""
    from rapidetr.checkpoints.weights import WEIGHTS

    entry = WEIGHTS.get(detector.config.name)
    if entry is None or entry.t4_ms is None:
        return None
    return {"model": entry.variant, "ms": entry.t4_ms, "ap": entry.ap, "of": "masks" if entry.mask else "boxes", "scope": SCOPE}


def write(report: BenchReport, folder: Path, console: Console) -> None:
    from rapidetr.bench.report import render_report
    from rapidetr.checkpoints.file import write_atomically

    console.say(f"wrote {report.write(folder / 'report.json')}")
    write_atomically(folder / "report.html", lambda part: part.write_text(render_report(report), encoding="utf-8"))
    console.say(f"wrote {folder / 'report.html'}")


def compare(args: Namespace, shapes: Sequence[LoadShape]) -> Comparison:
    """Of two recorded reports, or of two models measured now."""
    from rapidetr.bench.compare import compare_detectors, compare_reports
    from rapidetr.bench.loads import spread_out
    from rapidetr.core.reports import BenchReport

    recorded = [name.endswith(".json") for name in args.compare]
    if all(recorded):
        new, old = map(BenchReport.read, args.compare)
        return compare_reports(new, old)
    if any(recorded) or not args.data:
        raise ConfigError(f"--compare got {' and '.join(args.compare)}; expected two reports (.json), or two models and --data")
    from rapidetr.runtime.load import load

    _, paths = find_pictures(args.data, args.split)
    options = load_options(args)
    both = load(args.compare[0], **options), load(args.compare[1], **options)
    return compare_detectors(both, tuple(args.compare), spread_out(paths, args.pictures), shapes, plan_of(args))


def finish_comparison(comparison: Comparison, args: Namespace, console: Console) -> int:
    for line in comparison.lines():
        console.say(line)
    if args.out:
        import json

        Path(args.out).mkdir(parents=True, exist_ok=True)
        (Path(args.out) / "comparison.json").write_text(json.dumps(comparison.to_dict(), indent=1) + "\n", encoding="utf-8")
    console.finish(comparison.to_dict())
    return 0


def finish_judgement(report: BenchReport, baseline: BenchReport, args: Namespace, console: Console) -> int:
    from rapidetr.bench.compare import compare_reports, judge

    comparison = compare_reports(report, baseline)
    kept, said = judge(comparison, args.max_slowdown)
    for line in [
        *comparison.lines(),
        *said,
        f"at most {args.max_slowdown:.1%} slower than {args.against}: {'kept' if kept else 'NOT KEPT'}",
    ]:
        console.say(line)
    console.finish({**report.to_dict(), "comparison": comparison.to_dict(), "kept": kept})
    return 0 if kept else 1
