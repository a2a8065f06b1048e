"""`rapidetr export`: a model for other programs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rapidetr.cli.console import Console
from rapidetr.cli.options import at_least, size_hw
from rapidetr.core.errors import ConfigError

EXAMPLES = """\
  rapidetr export pico --format onnx --out exported/
  rapidetr export runs/mine --format onnx --size 288x384 --decoder-layers 1
  rapidetr export mine.safetensors --format onnx --inputs uint8 --outputs final"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model name, checkpoint file or run folder")
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="default: onnx")
    parser.add_argument("--variant", metavar="NAME", help="the model, where the file does not tell")
    parser.add_argument("--size", type=size_hw, metavar="HxW", help="input size in pixels (default: the model's)")
    parser.add_argument("--decoder-layers", type=at_least(1), metavar="N", help="stop early: faster, less accurate")
    parser.add_argument("--queries", type=at_least(1), metavar="N", help="use fewer: faster, fewer detections")
    parser.add_argument("--inputs", choices=("normalized", "uint8"), default="normalized", help="what the file takes (default: normalized)")
    parser.add_argument("--outputs", choices=("raw", "final"), default="raw", help="logits, or the best pairs (default: raw)")
    parser.add_argument("--opset", type=at_least(18), default=20, metavar="N", help="18 to 22 (default: 20)")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")


def run(args: Namespace, console: Console) -> int:
    """Status 1 where the file is written, but differs from its source by more than rounding."""
    source = Path(args.model)
    name = source.stem if source.is_file() else source.resolve().name if source.is_dir() else args.model
    target = Path(args.out or "exported") / f"{name}.onnx"
    if target.exists() and not args.force:
        raise ConfigError(f"{target}: exists already; choose another --out, or replace it with --force")

    from rapidetr.deployment.export_onnx import export_onnx
    from rapidetr.runtime.load import load

    detector = load(args.model, model=args.variant, device="cpu", threads=args.threads, accept_license=args.accept_license)
    exported = export_onnx(
        detector,
        target,
        size_hw=args.size,
        decoder_layers=args.decoder_layers,
        queries=args.queries,
        inputs=args.inputs,
        outputs=args.outputs,
        opset=args.opset,
    )
    for note in detector.notes:
        console.say(f"note: {note}")
    console.say(str(exported))
    if not exported.close:
        console.error(f"{target}: differs from its source by more than rounding; judge it on data before you use it")
    console.finish(exported.to_dict())
    return 0 if exported.close else 1
