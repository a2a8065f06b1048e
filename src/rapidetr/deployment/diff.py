"""Where two models part on the same pictures: pixels, features, queries, boxes, masks, detections, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError
from rapidetr.deployment.taps import BLOCKS, LAYERS, LEVELS, SCORES, STARTS, TOKENS, recorded
from rapidetr.evaluation.agreement import Agreement, agreement
from rapidetr.model.fold import Folded
from rapidetr.model.rfdetr import RfDetr
from rapidetr.pixels.decode import Picture, load_picture
from rapidetr.pixels.prepare import normalization
from rapidetr.pixels.select import select
from rapidetr.runtime.detector import Detector

TOLERANCE = 1e-3  # relative; rounding of fp32 stayed under 3e-5 at every stage (pico, torch and ONNX Runtime), bf16 begins at 1e-2
# what a stage is about, in the order in which one follows from another
KINDS = {
    "pixels": "pixels",
    BLOCKS: "features",
    LEVELS: "features",
    SCORES: "queries",
    TOKENS: "queries",
    STARTS: "queries",
    LAYERS: "queries",
    "logits": "boxes",
    "boxes": "boxes",
    "masks": "masks",
}
# engine -> what of it shows more than pixels and answers
_TAPPED = {"onnxruntime": "an ONNX file exported with taps", "openvino": "an OpenVINO artifact in float32 or bfloat16, exported with taps,"}
_NOT_FINITE = "gave values that are not finite: nothing is detected"
_AFTER_TOKENS = (STARTS, LAYERS, "logits", "boxes", "masks")
Values = dict[str, np.ndarray]  # stage -> what one picture gave there


@dataclass(frozen=True)
class Stage:
    """One place in the network, over all pictures. Without numbers where it cannot be compared; the note says why.

    Relative differences are in units of the root mean square of the first model's values at that stage, since single values
    may be 0.
    """

    name: str
    max_abs: float | None
    mean_abs: float | None
    max_rel: float | None
    mean_rel: float | None
    differs: bool  # max_rel is beyond the tolerance, or not a number
    note: str = ""

    @property
    def kind(self) -> str:
        return KINDS[_root(self.name)]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **{k: None if v != v else v for k, v in asdict(self).items()}}  # JSON knows no "not a number"


@dataclass(frozen=True)
class View:
    """One picture: what both found, and how far their first feature level is apart in each cell, float [h, w], where comparable."""

    picture: Picture
    first: Detections
    second: Detections
    heat_hw: np.ndarray | None


@dataclass(frozen=True)
class Difference:
    """The stages in order, and how far the detections agree."""

    tolerance: float
    threshold: float
    stages: tuple[Stage, ...]
    detections: Agreement
    detections_differ: bool
    notes: tuple[str, ...]
    views: tuple[View, ...]

    @property
    def first_stage(self) -> str | None:
        """The first stage that is beyond the tolerance; "detections" where it is these alone."""
        found = next((stage.name for stage in self.stages if stage.differs), None)
        return found or ("detections" if self.detections_differ else None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "tolerance": self.tolerance,
            "threshold": self.threshold,
            "pictures": [view.picture.source for view in self.views],
            "first_stage": self.first_stage,
            "stages": [stage.to_dict() for stage in self.stages],
            "detections": {**self.detections.to_dict(), "differ": self.detections_differ},
            "notes": list(self.notes),
        }


def diff(first: Detector, second: Detector, pictures: Sequence[Any], *, threshold: float = 0.5, tolerance: float = TOLERANCE) -> Difference:
    """How far `second` is from `first` at every stage that both can show.

    A torch engine shows all stages, an exported file those it was exported with, and any engine its pixels and answers. Where
    the best tokens differ, a torch engine runs again from those of the other, so that later stages compare the same queries.
    `tolerance` bounds `Stage.max_rel`, score shifts, and box shifts in units of the longest side. Pictures as for `predict`.
    ConfigError without pictures and for a tolerance below 0.
    """
    if not pictures or not tolerance >= 0:
        raise ConfigError(f"{len(pictures)} pictures, tolerance {tolerance}; expected at least one picture, and 0 or more")
    compared = [_compare(first, second, load_picture(picture), threshold, tolerance) for picture in pictures]
    stages = [_merged(column) for column in zip(*(stages for stages, _ in compared), strict=True)]
    views = tuple(view for _, view in compared)
    found = agreement([view.first for view in views], [view.second for view in views])
    longest = max(max(view.first.image_hw) for view in views)
    apart = found.matched_fraction < 1 or found.score_shift_max > tolerance or found.box_shift_px_max > tolerance * longest
    return Difference(tolerance, threshold, tuple(stages), found, apart, tuple(_notes(first, second, views)), views)


def _notes(first: Detector, second: Detector, views: Sequence[View]) -> list[str]:
    """What the numbers alone do not tell."""
    said = []
    if first.size_hw != second.size_hw:
        a, b = ("x".join(map(str, d.size_hw)) for d in (first, second))
        said.append(f"input sizes differ ({a} and {b}): only detections can be compared")
    if first.class_names != second.class_names:
        said.append("class names differ: detections are matched by class number")
    said += [f"the {which} model {_NOT_FINITE}" for which in ("first", "second") if any(getattr(view, which).error for view in views)]
    for which, detector in (("first", first), ("second", second)):
        if _network(detector) is None and not getattr(detector.engine, "taps", ()):
            name = detector.engine.name
            said.append(f"the {which} model ({name}) shows pixels and answers alone; {_TAPPED.get(name, 'torch-folded')} shows more")
    return said


def _compare(first: Detector, second: Detector, picture: Picture, threshold: float, tolerance: float) -> tuple[list[Stage], View]:
    (a, found_a), (b, found_b) = (_look(d, picture, threshold) for d in (first, second))
    view = View(picture, found_a, found_b, _heat(a, b))
    if first.size_hw != second.size_hw:
        return [], view
    tokens, where, why = None, None, ""
    comparable = all(TOKENS in v for v in (a, b)) and a[SCORES].shape == b[SCORES].shape and a[TOKENS].shape == b[TOKENS].shape
    if comparable:
        tokens = _compare_tokens(a, b, tolerance)
        if tokens.note:
            a, b, where, why = _aligned(first, second, picture, a, b)
    elif (TOKENS in a) != (TOKENS in b):
        why = "tokens unknown on one side: queries compared by place"
    names = sorted({**a, **b}, key=lambda name: list(KINDS).index(_root(name)))  # stable: numbers stay in order
    stages = []
    for name in names:
        if name == TOKENS and tokens:
            stages.append(tokens)
        else:
            later = _root(name) in _AFTER_TOKENS
            stages.append(_stage(name, a.get(name), b.get(name), tolerance, where if later else None, why if later else ""))
    return stages, view


def _look(detector: Detector, picture: Picture, threshold: float, start_from: np.ndarray | None = None) -> tuple[Values, Detections]:
    """What one picture gives at every stage that the engine shows, and what is found in it."""
    engine: Any = detector.engine
    batch = engine.prepare([picture.pixels], detector.preprocessing, detector.preprocessing.predict_filter, None)
    network = _network(detector)
    start = None if start_from is None else torch.from_numpy(start_from)
    watching: AbstractContextManager[dict[str, torch.Tensor]] = nullcontext({}) if network is None else recorded(network, start)
    with watching as seen:
        raw = engine.run(batch.pixels)
    values = {"pixels": _normalized(batch.pixels, detector)} | {name: value.float().cpu().numpy() for name, value in seen.items()}
    values |= engine.tapped(batch.pixels) if getattr(engine, "taps", ()) else {}
    pairs = getattr(engine, "final", False)  # the best pairs of an exported file, which leave the others out
    answers = (values.pop("raw_logits", None), values.pop("raw_dets", None), None) if pairs else (raw.logits, raw.boxes, raw.masks)
    values |= {name: value for name, value in zip(("logits", "boxes", "masks"), answers, strict=True) if value is not None}
    if TOKENS in values:
        values[TOKENS] = values[TOKENS].astype(np.int64)
    if not (np.isfinite(raw.logits).all() and np.isfinite(raw.boxes).all()):
        return values, Detections.empty(detector.labels, picture.pixels.shape[:2], error=_NOT_FINITE)
    return values, select(raw, batch.geometries, detector.labels, threshold=threshold)[0]


def _network(detector: Detector) -> RfDetr | Folded | None:
    """The module that can be looked into; a compiled one cannot."""
    module = getattr(detector.engine, "network", None) or getattr(detector.engine, "graph", None)
    return module if isinstance(module, RfDetr | Folded) else None


def _normalized(pixels: Any, detector: Detector) -> np.ndarray:
    """[B, C, H, W] as the plain network takes it, also of an engine that normalizes inside."""
    values = np.asarray(pixels.float().cpu() if hasattr(pixels, "cpu") else pixels)
    if values.shape[2:] == detector.size_hw:
        return values
    mean, std = normalization(detector.preprocessing, values.shape[3])
    return ((values / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)


def _compare_tokens(a: Values, b: Values, tolerance: float) -> Stage:
    """Scores that changed places are as far apart as the first model says; a note where the order differs."""
    ours, theirs, scores = a[TOKENS][0], b[TOKENS][0], a[SCORES][0]
    stage = _stage(TOKENS, scores[ours], scores[theirs], tolerance)
    moved = int((ours != theirs).sum())
    if not moved:
        return stage
    shared = len(np.intersect1d(ours, theirs))
    return replace(stage, note=f"top-k order differs: {moved} of {len(ours)} places hold another token, {shared} tokens are in both")


def _aligned(first: Detector, second: Detector, picture: Picture, a: Values, b: Values) -> tuple[Values, Values, np.ndarray | None, str]:
    """Both models' values for the same queries, or which queries [Q] are the same; and how that was reached."""
    if _network(second) is not None:
        again = _look(second, picture, 1.0, a[TOKENS])[0]
        return a, {**again, TOKENS: b[TOKENS], SCORES: b[SCORES]}, None, "second model run from the tokens of the first"
    if _network(first) is not None:
        again = _look(first, picture, 1.0, b[TOKENS])[0]
        return {**again, TOKENS: a[TOKENS], SCORES: a[SCORES]}, b, None, "first model run from the tokens of the second"
    same = (a[TOKENS] == b[TOKENS])[0]
    return a, b, same, f"the {int(same.sum())} queries that start from the same token in the same place"


def _stage(
    name: str, a: np.ndarray | None, b: np.ndarray | None, tolerance: float, where: np.ndarray | None = None, note: str = ""
) -> Stage:
    """`where` bool [K]: which of the first K queries count; those after them start from no token."""
    if a is None or b is None:
        return Stage(name, None, None, None, None, False, f"only the {'second' if a is None else 'first'} model has it")
    if a.shape != b.shape:
        return Stage(name, None, None, None, None, False, f"not comparable: {list(a.shape[1:])} and {list(b.shape[1:])}")
    if where is not None:
        rows = np.resize(where, a.shape[1])
        rows[len(where) :] = True
        a, b = a[:, rows], b[:, rows]
    if not a.size:
        return Stage(name, None, None, None, None, False, "no query starts from the same token")
    apart = np.abs(a.astype(np.float64) - b)
    scale = max(float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))), float(np.finfo(np.float32).tiny))
    most, mean = float(apart.max()), float(apart.mean())
    return Stage(name, most, mean, most / scale, mean / scale, not most / scale <= tolerance, note)


def _heat(a: Values, b: Values) -> np.ndarray | None:
    """Root mean square over channels of the difference of the first level, in units of that of the first model's values."""
    ours, theirs = a.get(f"{LEVELS}.0"), b.get(f"{LEVELS}.0")
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return None
    scale = max(float(np.sqrt(np.mean(ours**2))), np.finfo(np.float32).tiny)
    return np.asarray(np.sqrt(np.mean((ours - theirs)[0] ** 2, axis=0)) / scale)


def _merged(stages: Sequence[Stage]) -> Stage:
    """One stage over all pictures: the largest of the largest, the mean of the means, what was noted of any."""
    notes = next((stage.note for stage in stages if stage.note), "")
    noted = sum(bool(stage.note) for stage in stages)
    notes += f" (noted in {noted} of {len(stages)} pictures, this is the first)" if noted and len(stages) > 1 else ""
    known = [(s.max_abs, s.mean_abs, s.max_rel, s.mean_rel) for s in stages if s.max_abs is not None]
    if not known:
        return replace(stages[0], note=notes)
    table = np.array(known, np.float64)
    most, mean = table.max(0), table.mean(0)  # "not a number" stays
    differs = any(stage.differs for stage in stages)
    return Stage(stages[0].name, float(most[0]), float(mean[1]), float(most[2]), float(mean[3]), differs, notes)


def _root(name: str) -> str:
    """vit.blocks of vit.blocks.3."""
    head, _, last = name.rpartition(".")
    return head if last.isdecimal() else name
