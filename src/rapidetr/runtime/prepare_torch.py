"""The torch twin of pixels/prepare.py, for engines that hold their input on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from rapidetr.core.outputs import Geometry
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels import prepare as pixels


def prepare(
    pictures: Sequence[np.ndarray],
    size_hw: tuple[int, int],
    preprocessing: Preprocessing,
    *,
    filter: str,
    geometries: Sequence[Geometry] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[torch.Tensor, tuple[Geometry, ...]]:
    """(float32 [B, C, *size_hw] on `device`, geometries); pictures travel as they are and are resized there.

    Pillow's antialiased filter has no equal in torch, so that one runs on the host.
    """
    if filter != "bilinear":
        batch = pixels.prepare(pictures, size_hw, preprocessing, filter=filter, geometries=geometries)
        return torch.from_numpy(batch.pixels).to(device), batch.geometries
    geometries = pixels.check_pictures(pictures, size_hw, filter, geometries)
    views = []
    for picture in pictures:
        view_HWC = torch.from_numpy(np.require(picture, requirements=["C", "W"])).to(device)
        view_CHW = view_HWC.permute(2, 0, 1).contiguous().float()
        if picture.dtype == np.uint8:
            view_CHW /= 255
        views.append(F.interpolate(view_CHW[None], size=size_hw, mode="bilinear", align_corners=False))
    x_BCHW = torch.cat(views)
    mean, std = (torch.from_numpy(v).to(device)[:, None, None] for v in pixels.normalization(preprocessing, x_BCHW.shape[1]))
    return (x_BCHW - mean) / std, geometries
