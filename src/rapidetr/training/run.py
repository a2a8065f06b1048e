"""`rapidetr.train`: from a dataset to a run folder with its best detector; goes on by itself where a run was cut off."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

import rapidetr
from rapidetr.checkpoints.file import Checkpoint, open_checkpoint, save_checkpoint
from rapidetr.checkpoints.licenses import require_license
from rapidetr.core.errors import ConfigError, DatasetError
from rapidetr.core.labels import LabelSpace
from rapidetr.data.batches import Loader
from rapidetr.data.mixing import Transform
from rapidetr.data.read import find_splits, read_dataset
from rapidetr.data.records import Dataset
from rapidetr.data.sampling import EpochOrder, class_weights, repeat_factors
from rapidetr.data.sources import Items
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load, pick_device
from rapidetr.training.distributed import World, join
from rapidetr.training.loggers import check_loggers
from rapidetr.training.loop import Course, Place, fit, input_sizes, state_file
from rapidetr.training.precision import fast_products, precision_note
from rapidetr.training.recipe import Recipe, differences
from rapidetr.training.records import deltas, write_json
from rapidetr.training.reporter import Reporter
from rapidetr.training.start import Model, describe_model, make_start
from rapidetr.training.state import Progress


@dataclass(frozen=True)
class Run:
    """What training left in `folder`: `record` is record.json, `best` the detector of best.safetensors."""

    folder: Path
    record: dict[str, Any]
    accept_license: str | None = None

    @cached_property
    def best(self) -> Detector:
        return load(self.folder / "best.safetensors", accept_license=self.accept_license)


def train(
    data: str | Path | Dataset | Items,
    *,
    model: Model = "nano",
    out: str | Path = "runs/train",
    valid: Dataset | None = None,
    labels: LabelSpace | None = None,
    format: str | None = None,
    custom: Transform | None = None,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 0,
    cache_bytes: int = 0,
    save_minutes: float = 10.0,
    fresh: bool = False,
    class_rows: str = "by-name",
    accept_license: str | None = None,
    loggers: str | Iterable[str] = (),
    report: bool = True,
    say: Callable[[str], None] = print,
    on_step: Callable[[Place], None] | None = None,
    now: Callable[[], float] = time.monotonic,
    **recipe: Any,
) -> Run:
    """The finished run in the folder `out`; further keywords are fields of Recipe, such as epochs, batch_size, lr, stages, seed.

    `data`: a folder that `read_dataset` knows (its valid split is scored, else its test split), a Dataset, or any map-style
    torch dataset together with `labels` (data/sources.py says what its items are); `valid`, a Dataset, is what to score in the
    last two cases. `format`: coco, yolo or voc, where a folder holds more than one. `custom`: a callable (sample, rng) -> sample
    after all other transforms of a training picture (data/augment.py has such). `model`: a name, a checkpoint file, a Detector,
    or with weights="random" also a ModelConfig. The same `out` and recipe go on where they were stopped; ConfigError for another
    recipe. `fresh` starts anew and keeps the old run as out.bak-1, -2, ... `workers` make batches ahead; `save_minutes` bounds
    the work that a crash can lose. `class_rows` says how the head is made for the dataset's classes (training/start.py). Weights
    under PML-1.0 need accept_license="PML-1.0". Started by torchrun, all processes train one model together.

    `loggers`: of tensorboard, wandb and mlflow. `report` draws batches, curves and report.html. `say` gets lines for people,
    `on_step` the Place after every step.
    """
    chosen, kinds = Recipe.from_dict(recipe), check_loggers(loggers)
    folder = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()  # a lock is called by its name
    if threads is not None:
        torch.set_num_threads(threads)
    with join(pick_device(device)) as (world, place):
        quiet: Callable[[str], None] = say if world.first else _silence
        parts = _read(data, valid, labels, format, custom, quiet)
        chosen = _weighed(chosen, parts)
        with _owned(folder) if world.first else nullcontext():
            plan = {"recipe": chosen.to_dict(), "model": describe_model(model), "data": parts.describe()}
            if world.first:
                _open_folder(folder, plan, fresh, quiet)
            world.from_first(None)  # the folder is ready
            done = _finished(folder)
            if done is not None:
                quiet(f"{folder}: this run is finished ({_summary(done)}); fresh=True starts anew")
                return Run(folder, done, accept_license)
            note = precision_note(chosen.precision, place)
            if note is not None and not (folder / "baseline.safetensors").exists():
                quiet(note)
            if world.first:
                _keep_start(folder / "baseline.safetensors", model, parts.labels, chosen, class_rows, accept_license, quiet)
            world.from_first(None)  # the baseline is written
            start = open_checkpoint(folder / "baseline.safetensors")
            require_license(str(folder), start.license, accept_license)
            reporter = Reporter(folder, start, plan, quiet, report and world.first, kinds if world.first else ())
            course = _prepare(chosen, start, parts, folder, world, place, workers, cache_bytes, quiet, reporter)
            course.save_minutes, course.now = save_minutes, now
            course.on_step = on_step if world.first else None
            try:
                with fast_products(place):
                    progress = fit(course)
            finally:
                reporter.close()
            record = _describe(course, progress, plan)
            reporter.end(record, parts.valid, partial(load, folder / "best.safetensors", device=place, accept_license=accept_license))
            if world.first:
                write_json(folder / "record.json", record)
            quiet(f"{folder}: finished, {_summary(record)}")
            world.from_first(None)  # the record is written
        return Run(folder, record, accept_license)


@dataclass(frozen=True)
class _Parts:
    train: Dataset | Items
    valid: Dataset | None
    labels: LabelSpace
    custom: Transform | None

    def describe(self) -> dict[str, Any]:
        """What must not change between two sessions of a run; a folder may be moved."""
        facts = {"images": len(self.train), "valid": len(self.valid) if self.valid else 0, "classes": list(self.labels.names)}
        if self.custom is not None:
            kind = self.custom if hasattr(self.custom, "__qualname__") else type(self.custom)
            facts["custom"] = f"{kind.__module__}.{kind.__qualname__}"
        return facts


def _read(
    data: str | Path | Dataset | Items,
    valid: Dataset | None,
    labels: LabelSpace | None,
    format: str | None,
    custom: Transform | None,
    say: Callable[[str], None],
) -> _Parts:
    if not (valid is None or isinstance(valid, Dataset)):
        raise ConfigError(f"valid is of type {type(valid).__name__}; expected a Dataset, such as read_dataset returns")
    if not isinstance(data, str | Path):
        own = data.labels if isinstance(data, Dataset) else labels
        if own is None:
            raise ConfigError("labels are missing: a torch dataset does not say what its classes are called; pass labels=LabelSpace...")
        return _Parts(data, valid, own, custom)
    dataset = read_dataset(data, "train", format=format)
    if not dataset.images:
        raise DatasetError(f"{data}: its train split has no images; expected at least one, look with: rapidetr doctor {data}")
    if not dataset.class_counts.sum():
        first = dataset.images[0]
        raise DatasetError(
            f"{data}: its train split has {len(dataset)} images and no object, so there is nothing to learn; "
            f"objects of {first.path} were looked for in {first.file}"
        )
    scored = next((name for name in ("valid", "test") if name in find_splits(data, format=format)), None)
    if valid is None and scored is None:
        say(f"{data}: has no valid split; nothing is scored, the last weights count as the best")
    elif valid is None:
        valid = read_dataset(data, str(scored), format=format)
        say(f"{data}: {len(dataset)} pictures to learn from, {len(valid)} of the {scored} split to score")
    return _Parts(dataset, valid, dataset.labels, custom)


def _weighed(recipe: Recipe, parts: _Parts) -> Recipe:
    """The recipe with `auto` class weights as numbers, if they and all else that asks for a Dataset can be had from this one."""
    counted, weights = isinstance(parts.train, Dataset), recipe.class_weights
    if not counted and (recipe.balance or weights == "auto"):
        raise ConfigError(f"balance and automatic class weights count objects; expected a Dataset, not a {type(parts.train).__name__}")
    if weights == "auto" and isinstance(parts.train, Dataset):
        return replace(recipe, class_weights=tuple(round(w, 4) for w in class_weights(parts.train.class_counts).tolist()))
    if weights is not None and len(weights) != len(parts.labels):
        names = ", ".join(parts.labels.names)
        raise ConfigError(f"{len(weights)} class weights; expected one for each of {len(parts.labels)} classes: {names}")
    return recipe


@contextmanager
def _owned(folder: Path) -> Any:
    """Only one process may write into a run; the lock falls with the process that holds it."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise ConfigError(f"{folder}: another process trains here; wait for it, or choose another folder") from None


def _open_folder(folder: Path, plan: dict[str, Any], fresh: bool, say: Callable[[str], None]) -> None:
    """An empty folder gets the recipe; one with the same recipe goes on; `fresh` moves a run that is there aside."""
    file = folder / "recipe.json"
    if fresh and file.exists():
        aside = next(p for n in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.bak-{n}")).exists())
        folder.rename(aside)
        say(f"{folder}: the old run is kept as {aside}")
    for left in (*folder.glob(".*.part"), *state_file(folder).parent.glob(".*.part")):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    if state_file(folder).exists() or (folder / "record.json").exists():
        old = json.loads(file.read_text("utf-8"))
        begun = {**Recipe().to_dict(), **old["recipe"]}  # fields of later releases had their defaults
        changed = [*differences(begun, plan["recipe"]), *differences({**old, "recipe": 0}, {**plan, "recipe": 0})]
        if changed:
            raise ConfigError(f"{folder}: was begun with another recipe: {', '.join(changed)}; go on with the old one, or use fresh=True")
    elif folder.exists() and not file.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds other files and no run; name an empty or a new folder")
    else:  # new, or a start that failed before there was anything to keep
        (folder / "baseline.safetensors").unlink(missing_ok=True)
        write_json(file, plan)


def _finished(folder: Path) -> dict[str, Any] | None:
    file = folder / "record.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def _keep_start(
    file: Path, model: Model, classes: LabelSpace, recipe: Recipe, class_rows: str, accept_license: str | None, say: Callable[[str], None]
) -> None:
    """The starting model, kept as baseline.safetensors, if it is not there yet."""
    if file.exists():
        return
    labels = LabelSpace.contiguous(classes.names, dataset_ids=classes.dataset_ids)
    start = make_start(model, labels, recipe, class_rows=class_rows, accept_license=accept_license)
    save_checkpoint(start, file)
    for note in start.notes:
        say(note)


def _prepare(
    recipe: Recipe,
    start: Checkpoint,
    parts: _Parts,
    folder: Path,
    world: World,
    device: str,
    workers: int,
    cache_bytes: int,
    say: Callable[[str], None],
    reporter: Reporter,
) -> Course:
    """The batches, and all else that a run needs."""
    world.check(recipe.batch_size)
    if start.config.segmentation and isinstance(parts.train, Dataset) and not parts.train.has_outlines:
        raise ConfigError("the train split has boxes alone; masks need outlines: add them, or train a detection model")
    repeats = repeat_factors(parts.train.images, recipe.balance) if recipe.balance and isinstance(parts.train, Dataset) else None
    order = EpochOrder(len(parts.train), recipe.batch_size // world.size, recipe.accumulate, world.size, recipe.seed, repeats)
    loader = Loader(
        parts.train,
        order,
        input_sizes(start, recipe)[-1],
        start.preprocessing,
        labels=start.labels,
        transforms=recipe.augment,
        custom=parts.custom,
        masks=start.config.segmentation,
        rank=world.rank,
        workers=workers,
        cache_bytes=cache_bytes,
        pin=device.startswith("cuda"),
    )
    return Course(recipe, start, loader, parts.valid, folder, world, device, say, reporter)


def _describe(course: Course, progress: Progress, plan: dict[str, Any]) -> dict[str, Any]:
    """record.json: what was done, what came out, and how much better than the untouched start that is."""
    return {
        **plan,
        "config": course.start.config.to_dict(),
        "start": course.start.provenance,
        "baseline": progress.baseline,
        "best": progress.best,
        "gain": deltas(progress.baseline, progress.best) if progress.baseline else None,
        "epochs": progress.epoch,
        "stopped_early": progress.stopped and progress.epoch < course.epochs,
        "steps": progress.step,
        "skipped": progress.skipped,
        "hours": round(progress.seconds / 3600, 4),
        "environment": {
            "rapidetr": rapidetr.__version__, "torch": torch.__version__, "python": platform.python_version(),
            "device": torch.cuda.get_device_name(course.device) if course.device.startswith("cuda") else platform.machine(),
            "threads": torch.get_num_threads(), "processes": course.world.size,
        },
        "history": progress.history,
    }  # fmt: skip


def _summary(record: dict[str, Any]) -> str:
    best = record["best"]
    score = f"AP {best['AP']:.3f} in epoch {best['epoch'] + 1} ({best['weights']} weights)" if record["baseline"] else "nothing scored"
    return f"{record['epochs']} epochs, {score}"


def _silence(line: str) -> None:
    """What the other processes say."""
