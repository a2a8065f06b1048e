"""Muon against closed forms: the polynomial by SVD, AdamW by torch's own, and which weights are hidden matrices."""

from __future__ import annotations

from pathlib import Path

import cases
import pytest
import torch
from small_runs import assert_same_end, run, write_scenes

from rapidetr.core.errors import ConfigError
from rapidetr.training.loop import Place
from rapidetr.training.muon import Muon, is_hidden, orthogonalize
from rapidetr.training.optimizer import make_optimizer
from rapidetr.training.recipe import Recipe


@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (48, 48)])
def test_orthogonalize_moves_singular_values_and_nothing_else(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(matrix), u @ torch.diag(s) @ v, rtol=0, atol=1e-5)  # 1e-7 is added to the norm
    if shape != (48, 48):  # a square one may have tiny singular values, which five steps do not bring up
        assert 0.6 < float(s.min()) <= float(s.max()) < 1.3


def parameter(shape: tuple[int, ...], seed: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def test_what_is_no_hidden_matrix_learns_as_by_adamw() -> None:
    ours, theirs = ([parameter((7,), 1), parameter((4, 64), 2)] for _ in range(2))
    names = ["norm.weight", "class_head.weight"]
    muon = Muon([{"params": ours, "names": names, "lr": 0.01, "weight_decay": 0.1}])
    adamw = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for step in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = parameter(tuple(a.shape), 10 + step).data
            b.grad = a.grad.clone()
        muon.step()
        adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the order of roundings


def test_first_step_of_a_hidden_matrix() -> None:
    """Orthogonal, of root mean square 0.2 * factor * rate for a square matrix; q, k and v each for itself."""
    start = parameter((96, 32), 3)
    weight = torch.nn.Parameter(start.detach().clone())
    weight.grad = torch.cat([parameter((32, 32), 4 + i).data * 10.0**i for i in range(3)])
    muon = Muon([{"params": [weight], "names": ["attention.qkv.weight"]}], lr=0.01, factor=3.0)
    muon.step()
    moved = (start - weight).detach().split(32)
    for part, gradient in zip(moved, weight.grad.split(32), strict=True):
        torch.testing.assert_close(part, 0.01 * 3.0 * 0.2 * 32**0.5 * orthogonalize(gradient), rtol=1e-4, atol=1e-6)


def test_hidden_matrices_of_a_network() -> None:
    network = cases.network("tiny_seg")
    hidden = {name for name, p in network.named_parameters() if is_hidden(name, p)}
    assert {"vit.blocks.0.attention.qkv.weight", "decoder.layers.0.up.weight", "proposals.groups.0.linear.weight"} <= hidden
    others = {name for name, p in network.named_parameters() if p.dim() > 1} - hidden
    assert {"vit.patch.weight", "vit.positions", "query_content", "query_boxes", "class_head.weight"} <= others


def test_the_recipe_knows_it_and_says_what_it_cannot_take() -> None:
    recipe = Recipe(optimizer="Muon", optimizer_options={"momentum": 0.9}, rates="uniform", lr=3e-4)
    optimizer = make_optimizer(cases.network("tiny_det"), recipe)
    assert isinstance(optimizer, Muon)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    with pytest.raises(ConfigError, match=r"^optimizer Muon with options .* cannot be made: momentum is 1; expected 0 up to"):
        make_optimizer(cases.network("tiny_det"), Recipe(optimizer="Muon", optimizer_options={"momentum": 1}))


def test_a_run_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "data", train=4)
    run(scenes, tmp_path / "whole", optimizer="Muon")

    def stop(place: Place) -> None:
        if place.epoch == 0 and place.done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scenes, tmp_path / "parts", optimizer="Muon", save_minutes=0, on_step=stop)
    run(scenes, tmp_path / "parts", optimizer="Muon")
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
