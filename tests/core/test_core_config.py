"""The variant table against recorded facts of the published family; what the record refuses; JSON round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidetr.core.config import LEVEL_SCALES, VARIANTS, ModelConfig, check_size, variant
from rapidetr.core.errors import ConfigError, NotSupportedYet

NANO = VARIANTS["nano"].to_dict()
OURS = ["pico", "seg-pico"]
OFFICIAL = [name for name in VARIANTS if name not in OURS]


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((golden / "variants.json").read_text())["variants"]
    return table


def test_the_table_has_every_published_variant_in_order(published: dict[str, Any]) -> None:
    assert [*OFFICIAL, "keypoint-preview"] == list(published)


def test_the_small_models_of_this_package() -> None:
    pico = VARIANTS["pico"]
    assert replace(pico, name="seg-pico", segmentation=True) == VARIANTS["seg-pico"]
    assert (pico.size_hw, pico.patch_size, pico.windows, pico.position_grid) == ((288, 288), 16, 2, 18)
    assert (pico.vit_width, pico.vit_depth, pico.stages) == (192, 6, (1, 3, 5, 6))
    assert (pico.width, pico.decoder_layers, pico.queries, pico.groups, pico.class_rows) == (128, 2, 50, 5, 9)
    assert [variant(name) for name in OURS] == [pico, VARIANTS["seg-pico"]]


@pytest.mark.parametrize("name", OFFICIAL)
def test_variant_is_as_published(name: str, published: dict[str, Any]) -> None:
    ours, theirs, derived = VARIANTS[name], published[name]["config"], published[name]["derived"]
    assert ours.name == name
    assert ours.size_hw == (theirs["resolution"], theirs["resolution"])
    assert (ours.patch_size, ours.windows, ours.position_grid) == (
        theirs["patch_size"], theirs["num_windows"], theirs["positional_encoding_size"])  # fmt: skip
    assert (ours.vit_width, ours.vit_depth, ours.vit_heads, ours.vit_mlp) == tuple(
        derived["vit"][key] for key in ("width", "depth", "heads", "mlp_hidden")
    )
    assert ours.registers == (4 if "registers" in theirs["encoder"] else 0)
    assert (list(ours.stages), list(ours.levels)) == (theirs["out_feature_indexes"], theirs["projector_scale"])
    assert [LEVEL_SCALES[level] for level in ours.levels] == derived["projector_scale_factors"]
    assert (ours.width, ours.self_heads, ours.cross_heads, ours.points) == (
        theirs["hidden_dim"], theirs["sa_nheads"], theirs["ca_nheads"], theirs["dec_n_points"])  # fmt: skip
    assert (ours.width // ours.self_heads, ours.width // ours.cross_heads) == (derived["sa_head_dim"], derived["ca_head_dim"])
    assert (ours.decoder_layers, ours.decoder_ffn, ours.queries, ours.groups) == (
        theirs["dec_layers"], derived["dim_feedforward"], theirs["num_queries"], theirs["group_detr"])  # fmt: skip
    assert ours.class_rows == derived["class_outputs"]
    assert (ours.box_reparam, ours.lite_refine) == (theirs["bbox_reparam"], theirs["lite_refpoint_refine"])
    assert (ours.segmentation, ours.mask_stride, ours.in_channels) == (
        theirs["segmentation_head"], theirs["mask_downsample_ratio"], theirs["num_channels"])  # fmt: skip
    assert ours.task == ("segment" if theirs["segmentation_head"] else "detect")
    assert ours.projector_eps == 1e-6
    assert ours.divisor == derived["divisor"]
    assert list(ours.global_blocks) == derived["global_blocks"]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_records_survive_json(name: str) -> None:
    again = ModelConfig.from_dict(json.loads(json.dumps(VARIANTS[name].to_dict())))
    assert again == VARIANTS[name]
    assert hash(again) == hash(VARIANTS[name])


def test_at_changes_size_and_head_only() -> None:
    wide = VARIANTS["nano"].at(size_hw=(320, 640), class_rows=4)
    assert wide.to_dict() == {**NANO, "size_hw": [320, 640], "class_rows": 4}
    assert wide.at() == wide


@pytest.mark.parametrize("name", ["nano", "Nano", "rf-detr-nano", "RFDETR-nano"])
def test_variant_by_name(name: str) -> None:
    assert variant(name) is VARIANTS["nano"]


def test_unknown_variant_lists_the_names() -> None:
    with pytest.raises(ConfigError) as caught:
        variant("huge")
    assert str(caught.value) == f"unknown model 'huge'; available: {', '.join(VARIANTS)}"
    with pytest.raises(ConfigError, match=r"^unknown model None; available: pico, nano, "):
        variant(None)  # type: ignore[arg-type]
    with pytest.raises(NotSupportedYet, match=r"^the keypoint preview is not supported yet; use a detection or segmentation variant$"):
        variant("keypoint-preview")


@pytest.mark.parametrize(
    ("size_hw", "message"),
    [
        ((500, 480), "image height 500 is not a multiple of 32 (patch 16 x 2 windows); use 480 or 512"),
        ((480, 500), "image width 500 is not a multiple of 32 (patch 16 x 2 windows); use 480 or 512"),
        ((31, 32), "image height 31 is not a multiple of 32 (patch 16 x 2 windows); use 32"),
        ((0, 32), "image height 0 is not a multiple of 32 (patch 16 x 2 windows); use 32"),
        ((32, -64), "image width -64 is not a multiple of 32 (patch 16 x 2 windows); use 32"),
    ],
)
def test_sizes_that_do_not_fit_name_those_that_do(size_hw: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_size(size_hw, 16, 2)
    assert str(caught.value) == message


def test_sizes_that_fit_pass_height_and_width_apart() -> None:
    check_size((32, 640), 16, 2)
    check_size((36, 60), 12, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_hw": [500, 384]}, "image height 500 is not a multiple of 32 (patch 16 x 2 windows); use 480 or 512"),
        ({"size_hw": [384]}, "size_hw is (384,); expected (height, width), each at least 32"),
        ({"size_hw": [384, 16]}, "size_hw is (384, 16); expected (height, width), each at least 32"),
        ({"stages": []}, "stages are (); expected rising block counts from 1 to 12"),
        ({"stages": [3, 3]}, "stages are (3, 3); expected rising block counts from 1 to 12"),
        ({"stages": [0, 3]}, "stages are (0, 3); expected rising block counts from 1 to 12"),
        ({"stages": [3, 13]}, "stages are (3, 13); expected rising block counts from 1 to 12"),
        ({"levels": []}, "levels are (); expected some of P3, P4, P5, P6, each once, P6 not first"),
        ({"levels": ["P2"]}, "levels are ('P2',); expected some of P3, P4, P5, P6, each once, P6 not first"),
        ({"levels": ["P6"]}, "levels are ('P6',); expected some of P3, P4, P5, P6, each once, P6 not first"),
        ({"levels": ["P4", "P4"]}, "levels are ('P4', 'P4'); expected some of P3, P4, P5, P6, each once, P6 not first"),
        ({"vit_heads": 7}, "vit_width 384 is not a multiple of vit_heads 7"),
        ({"self_heads": 3}, "width 256 is not a multiple of self_heads 3"),
        ({"cross_heads": 3}, "width 256 is not a multiple of cross_heads 3"),
        ({"width": 6, "self_heads": 2, "cross_heads": 2}, "width is 6; expected a multiple of 4 (the sine embedding needs it)"),
        ({"projector_eps": float("nan")}, "projector_eps is nan; expected a small number above 0"),
        ({"projector_eps": 0}, "projector_eps is 0; expected a small number above 0"),
        ({"registers": -1}, "registers is -1; expected a whole number from 0 to 1000000"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({**NANO, **change})
    assert str(caught.value) == message


WHOLE = [name for name, value in NANO.items() if type(value) is int and name != "registers"]


@pytest.mark.parametrize("value", [0, -16, 10**30])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; expected a whole number from 1 to 1000000$"):
        ModelConfig.from_dict({**NANO, name: value})


@pytest.mark.parametrize("name", list(NANO))
def test_every_field_must_be_there(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict({k: v for k, v in NANO.items() if k != name})
    assert str(caught.value) == f"model configuration: missing ['{name}'], unknown []"


@pytest.mark.parametrize("record", [None, [], "nano", {**NANO, "color": 1}, {**NANO, 3: 1}])
def test_other_records_are_refused(record: Any) -> None:
    with pytest.raises(ConfigError, match=r"^model configuration: missing \[.*\], unknown \[.*\]$"):
        ModelConfig.from_dict(record)


@pytest.mark.parametrize("name", list(NANO))
def test_mistyped_fields_are_refused(name: str) -> None:
    wrong: list[Any] = [None, {}, [None], b"x"]
    wrong += [True] if not isinstance(NANO[name], bool) else [1, "True"]
    wrong += [3] if isinstance(NANO[name], str | list) else ["3", [3]]
    wrong += [1.5] if type(NANO[name]) is not float else []
    for value in wrong:
        with pytest.raises(ConfigError, match=rf"^model configuration: {name} is .*; expected "):
            ModelConfig.from_dict({**NANO, name: value})
