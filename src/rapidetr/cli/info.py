"""`rapidetr info`: what a checkpoint file holds."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from rapidetr.cli.console import Console

EXAMPLES = """\
  rapidetr info checkpoint_best_total.pth
  rapidetr info weights.pt --variant small
  rapidetr info mine.safetensors --json"""
SHOWN = 5  # classes in the text; --json has all


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="any checkpoint: official, Lightning, Roboflow, Hugging Face, ours")
    parser.add_argument("--variant", metavar="NAME", help="the model, where the file does not tell")


def run(args: Namespace, console: Console) -> int:
    record = describe(Path(args.file), args.variant)
    for line in lines(record):
        console.say(line)
    console.finish(record)
    return 0


def describe(path: Path, variant: str | None) -> dict[str, Any]:
    """All that is known of a file; `published` names the official file that it is a copy of."""
    from rapidetr.checkpoints.file import open_checkpoint
    from rapidetr.checkpoints.weights import entry_for_md5

    checkpoint = open_checkpoint(path, model=variant)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        published = entry_for_md5(hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest())
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "published": published and published.filename,
        "task": checkpoint.config.task,
        "parameters": sum(t.numel() for t in checkpoint.state.values()),
        "parameters_deployed": sum(t.numel() for t in checkpoint.deployed().state.values()),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in checkpoint.state.values()}),
        "config": checkpoint.config.to_dict(),
        "labels": checkpoint.labels.to_dict(),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "license": checkpoint.license,
        "provenance": checkpoint.provenance,
        "notes": list(checkpoint.notes),
    }


def lines(record: dict[str, Any]) -> list[str]:
    """The same for people, one fact a line."""
    config, labels, feed = record["config"], record["labels"], record["preprocessing"]
    height, width = config["size_hw"]
    names = [f"{name} ({number})" for name, number in zip(labels["names"], labels["dataset_ids"], strict=True)]
    facts = {
        "file": f"{record['file']}, {record['bytes'] / 1e6:.1f} MB, {', '.join(record['dtypes'])}",
        "sha256": record["sha256"],
        "published": record["published"],
        "model": f"{config['name']}, {record['task']}",
        "input": f"{height}x{width} (height x width), patch {config['patch_size']}, windows {config['windows']}",
        "encoder": f"{config['vit_depth']} blocks of width {config['vit_width']}, levels {' '.join(config['levels'])}",
        "decoder": f"{config['decoder_layers']} layers of width {config['width']}, {config['queries']} queries x {config['groups']} groups",
        "parameters": f"{record['parameters'] / 1e6:.2f} M, {record['parameters_deployed'] / 1e6:.2f} M without training groups",
        "classes": f"{len(names)} in a head of {labels['head_rows']} rows: "
        + ", ".join(names[:SHOWN])
        + (", …" if len(names) > SHOWN else ""),
        "resize": f"{feed['predict_filter']} to predict, {feed['evaluate_filter']} to evaluate",
        "licence": record["license"],
        "provenance": ", ".join(f"{key} {value}" for key, value in record["provenance"].items() if value is not None),
        "notes": "; ".join(record["notes"]),
    }
    return [f"{name:12}{fact}" for name, fact in facts.items() if fact]
