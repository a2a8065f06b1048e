"""The weights table against the copied facts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rapidetr.checkpoints import weights
from rapidetr.checkpoints.weights import WEIGHTS, bundled_file, entry_for, entry_for_filename, entry_for_md5
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import CheckpointError, ConfigError, HashMismatch
from rapidetr.model.build import build_empty


def test_table_equals_the_facts(golden: Path) -> None:
    facts = json.loads((golden / "variants.json").read_text("utf-8"))
    wanted = {name: row for name, row in facts["variants"].items() if name in VARIANTS}
    assert set(wanted) | {"base-2", "base-o365", "pico", "seg-pico"} == set(WEIGHTS)
    for name, row in wanted.items():
        entry, published = WEIGHTS[name], row["published"] or {}
        assert (entry.variant, entry.filename, entry.url, entry.md5) == (name, *(row["weights"][k] for k in ("filename", "url", "md5")))
        assert (entry.ap, entry.ap50) == (published.get("coco_ap"), published.get("coco_ap50"))
        assert (entry.t4_ms, entry.params_m) == (published.get("t4_fp16_latency_ms"), published.get("params_millions"))
        assert entry.license == row["weights"].get("licence", "Apache-2.0")
        assert entry.mask == VARIANTS[name].segmentation
    for row in facts["other_weights"]:
        entry = entry_for(row["filename"].removeprefix("rf-detr-").removesuffix(".pth"))
        assert (entry.variant, entry.filename, entry.url, entry.md5) == ("base", row["filename"], row["url"], row["md5"])


def test_platform_weights_have_no_address() -> None:
    closed = {name for name, entry in WEIGHTS.items() if entry.license != "Apache-2.0"}
    assert closed == {"xlarge", "2xlarge"} == {name for name, entry in WEIGHTS.items() if entry.source is None}
    assert all((entry.url is None) == (entry.md5 is None) for entry in WEIGHTS.values())


def test_bundled_weights_are_ours() -> None:
    bundled = {name: entry for name, entry in WEIGHTS.items() if entry.bundled}
    assert list(bundled) == ["pico", "seg-pico"]
    for name, entry in bundled.items():
        assert (entry.variant, entry.filename, entry.license, entry.source) == (name, f"{name}.safetensors", "Apache-2.0", "bundled")
        assert (entry.url, entry.md5, entry.mask) == (None, None, VARIANTS[name].segmentation)
        count = sum(t.numel() for t in build_empty(VARIANTS[name]).state_dict().values())
        assert entry.params_m == round(count / 1e6, 1)


def test_a_bundled_file_is_checked_where_its_hash_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "files", lambda package: tmp_path / package)
    entry, place = replace(WEIGHTS["pico"], sha256=None), tmp_path / "rapidetr" / "weights" / "pico.safetensors"
    with (
        pytest.raises(CheckpointError, match=r"pico\.safetensors: expected the weights of pico, .* install rapidetr again, or use"),
        bundled_file(entry),
    ):
        pass
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    for known in (entry, replace(entry, sha256=sha256)):
        with bundled_file(known) as path:
            assert path.read_bytes() == b"weights"
    with (
        pytest.raises(HashMismatch, match=rf"pico\.safetensors: has sha256 {sha256}, expected 0; install rapidetr again"),
        bundled_file(replace(entry, sha256="0")),
    ):
        pass


def test_lookups() -> None:
    nano = WEIGHTS["nano"]
    assert entry_for("nano") is nano
    assert entry_for_md5("FB6504CCE7FBDC783F7A46991F07639F") is nano
    assert entry_for_md5("0" * 32) is None
    assert entry_for_filename("some/where/rf-detr-nano.pth") is nano
    assert entry_for_filename("rf-detr-nano.pt") is None
    with pytest.raises(ConfigError, match=r"^there are no published weights called 'giant'; available: nano, small, "):
        entry_for("giant")
