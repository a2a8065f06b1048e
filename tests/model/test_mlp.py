"""The frugal products are the plain expression, bit by bit, and keep less."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rapidetr.model.mlp import gelu_mlp, relu_mlp

KINDS = {"gelu": (gelu_mlp, F.gelu), "relu": (relu_mlp, F.relu)}
NAMES = ("x", "up.weight", "up.bias", "down.weight", "down.bias")


def make(dtype=torch.float32):
    torch.manual_seed(0)
    up, down = nn.Linear(24, 96).to(dtype), nn.Linear(96, 24).to(dtype)
    return up, down, torch.randn(2, 3, 50, 24, dtype=dtype)


def gradients(call, up, down, x, wanted):
    """(answer, gradients of the `wanted` ones of NAMES)."""
    leaves = [x.clone(), *up.parameters(), *down.parameters()]
    for name, leaf in zip(NAMES, leaves, strict=True):
        leaf.requires_grad_(name in wanted)
        leaf.grad = None
    answer = call(leaves[0])
    answer.float().square().mean().backward()
    return answer, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_and_gradients_are_those_of_the_plain_expression(kind, autocast, dtype):
    ours, activation = KINDS[kind]
    up, down, x = make(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        want, wanted = gradients(lambda x: down(activation(up(x))), up, down, x, NAMES)
        got, found = gradients(lambda x: ours(up, down, x), up, down, x, NAMES)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)
    for name, a, b in zip(NAMES, found, wanted, strict=True):
        assert torch.equal(a, b), name
        assert a.dtype == b.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_learns_gets_a_gradient(kind):
    ours, activation = KINDS[kind]
    up, down, x = make()
    for size in (1, 2):
        for wanted in itertools.combinations(NAMES, size):
            _, found = gradients(lambda x: ours(up, down, x), up, down, x, wanted)
            _, plain = gradients(lambda x: down(activation(up(x))), up, down, x, wanted)
            for name, a, b in zip(NAMES, found, plain, strict=True):
                assert (a is None) == (b is None), (wanted, name)
                assert a is None or torch.equal(a, b), (wanted, name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    ours, _ = KINDS[kind]
    up, down, x = make(torch.float64)
    x = x[:1, :1, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w, b, v, c: _call(ours, x, w, b, v, c), (x, *up.parameters(), *down.parameters()))


def _call(ours, x, *parameters):
    up, down = nn.Linear(24, 96, dtype=x.dtype), nn.Linear(96, 24, dtype=x.dtype)
    del up.weight, up.bias, down.weight, down.bias
    up.weight, up.bias, down.weight, down.bias = parameters
    return ours(up, down, x)


@pytest.mark.parametrize("kind", KINDS)
def test_one_hidden_tensor_is_kept(kind):
    ours, _ = KINDS[kind]
    up, down, x = make()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ours(up, down, x.requires_grad_())
    assert sum(shape[-1] == 96 and shape.numel() > 96 * 24 for shape in kept) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_nothing_is_kept_and_the_answer_is_the_same(kind):
    ours, activation = KINDS[kind]
    up, down, x = make()
    with torch.no_grad():
        assert torch.equal(ours(up, down, x), down(activation(up(x))))
