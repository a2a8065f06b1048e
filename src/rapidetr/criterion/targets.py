"""Ground truth of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rapidetr.core.errors import ConfigError


class Target(NamedTuple):
    """The n objects of one image, n may be 0; masks are of any size, their points are found relatively."""

    labels: Tensor  # [n] int64, rows of the class head
    boxes: Tensor  # [n, 4] centre x, centre y, width, height in units of the picture
    masks: Tensor | None = None  # [n, Hm, Wm] bool


class Objects(NamedTuple):
    """All objects of a batch in one row of T, image by image."""

    image: Tensor  # [T] int64
    labels: Tensor  # [T]
    boxes: Tensor  # [4, T]: coordinates first
    masks: list[Tensor | None]  # per image
    starts: list[int]  # image i owns rows starts[i] to starts[i + 1]


def pack(targets: Sequence[Target], like: Tensor) -> Objects:
    """Joins the targets of a batch on the device and in the dtype of `like` [B, ...]."""
    if len(targets) != len(like):
        raise ConfigError(f"{len(targets)} targets for a batch of {len(like)} images; give one for each image, empty where nothing is")
    starts = [0]
    for target in targets:
        starts.append(starts[-1] + len(target.labels))
    image = torch.tensor([i for i, target in enumerate(targets) for _ in range(len(target.labels))], dtype=torch.int64)
    boxes = torch.cat([target.boxes.reshape(-1, 4) for target in targets]).to(like).T.contiguous()
    labels = torch.cat([target.labels for target in targets]).to(like.device, torch.int64)
    masks = [None if target.masks is None else target.masks.to(like.device) for target in targets]
    return Objects(image.to(like.device), labels, boxes, masks, starts)
