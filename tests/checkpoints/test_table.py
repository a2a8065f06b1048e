"""Names and shapes of every published variant, against the lists of the official package and of the Hugging Face port."""

from __future__ import annotations

import json
from pathlib import Path

import cases
import pytest
import torch

from rapidetr.checkpoints.configure import configure, label_space
from rapidetr.checkpoints.file import official_name
from rapidetr.checkpoints.table import DROPPED, from_ours, to_ours
from rapidetr.checkpoints.unpickle import Contents
from rapidetr.checkpoints.weights import WEIGHTS
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, KeyMismatch, NotSupportedYet
from rapidetr.model.build import build_empty

OFFICIAL = [name for name in VARIANTS if not WEIGHTS[name].bundled]


def listed(name: str) -> dict[str, list[int]]:
    record = json.loads((Path(cases.HERE) / f"state_dict_{name}.json").read_text())
    return {k: v["shape"] if isinstance(v, dict) else v for k, v in record.items()}


def contents(shapes: dict[str, list[int]], **args) -> Contents:
    state = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
    return Contents(state=state, args=args, model_config=None, model_name=None, version=None, kind="rfdetr")


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names_and_shapes(name: str) -> None:
    config = VARIANTS[name]
    ours = build_empty(config).state_dict()
    theirs = {n: list(t.shape) for n, t in from_ours(ours, config).items()}
    assert theirs == {n: s for n, s in listed(name).items() if not DROPPED.fullmatch(n)}
    counted = json.loads((cases.HERE / "variants.json").read_text())["variants"][name]["params_total_default_config"]
    assert sum(t.numel() for t in ours.values()) == counted


@pytest.mark.parametrize("name", ["nano", "seg-nano"])
def test_huggingface_names_and_shapes(name: str) -> None:
    config = VARIANTS[name]
    ours = build_empty(config).state_dict()
    theirs = {n: list(t.shape) for n, t in from_ours(ours, config, "huggingface").items()}
    assert theirs == listed(f"hf_{name}")


# the Hugging Face port knows one level only
THERE_AND_BACK = [(c, "official") for c in cases.TINY] + [(c, "huggingface") for c in cases.TINY if c != "tiny_multi"]


@pytest.mark.parametrize(("case", "dialect"), THERE_AND_BACK)
def test_there_and_back_is_the_same(case: str, dialect: str) -> None:
    config, ours = cases.config_of(case), cases.network(case).state_dict()
    back = to_ours(from_ours(ours, config, dialect), config, {n: t.shape for n, t in ours.items()}, dialect)
    assert list(back) == list(ours)
    assert all(torch.equal(back[n], ours[n]) for n in ours)


def test_mismatches_are_listed_in_full() -> None:
    config = cases.config_of("tiny_det")
    ours = cases.network("tiny_det").state_dict()
    theirs = from_ours(ours, config)
    del theirs["class_embed.bias"]
    theirs["class_embed.extra"] = torch.zeros(1)
    theirs["query_feat.weight"] = torch.zeros(3, 64)
    theirs["_kp_active_mask"] = torch.zeros(0, 0, dtype=torch.bool)
    with pytest.raises(KeyMismatch) as caught:
        to_ours(theirs, config, {n: t.shape for n, t in ours.items()})
    assert str(caught.value) == (
        "parameters do not fit the network; 1 missing: class_embed.bias; 1 left over: class_embed.extra; "
        "1 of another shape: query_feat.weight is [3, 64], expected [60, 64]; name the right variant with model=..., or check the file"
    )


@pytest.mark.parametrize("name", OFFICIAL)
def test_configuration_is_read_from_shapes(name: str) -> None:
    config, notes = configure(contents(listed(name)))
    assert config == VARIANTS[name]
    assert notes == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_configuration_follows_the_name_at_another_size(name: str) -> None:
    """At a changed size shapes are ambiguous; what the file says of itself decides."""
    shapes = listed(name)
    grid = "backbone.0.encoder.encoder.embeddings.position_embeddings"
    shapes[grid] = [1, 1 + 20**2, shapes[grid][2]]
    side = 20 * VARIANTS[name].patch_size if VARIANTS[name].patch_size != 14 else 560
    told = contents(shapes, resolution=side)
    told.model_name = official_name(name)
    config, _ = configure(told)
    assert (config.name, config.windows, config.position_grid, config.size_hw) == (name, VARIANTS[name].windows, 20, (side, side))


@pytest.mark.parametrize("side", [["a", "b"], [None, 1], 288_000_000, 0, [384, 384.5], [True, 384]])
def test_a_size_that_is_none_is_refused(side: object) -> None:
    with pytest.raises(CheckpointError, match=r"^the file says it runs at .*; expected one or two whole numbers of pixels, at most 8192$"):
        configure(contents(listed("nano"), resolution=side))


def test_class_names_by_numbers_and_texts() -> None:
    told = contents(listed("nano"), class_names={1: "b", "0": "a", 0: "c"})
    assert label_space(told, 4).names == ("c", "b", "a")


@pytest.mark.parametrize("name", ["pico", "seg-pico"])
def test_small_models_are_told_from_published_ones_by_their_shapes(name: str) -> None:
    shapes = {n: list(t.shape) for n, t in from_ours(build_empty(VARIANTS[name]).state_dict(), VARIANTS[name]).items()}
    assert configure(contents(shapes)) == (VARIANTS[name], [])


def test_ambiguous_files_are_refused_with_the_question() -> None:
    shapes = listed("seg-nano")
    grid = "backbone.0.encoder.encoder.embeddings.position_embeddings"
    shapes[grid] = [1, 1 + 20**2, 384]
    question = "how many windows its encoder uses; say which it is with model='seg-preview' or 'seg-nano' or 'seg-small'"
    with pytest.raises(CheckpointError, match=question):
        configure(contents(shapes))
    assert configure(contents(shapes), "seg-small")[0].windows == 2
    assert configure(contents(shapes), "seg-nano")[0].windows == 1


def test_wrong_variant_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        configure(contents(listed("nano")), "small")
    assert str(caught.value) == "the file is no small: decoder_layers 2 (expected 3); the file looks like nano"


def test_shapes_overrule_names() -> None:
    for name, file in (("large", "rf-detr-large.pth"), ("large-deprecated", "rf-detr-large-2026.pth")):
        assert configure(contents(listed(name), pretrain_weights=file))[0] == VARIANTS[name]


def test_published_variant_keeps_its_queries() -> None:
    shapes = listed("seg-large")
    for name in ("refpoint_embed.weight", "query_feat.weight"):
        shapes[name] = [13 * 300, *shapes[name][1:]]
    config, notes = configure(contents(shapes))
    assert config == VARIANTS["seg-large"]
    assert notes == ["seg-large uses 200 of the 300 queries a group that the file holds"]


def test_keypoints_are_named_but_not_supported() -> None:
    with pytest.raises(NotSupportedYet, match="keypoint checkpoint; keypoints are not supported yet"):
        configure(contents(listed("keypoint-preview")))


def test_label_rules() -> None:
    def labels(rows: int, **args):
        return label_space(contents({}, **args), rows)

    coco = labels(91)
    assert (len(coco), coco.dataset_ids[-1], coco.head_rows) == (80, 90, 91)
    assert labels(91, class_names=list(coco.names), num_classes=90) == coco
    fine = labels(4, class_names=["a", "b", "c"], num_classes=3)
    assert (fine.names, fine.rows, fine.dataset_ids, fine.head_rows) == (("a", "b", "c"), (0, 1, 2), (0, 1, 2), 4)
    # 80 classes of one's own that happen to bear COCO's names: as many rows as fine-tuning gives, so contiguous
    assert labels(81, class_names=list(coco.names), num_classes=80).rows == tuple(range(80))
    assert labels(4).names == ("class 0", "class 1", "class 2")
