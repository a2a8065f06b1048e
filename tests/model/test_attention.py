"""Half precision on a CPU goes its own way through attention: as exact as torch's, and with less kept."""

import pytest
import torch
from torch.nn import functional as F

from rapidetr.model import frugal
from rapidetr.model.attention import attend

SHAPE = (3, 4, 70, 16)


def leaves(dtype, shape=SHAPE):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]


def answer_and_gradients(call, parts):
    torch.manual_seed(1)
    answer = call(*parts)
    wanted = torch.randn(answer.shape).to(answer.dtype)
    return [answer.detach(), *torch.autograd.grad((answer * wanted).sum(), parts)]


def errors(found, exact):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("piece", "most"), [(2**20, 16), (1, 16), (70 * 70 * 5, 16), (2**20, 1)])
def test_half_precision_is_as_near_to_fp64_as_torch(monkeypatch, dtype, piece, most):
    monkeypatch.setattr(frugal, "PIECE", piece)
    monkeypatch.setattr(frugal, "MOST", most)
    parts = leaves(dtype)
    exact = answer_and_gradients(F.scaled_dot_product_attention, [part.detach().double().requires_grad_() for part in parts])
    ours = errors(answer_and_gradients(attend, parts), exact)
    torchs = errors(answer_and_gradients(F.scaled_dot_product_attention, parts), exact)
    # scores are rounded once more than in the fused kernel, by half a step of the type
    step = torch.finfo(dtype).eps
    assert all(a <= b + step for a, b in zip(ours, torchs, strict=True)), (ours, torchs)


def test_pieces_change_nothing(monkeypatch):
    whole = answer_and_gradients(attend, leaves(torch.bfloat16))
    monkeypatch.setattr(frugal, "PIECE", 1)
    for a, b in zip(answer_and_gradients(attend, leaves(torch.bfloat16)), whole, strict=True):
        assert torch.equal(a, b)


def test_autocast_around_it_changes_nothing():
    plain = answer_and_gradients(attend, leaves(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        around = answer_and_gradients(attend, leaves(torch.bfloat16))
    for a, b in zip(plain, around, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_the_gradient_of_one_packed_tensor():
    """As the blocks have q, k and v: three parts of one product, heads apart."""
    torch.manual_seed(0)
    packed = torch.randn(2, 30, 3, 4, 16).bfloat16().requires_grad_()
    found = torch.autograd.grad(attend(*packed.permute(2, 0, 3, 1, 4)).float().square().sum(), packed)[0]
    apart = [part.detach().double().requires_grad_() for part in packed.permute(2, 0, 3, 1, 4)]
    exact = torch.autograd.grad(F.scaled_dot_product_attention(*apart).square().sum(), apart)
    assert found.shape == packed.shape
    assert max(errors(found.permute(2, 0, 3, 1, 4), exact)) < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torchs_own(dtype):
    want = answer_and_gradients(F.scaled_dot_product_attention, leaves(dtype))
    for a, b in zip(answer_and_gradients(attend, leaves(dtype)), want, strict=True):
        assert torch.equal(a, b)


def test_without_gradients_it_is_torchs_own():
    parts = leaves(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(attend(*parts), F.scaled_dot_product_attention(*parts))


def test_probabilities_are_not_kept():
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        attend(*leaves(torch.bfloat16, (2, 4, 200, 16)))
    assert kept == 3 * 2 * 4 * 200 * 16
