"""The whole criterion: values of the official package, normaliser, precision, zero targets, blame."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import parity_fill
import pytest
import torch
from cases import INDEX, TRAINED, config_of, images, network
from torch import Tensor

from rapidetr.checkpoints.table import from_ours
from rapidetr.core.errors import ConfigError
from rapidetr.criterion.classification import KINDS
from rapidetr.criterion.criterion import Criterion, Losses, finite_images
from rapidetr.criterion.matcher import match
from rapidetr.criterion.targets import Target, pack
from rapidetr.model.outputs import FactoredMasks, LayerOutput, Output

DETECTION = tuple(case for case in TRAINED if case != "tiny_seg")
OFFICIAL = {"focal": "focal", "varifocal": "varifocal", "position": "position_supervised"}


@pytest.fixture(scope="module")
def records(golden: Path) -> dict[str, dict]:
    return json.loads((golden / "golden_train.json").read_text())


def stored(golden: Path, case: str) -> dict[str, Tensor]:
    with np.load(golden / f"golden_{case}_train.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}


def targets_of(case: str, arrays: dict[str, Tensor], counts: list[int]) -> list[Target]:
    (height, width), classes = INDEX[case]["sizes"][0], config_of(case).class_rows - 1
    targets = []
    for i, count in enumerate(counts):
        masks = torch.from_numpy(parity_fill.targets(i, count, classes, height, width)["masks"])
        targets.append(Target(arrays[f"target{i}_labels"], arrays[f"target{i}_boxes"], masks))
    return targets


def stored_output(arrays: dict[str, Tensor]) -> Output:
    last = LayerOutput(arrays["pred_logits"], arrays["pred_boxes"], None)
    return Output(last.logits, last.boxes, None, (last,), LayerOutput(arrays["enc_pred_logits"], arrays["enc_pred_boxes"], None))


def compare(losses: Losses, expected: dict[str, float], rtol: float, names: set[str] | None = None) -> None:
    found = {name: float(value) for name, value in {**losses.terms, **losses.logged}.items()}
    assert names is not None or set(found) == set(expected)
    for name in names or expected:
        assert found[name] == pytest.approx(expected[name], rel=rtol), name


@pytest.mark.parametrize("case", DETECTION)
def test_stored_outputs_give_the_official_matches_and_losses(case: str, golden: Path, records: dict[str, dict]) -> None:
    arrays, record = stored(golden, case), records[case]
    output, targets = stored_output(arrays), targets_of(case, arrays, record["target_counts"])
    objects = pack(targets, output.boxes)
    for suffix, pairs in zip(("", "_enc"), match([output.layers[0], output.proposals], objects, 3), strict=True):
        official = [arrays[f"match{suffix}_{i}"] for i in range(len(targets))]
        assert pairs.counts == [m.shape[1] for m in official]
        assert pairs.query.tolist() == torch.cat([m[0] for m in official]).tolist()
        assert (pairs.object - torch.tensor(objects.starts)[pairs.image]).tolist() == torch.cat([m[1] for m in official]).tolist()
    # both sides add up in fp32: some units in the last of 24 bits
    parts = {name + end for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error") for end in ("", "_enc")} | {"class_error"}
    compare(Criterion()(output, targets, groups=3), record["losses"], 5e-7, parts)
    for kind, name in OFFICIAL.items():
        losses = Criterion(kind)(output, targets, groups=3)
        compare(losses, record["alternative_loss_ce"][name], 5e-7, {"loss_ce", "loss_ce_enc"})


def run(case: str, golden: Path, record: dict, criterion: Criterion, dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, Losses]:
    """The whole network in training mode on the case's pictures, with its stored random draws."""
    model, arrays = network(case).to(dtype).train(), stored(golden, case)
    draws = iter([arrays[name] for name in sorted(arrays) if name.startswith("rand")])

    def draw(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        points = next(draws)
        assert tuple(points.shape) == tuple(shape)
        return points.to(device, dtype)

    output = model(images(case).to(dtype), config_of(case).groups, every_layer=True)
    losses = criterion(output, targets_of(case, arrays, record["target_counts"]), groups=config_of(case).groups, draw=draw)
    assert next(draws, None) is None
    return model, losses


@pytest.mark.parametrize("case", TRAINED)
def test_network_and_criterion_give_the_official_losses_and_gradients(case: str, golden: Path, records: dict[str, dict]) -> None:
    record, arrays = records[case], stored(golden, case)
    model, losses = run(case, golden, record, Criterion())
    compare(losses, record["losses"], 1e-5)  # the official package's own fp32 rounding moves losses by a few 1e-6
    assert float(losses.total.detach()) == pytest.approx(record["total"], rel=1e-5)
    assert {name: Criterion().weight(name) for name in losses.terms} == record["weights"]
    losses.total.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == ["vit.mask_token"]  # frozen: nothing reads it
    gradients = from_ours({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}, config_of(case))
    rtol = 1e-3 if case == "tiny_seg" else 1e-4  # rounding of the official gradients; more through uncertain mask points
    for name, (norm, _) in record["grad_norm_and_sum"].items():
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=rtol), name
        first, official = gradients[name].flatten()[:64], arrays[f"grad:{name}"]
        assert float((first - official).norm()) <= rtol * float(official.norm()), name


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("kind", sorted(OFFICIAL))
def test_network_and_alternative_losses(case: str, kind: str, golden: Path, records: dict[str, dict]) -> None:
    _, losses = run(case, golden, records[case], Criterion(kind))
    expected = records[case]["alternative_loss_ce"][OFFICIAL[kind]]
    compare(losses, expected, 1e-5, set(expected))


@pytest.mark.parametrize("case", DETECTION)
def test_evaluation_mode_uses_one_group(case: str, golden: Path, records: dict[str, dict]) -> None:
    with torch.no_grad():
        output = network(case)(images(case), 1, every_layer=True)
    losses = Criterion()(output, targets_of(case, stored(golden, case), records[case]["target_counts"]), groups=1)
    compare(losses, records[case]["eval_losses"], 1e-5)


def small(dtype: torch.dtype = torch.float64, segmentation: bool = False) -> Output:
    """Two decoder layers and proposals of 2 groups x 3 queries, 2 images, 4 classes."""
    generator = torch.Generator().manual_seed(5)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)

    def layer() -> LayerOutput:
        boxes = torch.rand(2, 6, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2
        masks = FactoredMasks(*(normal(*s).to(dtype).requires_grad_() for s in ((2, 3, 8, 8), (2, 6, 3), (1,))))
        return LayerOutput(normal(2, 6, 4).to(dtype).requires_grad_(), boxes.to(dtype).requires_grad_(), masks if segmentation else None)

    layers = (layer(), layer())
    return Output(layers[-1].logits, layers[-1].boxes, None, layers, layer())


def objects(counts: tuple[int, int] = (2, 1)) -> list[Target]:
    generator = torch.Generator().manual_seed(6)
    boxes = [torch.rand(n, 4, generator=generator, dtype=torch.float64) * 0.5 + 0.2 for n in counts]
    masks = [torch.rand(n, 16, 16, generator=generator) > 0.5 for n in counts]
    return [Target(torch.arange(n) % 4, b, m) for n, b, m in zip(counts, boxes, masks, strict=True)]


def leaves(output: Output) -> list[Tensor]:
    layers = [*output.layers, output.proposals]
    return [x for layer in layers if layer for x in (layer.logits, layer.boxes, *(layer.masks or ()))]


def test_total_is_the_weighted_sum_in_fp64() -> None:
    recipe = Criterion(ce=2.0, bbox=3.0, giou=0.5, mask_ce=0.25, mask_dice=7.0)
    losses = recipe(small(segmentation=True), objects(), groups=2)
    weights = {"ce": 2.0, "bbox": 3.0, "giou": 0.5, "mask_ce": 0.25, "mask_dice": 7.0}
    names = {f"loss_{part}{end}": weight for part, weight in weights.items() for end in ("", "_0", "_enc")}
    assert set(losses.terms) == set(names)
    assert losses.total.dtype == torch.float64
    assert float(losses.total.detach()) == pytest.approx(sum(weight * float(losses.terms[n]) for n, weight in names.items()), rel=1e-14)


@pytest.mark.parametrize(
    ("change", "asked", "factor"),
    [({}, 3, 1.0), ({}, 6.0, 0.5), ({}, torch.tensor(1.5), 2.0), ({"sum_group_losses": True}, None, 2.0), ({}, 0.1, 6.0)],
)
def test_normalizer(change: dict, asked: float | Tensor | None, factor: float) -> None:
    """3 objects x 2 groups divide the sums; never less than 1."""
    plain, other = Criterion()(small(), objects(), groups=2), Criterion(**change)(small(), objects(), groups=2, normalizer=asked)
    # a float32 count is as exact as a float64 one here, but products round
    assert float(other.total.detach()) == pytest.approx(factor * float(plain.total.detach()), rel=1e-12)


def test_two_halves_with_the_mean_count_give_the_whole() -> None:
    """What two processes compute apart, averaged, is what one computes of the joined batch."""
    output, targets = small(), objects()
    whole = Criterion()(output, targets, groups=2).total
    halves = []
    for i in range(2):
        part = [LayerOutput(layer.logits[i : i + 1], layer.boxes[i : i + 1], None) for layer in (*output.layers, output.proposals) if layer]
        half = Output(part[1].logits, part[1].boxes, None, tuple(part[:2]), part[2])
        halves.append(Criterion()(half, targets[i : i + 1], groups=2, normalizer=1.5).total)
    assert float(sum(halves).detach() / 2) == pytest.approx(float(whole.detach()), rel=1e-12)


@pytest.mark.parametrize("segmentation", [False, True])
def test_no_objects_at_all_keeps_every_output_connected(segmentation: bool) -> None:
    output = small(segmentation=segmentation)
    losses = Criterion()(output, objects((0, 0)), groups=2)
    gradients = torch.autograd.grad(losses.total, leaves(output))
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[0].any()  # background is learned
    assert {float(v) for name, v in losses.terms.items() if not name.startswith("loss_ce")} == {0.0}
    assert float(losses.logged["class_error"]) == 0


def test_one_object_more_than_queries() -> None:
    losses = Criterion()(small(segmentation=True), objects((4, 1)), groups=2)
    assert losses.total.isfinite()


def test_everything_is_computed_in_fp32_under_bf16_autocast() -> None:
    """Masks are products: autocast would round them to 8 bits."""
    draw = iter([torch.rand(s, generator=torch.Generator().manual_seed(1)) for s in [(1, 4, 2)] * 3 + [(6, 24, 2), (6, 2, 2)] * 3] * 2)
    recipe, output = Criterion(), small(torch.float32, segmentation=True)
    plain = recipe(output, objects(), groups=2, draw=lambda *_, **__: next(draw))
    with torch.autocast("cpu", torch.bfloat16):
        cast = recipe(output, objects(), groups=2, draw=lambda *_, **__: next(draw))
    assert torch.equal(plain.total, cast.total)
    assert plain.total.dtype == torch.float32


def test_bf16_outputs_are_widened_before_use() -> None:
    low = small(torch.bfloat16)
    wide = small()
    for a, b in zip(leaves(low), leaves(wide), strict=True):
        b.data = a.detach().double()
    losses = [Criterion()(output, objects(), groups=2).total.detach() for output in (low, wide)]
    assert losses[0].dtype == torch.float32
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)  # fp32 sums of the same numbers


@pytest.mark.parametrize("kind", KINDS[1:])
def test_gradient_is_the_slope(kind: str) -> None:
    """Matches stay put under small changes. IoU counts without gradient: only logits move here, and boxes below."""
    output, targets = small(), objects()

    def total(*logits: Tensor) -> Tensor:
        layers = [LayerOutput(z, layer.boxes.detach(), None) for z, layer in zip(logits, (*output.layers, output.proposals), strict=True)]
        return Criterion(kind)(Output(layers[1].logits, layers[1].boxes, None, tuple(layers[:2]), layers[2]), targets, groups=2).total

    assert torch.autograd.gradcheck(total, tuple(layer.logits for layer in (*output.layers, output.proposals) if layer), fast_mode=True)


@pytest.mark.parametrize(("bbox", "giou"), [(1.0, 0.0), (0.0, 1.0)])
def test_gradient_of_boxes_is_the_slope_of_l1_and_giou(bbox: float, giou: float) -> None:
    output, targets = small(), objects()

    def total(boxes: Tensor) -> Tensor:
        layer = LayerOutput(output.logits.detach(), boxes, None)
        return Criterion(ce=0, bbox=bbox, giou=giou)(Output(layer.logits, boxes, None, (layer,)), targets, groups=2).total

    assert torch.autograd.gradcheck(total, output.boxes, fast_mode=True)


def test_images_that_are_to_blame() -> None:
    output, targets = small(segmentation=True), objects()
    assert finite_images(output, targets) == [True, True]
    bad = [targets[0], targets[1]._replace(boxes=targets[1].boxes * float("nan"))]
    assert finite_images(output, bad) == [True, False]
    masks = output.layers[0].masks
    assert masks is not None
    masks.queries.data[0, 0, 0] = float("inf")
    assert finite_images(output, targets) == [False, True]
    losses = Criterion()(output, bad, groups=2)  # reported, not raised: the caller skips the step
    assert not losses.total.isfinite()


def test_class_weights_need_a_row_each() -> None:
    same = Criterion(class_weights=(1.0,) * 4)(small(), objects(), groups=2)
    assert torch.equal(same.total, Criterion()(small(), objects(), groups=2).total)
    more = Criterion(class_weights=(1.0, 5.0, 1.0, 1.0))(small(), objects(), groups=2)
    assert float(more.terms["loss_ce"]) > float(same.terms["loss_ce"])
    with pytest.raises(ConfigError) as problem:
        Criterion(class_weights=(1.0, 2.0))(small(), objects(), groups=2)
    assert str(problem.value) == "2 class weights for a class head of 4 rows; give one for each row"


def test_unknown_classification_loss() -> None:
    with pytest.raises(ConfigError) as problem:
        Criterion("hinge")
    assert str(problem.value) == "classification loss is 'hinge'; expected one of ia-bce, focal, varifocal, position"
