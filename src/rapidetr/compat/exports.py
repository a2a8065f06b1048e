"""`export` and `export_for_roboflow` of the official classes: the official file names, over our own exporters."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from rapidetr.checkpoints.file import save_official, write_atomically
from rapidetr.compat.keywords import check_patch, check_shape
from rapidetr.core.errors import ConfigError, NotSupportedYet
from rapidetr.deployment.export_onnx import OPSETS, export_onnx

if TYPE_CHECKING:
    from rapidetr.compat.models import RFDETR

# official formats that are not written by this name, and what to do
ELSEWHERE = {
    "openvino": "use `rapidetr export --format openvino`",
    "tensorrt": "use `rapidetr export --format tensorrt`, which writes the ONNX file and the line for trtexec",
    **dict.fromkeys(("coreai", "coreml", "executorch", "litert", "tflite"), "convert the ONNX file"),
}
ALIASES = {"trt": "tensorrt", "pte": "executorch"}
NOTES = "rfdetr_notes"  # official name of the entry in the metadata


def export(
    self: RFDETR,
    output_dir: str | os.PathLike[str] = "output",
    infer_dir: str | None = None,
    backbone_only: bool = False,
    opset_version: int = 17,
    verbose: bool = True,
    shape: tuple[int, int] | None = None,
    batch_size: int = 1,
    dynamic_batch: bool = False,
    patch_size: int | None = None,
    format: str = "onnx",
    quantization: str | None = None,
    calibration_data: Any = None,
    max_images: int = 100,
    *,
    backend: str | None = None,
    soc: str | None = None,
    fp16: bool = True,
    max_batch_size: int | None = None,
    notes: object = None,
    coreml_precision: str | None = None,
    coreai_precision: str | None = None,
    openvino_precision: str | None = None,
    output_name: str | None = None,
) -> Path:
    """The path of <output_dir>/<size or output_name>.onnx: input `input`, outputs `dets`, `labels` and, for segmentation, `masks`.

    The batch is fixed to `batch_size` unless `dynamic_batch`. `shape` is (height, width). Opset 17 is written as 18, the lowest
    there is here. `infer_dir`, `calibration_data`, `max_images` and `fp16` change no ONNX file, officially neither. How far the file
    is from this model is printed, unless `verbose` is off and the difference is rounding. NotSupportedYet for other formats and
    `backbone_only`, ConfigError for arguments out of range, BackendMissing without rapidetr[onnx].
    """
    name = f"{type(self).__name__}.export"
    _check_format(name, format)
    refused = {
        "backbone_only": backbone_only, "quantization": quantization, "backend": backend, "soc": soc, "max_batch_size": max_batch_size,
        "coreml_precision": coreml_precision, "coreai_precision": coreai_precision, "openvino_precision": openvino_precision,
    }  # fmt: skip
    for keyword, value in refused.items():
        if value:
            raise NotSupportedYet(f"{name}: {keyword}={value!r} is not supported yet; leave it out")
    if opset_version not in (17, *OPSETS):
        raise NotSupportedYet(f"{name}: opset_version={opset_version!r} is not supported yet; expected 17 (written as 18) to {OPSETS[-1]}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"{name}: batch_size is {batch_size!r}; expected a whole number from 1")
    check_patch(self.detector.config, patch_size)
    size_hw = None if shape is None else check_shape(shape)
    path = Path(output_dir) / f"{Path(output_name).stem if output_name else self.size}.onnx"
    with TemporaryDirectory() as aside:
        written = export_onnx(self.detector, Path(aside) / path.name, size_hw=size_hw, opset=max(opset_version, OPSETS[0]))
        model = _settled(Path(written.path), None if dynamic_batch else batch_size, notes)
        write_atomically(path, lambda part: part.write_bytes(model))
    if verbose or not written.close:
        print(f"{name}: {replace(written, path=str(path), bytes=path.stat().st_size)}", file=sys.stderr)
    if not written.close:
        print(f"{name}: this is more than rounding; judge the file on data before you use it", file=sys.stderr)
    return path


def _check_format(name: str, format: str) -> None:
    known = ALIASES.get(format, format)
    if known in ELSEWHERE:
        raise NotSupportedYet(f"{name}: format={format!r} is not supported yet by this name; {ELSEWHERE[known]}")
    if known != "onnx":
        raise ConfigError(f"{name}: format is {format!r}; expected onnx")


def _settled(path: Path, batch: int | None, notes: object) -> bytes:
    """The bytes of an ONNX file with the batch fixed, where it is told, and notes in the metadata: text as it is, else as JSON."""
    import onnx

    model = onnx.load(path)
    if batch is not None:
        del model.graph.value_info[:]  # shapes in between, which depend on the batch
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    if notes is not None:
        model.metadata_props.add(key=NOTES, value=notes if isinstance(notes, str) else json.dumps(notes))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def export_for_roboflow(self: RFDETR, output_dir: str | os.PathLike[str]) -> None:
    """weights.pt, an official file, and class_names.txt, a name a line, in `output_dir`: what Roboflow's own client uploads.

    Files that are there are replaced. CheckpointError for input that is not square, which no official file can tell.
    """
    folder, detector = Path(output_dir), self.detector
    config = detector.config.at(size_hw=detector.size_hw)
    save_official(replace(self._checkpoint, config=config, state=detector.model.state_dict()), folder / "weights.pt")
    names = "\n".join(" ".join(name.split()) for name in detector.class_names)
    write_atomically(folder / "class_names.txt", lambda part: part.write_text(names, encoding="utf-8"))


def deploy_to_roboflow(
    self: RFDETR, workspace: str, project_id: str, version: int | str | None = None, api_key: str | None = None, size: str | None = None
) -> NoReturn:
    """Not offered: nothing here uploads. The message says what to do instead."""
    raise NotSupportedYet(
        f"{type(self).__name__}.deploy_to_roboflow: nothing is uploaded from here; write the files with export_for_roboflow(folder) and "
        "upload that folder with Roboflow's own `roboflow` package, or run the model with their client from disk: "
        "`rapidetr export --format roboflow`"
    )
