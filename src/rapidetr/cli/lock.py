"""`rapidetr lock`: write down this machine and installation, or say what has drifted since."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rapidetr.cli.console import Console

EXAMPLES = """\
  rapidetr lock write
  rapidetr lock write --model runs/mine --data data/ --out runs/mine/lock.json
  rapidetr lock verify runs/mine/lock.json --json"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("write", "verify"), help="verify ends with 1 if speed or accuracy can have changed")
    parser.add_argument("file", nargs="?", metavar="FILE", help="the lock, or its folder (default: --out, else lock.json)")
    parser.add_argument("--model", metavar="NAME|FILE|RUN", help="weights to lock, or to verify instead of the locked path")
    parser.add_argument("--data", metavar="DATA", help="dataset to lock, or to verify instead of the locked path")


def run(args: Namespace, console: Console) -> int:
    import torch  # its settings belong to the record, and it tells them only when it is loaded

    from rapidetr.runtime.lock import NAME

    if args.threads:
        torch.set_num_threads(args.threads)
    path = Path(args.file or args.out or NAME)
    path = path / NAME if path.is_dir() else path
    return (_write if args.action == "write" else _verify)(path, args, console)


def _write(path: Path, args: Namespace, console: Console) -> int:
    from rapidetr.runtime.load import pick_device
    from rapidetr.runtime.lock import write_lock

    record = write_lock(path, artifact=args.model, dataset=args.data, device=pick_device(args.device))
    console.say(f"{path}: environment{', artifact' if args.model else ''}{', dataset' if args.data else ''} locked")
    console.finish({"file": str(path), **record})
    return 0


def _verify(path: Path, args: Namespace, console: Console) -> int:
    from rapidetr.runtime.drift import shown
    from rapidetr.runtime.lock import verify_lock

    device = None if args.device == "auto" else args.device
    drifts = verify_lock(path, device=device, artifact=args.model, dataset=args.data)
    if drifts:
        rows = [(d.item, shown(d.locked), shown(d.present), d.effect, d.reason) for d in drifts]
        console.table(("item", "locked", "now", "effect", "why"), rows)
    serious = sum(drift.serious for drift in drifts)
    console.say(f"{path}: {f'{serious} of {len(drifts)} drifts can change speed or accuracy' if drifts else 'nothing has drifted'}")
    console.finish({"file": str(path), "drifted": bool(serious), "drifts": [drift.to_dict() for drift in drifts]})
    return 1 if serious else 0
