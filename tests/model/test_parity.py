"""The network against values of the official package, at every depth."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch

from rapidetr.model.rfdetr import RfDetr

# fp32 rounding of the official package itself reaches 5e-5 on logits, 6e-6 on boxes and 7e-5 on masks (against fp64)
LOGITS, BOXES, MASKS = 2e-4, 3e-5, 5e-4


class Taps:
    """What flows between the parts of the network, caught by forward hooks."""

    def __init__(self, network: RfDetr) -> None:
        self.references: list[torch.Tensor] = []
        self.hs: list[torch.Tensor] = []
        self.seen: dict[str, object] = {"references": self.references, "hs": self.hs}
        network.vit.register_forward_hook(lambda m, i, o: self.seen.__setitem__("features", o))
        network.projector.register_forward_hook(lambda m, i, o: self.seen.__setitem__("levels", o))
        network.proposals.register_forward_hook(lambda m, i, o: self.seen.__setitem__("proposals", o))
        network.decoder.position.register_forward_hook(self._first_position)
        for layer in network.decoder.layers:
            layer.register_forward_pre_hook(lambda m, i: self.references.append(i[2]))
        network.decoder.norm.register_forward_hook(lambda m, i, o: self.hs.append(o))

    def _first_position(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        self.seen.setdefault("position", output)


def far(ours: torch.Tensor, golden: np.ndarray) -> float:
    return float((ours.double() - torch.from_numpy(golden).double()).abs().max())


def run(case: str, dtype: torch.dtype):
    network = cases.network(case).to(dtype)
    taps = Taps(network)
    with torch.no_grad():
        output = network(cases.images(case).to(dtype), every_layer=True)
        lean = network(cases.images(case).to(dtype))
    return network, output, lean, taps.seen


@pytest.mark.parametrize("case", [*cases.TINY, *(pytest.param(c, marks=pytest.mark.slow) for c in cases.BIG)])
def test_fp32_at_every_depth(case: str) -> None:
    golden = cases.load(case)
    _, output, lean, seen = run(case, torch.float32)
    full = "query_pos" in golden
    for i, feature in enumerate(seen["features"]):
        stored = golden[f"feat{i}_sample"]
        shown = feature if feature.shape == stored.shape else feature[:, ::16, ::4, ::4]
        assert far(shown, stored) < 2e-4
        np.testing.assert_allclose(golden[f"feat{i}_stats"], statistics(feature), rtol=1e-4, atol=1e-5)
    for i, level in enumerate(seen["levels"]):
        assert far(level if full else level[:, ::8, ::2, ::2], golden[f"proj{i}"]) < 2e-4
    proposals = seen["proposals"]
    assert np.array_equal(proposals.tokens.numpy(), golden["enc_topk_index"])
    assert far(proposals.logits.amax(-1), golden["enc_topk_score"]) < LOGITS
    if full:
        assert far(seen["position"], golden["query_pos"]) < 2e-4
        assert far(seen["hs"][0], golden["hs_0"]) < 2e-4
    hs_last = seen["hs"][len(output.layers) - 1]
    assert far(hs_last if full else hs_last[:, ::3], golden["hs_last"]) < 2e-4
    reference = golden["ref_points"][0] if cases.config_of(case).box_reparam else 1 / (1 + np.exp(-golden["ref_points"][0]))
    assert far(seen["references"][0], reference) < BOXES
    assert far(output.proposals.logits, golden["enc_pred_logits"]) < LOGITS
    assert far(output.proposals.boxes, golden["enc_pred_boxes"]) < BOXES
    for i, layer in enumerate(output.layers[:-1]):
        assert far(layer.boxes, golden[f"aux{i}_pred_boxes"]) < BOXES
        if full:
            assert far(layer.logits, golden[f"aux{i}_pred_logits"]) < LOGITS
    difference = (output.logits - torch.from_numpy(golden["pred_logits"])).abs()
    assert float(difference.max()) < LOGITS
    assert float(difference.mean()) < 1e-5
    assert far(output.boxes, golden["pred_boxes"]) < BOXES
    assert torch.equal(lean.logits, output.logits)
    assert torch.equal(lean.boxes, output.boxes)
    if "pred_masks_first3" in golden:
        check_masks(output, lean, golden)


@torch.no_grad()
def check_masks(output, lean, golden: dict[str, np.ndarray]) -> None:
    assert far(lean.masks[:, :3], golden["pred_masks_first3"]) < MASKS
    assert far(lean.masks.mean((2, 3)), golden["pred_masks_mean"]) < MASKS
    assert far(lean.masks.std((2, 3)), golden["pred_masks_std"]) < MASKS
    # stored as float16: 11 bits of the largest value on top of the tolerance
    assert far(lean.masks, golden["pred_masks_f16"].astype(np.float32)) < MASKS + float(lean.masks.abs().max()) * 2**-11
    first = output.proposals.masks.dense()
    assert far(first[:, :1], golden["enc_pred_masks_first1"]) < MASKS
    assert far(first.mean((2, 3)), golden["enc_pred_masks_mean"]) < MASKS
    assert torch.equal(output.layers[-1].masks.dense(), lean.masks)


@pytest.mark.parametrize("case", [*cases.TINY, *(pytest.param(c, marks=pytest.mark.slow) for c in cases.BIG)])
def test_fp64_is_exact(case: str) -> None:
    golden = cases.load(case)
    _, output, _, seen = run(case, torch.float64)
    assert np.array_equal(seen["proposals"].tokens.numpy(), golden["enc_topk_index"])
    assert far(output.boxes, golden["pred_boxes_f64"]) < 1e-6
    stored = torch.from_numpy(golden["pred_logits_f64"]).double()  # stored as float32
    assert float(((output.logits - stored).abs() / stored.abs().clamp(min=1)).max()) < 1e-6


def statistics(x: torch.Tensor) -> list[float]:
    x = x.double()
    return [float(x.mean()), float(x.std()), float(x.abs().mean()), float(x.abs().max())]
