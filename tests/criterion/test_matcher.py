"""Matching against brute force, alone and in a batch, and when costs are no numbers."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.criterion import matcher
from rapidetr.criterion.boxes import overlap
from rapidetr.criterion.matcher import match
from rapidetr.criterion.targets import Target, pack
from rapidetr.model.outputs import LayerOutput

CLASSES = 5


def layer(images: int, queries: int, seed: int = 0) -> LayerOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, queries, CLASSES, generator=generator, dtype=torch.float64)
    return LayerOutput(logits, torch.rand(images, queries, 4, generator=generator, dtype=torch.float64), None)


def target(count: int, seed: int) -> Target:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    return Target(torch.randint(CLASSES, (count,), generator=generator), boxes)


def slow_cost(logits: Tensor, box: Tensor, label: int, wanted: Tensor) -> float:
    """One query and one object, as written in the paper."""
    p = float(logits[label].sigmoid())
    focal = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
    return float(5 * (box - wanted).abs().sum() + 2 * focal - 2 * overlap(box, wanted)[1])


def cheapest(costs: np.ndarray) -> set[tuple[int, int]]:
    """All ways to give n rows different columns, tried one by one; rows or columns may be the fewer."""
    if costs.shape[0] > costs.shape[1]:
        return {(row, column) for column, row in cheapest(costs.T)}
    ways = itertools.permutations(range(costs.shape[1]), costs.shape[0])
    best = min(ways, key=lambda way: sum(costs[row, column] for row, column in enumerate(way)))
    return set(enumerate(best))


@pytest.mark.parametrize(("queries", "counts"), [(5, (3, 0, 2)), (3, (5, 1, 0)), (4, (4, 4, 4))])
def test_every_group_of_every_layer_is_cheapest(queries: int, counts: tuple[int, ...]) -> None:
    """Also with more objects than queries: the cheapest of them are matched."""
    groups, layers = 2, [layer(3, 2 * queries, 1), layer(3, 2 * (queries - 1), 2)]
    targets = [target(n, 10 + i) for i, n in enumerate(counts)]
    objects = pack(targets, layers[0].boxes)
    for answer, pairs in zip(layers, match(layers, objects, groups), strict=True):
        size = answer.logits.shape[1] // groups
        found = list(zip(pairs.image.tolist(), pairs.query.tolist(), pairs.object.tolist(), strict=True))
        assert found == sorted(found)  # image by image, rising queries: the order in which mask points are drawn
        assert pairs.counts == [groups * min(n, size) for n in counts]
        for i, group in itertools.product(range(3), range(groups)):
            here = {(o - objects.starts[i], q - group * size) for image, q, o in found if image == i and q // size == group}
            wanted = zip(targets[i].labels.tolist(), targets[i].boxes, strict=True)
            costs = np.array(
                [
                    [slow_cost(answer.logits[i, q], answer.boxes[i, q], c, box) for q in range(group * size, (group + 1) * size)]
                    for c, box in wanted
                ]
            ).reshape(counts[i], size)
            assert here == cheapest(costs)


def test_an_image_is_matched_alike_alone_and_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, targets = layer(4, 24), [target(n, n) for n in (7, 0, 3, 12)]
    together = match([answer], pack(targets, answer.boxes), 2)[0]
    start = 0
    for i, single in enumerate(targets):
        alone = LayerOutput(answer.logits[i : i + 1], answer.boxes[i : i + 1], None)
        pairs = match([alone], pack([single], alone.boxes), 2)[0]
        mine = together.image == i
        assert torch.equal(pairs.query, together.query[mine])
        assert torch.equal(pairs.object, together.object[mine] - start)
        start += len(single.labels)
    monkeypatch.setattr(matcher, "PIECE", 1)  # one object at a time
    assert all(torch.equal(a, b) for a, b in zip(match([answer], pack(targets, answer.boxes), 2)[0][:3], together[:3], strict=True))


def test_costs_that_are_no_numbers_come_last_and_stop_nothing() -> None:
    answer, targets = layer(2, 6), [target(2, 1), target(2, 2)]
    answer.logits[0] = float("nan")
    answer.boxes[1, [0, 2, 3, 5]] = float("inf")
    pairs = match([answer], pack(targets, answer.boxes), 1)[0]
    assert pairs.counts == [2, 2]
    assert pairs.query[2:].tolist() == [1, 4]  # the only two with finite boxes
    answer.logits[:] = float("nan")
    assert match([answer], pack(targets, answer.boxes), 1)[0].counts == [2, 2]


def test_replaced_costs_exceed_all_others() -> None:
    replaced = matcher._finite(np.array([[np.nan, -3.0], [np.inf, 2.0]]))
    assert replaced.tolist() == [[6.0, -3.0], [6.0, 2.0]]  # max 2, + max of absolute values 3, + 1


def test_no_objects_at_all() -> None:
    answer = layer(2, 6)
    pairs = match([answer], pack([target(0, 1), target(0, 2)], answer.boxes), 3)[0]
    assert pairs.query.shape == pairs.object.shape == pairs.image.shape == (0,)
    assert pairs.counts == [0, 0]


def test_memory_of_800_boxes_stays_within_the_stated_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No intermediate result has more than PIECE elements of four coordinates, nor is it compared with other images' objects."""
    seen: list[int] = []
    real = overlap

    def spy(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(first.numel())
        return real(first, second)

    monkeypatch.setattr(matcher, "overlap", spy)
    monkeypatch.setattr(matcher, "PIECE", 2**14)
    layers, targets = [layer(2, 120, i) for i in range(3)], [target(800, 1), target(1, 2)]
    pairs = match(layers, pack(targets, layers[0].boxes), 4)
    assert max(seen) <= 4 * 2**14
    assert sum(seen) == 4 * 801 * 360
    assert pairs[0].counts == [120, 4]


def test_groups_that_do_not_divide() -> None:
    answer = layer(1, 10)
    with pytest.raises(ConfigError) as problem:
        match([answer], pack([target(1, 1)], answer.boxes), 3)
    assert str(problem.value) == "10 queries do not divide into 3 groups; pass the groups that the forward pass was asked for"


def test_a_target_for_each_image() -> None:
    with pytest.raises(ConfigError) as problem:
        pack([target(1, 1)], torch.zeros(2, 5, 4))
    assert str(problem.value) == "1 targets for a batch of 2 images; give one for each image, empty where nothing is"


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    answer = layer(1, 4)
    with pytest.raises(BackendMissing) as problem:
        match([answer], pack([target(1, 1)], answer.boxes), 1)
    assert str(problem.value) == "matching objects to queries needs scipy; install it with: pip install 'rapidetr[train]'"
