"""`rapidetr models`: the published family, and the small models in the package."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from rapidetr.checkpoints.download import cache_folder, official_cache_folders
from rapidetr.checkpoints.weights import entry_for
from rapidetr.cli.console import Console
from rapidetr.core.config import list_models, variant

EXAMPLES = """\
  rapidetr models
  rapidetr models --task segment
  rapidetr models --json"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--task", choices=("detect", "segment"), help="only models for this task")


def run(args: Namespace, console: Console) -> int:
    records = [describe(name) for name in list_models(args.task)]
    heads = ("name", "task", "input", "layers", "queries", "params", "AP", "T4 ms", "licence", "weights")
    console.table(heads, [_row(r) for r in records])
    console.say(
        "input: height x width; AP: COCO val2017, of boxes (detect) or masks (segment), and T4 latency (TensorRT fp16) as published"
    )
    console.finish({"models": records})
    return 0


def describe(name: str) -> dict[str, Any]:
    """Configuration, published figures (None where nothing was published) and where the weights are."""
    config, entry = variant(name), entry_for(name)
    cached = any((folder / entry.filename).is_file() for folder in (cache_folder(), *official_cache_folders()))
    return {
        "name": name,
        "task": config.task,
        "size_hw": list(config.size_hw),
        "decoder_layers": config.decoder_layers,
        "queries": config.queries,
        "params_m": entry.params_m,
        "ap": entry.ap,
        "ap50": entry.ap50,
        "t4_ms": entry.t4_ms,
        "license": entry.license,
        "url": entry.url,
        "bundled": entry.bundled,
        "cached": cached,
    }


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    figures = ("-" if record[key] is None else f"{record[key]}" for key in ("params_m", "ap", "t4_ms"))
    params, ap, t4_ms = figures
    where = "bundled" if record["bundled"] else "bring your file" if record["url"] is None else "cached" if record["cached"] else "download"
    size = f"{record['size_hw'][0]}x{record['size_hw'][1]}"
    params = params if params == "-" else f"{params} M"
    layers, queries = str(record["decoder_layers"]), str(record["queries"])
    return record["name"], record["task"], size, layers, queries, params, ap, t4_ms, record["license"], where
