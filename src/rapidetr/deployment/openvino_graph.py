"""The folded graph in OpenVINO's terms."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import nn


def traced(module: nn.Module, example: torch.Tensor, names: Sequence[str]) -> Any:
    """The openvino.Model of a module, for any number of pictures.

    By OpenVINO's front end itself: `openvino.convert_model` does the same, but reports to its makers that it was called.
    """
    from openvino._offline_transformations import apply_moc_transformations
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit; the front end for torch.export writes a longer graph
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # sizes are constants of a graph of one size
        script = torch.jit.trace(module, example, check_trace=False)
        decoder = TorchScriptPythonDecoder(script, example_input=example)
        front_end = FrontEndManager().load_by_framework("pytorch")
        model = front_end.convert(front_end.load(decoder))
    model.reshape([-1, *example.shape[1:]])
    for output, name in zip(model.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"input"})
    apply_moc_transformations(model, cf=False, smart_reshape=False)  # constants folded, patterns fused, as convert_model does
    return model


def keep_geometry(path: Path) -> None:
    """Have OpenVINO compute in fp32, at every precision, what boxes flow through: from the anchors on, up to the next product of weights.

    That is refinement, the sine embedding, sampling places, and what is sampled there until it is mixed. The mark is OpenVINO's own
    (`DisableFP16Compression`, "precise" in files); its CPU plugin leaves nodes with it out when it lowers others to bf16.
    """
    tree = ElementTree.parse(path)
    layers = {layer.get("id"): layer for layer in tree.iterfind("layers/layer")}
    readers: dict[str | None, list[str | None]] = {}
    for edge in tree.iterfind("edges/edge"):
        readers.setdefault(edge.get("from-layer"), []).append(edge.get("to-layer"))
    # sizes grow by exp, which is taken of what a head said before it meets a box
    waiting = [key for key, layer in layers.items() if str(layer.get("name")).endswith("anchors") or layer.get("type") == "Exp"]
    reached: set[str | None] = set()
    while waiting:
        key = waiting.pop()
        if key not in reached and layers[key].get("type") not in ("MatMul", "ShapeOf", "Result"):
            reached.add(key)
            waiting += readers.get(key, [])
    assert reached, "the network has no anchors"
    for key in reached:
        info = layers[key].find("rt_info")
        info = ElementTree.SubElement(layers[key], "rt_info") if info is None else info
        ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(path, encoding="utf-8", xml_declaration=True)
