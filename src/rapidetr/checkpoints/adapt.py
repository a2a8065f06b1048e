"""Making weights of one configuration fit another: class head, queries, position grid. Never silent: notes say what was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import CheckpointError
from rapidetr.model.vit import resize_positions

_SAME = (
    "patch_size", "vit_width", "vit_depth", "vit_heads", "registers", "stages", "levels", "width", "points", "decoder_layers",
    "segmentation", "in_channels",
)  # fmt: skip


def adapt(state: Mapping[str, Tensor], have: ModelConfig, want: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict (our names) of `have` cut or extended to `want`, and notes on every change.

    Class rows are repeated cyclically or cut, queries are cut within each group, the position grid is resized bicubically
    (the official rules). Anything else that differs is refused with CheckpointError.
    """
    odd = [f"{name} {getattr(have, name)} -> {getattr(want, name)}" for name in _SAME if getattr(have, name) != getattr(want, name)]
    if odd:
        raise CheckpointError(f"these weights cannot become a {want.name}: {', '.join(odd)}; load them as {have.name}, or train anew")
    if want.groups > have.groups or want.queries > have.queries:
        raise CheckpointError(
            f"the file holds {have.groups} groups of {have.queries} queries; expected at least {want.groups} of {want.queries}; "
            f"ask for at most those it has (train: --groups {have.groups})"
        )
    adapted, notes = dict(state), []
    if want.class_rows != have.class_rows:
        rows = torch.arange(want.class_rows) % have.class_rows
        for name in [n for n in adapted if n.startswith("class_head.") or ".classes." in n]:
            adapted[name] = adapted[name][rows]
        how = "repeated cyclically" if want.class_rows > have.class_rows else "cut"
        notes.append(f"class head {how} from {have.class_rows} to {want.class_rows} rows")
    if (want.groups, want.queries) != (have.groups, have.queries):
        for name in ("query_boxes", "query_content"):
            by_group = adapted[name].unflatten(0, (have.groups, have.queries))
            adapted[name] = by_group[: want.groups, : want.queries].flatten(0, 1)
        surplus = tuple(f"proposals.groups.{g}." for g in range(want.groups, have.groups))
        adapted = {n: t for n, t in adapted.items() if not n.startswith(surplus)}
        notes.append(f"queries cut from {have.groups} groups of {have.queries} to {want.groups} of {want.queries}")
    if want.position_grid != have.position_grid:
        adapted["vit.positions"] = _resize_table(adapted["vit.positions"], have.position_grid, want.position_grid)
        notes.append(f"position grid resized from {have.position_grid} to {want.position_grid}")
    return adapted, notes


def drop_training_groups(state: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], ModelConfig]:
    """Only the query group that inference uses; about 12 % smaller, same answers, but no longer a good start for training."""
    slim = replace(config, groups=1)
    return adapt(state, config, slim)[0], slim


def _resize_table(table_1ND: Tensor, have: int, want: int) -> Tensor:
    grid = table_1ND[:, 1:].unflatten(1, (have, have)).permute(0, 3, 1, 2)
    resized = resize_positions(grid, (want, want)).flatten(2).transpose(1, 2)
    return torch.cat([table_1ND[:, :1], resized.to(table_1ND.dtype)], dim=1)
