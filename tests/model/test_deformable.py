"""The frugal mix of samples is the plain expression, bit by bit, and keeps less."""

import pytest
import torch

from rapidetr.model.deformable import mix, sample

SHAPES = [[(5, 4)], [(6, 7), (3, 4)]]
B, M, dh, Q, P = 2, 3, 4, 7, 2


def leaves(shapes, dtype):
    torch.manual_seed(0)
    L = len(shapes)
    values = torch.randn(B, M, dh, sum(h * w for h, w in shapes), dtype=dtype)
    where = torch.rand(B, Q, M, L, P, 2, dtype=dtype) * 1.4 - 0.2  # some outside
    weights = torch.rand(B, Q, M, L * P, dtype=dtype)
    return [part.requires_grad_() for part in (values, where, weights)]


def plain(values, where, weights, shapes):
    return (sample(values, where, shapes) * weights.permute(0, 2, 3, 1).unsqueeze(2)).sum(3)


def ours(values, where, weights, shapes):
    return mix(values, where, weights.permute(0, 2, 3, 1), shapes)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_and_gradients_are_those_of_the_plain_expression(shapes, dtype):
    parts = leaves(shapes, dtype)
    found, want = ours(*parts, shapes), plain(*parts, shapes)
    assert torch.equal(found, want)
    torch.manual_seed(1)
    gradient = torch.randn(want.transpose(2, 3).shape, dtype=dtype).transpose(2, 3)  # as the product after it hands it back
    for a, b in zip(torch.autograd.grad(found, parts, gradient), torch.autograd.grad(want, parts, gradient), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shapes", SHAPES)
def test_gradients_are_those_of_finite_differences(shapes):
    assert torch.autograd.gradcheck(lambda *parts: ours(*parts, shapes), leaves(shapes, torch.float64))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen):
    parts = leaves(SHAPES[1], torch.float32)
    want = torch.autograd.grad(plain(*parts, SHAPES[1]).sum(), parts)
    parts[frozen].requires_grad_(False)
    ours(*parts, SHAPES[1]).sum().backward()
    for i, (part, gradient) in enumerate(zip(parts, want, strict=True)):
        assert part.grad is None if i == frozen else torch.equal(part.grad, gradient)


def test_values_in_half_precision_are_widened_and_get_their_own_type_back():
    values, where, weights = leaves(SHAPES[0], torch.float32)
    narrow = values.detach().bfloat16().requires_grad_()
    found, want = ours(narrow, where, weights, SHAPES[0]), plain(narrow, where, weights, SHAPES[0])
    assert found.dtype == torch.float32
    assert torch.equal(found, want)
    assert torch.autograd.grad(found.sum(), narrow)[0].dtype == torch.bfloat16


def test_samples_are_not_kept():
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
        ours(*leaves(SHAPES[0], torch.float32), SHAPES[0])
    assert B * M * dh * P * Q not in sizes
