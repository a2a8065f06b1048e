"""`rapidetr evaluate`: AP of a model on a split."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from rapidetr.cli.console import Console
from rapidetr.cli.options import at_least, score, size_hw

EXAMPLES = """\
  rapidetr evaluate runs/mine --data data/ --split test
  rapidetr evaluate runs/mine --data data/ --split test --out reports/mine     # curves, confusion, worst images, report.html
  rapidetr evaluate nano --data coco/ --split valid --max-dets 500 --json"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run folder (its best weights), a checkpoint file or a name")
    parser.add_argument("--data", required=True, metavar="DATA", help="a dataset: COCO, YOLO or Pascal VOC")
    parser.add_argument("--split", default="valid", help="train, valid or test (default: valid)")
    parser.add_argument("--format", choices=("coco", "yolo", "voc"), help="where it cannot be told from the files")
    parser.add_argument("--max-dets", type=at_least(10), default=100, metavar="N", help="detections of each picture (default: 100)")
    parser.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="pictures that go through together (default: 8)")
    parser.add_argument("--resize", choices=("evaluate", "predict"), default="evaluate", help="filter (default: the one of training)")
    parser.add_argument("--threshold", type=score, metavar="T", help="of the confusion matrix (default: that of the best F1)")
    parser.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")
    parser.add_argument("--size", type=size_hw, metavar="SIZE", help="input size: 384, or 384x512 (height x width)")


def run(args: Namespace, console: Console) -> int:
    from rapidetr.core.errors import ConfigError
    from rapidetr.data.read import read_dataset
    from rapidetr.draw.charts import load_library
    from rapidetr.evaluation.evaluate import evaluate
    from rapidetr.runtime.load import load
    from rapidetr.training.report import evaluation_report, write_files

    if args.out:
        load_library()  # before hours of predicting
        if (Path(args.out) / "recipe.json").exists():
            raise ConfigError(f"{args.out}: is a run, with a report of its own; name another folder, such as {args.out}/{args.split}")
    dataset = read_dataset(args.data, args.split, format=args.format)  # first: a wrong path should not wait for a download
    detector = load(args.model, device=args.device, threads=args.threads, size_hw=args.size, accept_license=args.accept_license)
    with tqdm(total=len(dataset), unit="picture", leave=False, disable=args.quiet or None) as bar:
        found = evaluate(
            detector,
            dataset,
            max_dets=args.max_dets,
            batch_size=args.batch_size,
            resize=args.resize,
            threshold=args.threshold,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    console.say(found.to_text())
    about = {"model": args.model, "data": args.data, "split": args.split}
    problems = []
    if args.out:
        files = evaluation_report(found, detector, dataset, resize=args.resize, **about)
        try:
            write_files(Path(args.out), files)
            console.say(f"{args.out}: {', '.join(name for name in files if '/' not in name)}, and the worst images in worst/")
        except OSError as problem:  # hours of predicting are not lost to a full disk
            problems = [f"{args.out}: the report is incomplete: {problem}"]
            console.error(problems[0])
    console.finish({**about, **found.to_dict(), **({"problems": problems} if problems else {})})
    return 1 if problems else 0
