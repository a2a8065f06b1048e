"""An OpenVINO network for Intel and AMD processors: the folded graph in fp32 or bf16, geometry in fp32; predicts without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.deployment.distance import BATCHES, Distance
from rapidetr.deployment.openvino_graph import keep_geometry, traced
from rapidetr.deployment.package import put_in_place
from rapidetr.deployment.taps import SCORES, TOKENS, Tapped, recorded
from rapidetr.deployment.technique import Order, technique
from rapidetr.model.fold import Folded
from rapidetr.pixels.prepare import prepare
from rapidetr.runtime.artifact import REPORT, Artifact, Manifest, write_artifact
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.graph_engine import RAW, prepare_bytes
from rapidetr.runtime.host import has_bfloat16
from rapidetr.runtime.load import load
from rapidetr.runtime.lock import weights_file
from rapidetr.runtime.openvino_engine import BIN, XML, OpenvinoEngine, settings
from rapidetr.runtime.torch_engine import TorchEngine

Change = Callable[[Any], Any]  # openvino.Model -> openvino.Model


@dataclass(frozen=True, kw_only=True)
class Converted(Distance):
    """An OpenVINO artifact; compared on pictures of the user, else on noise, both networks starting from the same tokens."""

    precision: str

    @property
    def kind(self) -> str:
        return f"OpenVINO {self.precision}"

    @property
    def close(self) -> bool:
        """Below fp32 whether the differences are finite: how much such rounding may cost is no fixed number, but for data to say."""
        if self.precision == "float32":
            return super().close
        return all(map(isfinite, (self.max_logit_error, self.max_box_error, self.max_mask_error or 0.0, self.topk_gap)))

    def __str__(self) -> str:
        lower = "" if self.precision == "float32" else "\nnote: this precision rounds more than fp32; judge on data what that costs"
        return f"{super().__str__()}{lower}"


@dataclass(frozen=True)
class OpenvinoFloat:
    name: str
    precision: str
    root: Path = Path("/")  # of /proc, which tells the processor's flags

    def fits(self, order: Order) -> str | None:
        if self.precision == "bfloat16" and not has_bfloat16(self.root):
            return "this processor has neither avx512_bf16 nor amx_bf16"
        return why_not(order, "openvino")

    def make(self, order: Order, folder: Path) -> Artifact:
        """Its report.json is what was measured (`Converted`)."""
        return Conversion(order, folder, self.name, self.precision).write()


def why_not(order: Order, *packages: str) -> str | None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed; install it with: pip install 'rapidetr[openvino]'"
    device = order.detector.engine.device
    return None if device == "cpu" else f"it is made for the CPU; the device is {device}"


def export_openvino(
    source: Detector | str | Path,
    folder: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    decoder_layers: int | None = None,
    queries: int | None = None,
    precision: str = "float32",
    pictures: Sequence[np.ndarray] = (),
    taps: bool = False,
    force: bool = False,
    checkpoint: str | Path | None = None,
) -> Converted:
    """Write `folder`, an artifact with model.xml and model.bin for any batch size, and say how far it is from the source; atomic.

    `source`: a torch Detector, or what `rapidetr.load` takes. Size, layers and queries are the detector's unless told.
    `pictures`: RGB uint8 [H, W, 3], which int8 is calibrated with and all are compared on. `taps` adds what deployment/taps.py names
    after the outputs, for `rapidetr diff`; the network is slower then. `checkpoint` says what a Detector was loaded from, for the
    manifest. BackendMissing without openvino, for int8 nncf, too; ConfigError for arguments out of range, a folder that exists unless
    `force` replaces it, int8 without pictures and with taps.
    """
    precisions = {"float32", "bfloat16", "int8"}
    if precision not in precisions or (precision == "int8" and taps):
        raise ConfigError(f"precision is {precision!r}, taps {taps}; expected one of {', '.join(sorted(precisions))}, int8 without taps")
    with put_in_place(Path(folder), force=force) as part, TemporaryDirectory() as aside:
        detector = _recut(source, size_hw, decoder_layers, queries)
        known = checkpoint if isinstance(source, Detector) else source
        # a detector knows no file, so that its weights are hashed as they would be saved
        file = detector.save(Path(aside) / f"{detector.config.name}.safetensors") if known is None else weights_file(known)
        order = Order(detector, file, pictures=pictures)
        if taps:
            made = Conversion(order, part, f"openvino-{precision}", precision, taps=True).write()
        else:
            made = technique(f"openvino-{precision}").make(order, part)
        told = json.loads(made.files[REPORT].read_text(encoding="utf-8"))
    told.pop("close")
    return Converted(**{**told, "path": str(folder), "size_hw": tuple(told["size_hw"])})


def _recut(source: Detector | str | Path, size_hw: tuple[int, int] | None, decoder_layers: int | None, queries: int | None) -> Detector:
    """The source on the CPU in fp32, running with another size, fewer layers and fewer queries."""
    detector = copy(source) if isinstance(source, Detector) else load(source, device="cpu")
    engine: Any = detector.engine
    detector.engine = TorchEngine(
        deepcopy(detector.model),
        size_hw=size_hw or detector.size_hw,
        decoder_layers=decoder_layers or engine.decoder_layers,
        queries=queries or engine.queries,
    )
    return detector


@dataclass
class Conversion:
    """One artifact in the making. `change` is what is done to the network before it is written."""

    order: Order
    folder: Path
    technique: str
    precision: str
    floats: str | None = None  # precision of what is not int8
    change: Change | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    taps: bool = False

    def __post_init__(self) -> None:
        if find_spec("openvino") is None:
            raise BackendMissing("converting needs openvino; install it with: pip install 'rapidetr[openvino]'")
        detector, engine = self.order.detector, self.order.detector.engine
        self.network = deepcopy(detector.model).to("cpu", torch.float32).eval()
        self.feed = detector.preprocessing
        # bytes only where the model's own filter gives whole levels: nothing is rounded that was not before
        self.takes_bytes = self.feed.predict_filter == "bilinear-antialias"
        cut: Any = {name: getattr(engine, name) for name in ("size_hw", "decoder_layers", "queries")}
        self.folded = Folded(self.network, preprocessing=self.feed if self.takes_bytes else None, **cut).eval()

    def write(self) -> Artifact:
        began = time.perf_counter()
        if self.folder.exists():
            raise ConfigError(f"{self.folder}: is there already; expected the name of a new folder")
        inputs = "uint8" if self.takes_bytes else "normalized"
        parameters = {
            "technique": self.technique,
            "inputs": inputs,
            "floats": self.floats or self.precision,
            "taps": self.taps,
            **self.parameters,
        }
        made = Manifest.of(self.order.detector, source=self.order.source, command=self.order.command, parameters=parameters)
        with TemporaryDirectory() as aside:
            path = Path(aside) / XML
            self._save(path)
            told = Converted(
                path=XML,
                bytes=path.stat().st_size + path.with_name(BIN).stat().st_size,
                precision=self.precision,
                size_hw=self.folded.config.size_hw,
                decoder_layers=len(self.folded.layers),
                queries=self.folded.queries,
                inputs=inputs,
                **self._differences(path),
                seconds=time.perf_counter() - began,
            )
            report = (json.dumps(told.to_dict(), indent=1) + "\n").encode()
            files: dict[str, Path | bytes] = {XML: path, BIN: path.with_name(BIN), REPORT: report}
            return write_artifact(self.folder, files, replace(made, engine=OpenvinoEngine.name, device="cpu", precision=self.precision))

    def _save(self, path: Path) -> None:
        import openvino

        module: nn.Module = Tapped(self.folded, self.folded).eval() if self.taps else self.folded
        example = torch.from_numpy(self.given(self._pictures(2)))
        with torch.no_grad():
            module(example)  # the names of taps are known only then
        names = (*RAW, *(("masks",) if self.folded.config.segmentation else ()), *(module.names if isinstance(module, Tapped) else ()))
        model = traced(module, example, names)
        openvino.save_model(self.change(model) if self.change else model, path, compress_to_fp16=False)
        keep_geometry(path)

    def _pictures(self, count: int) -> list[np.ndarray]:
        """The first of the user's, again and again if need be; noise where there are none."""
        config, given = self.folded.config, self.order.pictures
        noise = np.random.default_rng(count).integers(0, 256, (count, *config.size_hw, config.in_channels), np.uint8)
        return [given[i % len(given)] if given else noise[i] for i in range(count)]

    def given(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures as the graph takes them."""
        size, filter = self.folded.config.size_hw, self.feed.predict_filter
        batch = prepare_bytes(pictures, size, filter) if self.takes_bytes else prepare(pictures, size, self.feed, filter=filter)
        return np.asarray(batch.pixels)

    def _differences(self, path: Path) -> dict[str, Any]:
        """The differences that `Converted` tells of, of the very files."""
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        names = [output.any_name for output in model.outputs]
        if TOKENS not in names:
            model.add_outputs(next(node for node in model.get_ordered_ops() if node.get_type_name() == "TopK").output(1))
            names.append(TOKENS)
        runner = core.compile_model(model, "CPU", settings(self.floats or self.precision, None))
        pictures, size = self._pictures(sum(BATCHES)), self.folded.config.size_hw
        cut = {"decoder_layers": len(self.folded.layers), "queries": self.folded.queries}
        found, same, gap = [], 0, 0.0
        for count in BATCHES:
            some, pictures = pictures[:count], pictures[count:]
            plain = torch.from_numpy(prepare(some, size, self.feed, filter=self.feed.predict_filter).pixels)
            answers = [torch.from_numpy(value) for value in runner(self.given(some)).to_tuple()]
            tokens = answers[names.index(TOKENS)].long()
            with torch.no_grad(), recorded(self.network) as free:
                self.network(plain, **cut)
            with torch.no_grad(), recorded(self.network, start_from=tokens):
                want = self.network(plain, **cut)
            same += int((tokens == free[TOKENS]).all(1).sum())
            gap = max(gap, float((free[SCORES].gather(1, tokens) - free[SCORES].gather(1, free[TOKENS])).abs().max()))
            wanted = (want.boxes, want.logits, *(() if want.masks is None else (want.masks,)))
            found.append([float((ours - theirs).abs().max()) for ours, theirs in zip(answers, wanted, strict=False)])
        worst = np.max(found, axis=0).tolist()
        return {
            "pictures": sum(BATCHES),
            "same_topk": same,
            "topk_gap": gap,
            "max_box_error": worst[0],
            "max_logit_error": worst[1],
            "max_mask_error": worst[2] if self.folded.config.segmentation else None,
        }


FLOAT32 = OpenvinoFloat("openvino-float32", "float32")
BFLOAT16 = OpenvinoFloat("openvino-bfloat16", "bfloat16")
