"""`rapidetr export`: a model for other programs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidetr.cli.console import Console
from rapidetr.cli.options import at_least, size_hw
from rapidetr.core.errors import ConfigError

if TYPE_CHECKING:
    from rapidetr.deployment.technique import Decoded
    from rapidetr.runtime.detector import Detector

EXAMPLES = """\
  rapidetr export pico --format onnx --out exported/
  rapidetr export runs/mine --format onnx --size 288x384 --decoder-layers 1
  rapidetr export mine.safetensors --format onnx --inputs uint8 --outputs final
  rapidetr export runs/mine --format openvino --precision int8 --calibrate photos/
  rapidetr export runs/mine --format roboflow --backend torch
  rapidetr export runs/mine --format triton --outputs final --max-batch 16
  rapidetr export runs/mine --format tensorrt
  rapidetr export runs/mine --format hf"""

_CUT = {"size": "size_hw", "decoder_layers": "decoder_layers", "queries": "queries"}
_GRAPH = {**_CUT, "inputs": "inputs", "outputs": "outputs", "opset": "opset"}
# format -> options that it takes, and the keyword of each in the function below
TAKES: dict[str, dict[str, str]] = {
    "onnx": {**_GRAPH, "taps": "taps"},
    "openvino": {**_CUT, "precision": "precision", "calibrate": "pictures", "taps": "taps"},
    "tensorrt": {**_GRAPH, "max_batch": "max_batch"},
    "roboflow": {**_CUT, "backend": "backend", "max_batch": "max_batch"},
    "triton": {**_GRAPH, "max_batch": "max_batch"},
    "hf": {},
}
WRITERS = {
    "onnx": "rapidetr.deployment.export_onnx:export_onnx",
    "openvino": "rapidetr.deployment.openvino:export_openvino",
    "tensorrt": "rapidetr.deployment.export_tensorrt:export_tensorrt",
    "roboflow": "rapidetr.deployment.export_roboflow:export_roboflow",
    "triton": "rapidetr.deployment.export_triton:export_triton",
    "hf": "rapidetr.deployment.export_hf:export_hf",
}
CALIBRATION_PICTURES = 128  # read at most; more moves ranges little


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model name, checkpoint file or run folder")
    parser.add_argument("--format", choices=TAKES, default="onnx", help="default: onnx")
    parser.add_argument("--variant", metavar="NAME", help="the model, where the file does not tell")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")
    group = parser.add_argument_group("options of some formats")
    group.add_argument("--size", type=size_hw, metavar="HxW", help=f"input size in pixels (default: the model's){_of('size')}")
    group.add_argument("--decoder-layers", type=at_least(1), metavar="N", help=f"stop early: faster, less accurate{_of('decoder_layers')}")
    group.add_argument("--queries", type=at_least(1), metavar="N", help=f"use fewer: faster, fewer detections{_of('queries')}")
    group.add_argument("--inputs", choices=("normalized", "uint8"), help=f"what the graph takes (default: normalized){_of('inputs')}")
    group.add_argument("--outputs", choices=("raw", "final"), help=f"logits, or the best pairs (default: raw){_of('outputs')}")
    group.add_argument("--opset", type=at_least(18), metavar="N", help=f"18 to 22 (default: 20){_of('opset')}")
    group.add_argument("--max-batch", type=at_least(1), metavar="N", help=f"pictures at once (default: 8){_of('max_batch')}")
    group.add_argument("--backend", choices=("onnx", "torch"), help=f"what the client runs (default: onnx){_of('backend')}")
    group.add_argument("--precision", choices=("float32", "bfloat16", "int8"), help=f"default: float32{_of('precision')}")
    group.add_argument("--taps", action="store_true", default=None, help=f"also give what `rapidetr diff` compares; slower{_of('taps')}")
    group.add_argument("--calibrate", metavar="FOLDER", help=f"pictures like those to come, for int8{_of('calibrate')}")


def _of(option: str) -> str:
    return "; " + ", ".join(name for name, options in TAKES.items() if option in options)


def run(args: Namespace, console: Console) -> int:
    """Status 1 where the result is written, but differs from its source by more than rounding."""
    options = chosen(args)
    target = target_of(args)
    if target.exists() and not args.force:
        raise ConfigError(f"{target}: exists already; choose another --out, or replace it with --force")
    if "pictures" in options:
        options["pictures"] = calibration(options["pictures"])

    from rapidetr.runtime.load import load

    detector = load(args.model, model=args.variant, device="cpu", threads=args.threads, accept_license=args.accept_license)
    exported = write(args.format, detector, target, options, args)
    for note in detector.notes:
        console.say(f"note: {note}")
    console.say(str(exported))
    if not exported.close:
        console.error(f"{target}: differs from its source by more than rounding; judge it on data before you use it")
    console.finish(exported.to_dict())
    return 0 if exported.close else 1


def chosen(args: Namespace) -> dict[str, Any]:
    """Keywords for the function of the format; ConfigError names an option that the format does not take."""
    known = {option for options in TAKES.values() for option in options}
    given = {option: value for option in sorted(known) if (value := getattr(args, option)) is not None}
    for option in given:
        if option not in TAKES[args.format]:
            takers = ", ".join(name for name, options in TAKES.items() if option in options)
            raise ConfigError(f"--{option.replace('_', '-')} is for {takers}, not for {args.format}; leave it out")
    if ("calibrate" in given) != (given.get("precision") == "int8"):
        raise ConfigError("--precision int8 and --calibrate FOLDER go together; give both or neither")
    return {TAKES[args.format][option]: value for option, value in given.items()}


def target_of(args: Namespace) -> Path:
    """<out>/<name>.onnx, or the folder <out>/<name>-<format>."""
    source = Path(args.model)
    name = source.stem if source.is_file() else source.resolve().name if source.is_dir() else args.model
    return Path(args.out or "exported") / (f"{name}.onnx" if args.format == "onnx" else f"{name}-{args.format}")


def calibration(folder: str) -> Decoded:
    """Pictures of a folder, spread evenly over it."""
    from rapidetr.deployment.technique import Decoded
    from rapidetr.pixels.find import find_images

    names = find_images([folder])
    step = max(len(names) / CALIBRATION_PICTURES, 1)
    return Decoded([names[int(i * step)] for i in range(min(len(names), CALIBRATION_PICTURES))])


def write(format: str, detector: Detector, target: Path, options: dict[str, Any], args: Namespace) -> Any:
    module, _, name = WRITERS[format].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    if format == "triton":
        options = {**options, "name": target.name.removesuffix(f"-{format}")}
    if format == "openvino":
        options = {**options, "checkpoint": args.model}
    if format != "onnx":  # which is a file, and replaced in any case
        options = {**options, "force": args.force}
    return function(detector, target, **options)
