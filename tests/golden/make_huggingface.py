"""Makes huggingface.npz: what Hugging Face transformers answers for folders that `export_hf` wrote.

    PYTHONPATH=src:tests/golden PYTHON tests/golden/make_huggingface.py     (an interpreter with transformers 5.23, torch, safetensors)

Networks are filled by the parity rule, pictures by that of `picture`. Loading must miss and ignore nothing. Masks are stored for
every eighth row and column, queries for every fifth, to stay small.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cases
import numpy as np
import torch

from rapidetr.core.config import VARIANTS, ModelConfig
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.detector import Detector

# an epsilon other than both defaults shows that it is read; a size other than the grid's, that positions are resized alike
CONFIGS: dict[str, ModelConfig] = {
    "pico": VARIANTS["pico"],
    "pico_eps": replace(VARIANTS["pico"], projector_eps=1e-2),
    "pico_size": replace(VARIANTS["pico"], size_hw=(224, 224)),
    "pico_windows": replace(VARIANTS["pico"], windows=3),
    "seg-pico": VARIANTS["seg-pico"],
}
LABELS = LabelSpace.contiguous([f"thing {i}" for i in range(8)], dataset_ids=range(10, 18))
FEED = Preprocessing(mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
QUERY, PIXEL = slice(None, None, 5), slice(None, None, 8)


def detector(name: str) -> Detector:
    return Detector.from_module(cases.network_of(CONFIGS[name], 1), LABELS, preprocessing=FEED, license="Apache-2.0")


def picture(name: str) -> torch.Tensor:
    """A normalized picture [1, 3, H, W], its patches of different brightness so that no two tokens score alike."""
    height, width = CONFIGS[name].size_hw
    draw = np.random.Generator(np.random.PCG64(5))
    blocks = draw.standard_normal((3, height // 16, width // 16)).repeat(16, axis=1).repeat(16, axis=2)
    return torch.from_numpy((blocks + 0.25 * draw.standard_normal((3, height, width)))[None].astype(np.float32))


def main() -> None:
    import transformers

    from rapidetr.deployment.export_hf import CLASSES, export_hf

    torch.set_num_threads(1)
    arrays = {"version": np.array(transformers.__version__)}
    for name in CONFIGS:
        ours = detector(name)
        with tempfile.TemporaryDirectory() as folder:
            export_hf(ours, Path(folder) / "hf")
            kind = getattr(transformers, CLASSES[ours.config.task])
            network, told = kind.from_pretrained(Path(folder) / "hf", output_loading_info=True)
            if any(told.values()):
                raise SystemExit(f"{name}: not all of the file fits: {told}")
            processor = transformers.RfDetrImageProcessor.from_pretrained(Path(folder) / "hf")
            prepared = processor(np.full((50, 70, 3), 128, np.uint8), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found, wanted = network.eval()(picture(name)), ours.model(picture(name))
        arrays[f"{name}.prepared"] = prepared[0, :, 0, 0].numpy()
        arrays[f"{name}.names"] = np.array([network.config.id2label[i] for i in range(9)])
        arrays[f"{name}.logits"] = found.logits[:, QUERY].numpy()
        arrays[f"{name}.boxes"] = found.pred_boxes[:, QUERY].numpy()
        apart = [float((found.logits - wanted.logits).abs().max()), float((found.pred_boxes - wanted.boxes).abs().max())]
        if wanted.masks is not None:
            arrays[f"{name}.masks"] = found.pred_masks[:, QUERY, PIXEL, PIXEL].numpy()
            apart.append(float((found.pred_masks - wanted.masks).abs().max()))
        print(name, tuple(prepared.shape), "largest differences from ours:", apart)
    np.savez_compressed(Path(__file__).with_name("huggingface.npz"), **arrays)


if __name__ == "__main__":
    main()
