"""The verb, the examples beside the documentation, and what the manifest for KubeRay says."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rapidetr.batch.inputs import Shard
from rapidetr.batch.ray_serve import deploy
from rapidetr.batch.run import Pool, run_on_ray
from rapidetr.batch.store import Store
from rapidetr.cli.main import main
from rapidetr.core.errors import ConfigError


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    try:
        status = main(["batch", *map(str, words)])
    except SystemExit as end:  # argparse ends so
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_verb(photos: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    words = [photos, "--model", tiny, "--engine", "local", "--out", out, "--classes", "c1,0", "--threshold", "0.1", "--shard-size", 4]
    status, text, _ = call(capsys, *words, "--limit", 9)
    found = sum(len(json.loads(line)["annotations"]) for part in (out / "parts").iterdir() for line in part.read_text().splitlines())
    assert (status, text) == (0, f"9 pictures, {found} detections, 0 failed; results in {out}\n")
    assert found > 0
    assert json.loads((out / "manifest.json").read_text())["recipe"]["classes"] == [1, 0]
    status, text, error = call(capsys, *words, "--limit", 8)
    assert (status, error) == (
        2, f"rapidetr: error: {out}: was started with limit 9, now 8; go on with the same, or choose another --out\n"
    )  # fmt: skip
    status, text, _ = call(capsys, *words, "--limit", 9)
    assert text.startswith("going on: 3 of 3 shards are done\n")


def test_failed_pictures_make_status_1(photos: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "00.png").write_bytes(b"")
    status, text, error = call(capsys, photos, "--model", tiny, "--engine", "local", "--out", tmp_path / "out", "--json", "--quiet")
    document = json.loads(text)
    assert status == 1
    assert (document["images"], document["predicted"], document["failed"]) == (10, 9, 1)
    assert document["images_per_s"] > 0
    assert error == f"rapidetr: error: 1 of 10 pictures failed; see {tmp_path / 'out'}/errors.jsonl\n"


def test_one_driver_at_a_time(photos: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [photos, "--model", tiny, "--engine", "local", "--out", out]
    with Store(str(out)).alone():
        status, _, error = call(capsys, *words)
        told = f"rapidetr: error: {out}: another process writes results there; wait for it, or choose another --out\n"
        assert (status, error) == (2, told)
        assert [path.name for path in out.iterdir()] == [".lock"]
        assert call(capsys, *words[:-1], tmp_path / "other")[0] == 0
    assert call(capsys, *words)[0] == 0
    with Store("memory://out").alone(), Store("memory://out").alone():  # object stores know no locks
        pass


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weights", "random"], "--weights random gives every process another network; save one first, and name its file"),
        (["--classes", "zebra"], "zebra"),
        (["--threshold", "2"], "threshold is 2.0; expected 0 to 1"),
        (["--actors", "4-2"], "expected a number, or a smaller and a larger one such as 2-8, got '4-2'"),
        (["--shard-size", "0"], "expected a whole number of at least 1, got '0'"),
    ],
)
def test_wrong_use(
    photos: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:  # fmt: skip
    status, _, error = call(capsys, photos, "--model", tiny, "--engine", "local", "--out", tmp_path / "out", *words)
    assert status == 2
    assert told in error
    assert not (tmp_path / "out").exists()


def test_memory_is_not_shared_between_processes(start: Callable[..., Any], photos: Path) -> None:
    job, predictor = start(photos, out="memory://refused")
    with pytest.raises(ConfigError, match=r"^memory:// lies in one process, where the others cannot read it; use --engine local$"):
        list(run_on_ray(job, predictor, Pool()))


def test_a_pool_that_contradicts_itself() -> None:
    with pytest.raises(ConfigError, match=r"least=3, most=2.*expected 1 <= least <= most"):
        Pool(3, 2)


def test_a_factory_without_a_function() -> None:
    with pytest.raises(ConfigError, match=r"^factory is 'module'; expected module:function, such as ray_serve_app:make_app$"):
        deploy("module", {})


def test_capacity(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/scale.md, worked by hand: 1e9 / (500 x 86400 x 0.7) = 33.07."""
    script = str(root / "examples" / "capacity.py")
    capacity = runpy.run_path(script)["capacity"]
    found = capacity(500, 1e9, price_per_hour=2.5)
    assert (found["machines"], found["machine_hours"], found["price_per_day"]) == (34, 816, 2040)
    assert found["images_per_s_needed"] == pytest.approx(1e9 / 86400)
    assert found["read_gbit_per_s"] == pytest.approx(200e3 * 8 * 1e9 / 86400 / 1e9)
    assert found["results_gb_per_day"] == pytest.approx(500)
    assert capacity(10, 864_000, busy=1)["machines"] == 1  # exactly one
    (tmp_path / "trial.json").write_text('some text\n{"images_per_s": 10.0}\n')
    monkeypatch.setattr(sys, "argv", ["capacity.py", "--from", str(tmp_path / "trial.json"), "--images-per-day", "1e6", "--busy", "1"])
    runpy.run_path(script, run_name="__main__")
    assert json.loads(capsys.readouterr().out)["machines"] == 2


def test_the_page_tells_what_the_script_computes(root: Path) -> None:
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    capacity = runpy.run_path(str(root / "examples" / "capacity.py"))["capacity"]
    assert "| nano | 335.66 /" in (root / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert f"{1000 / 335.66:.2f} pictures a second. A billion a day would take {capacity(2.98, 1e9)['machines']} such two-core" in page
    found = capacity(500, 1e9, price_per_hour=2.5)
    assert f"| machines, 70 % busy | {found['machines']} |" in page
    assert f"{found['read_gbit_per_s']:.1f} Gbit/s; one machine {found['read_gbit_per_s_of_one']:.1f} Gbit/s" in page
    assert f"{found['price_per_day']:.0f} a day, {found['price_per_million']:.2f} for a million" in page


def test_the_page_lists_every_file_of_a_job(root: Path, start: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    job, predictor = start(photos, limit=1)
    predictor.predict_shard(job.todo[0])
    page = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    for path in (tmp_path / "out").iterdir():
        assert f"| {path.name}" in page


def test_shards_survive_json() -> None:
    for shard in (Shard(0, 1, 2, files=("a", "b")), Shard(3, 9, 4, table="t", column="c", start=0), Shard(1, 2, 0)):
        assert Shard.from_dict(json.loads(json.dumps(shard.to_dict()))) == shard


def test_the_manifest_for_kuberay(root: Path) -> None:
    """Read as Kubernetes would read it; that a cluster takes it is not tested."""
    folder = root / "examples" / "deploy"
    job, service = yaml.safe_load_all((folder / "kuberay.yaml").read_text(encoding="utf-8"))
    assert [(d["apiVersion"], d["kind"]) for d in (job, service)] == [("ray.io/v1", "RayJob"), ("ray.io/v1", "RayService")]
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] >= 1
    verb = re.search(r"rapidetr (batch .*?) \|\| test \$\? -eq 1'$", job["spec"]["entrypoint"])
    assert verb, "some failed pictures must not fail the job"
    from rapidetr.cli import batch
    from rapidetr.cli.main import verb_parser

    args = verb_parser("batch", batch).parse_args(verb[1].split()[1:])
    assert (args.actors, args.gpus_per_actor, args.address, args.out) == ((2, 32), 0.5, "auto", "s3://bucket/results-17")
    recipe = (folder / "Containerfile").read_text(encoding="utf-8")
    release = re.search(r"^ARG RAY=(\S+)$", recipe, re.MULTILINE)
    assert release
    for cluster in (job["spec"]["rayClusterSpec"], service["spec"]["rayClusterConfig"]):
        assert cluster["rayVersion"] == release[1]
        assert cluster["enableInTreeAutoscaling"] is True
        (workers,) = cluster["workerGroupSpecs"]
        assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
        for group in (cluster["headGroupSpec"], workers):
            (container,) = group["template"]["spec"]["containers"]
            assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted == {volume["name"] for volume in group["template"]["spec"].get("volumes", ())}
        assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pool = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert args.actors[1] == pool / args.gpus_per_actor  # as many processes as the GPUs take
    (app,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, name = app["import_path"].split(":")
    assert callable(runpy.run_path(str(folder / f"{module}.py"))[name])
    assert set(app["args"]) == {"model", "least", "most", "gpus"}
    assert all(isinstance(value, str) for value in app["args"].values())


@pytest.mark.parametrize("keys", [(), ("the first of the keys", "the second of them")])
def test_a_replica_asks_for_the_keys_of_its_environment(
    root: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...]
) -> None:
    """As `rapidetr serve` does; KubeRay publishes its port."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("rapidetr.serving.app.create_app", lambda service, **options: seen.update(options))
    monkeypatch.setattr("rapidetr.serving.service.Service.warm_up", lambda *args: None)
    monkeypatch.delenv("RAPIDETR_API_KEY", raising=False)
    if keys:
        monkeypatch.setenv("RAPIDETR_API_KEY", "\n".join(keys))
    runpy.run_path(str(root / "examples" / "deploy" / "ray_serve_app.py"))["make_app"](str(tiny))
    assert seen["keys"] == tuple(key.encode() for key in keys)
