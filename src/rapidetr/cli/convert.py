"""`rapidetr convert`: a checkpoint in our format or the official one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from rapidetr.cli.console import Console
from rapidetr.core.errors import ConfigError

EXAMPLES = """\
  rapidetr convert checkpoint_best_total.pth mine.safetensors
  rapidetr convert mine.safetensors small.safetensors --deploy --half
  rapidetr convert mine.safetensors official.pth --to official"""
OFFICIAL_FILTER = "bilinear"  # of every file in that format, as the official predict resizes
FORMATS = {".safetensors": "rapidetr", ".pth": "official", ".pt": "official"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="IN", help="any checkpoint that `rapidetr info` reads")
    parser.add_argument("target", metavar="OUT", help=".safetensors for our format, .pth or .pt for the official one")
    parser.add_argument(
        "--deploy",
        action="store_true",
        help="drop the query groups that only training needs: same answers, smaller file, no longer a good start for fine-tuning",
    )
    parser.add_argument("--half", action="store_true", help="store float16: half the size, weights rounded to 3 digits")
    parser.add_argument("--to", choices=sorted(set(FORMATS.values())), help="format (default: as the ending of OUT says)")
    parser.add_argument("--variant", metavar="NAME", help="the model, where the file does not tell")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--accept-license", metavar="NAME", help="PML-1.0, for weights under it that you bring")


def run(args: Namespace, console: Console) -> int:
    source, target = Path(args.file), Path(args.target)
    kind = check_target(source, target, args.to, args.force)

    import torch

    from rapidetr.checkpoints.file import open_checkpoint, save_checkpoint, save_official
    from rapidetr.checkpoints.licenses import require_license

    checkpoint = open_checkpoint(source, model=args.variant)
    require_license(str(source), checkpoint.license, args.accept_license)
    checkpoint = checkpoint.deployed() if args.deploy else checkpoint
    if args.half:
        state = {name: tensor.to(torch.float16) for name, tensor in checkpoint.state.items()}
        checkpoint = replace(checkpoint, state=state, notes=(*checkpoint.notes, "weights rounded to float16"))
    if kind == "official":
        note = f"official files hold no resize filter, dataset ids or licence: read back, this one predicts with {OFFICIAL_FILTER}"
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, note))
    (save_official if kind == "official" else save_checkpoint)(checkpoint, target)
    for note in checkpoint.notes:
        console.say(f"note: {note}")
    sizes = source.stat().st_size, target.stat().st_size
    console.say(f"{source} ({sizes[0] / 1e6:.1f} MB) -> {target} ({sizes[1] / 1e6:.1f} MB), {kind} format")
    record = {"file": str(source), "target": str(target), "format": kind, "bytes": sizes[1], "model": checkpoint.config.name}
    console.finish({**record, "notes": list(checkpoint.notes)})
    return 0


def check_target(source: Path, target: Path, wanted: str | None, force: bool) -> str:
    """The format to write; ConfigError for an ending that does not fit, and rather than overwrite something."""
    kind = FORMATS.get(target.suffix)
    if kind is None or wanted not in (None, kind):
        endings = [ending for ending, name in FORMATS.items() if wanted in (None, name)]
        raise ConfigError(f"{target}: expected a name that ends in {' or '.join(endings)}{f' for the {wanted} format' if wanted else ''}")
    if target.exists():
        if source.exists() and source.samefile(target):
            raise ConfigError(f"{target}: IN and OUT are the same file; choose another OUT")
        if not force:
            raise ConfigError(f"{target}: exists already; choose another OUT, or replace it with --force")
    return kind
