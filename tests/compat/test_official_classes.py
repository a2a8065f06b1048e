"""The official classes: keywords, one in one out, class heads, and what is not there yet."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rapidetr import compat
from rapidetr.checkpoints.file import Checkpoint, official_name, save_checkpoint, save_official
from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.compat import RFDETR, RFDETRLarge, RFDETRNano, RFDETRSegNano, RFDETRSmall, from_checkpoint
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, CheckpointMissing, ConfigError, ImageMissing, LicenseRefused, NotSupportedYet
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision says at import that it runs without it

SMALL = {"device": "cpu", "resolution": 64}  # 16 tokens: the network runs in some 30 ms


@pytest.fixture(scope="module")
def model() -> RFDETR:
    return RFDETRNano(pretrain_weights=None, **SMALL)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official file with classes a, b, c that says it runs at 96x96; every row of its head has another bias."""
    network = build("nano", num_classes=3, size_hw=(96, 96), seed=0)
    with torch.no_grad():
        network.class_head.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    checkpoint = Checkpoint(network.state_dict(), network.config, LabelSpace.contiguous(["a", "b", "c"]), Preprocessing.official(), "")
    return save_official(checkpoint, tmp_path_factory.mktemp("fine") / "tuned.pth")


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def test_every_variant_has_its_official_class() -> None:
    official = [name for name in VARIANTS if not WEIGHTS[name].bundled]
    for name in official:
        kind = getattr(compat, official_name(name))
        assert (kind.__name__, kind.size) == (official_name(name), f"rfdetr-{name}")
        assert kind.__name__ in compat.__all__
    assert [name for name in compat.__all__ if "pico" in name.lower()] == []


def test_our_own_models_are_no_official_ones(tmp_path: Path) -> None:
    network = build("pico", seed=0)
    labels = LabelSpace.contiguous([f"thing {i}" for i in range(8)])
    path = save_checkpoint(Checkpoint(network.state_dict(), network.config, labels, Preprocessing(), ""), tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match=r"own\.safetensors: holds a pico, which is no official model; load it with rapidetr\.load"):
        from_checkpoint(path, device="cpu")


def test_one_gives_one_and_a_list_gives_a_list(model: RFDETR, picture: np.ndarray) -> None:
    alone = model.predict(picture, threshold=0.0)
    assert type(alone).__name__ == "Detections"
    assert len(alone) == 300
    for group in ([picture], (picture, Image.fromarray(picture))):
        found = model.predict(group, threshold=0.0)
        assert type(found) is list
        assert len(found) == len(group)
        # a neighbor in the batch changes the order of sums, and so the last digit
        assert all(np.allclose(one.confidence, alone.confidence, rtol=0, atol=1e-6) for one in found)
    assert model.predict([]) == []


def test_every_form_of_a_picture_gives_the_same(model: RFDETR, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)
    tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    want = model.predict(picture, threshold=0.0)
    for form in (path, str(path), path.read_bytes(), Image.fromarray(picture), tensor, (picture / 255).astype(np.float32)):
        found = model.predict(form, threshold=0.0)
        assert np.allclose(found.confidence, want.confidence, rtol=0, atol=1e-6)  # floats are divided by 255 elsewhere
        assert np.array_equal(found.metadata["source_image"], picture)


def test_nothing_above_the_threshold(model: RFDETR, picture: np.ndarray) -> None:
    found = model.predict(picture, threshold=0.99)
    assert len(found) == 0
    assert found.data["class_name"].shape == (0,)


def test_orientation_in_the_metadata_is_honored(model: RFDETR, picture: np.ndarray, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "t.jpg", exif=turned)
    assert model.predict(str(tmp_path / "t.jpg"), threshold=0.0).data["source_shape"][0].tolist() == [50, 40]


def test_shape_and_patch_size(model: RFDETR, picture: np.ndarray) -> None:
    wide, usual = model.predict(picture, 0.0, (64, 96), 16, False), model.predict(picture, 0.0)
    assert wide.metadata == {}
    assert not np.allclose(wide.xyxy, usual.xyxy)
    assert np.array_equal(model.predict(picture, 0.0, (64, 64)).xyxy, usual.xyxy)
    with pytest.raises(ConfigError, match=re.escape("image height 100 is not a multiple of 32 (patch 16 x 2 windows); use 96 or 128")):
        model.predict(picture, shape=(100, 64))
    with pytest.raises(ConfigError, match=re.escape("shape is 64; expected (height, width), two whole numbers")):
        model.predict(picture, shape=64)
    with pytest.raises(ConfigError, match="patch_size is 14; this network has 16; leave it out"):
        model.predict(picture, patch_size=14)


def test_bad_calls(model: RFDETR) -> None:
    with pytest.raises(TypeError, match="thresh"):
        model.predict("a.png", thresh=0.3)
    with pytest.raises(ImageMissing):
        model.predict("no-such-file.png")


def test_unknown_keywords_are_refused_with_those_there_are(fine_tuned: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^RFDETRNano: unknown keyword foo; expected some of accept_license, amp, .*, two_stage, use_"
    ) as told:
        RFDETRNano(foo=1)
    assert "trust_checkpoint" in str(told.value)
    with pytest.raises(ConfigError, match=r"^RFDETRNano: unknown keyword foo"):
        from_checkpoint(fine_tuned, foo=1)
    with pytest.raises(TypeError, match="positional"):
        RFDETRNano("nano.pth")


def test_keywords_that_would_make_another_network_are_refused() -> None:
    text = "RFDETRNano: patch_size is 14, but this network has 16; leave it out, or choose another class"
    with pytest.raises(ConfigError, match=text):
        RFDETRNano(pretrain_weights=None, patch_size=14)
    with pytest.raises(ConfigError, match="positional_encoding_size is 24, but this network has 4"):
        RFDETRNano(pretrain_weights=None, positional_encoding_size=24, **SMALL)
    with pytest.raises(NotSupportedYet, match=re.escape("RFDETRNano: backbone_lora=True is not supported yet; leave it out (it is False)")):
        RFDETRNano(backbone_lora=True)
    with pytest.raises(ConfigError, match="RFDETRNano: num_classes is 0; expected a whole number from 1 to 100000"):
        RFDETRNano(num_classes=0)
    with pytest.raises(ConfigError, match="image height 400 is not a multiple of 32"):
        RFDETRNano(pretrain_weights=None, device="cpu", resolution=400)


def test_the_official_defaults_can_be_written_out(model: RFDETR) -> None:
    told = {k: v for k, v in vars(model.model_config).items() if k != "pretrain_weights"}
    again = RFDETRNano(pretrain_weights=None, trust_checkpoint=True, **told)
    assert vars(again.model_config) == vars(model.model_config) | {"pretrain_weights": None}
    config = model.model_config
    assert (config.num_classes, config.num_queries, config.num_select, config.resolution, config.encoder) == (
        90,
        300,
        300,
        64,
        "dinov2_windowed_small",
    )


def test_attributes(model: RFDETR) -> None:
    assert model.class_names == compat.COCO_CLASS_NAMES
    assert (model.means, model.stds) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    inside = model.model
    assert (inside.model, inside.device, inside.resolution) == (model.detector.model, torch.device("cpu"), 64)
    assert inside.class_names == model.class_names


def test_fewer_queries_layers_and_results(picture: np.ndarray) -> None:
    lean = RFDETRNano(pretrain_weights=None, num_queries=10, num_select=7, dec_layers=1, **SMALL)
    assert len(lean.predict(picture, threshold=0.0)) == 7
    raw = lean.detector.engine.run(np.zeros((1, 3, 64, 64), np.float32))
    assert raw.boxes.shape == (1, 10, 4)
    assert lean.detector.engine.decoder_layers == 1
    assert (lean.model_config.dec_layers, lean.model_config.num_queries, lean.model_config.num_select) == (1, 10, 7)


@pytest.mark.parametrize(
    ("asked", "names", "bias"),
    [
        ({}, ["a", "b", "c", "__background__"], [0.1, 0.2, 0.3, 0.4]),
        ({"num_classes": 3}, ["a", "b", "c", "__background__"], [0.1, 0.2, 0.3, 0.4]),
        ({"num_classes": 5}, ["a", "b", "c", "", "", "__background__"], [0.1, 0.2, 0.3, 0.4, 0.1, 0.2]),
        ({"num_classes": 2}, ["a", "b", "__background__"], [0.1, 0.2, 0.3]),
    ],
)
def test_heads_are_repeated_or_cut(
    fine_tuned: Path, picture: np.ndarray, capsys: pytest.CaptureFixture[str], asked: dict[str, int], names: list[str], bias: list[float]
) -> None:
    tuned = RFDETRNano(pretrain_weights=fine_tuned, **SMALL, **asked)
    head = tuned.model.model.class_head.bias.detach().numpy()
    assert np.array_equal(head, np.float32(bias))
    found = tuned.predict(picture, threshold=0.0)
    assert set(zip(found.class_id.tolist(), found.data["class_name"].tolist(), strict=True)) <= set(enumerate(names))
    assert len(names) - 1 in found.class_id or len(names) != 4  # the largest bias of the untouched head is the background's
    assert tuned.model_config.num_classes == len(names) - 1
    note = capsys.readouterr().err
    assert ("class head" in note) == (len(names) != 4)


def test_from_checkpoint_finds_class_and_size(fine_tuned: Path) -> None:
    for call in (from_checkpoint, RFDETR.from_checkpoint, RFDETRLarge.from_checkpoint):
        model = call(fine_tuned, device="cpu")
        assert type(model) is RFDETRNano
        assert model.detector.size_hw == (96, 96)
        assert model.model_config.pretrain_weights == str(fine_tuned)
    assert from_checkpoint(fine_tuned, device="cpu", resolution=64, num_classes=1).model_config.num_classes == 1
    assert RFDETRNano(pretrain_weights=fine_tuned, device="cpu").detector.size_hw == (384, 384)  # the class's own, as officially


def test_the_name_of_another_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^nano is the name of a model, and model='small' of another one; "):
        RFDETRSmall(pretrain_weights="nano", device="cpu")


def test_own_files_load_too(model: RFDETR, picture: np.ndarray, tmp_path: Path) -> None:
    path = model.detector.save(tmp_path / "mine.safetensors")
    again = RFDETRNano(pretrain_weights=path, **SMALL)
    assert np.array_equal(again.predict(picture, 0.0).confidence, model.predict(picture, 0.0).confidence)


def test_files_that_do_not_fit_are_refused(fine_tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the file is no seg-nano"):
        RFDETRSegNano(pretrain_weights=fine_tuned, device="cpu")
    with pytest.raises(CheckpointMissing):
        RFDETRNano(pretrain_weights=tmp_path / "none.pth", device="cpu")
    with pytest.raises(ConfigError, match=r"RFDETR is what the classes share; use RFDETRNano\(\.\.\.\)"):
        RFDETR()


def test_names_of_published_files_mean_those_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fine_tuned: Path) -> None:
    asked = []
    monkeypatch.setattr("rapidetr.compat.models.fetch", lambda entry: asked.append(entry.filename) or fine_tuned)
    monkeypatch.chdir(tmp_path)
    RFDETRNano(pretrain_weights="rf-detr-nano.pth", **SMALL)
    assert asked == ["rf-detr-nano.pth"]


def test_platform_weights_need_a_file_and_acceptance(tmp_path: Path) -> None:
    with pytest.raises(LicenseRefused, match=re.escape("accept_license='PML-1.0'")):
        compat.RFDETRXLarge()
    with pytest.raises(
        LicenseRefused, match=r"rf-detr-xxlarge\.pth is under PML-1\.0 and is never downloaded; give the path of your own copy"
    ):
        compat.RFDETR2XLarge(accept_license="PML-1.0")


def test_keypoints_are_not_there_yet() -> None:
    with pytest.raises(NotSupportedYet, match="the keypoint preview is not supported yet; use a detection or segmentation variant"):
        compat.RFDETRKeypointPreview()
