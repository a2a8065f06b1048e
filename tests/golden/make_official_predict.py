"""Makes official_predict.npz: what the official package's public `predict` returns for synthetic pictures.

    python tests/golden/make_official_predict.py NANO.pth SEG_NANO.pth     (an interpreter with rfdetr 1.11.2 and supervision)

The two files are parity-filled networks in official format; tests/compat/test_official_predict.py writes such files with its
`parity_checkpoint`. Run on one thread; boxes are float32, masks are stored as bits, for one picture only to stay under 2 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

# height, width, salt: of the first salts the one whose ranks, in the encoder and at the end, lie at least 3e-5 apart
PICTURES = {"nano": ((97, 131, 5), (480, 640, 14), (300, 200, 30)), "seg-nano": ((97, 131, 4), (300, 200, 1))}
CLASSES = {"nano": "RFDETRNano", "seg-nano": "RFDETRSegNano"}
THRESHOLD = {"nano": 0.66, "seg-nano": 0.6}
MASKS_OF = ("seg-nano", 0)


def picture(height: int, width: int, salt: int) -> np.ndarray:
    """RGB uint8 [H, W, 3]: blocks of 24 pixels and a quarter of fine noise, a function of size and salt."""
    draw = np.random.Generator(np.random.PCG64([height, width, salt]))
    blocks = draw.standard_normal((-(-height // 24), -(-width // 24), 3)).repeat(24, axis=0).repeat(24, axis=1)[:height, :width]
    return np.clip(128 + 50 * (blocks + 0.25 * draw.standard_normal((height, width, 3))), 0, 255).astype(np.uint8)


def main(files: list[str]) -> None:
    import rfdetr
    import torch

    torch.set_num_threads(1)
    arrays = {}
    for name, file in zip(CLASSES, files, strict=True):
        model = getattr(rfdetr, CLASSES[name])(pretrain_weights=file, device="cpu")
        for i, which in enumerate(PICTURES[name]):
            found = model.predict(picture(*which), threshold=THRESHOLD[name])
            key = f"{name}_{i}_"
            arrays |= {key + "xyxy": found.xyxy, key + "confidence": found.confidence, key + "class_id": found.class_id}
            arrays[key + "class_name"] = np.array(found.data["class_name"], str)
            if found.mask is not None:
                arrays[key + "mask_area"] = found.mask.sum((1, 2))
            if (name, i) == MASKS_OF:
                arrays[key + "mask_bits"] = np.packbits(found.mask, axis=-1)
            print(key, len(found), np.diff(found.confidence).max(initial=-1))
    np.savez_compressed(Path(__file__).with_name("official_predict.npz"), **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
