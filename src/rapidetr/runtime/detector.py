"""A model that takes pictures and gives detections: decode, prepare, run, select. Nothing else, and no memory of the last picture."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from rapidetr.core.clock import StageClock
from rapidetr.core.config import ModelConfig
from rapidetr.core.detections import Detections
from rapidetr.core.errors import ConfigError, ImageError, NotSupportedYet
from rapidetr.core.labels import LabelSpace
from rapidetr.core.outputs import Batch, Geometry
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.pixels.decode import ImageLimits, Picture, load_picture
from rapidetr.pixels.select import is_number, select, suppress
from rapidetr.runtime.engine import Engine

if TYPE_CHECKING:
    from rapidetr.checkpoints.file import Checkpoint
    from rapidetr.deployment.verdict import Verdict
    from rapidetr.model.rfdetr import RfDetr
    from rapidetr.runtime.artifact import Facts


DEFAULT_LIMITS = ImageLimits()


class PredictOptions(TypedDict, total=False):
    """Keywords of `predict` and `predict_iter`."""

    classes: Iterable[str | int] | None  # names or indices to keep
    max_detections: int | None  # at most this many pairs of query and class, before the threshold; default: one a query
    nms: float | None  # suppress boxes of the same class that overlap by more than this IoU
    one_label_per_query: bool  # of several classes for one query keep the best
    include_unnamed: bool  # keep rows of the class head that name no class
    tile: int | tuple[int, int] | None  # cut pictures into tiles of this size in pixels and merge what is found
    overlap: float  # of neighbouring tiles, as part of the tile
    purpose: str  # "predict" (default) or "evaluate": which of the two stored resize filters
    limits: ImageLimits  # bounds on files, downloads and picture sizes
    clock: StageClock | None  # adds up seconds by stage


@dataclass(frozen=True)
class _Options:
    threshold: float = 0.5
    classes: Iterable[str | int] | None = None
    max_detections: int | None = None
    nms: float | None = None
    one_label_per_query: bool = False
    include_unnamed: bool = False
    tile: int | tuple[int, int] | None = None
    overlap: float = 0.2
    purpose: str = "predict"
    limits: ImageLimits = DEFAULT_LIMITS
    clock: StageClock | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ConfigError(f"threshold is {self.threshold!r}; expected 0 to 1")
        sides = self.tile if isinstance(self.tile, tuple) else (self.tile,) * 2
        if self.tile is not None and not (len(sides) == 2 and all(hasattr(side, "__index__") for side in sides)):
            raise ConfigError(f"tile is {self.tile!r}; expected (height, width) in pixels, or one whole number for a square")
        if self.purpose not in ("predict", "evaluate"):
            raise ConfigError(f"purpose is {self.purpose!r}; expected predict or evaluate")
        if self.classes is not None:
            object.__setattr__(self, "classes", [self.classes] if isinstance(self.classes, str | int) else list(self.classes))


class Detector:
    """Made by `rapidetr.load`. Threads may share one: predicting changes nothing in it."""

    verdict: Verdict | None = None  # of the gate, on a detector that was optimized

    def __init__(self, engine: Engine, checkpoint: Checkpoint | Facts) -> None:
        self.engine = engine
        self._checkpoint = replace(checkpoint, state={})  # the weights live in the engine

    @classmethod
    def from_module(
        cls, network: RfDetr, labels: LabelSpace, *, preprocessing: Preprocessing | None = None, license: str = "", device: str = "cpu"
    ) -> Detector:
        """A detector around a live network, so that what is scored in training is what is predicted."""
        from rapidetr.checkpoints.file import Checkpoint
        from rapidetr.runtime.torch_engine import TorchEngine

        checkpoint = Checkpoint({}, network.config, labels, preprocessing or Preprocessing(), license)
        return cls(TorchEngine(network, device=device), checkpoint)

    @property
    def config(self) -> ModelConfig:
        return self._checkpoint.config

    @property
    def labels(self) -> LabelSpace:
        return self._checkpoint.labels

    @property
    def preprocessing(self) -> Preprocessing:
        return self._checkpoint.preprocessing

    @property
    def license(self) -> str:
        """Licence of the weights."""
        return self._checkpoint.license

    @property
    def notes(self) -> tuple[str, ...]:
        """Decisions that loading took."""
        return self._checkpoint.notes

    @property
    def class_names(self) -> list[str]:
        return list(self.labels.names)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Input size that pictures are stretched to."""
        return self.engine.size_hw

    @property
    def model(self) -> RfDetr:
        """The network, a plain nn.Module; only a torch engine has one."""
        network: RfDetr | None = getattr(self.engine, "network", None)
        if network is None:
            raise NotSupportedYet(f"the {self.engine.name} engine has no torch module; load the checkpoint it was made from")
        return network

    def predict(self, images: Any, threshold: float = 0.5, *, batch_size: int = 1, **options: Unpack[PredictOptions]) -> list[Detections]:
        """One Detections per picture, in order; a single picture gives a list of one.

        A picture is a path, http(s) address, bytes, PIL image, RGB array (uint8 [H, W, 3], or float 0..1) or torch tensor
        ([3, H, W], 0..1); `images` is one or any iterable of them. Scores lie strictly above `threshold`. Options:
        `PredictOptions`. Raises ImageError on the first picture that cannot be used.
        """
        batches = self.predict_iter(images, threshold, batch_size=batch_size, on_error="raise", **options)
        return [detections for batch in batches for detections in batch]

    def predict_iter(
        self,
        images: Any,
        threshold: float = 0.5,
        *,
        batch_size: int = 8,
        prefetch: int = 0,
        on_error: str = "report",
        **options: Unpack[PredictOptions],
    ) -> Iterator[list[Detections]]:
        """Lists of Detections, `batch_size` pictures at a time, holding no more than that (plus `prefetch` loaded ahead).

        `on_error="report"` gives a picture that cannot be used an empty Detections with `error` set; "raise" raises.
        `prefetch` threads read, decode and (for a CPU) prepare the next pictures while the network runs.
        """
        if batch_size < 1 or prefetch < 0 or on_error not in ("report", "raise"):
            raise ConfigError(
                f"batch_size {batch_size}, prefetch {prefetch}, on_error {on_error!r}; expected at least 1, at least 0, report or raise"
            )
        unknown = set(options) - set(PredictOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}; there are {', '.join(PredictOptions.__annotations__)}")
        chosen = _Options(threshold, **options)
        return self._batches(as_list(images), chosen, batch_size, prefetch, on_error)

    def _batches(
        self, images: Iterable[Any], options: _Options, batch_size: int, prefetch: int, on_error: str
    ) -> Iterator[list[Detections]]:
        # an engine on a device prepares there, in the order of its runs
        prepare = self._prepare if prefetch and options.tile is None and self.engine.device == "cpu" else None
        loaded = _load_ahead(images, options, prefetch, on_error, prepare)
        while batch := list(islice(loaded, batch_size)):
            good = [p for p in batch if isinstance(p, _Loaded)]
            prepared = [p.batch for p in good if p.batch is not None]
            timed = options if options.clock else replace(options, clock=StageClock.sum(p.clock for p in good))
            found = iter(self.detect([p.picture for p in good], timed, prepared) if good else [])
            yield [next(found) if isinstance(p, _Loaded) else self._failed(p) for p in batch]

    def _failed(self, problem: _Problem) -> Detections:
        return Detections.empty(self.labels, source=problem.source, error=problem.message)

    def detect(self, pictures: Sequence[Picture], options: _Options, prepared: Sequence[Batch] = ()) -> list[Detections]:
        """Decoded pictures to detections; every way to predict ends here. `prepared`: what `_prepare` made of each, if it did."""
        clock = options.clock or StageClock()
        if options.tile is None:
            batch = _joined(prepared, clock) if prepared else self._prepare([p.pixels for p in pictures], None, options, clock)
            found = self._forward(batch, options, clock)
        else:
            found = [self._tiled(p.pixels, options, clock) for p in pictures]
        times = clock.milliseconds()
        return [replace(d, source=p.source, times_ms=times) for d, p in zip(found, pictures, strict=True)]

    def _prepare(self, arrays: Sequence[np.ndarray], geometries: Sequence[Geometry] | None, options: _Options, clock: StageClock) -> Batch:
        resize = self.preprocessing.predict_filter if options.purpose == "predict" else self.preprocessing.evaluate_filter
        with clock.stage("prepare"):
            return self.engine.prepare(arrays, self.preprocessing, resize, geometries)

    def _forward(self, batch: Batch, options: _Options, clock: StageClock) -> list[Detections]:
        raw = self.engine.run(batch.pixels, clock)
        return select(
            raw,
            batch.geometries,
            self.labels,
            threshold=options.threshold,
            classes=options.classes,
            max_detections=options.max_detections,
            nms=options.nms,
            one_label_per_query=options.one_label_per_query,
            include_unnamed=options.include_unnamed,
            resize_filter=batch.filter,
            clock=clock,
        )

    def _tiled(self, pixels: np.ndarray, options: _Options, clock: StageClock) -> Detections:
        from rapidetr.pixels.tiles import cut, merge

        tile = options.tile if isinstance(options.tile, tuple) else (options.tile, options.tile)
        views = cut(pixels, tile, options.overlap)  # type: ignore[arg-type]
        parts = [self._forward(self._prepare([view], [where], options, clock), options, clock)[0] for view, where in views]
        with clock.stage("select"):
            found = merge(parts, [where for _, where in views])
            if options.nms is not None:  # merging alone keeps boxes of two tiles that overlap up to its own limit
                found = found[suppress(found.boxes_xyxy_px, found.head_rows, options.nms)]
            return found[: options.max_detections]

    def save(self, path: str | Path, *, deploy: bool = False) -> Path:
        """Write weights, classes, preprocessing and licence as one .safetensors; `deploy` drops the training groups."""
        from rapidetr.checkpoints.file import Checkpoint, save_checkpoint

        known = self._checkpoint
        state = self.model.state_dict()
        checkpoint = Checkpoint(state, known.config, known.labels, known.preprocessing, known.license, known.provenance, known.notes)
        return save_checkpoint(checkpoint.deployed() if deploy else checkpoint, path)

    def optimize_for_inference(
        self, images: Iterable[Any] | None = None, *, techniques: Sequence[str] | None = None, threads: int | None = None
    ) -> Detector:
        """A new Detector: the best engine known for this machine; this one stays as it is. Takes a minute or two a technique.

        Candidates must agree with this detector on `images`, else on 32 rendered scenes, and be measurably faster. `.verdict` and
        `.notes` say what was found; where nothing was accepted the new one runs as this one does. `techniques`: docs/deploy.md.
        """
        forward = import_module("rapidetr.deployment.optimize").optimize_for_inference
        optimized: Detector = forward(self, images, techniques=techniques, threads=threads)
        return optimized

    def judged(self, verdict: Verdict | None, *notes: str) -> Detector:
        """The same with a verdict and further notes; the engine is shared."""
        other = copy.copy(self)
        other.verdict, other._checkpoint = verdict, replace(self._checkpoint, notes=(*self.notes, *notes))
        return other

    def __repr__(self) -> str:
        c, e = self.config, self.engine
        size = f"{self.size_hw[0]}x{self.size_hw[1]}"
        return f"Detector({c.name}, {c.task}, {len(self.labels)} classes, {size}, {e.name} {e.precision} on {e.device})"


@dataclass(frozen=True)
class _Problem:
    source: str | None
    message: str


@dataclass(frozen=True)
class _Loaded:
    picture: Picture
    batch: Batch | None  # of this picture alone, where it was prepared ahead
    clock: StageClock  # the caller's, or what that took


def _joined(batches: Sequence[Batch], clock: StageClock) -> Batch:
    with clock.stage("prepare"):
        pixels = np.concatenate([b.pixels for b in batches]) if len(batches) > 1 else batches[0].pixels
        return Batch(pixels, tuple(g for b in batches for g in b.geometries), batches[0].filter)


def as_list(images: Any) -> Iterable[Any]:
    """One picture, or an open file, as a list of one; iterables as they are; arrays of four dimensions picture by picture."""
    alone = isinstance(images, str | bytes | bytearray | os.PathLike | Picture) or hasattr(images, "read")
    if alone or (hasattr(images, "shape") and len(images.shape) < 4):
        return [images]
    if not isinstance(images, Iterable) or hasattr(images, "getexif"):
        return [images]
    return images


def _load_ahead(
    images: Iterable[Any], options: _Options, prefetch: int, on_error: str, prepare: Callable[..., Batch] | None
) -> Iterator[_Loaded | _Problem]:
    def load(source: Any) -> _Loaded | _Problem:
        clock = options.clock or StageClock()
        try:
            picture = load_picture(source, options.limits, clock)
        except ImageError as problem:
            if on_error == "raise":
                raise
            return _Problem(str(source) if isinstance(source, str | Path) else None, str(problem))
        return _Loaded(picture, prepare and prepare([picture.pixels], None, options, clock), clock)

    if prefetch == 0:
        yield from map(load, images)
        return
    with ThreadPoolExecutor(prefetch, "rapidetr-decode") as pool:
        remaining = iter(images)
        ahead = deque(pool.submit(load, s) for s in islice(remaining, prefetch))
        while ahead:
            done = ahead.popleft()
            ahead.extend(pool.submit(load, s) for s in islice(remaining, 1))
            yield done.result()
