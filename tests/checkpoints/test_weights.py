"""The weights table against the copied facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rapidetr.checkpoints.weights import WEIGHTS, entry_for, entry_for_filename, entry_for_md5
from rapidetr.core.config import VARIANTS
from rapidetr.core.errors import ConfigError


def test_table_equals_the_facts(golden: Path) -> None:
    facts = json.loads((golden / "variants.json").read_text("utf-8"))
    wanted = {name: row for name, row in facts["variants"].items() if name in VARIANTS}
    assert set(wanted) | {"base-2", "base-o365"} == set(WEIGHTS)
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
    assert closed == {"xlarge", "2xlarge"} == {name for name, entry in WEIGHTS.items() if entry.url is None or entry.md5 is None}


def test_lookups() -> None:
    nano = WEIGHTS["nano"]
    assert entry_for("nano") is nano
    assert entry_for_md5("FB6504CCE7FBDC783F7A46991F07639F") is nano
    assert entry_for_md5("0" * 32) is None
    assert entry_for_filename("some/where/rf-detr-nano.pth") is nano
    assert entry_for_filename("rf-detr-nano.pt") is None
    with pytest.raises(ConfigError, match=r"^there are no published weights called 'giant'; available: nano, small, "):
        entry_for("giant")
