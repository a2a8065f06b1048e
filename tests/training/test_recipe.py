"""Recipe, stages, schedule, optimizer groups, average, stopping: small rules against closed forms and official tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cases
import pytest
import torch

from rapidetr.checkpoints.table import names_of
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError
from rapidetr.model.build import build_empty
from rapidetr.training.ema import Average, decay_at
from rapidetr.training.optimizer import make_optimizer, parameter_groups
from rapidetr.training.recipe import Recipe, differences
from rapidetr.training.schedule import rate_factor
from rapidetr.training.stages import enter, parse_stages, table
from rapidetr.training.step import make_criterion
from rapidetr.training.stopping import Judge


def test_recipe_goes_to_json_and_back() -> None:
    recipe = Recipe(size_hw=(96, 128), class_weights=(1.0, 2.0), optimizer_options={"betas": [0.8, 0.9]}, stages="all:3")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert make_criterion(recipe, 3).class_weights == (1.0, 2.0, 1.0)
    assert differences(Recipe().to_dict(), Recipe(lr=2e-4, epochs=3).to_dict()) == ["epochs 100 -> 3", "lr 0.0001 -> 0.0002"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of step, cosine"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, 1 to 1e+06"),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected a whole number, 1 to 1e+06"),
        ({"groups": 1.5}, "groups is 1.5; expected a whole number, 1 to 1000"),
        ({"seed": -1}, "seed is -1; expected a whole number, 0 to 2.14748e+09"),
        ({"bbox": -5}, "bbox is -5; expected 0 to 1e+06"),
        ({"class_weights": (1.0, -1.0)}, "class_weights are (1.0, -1.0); expected numbers of at least 0, or auto"),
        ({"class_weights": (1.0, float("inf"))}, "class_weights are (1.0, inf); expected numbers of at least 0, or auto"),
        ({"class_weights": (float("nan"),)}, "class_weights are (nan,); expected numbers of at least 0, or auto"),
        ({"class_weights": "rare"}, "class_weights are ('r', 'a', 'r', 'e'); expected numbers of at least 0, or auto"),
        ({"version": 9}, "recipe version is 9; this release trains version 1"),
        ({"size_hw": (1, 2, 3)}, "size_hw is (1, 2, 3); expected (height, width)"),
    ],
)
def test_wrong_recipes_are_named(record: dict, message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        Recipe.from_dict(record)
    assert str(problem.value) == message


def test_unknown_options_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"^unknown training options learning_rate; there are version, seed, weights, "):
        Recipe.from_dict({"learning_rate": 1})


@pytest.mark.parametrize("name", ["nano", "base", "seg-nano"])
def test_parameter_groups_are_the_official_ones(name: str, golden: Path) -> None:
    official = json.loads((golden / "param_groups.json").read_text())[name]
    network = build_empty(VARIANTS[name])
    names = names_of(network.config, [n for n, _ in network.named_parameters()])
    ours = {
        theirs: (group["lr"], group["weight_decay"])
        for group in parameter_groups(network, Recipe())
        for ours in group["names"]
        for theirs in names[ours]
    }
    assert set(official) == set(ours)
    for theirs, expected in official.items():
        assert ours[theirs] == pytest.approx((expected["lr"], expected["weight_decay"]), rel=1e-12), theirs


def test_shared_box_head_of_logit_mode_learns_with_the_decoder() -> None:
    groups = parameter_groups(cases.network("tiny_logit"), Recipe())
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["box_head.layers.0.weight"] == rates["decoder.norm.weight"] == pytest.approx(7e-5)
    assert rates["class_head.weight"] == 1e-4


def test_uniform_rates_decay_matrices_only() -> None:
    network = cases.network("tiny_det")
    for group in parameter_groups(network, Recipe(rates="uniform", lr=4e-4)):
        assert group["lr"] == 4e-4
        assert {p.dim() > 1 for p in group["params"]} == {group["weight_decay"] > 0}


@pytest.mark.parametrize("name", ["SGD", "NAdam", "RMSprop", "Adafactor"])
def test_any_optimizer(name: str) -> None:
    assert type(make_optimizer(cases.network("tiny_det"), Recipe(optimizer=name))).__name__ == name


def test_adam_is_fused_unless_told_otherwise() -> None:
    for options, fused in ((None, True), ({"fused": False}, False), ({"foreach": True}, None)):
        optimizer = make_optimizer(cases.network("tiny_det"), Recipe(optimizer_options=options))
        assert optimizer.defaults["fused"] is fused


def test_wrong_optimizers_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer is 'Adamw'; expected one of .*AdamW, .*SGD"):
        make_optimizer(cases.network("tiny_det"), Recipe(optimizer="Adamw"))
    with pytest.raises(ConfigError, match=r"^optimizer is 'SparseAdam'; expected one of (?!.*SparseAdam)"):
        make_optimizer(cases.network("tiny_det"), Recipe(optimizer="SparseAdam"))
    with pytest.raises(ConfigError, match=r"^optimizer SGD with options \{'beta': 1\} cannot be made: "):
        make_optimizer(cases.network("tiny_det"), Recipe(optimizer="SGD", optimizer_options={"beta": 1}))
    with pytest.raises(ConfigError, match=r"^optimizer AdamW with options \{'betas': \[0.9\].*\} cannot be made: "):
        make_optimizer(cases.network("tiny_det"), Recipe(optimizer_options={"betas": [0.9]}))


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("weight_decay", "decay is the recipe's weight_decay, not of all parameters"),
        ("lr", "rates are the recipe's, lr and lr_encoder"),
        ("differentiable", "steps are not differentiated"),
    ],
)
def test_options_that_would_change_nothing_or_break_steps_are_refused(option: str, why: str) -> None:
    with pytest.raises(ConfigError) as problem:
        make_optimizer(cases.network("tiny_det"), Recipe(optimizer_options={option: 0.5}))
    assert str(problem.value) == f"optimizer option {option}: {why}"


def test_schedules() -> None:
    plain = Recipe()
    assert [rate_factor(plain, s, 10, 1200) for s in (0, 999, 1000, 1199)] == [1, 1, 0.1, 0.1]
    warm = Recipe(warmup_epochs=0.5, lr_drop=2)
    assert [rate_factor(warm, s, 10, 30) for s in (0, 1, 4, 5, 19, 20)] == [0, 0.2, 0.8, 1, 1, 0.1]
    wave = Recipe(schedule="cosine", warmup_epochs=1, min_factor=0.1)
    assert rate_factor(wave, 10, 10, 50) == 1
    assert rate_factor(wave, 30, 10, 50) == pytest.approx(0.55)  # the middle
    assert rate_factor(wave, 49, 10, 50) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))


def test_stages_add_up() -> None:
    stages = parse_stages("head:5, blocks4-5+encoder:2@0.3,all:35@.1", 0, 6)
    assert [(s.start, s.stop, s.factor) for s in stages] == [(0, 5, 1), (5, 7, 0.3), (7, 42, 0.1)]
    assert stages[1].parts == ("head", "blocks4-5", "encoder")
    network = cases.network("tiny_det")
    learning = {p.data_ptr() for p in enter(stages[0], network)}
    assert learning == {p.data_ptr() for n, p in network.named_parameters() if not n.startswith("vit.")}
    blocks = enter(parse_stages("blocks4-5:1", 0, 6)[0], network)
    assert {id(p) for p in blocks} == {id(p) for n, p in network.named_parameters() if n.startswith(("vit.blocks.4.", "vit.blocks.5."))}
    lines = table(stages, network)
    head = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("vit."))
    assert lines[1].split() == ["0-4", f"{head:,}", "1", "head"]
    assert len(lines) == 4


def test_parameters_that_nothing_reads_never_learn() -> None:
    network = build_empty(VARIANTS["base"])  # its twelfth block feeds no output
    enter(parse_stages("", 1, 12)[0], network)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert "vit.mask_token" in frozen
    assert frozen - {"vit.mask_token"} == {n for n, _ in network.named_parameters() if n.startswith("vit.blocks.11.")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head", "stages: 'head' is not WHAT:EPOCHS or WHAT:EPOCHS@FACTOR, as in head:5,blocks8-11:10@0.3,all:35@0.1"),
        ("blocks4-6:1", "stages: 'blocks4-6'; this encoder has blocks 0-5"),
        ("neck:1", "stages: unknown part 'neck'; there are all, encoder, head, projector, decoder, classes and blocks0-5"),
    ],
)
def test_wrong_stages_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as problem:
        parse_stages(text, 1, 6)
    assert str(problem.value) == message


def test_average_follows_the_official_formula() -> None:
    torch.manual_seed(0)
    network = cases.network("tiny_det").double()
    average = Average(network)
    network.class_head.requires_grad_(False)
    frozen = network.class_head.weight.clone()
    expected = network.box_head.layers[0].weight.clone()
    for update in range(1, 7):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        average.update(network, Recipe())
        decay = 0.993 * (1 - math.exp(-update / 100)) if update > 1 else 0
        expected = decay * expected + (1 - decay) * network.box_head.layers[0].weight
        torch.testing.assert_close(average.network.box_head.layers[0].weight, expected, rtol=1e-12, atol=1e-12)  # order of rounding
    assert torch.equal(average.network.class_head.weight, frozen)
    ratio = Recipe(ema_decay=0.998, ema_warmup="ratio")
    assert [decay_at(ratio, n) for n in (1, 2, 90, 10**6)] == [0, 3 / 12, 0.91, 0.998]
    assert decay_at(Recipe(ema_tau=0), 2) == 0.993


def test_judge_wants_strictly_better_and_stops_after_patience() -> None:
    judge, recipe = Judge(), Recipe(patience=2, min_gain=0.01)
    told = [(judge.judge(e, {"raw": a, "ema": b}), judge.should_stop(recipe, 1, {"raw": a, "ema": b}))
            for e, (a, b) in enumerate([(0.1, 0.2), (0.2, 0.2), (0.205, 0.1), (0.3, 0.2), (0.1, 0.1), (0.305, 0.305)])]  # fmt: skip
    assert [kept for kept, _ in told] == [True, False, True, True, False, True]
    assert [stop for _, stop in told] == [False, False, True, False, False, True]
    assert judge.best == {"epoch": 5, "weights": "ema", "AP": 0.305}
