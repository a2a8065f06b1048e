"""`rapidetr diff`: where two models or artifacts part."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from rapidetr.cli.console import Console
from rapidetr.cli.options import size_hw
from rapidetr.core.errors import ImageMissing

if TYPE_CHECKING:
    from rapidetr.deployment.diff import Difference, Stage, View

EXAMPLES = """\
  rapidetr diff pico pico.onnx street.jpg
  rapidetr diff runs/mine registry/current photos/ --out parted/
  rapidetr diff before.safetensors after.safetensors street.jpg --tolerance 0.05 --json"""
HEADS = ("stage", "", "max abs", "mean abs", "max rel", "mean rel", "")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a model name, checkpoint file, run folder, artifact or .onnx file")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="pictures, folders and patterns")
    parser.add_argument("--threshold", type=float, default=0.5, metavar="T", help="of detections (default: 0.5)")
    parser.add_argument("--tolerance", type=float, metavar="R", help="relative; default: 0.001, which rounding of float32 keeps")
    parser.add_argument("--size", type=size_hw, metavar="SIZE", help="input size of both: 384, or 384x512 (height x width)")
    parser.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")


def run(args: Namespace, console: Console) -> int:
    """Status 1 where they differ by more than the tolerance."""
    from rapidetr.deployment.diff import TOLERANCE, diff
    from rapidetr.pixels.find import find_images
    from rapidetr.runtime.load import load

    pictures = find_images(args.pictures)
    if not pictures:
        raise ImageMissing(f"{', '.join(args.pictures)}: no picture there; expected pictures, folders or patterns")
    first, second = (
        load(name, device=args.device, threads=args.threads, size_hw=args.size, accept_license=args.accept_license)
        for name in (args.first, args.second)
    )
    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    found = diff(first, second, pictures, threshold=args.threshold, tolerance=tolerance)
    _tell(found, console)
    record = {"first": args.first, "second": args.second, **found.to_dict()}
    if args.out:
        record["files"] = _write(Path(args.out), record, found, (args.first, args.second))
        console.say(f"wrote {', '.join(record['files'])}")
    console.finish(record)
    return 0 if found.first_stage is None else 1


def _tell(found: Difference, console: Console) -> None:
    if found.stages:
        console.table(HEADS, [_cells(stage) for stage in found.stages])
    for note in found.notes:
        console.say(f"note: {note}")
    d = found.detections
    console.say(
        f"detections above {found.threshold:g}: {d.first} and {d.second}, {d.matched} the same; largest shifts: "
        f"score {d.score_shift_max:.1e}, box {d.box_shift_px_max:.1e} pixels"
    )
    where = "nothing differs" if found.first_stage is None else f"first difference: {found.first_stage}"
    console.say(f"{where} (tolerance {found.tolerance:g})")


def _cells(stage: Stage) -> list[str]:
    numbers = (stage.max_abs, stage.mean_abs, stage.max_rel, stage.mean_rel)
    said = "; ".join(part for part in ("differs" if stage.differs else "", stage.note) if part)
    return [stage.name, stage.kind, *("-" if n is None else f"{n:.1e}" for n in numbers), said]


def _write(folder: Path, record: dict[str, object], found: Difference, names: tuple[str, str]) -> list[str]:
    """diff.json, and for each picture both detections and the heat map side by side; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "diff.json"]
    files[0].write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for i, view in enumerate(found.views):
        files.append(folder / f"{i:03d}-{Path(view.picture.source or 'picture').stem}.png")
        _draw(view, names, found.tolerance, files[-1])
    return [str(file) for file in files]


def _draw(view: View, names: tuple[str, str], tolerance: float, path: Path) -> None:
    from rapidetr.draw.boxes import draw_detections
    from rapidetr.draw.heat import draw_heat, draw_panels

    panels = [(name, draw_detections(found, view.picture)) for name, found in zip(names, (view.first, view.second), strict=True)]
    if view.heat_hw is not None:
        white = max(tolerance, float(view.heat_hw.max())) or 1.0  # so that rounding stays dark
        panels.append((f"feature difference, white: {white:.1e}", draw_heat(view.heat_hw, view.picture.pixels.shape[:2], white)))
    draw_panels(panels).save(path)
