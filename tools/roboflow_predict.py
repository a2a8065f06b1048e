"""What Roboflow's client finds with one package; run by the interpreter that tools/roboflow_env.sh makes.

roboflow_predict.py PACKAGE PICTURES.npz THRESHOLD FOUND.npz     pictures: RGB uint8 [H, W, 3], by name
"""

from __future__ import annotations

import sys
from importlib.metadata import version

import numpy as np
import torch
from inference_models import AutoModel


def main(package: str, pictures: str, threshold: str, target: str) -> None:
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(package, device=torch.device("cpu"), onnx_execution_providers=["CPUExecutionProvider"])
    found = {"class_names": np.array(model.class_names), "version": np.array(version("inference-models"))}
    with np.load(pictures) as arrays:
        for name, pixels in arrays.items():
            (one,) = model.infer(pixels, confidence=float(threshold), input_color_format="rgb")
            for field in ("xyxy", "class_id", "confidence", "mask"):
                if hasattr(one, field):
                    found[f"{name}.{field}"] = getattr(one, field).numpy()
    np.savez_compressed(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
