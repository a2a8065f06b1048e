"""The whole story of a run, from top to bottom.

    starting model → baseline → for every stage: for every epoch: steps → scores → best? stop? → state → the best detector

What a run is at any moment is in `Progress` and `Learner`; both are saved whole, so that a killed run goes on as if nothing
had happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rapidetr.checkpoints.file import Checkpoint, open_checkpoint, save_checkpoint
from rapidetr.core.errors import ConfigError, NotFinite, RapidetrError
from rapidetr.data.batches import Loader
from rapidetr.data.records import Dataset
from rapidetr.data.sampling import multi_scale_sizes, size_of_step
from rapidetr.evaluation.evaluate import find, score_shares
from rapidetr.model.rfdetr import RfDetr
from rapidetr.runtime.detector import Detector
from rapidetr.training.distributed import World
from rapidetr.training.recipe import Recipe
from rapidetr.training.records import describe_score, epoch_head, epoch_line, write_metrics
from rapidetr.training.reporter import Reporter
from rapidetr.training.schedule import rate_factor
from rapidetr.training.stages import Stage, parse_stages, table
from rapidetr.training.state import Progress, load_state, save_state
from rapidetr.training.step import Learner, Outcome

PENDING = "last/best"  # weights that a saved state does not know of yet
ASK_EVERY = 20  # steps between two looks at the clock where several processes must agree


class Place(NamedTuple):
    """Where a run is after a step: `done` of `total` pictures of an epoch, counted from 0, and the loss of that step."""

    epoch: int
    epochs: int
    done: int
    total: int
    loss: float


@dataclass
class Course:
    """All that a run needs and that does not change while it runs."""

    recipe: Recipe
    start: Checkpoint
    loader: Loader
    valid: Dataset | None  # scored after every epoch; without it the last weights are the best
    folder: Path
    world: World
    device: str
    say: Callable[[str], None]
    reporter: Reporter  # does nothing except in the first process
    on_step: Callable[[Place], None] | None = None  # as well
    save_minutes: float = 10.0
    say_seconds: float = 60.0
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        config, recipe = self.start.config, self.recipe
        self.stages = parse_stages(recipe.stages, recipe.epochs, config.vit_depth)
        self.epochs = self.stages[-1].stop
        self.sizes = input_sizes(self.start, recipe)
        self.steps_per_epoch = len(self.loader) // recipe.accumulate
        self.state_file = state_file(self.folder)


def state_file(folder: Path) -> Path:
    return folder / "last" / "state.safetensors"


def input_sizes(start: Checkpoint, recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) that steps choose from, the largest one last; batches are made at that one."""
    if not recipe.multi_scale:
        return (start.config.size_hw,)
    return multi_scale_sizes(start.config.divisor, start.config.size_hw, expanded=recipe.expanded_scales)


def fit(course: Course) -> Progress:
    """Trains until the last epoch or until there is no gain any more; going on where a state was saved.

    RapidetrError where not one evaluation gave numbers.
    """
    network = course.start.network()
    learner = Learner(network, course.recipe, course.device, course.world)
    seed_everything(course.recipe.seed + course.world.rank)
    if course.state_file.exists():
        progress = load_state(course.state_file, learner)
        settle_best(course, progress)
        course.say(f"going on at epoch {progress.epoch}, step {progress.step}")
    else:
        baseline = score(course, network, "baseline")
        if baseline is None:
            raise ConfigError(f"{course.folder}: the starting model does not answer with numbers; look at its weights")
        progress = Progress(baseline=baseline)
        save(course, learner, progress)
    course.reporter.begin(progress)
    for line in (*table(course.stages, network), epoch_head(network.config.segmentation)):
        course.say(line)
    for stage in course.stages:
        if stage.stop <= progress.epoch or progress.stopped:
            continue
        learner.enter(stage)
        while progress.epoch < stage.stop and not progress.stopped:
            learn_one_epoch(course, learner, progress, stage)
            finish_epoch(course, learner, progress)
            save(course, learner, progress)
            course.reporter.epoch(progress)
    if not progress.best:
        raise RapidetrError(f"{course.folder}: no evaluation gave numbers, so there is no best; start anew with a lower lr, or in float32")
    return progress


def learn_one_epoch(course: Course, learner: Learner, progress: Progress, stage: Stage) -> None:
    """The steps of an epoch, or what is left of it; a state is saved once in a while."""
    recipe, per_epoch = course.recipe, course.steps_per_epoch
    batches = course.loader.epoch(progress.epoch, progress.window * recipe.accumulate)
    began = saved = told = course.now()
    while window := list(islice(batches, recipe.accumulate)):
        course.reporter.batch(progress.step, window)
        size_hw = size_of_step(progress.step, course.sizes)
        factor = rate_factor(recipe, progress.step, per_epoch, course.epochs * per_epoch) * stage.factor
        outcome = learner.step([learner.fetch(batch).resized(size_hw) for batch in window], factor)
        note_step(course, progress, outcome)
        now = course.now()
        progress.seconds, began = progress.seconds + now - began, now
        if course.on_step is not None:
            images = recipe.batch_size * recipe.accumulate
            place = Place(progress.epoch, course.epochs, progress.window * images, per_epoch * images, float(outcome.losses[0]))
            course.on_step(place)
        elif course.say_seconds and now - told > course.say_seconds:
            told = now
            course.say(f"  epoch {progress.epoch}: step {progress.window} of {per_epoch}, loss {outcome.losses[0]:.3f}")
        if progress.window < per_epoch and time_to_save(course, progress, now - saved):
            save(course, learner, progress)
            saved = course.now()


def time_to_save(course: Course, progress: Progress, seconds: float) -> bool:
    """The first process decides; the others ask it now and then."""
    if course.world.size > 1 and progress.step % ASK_EVERY:
        return False
    return bool(course.world.from_first(seconds > 60 * course.save_minutes))


def note_step(course: Course, progress: Progress, outcome: Outcome) -> None:
    """Counts a step; RapidetrError after too many whose loss was no number. The state on disk stays the last good one."""
    progress.step, progress.window = progress.step + 1, progress.window + 1
    if not outcome.skipped:
        progress.totals = outcome.losses if progress.totals is None else progress.totals + outcome.losses
        progress.counted += 1
    if not outcome.culprits:
        return
    names = ", ".join(outcome.culprits)
    progress.skipped.append({"step": progress.step, "epoch": progress.epoch, "images": list(outcome.culprits)})
    course.say(f"step {progress.step} skipped: the loss is not a number, with {names}")
    if len(progress.skipped) > course.recipe.max_skipped:
        raise RapidetrError(
            f"{len(progress.skipped)} steps had a loss that is not a number (max_skipped {course.recipe.max_skipped}), the last one "
            f"with {names}; the last good state is {course.state_file}; look at these pictures, or start anew with a lower lr"
        )


def finish_epoch(course: Course, learner: Learner, progress: Progress) -> None:
    """Scores, the best weights so far, whether to stop; one more record in the history."""
    recipe, epoch = course.recipe, progress.epoch
    record: dict[str, Any] = {"epoch": epoch, "step": progress.step, "seconds": round(progress.seconds, 3)}
    record |= {"lr": max(group["lr"] for group in learner.optimizer.param_groups), "skipped": len(progress.skipped)}
    record |= mean_losses(course, learner, progress)
    last = epoch + 1 == course.epochs
    if (epoch + 1) % recipe.evaluate_every == 0 or last:
        networks = networks_to_score(learner, recipe)
        found = {kind: score(course, network, f"epoch {epoch}, {kind}") for kind, network in networks.items()}
        scores = {kind: figures for kind, figures in found.items() if figures is not None}
        record |= {kind: {n: v for n, v in figures.items() if n != "per_class"} for kind, figures in scores.items()}
        judge(course, progress, networks, scores)
    keep(course, learner.network, "last", {"epoch": epoch, "weights": "raw"})
    if learner.average is not None:
        keep(course, learner.average.network, "ema", {"epoch": epoch, "weights": "ema"})
    progress.history.append(record)
    progress.epoch, progress.window, progress.totals, progress.counted = epoch + 1, 0, None, 0
    course.say(epoch_line(record, course.epochs, progress.judge.best, course.start.config.segmentation))


def mean_losses(course: Course, learner: Learner, progress: Progress) -> dict[str, float]:
    """Mean of the total and of each term over this epoch's steps and all processes."""
    if progress.totals is None:
        return {}
    means = course.world.mean_of(progress.totals / progress.counted).tolist()
    return dict(zip(learner.terms, means, strict=True))


def networks_to_score(learner: Learner, recipe: Recipe) -> dict[str, RfDetr]:
    if learner.average is None:
        return {"raw": learner.network}
    both = {"raw": learner.network, "ema": learner.average.network}
    return both if recipe.watch == "max" else {recipe.watch: both[recipe.watch]}


def score(course: Course, network: RfDetr, what: str) -> dict[str, Any] | None:
    """AP and its kin of the network as a detector: every process predicts its share, the first scores them all and tells the others;
    {} without a dataset, None where the network answers with what is no number."""
    if course.valid is None:
        return {}
    start, world = course.start, course.world
    detector = Detector.from_module(network, start.labels, preprocessing=start.preprocessing, device=course.device)
    try:
        share = find(detector, course.valid, rank=world.rank, ranks=world.size)
    except NotFinite as problem:  # of one process; the others wait for its share
        course.say(f"{what}: not scored, {problem}")
        share = None
    shares, found = world.to_first(share), None
    if world.first and all(share is not None for share in shares):
        found = describe_score(score_shares(course.valid, shares, max_dets=course.recipe.max_dets), start.config.segmentation)
    return world.from_first(found)


def judge(course: Course, progress: Progress, networks: dict[str, RfDetr], scores: dict[str, dict[str, Any]]) -> None:
    """Keeps the weights if they are the best (`settle_best` makes them best.safetensors); decides whether to stop."""
    epochs = course.recipe.evaluate_every
    points = {kind: found.get("AP", float(progress.epoch)) for kind, found in scores.items()}  # without scores the latest is best
    if points and progress.judge.judge(progress.epoch, points):
        kind = progress.judge.best["weights"]
        progress.best = {**progress.judge.best, "AP": None, **scores[kind]}
        keep(course, networks[kind], PENDING, best_facts(progress))
    progress.stopped = bool(course.valid) and progress.judge.should_stop(course.recipe, epochs, points or {"none": 0.0})


def best_facts(progress: Progress) -> dict[str, Any]:
    return {k: progress.best[k] for k in ("epoch", "weights", "AP")}


def settle_best(course: Course, progress: Progress) -> None:
    """Puts the new best weights in place once the saved state knows of them; drops those of an epoch that was lost."""
    pending = course.folder / f"{PENDING}.safetensors"
    if not (course.world.first and pending.exists()):
        return
    facts = open_checkpoint(pending).provenance
    if progress.best and best_facts(progress).items() <= facts.items():
        os.replace(pending, course.folder / "best.safetensors")
    else:
        pending.unlink()


def keep(course: Course, network: RfDetr, name: str, provenance: dict[str, Any]) -> None:
    """Writes weights as a checkpoint that `rapidetr.load` opens."""
    if course.world.first:
        checkpoint = replace(course.start, state=network.state_dict(), provenance={**course.start.provenance, **provenance})
        save_checkpoint(checkpoint, course.folder / f"{name}.safetensors")


def save(course: Course, learner: Learner, progress: Progress) -> None:
    """The state first, then what people read; a crash between them is mended by the next save."""
    save_state(course.state_file, learner, progress)
    settle_best(course, progress)
    if course.world.first:
        write_metrics(course.folder, progress.history)


def seed_everything(seed: int) -> None:
    """All generators of this process; samples have their own, this is for points in masks and for users' code."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
