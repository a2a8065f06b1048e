"""The fill rule behind the golden values: every parameter, picture and target is a function of its name.

seed(text) = first 8 bytes of SHA-256(text), big endian, modulo 2^63; numbers = PCG64(seed).standard_normal; a parameter is
float32(offset + scale * numbers), with offset and scale from the first row of RULES that fits its official name.
"""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np

ENCODER_CLASSES = "transformer.enc_out_class_embed."
# (pattern of the official name, number of dimensions or None, offset, scale); scale None: gain / sqrt(inputs of a row)
RULES: tuple[tuple[str, int | None, float, float | None, float], ...] = (
    (r".*(lambda1|layer_scale).*", None, 0.5, 0.1, 1),
    (r".*position_embeddings", None, 0.0, 0.5, 1),
    (r".*\b(cls_token|mask_token|register_tokens)", None, 0.0, 0.5, 1),
    (r"refpoint_embed\.weight", None, 0.0, 0.3, 1),
    (r"query_feat\.weight", None, 0.0, 1.0, 1),
    (r".*\b(keypoint_pos_embed|queries|register_ref_points)", None, 0.0, 0.5, 1),
    (r".*sampling_offsets\.bias", None, 0.0, 1.0, 1),
    (r"(class_embed|transformer\.enc_out_class_embed)\..*bias", None, -2.0, 0.5, 1),
    (r"transformer\.enc_out_class_embed\..*", 2, 0.0, None, 4),
    (r".*sampling_offsets\.weight", 2, 0.0, None, 0.25),
    (r"segmentation_head\.query_features_proj\.weight", 2, 0.0, None, 0.1),
    (r".*attention\.(query|key)\.weight", 2, 0.0, None, 1.5),
    (r".*bbox_embed\..*layers\.2\.weight", 2, 0.0, None, 2),
    (r".*", 2, 0.0, None, 1),
    (r".*\bweight", None, 1.0, 0.1, 1),
    (r".*", None, 0.0, 0.1, 1),
)


def draw(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 2**63))


def parameter(name: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """float32 values of the parameter with this official name; the salt moves the encoder's class heads only."""
    fits = (row for row in RULES if re.fullmatch(row[0], name) and (row[1] is None or len(shape) >= row[1]))
    _, _, offset, scale, gain = next(fits)
    scale = gain / math.sqrt(math.prod(shape[1:])) if scale is None else scale
    text = f"{name}|{salt}" if name.startswith(ENCODER_CLASSES) else name
    return (offset + scale * draw(text).standard_normal(shape)).astype(np.float32)


def image(index: int, height: int, width: int) -> np.ndarray:
    """Network input [3, H, W], already normalised: blocks of 8 x 8 and a quarter of fine noise."""
    coarse = draw(f"image|{index}|coarse").standard_normal((3, -(-height // 8), -(-width // 8)))
    blocks = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return (blocks + 0.25 * draw(f"image|{index}|fine").standard_normal((3, height, width))).astype(np.float32)


def targets(index: int, count: int, num_classes: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Boxes (cx, cy, w, h in units of the picture), labels, and the ellipses inside the boxes as masks."""
    u = draw(f"target|{index}").random((count, 5))
    centre, size = 0.25 + 0.5 * u[:, :2], 0.1 + 0.35 * u[:, 2:4]
    y = ((np.arange(height) + 0.5) / height)[None, :, None] - centre[:, 1, None, None]
    x = ((np.arange(width) + 0.5) / width)[None, None, :] - centre[:, 0, None, None]
    inside = (x / (size[:, 0, None, None] / 2)) ** 2 + (y / (size[:, 1, None, None] / 2)) ** 2 <= 1
    boxes = np.concatenate([centre, size], 1).astype(np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": np.floor(u[:, 4] * num_classes).astype(np.int64), "masks": inside}
