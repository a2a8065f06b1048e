"""One optimizer step: forward with all query groups, losses, backward, clip, update, average."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rapidetr.criterion.criterion import Criterion, Losses, finite_images
from rapidetr.criterion.targets import Target
from rapidetr.data.batches import TrainBatch
from rapidetr.model.rfdetr import RfDetr
from rapidetr.training.distributed import World
from rapidetr.training.ema import Average
from rapidetr.training.optimizer import make_optimizer, set_rates
from rapidetr.training.precision import half_precision
from rapidetr.training.recipe import Recipe
from rapidetr.training.stages import Stage, enter


@dataclass(frozen=True)
class Outcome:
    """`losses` [terms] without gradient, mean over the forward passes; `culprits` are the pictures of a step that was skipped
    because its loss was no number; fp16 that ran over is skipped without."""

    losses: Tensor
    skipped: bool = False
    culprits: tuple[str, ...] = ()


class Learner:
    """The network while it learns, and all that changes with it: optimizer, loss scaler, average."""

    def __init__(self, network: RfDetr, recipe: Recipe, device: str, world: World) -> None:
        self.network, self.recipe, self.device, self.world = network.to(device).train(), recipe, device, world
        network.vit.checkpointing, network.vit.drop_path = recipe.checkpointing, recipe.drop_path
        self.criterion = make_criterion(recipe, network.config.class_rows)
        self.groups = network.config.groups
        self.optimizer: Optimizer = make_optimizer(network, recipe)
        self.average = Average(network) if recipe.ema_decay else None
        self.half = half_precision(recipe.precision, device)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=self.half == torch.float16)
        self.terms: list[str] = []  # names of Outcome.losses
        self.learning: list[nn.Parameter] = list(network.parameters())
        self.forward: nn.Module = network

    def enter(self, stage: Stage) -> None:
        """From here on only the parameters of `stage` change."""
        self.learning = enter(stage, self.network)
        self.forward = self.world.wrap(self.network)

    def fetch(self, batch: TrainBatch) -> TrainBatch:
        """The batch with its pixels on the device, where resizing is cheap."""
        return batch._replace(pixels=batch.pixels.to(self.device, non_blocking=True))

    def step(self, batches: Sequence[TrainBatch], factor: float) -> Outcome:
        """Learn from `batches` on the device, whose gradients are averaged, at `factor` times the rates.

        A step whose gradient is not finite is skipped: nothing changes.
        """
        self.network.train()
        set_rates(self.optimizer, factor)
        losses = torch.stack([self._accumulate(batch, len(batches), i + 1 == len(batches)) for i, batch in enumerate(batches)])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.learning, self.recipe.clip or torch.inf)
        finite = bool(norm.isfinite())  # the one wait for the device; equal on all processes, as their gradients are
        if finite:
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(self.network, self.recipe)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite or self._overflow(losses):
            return Outcome(losses.mean(0), skipped=not finite)
        everybody = tuple(name for batch in batches for name in batch.sources)
        culprits = self.world.join_names(self._blame(batches)) or self.world.join_names(everybody)
        return Outcome(losses.mean(0), skipped=True, culprits=culprits)

    def _accumulate(self, batch: TrainBatch, passes: int, last: bool) -> Tensor:
        """Adds the gradient of one forward pass; its total and terms, detached."""
        with nullcontext() if last else self.world.without_exchange(self.forward):
            losses = self._losses(batch)
            self.scaler.scale(losses.total / passes).backward()
        self.terms = ["loss", *losses.terms]
        return torch.stack([losses.total.detach(), *losses.terms.values()])

    def _losses(self, batch: TrainBatch) -> Losses:
        with torch.autocast(torch.device(self.device).type, self.half, enabled=self.half is not None):
            output = self.forward(batch.pixels, self.groups, every_layer=True)
        count = self.world.mean(sum(len(target.labels) for target in batch.targets), self.device)
        return self.criterion(output, targets_of(batch), groups=self.groups, normalizer=count)

    def _overflow(self, losses: Tensor) -> bool:
        """Whether fp16 ran over with good losses, which the scaler repairs by itself; equal on all processes."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1 and self.world.all_true(bool(losses.isfinite().all()), self.device)

    @torch.no_grad()
    def _blame(self, batches: Sequence[TrainBatch]) -> list[str]:
        """This process's pictures whose answers or boxes are no numbers."""
        names = []
        for batch in batches:
            output = self.network(batch.pixels, self.groups, every_layer=True)
            names += [name for name, good in zip(batch.sources, finite_images(output, targets_of(batch)), strict=True) if not good]
        return names


def make_criterion(recipe: Recipe, head_rows: int) -> Criterion:
    """The losses; rows of the head without a class weigh 1."""
    told = tuple(float(weight) for weight in recipe.class_weights or ())  # `auto` has become numbers before
    weights = told and (*told, *(1.0,) * (head_rows - len(told)))
    parts = (recipe.ce, recipe.bbox, recipe.giou, recipe.mask_ce, recipe.mask_dice)
    return Criterion(recipe.classification, *parts, weights or None, recipe.sum_group_losses)


def targets_of(batch: TrainBatch) -> list[Target]:
    return [Target(*truth) for truth in batch.targets]
