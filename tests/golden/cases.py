"""The networks behind the golden files: configuration, weights and inputs of each case."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity_fill
import torch

from rapidetr.checkpoints.table import from_ours, to_ours
from rapidetr.core.config import VARIANTS, ModelConfig
from rapidetr.model.build import build_empty
from rapidetr.model.rfdetr import RfDetr

HERE = Path(__file__).parent
INDEX = json.loads((HERE / "golden_index.json").read_text())
BIG = ("nano_384", "base_560", "medium_576", "seg-nano_312")
TINY = ("tiny_det", "tiny_multi", "tiny_logit", "tiny_seg", "tiny_border", "tiny_few")
TRAINED = ("tiny_det", "tiny_multi", "tiny_logit", "tiny_seg", "tiny_few")
_FIELDS = {
    "hidden_dim": "width", "sa_nheads": "self_heads", "ca_nheads": "cross_heads", "dec_n_points": "points",
    "dec_layers": "decoder_layers", "num_queries": "queries", "group_detr": "groups", "patch_size": "patch_size",
    "num_windows": "windows", "positional_encoding_size": "position_grid", "out_feature_indexes": "stages",
    "projector_scale": "levels", "bbox_reparam": "box_reparam", "lite_refpoint_refine": "lite_refine",
}  # fmt: skip


def load(case: str) -> dict[str, np.ndarray]:
    """The golden arrays; a missing file is a failure, not a skip."""
    with np.load(HERE / f"golden_{case}.npz") as arrays:
        return dict(arrays)


def config_of(case: str) -> ModelConfig:
    record = INDEX[case]
    name = record["class"].removeprefix("RFDETR").removesuffix("Config").lower().replace("seg", "seg-")
    changes = {_FIELDS[k]: v for k, v in record["overrides"].items() if k in _FIELDS}
    if "resolution" in record["overrides"]:
        changes["size_hw"] = (record["overrides"]["resolution"],) * 2
    if "num_classes" in record["overrides"]:
        changes["class_rows"] = record["overrides"]["num_classes"] + 1
    if record["vit"]:
        width = record["vit"]["hidden_size"]
        changes |= {"vit_width": width, "vit_depth": record["vit"]["num_hidden_layers"], "vit_mlp": 4 * width}
        changes["vit_heads"] = record["vit"]["num_attention_heads"]
    return replace(VARIANTS[name], **changes)


def network_of(config: ModelConfig, salt: int = 0) -> RfDetr:
    """The network with every parameter filled by the rule."""
    network = build_empty(config)
    shapes = {name: p.shape for name, p in network.state_dict().items()}
    theirs = {name: tuple(t.shape) for name, t in from_ours(network.state_dict(), config).items()}
    state = {name: torch.from_numpy(parity_fill.parameter(name, shape, salt)) for name, shape in theirs.items()}
    network.load_state_dict(to_ours(state, config, shapes), assign=True)
    network.vit.mask_token.requires_grad_(False)
    return network.eval()


def network(case: str) -> RfDetr:
    return network_of(config_of(case), INDEX[case]["enc_salt"])


def shallow(case: str) -> RfDetr:
    """Of two blocks and one decoder layer: for what is written around a graph, where tracing the whole takes half a minute."""
    return network_of(replace(config_of(case), vit_depth=2, stages=(1, 2), decoder_layers=1))


def images(case: str) -> torch.Tensor:
    sizes = INDEX[case]["sizes"]
    return torch.stack([torch.from_numpy(parity_fill.image(i, h, w)) for i, (h, w) in enumerate(sizes)])
