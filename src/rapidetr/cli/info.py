"""`rapidetr info`: what a checkpoint file, an .onnx file or an artifact holds."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from rapidetr.cli.console import Console

EXAMPLES = """\
  rapidetr info checkpoint_best_total.pth
  rapidetr info weights.pt --variant small
  rapidetr info mine.safetensors --json
  rapidetr info exported/pico.onnx
  rapidetr info registry/current"""
SHOWN = 5  # classes in the text; --json has all


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="any checkpoint, an .onnx file, the folder of an artifact, or the pointer of a registry"
    )
    parser.add_argument("--variant", metavar="NAME", help="the model, where the file does not tell")


def run(args: Namespace, console: Console) -> int:
    from rapidetr.runtime.places import find_artifact

    path = Path(args.file)
    folder = find_artifact(path)
    if folder:
        record = describe_artifact(folder)
        told = artifact_lines(record)
    elif path.suffix == ".onnx":
        record = describe_onnx(path, args.variant)
        told = onnx_lines(record)
    else:
        record = describe(path, args.variant)
        told = lines(record)
    for line in told:
        console.say(line)
    console.finish(record)
    return 0


def describe_onnx(path: Path, variant: str | None) -> dict[str, Any]:
    """What an .onnx file of ours or of the official package is; imports no torch."""
    from rapidetr.runtime.onnx_engine import open_onnx

    engine, facts = open_onnx(path, model=variant)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    session = engine.session
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "task": facts.config.task,
        "size_hw": list(engine.size_hw),
        "decoder_layers": engine.decoder_layers,
        "queries": engine.queries,
        "inputs": {value.name: _tensor(value) for value in session.get_inputs()},
        "outputs": {value.name: _tensor(value) for value in session.get_outputs()},
        "config": facts.config.to_dict(),
        "labels": facts.labels.to_dict(),
        "preprocessing": facts.preprocessing.to_dict(),
        "license": facts.license,
        "provenance": facts.provenance,
        "notes": list(facts.notes),
    }


def _tensor(value: Any) -> str:
    """float32 [B, 3, 384, 384]: kind and shape, B for the dynamic batch."""
    kind = {"float": "float32"}.get(bare := value.type.removeprefix("tensor(").removesuffix(")"), bare)
    return f"{kind} [{', '.join(str(side) if isinstance(side, int) else 'B' for side in value.shape)}]"


def onnx_lines(record: dict[str, Any]) -> list[str]:
    """The same for people, one fact a line."""
    height, width = record["size_hw"]
    layers = record["decoder_layers"]
    facts = {
        "file": f"{record['file']}, {record['bytes'] / 1e6:.1f} MB",
        "sha256": record["sha256"],
        "model": f"{record['config']['name']}, {record['task']}",
        "size": f"{height}x{width} (height x width), {layers} decoder layer{'s' * (layers != 1)}, {record['queries']} queries",
        **{f"{kind} {i}": f"{name}, {told}" for kind in ("input", "output") for i, (name, told) in enumerate(record[f"{kind}s"].items())},
        **_shared(record),
    }
    return _listed(facts)


def describe_artifact(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact whose files were verified, with its folder; imports no torch."""
    from rapidetr.runtime.artifact import open_artifact

    artifact = open_artifact(folder)
    return {"folder": str(artifact.path), "is": str(artifact.manifest), **artifact.manifest.to_dict()}


def artifact_lines(record: dict[str, Any]) -> list[str]:
    """The same for people, one fact a line."""
    size = sum(seal["bytes"] for seal in record["files"].values()) / 1e6
    facts = {
        "artifact": f"{record['folder']}, {size:.1f} MB, all files as in its manifest",
        "holds": record["is"],
        "files": ", ".join(record["files"]),
        "made for": record["device"],
        "made": f"{record['created']}, by: {record['command']}",
        "source": f"{record['source'].get('name')}, sha256 {record['source'].get('sha256')}",
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        **_shared(record),
    }
    return _listed(facts)


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
    config = record["config"]
    height, width = config["size_hw"]
    facts = {
        "file": f"{record['file']}, {record['bytes'] / 1e6:.1f} MB, {', '.join(record['dtypes'])}",
        "sha256": record["sha256"],
        "published": record["published"],
        "model": f"{config['name']}, {record['task']}",
        "input": f"{height}x{width} (height x width), patch {config['patch_size']}, windows {config['windows']}",
        "encoder": f"{config['vit_depth']} blocks of width {config['vit_width']}, levels {' '.join(config['levels'])}",
        "decoder": f"{config['decoder_layers']} layers of width {config['width']}, {config['queries']} queries x {config['groups']} groups",
        "parameters": f"{record['parameters'] / 1e6:.2f} M, {record['parameters_deployed'] / 1e6:.2f} M without training groups",
        **_shared(record),
    }
    return _listed(facts)


def _shared(record: dict[str, Any]) -> dict[str, str]:
    """Facts that every kind of file has."""
    labels, feed = record["labels"], record["preprocessing"]
    names = [f"{name} ({number})" for name, number in zip(labels["names"], labels["dataset_ids"], strict=True)]
    return {
        "classes": f"{len(names)} in a head of {labels['head_rows']} rows: "
        + ", ".join(names[:SHOWN])
        + (", …" if len(names) > SHOWN else ""),
        "resize": f"{feed['predict_filter']} to predict, {feed['evaluate_filter']} to evaluate",
        "licence": record["license"],
        "provenance": ", ".join(f"{key} {value}" for key, value in record.get("provenance", {}).items() if value is not None),
        "notes": "; ".join(record.get("notes", [])),
    }


def _listed(facts: dict[str, str]) -> list[str]:
    return [f"{name:12}{fact}" for name, fact in facts.items() if fact]
