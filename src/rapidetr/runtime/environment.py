"""What a measurement or a prediction ran on: processor, memory, system, packages, torch and its settings, GPU, code."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import rapidetr
from rapidetr.runtime.host import Sources, attempt, describe_memory, describe_processor

VERSION = 1  # of the record
PACKAGES = (
    "torch", "numpy", "Pillow", "simplejpeg", "safetensors", "openvino", "nncf", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino",
    "tensorrt", "nvidia-ml-py",
)  # fmt: skip
# exact names besides whole families, so that neither secrets nor folders of this machine get into the record
VARIABLES = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|DNNL|ONEDNN|MALLOC)_\w+|ATEN_CPU_CAPABILITY|LD_PRELOAD|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER"
    r"|LAUNCH_BLOCKING|MODULE_LOADING)|CUBLAS_WORKSPACE_CONFIG|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
    r"|PYTORCH_(CUDA_)?ALLOC_CONF"
)
PACKAGE = Path(rapidetr.__file__).parent


def describe_environment(device: str = "cpu", sources: Sources | None = None) -> dict[str, Any]:
    """A record of plain JSON values in nested sections; null is what cannot be read or is not there.

    It never fails and imports nothing: settings of torch are there (else `torch` is null) if this process has loaded torch, as
    it does for a torch artifact and not for an ONNX one. `gpu` is null unless `device` is a CUDA device.
    """
    sources = sources or Sources()
    torch = sources.modules.get("torch")
    return {
        "version": VERSION,
        "device": "cuda:0" if device == "cuda" else device,
        "processor": describe_processor(sources.root),
        "memory": describe_memory(sources.root),
        "system": {
            "os": platform.system(),
            "distribution": attempt(lambda: platform.freedesktop_os_release()["PRETTY_NAME"]),
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()).strip() or None,
        },
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "packages": {"rapidetr": rapidetr.__version__} | {name: attempt(partial(sources.version, name)) for name in PACKAGES},
        "code": describe_code(),
        "torch": None if torch is None else describe_torch(torch),
        "gpu": describe_gpu(device, sources) if device.startswith("cuda") else None,
        "variables": {name: value for name, value in sorted(sources.variables.items()) if VARIABLES.fullmatch(name)},
    }


def describe_code(package: Path = PACKAGE) -> dict[str, Any]:
    """sha256 over the Python files of this installation, and the git commit if it is a checkout."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    checkout = package.parents[1]
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    # asked only of our own checkout, not of a repository that happens to hold somebody's virtual environment
    commit = attempt(lambda: subprocess.run(git, check=True, capture_output=True, text=True, timeout=10).stdout.strip())
    return {"sha256": digest.hexdigest(), "commit": commit if (checkout / ".git").exists() else None}


def describe_torch(torch: Any) -> dict[str, Any]:
    """How torch was built, and the settings of this process and thread. Does not start CUDA."""
    built = f"{attempt(lambda: torch.__config__.show())}{attempt(lambda: torch.__config__.parallel_info())}"

    def told(pattern: str) -> str | None:
        match = re.search(pattern, built)
        return match[1].strip() if match else None

    def flushes() -> bool:
        return bool(torch.tensor(1e-310, dtype=torch.float64) / 2 == 0)  # torch can set this, but not tell it

    readers: dict[str, Callable[[], Any]] = {
        "cpu_capability": lambda: torch.backends.cpu.get_cpu_capability(),
        "onednn": lambda: told(r"MKL-DNN v([\d.]+)"),
        "mkl": lambda: told(r"Math Kernel Library Version ([\d.]+)"),
        "openmp": lambda: told(r"OpenMP (\d+)"),
        "parallel_backend": lambda: told(r"ATen parallel backend: (.+)"),
        "cuda": lambda: torch.version.cuda,
        "cudnn": lambda: torch.backends.cudnn.version(),
        "threads": lambda: torch.get_num_threads(),
        "interop_threads": lambda: torch.get_num_interop_threads(),
        "flush_denormal": flushes,
        "matmul_precision": lambda: torch.get_float32_matmul_precision(),
        "cuda_matmul_precision": lambda: torch.backends.cuda.matmul.fp32_precision.replace("none", "ieee"),  # two names of full precision
        "cudnn_conv_precision": lambda: torch.backends.cudnn.conv.fp32_precision.replace("none", "ieee"),
        "cudnn_benchmark": lambda: torch.backends.cudnn.benchmark,
        "deterministic": lambda: torch.are_deterministic_algorithms_enabled(),
    }
    return {name: attempt(read) for name, read in readers.items()}


def describe_gpu(device: str, sources: Sources) -> dict[str, Any]:
    """The facts that NVML tells, else what torch knows of the device, else nothing."""
    gpu = sources.gpu(device)
    if gpu is not None:
        return gpu.facts()
    torch = sources.modules.get("torch")
    found = torch and attempt(lambda: torch.cuda.get_device_properties(device))
    return {"name": found.name, "memory_bytes": found.total_memory} if found else {}
