"""A folder for Hugging Face `transformers`: `RfDetrForObjectDetection.from_pretrained("<folder>")`, or `...ForInstanceSegmentation`.

The same weights under the port's names. Its config.json stores the epsilon of the projector's norms, so the numbers stay the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rapidetr.checkpoints.huggingface import KEY, PROJECTOR_EPS
from rapidetr.checkpoints.table import from_ours
from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.deployment.export_onnx import Exported
from rapidetr.deployment.package import Package, write_package
from rapidetr.model.build import build_empty
from rapidetr.model.rfdetr import RfDetr
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import load

CLASSES = {"detect": "RfDetrForObjectDetection", "segment": "RfDetrForInstanceSegmentation"}
BILINEAR = 2  # PIL.Image.Resampling, as the port's image processor numbers filters


def export_hf(source: Detector | str | Path, folder: str | Path, *, force: bool = False) -> Package:
    """model.safetensors, config.json and preprocessor_config.json in a new folder; atomic.

    `source`: a torch Detector, or what `rapidetr.load` takes. `shift` of the result says how far outputs move in a program that
    takes the port's default epsilon instead of the stored one. ConfigError for networks that the port cannot hold.
    """
    detector = source if isinstance(source, Detector) else load(source, device="cpu")
    config = detector.config.at(size_hw=detector.size_hw)
    _check(config)

    def fill(part: Path) -> tuple[Exported | None, tuple[str, ...]]:
        state = {n: t.detach().to("cpu", torch.float32) for n, t in detector.model.state_dict().items()}
        theirs = {name: t.contiguous().clone() for name, t in from_ours(state, config, "huggingface").items()}
        save_file(theirs, part / "model.safetensors", {"format": "pt"})
        for name, record in (("config", _config(config, detector)), ("preprocessor_config", _processor(config, detector))):
            (part / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return None, ()

    package = write_package(folder, "hf", fill, force=force)
    shift = _shift(detector.model, config)
    note = f"outputs are the same numbers with the epsilon as stored, layer_norm_eps {config.projector_eps:g} in config.json"
    if shift:
        told = ", ".join(f"{name} {value:.1e}" for name, value in shift.items())
        note += f"; the default of transformers, {PROJECTOR_EPS:g}, shifts them on pictures of noise by up to: {told}"
    return replace(package, notes=(note,), shift=shift)


def _check(config: ModelConfig) -> None:
    """The port knows one level and two kinds of layers; its windows are right for squares only."""
    odd = []
    if config.size_hw[0] != config.size_hw[1]:
        odd.append(f"size {config.size_hw[0]}x{config.size_hw[1]} (expected a square)")
    if config.levels != ("P4",):
        odd.append(f"levels {', '.join(config.levels)} (expected P4)")
    if config.registers or config.vit_mlp % config.vit_width:
        odd.append(f"an encoder with {config.registers} registers and an MLP of {config.vit_mlp} (expected 0, and a multiple of its width)")
    if not (config.box_reparam and config.lite_refine):
        odd.append("boxes in logit space or refined by every layer (expected neither)")
    if odd:
        raise ConfigError(f"transformers cannot hold this {config.name}: {'; '.join(odd)}; export it to another format")


def _config(config: ModelConfig, detector: Detector) -> dict[str, Any]:
    """config.json; `rapidetr` is ignored by transformers and holds what its own fields cannot."""
    backbone = {
        "model_type": "rf_detr_dinov2", "hidden_size": config.vit_width, "num_hidden_layers": config.vit_depth,
        "num_attention_heads": config.vit_heads, "mlp_ratio": config.vit_mlp // config.vit_width, "layer_norm_eps": 1e-6,
        "image_size": config.position_grid * config.patch_size, "patch_size": config.patch_size, "num_channels": config.in_channels,
        "num_windows": config.windows, "out_indices": list(config.stages), "out_features": [f"stage{i}" for i in config.stages],
        "window_block_indexes": [i for i in range(config.vit_depth) if i not in config.global_blocks],
    }  # fmt: skip
    names = _id2label(detector.labels)
    own = {"labels": detector.labels.to_dict(), "preprocessing": detector.preprocessing.to_dict(), "license": detector.license}
    return {
        "model_type": "rf_detr", "architectures": [CLASSES[config.task]], "backbone_config": backbone, "dtype": "float32",
        "d_model": config.width, "decoder_layers": config.decoder_layers, "decoder_ffn_dim": config.decoder_ffn,
        "decoder_self_attention_heads": config.self_heads, "decoder_cross_attention_heads": config.cross_heads,
        "decoder_n_points": config.points, "num_queries": config.queries, "group_detr": config.groups,
        "layer_norm_eps": config.projector_eps, "intermediate_size": 4 * config.width, "mask_downsample_ratio": config.mask_stride,
        "id2label": names, "label2id": {name: int(row) for row, name in names.items()}, KEY: own,
    }  # fmt: skip


def _id2label(labels: LabelSpace) -> dict[str, str]:
    """A name for every row of the class head; rows without a class have the port's word for an unnamed one."""
    return {str(row): f"LABEL_{row}" if index < 0 else labels.names[index] for row, index in enumerate(labels.class_of_row)}


def _processor(config: ModelConfig, detector: Detector) -> dict[str, Any]:
    feed = detector.preprocessing
    return {
        "image_processor_type": "RfDetrImageProcessor", "do_resize": True, "resample": BILINEAR, "do_pad": False, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(feed.mean), "image_std": list(feed.std),
        "size": {"height": config.size_hw[0], "width": config.size_hw[1]},
    }  # fmt: skip


def _shift(network: RfDetr, config: ModelConfig) -> dict[str, float]:
    """Largest differences of outputs between the stored epsilon and the port's default, of queries that start from the same tokens;
    {} where they are one.
    """
    if config.projector_eps == PROJECTOR_EPS:
        return {}
    other = build_empty(replace(network.config, projector_eps=PROJECTOR_EPS)).eval()
    state = {n: t.detach().to("cpu", torch.float32) for n, t in network.state_dict().items()}
    plain = build_empty(network.config).eval()
    images = torch.randn(2, config.in_channels, *config.size_hw, generator=torch.Generator().manual_seed(0))
    answers, tokens = [], []
    for one in (plain, other):
        one.load_state_dict(state, assign=True)
        seen: list[Tensor] = []
        one.proposals.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.tokens))
        with torch.no_grad():
            answers.append(one(images))
        tokens += seen
    same = tokens[0] == tokens[1]
    pairs = {"logits": (answers[0].logits, answers[1].logits), "boxes": (answers[0].boxes, answers[1].boxes)}
    if answers[0].masks is not None and answers[1].masks is not None:
        pairs["masks"] = (answers[0].masks, answers[1].masks)
    return {name: float((a[:, : same.shape[1]] - b[:, : same.shape[1]])[same].abs().max()) for name, (a, b) in pairs.items()}
