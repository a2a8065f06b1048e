"""A job in its folder: what it was asked, which shards are done, what failed.

manifest.json     the recipe, the model, the classes, counts, and the sha256 of inputs.jsonl
inputs.jsonl      a line for each shard: the pictures in it, as they were listed when the job was started
parts/            a result file for each shard
records/          a file for each shard: how many pictures, sha256 and size of its result file, and what failed
errors.jsonl      all that failed: image_id, source, message; written at the end of a run
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rapidetr.batch.inputs import Shard, list_shards
from rapidetr.batch.recipe import Model, Recipe
from rapidetr.batch.results import FORMATS, Row, decode_rows
from rapidetr.batch.store import Store
from rapidetr.core.errors import ConfigError, RapidetrError

SCHEMA = "rapidetr.batch/1"
MANIFEST, INPUTS, PARTS, RECORDS, ERRORS = "manifest.json", "inputs.jsonl", "parts", "records", "errors.jsonl"

# of a shard: number, state (loading, started, done), run, attempt; when done: count, sha256, bytes, detections, errors
Record = dict[str, Any]


def part_name(number: int, form: str) -> str:
    return f"{number:08d}.{form}"


def record_name(number: int) -> str:
    return f"{RECORDS}/{number:08d}.json"


@dataclass(frozen=True)
class Place:
    """Where a shard is described in inputs.jsonl: `length` bytes from `offset`."""

    number: int
    count: int
    offset: int
    length: int


@dataclass(frozen=True)
class Job:
    """`todo`: shards without a valid result; `done`: records of those that have one."""

    store: Store
    recipe: Recipe
    manifest: dict[str, Any]
    todo: list[Place]
    done: list[Record]

    @property
    def masks(self) -> bool:
        return bool(self.manifest["masks"])


def open_job(out: str, recipe: Recipe, model: Model, *, retry_failed: bool = False, verify: bool = False) -> Job:
    """A job started or gone on with. ConfigError where `out` belongs to another recipe.

    A shard is done where its record says so and the result file has the recorded size, with `verify` also the recorded sha256;
    `retry_failed` does those anew in which a picture failed.
    """
    if recipe.format not in FORMATS:
        raise ConfigError(f"format is {recipe.format!r}; expected {' or '.join(FORMATS)}")
    store = Store(out)
    manifest = _read_manifest(store, out)
    if manifest is None:
        manifest = _start(store, recipe, model)
    elif wrong := recipe.differences(manifest["recipe"]):
        raise ConfigError(f"{out}: was started with {'; '.join(wrong)}; go on with the same, or choose another --out")
    done = {r["number"]: r for r in read_records(store) if r["state"] == "done" and not (retry_failed and r["errors"])}
    sizes = store.sizes(PARTS)
    for number, record in list(done.items()):
        name = part_name(number, recipe.format)
        if sizes.get(name) != record["bytes"] or (verify and _sha256(store.read(f"{PARTS}/{name}")) != record["sha256"]):
            del done[number]
    todo = [place for place in _places(store, manifest, out) if place.number not in done]
    return Job(store, recipe, manifest, todo, [done[number] for number in sorted(done)])


def read_shard(store: Store, offset: int, length: int) -> Shard:
    return Shard.from_dict(json.loads(store.read(INPUTS, offset, offset + length)))


def read_record(store: Store, number: int) -> Record | None:
    try:
        return json.loads(store.read(record_name(number)))
    except FileNotFoundError:
        return None


def read_records(store: Store) -> list[Record]:
    """All there are, read many at once where the file system can; it would take *, ? and [ in a name for a pattern."""
    paths = [store.path(f"{RECORDS}/{name}") for name in sorted(store.sizes(RECORDS)) if name.endswith(".json")]
    if any(set("*?[") & set(path) for path in paths):
        return [json.loads(store.fs.cat_file(path)) for path in paths]
    return [json.loads(data) for data in store.fs.cat(paths).values()] if paths else []


def read_results(out: str) -> Iterator[Row]:
    """The rows of all pictures that are done, in the order of their ids; see `results.row_of`."""
    store = Store(out)
    manifest = _read_manifest(store, out)
    if manifest is None:
        raise ConfigError(f"{out}: has no {MANIFEST}; expected the folder of a batch job")
    form = manifest["recipe"]["format"]
    for record in read_records(store):
        if record["state"] == "done":
            yield from decode_rows(store.read(f"{PARTS}/{part_name(record['number'], form)}"), form)


def finish(job: Job, records: list[Record]) -> dict[str, Any]:
    """Write errors.jsonl; what was done, in numbers. `records`: of the shards done in this run."""
    if job.store.local:
        for folder in (PARTS, RECORDS):
            job.store.sweep(folder)
    whole = sorted([*job.done, *records], key=lambda record: record["number"])
    errors = [error for record in whole for error in record["errors"]]
    job.store.write(ERRORS, "".join(json.dumps(error) + "\n" for error in errors).encode())
    return {
        "out": job.store.url,
        "images": job.manifest["images"],
        "predicted": sum(record["count"] for record in whole) - len(errors),
        "failed": len(errors),
        "detections": sum(record["detections"] for record in whole),
        "shards": job.manifest["shards"],
        "shards_done_before": len(job.done),
        "images_this_run": sum(record["count"] for record in records),
    }


def _read_manifest(store: Store, out: str) -> dict[str, Any] | None:
    try:
        manifest = json.loads(store.read(MANIFEST))
    except FileNotFoundError:
        return None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ConfigError(f"{out}: holds a {MANIFEST} that is not of a batch job ({SCHEMA}); choose another --out")
    return manifest


def _start(store: Store, recipe: Recipe, model: Model) -> dict[str, Any]:
    """Write inputs.jsonl, and then manifest.json, with which the job exists."""
    images = shards = 0
    digest = hashlib.sha256()
    with store.writing(INPUTS) as file:
        for shard in list_shards(recipe.sources, recipe.shard_size, recipe.column, recipe.limit):
            line = (json.dumps(shard.to_dict()) + "\n").encode()
            digest.update(line)
            file.write(line)
            images, shards = images + shard.count, shards + 1
    manifest = {
        "schema": SCHEMA,
        "recipe": recipe.to_dict(),
        "model": model.source,
        "license": model.license,
        "masks": model.config.segmentation,
        "categories": [{"id": i, "name": n} for i, n in zip(model.labels.dataset_ids, model.labels.names, strict=True)],
        "images": images,
        "shards": shards,
        "inputs_sha256": digest.hexdigest(),
    }
    store.write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _places(store: Store, manifest: dict[str, Any], out: str) -> list[Place]:
    """Of all shards; RapidetrError where inputs.jsonl is not what the manifest promises."""
    places, offset, digest = [], 0, hashlib.sha256()
    with store.open(INPUTS) as file:
        for line in file:
            digest.update(line)
            record = json.loads(line)
            places.append(Place(record["number"], record["count"], offset, len(line)))
            offset += len(line)
    if digest.hexdigest() != manifest["inputs_sha256"]:
        raise RapidetrError(f"{out}: {INPUTS} was changed since the job was started; restore it, or choose another --out")
    return places


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
