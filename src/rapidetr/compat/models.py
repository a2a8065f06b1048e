"""The official classes around a Detector: sparse COCO ids, supervision.Detections, one in one out."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from rapidetr.checkpoints.download import fetch
from rapidetr.checkpoints.file import Checkpoint
from rapidetr.checkpoints.licenses import notice
from rapidetr.checkpoints.weights import entry_for_filename
from rapidetr.compat import exports, scores, training
from rapidetr.compat.keywords import LATER, TRAINING, check_keywords, check_patch, check_shape, describe
from rapidetr.compat.results import relabel, to_official
from rapidetr.core.config import variant
from rapidetr.core.errors import ConfigError
from rapidetr.deployment.technique import TECHNIQUES, precision_of
from rapidetr.pixels.decode import load_picture
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.folded_engine import PRECISIONS
from rapidetr.runtime.load import load
from rapidetr.runtime.torch_engine import TorchEngine

if TYPE_CHECKING:
    from supervision import Detections

_BATCH = 8  # pictures of a list that go through the network together; the official package takes all at once


class RFDETR:
    """What all official classes share. `detector` is the native Detector inside, with everything that the official API lacks."""

    size = ""  # such as "rfdetr-nano"
    optimized: Detector | None = None  # what `predict` uses after `optimize_for_inference`, with its `verdict`

    def __init__(self, *, trust_checkpoint: bool = False, **keywords: Any) -> None:
        """A model with official weights; `pretrain_weights` names another file, None starts from random weights.

        Keywords are those of the official configuration (docs/migrate-from-rfdetr.md) and `accept_license`. `trust_checkpoint`
        changes nothing: no file is ever given the right to run code. Raises ConfigError for unknown keywords.
        """
        if not self.size:
            raise ConfigError("RFDETR is what the classes share; use RFDETRNano(...) and its like, or RFDETR.from_checkpoint(path)")
        config = variant(self.size)
        check_keywords(type(self).__name__, config, keywords)
        weights = keywords.get("pretrain_weights", config.name)
        source = config.name if weights is None else _find(weights)
        side = keywords.get("resolution") or config.size_hw[0]
        kind = "random" if weights is None else "pretrained"
        self._take(_load(source, keywords, model=config.name, weights=kind, size_hw=side), keywords)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], *, trust_checkpoint: bool = False, **keywords: Any) -> RFDETR:
        """The class that the file belongs to, whichever class this is called on, at the input size that the file tells."""
        detector = _load(_find(path), keywords, size_hw=keywords.get("resolution"))
        kind = next((k for k in RFDETR.__subclasses__() if k.size == f"rfdetr-{detector.config.name}"), None)
        if kind is None:
            raise ConfigError(f"{path}: holds a {detector.config.name}, which is no official model; load it with rapidetr.load")
        check_keywords(kind.__name__, detector.config, keywords)
        model = kind.__new__(kind)
        model._take(detector, {"pretrain_weights": os.fspath(path), **keywords})
        return model

    def _take(self, detector: Detector, keywords: dict[str, Any]) -> None:
        """Make `detector` this model's own, with another class head if one was asked for."""
        config, classes = detector.config, keywords.get("num_classes")
        self._checkpoint = Checkpoint({}, config, detector.labels, detector.preprocessing, detector.license, notes=detector.notes)
        self.detector = detector
        self._keywords = keywords
        if classes is not None and classes + 1 != config.class_rows:
            whole = replace(self._checkpoint, state=detector.model.state_dict(), notes=())
            fitted = whole.adapted(config.at(class_rows=classes + 1), relabel(detector.labels, classes))
            print(f"{type(self).__name__}: {'; '.join(fitted.notes)}", file=sys.stderr)
            self._checkpoint = replace(fitted, state={}, notes=(*detector.notes, *fitted.notes))
            self.detector = self._at(detector.size_hw, fitted.network())
        self._untrained = self.detector
        self.optimized = None

    def _at(self, size_hw: tuple[int, int], network: Any) -> Detector:
        """A detector of this model's settings at another input size or around another network."""
        old = self.detector.engine
        cut = {"decoder_layers": self._keywords.get("dec_layers"), "queries": self._keywords.get("num_queries")}
        return Detector(TorchEngine(network, device=old.device, size_hw=size_hw, **cut), self._checkpoint)

    def predict(
        self,
        images: Any,
        threshold: float = 0.5,
        shape: tuple[int, int] | None = None,
        patch_size: int | None = None,
        include_source_image: bool = True,
    ) -> Detections | list[Detections]:
        """supervision.Detections of one picture, or a list of them for a list or tuple; scores strictly above `threshold`.

        `shape` (height, width) runs this call at another input size. ImageError, ConfigError, BackendMissing (supervision).
        """
        check_patch(self.detector.config, patch_size)
        several = isinstance(images, list | tuple)
        pictures = [load_picture(image).pixels for image in (images if several else [images])]
        detector = self.optimized or self.detector
        if shape is not None and check_shape(shape) != detector.size_hw:  # an optimized detector has one size
            detector = self._at(check_shape(shape), self.detector.model)
        found = detector.predict(pictures, threshold, batch_size=_BATCH, include_unnamed=True, max_detections=self.model_config.num_select)
        results = [to_official(one, p if include_source_image else None) for one, p in zip(found, pictures, strict=True)]
        return results if several else results[0]

    @property
    def class_names(self) -> list[str]:
        """The names alone; a class_id is no index into them for COCO weights: use data["class_name"]."""
        return self.detector.class_names

    @property
    def means(self) -> list[float]:
        return list(self.detector.preprocessing.mean)

    @property
    def stds(self) -> list[float]:
        return list(self.detector.preprocessing.std)

    @property
    def model_config(self) -> SimpleNamespace:
        """The official configuration fields, to be read; changing them changes nothing."""
        config, asked = self.detector.config, self._keywords
        own = {
            "dec_layers": asked.get("dec_layers") or config.decoder_layers,
            "device": self.detector.engine.device,
            "num_classes": config.class_rows - 1,
            "num_queries": asked.get("num_queries") or config.queries,
            "num_select": asked.get("num_select") or config.queries,
            "pretrain_weights": asked.get("pretrain_weights", config.name),
            "resolution": self.detector.size_hw[0],
        }
        trained = {name: asked.get(name, default) for name, default in TRAINING.items()}
        return SimpleNamespace(**describe(config, self.detector.size_hw[0]), **LATER, **trained, **own)

    @property
    def model(self) -> SimpleNamespace:
        """`model` (our nn.Module), `device`, `resolution`, `class_names`, as the official context object has them."""
        inside, device = self.detector.model, torch.device(self.detector.engine.device)
        return SimpleNamespace(model=inside, device=device, resolution=self.detector.size_hw[0], class_names=self.class_names)

    def train(self, **keywords: Any) -> None:
        """Fine-tunes on the dataset in `dataset_dir`; then this model has the best weights, and `output_dir` the files.

        Keywords are the official ones (docs/migrate-from-rfdetr.md). Classes follow the dataset; rows of the head are repeated
        or cut. As officially, a second call starts again from the weights that the model was made with.
        """
        name, first = f"{type(self).__name__}.train", self._untrained
        if self.detector is not first:
            print(f"{name}: starts again from the first weights; to go on make a model with pretrain_weights=", file=sys.stderr)
        file = training.train(name, first, self._keywords, keywords)
        kept = {key: value for key, value in self._keywords.items() if key != "num_classes"}
        self._take(_load(file, {**kept, "device": keywords.get("device") or first.engine.device}), kept)
        self._untrained = first
        if keywords.get("run_test"):
            self.evaluate(**{key: value for key, value in keywords.items() if key not in ("device", "resolution")})

    def evaluate(self, *, split: str = "test", **keywords: Any) -> dict[str, float]:
        """Metrics of this model on a split, "test" or "val", of the dataset in `dataset_dir`, such as "test/mAP_50_95"; a table is printed.

        Keywords are those of `train`; `resolution` counts for this call.
        """
        side, device = keywords.get("resolution"), keywords.get("device")
        if device is not None and not _same_device(device, self.detector.engine.device):
            raise ConfigError(f"device is {device!r}; this model is on {self.detector.engine.device}: make it with device={device!r}")
        detector = self.detector if side is None else self._at((side, side), self.detector.model)
        return scores.evaluate(f"{type(self).__name__}.evaluate", detector, split, keywords)

    def optimize_for_inference(self, compile: bool = True, batch_size: int = 1, dtype: str | torch.dtype = torch.float32) -> None:
        """From now on `predict` uses the fastest engine of precision `dtype` that agrees with this model on 32 rendered scenes.

        Without `compile` none is tried that torch compiles at every load. Any number of pictures works afterwards, whatever
        `batch_size`, and any `shape`: at another size than this model's `predict` runs the plain network. `optimized` is the detector
        in use, None where nothing was faster and agreed; what was found is printed. `train` and `remove_optimized_model` end it.
        """
        kind = str(dtype).removeprefix("torch.")
        if kind not in PRECISIONS or batch_size < 1:
            raise ConfigError(f"dtype is {dtype}, batch_size {batch_size}; expected {', '.join(PRECISIONS)}, and at least 1")
        names = [name for name in TECHNIQUES if precision_of(name) == kind and (compile or "compile" not in name)]
        found = self.detector.optimize_for_inference(techniques=names)
        self.optimized = found if found.engine is not self.detector.engine else None
        for note in found.notes[len(self.detector.notes) :]:
            print(f"{type(self).__name__}.optimize_for_inference: {note}", file=sys.stderr)

    def inference(
        self,
        compile: bool = True,
        batch_size: int = 1,
        dtype: str | torch.dtype = torch.float32,
        *,
        inplace: bool = False,
        compile_backend: str = "torchscript",
    ) -> None:
        """The later official name of `optimize_for_inference`. `inplace` and `compile_backend` change nothing: the plain network stays
        for training, and the engine is the one that was measured to be fastest."""
        self.optimize_for_inference(compile, batch_size, dtype)

    def remove_optimized_model(self) -> None:
        """`predict` uses the plain network again."""
        self.optimized = None

    export = exports.export
    export_for_roboflow = exports.export_for_roboflow
    deploy_to_roboflow = exports.deploy_to_roboflow


def from_checkpoint(path: str | os.PathLike[str], **keywords: Any) -> RFDETR:
    """The model in an official or own file, as the class that it belongs to."""
    return RFDETR.from_checkpoint(path, **keywords)


def _same_device(one: str | torch.device, other: str | torch.device) -> bool:
    """Whether both name one device; a CUDA device without index is the current one."""
    a, b = torch.device(one), torch.device(other)
    current = torch.cuda.current_device() if a.type == b.type == "cuda" and a.index != b.index else 0
    return a.type == b.type and (current if a.index is None else a.index) == (current if b.index is None else b.index)


def _find(weights: str | os.PathLike[str]) -> str | Path:
    """A path or model name for `load`; the file name of published weights that is no file here means those weights."""
    path = Path(weights)
    entry = entry_for_filename(path.name)
    if entry is None or entry.url is None or path.exists():
        return os.fspath(weights)
    print(notice(entry), file=sys.stderr)
    return fetch(entry)


def _load(source: str | Path, keywords: dict[str, Any], **other: Any) -> Detector:
    return load(
        source,
        device=str(keywords.get("device") or "auto"),
        decoder_layers=keywords.get("dec_layers"),
        queries=keywords.get("num_queries"),
        accept_license=keywords.get("accept_license"),
        **other,
    )


class RFDETRNano(RFDETR):
    size = "rfdetr-nano"


class RFDETRSmall(RFDETR):
    size = "rfdetr-small"


class RFDETRMedium(RFDETR):
    size = "rfdetr-medium"


class RFDETRBase(RFDETR):
    size = "rfdetr-base"


class RFDETRLarge(RFDETR):
    size = "rfdetr-large"


class RFDETRLargeDeprecated(RFDETR):
    size = "rfdetr-large-deprecated"


class RFDETRXLarge(RFDETR):
    """Only with `pretrain_weights` of your own and accept_license="PML-1.0"."""

    size = "rfdetr-xlarge"


class RFDETR2XLarge(RFDETR):
    """Only with `pretrain_weights` of your own and accept_license="PML-1.0"."""

    size = "rfdetr-2xlarge"


class RFDETRSegPreview(RFDETR):
    size = "rfdetr-seg-preview"


class RFDETRSegNano(RFDETR):
    size = "rfdetr-seg-nano"


class RFDETRSegSmall(RFDETR):
    size = "rfdetr-seg-small"


class RFDETRSegMedium(RFDETR):
    size = "rfdetr-seg-medium"


class RFDETRSegLarge(RFDETR):
    size = "rfdetr-seg-large"


class RFDETRSegXLarge(RFDETR):
    size = "rfdetr-seg-xlarge"


class RFDETRSeg2XLarge(RFDETR):
    size = "rfdetr-seg-2xlarge"


class RFDETRKeypointPreview(RFDETR):
    """Not supported yet."""

    size = "rfdetr-keypoint-preview"
