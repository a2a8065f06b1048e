"""From a detector to the fastest artifact that is proven on this machine: make, load, weigh, keep; then promote the best."""

from __future__ import annotations

import json
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, Protocol

import numpy as np

from rapidetr.bench.loads import spread_out
from rapidetr.bench.runner import Instruments, Plan
from rapidetr.checkpoints.file import write_atomically
from rapidetr.checkpoints.licenses import require_license
from rapidetr.core.errors import ConfigError, DatasetError, LicenseRefused
from rapidetr.data.read import read_dataset
from rapidetr.data.records import Dataset
from rapidetr.demo import render_scene, scene_seed
from rapidetr.deployment.gate import PLAN, Look, Start, look, weigh
from rapidetr.deployment.registry import Registry
from rapidetr.deployment.technique import TECHNIQUES, Decoded, Order, technique
from rapidetr.deployment.trials import Optimization, Trial
from rapidetr.deployment.verdict import Limits, Verdict
from rapidetr.runtime.artifact import VERDICT, Artifact, Manifest, write_artifact
from rapidetr.runtime.detector import Detector, as_list
from rapidetr.runtime.environment import describe_environment
from rapidetr.runtime.load import load
from rapidetr.runtime.lock import weights_file
from rapidetr.runtime.places import SHELF

REPORT, VERDICTS = "optimize.json", "verdicts"  # in the registry; a refused candidate leaves its verdict there, not its weights
QUICK = Plan(rounds=40, seconds=15.0, forward_calls=0)  # of optimize_for_inference: 120 calls reach p95
CALIBRATION, SCENES = 128, 32  # pictures
Progress = Callable[[str, str], object]  # (technique, what happens now)


class ServiceLevel(Protocol):
    """What must be kept besides accuracy, such as `limits` of service_level.json."""

    @property
    def p95_ms(self) -> float | None: ...
    @property
    def min_ap(self) -> float | None: ...
    @property
    def memory_mb(self) -> float | None: ...


@dataclass(frozen=True, eq=False)
class Trials:
    """How candidates are tried: what on, against which limits, with which instruments."""

    names: Sequence[str]
    data: Dataset | Sequence[Any]
    limits: Limits
    threads: int | None = None
    calibration: Sequence[np.ndarray] = ()
    about: str | None = None  # the pictures, where they are no dataset
    allow_noise: bool = False
    fresh: bool = True  # also measure fresh processes: memory and first detection
    plan: Plan = PLAN
    instruments: Instruments | None = None
    start: Start | None = None
    progress: Progress = lambda technique, step: None

    @property
    def judged_on(self) -> str:
        return self.about or (f"{len(self.data)} pictures" + (f" of {self.data.split}" if isinstance(self.data, Dataset) else ""))


def optimize(
    detector: Detector | str | Path,
    data: Dataset | str | Path | None = None,
    *,
    max_ap_drop: float = 0.003,
    min_agreement: float | None = None,
    service_level: ServiceLevel | None = None,
    images: Iterable[Any] | None = None,
    split: str = "valid",
    out: str | Path | None = None,
    techniques: Sequence[str] | None = None,
    threads: int | None = None,
    source: str | Path | None = None,
    allow_noise: bool = False,
    plan: Plan = PLAN,
    instruments: Instruments | None = None,
    start: Start | None = None,
    progress: Progress = lambda technique, step: None,
) -> Detector:
    """A new Detector: the fastest artifact that the gate accepted, with its `verdict`; else one equal to the old, with notes that say why.

    `detector` is a torch Detector, or what `rapidetr.load` takes. `data` is a dataset whose `split` shows accuracy; without
    annotations give `images`, and agreement decides. `service_level`: `limits` of service_level.json, or anything with these three.
    `out` is the registry, which keeps everything (docs/deploy.md); None keeps the adopted artifact as long as it is in use.
    `techniques` are names of deployment/technique.py, default all that fit this machine. One that fails is reported, and the others
    go on. `source` says what a Detector was loaded from, for the manifests. ConfigError for unknown names and where there is nothing
    to judge with; errors of `rapidetr.load` and of datasets.
    """
    trials = Trials(
        _known(techniques),
        _pictures(data, split, images),
        _limits(max_ap_drop, min_agreement, service_level),
        threads,
        allow_noise=allow_noise,
        plan=plan,
        instruments=instruments,
        start=start,
        progress=progress,
    )
    trials = replace(trials, calibration=_calibration(data, trials.data))
    return _optimize(detector, trials, Registry(out), source) if out is not None else _optimize_aside(detector, trials, source)


def optimize_for_inference(
    detector: Detector,
    images: Iterable[Any] | None = None,
    *,
    techniques: Sequence[str] | None = None,
    threads: int | None = None,
    plan: Plan = QUICK,
    instruments: Instruments | None = None,
    progress: Progress = lambda technique, step: None,
) -> Detector:
    """`Detector.optimize_for_inference`: agreement on `images`, else on rendered scenes; nothing is left on the disk."""
    given = None if images is None else _pictures(None, "", images)
    trials = Trials(
        _known(techniques),
        rendered_scenes() if given is None else given,
        Limits(),
        threads,
        calibration=() if given is None else _calibration(None, given),
        about=f"{SCENES} rendered scenes" if given is None else f"{len(given)} pictures of images=",
        allow_noise=True,
        fresh=False,
        plan=plan,
        instruments=instruments,
        progress=progress,
    )
    return _optimize_aside(detector, trials, None)


def rendered_scenes() -> list[np.ndarray]:
    """The SCENES pictures that a detector is judged on where nobody has others: RGB uint8 [480, 640, 3], always the same."""
    return [render_scene(scene_seed(0, "agreement", i), size_hw=(480, 640)).pixels for i in range(SCENES)]


def _optimize_aside(given: Detector | str | Path, trials: Trials, source: str | Path | None) -> Detector:
    """With a registry that lives as long as what was adopted from it."""
    home = mkdtemp(prefix="rapidetr-")
    clean = partial(shutil.rmtree, home, ignore_errors=True)
    try:
        found = _optimize(given, trials, Registry(home), source)
    except BaseException:
        clean()
        raise
    if found.verdict is not None and found.verdict.accepted:
        weakref.finalize(found.engine, clean)
    else:
        clean()
    return found


def _optimize(given: Detector | str | Path, trials: Trials, registry: Registry, source: str | Path | None) -> Detector:
    """The story: a baseline into the registry, every technique against it, the fastest one promoted."""
    detector = given if isinstance(given, Detector) else load(given, threads=trials.threads)
    with TemporaryDirectory(ignore_cleanup_errors=True) as aside:
        weights = detector.save(Path(aside) / f"{detector.config.name}.safetensors", deploy=True)
        known = source if isinstance(given, Detector) else given
        order = Order(detector, weights if known is None else weights_file(known), trials.threads, trials.calibration)
        baseline_id = _add_baseline(registry, order, weights, Path(aside))
        tried = _try_all(trials, order, registry, baseline_id)
    best = min((trial for trial, _ in tried if trial.outcome == "accepted"), key=lambda trial: trial.p50_ratio or 1.0, default=None)
    tried = [(replace(trial, outcome="adopted") if trial is best else trial, verdict) for trial, verdict in tried]
    _record(registry, trials, baseline_id, [trial for trial, _ in tried], detector.engine.device)
    if best is None or best.id is None:
        return _unchanged(detector, trials, tried)
    if registry.current != best.id:
        registry.promote(best.id, why=f"{best.technique}: {best.reason}")
    verdict = next(verdict for trial, verdict in tried if trial.id == best.id)
    said = f"{best.technique}: judged on {trials.judged_on}; {best.reason}"
    return _open(registry, best.id, detector, trials).judged(verdict, said)


def _try_all(trials: Trials, order: Order, registry: Registry, baseline_id: str) -> list[tuple[Trial, Verdict | None]]:
    baseline = _open(registry, baseline_id, order.detector, trials)
    trials.progress("baseline", f"look at {trials.judged_on}")
    known = look(baseline, trials.data)
    tried = []
    for name in trials.names:
        try:
            tried.append(_try(name, trials, order, registry, (baseline_id, baseline, known)))
        except Exception as problem:  # whatever a technique or its back end raises must not cost the others
            told = (" ".join(str(problem).split()) or "without a message")[:400]
            tried.append((Trial(name, "failed", f"{type(problem).__name__}: {told}"), None))
        trials.progress(name, f"{tried[-1][0].outcome}: {tried[-1][0].reason}")
    return tried


def _try(name: str, trials: Trials, order: Order, registry: Registry, against: tuple[str, Detector, Look]) -> tuple[Trial, Verdict | None]:
    """One technique, from asking whether it fits to keeping what was accepted."""
    (baseline_id, baseline, known), maker = against, technique(name)
    if why_not := maker.fits(order):
        return Trial(name, "not tried", why_not), None
    with TemporaryDirectory(ignore_cleanup_errors=True) as aside:
        trials.progress(name, "make")
        began = time.perf_counter()
        artifact = maker.make(order, Path(aside) / "artifact")
        candidate = load(artifact.path, threads=trials.threads, accept_license=order.detector.license)
        make_s = time.perf_counter() - began
        trials.progress(name, "weigh")
        verdict = weigh(
            baseline,
            candidate,
            trials.data,
            trials.limits,
            names=("baseline", name),
            sources=(str(registry.path / SHELF / baseline_id), str(artifact.path)) if _may_start(trials, order.detector) else None,
            known=known,
            about=trials.about,
            allow_noise=trials.allow_noise,
            plan=trials.plan,
            instruments=trials.instruments,
            start=trials.start,
        )
        (registry.path / VERDICTS).mkdir(exist_ok=True)
        verdict.write(registry.path / VERDICTS / f"{name}.json")
        id = _keep(registry, artifact, verdict, name) if verdict.accepted else None
        size = sum(seal["bytes"] for seal in artifact.manifest.files.values())
    return Trial.of(name, verdict, id=id, bytes=size, make_s=make_s), verdict


def _keep(registry: Registry, artifact: Artifact, verdict: Verdict, name: str) -> str:
    return registry.add(artifact.path, files={VERDICT: verdict.to_json().encode()}, why=f"{name}, accepted by the gate")


def _may_start(trials: Trials, detector: Detector) -> bool:
    """Whether fresh processes are measured: they load artifacts without what was accepted in this one."""
    try:
        require_license("", detector.license, None)
    except LicenseRefused:
        return False
    return trials.fresh


def _add_baseline(registry: Registry, order: Order, weights: Path, aside: Path) -> str:
    """The id of the detector as it is; one that is there from an earlier run is used again."""
    made = Manifest.of(order.detector, source=order.source, command=order.command, parameters={"technique": "baseline"})
    artifact = write_artifact(aside / "baseline", {"best.safetensors": weights}, made)
    for id in registry.ids():
        if _alike(registry.open(id).manifest, artifact.manifest):
            return id
    return registry.add(artifact.path, baseline=True, why="baseline: the detector as it is")


def _alike(known: Manifest, new: Manifest) -> bool:
    """Whether two baselines were made of the same checkpoint in the same way; hashes of their own files differ by the order of headers."""
    first, second = (replace(manifest, files={}, created="", command="").to_dict() for manifest in (known, new))
    return first == second


def _open(registry: Registry, id: str, detector: Detector, trials: Trials) -> Detector:
    path = registry.path / SHELF / id
    return load(path, device=detector.engine.device, threads=trials.threads, accept_license=detector.license)


def _unchanged(detector: Detector, trials: Trials, tried: Sequence[tuple[Trial, Verdict | None]]) -> Detector:
    """The old one with the verdict on the candidate that came nearest, if any was weighed, and what became of each."""
    weighed = [(trial.p50_ratio or np.inf, verdict) for trial, verdict in tried if verdict]
    nearest = min(weighed, key=lambda one: one[0])[1] if weighed else None
    said = [f"{trial.technique} {trial.outcome}: {trial.reason}" for trial, _ in tried]
    return detector.judged(nearest, f"nothing was adopted, judged on {trials.judged_on}", *said)


def _record(registry: Registry, trials: Trials, baseline_id: str, tried: Sequence[Trial], device: str) -> None:
    adopted = next((trial.id for trial in tried if trial.outcome == "adopted"), None)
    record = Optimization(
        baseline_id,
        adopted,
        trials.judged_on,
        trials.limits.to_dict(),
        tuple(tried),
        describe_environment(device),
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    text = json.dumps(record.to_dict(), indent=1) + "\n"
    write_atomically(registry.path / REPORT, lambda part: part.write_text(text, encoding="utf-8"))


def _limits(max_ap_drop: float, min_agreement: float | None, level: ServiceLevel | None) -> Limits:
    plain = Limits(max_ap_drop=max_ap_drop, min_agreement=min_agreement)
    return plain if level is None else replace(plain, p95_ms=level.p95_ms, min_ap=level.min_ap, memory_mb=level.memory_mb)


def _known(techniques: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(TECHNIQUES) if techniques is None else tuple(techniques)
    unknown = [name for name in names if name not in TECHNIQUES]
    if unknown or not names:
        raise ConfigError(f"techniques are {', '.join(names) or 'none'}; expected some of {', '.join(TECHNIQUES)}")
    return names


def _pictures(data: Dataset | str | Path | None, split: str, images: Iterable[Any] | None) -> Dataset | list[Any]:
    if (data is None) == (images is None):
        raise ConfigError("expected data=, a dataset to judge with, or images=, pictures without annotations; one of the two")
    if images is None:
        assert data is not None
        return data if isinstance(data, Dataset) else read_dataset(data, split)
    found = list(as_list(images))
    if not found:
        raise ConfigError("images= is empty; expected at least one picture to judge with")
    return found


def _calibration(data: Dataset | str | Path | None, judged: Dataset | Sequence[Any]) -> Decoded:
    """The user's pictures: of the training split where there is one, so that a candidate is not judged on what it was fitted to."""
    source = judged
    if isinstance(data, str | Path):
        try:
            source = read_dataset(data, "train")
        except DatasetError:
            source = judged
    paths = [record.path for record in source.images] if isinstance(source, Dataset) else source
    return Decoded(spread_out(list(paths), CALIBRATION))
