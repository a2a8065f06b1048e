"""What the network returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FactoredMasks(NamedTuple):
    """Mask logits before the product: logits[b, q, y, x] = sum_c queries[b, q, c] * pixels[b, c, y, x] + bias.

    Training forms them for matched queries only, which is what keeps its memory small.
    """

    pixels: Tensor  # [B, d, h, w]
    queries: Tensor  # [B, Q, d]
    bias: Tensor  # [1]

    def dense(self) -> Tensor:
        """[B, Q, h, w]"""
        height, width = self.pixels.shape[-2:]
        return (self.queries @ self.pixels.flatten(2) + self.bias).unflatten(-1, (height, width))


class LayerOutput(NamedTuple):
    """Answer of one decoder layer, or of the encoder's proposals; groups are concatenated along Q, group by group."""

    logits: Tensor  # [B, Q, C]
    boxes: Tensor  # [B, Q, 4] centre x, centre y, width, height in units of the picture
    masks: FactoredMasks | None


class Output(NamedTuple):
    """logits [B, Q, C], boxes [B, Q, 4] and masks [B, Q, h, w] (or None) of the last decoder layer.

    `layers` and `proposals` are filled when every layer was asked for (training); `masks` then stays factored in the layers.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None
    layers: tuple[LayerOutput, ...] = ()
    proposals: LayerOutput | None = None
