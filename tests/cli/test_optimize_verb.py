"""`rapidetr optimize`: options, streams, files and exit statuses, around an injected optimization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rapidetr.choice.records import Candidate, Measured, Promise, ServiceLevel
from rapidetr.deployment.trials import Optimization, Trial
from rapidetr.deployment.verdict import Limits
from rapidetr.runtime.detector import Detector

BEST = Trial("torch-folded", "adopted", "gain: half", "tiny-1", 0.5, (0.49, 0.52), 0.42, 0.99, 1_500_000, 0.3, 1.5, 300.0)
REST = (Trial("onnxruntime", "failed", "RuntimeError: fell over"), Trial("openvino-int8", "not tried", "there are no pictures"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arguments of every optimization; `calls.trials` is what it finds."""

    class Calls(list):
        trials: tuple[Trial, ...] = (BEST, *REST)

    seen = Calls()

    def optimize(detector: Detector, data: Any, *, out: Path, progress: Any, **options: Any) -> Detector:
        seen.append((detector, data, {"out": out, **options}))
        progress("torch-folded", "make")
        adopted = next((t.id for t in seen.trials if t.outcome == "adopted"), None)
        out.mkdir()
        record = Optimization("tiny-0", adopted, "3 pictures of valid", Limits().to_dict(), seen.trials, {}, "2026-01-02")
        (out / "optimize.json").write_text(json.dumps(record.to_dict()))
        return detector.judged(None, "a note")

    monkeypatch.setattr("rapidetr.deployment.optimize.optimize", optimize)
    return seen


def test_a_table_a_page_and_the_registry(run: Any, model: Path, calls: Any) -> None:
    words = "--data data --split test --max-ap-drop 1% --min-agreement 0.9 --p95-ms 40 --min-ap 0.3 --memory-mb 800 --allow-noise"
    more = "--techniques torch-folded,onnxruntime --size 48x64 --queries 9 --threads 1 --device cpu --out there"
    status, out, err = run("optimize", model, *words.split(), *more.split())
    detector, data, options = calls[0]
    assert (status, err, data) == (0, "", "data")
    assert (detector.size_hw, detector.engine.queries) == ((48, 64), 9)
    assert options.pop("service_level") == Limits(p95_ms=40, min_ap=0.3, memory_mb=800)
    assert options == {
        "out": Path("there"), "images": None, "split": "test", "max_ap_drop": 0.01, "min_agreement": 0.9, "threads": 1,
        "techniques": ["torch-folded", "onnxruntime"], "allow_noise": True, "source": str(model),
    }  # fmt: skip
    assert out.splitlines() == [
        "torch-folded: make",
        "technique      outcome    p50 ratio  interval        AP     agreement  MB   why",
        "torch-folded   adopted    0.500      0.490 to 0.520  0.420  0.990      1.5  gain: half",
        "onnxruntime    failed     -          -               -      -          -    RuntimeError: fell over",
        "openvino-int8  not tried  -          -               -      -          -    there are no pictures",
        "note: a note",
        "wrote there/optimize.html",
        "adopted: tiny-1; use it with rapidetr.load('there/current')",
    ]
    page = Path("there/optimize.html").read_text()
    assert "fell over" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_nothing_adopted_is_status_1(run: Any, model: Path, calls: Any, pictures: Path) -> None:
    calls.trials = REST
    status, out, err = run("optimize", model, "--images", pictures, "--json", "--device", "cpu")
    record = json.loads(out)
    assert (status, record["adopted"], record["verdict"]) == (1, None, None)
    assert [t["technique"] for t in record["trials"]] == ["onnxruntime", "openvino-int8"]
    assert err.splitlines()[-1] == "nothing was adopted"
    (_, data, options) = calls[0]
    assert (data, options["out"]) == (None, Path("registry"))
    assert [Path(p).name for p in options["images"]] == ["one.png", "two.jpg", "one.png"]
    assert options["service_level"] == Limits()


def test_a_service_level_brings_limits_and_configuration(run: Any, model: Path, calls: Any, tmp_path: Path) -> None:
    chosen = Measured(Candidate(str(model), (48, 64), 1, 7))
    promise = Promise(ServiceLevel(40.0, 0.3, 800.0), chosen, None, True, {})
    (tmp_path / "level.json").write_text(json.dumps(promise.to_dict()))
    assert run("optimize", model, "--data", "d", "--service-level", "level.json", "--min-ap", "0.35", "--device", "cpu")[0] == 0
    detector, _, options = calls[0]
    assert options["service_level"] == Limits(p95_ms=40, min_ap=0.35, memory_mb=800)
    assert (detector.size_hw, detector.engine.decoder_layers, detector.engine.queries) == ((48, 64), 1, 7)
    (tmp_path / "none.json").write_text(json.dumps(Promise(ServiceLevel(1.0), None, None, True, {}).to_dict()))
    status, _, err = run("optimize", model, "--data", "d", "--service-level", "none.json")
    assert status == 2
    assert "no configuration keeps p95 at most 1 ms" in err


def test_wrong_use_is_status_2(run: Any, model: Path, tmp_path: Path) -> None:
    for words in ([], ["--data", "d", "--images", "i"]):
        status, _, err = run("optimize", model, *words)
        assert (status, err) == (2, "rapidetr: error: expected --data, a dataset, or --images, a folder of pictures; one of the two\n")
    status, _, err = run("optimize", model, "--data", "d", "--techniques", "magic", "--device", "cpu")
    assert status == 2
    assert "techniques are magic; expected some of torch-folded, torch-bfloat16" in err
    assert not (tmp_path / "registry").exists()
