"""`rapidetr info` and `rapidetr convert`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch

import rapidetr
from rapidetr.checkpoints.file import open_checkpoint
from rapidetr.checkpoints.weights import WEIGHTS


def test_info_says_what_a_file_holds(run, model):
    status, out, err = run("info", model)
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    state = open_checkpoint(model).state
    assert (status, err) == (0, "")
    assert facts["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["model"] == "tiny-det, detect"
    assert facts["classes"] == "3 in a head of 4 rows: cat (10), dog (20), 7 (30)"
    assert facts["licence"] == "Apache-2.0"
    assert facts["provenance"] == "source a test"
    assert facts["parameters"].startswith(f"{sum(t.numel() for t in state.values()) / 1e6:.2f} M, ")
    assert "published" not in facts


def test_info_as_json_has_all_of_it(run, model):
    status, out, err = run("info", model, "--json", "--quiet")
    record, checkpoint = json.loads(out), open_checkpoint(model)
    assert (status, err) == (0, "")
    assert record["config"] == checkpoint.config.to_dict()
    assert record["labels"] == checkpoint.labels.to_dict()
    assert record["preprocessing"] == checkpoint.preprocessing.to_dict()
    assert record["bytes"] == model.stat().st_size
    assert record["dtypes"] == ["float32"]
    assert record["parameters_deployed"] < record["parameters"]


def test_info_recognizes_a_published_file_by_its_hash(run, model, monkeypatch):
    entry = replace(WEIGHTS["nano"], md5=hashlib.md5(model.read_bytes()).hexdigest())
    monkeypatch.setitem(WEIGHTS, "nano", entry)
    assert "published   rf-detr-nano.pth" in run("info", model)[1].splitlines()


def test_info_refuses_a_file_that_wants_to_run_code(run, tmp_path):
    class Hostile:
        def __reduce__(self):
            return print, ("run!",)

    torch.save({"model": Hostile()}, tmp_path / "bad.pth")
    status, out, err = run("info", "bad.pth")
    assert (status, out) == (2, "")
    assert err.startswith("rapidetr: error: bad.pth: wants ")
    assert err.count("\n") == 1


def test_convert_deploy_and_half_keep_the_weights(run, model, tmp_path):
    status, out, err = run("convert", model, "small.safetensors", "--deploy", "--half")
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "small.safetensors")
    assert (status, err) == (0, "")
    assert "note: training groups dropped: same answers, smaller file; fine-tune from the full file instead" in out
    assert "note: weights rounded to float16" in out
    assert (after.config.groups, before.config.groups) == (1, 2)
    assert (after.labels, after.license, after.preprocessing) == (before.labels, before.license, before.preprocessing)
    assert {t.dtype for t in after.state.values()} == {torch.float16}
    assert all(torch.equal(tensor.half(), after.state[name]) for name, tensor in before.deployed().state.items())


def test_convert_to_the_official_layout(run, model, tmp_path):
    status, out, _ = run("convert", model, "official.pth", "--to", "official", "--json")
    assert status == 0
    assert json.loads(out)["format"] == "official"
    raw = torch.load(tmp_path / "official.pth", weights_only=True)
    assert raw["args"]["class_names"] == ["cat", "dog", "7"]
    assert "transformer.decoder.norm.weight" in raw["model"]


@pytest.mark.slow
def test_convert_to_the_official_layout_and_back_gives_the_same_bits(run, tmp_path):
    network = rapidetr.build("nano", num_classes=2, seed=0)
    rapidetr.Detector.from_module(network, rapidetr.LabelSpace.contiguous(["cat", "dog"])).save("ours.safetensors")
    assert run("convert", "ours.safetensors", "official.pth")[0] == 0
    assert run("convert", "official.pth", "again.safetensors")[0] == 0
    before, after = (open_checkpoint(tmp_path / name) for name in ("ours.safetensors", "again.safetensors"))
    assert (before.config, before.labels) == (after.config, after.labels)
    assert list(before.state) == list(after.state)
    assert all(torch.equal(tensor, after.state[name]) for name, tensor in before.state.items())


def test_convert_never_replaces_by_accident(run, model, tmp_path):
    before = model.read_bytes()
    assert run("convert", model, model, "--force") == (
        2,
        "",
        f"rapidetr: error: {model}: IN and OUT are the same file; choose another OUT\n",
    )
    (tmp_path / "there.safetensors").write_text("precious")
    status, _, err = run("convert", model, "there.safetensors")
    assert (status, err) == (2, "rapidetr: error: there.safetensors: exists already; choose another OUT, or replace it with --force\n")
    assert (tmp_path / "there.safetensors").read_text() == "precious"
    assert run("convert", model, "there.safetensors", "--force")[0] == 0
    assert open_checkpoint(tmp_path / "there.safetensors").config == open_checkpoint(model).config
    assert model.read_bytes() == before


def test_convert_wants_an_ending_that_fits(run, model):
    ends = "expected a name that ends in"
    assert run("convert", model, "out.onnx")[2] == f"rapidetr: error: out.onnx: {ends} .safetensors or .pth or .pt\n"
    message = f"rapidetr: error: out.safetensors: {ends} .pth or .pt for the official format\n"
    assert run("convert", model, "out.safetensors", "--to", "official") == (2, "", message)


def test_weights_under_a_platform_licence_need_acceptance(run, make_model):
    model = make_model("tiny_few", license="PML-1.0")
    status, _, err = run("convert", model, "out.safetensors")
    assert status == 2
    assert "is under PML-1.0" in err
    assert run("convert", model, "out.safetensors", "--accept-license", "PML-1.0")[0] == 0
    assert run("info", model)[0] == 0  # looking at a file is not using it
