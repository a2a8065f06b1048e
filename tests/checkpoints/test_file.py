"""Our file format, official files written and read back, Hugging Face files, adaptation, and damaged headers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cases
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rapidetr.checkpoints.file import Checkpoint, open_checkpoint, save_checkpoint, save_official, write_atomically
from rapidetr.checkpoints.table import from_ours
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, CheckpointMissing, KeyMismatch
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def checkpoint(case: str = "tiny_det") -> Checkpoint:
    network = cases.network(case)
    labels = LabelSpace.contiguous(NAMES, dataset_ids=(3, 5, 7, 9, 11, 13))
    provenance = {"command": "rapidetr train", "epochs": 3}
    return Checkpoint(network.state_dict(), network.config, labels, Preprocessing(), "Apache-2.0", provenance)


@pytest.mark.parametrize("case", cases.TINY)
def test_own_format_keeps_everything(case: str, tmp_path: Path) -> None:
    before = checkpoint(case)
    path = save_checkpoint(before, tmp_path / "deep" / "mine.safetensors")
    after = open_checkpoint(path)
    assert (after.config, after.labels, after.preprocessing) == (before.config, before.labels, before.preprocessing)
    assert (after.license, after.provenance, after.notes) == (before.license, before.provenance, ())
    assert all(torch.equal(after.state[n], t) for n, t in before.state.items())
    assert set(after.state) == set(before.state)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["rapidetr"])
    assert (header["format_version"], header["config"]["vit_width"], header["labels"]["dataset_ids"][0]) == (1, 48, 3)
    assert [p.name for p in path.parent.iterdir()] == ["mine.safetensors"]  # no temporary file stays


def test_sixteen_bit_files_load_as_fp32(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(), tmp_path / "half.safetensors", dtype=torch.float16)
    network = open_checkpoint(path).network()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    full = checkpoint().network()
    worst = max(float((a - b).detach().abs().max()) for a, b in zip(network.parameters(), full.parameters(), strict=True))
    assert 0 < worst < 4 * 2**-10  # fp16 keeps 11 bits, the largest weight is below 8


def test_deployed_file_gives_the_same_answers_and_says_what_it_lost(tmp_path: Path) -> None:
    full = checkpoint()
    slim = full.deployed()
    path = save_checkpoint(slim, tmp_path / "slim.safetensors")
    loaded = open_checkpoint(path)
    assert (loaded.config.groups, loaded.config.queries) == (1, full.config.queries)
    assert slim.notes == ("training groups dropped: same answers, smaller file; fine-tune from the full file instead",)
    with torch.no_grad():
        a, b = full.network()(cases.images("tiny_det")), loaded.network()(cases.images("tiny_det"))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.boxes, b.boxes)


def test_official_file_written_and_read_back(tmp_path: Path) -> None:
    network = build("nano", num_classes=3, seed=1)
    before = Checkpoint(network.state_dict(), network.config, LabelSpace.contiguous("abc"), Preprocessing(), "Apache-2.0")
    after = open_checkpoint(save_official(before, tmp_path / "official.pth"))
    assert (after.config, after.labels) == (before.config, before.labels)
    assert after.preprocessing == Preprocessing.official()
    assert after.license == ""  # nothing in the file states one
    assert all(torch.equal(after.state[n], t) for n, t in before.state.items())
    record = torch.load(tmp_path / "official.pth", weights_only=True)
    assert record["model_name"] == "RFDETRNano"
    told = {k: record["args"][k] for k in ("num_classes", "class_names", "num_queries", "group_detr", "patch_size", "resolution")}
    assert told == {
        "num_classes": 3,
        "class_names": ["a", "b", "c"],
        "num_queries": 300,
        "group_detr": 13,
        "patch_size": 16,
        "resolution": 384,
    }


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_that_are_no_floating_point_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save_checkpoint(checkpoint(), tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        header, state = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 - not a dict
    save_file({**state, "class_head.bias": state["class_head.bias"].to(dtype)}, path, header)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: class_head\.bias is (int8|complex64); expected floating point weights$"):
        open_checkpoint(path)


def test_surplus_queries_of_a_published_variant_are_cut_in_each_group(tmp_path: Path) -> None:
    config = replace(VARIANTS["seg-large"], queries=300)
    network = build(config, seed=0)
    state = network.state_dict()
    path = save_official(Checkpoint(state, config, LabelSpace.coco(), Preprocessing(), ""), tmp_path / "seg-large.pth")
    after = open_checkpoint(path)
    assert after.config == VARIANTS["seg-large"]
    assert after.notes == ("seg-large uses 200 of the 300 queries a group that the file holds",)
    expected = state["query_content"].view(13, 300, 256)[:, :200].reshape(-1, 256)
    assert torch.equal(after.state["query_content"], expected)


@pytest.mark.parametrize("name", ["nano", "seg-nano"])
def test_huggingface_file(name: str, tmp_path: Path) -> None:
    network = build(name, seed=2)
    state = {n: t.contiguous().clone() for n, t in from_ours(network.state_dict(), network.config, "huggingface").items()}
    save_file(state, tmp_path / "model.safetensors")
    config = json.loads((cases.HERE / f"config_hf_{name}.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    after = open_checkpoint(tmp_path / "model.safetensors")
    assert after.config == replace(VARIANTS[name], projector_eps=1e-5)
    assert after.labels == LabelSpace.coco()
    assert all(torch.equal(after.state[n], t) for n, t in network.state_dict().items())


def test_adaptation_follows_the_official_rules_and_says_so() -> None:
    before = checkpoint()
    labels = LabelSpace.contiguous([f"c{i}" for i in range(9)])
    want = replace(before.config, class_rows=10, queries=15, groups=2, position_grid=6)
    after = before.adapted(want, labels)
    assert after.notes == (
        "class head repeated cyclically from 7 to 10 rows",
        "queries cut from 3 groups of 20 to 2 of 15",
        "position grid resized from 8 to 6",
    )
    rows = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert torch.equal(after.state["class_head.weight"], before.state["class_head.weight"][rows])
    assert torch.equal(after.state["proposals.groups.1.classes.bias"], before.state["proposals.groups.1.classes.bias"][rows])
    assert torch.equal(after.state["query_boxes"], before.state["query_boxes"].view(3, 20, 4)[:2, :15].reshape(30, 4))
    assert not any(n.startswith("proposals.groups.2") for n in after.state)
    after.network()(torch.zeros(1, 3, 64, 64))
    # resizing the stored grid once equals resizing it in the forward, if that is the grid in use
    with torch.no_grad():
        image = cases.images("tiny_det")[:1, :, :48, :48]
        once = before.adapted(replace(before.config, position_grid=6, size_hw=(48, 48)), before.labels).network()(image)
        every_time = before.network()(image)
    torch.testing.assert_close(once.logits, every_time.logits, rtol=0, atol=1e-6)
    cut = before.adapted(before.config.at(class_rows=4), LabelSpace.contiguous("abc"))
    assert torch.equal(cut.state["class_head.bias"], before.state["class_head.bias"][:4])
    with pytest.raises(CheckpointError, match=r"these weights cannot become a nano: .*decoder_layers 2 -> 3"):
        before.adapted(replace(before.config, decoder_layers=3), labels)
    with pytest.raises(CheckpointError, match=r"the file holds 3 groups of 20 queries; expected at least 3 of 21; .*--groups 3"):
        before.adapted(replace(before.config, queries=21), labels)


def header_of(path: Path) -> tuple[dict, dict]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["rapidetr"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118


DAMAGES = {
    "format version 2; this release reads version 1": lambda h: h.update(format_version=2),
    "missing ['windows'], unknown []": lambda h: h["config"].pop("windows"),
    "missing [], unknown ['extra']": lambda h: h["config"].update(extra=1),
    "vit_depth is '6'; expected int": lambda h: h["config"].update(vit_depth="6"),
    "100000 blocks, layers and groups": lambda h: h["config"].update(vit_depth=99_995, stages=[1, 3, 5, 6]),
    "labels: rows must lie in 0..2": lambda h: h["labels"].update(head_rows=3),
    "labels for 9 rows, a head of 7": lambda h: h["labels"].update(head_rows=9),
    "predict_filter is 'area'": lambda h: h["preprocessing"].update(predict_filter="area"),
    "vit_width is 1073741824; expected a whole number from 1 to 1000000": lambda h: h["config"].update(vit_width=2**30, vit_heads=7),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_headers_are_refused_in_one_line(message: str, tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(), tmp_path / "a.safetensors")
    header, state = header_of(path)
    DAMAGES[message](header)
    save_file(state, path, {"rapidetr": json.dumps(header)})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert f"{path}: damaged header: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_huge_shapes_in_a_header_allocate_nothing(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(), tmp_path / "a.safetensors")
    header, state = header_of(path)
    header["config"].update(vit_width=3 * 2**18, vit_mlp=2**19)
    save_file(state, path, {"rapidetr": json.dumps(header)})
    with pytest.raises(KeyMismatch, match="of another shape: vit"):
        open_checkpoint(path)


def test_lost_and_surplus_parameters_are_listed(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(), tmp_path / "a.safetensors")
    header, state = header_of(path)
    state["more"] = state.pop("class_head.bias")
    save_file(state, path, {"rapidetr": json.dumps(header)})
    with pytest.raises(KeyMismatch, match=r"1 missing: class_head\.bias; 1 left over: more"):
        open_checkpoint(path)


def test_cut_off_file_and_missing_file(tmp_path: Path) -> None:
    path = save_checkpoint(checkpoint(), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file .* copy or download it again"):
        open_checkpoint(path)
    with pytest.raises(CheckpointMissing, match="no such file; expected a checkpoint file; model names such as 'nano' are for --model"):
        open_checkpoint(tmp_path / "none.pth")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def crash(part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, crash)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
