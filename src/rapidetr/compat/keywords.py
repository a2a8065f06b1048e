"""Keywords of the official constructors: which are used, which must keep the network's value, which come later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import ConfigError, NotSupportedYet

# used by train() alone, with their official defaults
TRAINING: dict[str, Any] = {"amp": True, "freeze_encoder": False, "gradient_checkpointing": False}
USED = ("accept_license", "dec_layers", "device", "num_classes", "num_queries", "num_select", "pretrain_weights", "resolution")
# official defaults of what belongs to keypoints or to other ways of training, or is a label: kept as they are, or refused
LATER: dict[str, Any] = {
    "backbone_lora": False, "compile": False, "cuda_graphs": False, "fused_optimizer": True, "ia_bce_loss": True,
    "license": "Apache-2.0", "model_name": None, "postprocess_trace_alpha": 0.2,
    "dual_projector": False, "dual_projector_kp_only": False, "grouppose_keypoint_dim_downscale": 1, "inter_instance_kp_attn": False,
    "keypoint_cross_attn": True, "num_keypoints_per_class": [], "use_grouppose_keypoints": False,
}  # fmt: skip


def describe(config: ModelConfig, side: int) -> dict[str, Any]:
    """What the network is, in official field names; `side` is the input size in pixels that it runs at."""
    grid_follows_size = config.position_grid * config.patch_size == config.size_hw[0]
    return {
        "bbox_reparam": config.box_reparam,
        "ca_nheads": config.cross_heads,
        "dec_n_points": config.points,
        "encoder": f"dinov2_{'registers_' if config.registers else ''}windowed_{'base' if config.vit_width == 768 else 'small'}",
        "group_detr": config.groups,
        "hidden_dim": config.width,
        "layer_norm": True,
        "lite_refpoint_refine": config.lite_refine,
        "mask_downsample_ratio": config.mask_stride,
        "num_channels": config.in_channels,
        "num_decoder_registers": 0,
        "num_windows": config.windows,
        "out_feature_indexes": list(config.stages),
        "patch_size": config.patch_size,
        "positional_encoding_size": side // config.patch_size if grid_follows_size else config.position_grid,
        "projector_scale": list(config.levels),
        "sa_nheads": config.self_heads,
        "segmentation_head": config.segmentation,
        "two_stage": True,
    }


def check_keywords(kind: str, config: ModelConfig, keywords: Mapping[str, Any]) -> None:
    """ConfigError for unknown keywords (lists those there are) and for another architecture; NotSupportedYet for what comes later."""
    side = keywords.get("resolution") or config.size_hw[0]
    network = describe(config, side)
    allowed = sorted([*USED, *TRAINING, *LATER, *network, "trust_checkpoint"])
    unknown = sorted(set(keywords) - set(allowed))
    if unknown:
        raise ConfigError(f"{kind}: unknown keyword {', '.join(unknown)}; expected some of {', '.join(allowed)}")
    for name in ("num_classes", "resolution", "num_queries", "num_select", "dec_layers"):
        value = keywords.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100_000):
            raise ConfigError(f"{kind}: {name} is {value!r}; expected a whole number from 1 to 100000")
    for name, value in keywords.items():
        if name in network and value != network[name]:
            raise ConfigError(f"{kind}: {name} is {value!r}, but this network has {network[name]!r}; leave it out, or choose another class")
        if name in LATER and value != LATER[name]:
            raise NotSupportedYet(f"{kind}: {name}={value!r} is not supported yet; leave it out (it is {LATER[name]!r})")


def check_patch(config: ModelConfig, patch_size: int | None) -> None:
    """ConfigError unless it is the network's, or not told."""
    if patch_size not in (None, config.patch_size):
        raise ConfigError(f"patch_size is {patch_size}; this network has {config.patch_size}; leave it out")


def check_shape(shape: Any) -> tuple[int, int]:
    """(height, width); ConfigError for anything but two whole numbers."""
    whole = isinstance(shape, list | tuple) and len(shape) == 2 and all(isinstance(v, int) and not isinstance(v, bool) for v in shape)
    if not whole:
        raise ConfigError(f"shape is {shape!r}; expected (height, width), two whole numbers")
    return shape[0], shape[1]
