"""A detector as one .onnx file that any ONNX Runtime runs, that we load with everything known, and whose error is measured."""

from __future__ import annotations

import json
import logging
import time
import warnings
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from rapidetr import __version__
from rapidetr.checkpoints.file import write_atomically
from rapidetr.core.config import ModelConfig
from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.deployment.distance import BATCHES, Distance
from rapidetr.deployment.taps import Tapped
from rapidetr.model.fold import Folded, best_pairs
from rapidetr.model.rfdetr import RfDetr
from rapidetr.pixels.prepare import normalization
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.graph_engine import FINAL, RAW
from rapidetr.runtime.load import load
from rapidetr.runtime.onnx_file import HEADER_VERSION, KEY

INPUTS, OUTPUTS = ("normalized", "uint8"), ("raw", "final")
OPSETS, IR_VERSION = range(18, 23), 10  # what torch writes without conversion, and clients such as Roboflow's still read
_RAW = ("raw_dets", "raw_logits")  # outputs of "final" while it is measured, and with taps


@dataclass(frozen=True, kw_only=True)
class Exported(Distance):
    """An .onnx file; compared on pictures of noise. Errors are those of the pictures with the same top-k."""

    opset: int
    ir_version: int
    outputs: str

    @property
    def kind(self) -> str:
        return f"opset {self.opset}"

    @property
    def close(self) -> bool:
        return self.same_topk > 0 and super().close


class GraphOptions(TypedDict, total=False):
    """Keywords of `export_onnx` that other exports pass on."""

    size_hw: tuple[int, int] | None
    decoder_layers: int | None
    queries: int | None
    inputs: str
    outputs: str
    opset: int


def export_onnx(
    source: Detector | str | Path,
    path: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    decoder_layers: int | None = None,
    queries: int | None = None,
    inputs: str = "normalized",
    outputs: str = "raw",
    opset: int = 20,
    taps: bool = False,
) -> Exported:
    """Write `path`, an .onnx file of any batch size, and say how far it is from the source; atomic.

    `source`: a torch Detector, or what `rapidetr.load` takes. `inputs`: "normalized" is float32 [B, C, H, W], "uint8" is
    [B, H, W, C] RGB. `outputs`: "raw" is dets [B, Q, 4] (centre and size in units of the picture), labels [B, Q, C] (logits) and
    masks; "final" is the best Q pairs of query and row (`fold.best_pairs`): boxes, scores, labels, queries and masks, before any
    threshold. Size, layers and queries are the detector's unless told. `taps` adds what deployment/taps.py names after the
    outputs, for `rapidetr diff`; the file is slower then. BackendMissing without onnx, onnxruntime and onnxscript;
    ConfigError for arguments out of range.
    """
    path, began = Path(path), time.perf_counter()
    for name, value, known in (("inputs", inputs, INPUTS), ("outputs", outputs, OUTPUTS), ("opset", opset, OPSETS)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}")
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: expected a name that ends in .onnx")
    _need_packages()
    detector = source if isinstance(source, Detector) else load(source, device="cpu")
    network = deepcopy(detector.model).to("cpu", torch.float32).eval()
    engine: Any = detector.engine
    config = network.config.at(size_hw=size_hw or detector.size_hw)
    cut = {"decoder_layers": decoder_layers or engine.decoder_layers, "queries": queries or engine.queries}
    feed = detector.preprocessing if inputs == "uint8" else None
    folded = Folded(network, size_hw=config.size_hw, preprocessing=feed, **cut).eval()
    names = (*(RAW if outputs == "raw" else FINAL), *(("masks",) if config.segmentation else ()))
    whole: nn.Module = folded if outputs == "raw" else _Final(folded).eval()
    extra = () if outputs == "raw" else _RAW
    example = _noise(config, 2, feed)[0]
    if taps:
        whole = tapped = Tapped(whole, folded).eval()
        with torch.no_grad():
            tapped(example)
        extra = (*extra, *tapped.names)
    model = _trace(whole, example, (*names, *extra), opset)
    graph: dict[str, Any] = {"inputs": inputs, "outputs": outputs, "size_hw": list(config.size_hw), "opset": opset}
    graph |= {"decoder_layers": len(folded.layers), "queries": folded.queries}
    header = {
        "format_version": HEADER_VERSION,
        "config": network.config.to_dict(),
        "labels": detector.labels.to_dict(),
        "preprocessing": detector.preprocessing.to_dict(),
        "license": detector.license,
        "provenance": {"rapidetr": __version__, "torch": torch.__version__},
        "graph": graph,
    }
    _finish(model, names, header)
    errors = _measure(model, network, names, folded, feed)
    if not taps:
        del model.graph.output[len(names) :]
    write_atomically(path, lambda part: part.write_bytes(_checked(model)))
    return Exported(
        path=str(path),
        bytes=path.stat().st_size,
        seconds=time.perf_counter() - began,
        ir_version=model.ir_version,
        **{**graph, "size_hw": config.size_hw},
        **errors,
    )


class _Final(nn.Module):
    """The best pairs, and what they were taken from."""

    def __init__(self, folded: Folded) -> None:
        super().__init__()
        self.folded = folded

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        boxes, logits, *masks = self.folded(images)
        return (*best_pairs(boxes, logits, *masks), boxes, logits)


def _need_packages() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):  # torch's exporter is built on the last
        try:
            import_module(name)
        except ImportError:
            raise BackendMissing(f"exporting needs {name}; install it with: pip install 'rapidetr[onnx]'") from None


def _trace(module: nn.Module, example: Tensor, names: tuple[str, ...], opset: int) -> Any:
    """The onnx.ModelProto of a module."""
    chatter = logging.getLogger("torch.onnx._internal.exporter._registration")  # that torchvision, which nothing here needs, is missing
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch about itself
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["input"],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
                optimize=False,
            )
    finally:
        chatter.setLevel(level)
    assert program is not None
    _simplify(program.model)
    return program.model_proto


def _simplify(model: Any) -> None:
    """Fold constants, and drop what nothing uses or what stands there twice.

    onnxscript's own optimizer also tries its rewriting rules on every node: of Seg-2XL's export that took 11 of 12 s, for 1,054
    nodes instead of 1,123, and ONNX Runtime needed the same time for the same answers.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    fold_constants(model, onnx_shape_inference=True)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
    ):
        step(model)


def _finish(model: Any, names: tuple[str, ...], header: dict[str, Any]) -> None:
    """Set version and metadata; take out what tells of the exporting machine's files."""
    import onnx

    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "rapidetr", __version__
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(model, {KEY: json.dumps(header)})


def _checked(model: Any) -> bytes:
    """The bytes of a model that passed onnx's checker with strict shape inference."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _noise(config: ModelConfig, count: int, feed: Preprocessing | None) -> tuple[Tensor, Tensor]:
    """`count` pictures of noise as the graph takes them, and as the network does."""
    pixels_BHWC = np.random.default_rng(count).integers(0, 256, (count, *config.size_hw, config.in_channels), np.uint8)
    mean, std = normalization(feed or Preprocessing(), config.in_channels)
    plain = torch.from_numpy(((pixels_BHWC / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).copy())
    return (plain if feed is None else torch.from_numpy(pixels_BHWC)), plain


def _measure(model: Any, network: RfDetr, names: tuple[str, ...], folded: Folded, feed: Preprocessing | None) -> dict[str, Any]:
    """The differences that `Exported` tells of, in ONNX Runtime on the CPU."""
    import onnx
    import onnxruntime

    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    chosen = next(node for node in tapped.graph.node if node.op_type == "TopK").output[1]  # the first chooses tokens
    if chosen not in [output.name for output in tapped.graph.output]:  # with taps it is one already
        tapped.graph.output.append(onnx.helper.make_tensor_value_info(chosen, onnx.TensorProto.INT64, None))
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    found_names = [output.name for output in session.get_outputs()]
    seen: dict[str, Tensor] = {}
    head: Any = network.proposals.groups[0]
    head.classes.register_forward_hook(lambda m, i, o: seen.__setitem__("scores", o.amax(-1)))
    network.proposals.register_forward_hook(lambda m, i, o: seen.__setitem__("tokens", o.tokens))
    differences: list[tuple[float, float, float]] = []
    gap = 0.0
    given, plain = _noise(folded.config, max(BATCHES), feed)
    with torch.no_grad():  # once: of the large networks a picture takes seconds
        whole = network(plain, decoder_layers=len(folded.layers), queries=folded.queries)
    for count in BATCHES:
        answers = session.run(None, {"input": given[-count:].numpy()})  # the last, so that each stands at several places
        found = {k: torch.from_numpy(v) for k, v in zip(found_names, answers, strict=True)}
        want = whole._replace(**{k: v[-count:] for k, v in whole._asdict().items() if isinstance(v, Tensor)})
        scores, tokens = seen["scores"][-count:], seen["tokens"][-count:]
        same = (found[chosen] == tokens).all(1)
        apart = scores.gather(1, found[chosen]) - scores.gather(1, tokens)
        gap = max(gap, float(apart.abs().max()))
        boxes, logits = (found[name] for name in (_RAW if "scores" in names else RAW))
        masks = [(found["masks"], want.masks)] if "masks" in names else []
        if "scores" in names:  # the pairs, too, are those of the network
            picture = torch.arange(count)[:, None]
            logits = torch.cat([logits, found["scores"][..., None]], dim=-1)
            pair = want.logits[picture, found["queries"], found["labels"]].sigmoid()
            want = want._replace(logits=torch.cat([want.logits, pair[..., None]], dim=-1))
            masks = [(ours, theirs[picture, found["queries"]]) for ours, theirs in masks]
        for b in torch.nonzero(same)[:, 0].tolist():
            far = [float((x[b] - y[b]).abs().max()) for x, y in ((logits, want.logits), (boxes, want.boxes), *masks)]
            differences.append((far[0], far[1], far[2] if masks else 0.0))
    worst = np.max(differences, axis=0) if differences else np.full(3, np.inf)
    return {
        "pictures": sum(BATCHES),
        "same_topk": len(differences),
        "topk_gap": gap,
        "max_logit_error": float(worst[0]),
        "max_box_error": float(worst[1]),
        "max_mask_error": float(worst[2]) if "masks" in names else None,
    }
