"""`rapidetr optimize`: faster artifacts of a model; the fastest that is proven on this machine is put into use."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rapidetr.cli.console import Console
from rapidetr.cli.options import add_model_options, load_options, part, rate, several
from rapidetr.core.errors import ConfigError

if TYPE_CHECKING:
    from rapidetr.deployment.trials import Optimization
    from rapidetr.deployment.verdict import Limits

EXAMPLES = """\
  rapidetr optimize runs/mine --data data/ --max-ap-drop 0.003 --out registry/
  rapidetr optimize runs/mine --data data/ --service-level choice/service_level.json --out registry/
  rapidetr optimize nano --images photos/ --min-agreement 0.98 --techniques onnxruntime,openvino-bfloat16 --out registry/"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model name, checkpoint file or run folder")
    group = parser.add_argument_group("judged on")
    group.add_argument("--data", metavar="DATA", help="a dataset: COCO, YOLO or Pascal VOC; AP decides")
    group.add_argument("--split", default="valid", help="train, valid or test (default: valid)")
    group.add_argument("--images", metavar="FOLDER", help="pictures without annotations; agreement decides")
    group = parser.add_argument_group("what must be kept")
    group.add_argument("--max-ap-drop", type=part, default=0.003, metavar="AP", help="at most this much less (default: 0.003)")
    group.add_argument("--min-agreement", type=part, metavar="PART", help="at least this part of detections; 0 waives accuracy without AP")
    group.add_argument("--service-level", metavar="FILE", help="service_level.json of `rapidetr choose`: its limits, and its configuration")
    group.add_argument("--p95-ms", type=rate, metavar="MS", help="95 of 100 single pictures take at most this long")
    group.add_argument("--min-ap", type=part, metavar="AP", help="at least this AP, 0 to 1")
    group.add_argument("--memory-mb", type=rate, metavar="MB", help="at most this peak of a fresh process")
    group = parser.add_argument_group("what is tried")
    group.add_argument("--techniques", type=several(str), metavar="T,T", help="see docs/deploy.md (default: all that fit this machine)")
    add_model_options(group)
    parser.add_argument("--allow-noise", action="store_true", help="judge times of a machine that was not quiet: a trial, no evidence")


def run(args: Namespace, console: Console) -> int:
    """0 where an artifact was adopted, 1 where none was. The registry is --out, by default registry/."""
    if (args.data is None) == (args.images is None):
        raise ConfigError("expected --data, a dataset, or --images, a folder of pictures; one of the two")
    level = limits_of(args)

    from rapidetr.deployment.optimize import REPORT, optimize
    from rapidetr.deployment.trials import Optimization
    from rapidetr.runtime.load import load

    out = Path(args.out or "registry")
    detector = optimize(
        load(args.model, **load_options(args)),
        args.data,
        images=None if args.images is None else pictures_in(args.images),
        split=args.split,
        max_ap_drop=args.max_ap_drop,
        min_agreement=args.min_agreement,
        service_level=level,
        out=out,
        techniques=args.techniques,
        threads=args.threads,
        source=args.model if args.weights == "pretrained" else None,
        allow_noise=args.allow_noise,
        progress=lambda name, step: console.say(f"{name}: {step}"),
    )
    done = Optimization.from_dict(json.loads((out / REPORT).read_text(encoding="utf-8")))
    console.table(*done.table())
    for note in detector.notes:
        console.say(f"note: {note}")
    write_page(done, out / "optimize.html", console)
    console.say(f"adopted: {done.adopted}; use it with rapidetr.load({str(out / 'current')!r})" if done.adopted else "nothing was adopted")
    console.finish({**done.to_dict(), "verdict": detector.verdict and detector.verdict.to_dict()})
    return 0 if done.adopted else 1


def limits_of(args: Namespace) -> Limits:
    """Those of the file, and what the command line says besides; it also fills in the configuration that was chosen."""
    from rapidetr.choice.records import read_promise
    from rapidetr.deployment.verdict import Limits

    given = {"p95_ms": args.p95_ms, "min_ap": args.min_ap, "memory_mb": args.memory_mb}
    if args.service_level is None:
        return Limits(**given)
    promise, chosen = read_promise(args.service_level)
    found = promise.limits.to_dict()
    args.size = args.size or chosen.candidate.size_hw
    args.decoder_layers = args.decoder_layers or chosen.candidate.decoder_layers
    args.queries = args.queries or chosen.candidate.queries
    return Limits(**{name: found[name] if value is None else value for name, value in given.items()})


def pictures_in(folder: str) -> list[str]:
    from rapidetr.pixels.find import find_images

    return find_images([folder])


def write_page(done: Optimization, path: Path, console: Console) -> None:
    from rapidetr.cli.results import write
    from rapidetr.draw.page import Section, render_page

    limits = ", ".join(f"{name} {value:g}" for name, value in done.limits.items() if value is not None)
    text = f"Baseline: {done.baseline}\n\nAdopted: {done.adopted or 'nothing'}\n\nJudged on {done.judged_on}; limits: {limits}"
    page = render_page("Optimization", [Section("Techniques", text, table=done.table())], record=done.to_dict())
    write(path, lambda part: part.write_text(page, encoding="utf-8"))
    console.say(f"wrote {path}")
