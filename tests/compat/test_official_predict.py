"""Our predict and the compat classes against what the official package returned (tests/golden/make_official_predict.py)."""

from __future__ import annotations

from pathlib import Path

import cases
import make_official_predict as official
import numpy as np
import pytest

from rapidetr import compat
from rapidetr.checkpoints.file import Checkpoint, save_official
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing

# the promise: ours is the same function, and fp32 rounding moves scores by some 1e-5 and boxes by some 1e-3 of a pixel
SCORES, BOXES_PX = 1e-4, 0.05
CASES = {"nano": "nano_384", "seg-nano": "seg-nano_312"}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")]


@pytest.fixture(scope="module", params=list(CASES))
def parity_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(variant, its parity-filled network in official format)."""
    network = cases.network(CASES[request.param])
    filled = Checkpoint(network.state_dict(), network.config, LabelSpace.coco(), Preprocessing.official(), "")
    return request.param, save_official(filled, tmp_path_factory.mktemp("parity") / f"{request.param}.pth")


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "official_predict.npz") as arrays:
        return dict(arrays)


def test_native_and_compat_predict_what_the_official_package_predicts(
    parity_checkpoint: tuple[str, Path], stored: dict[str, np.ndarray]
) -> None:
    name, path = parity_checkpoint
    model = getattr(compat, official.CLASSES[name])(pretrain_weights=path, device="cpu")
    pictures = [official.picture(*which) for which in official.PICTURES[name]]
    native = model.detector.predict(pictures, official.THRESHOLD[name], include_unnamed=True)
    for i, (one, found) in enumerate(zip(native, model.predict(pictures, official.THRESHOLD[name]), strict=True)):
        want = {key.removeprefix(f"{name}_{i}_"): value for key, value in stored.items() if key.startswith(f"{name}_{i}_")}
        assert len(want["confidence"]) >= 20
        assert one.head_rows.tolist() == found.class_id.tolist() == want["class_id"].tolist()
        assert found.data["class_name"].tolist() == want["class_name"].tolist()
        assert found.data["source_shape"].tolist() == [list(pictures[i].shape[:2])] * len(found)
        for scores, boxes in ((one.scores, one.boxes_xyxy_px), (found.confidence, found.xyxy)):
            np.testing.assert_allclose(scores, want["confidence"], rtol=0, atol=SCORES)
            np.testing.assert_allclose(boxes, want["xyxy"], rtol=0, atol=BOXES_PX)
        if name == "seg-nano":
            check_masks(found.mask, want, pictures[i].shape[1])
            # both pictures in one batch round differently from one at a time, where a mask logit is almost zero
            assert np.mean(one.masks.dense() != found.mask) < 1e-5


def check_masks(masks: np.ndarray, want: dict[str, np.ndarray], width: int) -> None:
    """Logits within rounding of 0 may fall to either side: one pixel in 10,000."""
    pixels = masks[0].size
    assert masks.dtype == bool
    assert np.abs(masks.sum((1, 2)) - want["mask_area"]).max() <= 1e-4 * pixels + 1
    if "mask_bits" in want:
        expected = np.unpackbits(want["mask_bits"], axis=-1, count=width).astype(bool)
        assert (masks ^ expected).mean() < 1e-4
