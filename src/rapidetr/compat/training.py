"""`train` of the official classes: its keywords become fields of a Recipe and arguments of rapidetr.train."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rapidetr.checkpoints.file import open_checkpoint, save_official, write_atomically
from rapidetr.core.errors import ConfigError, NotSupportedYet
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.load import pick_device
from rapidetr.training.loop import state_file
from rapidetr.training.run import train as train_native

# official keyword -> field of Recipe that means the same
RENAMED = {
    "batch_size": "batch_size", "clip_max_norm": "clip", "cls_loss_coef": "ce", "drop_path": "drop_path",
    "early_stopping_min_delta": "min_gain", "ema_decay": "ema_decay", "ema_tau": "ema_tau", "epochs": "epochs",
    "eval_interval": "evaluate_every", "eval_max_dets": "max_dets", "expanded_scales": "expanded_scales",
    "grad_accum_steps": "accumulate", "lr": "lr", "lr_component_decay": "component_decay", "lr_encoder": "lr_encoder",
    "lr_vit_layer_decay": "layer_decay", "mask_ce_loss_coef": "mask_ce", "mask_dice_loss_coef": "mask_dice",
    "optimizer_kwargs": "optimizer_options", "warmup_epochs": "warmup_epochs", "weight_decay": "weight_decay",
}  # fmt: skip
# official keyword -> field of Recipe, and our word for each of its values
CHOICES: dict[str, tuple[str, list[tuple[Any, Any]]]] = {
    "amp_dtype": ("precision", [("auto", "auto"), (None, "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]),
    "multi_scale": ("multi_scale", [("per-batch", True), ("off", False), (True, True), (False, False)]),
    "lr_scheduler": ("schedule", [("step", "step"), ("cosine", "cosine")]),
}
# official defaults of what would change the result and is not built: kept as they are, or refused
FIXED: dict[str, Any] = {
    "aug_config": None, "best_model_metric": "map", "clearml": False, "devices": 1, "dont_save_weights": False, "ema_update_interval": 1,
    "eval_masks_head_resolution": False, "keypoint_findable_loss_coef": 0, "keypoint_flip_pairs": [], "keypoint_l1_loss_coef": 0,
    "keypoint_nll_loss_coef": 0, "keypoint_oks_sigmas": None, "keypoint_visible_loss_coef": 0, "lr_scheduler_interval": "step",
    "lr_scheduler_monitor": "val/loss", "mask_point_sample_ratio": 16, "num_nodes": 1, "scale_jitter": True, "skip_best_epochs": 0,
    "smooth_alpha": 0.0, "square_resize_div_64": True, "strategy": "auto", "sync_bn": False,
}  # fmt: skip
_FIGURES = "figures are in run/metrics.csv and run/report.html"
LOGGERS = ("tensorboard", "wandb", "mlflow")
# what changes no result: said on stderr where it is given
NOTED = {
    **dict.fromkeys(("project", "run", "progress_bar", "log_per_class_metrics"), _FIGURES),
    **dict.fromkeys(("train_log_sync_dist", "train_log_on_step", "compact_train_metrics", "compute_train_metrics"), _FIGURES),
    **dict.fromkeys(("compute_val_loss", "compute_test_loss"), "losses are those of training"),
    **dict.fromkeys(("auto_batch_target_effective", "auto_batch_max_targets_per_image", "auto_batch_ema_headroom"), "batch_size decides"),
    **dict.fromkeys(("pin_memory", "persistent_workers", "prefetch_factor", "pack_targets", "pad_targets_to"), "the loader decides"),
    **dict.fromkeys(("eval_backend", "eval_batch_size", "fp16_eval", "num_sanity_val_steps"), "AP is that of pycocotools in any case"),
    "augmentation_backend": "pictures are changed on the CPU",
    "checkpoint_interval": "the best and the last state are kept",
    "class_names": "names are those of the dataset",
    "eval_ema_only": "eval_base_model decides",
    "save_dataset_grids": "pictures of augmented batches are in run/",
}
OTHER = (
    "accelerator", "dataset_dir", "dataset_file", "device", "early_stopping", "early_stopping_patience", "early_stopping_use_ema",
    "eval_base_model", "lr_scheduler_kwargs", "notes", "num_workers", "optimizer", "output_dir", "resolution", "resume", "run_test",
    "seed", "use_ema",
)  # fmt: skip
KNOWN = sorted([*RENAMED, *CHOICES, *FIXED, *LOGGERS, *NOTED, *OTHER])
MAX_DETS = 500  # officially, of each picture


def train(name: str, start: Detector, constructed: Mapping[str, Any], keywords: Mapping[str, Any]) -> Path:
    """checkpoint_best_total.pth of a finished run that began with `start`; `name` is the method as messages call it.

    The run itself lies in output_dir/run; `constructed` are the keywords of the model's constructor. ConfigError for keywords
    that do not exist, NotSupportedYet for values that are not built.
    """
    check_names(name, keywords)
    _check_values(name, keywords)
    _check_whole(name, start, constructed)
    given = dict(keywords)
    output = Path(given.get("output_dir") or "output")
    device = pick_device(str(given.get("device") or _device_of(name, given) or start.engine.device))
    run = train_native(
        dataset_of(name, given),
        model=start,
        out=output / "run",
        device=device,
        workers=given.get("num_workers") or 0,
        fresh=not _goes_on(name, given.get("resume"), output / "run"),
        class_rows="cyclic",
        loggers=[kind for kind in LOGGERS if given.get(kind, kind == "tensorboard" and find_spec(kind) is not None)],
        accept_license=constructed.get("accept_license"),
        **recipe_of(name, given, constructed, start.size_hw),
    )
    best = open_checkpoint(run.folder / "best.safetensors")
    kind = {"raw": "regular", "ema": "ema"}[run.record["best"]["weights"]]
    text = json.dumps(given, default=str, indent=1) + "\n"
    write_atomically(output / "training_config.json", lambda part: part.write_text(text, "utf-8"))
    save_official(best, output / f"checkpoint_best_{kind}.pth")
    return save_official(best, output / "checkpoint_best_total.pth")


def check_names(name: str, keywords: Mapping[str, Any]) -> None:
    """ConfigError for a keyword that the official package does not have, with the nearest one that it has."""
    for unknown in (k for k in keywords if k not in KNOWN):
        nearest = get_close_matches(unknown, KNOWN, 1, 0.0)[0]
        raise ConfigError(f"{name}: unknown keyword {unknown}; the nearest known one is {nearest} (docs/migrate-from-rfdetr.md lists all)")


def dataset_of(name: str, keywords: Mapping[str, Any]) -> str:
    """The dataset's folder, whose layout is recognised by itself."""
    if not isinstance(keywords.get("dataset_dir"), str | Path):
        raise ConfigError(f"{name}: dataset_dir is {keywords.get('dataset_dir')!r}; expected the folder of a dataset")
    if keywords.get("dataset_file", "roboflow") not in ("roboflow", "coco", "yolo"):
        raise NotSupportedYet(f"{name}: dataset_file={keywords['dataset_file']!r} is not supported yet; expected roboflow, coco or yolo")
    return str(keywords["dataset_dir"])


def recipe_of(name: str, keywords: Mapping[str, Any], constructed: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Fields of the Recipe that the official keywords mean; what is not given keeps the official default."""
    side = keywords.get("resolution")
    recipe: dict[str, Any] = {"max_dets": MAX_DETS, "size_hw": (side, side) if side else size_hw}
    recipe |= {field: keywords[official] for official, field in RENAMED.items() if official in keywords}
    for official, (field, pairs) in CHOICES.items():
        if official in keywords:
            recipe[field] = _choose(name, official, keywords[official], pairs)
    recipe |= _averages(name, keywords) | _schedule(name, keywords.get("lr_scheduler_kwargs") or {})
    if keywords.get("early_stopping"):
        recipe["patience"] = keywords.get("early_stopping_patience", 10)
    if "optimizer" in keywords:
        recipe["optimizer"] = _optimizer(name, keywords["optimizer"])
    if keywords.get("seed") is not None:
        recipe["seed"] = keywords["seed"]
    if constructed.get("freeze_encoder"):
        recipe["stages"] = f"head:{recipe.get('epochs', 100)}"
    if constructed.get("amp") is False:
        recipe["precision"] = "float32"
    return recipe | {"checkpointing": bool(constructed.get("gradient_checkpointing"))}


def _check_values(name: str, keywords: Mapping[str, Any]) -> None:
    for keyword, value in keywords.items():
        if keyword in FIXED and value != FIXED[keyword]:
            raise NotSupportedYet(f"{name}: {keyword}={value!r} is not supported yet; leave it out (it is {FIXED[keyword]!r})")
        if keyword in NOTED and value not in (None, False):
            print(f"{name}: {keyword}={value!r} changes nothing here: {NOTED[keyword]}", file=sys.stderr)


def _check_whole(name: str, start: Detector, constructed: Mapping[str, Any]) -> None:
    """Training is for the network as it is, not for a part of it."""
    for keyword, whole in (("dec_layers", start.config.decoder_layers), ("num_queries", start.config.queries)):
        if constructed.get(keyword) not in (None, whole):
            raise NotSupportedYet(f"{name}: a model made with {keyword}={constructed[keyword]} cannot learn; make it without ({whole})")


def _device_of(name: str, keywords: Mapping[str, Any]) -> str | None:
    accelerator = keywords.get("accelerator", "auto")
    return _choose(name, "accelerator", accelerator, [("auto", None), ("cpu", "cpu"), ("gpu", "cuda"), ("cuda", "cuda"), ("mps", "mps")])


def _goes_on(name: str, resume: Any, folder: Path) -> bool:
    """Whether the run in `folder` is to go on: `resume` is its output folder, or any file there, such as last.ckpt."""
    if resume is None:
        return False
    path = Path(resume).resolve()
    if folder.parent.resolve() not in (path, *path.parents):
        raise ConfigError(
            f"{name}: resume is {resume}, but output_dir is {folder.parent}; a run goes on in the output_dir that it was begun in; "
            f"to start from these weights alone make the model with pretrain_weights={str(resume)!r}"
        )
    if not state_file(folder).exists():
        raise ConfigError(f"{name}: resume is {resume}, but there is no state of a run in {folder}; leave resume out to start anew")
    return True


def _choose(name: str, keyword: str, value: Any, pairs: list[tuple[Any, Any]]) -> Any:
    for theirs, ours in pairs:
        if theirs is value or (isinstance(value, str) and theirs == value):
            return ours
    raise NotSupportedYet(f"{name}: {keyword}={value!r} is not supported yet; expected one of {', '.join(repr(p[0]) for p in pairs)}")


def _averages(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Officially the average alone is scored where there is one, unless eval_base_model asks for both."""
    average, both, stop = (
        keywords.get(k, d) for k, d in (("use_ema", True), ("eval_base_model", False), ("early_stopping_use_ema", False))
    )
    if stop and keywords.get("early_stopping") and (both or not average):
        raise NotSupportedYet(f"{name}: early_stopping_use_ema=True goes with use_ema=True and without eval_base_model; leave it out")
    if not average:
        return {"ema_decay": 0.0, "watch": "raw"}
    return {"watch": "max" if both else "ema"}


def _schedule(name: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(keywords) - {"lr_drop", "min_factor"})
    if unknown:
        raise ConfigError(f"{name}: lr_scheduler_kwargs has {', '.join(unknown)}; expected lr_drop (epochs) or min_factor")
    return dict(keywords)


def _optimizer(name: str, optimizer: Any) -> str:
    """The name in torch.optim, however it is written."""
    if not isinstance(optimizer, str):
        raise NotSupportedYet(f"{name}: optimizer={optimizer!r} is not supported yet; expected a name of torch.optim such as 'adamw'")
    bare = optimizer.removeprefix("torch.optim.")
    return next((known for known in vars(torch.optim) if known.lower() == bare.lower() and known[0].isupper()), bare)
