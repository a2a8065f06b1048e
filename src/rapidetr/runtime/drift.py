"""Which differences between two environments matter, to what, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# item or section -> what a drift can do, and why; the longest name that fits counts. In the order people read them.
RULES: dict[str, tuple[str, str]] = {
    "artifact.sha256": ("both", "these are not the weights that were locked"),
    "dataset.sha256": ("accuracy", "figures of other pictures or annotations do not compare"),
    "device": ("both", "another device has other kernels, which round differently"),
    "code.sha256": ("both", "the code of rapidetr is another one"),
    "code.commit": ("none", "a name of the source; what runs is compared by code.sha256"),
    "processor.model": ("both", "another processor is faster or slower, and its kernels may round differently"),
    "processor.architecture": ("both", "other kernels"),
    "processor.flags": ("both", "kernels are chosen by instruction set and round differently"),
    "processor.microcode": ("speed", "mitigations cost time"),
    "processor.virtual": ("speed", "a hypervisor shares the cores with others"),
    "processor.physical_cores": ("speed", "work is spread over the cores"),
    "processor.logical_cores": ("speed", "work is spread over the cores"),
    "processor.affinity": ("speed", "the process may use these cores alone"),
    "processor.quota_cores": ("speed", "the control group stops the process when the quota is used up; p99 suffers first"),
    "processor.governor": ("speed", "it decides how fast clocks rise"),
    "processor.max_mhz": ("speed", "highest clock that the system allows"),
    "processor.min_mhz": ("speed", "lowest clock that the system allows"),
    "processor.turbo": ("speed", "clocks above the nominal one"),
    "processor.smt": ("speed", "two threads share a core, or do not"),
    "memory": ("speed", "less of the file cache and of the allocator's pages stays, down to swapping or being killed"),
    "system.os": ("both", "other libraries and another scheduler"),
    "system.distribution": ("none", "a name; kernel and C library are compared apart"),
    "system.kernel": ("speed", "another scheduler, page handling and mitigations"),
    "system.libc": ("both", "allocator, memory copies and mathematical functions"),
    "python": ("speed", "time between the kernels"),
    "packages.rapidetr": ("both", "another release of this package"),
    "packages.torch": ("both", "other kernels"),
    "packages.numpy": ("both", "prepares pictures and selects boxes"),
    "packages.Pillow": ("both", "decodes and resizes pictures"),
    "packages.simplejpeg": ("both", "decodes JPEG files where it is installed"),
    "packages.openvino": ("both", "runs OpenVINO artifacts"),
    "packages.onnxruntime": ("both", "runs ONNX artifacts"),
    "packages.onnxruntime-gpu": ("both", "runs ONNX artifacts on CUDA"),
    "packages.onnxruntime-openvino": ("both", "runs ONNX artifacts through OpenVINO"),
    "packages.tensorrt": ("both", "runs TensorRT artifacts"),
    "packages.safetensors": ("none", "reads weights only; their bytes are compared apart"),
    "packages.nvidia-ml-py": ("none", "reads sensors only"),
    "packages.nncf": ("none", "makes int8 artifacts; what it made is compared apart"),
    "torch.cpu_capability": ("both", "the instruction set that torch uses"),
    "torch.onednn": ("both", "convolutions and products on the CPU"),
    "torch.mkl": ("both", "products on the CPU"),
    "torch.openmp": ("speed", "spreads work over threads"),
    "torch.parallel_backend": ("speed", "spreads work over threads"),
    "torch.cuda": ("both", "kernels on the GPU"),
    "torch.cudnn": ("both", "convolutions on the GPU"),
    "torch.threads": ("both", "work is split into other parts: another time, and sums that differ in the last bits"),
    "torch.interop_threads": ("speed", "branches that run at the same time"),
    "torch.flush_denormal": ("both", "tiny numbers become zero, or are computed slowly"),
    "torch.matmul_precision": ("both", "float32 products with fewer bits"),
    "torch.cuda_matmul_precision": ("both", "TF32 has 10 bits of mantissa"),
    "torch.cudnn_conv_precision": ("both", "TF32 has 10 bits of mantissa"),
    "torch.cudnn_benchmark": ("both", "chooses convolutions by measuring them"),
    "torch.deterministic": ("both", "forbids some kernels"),
    "gpu.name": ("both", "another GPU is faster or slower, and its kernels may round differently"),
    "gpu.memory_bytes": ("speed", "smaller batches, other workspaces"),
    "gpu.driver": ("both", "compiles and schedules kernels"),
    "gpu.cuda_driver": ("both", "compiles and schedules kernels"),
    "gpu.power_limit_w": ("speed", "clocks fall at the limit"),
    "gpu.max_clock_mhz": ("speed", "highest clock of the card"),
    "gpu.ecc": ("speed", "checked memory is slower and smaller"),
    "variables": ("speed", "threads, their places, or memory"),
    "variables.MKL": ("both", "threads or instruction set of MKL"),
    "variables.DNNL": ("both", "instruction set or precision of oneDNN"),
    "variables.ONEDNN": ("both", "instruction set or precision of oneDNN"),
    "variables.ATEN_CPU_CAPABILITY": ("both", "the instruction set that torch uses"),
    "variables.LD_PRELOAD": ("both", "replaces library functions, often the allocator"),
    "variables.CUBLAS_WORKSPACE_CONFIG": ("both", "chooses kernels of cuBLAS"),
    "variables.NVIDIA_TF32_OVERRIDE": ("both", "TF32 has 10 bits of mantissa"),
    "variables.TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("both", "TF32 has 10 bits of mantissa"),
}


@dataclass(frozen=True)
class Drift:
    """One item that is not as it was locked."""

    item: str  # such as "torch.threads"
    locked: Any
    present: Any
    effect: str  # what it can change: "speed", "accuracy", "both" or "none"
    reason: str

    @property
    def serious(self) -> bool:
        """Whether speed or accuracy can change."""
        return self.effect != "none"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.item} ({shown(self.locked)} → {shown(self.present)})"


def compare(locked: dict[str, Any], present: dict[str, Any]) -> list[Drift]:
    """Drifts between two environments, in the order of RULES. Sections that either side could not fill are left out."""
    known = {name for name in locked if locked[name] is not None and present.get(name) is not None} - {"version"}
    before, now = (dict(_items({name: side[name] for name in known})) for side in (locked, present))
    drifts = [
        Drift(item, before.get(item), now.get(item), *_effect(item, before.get(item), now.get(item)))
        for item in sorted(before.keys() | now.keys())
        if not _same(item, before.get(item), now.get(item))
    ]
    order = {name: place for place, name in enumerate(RULES)}
    return sorted(drifts, key=lambda drift: order.get(_rule(drift.item), len(order)))


def shown(value: Any) -> str:
    """A value in the words of a table."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,64}", value):
        return value[:12] + "…"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _items(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _same(item: str, locked: Any, present: Any) -> bool:
    if item.endswith("_bytes") and isinstance(locked, int) and isinstance(present, int):
        return math.isclose(locked, present, rel_tol=0.01)  # kernels keep some of the memory for themselves, another part each boot
    return bool(locked == present)


def _rule(item: str) -> str:
    """The longest key of RULES that `item` starts with; "" where none does."""
    return max((key for key in RULES if item == key or item.startswith((f"{key}.", f"{key}_"))), key=len, default="")


def _effect(item: str, locked: Any, present: Any) -> tuple[str, str]:
    more = isinstance(locked, int) and (present is None or (isinstance(present, int) and present > locked))
    if item.startswith("memory.") and more:
        return "none", "there is more than there was"
    return RULES.get(_rule(item), ("both", "this release does not know the item"))
