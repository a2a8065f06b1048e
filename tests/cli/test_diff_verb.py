"""`rapidetr diff`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapidetr.checkpoints.file import open_checkpoint, save_checkpoint
from rapidetr.draw.heat import draw_heat, draw_panels


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Path:
    """The same model, one weight of its second block changed."""
    checkpoint = open_checkpoint(model)
    checkpoint.state["vit.blocks.1.down.weight"][0, 0] += 0.5
    return save_checkpoint(checkpoint, tmp_path / "changed.safetensors")


def test_a_model_and_itself(run, model, pictures):
    status, out, err = run("diff", model, model, pictures / "one.png", "--device", "cpu")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split() == ["stage", "max", "abs", "mean", "abs", "max", "rel", "mean", "rel"]
    assert lines[1].split() == ["pixels", "pixels", *["0.0e+00"] * 4]
    assert lines[-2] == "detections above 0.5: 0 and 0, 0 the same; largest shifts: score 0.0e+00, box 0.0e+00 pixels"
    assert lines[-1] == "nothing differs (tolerance 0.001)"


def test_a_changed_weight_is_named_and_drawn(run, model, changed, pictures, tmp_path):
    words = ("diff", model, changed, pictures, "--threshold", 0.01, "--device", "cpu", "--out", "parted", "--json")
    status, out, err = run(*words)
    record = json.loads(out)
    assert status == 1
    assert "first difference: vit.blocks.1 (tolerance 0.001)" in err
    assert (record["first_stage"], record["first"], record["second"]) == ("vit.blocks.1", str(model), str(changed))
    assert [s["differs"] for s in record["stages"] if s["name"] in ("pixels", "vit.blocks.0", "vit.blocks.1")] == [False, False, True]
    assert len(record["pictures"]) == 3
    assert [Path(file).name for file in record["files"]] == ["diff.json", "000-one.png", "001-two.png", "002-one.png"]
    stored = json.loads(Path("parted/diff.json").read_text())
    assert stored == {k: v for k, v in record.items() if k != "files"}
    sheet = Image.open("parted/000-one.png")
    assert sheet.size == (3 * 60, 40 + 26)  # both detections and the map, each under its caption
    assert np.asarray(sheet)[26:, 120:].any()


def test_a_wider_tolerance_is_kept(run, model, changed, pictures):
    assert run("diff", model, changed, pictures / "one.png", "--tolerance", 1000, "--device", "cpu")[0] == 0
    status, _, err = run("diff", model, changed, pictures / "one.png", "--tolerance", "-1", "--device", "cpu")
    assert status == 2
    assert "1 pictures, tolerance -1.0; expected at least one picture, and 0 or more" in err


def test_heat_runs_from_black_to_white():
    image = np.asarray(draw_heat(np.array([[0.0, 1.0], [np.nan, 0.5]]), (4, 6), white=1.0))
    assert image.shape == (4, 6, 3)
    assert image[[0, 0, 3, 3], [0, 5, 0, 5]].tolist() == [[0, 0, 0], [255, 255, 255], [255, 255, 255], [255, 128, 0]]
    assert np.asarray(draw_heat(np.full((2, 2), 1e-6), (2, 2), white=1e-3)).max() <= 1  # of 255: rounding stays dark


def test_panels_stand_side_by_side():
    sheet = draw_panels(
        [("a caption that is too long for it", Image.new("RGB", (50, 30), "red")), ("", Image.new("RGB", (50, 30), "blue"))]
    )
    pixels = np.asarray(sheet)
    assert pixels.shape == (30 + 26, 100, 3)
    assert (pixels[26:, :50] == (255, 0, 0)).all()
    assert (pixels[26:, 50:] == (0, 0, 255)).all()
    assert (pixels[:26, :50] < 128).any()
    assert (pixels[:26, 50:] == 255).all()
