"""An OpenVINO network with encoder and projector in int8 (NNCF, post-training), calibrated on the user's pictures."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rapidetr.core.errors import BackendMissing, ConfigError
from rapidetr.deployment.openvino import Conversion, why_not
from rapidetr.deployment.technique import Order
from rapidetr.runtime.artifact import Artifact
from rapidetr.runtime.host import has_bfloat16

MOST = 128  # pictures that are looked at: what optimize gives
QUANTIZED = r"__module\.(encoder|levels)\b"  # nodes of the folded graph; most of the products, and far from the geometry


@dataclass(frozen=True)
class OpenvinoInt8:
    name: str = "openvino-int8"
    root: Path = Path("/")  # of /proc, which tells the processor's flags
    scope: str = QUANTIZED

    def fits(self, order: Order) -> str | None:
        if not order.pictures:
            return "int8 is calibrated on your pictures, and there are none"
        return why_not(order, "openvino", "nncf")

    def make(self, order: Order, folder: Path) -> Artifact:
        """What is not int8 is bf16 where the processor has it. The manifest tells number and hash of the calibration pictures."""
        if not order.pictures:
            raise ConfigError("int8 is calibrated on your pictures, and there are none; give some, 100 are enough")
        if find_spec("nncf") is None:
            raise BackendMissing("int8 needs nncf; install it with: pip install 'rapidetr[openvino]'")
        step = -(-len(order.pictures) // MOST)
        pictures = order.pictures[::step]
        floats = "bfloat16" if has_bfloat16(self.root) else "float32"
        parameters = {"calibration": {"pictures": len(pictures), "sha256": fingerprint(pictures)}}
        conversion = Conversion(replace(order, pictures=pictures), folder, self.name, "int8", floats, parameters=parameters)
        conversion.change = partial(quantized, batches=[conversion.given([picture]) for picture in pictures], scope=self.scope)
        return conversion.write()


def fingerprint(pictures: Sequence[np.ndarray]) -> str:
    """sha256 over size and pixels of each."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.dtype} {picture.shape}\0".encode() + np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


def quantized(model: Any, batches: Sequence[np.ndarray], scope: str = QUANTIZED) -> Any:
    """The openvino.Model with the nodes that `scope` matches in int8: encoder and projector.

    Proposals, decoder, heads and all geometry stay in float: they are a tenth of the work (benchmarks/int8_scope.py tries others).
    """
    nncf = _quietly_imported()
    with redirect_stdout(io.StringIO()):  # which belongs to the caller, not to progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(patterns=[rf"^(?!{scope}).*"]),
        )


def _quietly_imported() -> Any:
    """nncf, which reports its use to its makers unless this variable is there when it is first imported, and logs every node."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
    nncf.set_log_level(logging.ERROR)
    return nncf


INT8 = OpenvinoInt8()
