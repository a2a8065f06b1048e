"""Parameter names: ours <-> official package <-> Hugging Face port, one table, strict both ways.

One parameter of ours may be several of theirs, stacked along the first axis (query, key and value). Names that are known
and deliberately left out stand in `DROPPED`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import KeyMismatch

# (ours, official, Hugging Face); a number in angle brackets stands for itself; {a,b} is one parameter of ours in parts
_VIT, _HF_VIT = "backbone.0.encoder.encoder.", "model.backbone.backbone."
_LAYER, _HF_LAYER = _VIT + "encoder.layer.<i>.", _HF_VIT + "encoder.layer.<i>."
_PROJ, _HF_PROJ = "backbone.0.projector.", "model.backbone.projector."
_DEC = "transformer.decoder."
_ROWS: tuple[tuple[str, str, str], ...] = (
    ("vit.patch.", _VIT + "embeddings.patch_embeddings.projection.", _HF_VIT + "embeddings.patch_embeddings.projection."),
    ("vit.cls_token", _VIT + "embeddings.cls_token", _HF_VIT + "embeddings.cls_token"),
    ("vit.mask_token", _VIT + "embeddings.mask_token", _HF_VIT + "embeddings.mask_token"),
    ("vit.positions", _VIT + "embeddings.position_embeddings", _HF_VIT + "embeddings.position_embeddings"),
    ("vit.registers", _VIT + "embeddings.register_tokens", _HF_VIT + "embeddings.register_tokens"),
    ("vit.norm.", _VIT + "layernorm.", _HF_VIT + "layernorm."),
    ("vit.blocks.<i>.norm<j>.", _LAYER + "norm<j>.", _HF_LAYER + "norm<j>."),
    ("vit.blocks.<i>.attention.qkv.", _LAYER + "attention.attention.{query,key,value}.", _HF_LAYER + "attention.{q_proj,k_proj,v_proj}."),
    ("vit.blocks.<i>.attention.out.", _LAYER + "attention.output.dense.", _HF_LAYER + "attention.o_proj."),
    ("vit.blocks.<i>.scale<j>", _LAYER + "layer_scale<j>.lambda1", _HF_LAYER + "layer_scale<j>.lambda1"),
    ("vit.blocks.<i>.up.", _LAYER + "mlp.fc1.", _HF_LAYER + "mlp.fc1."),
    ("vit.blocks.<i>.down.", _LAYER + "mlp.fc2.", _HF_LAYER + "mlp.fc2."),
    ("projector.levels.<i>.resample.<j>.norm.", _PROJ + "stages_sampling.<i>.<j>.0.bn.", ""),
    ("projector.levels.<i>.resample.<j>.", _PROJ + "stages_sampling.<i>.<j>.0.", ""),
    ("projector.levels.<i>.fuse.enter.norm.", _PROJ + "stages.<i>.0.cv1.bn.", _HF_PROJ + "projector_layer.conv1.norm."),
    ("projector.levels.<i>.fuse.enter.", _PROJ + "stages.<i>.0.cv1.", _HF_PROJ + "projector_layer.conv1."),
    ("projector.levels.<i>.fuse.leave.norm.", _PROJ + "stages.<i>.0.cv2.bn.", _HF_PROJ + "projector_layer.conv2.norm."),
    ("projector.levels.<i>.fuse.leave.", _PROJ + "stages.<i>.0.cv2.", _HF_PROJ + "projector_layer.conv2."),
    ("projector.levels.<i>.fuse.chain.<j>.0.norm.", _PROJ + "stages.<i>.0.m.<j>.cv1.bn.",
     _HF_PROJ + "projector_layer.bottlenecks.<j>.conv1.norm."),
    ("projector.levels.<i>.fuse.chain.<j>.0.", _PROJ + "stages.<i>.0.m.<j>.cv1.", _HF_PROJ + "projector_layer.bottlenecks.<j>.conv1."),
    ("projector.levels.<i>.fuse.chain.<j>.1.norm.", _PROJ + "stages.<i>.0.m.<j>.cv2.bn.",
     _HF_PROJ + "projector_layer.bottlenecks.<j>.conv2.norm."),
    ("projector.levels.<i>.fuse.chain.<j>.1.", _PROJ + "stages.<i>.0.m.<j>.cv2.", _HF_PROJ + "projector_layer.bottlenecks.<j>.conv2."),
    ("projector.levels.<i>.norm.", _PROJ + "stages.<i>.1.", _HF_PROJ + "layer_norm."),
    ("proposals.groups.<i>.linear.", "transformer.enc_output.<i>.", "model.enc_output.<i>."),
    ("proposals.groups.<i>.norm.", "transformer.enc_output_norm.<i>.", "model.enc_output_norm.<i>."),
    ("proposals.groups.<i>.classes.", "transformer.enc_out_class_embed.<i>.", "model.enc_out_class_embed.<i>."),
    ("proposals.groups.<i>.boxes.", "transformer.enc_out_bbox_embed.<i>.", "model.enc_out_bbox_embed.<i>."),
    ("query_content", "query_feat.weight", "model.query_feat.weight"),
    ("query_boxes", "refpoint_embed.weight", "model.reference_point_embed.weight"),
    ("decoder.layers.<i>.self_attention.qkv.", _DEC + "layers.<i>.self_attn.in_proj_",
     "model.decoder.layers.<i>.self_attn.{q_proj,k_proj,v_proj}."),
    ("decoder.layers.<i>.self_attention.out.", _DEC + "layers.<i>.self_attn.out_proj.", "model.decoder.layers.<i>.self_attn.o_proj."),
    ("decoder.layers.<i>.norm1.", _DEC + "layers.<i>.norm1.", "model.decoder.layers.<i>.self_attn_layer_norm."),
    ("decoder.layers.<i>.norm2.", _DEC + "layers.<i>.norm2.", "model.decoder.layers.<i>.cross_attn_layer_norm."),
    ("decoder.layers.<i>.norm3.", _DEC + "layers.<i>.norm3.", "model.decoder.layers.<i>.layer_norm."),
    ("decoder.layers.<i>.cross_attention.offsets.", _DEC + "layers.<i>.cross_attn.sampling_offsets.",
     "model.decoder.layers.<i>.cross_attn.sampling_offsets."),
    ("decoder.layers.<i>.cross_attention.weights.", _DEC + "layers.<i>.cross_attn.attention_weights.",
     "model.decoder.layers.<i>.cross_attn.attention_weights."),
    ("decoder.layers.<i>.cross_attention.values.", _DEC + "layers.<i>.cross_attn.value_proj.",
     "model.decoder.layers.<i>.cross_attn.value_proj."),
    ("decoder.layers.<i>.cross_attention.out.", _DEC + "layers.<i>.cross_attn.output_proj.",
     "model.decoder.layers.<i>.cross_attn.output_proj."),
    ("decoder.layers.<i>.up.", _DEC + "layers.<i>.linear1.", "model.decoder.layers.<i>.mlp.fc1."),
    ("decoder.layers.<i>.down.", _DEC + "layers.<i>.linear2.", "model.decoder.layers.<i>.mlp.fc2."),
    ("decoder.norm.", _DEC + "norm.", "model.decoder.layernorm."),
    ("decoder.position.", _DEC + "ref_point_head.", "model.decoder.ref_point_head."),
    ("class_head.", "class_embed.", "class_embed."),
    ("box_head.", "bbox_embed.", "bbox_embed."),
    ("mask_head.bias", "segmentation_head.bias", "segmentation_bias"),
    ("mask_head.blocks.<i>.depthwise.", "segmentation_head.blocks.<i>.dwconv.", "blocks.<i>.depthwise_conv."),
    ("mask_head.blocks.<i>.norm.", "segmentation_head.blocks.<i>.norm.", "blocks.<i>.layernorm."),
    ("mask_head.blocks.<i>.pointwise.", "segmentation_head.blocks.<i>.pwconv1.", "blocks.<i>.pointwise_conv."),
    ("mask_head.pixels.", "segmentation_head.spatial_features_proj.", "spatial_features_proj."),
    ("mask_head.query_norm.", "segmentation_head.query_features_block.norm_in.", "query_features_block.norm."),
    ("mask_head.query_up.", "segmentation_head.query_features_block.layers.0.", "query_features_block.mlp.fc1."),
    ("mask_head.query_down.", "segmentation_head.query_features_block.layers.2.", "query_features_block.mlp.fc2."),
    ("mask_head.queries.", "segmentation_head.query_features_proj.", "query_features_proj."),
)  # fmt: skip
# knowingly left out: the keypoint buffer that detection files carry, and the leftovers of an old keypoint preview
DROPPED = re.compile(r"_kp_active_mask|keypoint_head\.keypoint_proj\..*")
DIALECTS = ("official", "huggingface")


def names_of(config: ModelConfig, ours: list[str], dialect: str = "official") -> dict[str, tuple[str, ...]]:
    """For each parameter of ours the names of the others, in stacking order."""
    column = 1 + DIALECTS.index(dialect)
    rules = [(_pattern(row[0]), row[column]) for row in _ROWS]
    names = {}
    for name in ours:
        for pattern, theirs in rules:
            if found := pattern.fullmatch(name):
                full = _fill(theirs, found.groupdict())
                names[name] = _parts(full)
                break
        else:
            raise KeyMismatch(f"no rule for our parameter {name}: the table of names is incomplete")
    if dialect == "huggingface" and config.segmentation:  # the port nests the detector inside its segmentation model
        own = tuple(row[column] for row in _ROWS if row[0].startswith("mask_head"))
        prefixes = tuple(o.split("<")[0] for o in own)
        names = {k: tuple(n if n.startswith(prefixes) else f"model.{n}" for n in v) for k, v in names.items()}
    return names


def _pattern(ours: str) -> re.Pattern[str]:
    """A prefix (ending in a dot) or a whole name, with numbers to capture."""
    text = re.sub(r"<(\w)>", r"(?P<\1>\\d+)", re.escape(ours).replace(r"\<", "<").replace(r"\>", ">"))
    return re.compile(text + ("(?P<rest>.+)" if ours.endswith(".") else "(?P<rest>)"))


def _fill(theirs: str, numbers: dict[str, str]) -> str:
    return re.sub(r"<(\w)>", lambda m: numbers[m[1]], theirs) + (numbers["rest"] or "")


def _parts(name: str) -> tuple[str, ...]:
    found = re.search(r"\{(.+)\}", name)
    return tuple(name.replace(found[0], part) for part in found[1].split(",")) if found else (name,)


def to_ours(
    state: Mapping[str, Tensor], config: ModelConfig, shapes: Mapping[str, torch.Size], dialect: str = "official"
) -> dict[str, Tensor]:
    """Their state dict in our names; KeyMismatch lists what is missing, left over or of another shape."""
    names = names_of(config, list(shapes), dialect)
    aliases = _aliases(config) if dialect == "official" else {}
    missing = [n for parts in names.values() for n in parts if n not in state]
    known = {n for parts in names.values() for n in parts} | set(aliases)
    surplus = [n for n in state if n not in known and not DROPPED.fullmatch(n)]
    wrong = [
        f"{parts[0]} is {_shape(state, parts)}, expected {list(shapes[ours])}"
        for ours, parts in names.items()
        if not any(p not in state for p in parts) and _shape(state, parts) != list(shapes[ours])
    ]
    if missing or surplus or wrong:
        raise KeyMismatch(mismatch_text(missing, surplus, wrong))
    return {ours: state[parts[0]] if len(parts) == 1 else torch.cat([state[p] for p in parts]) for ours, parts in names.items()}


def from_ours(state: Mapping[str, Tensor], config: ModelConfig, dialect: str = "official") -> dict[str, Tensor]:
    """Our state dict in their names: the exact inverse of `to_ours`."""
    theirs: dict[str, Tensor] = {}
    for ours, parts in names_of(config, list(state), dialect).items():
        theirs.update(zip(parts, state[ours].chunk(len(parts)), strict=True))
    if dialect == "official":
        theirs.update({alias: theirs[name] for alias, name in _aliases(config).items()})
    return theirs


def mismatch_text(missing: list[str], surplus: list[str], wrong: list[str], limit: int = 12) -> str:
    """One line that lists all three kinds, shortened with a count."""
    kinds = (("missing", missing), ("left over", surplus), ("of another shape", wrong))
    listed = [f"{len(n)} {kind}: {', '.join(n[:limit])}{f' and {len(n) - limit} more' if len(n) > limit else ''}" for kind, n in kinds if n]
    return "parameters do not fit the network; " + "; ".join(listed) + "; name the right variant with model=..., or check the file"


def _aliases(config: ModelConfig) -> dict[str, str]:
    """Names under which the official file holds a parameter a second time (logit mode shares the box head)."""
    if config.lite_refine:
        return {}
    return {f"{_DEC}bbox_embed.layers.{i}.{kind}": f"bbox_embed.layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}


def _shape(state: Mapping[str, Tensor], parts: tuple[str, ...]) -> list[int]:
    first = list(state[parts[0]].shape)
    return [sum(state[p].shape[0] for p in parts), *first[1:]] if len(parts) > 1 else first
