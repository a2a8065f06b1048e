"""`train` and `evaluate` of the official classes: keywords, files, class heads, what the model is afterwards, and the official F1."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import torch

from rapidetr.checkpoints.file import Checkpoint, open_checkpoint, save_checkpoint, save_official
from rapidetr.compat import RFDETRNano, from_checkpoint, scores, training
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError, DatasetError, NotSupportedYet
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.data.read import read_dataset
from rapidetr.demo.dataset import write_dataset
from rapidetr.evaluation.evaluate import evaluate
from rapidetr.evaluation.objects import Found, Truths
from rapidetr.model.build import build
from rapidetr.training.recipe import Recipe
from rapidetr.training.run import Run
from rapidetr.training.start import make_start
from rapidetr.training.step import Learner, Outcome

# of TrainConfig and SegmentationTrainConfig of rfdetr 1.11.2, and what train() takes beside them
OFFICIAL = set(
    re.findall(
        r"\w+",
        """
lr lr_encoder batch_size grad_accum_steps eval_batch_size pad_targets_to auto_batch_target_effective auto_batch_max_targets_per_image
auto_batch_ema_headroom epochs resume ema_decay ema_tau checkpoint_interval skip_best_epochs smooth_alpha warmup_epochs
lr_vit_layer_decay lr_component_decay drop_path cls_loss_coef keypoint_flip_pairs keypoint_l1_loss_coef keypoint_findable_loss_coef
keypoint_visible_loss_coef keypoint_nll_loss_coef keypoint_oks_sigmas dataset_file square_resize_div_64 dataset_dir output_dir
multi_scale expanded_scales use_ema ema_update_interval eval_base_model eval_ema_only num_workers weight_decay amp_dtype
best_model_metric early_stopping early_stopping_patience early_stopping_min_delta early_stopping_use_ema progress_bar tensorboard
wandb mlflow clearml project run class_names run_test eval_max_dets eval_interval log_per_class_metrics eval_backend
eval_masks_head_resolution aug_config scale_jitter augmentation_backend save_dataset_grids notes accelerator clip_max_norm seed
sync_bn strategy devices num_nodes fp16_eval lr_scheduler lr_scheduler_kwargs lr_scheduler_interval lr_scheduler_monitor optimizer
optimizer_kwargs dont_save_weights train_log_sync_dist train_log_on_step compact_train_metrics compute_train_metrics
num_sanity_val_steps compute_val_loss compute_test_loss pin_memory persistent_workers prefetch_factor pack_targets
mask_point_sample_ratio mask_ce_loss_coef mask_dice_loss_coef device resolution
""",
    )
)
DEFAULTS = {
    "lr": 1e-4, "lr_encoder": 1.5e-4, "batch_size": 4, "grad_accum_steps": 1, "epochs": 100, "ema_decay": 0.993, "ema_tau": 100,
    "warmup_epochs": 0.0, "lr_vit_layer_decay": 0.8, "lr_component_decay": 0.7, "drop_path": 0.0, "cls_loss_coef": 1.0,
    "multi_scale": "per-batch", "expanded_scales": True, "use_ema": True, "eval_base_model": False, "weight_decay": 1e-4,
    "amp_dtype": "auto", "early_stopping": False, "early_stopping_patience": 10, "early_stopping_min_delta": 0.001,
    "early_stopping_use_ema": False, "eval_max_dets": 500, "eval_interval": 1, "clip_max_norm": 0.1, "seed": None,
    "lr_scheduler": "step", "lr_scheduler_kwargs": {}, "optimizer": "adamw", "optimizer_kwargs": {}, "mask_ce_loss_coef": 5.0,
    "mask_dice_loss_coef": 5.0, **training.FIXED,
}  # fmt: skip
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 2, "multi_scale": False, "tensorboard": False, "drop_path": 0.3, "device": "cpu"}


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """A Nano that takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "nano", replace(cases.config_of("tiny_det"), cross_heads=4))  # 16 channels a head, as in all files
        yield


@pytest.fixture(scope="module")
def weights(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build("nano", num_classes=2, seed=0)
    with torch.no_grad():
        network.class_head.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    start = Checkpoint(network.state_dict(), network.config, LabelSpace.contiguous("ab"), Preprocessing.official(), "")
    return save_official(start, tmp_path_factory.mktemp("weights") / "start.pth")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    for split, count in (("train", 6), ("valid", 3)):
        write_dataset(folder, count, 5, split=split, size_hw=(96, 96))
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs that end where they start, with the classes x, y, z, t."""
    made: list[dict[str, Any]] = []

    def train(data: str, *, model: Any, out: Path, class_rows: str, **options: Any) -> Run:
        names = ("device", "workers", "fresh", "loggers", "accept_license")
        recipe = Recipe.from_dict({name: value for name, value in options.items() if name not in names})
        made.append(
            {"data": data, "model": model, "out": out, "class_rows": class_rows, "recipe": recipe, **{n: options[n] for n in names}}
        )
        save_checkpoint(make_start(model, LabelSpace.contiguous("xyzt"), recipe, class_rows=class_rows), out / "best.safetensors")
        return Run(out, {"best": {"weights": "ema"}})

    monkeypatch.setattr(training, "train_native", train)
    return made


def recipe(constructed: dict[str, Any] | None = None, **keywords: Any) -> Recipe:
    return Recipe.from_dict(training.recipe_of("train", keywords, constructed or {}, (384, 384)))


def test_all_official_keywords_are_known_and_no_others() -> None:
    assert sorted(OFFICIAL) == training.KNOWN


def test_the_official_defaults_written_out_are_our_recipe() -> None:
    assert replace(recipe(**DEFAULTS), optimizer_options=None) == recipe()
    assert recipe() == Recipe(size_hw=(384, 384), max_dets=500, watch="ema")


@pytest.mark.parametrize(
    ("keywords", "fields"),
    [
        ({"grad_accum_steps": 4, "batch_size": 8}, {"accumulate": 4, "batch_size": 8}),
        ({"lr_vit_layer_decay": 0.9, "lr_component_decay": 0.5}, {"layer_decay": 0.9, "component_decay": 0.5}),
        ({"amp_dtype": None}, {"precision": "float32"}),
        ({"amp_dtype": "bf16"}, {"precision": "bfloat16"}),
        ({"multi_scale": False}, {"multi_scale": False}),
        ({"multi_scale": "off"}, {"multi_scale": False}),
        ({"lr_scheduler": "cosine", "lr_scheduler_kwargs": {"min_factor": 0.1}}, {"schedule": "cosine", "min_factor": 0.1}),
        ({"use_ema": False, "ema_decay": 0.9}, {"ema_decay": 0.0, "watch": "raw"}),
        ({"eval_base_model": True}, {"watch": "max"}),
        ({"early_stopping_patience": 3}, {"patience": 0}),
        ({"early_stopping": True}, {"patience": 10, "min_gain": 0.001}),
        ({"early_stopping": True, "early_stopping_patience": 3, "early_stopping_min_delta": 0.01}, {"patience": 3, "min_gain": 0.01}),
        ({"optimizer": "torch.optim.SGD"}, {"optimizer": "SGD"}),
        ({"optimizer_kwargs": {"eps": 1e-7}}, {"optimizer_options": {"eps": 1e-7}}),
        ({"optimizer": "adamw"}, {"optimizer": "AdamW"}),
        ({"resolution": 512, "seed": 7, "drop_path": 0.1}, {"size_hw": (512, 512), "seed": 7, "drop_path": 0.1}),
    ],
)  # fmt: skip
def test_keywords_become_fields_of_the_recipe(keywords: dict[str, Any], fields: dict[str, Any]) -> None:
    made = recipe(**keywords)
    assert {name: getattr(made, name) for name in fields} == fields


def test_what_the_constructor_says_of_training() -> None:
    made = recipe({"freeze_encoder": True, "gradient_checkpointing": True, "amp": False}, epochs=9)
    assert (made.stages, made.checkpointing, made.precision) == ("head:9", True, "float32")


@pytest.mark.parametrize(
    ("keywords", "kind", "text"),
    [
        ({"epoch": 3}, ConfigError, "RFDETRNano.train: unknown keyword epoch; the nearest known one is epochs (docs/"),
        ({"dropout": 0.1}, ConfigError, "unknown keyword dropout; the nearest known one is drop_path"),
        ({}, ConfigError, "RFDETRNano.train: dataset_dir is None; expected the folder of a dataset"),
        (
            {"dataset_file": "webdataset"},
            NotSupportedYet,
            "dataset_file='webdataset' is not supported yet; expected roboflow, coco or yolo",
        ),
        ({"devices": 2}, NotSupportedYet, "RFDETRNano.train: devices=2 is not supported yet; leave it out (it is 1)"),
        ({"scale_jitter": False}, NotSupportedYet, "scale_jitter=False is not supported yet; leave it out (it is True)"),
        ({"amp_dtype": "fp8"}, NotSupportedYet, "amp_dtype='fp8' is not supported yet; expected one of 'auto', None, 'bf16', 'fp16'"),
        ({"multi_scale": "per-sample"}, NotSupportedYet, "multi_scale='per-sample' is not supported yet"),
        ({"accelerator": "tpu"}, NotSupportedYet, "accelerator='tpu' is not supported yet"),
        ({"optimizer": torch.optim.SGD}, NotSupportedYet, "is not supported yet; expected a name of torch.optim such as 'adamw'"),
        ({"lr_scheduler_kwargs": {"gamma": 1}}, ConfigError, "lr_scheduler_kwargs has gamma; expected lr_drop (epochs) or min_factor"),
        ({"early_stopping": True, "early_stopping_use_ema": True, "use_ema": False}, NotSupportedYet, "goes with use_ema=True"),
        ({"batch_size": "auto"}, ConfigError, "batch_size is 'auto'; expected a whole number, 1 to 1e+06"),
        ({"resolution": 100}, ConfigError, "image height 100 is not a multiple of 16"),
    ],
)
def test_what_cannot_be_done_is_refused(
    weights: Path, scenes: Path, tmp_path: Path, calls: list[Any], keywords: dict[str, Any], kind: type[Exception], text: str
) -> None:
    model = RFDETRNano(pretrain_weights=weights, device="cpu")
    where = {"dataset_dir": scenes} if keywords else {}
    with pytest.raises(kind, match=re.escape(text)):
        model.train(output_dir=tmp_path, **where, **keywords)


def test_what_changes_nothing_is_said(
    weights: Path, scenes: Path, tmp_path: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = RFDETRNano(pretrain_weights=weights, device="cpu")
    model.train(
        dataset_dir=scenes, output_dir=tmp_path, pin_memory=True, progress_bar=None, checkpoint_interval=5, wandb=False, mlflow=True
    )
    assert capsys.readouterr().err.splitlines() == [
        "RFDETRNano.train: pin_memory=True changes nothing here: the loader decides",
        "RFDETRNano.train: checkpoint_interval=5 changes nothing here: the best and the last state are kept",
    ]
    assert calls[0]["loggers"][-1] == "mlflow"
    assert "wandb" not in calls[0]["loggers"]


def test_the_model_becomes_the_best_and_official_files_are_there(
    weights: Path, scenes: Path, tmp_path: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = RFDETRNano(pretrain_weights=weights, device="cpu", num_classes=2, resolution=80)
    first = model.detector
    model.train(dataset_dir=str(scenes), output_dir=tmp_path / "out", num_workers=3, notes={"why": "test"})
    call = calls[0]
    assert (call["data"], call["out"], call["workers"], call["device"]) == (str(scenes), tmp_path / "out" / "run", 3, "cpu")
    assert (call["fresh"], call["class_rows"], call["recipe"].size_hw) == (True, "cyclic", (80, 80))
    assert (model.class_names, model.model_config.num_classes, model.model_config.resolution) == (list("xyzt"), 4, 80)
    assert np.array_equal(model.model.model.class_head.bias.detach().numpy(), np.float32([0.1, 0.2, 0.3, 0.1, 0.2]))
    assert model.detector.preprocessing == Preprocessing.official()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "run", "checkpoint_best_total.pth", "checkpoint_best_ema.pth", "training_config.json"}  # fmt: skip
    assert json.loads((tmp_path / "out" / "training_config.json").read_text())["notes"] == {"why": "test"}
    again = from_checkpoint(tmp_path / "out" / "checkpoint_best_total.pth", device="cpu")
    assert (type(again), again.class_names, again.model_config.resolution) == (RFDETRNano, list("xyzt"), 80)
    assert all(torch.equal(a, b) for a, b in zip(again.model.model.parameters(), model.model.model.parameters(), strict=True))

    capsys.readouterr()
    model.train(dataset_dir=scenes, output_dir=tmp_path / "two")
    assert calls[1]["model"] is first
    assert "RFDETRNano.train: starts again from the first weights; to go on make a model with pretrain_weights=" in capsys.readouterr().err


def test_a_part_of_a_network_cannot_learn(weights: Path, scenes: Path, calls: list[Any]) -> None:
    model = RFDETRNano(pretrain_weights=weights, device="cpu", dec_layers=1)
    with pytest.raises(NotSupportedYet, match=r"a model made with dec_layers=1 cannot learn; make it without \(2\)"):
        model.train(dataset_dir=scenes)


def test_resume_names_the_run_of_the_output_folder(weights: Path, scenes: Path, tmp_path: Path, calls: list[Any]) -> None:
    model, here = RFDETRNano(pretrain_weights=weights, device="cpu"), tmp_path / "out"
    with pytest.raises(ConfigError, match=r"resume is .*start\.pth, but output_dir is .*out; a run goes on in the output_dir that it was"):
        model.train(dataset_dir=scenes, output_dir=here, resume=weights)
    with pytest.raises(ConfigError, match=r"resume is .*last\.ckpt, but there is no state of a run in .*run; leave resume out"):
        model.train(dataset_dir=scenes, output_dir=here, resume=here / "last.ckpt")
    (here / "run" / "last").mkdir(parents=True)
    (here / "run" / "last" / "state.safetensors").touch()
    for name in (here / "last.ckpt", str(here), here / "run"):
        model.train(dataset_dir=scenes, output_dir=here, resume=name)
        assert calls[-1]["fresh"] is False


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    weights: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drop path, whose draws are part of the state."""
    whole = RFDETRNano(pretrain_weights=weights, device="cpu")
    whole.train(dataset_dir=scenes, output_dir=tmp_path / "whole", **QUICK)
    step, taken = Learner.step, []

    def dying(self: Learner, *args: Any) -> Outcome:
        if len(taken) == 4:
            raise Killed
        taken.append(1)
        return step(self, *args)

    cut = RFDETRNano(pretrain_weights=weights, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dying)
        with pytest.raises(Killed):
            cut.train(dataset_dir=scenes, output_dir=tmp_path / "cut", **QUICK)
    cut.train(dataset_dir=scenes, output_dir=tmp_path / "cut", resume=tmp_path / "cut" / "last.ckpt", **QUICK)
    pairs = list(zip(whole.model.model.parameters(), cut.model.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert whole.class_names == list(read_dataset(scenes).labels.names)

    start = open_checkpoint(tmp_path / "cut" / "run" / "baseline.safetensors")
    rows = [np.float32([0.1, 0.2, 0.3])[i % 3] for i in range(len(whole.class_names) + 1)]
    assert np.array_equal(start.state["class_head.bias"].numpy(), rows)
    assert any(not torch.equal(a, start.state[n]) for n, a in whole.model.model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
def test_evaluate_gives_the_official_keys(weights: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = read_dataset(scenes).labels.names
    network = build("nano", num_classes=len(names), seed=3)
    labels = LabelSpace.contiguous(names)
    path = save_official(Checkpoint(network.state_dict(), network.config, labels, Preprocessing.official(), ""), tmp_path / "all.pth")
    model = RFDETRNano(pretrain_weights=path, device="cpu")
    found = model.evaluate(split="val", dataset_dir=scenes, batch_size=3, epochs=5, log_per_class_metrics=True)
    plain = ["mAP_50_95", "mAP_50", "mAP_75", "mAR", "F1", "precision", "recall"]
    assert list(found) == [f"val/{key}" for key in plain] + [f"val/AP/{name}" for name in names]
    native = evaluate(model.detector, read_dataset(scenes, "valid"), max_dets=500, batch_size=3)
    assert (found["val/mAP_50_95"], found["val/mAR"]) == (native.boxes.metrics["AP"], native.boxes.metrics["AR_max"])
    assert "at most 500 detections" in capsys.readouterr().out
    assert list(model.evaluate(split="val", dataset_dir=scenes, resolution=96)) == [f"val/{key}" for key in plain]
    assert model.detector.size_hw == (64, 64)
    assert list(model.evaluate(split="val", dataset_dir=scenes, resolution=96, batch_size="auto", device="cpu:0")) == [
        f"val/{key}" for key in plain
    ]
    with pytest.raises(ConfigError, match=r"^device is 'meta'; this model is on cpu: make it with device='meta'$"):
        model.evaluate(split="val", dataset_dir=scenes, device="meta")
    with pytest.raises(DatasetError, match="no test split; there is train, valid"):
        model.evaluate(dataset_dir=scenes)
    assert "test/F1" in model.evaluate(dataset_dir=scenes, dataset_file="coco")
    assert "has no test split; these are the scores of the valid split" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="split is 'train'; expected 'test' or 'val'"):
        model.evaluate(split="train", dataset_dir=scenes)
    with pytest.raises(ConfigError, match="unknown keyword max_dets; the nearest known one is eval_max_dets"):
        model.evaluate(dataset_dir=scenes, max_dets=3)


def test_the_official_f1_is_the_best_mean_over_classes() -> None:
    """Against a loop over thresholds and classes; every object has its own place, so that a hit is a detection upon it."""
    rng = np.random.default_rng(0)
    n, classes = 40, rng.integers(0, 3, 40)
    boxes = np.array([[30.0 * i, 0, 30 * i + 20, 20] for i in range(n)])
    truths = Truths(tuple("abcd"), ("one",), np.zeros(n, np.int64), classes, boxes, np.zeros(n, bool), np.full(n, 400.0))
    there = rng.random(n) < 0.7
    shift = np.where(rng.random(n) < 0.3, 300.0, 0.0)[:, None] * [0, 1, 0, 1]  # a miss
    found = Found(np.zeros(n, np.int64)[there], classes[there], (boxes + shift)[there], rng.integers(0, 101, n)[there] / 100)
    right = shift[there, 1] == 0
    best = (-1.0, 0.0, 0.0)
    for threshold in np.linspace(0, 1, 101):
        rows = []
        for k in range(3):  # the fourth class has no objects
            mine = (found.class_ids == k) & (found.scores >= threshold)
            hits, objects = (mine & right).sum(), (classes == k).sum()
            precision, recall = hits / max(mine.sum(), 1), hits / objects
            rows.append((2 * precision * recall / max(precision + recall, 1e-12), precision, recall))
        mean = tuple(np.mean(rows, axis=0))
        best = mean if mean[0] > best[0] + 1e-12 else best  # of equal ones the lowest threshold
    f1 = scores.macro_f1(truths, found)
    assert [f1["F1"], f1["precision"], f1["recall"]] == pytest.approx(list(best))
    assert 0.3 < f1["F1"] < 1
