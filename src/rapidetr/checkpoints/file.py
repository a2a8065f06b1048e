"""Checkpoint files: our own format, and everything that can be opened.

Ours is a safetensors file whose metadata holds one JSON header, so that no code can hide in it and any tool can read it:
format version, configuration, labels, preprocessing, provenance, licence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapidetr.checkpoints.configure import configure, label_space
from rapidetr.checkpoints.table import from_ours, mismatch_text, to_ours
from rapidetr.checkpoints.unpickle import Contents, containers, read_torch_file, sniff
from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError, KeyMismatch
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build_empty
from rapidetr.model.rfdetr import RfDetr

FORMAT_VERSION = 1
_HEADER_LIMIT = 8 << 20  # bytes of JSON; a header for 10,000 classes has under one


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and all that is needed to use them."""

    state: dict[str, Tensor]
    config: ModelConfig
    labels: LabelSpace
    preprocessing: Preprocessing
    license: str
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # decisions that loading took, for the user to see

    def network(self) -> RfDetr:
        """The network with these weights, fp32, in evaluation mode."""
        network = build_empty(self.config)
        state = {n: t.float() if t.is_floating_point() else t for n, t in self.state.items()}
        network.load_state_dict(state, assign=True)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name != "vit.mask_token")
        return network.eval()

    def deployed(self) -> Checkpoint:
        """Without the query groups that only training needs; the same where there are none."""
        if self.config.groups == 1:
            return self
        from rapidetr.checkpoints.adapt import drop_training_groups

        state, config = drop_training_groups(self.state, self.config)
        note = "training groups dropped: same answers, smaller file; fine-tune from the full file instead"
        return replace(self, state=state, config=config, notes=(*self.notes, note))

    def adapted(self, config: ModelConfig, labels: LabelSpace) -> Checkpoint:
        """Made to fit another class head, fewer queries or another position grid; `notes` say what changed."""
        from rapidetr.checkpoints.adapt import adapt

        state, notes = adapt(self.state, self.config, config)
        return replace(self, state=state, config=config, labels=labels, notes=(*self.notes, *notes))


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write our format atomically: the file is whole or not there."""
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: checkpoints are written as .safetensors; use `rapidetr convert` for official .pth files")
    header = {
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config.to_dict(),
        "labels": checkpoint.labels.to_dict(),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "license": checkpoint.license,
        "provenance": checkpoint.provenance,
    }
    state = {
        n: t.detach().to("cpu", dtype or t.dtype if t.is_floating_point() else t.dtype).contiguous() for n, t in checkpoint.state.items()
    }
    write_atomically(path, lambda part: save_file(state, part, {"format": "pt", "rapidetr": json.dumps(header)}))
    return path


def save_official(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Write a .pth that the official package loads."""
    config, labels = checkpoint.config, checkpoint.labels
    args = {
        "num_classes": config.class_rows - 1, "class_names": list(labels.names), "num_queries": config.queries,
        "group_detr": config.groups, "patch_size": config.patch_size, "resolution": config.size_hw[0],
        "segmentation_head": config.segmentation, "num_windows": config.windows,
        "positional_encoding_size": config.position_grid,
    }  # fmt: skip
    if config.size_hw[0] != config.size_hw[1]:
        raise CheckpointError(f"official files are square; this network runs at {config.size_hw[0]}x{config.size_hw[1]}")
    state = {n: t.detach().cpu().contiguous().clone() for n, t in from_ours(checkpoint.state, config).items()}
    record = {"model": state, "args": args, "model_name": official_name(config.name)}
    write_atomically(Path(path), lambda part: torch.save(record, part))
    return Path(path)


def official_name(name: str) -> str:
    """The official class name of a variant: seg-nano -> RFDETRSegNano."""
    words = {"xlarge": "XLarge", "2xlarge": "2XLarge"}
    return "RFDETR" + "".join(words.get(part, part.capitalize()) for part in name.split("-"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and move the result into place, with the mode that the umask gives; a crash leaves the old
    file or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # some writers make files that only their owner can read
        write(part)
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def open_checkpoint(path: str | Path, *, model: str | None = None) -> Checkpoint:
    """Any file that holds RF-DETR weights: official .pth/.pt/.ckpt, Hugging Face safetensors, or ours.

    `model` names the variant where a file does not tell. CheckpointError, KeyMismatch or UnsafeFile say in one line what is
    wrong; nothing in a file is ever executed.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointMissing(
            f"{path}: no such file; expected a checkpoint file; model names such as 'nano' are for --model and rapidetr.load"
        )
    if sniff(path) == "safetensors":
        return _open_safetensors(path, model)
    return _from_official(containers(read_torch_file(path), path), model, path)


def _from_official(contents: Contents, model: str | None, path: Path) -> Checkpoint:
    try:
        config, notes = configure(contents, model)
    except (CheckpointError, ConfigError) as problem:
        raise type(problem)(f"{path}: {problem}") from None
    stored_queries = contents.state["query_feat.weight"].shape[0] // config.groups
    stored = replace(config, queries=stored_queries)
    shapes = {n: p.shape for n, p in build_empty(stored).state_dict().items()}
    try:
        state = to_ours(contents.state, stored, shapes)
    except KeyMismatch as problem:
        raise KeyMismatch(f"{path}: {problem}") from None
    labels = label_space(contents, config.class_rows)
    entry = WEIGHTS.get(config.name)
    if entry is not None and entry.license != "Apache-2.0":
        license_id = entry.license  # whatever such a file says of itself: derived weights keep the licence of their shapes
    else:
        license_id = str((contents.model_config or {}).get("license") or "")
    provenance = {"source": path.name, "kind": contents.kind, "rfdetr_version": contents.version}
    checkpoint = Checkpoint(state, stored, labels, Preprocessing.official(), license_id, provenance, tuple(notes))
    return checkpoint if stored == config else replace(checkpoint.adapted(config, labels), notes=tuple(notes))


def _open_safetensors(path: Path, model: str | None) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as problem:
        raise CheckpointError(f"{path}: not a whole safetensors file ({str(problem)[:200]}); copy or download it again") from None
    if "rapidetr" in metadata:
        return _ours(path, state, metadata["rapidetr"], model)
    from rapidetr.checkpoints.huggingface import completed, contents_of, is_huggingface

    if is_huggingface(state):
        return completed(_from_official(contents_of(state, path), model, path), path)
    return _from_official(containers(dict(state), path), model, path)


def _ours(path: Path, state: dict[str, Tensor], text: str, model: str | None) -> Checkpoint:
    try:
        if len(text) > _HEADER_LIMIT:
            raise ConfigError(f"header of {len(text)} characters; expected at most {_HEADER_LIMIT}")
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ConfigError("the header is no JSON object")
        if header.get("format_version") != FORMAT_VERSION:
            raise ConfigError(f"format version {header.get('format_version')!r}; this release reads version {FORMAT_VERSION}")
        config = ModelConfig.from_dict(header["config"])
        labels = LabelSpace.from_dict(header["labels"])
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
        provenance = dict(header.get("provenance") or {})
        if labels.head_rows != config.class_rows:
            raise ConfigError(f"labels for {labels.head_rows} rows, a head of {config.class_rows}")
        _plausible(config, state)
    except (ConfigError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path}: damaged header: {str(problem) or type(problem).__name__}") from None
    if model is not None and model != config.name:
        raise CheckpointError(f"{path}: holds a {config.name}, not a {model}; leave model= out")
    shapes = {n: list(p.shape) for n, p in build_empty(config).state_dict().items()}
    wrong = [f"{n} is {list(state[n].shape)}, expected {s}" for n, s in shapes.items() if n in state and list(state[n].shape) != s]
    missing, surplus = [n for n in shapes if n not in state], [n for n in state if n not in shapes]
    odd = [f"{n} is {str(state[n].dtype).removeprefix('torch.')}" for n in shapes if n in state and not state[n].is_floating_point()]
    if odd:
        raise CheckpointError(f"{path}: {', '.join(odd[:3])}; expected floating point weights")
    if missing or surplus or wrong:
        raise KeyMismatch(f"{path}: {mismatch_text(missing, surplus, wrong)}")
    return Checkpoint(state, config, labels, preprocessing, str(header.get("license", "")), provenance)


def _plausible(config: ModelConfig, state: dict[str, Tensor]) -> None:
    """Refuse a header that asks for far more modules than the file has tensors, before anything is built from it."""
    parts = config.vit_depth + config.decoder_layers + config.groups
    if parts > len(state):
        raise ConfigError(f"{parts} blocks, layers and groups for {len(state)} tensors")
