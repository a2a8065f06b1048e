"""`rapidetr models` and `rapidetr licenses`."""

from __future__ import annotations

import json

from rapidetr.core.config import VARIANTS


def test_models_lists_the_family_with_published_figures(run):
    status, out, err = run("models")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert (status, err) == (0, "")
    assert set(VARIANTS) < set(rows)
    assert " ".join(rows["nano"].split()) == "nano detect 384x384 2 300 30.5 M 48.4 2.3 Apache-2.0 download"
    assert " ".join(rows["seg-small"].split()) == "seg-small segment 384x384 4 100 33.7 M 43.1 4.4 Apache-2.0 download"
    assert " ".join(rows["base"].split()) == "base detect 560x560 3 300 - - - Apache-2.0 download"
    assert " ".join(rows["seg-pico"].split()) == "seg-pico segment 288x288 2 50 4.3 M - - Apache-2.0 bundled"
    assert all(rows[name].endswith("PML-1.0     bring your file") for name in ("xlarge", "2xlarge"))


def test_models_of_one_task_as_json_and_what_is_cached(run, tmp_path):
    weights = tmp_path / "home" / "weights"
    weights.mkdir(parents=True)
    (weights / "rf-detr-seg-nano.pt").write_bytes(b"x")
    status, out, err = run("models", "--task", "segment", "--json")
    document = json.loads(out)
    assert status == 0
    assert [m["name"] for m in document["models"]] == [name for name in VARIANTS if name.startswith("seg-")]
    assert [m["name"] for m in document["models"] if m["cached"]] == ["seg-nano"]
    assert [m["name"] for m in document["models"] if m["bundled"]] == ["seg-pico"]
    assert "seg-nano" in err  # what people read goes there


def test_licenses_of_weights_and_dependencies(run):
    status, out, _ = run("licenses", "--json", "--quiet")
    licenses = {r["name"]: r["license"] for r in json.loads(out)["licenses"]}
    assert status == 0
    assert (licenses["rf-detr-nano.pth"], licenses["rf-detr-xlarge.pth"]) == ("Apache-2.0", "PML-1.0")
    rows = [line.split() for line in run("licenses")[1].splitlines()]
    assert rows[0] == ["kind", "name", "source", "licence"]
    assert len(rows) == len(json.loads(out)["licenses"]) + 1
