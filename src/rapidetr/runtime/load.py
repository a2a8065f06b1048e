"""From a name or a file to a Detector."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rapidetr.checkpoints.licenses import notice, require_license
from rapidetr.checkpoints.weights import bundled_file, entry_for
from rapidetr.core.config import VARIANTS, ModelConfig, variant
from rapidetr.core.errors import CheckpointMissing, ConfigError
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.runtime.aside import aside
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.places import find_artifact

if TYPE_CHECKING:
    import torch

    from rapidetr.checkpoints.file import Checkpoint
    from rapidetr.runtime.artifact import Artifact
    from rapidetr.runtime.torch_engine import TorchEngine

# torch is imported where it is used, so that an .onnx file predicts without it; so is what a plain checkpoint has no use for
_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")


def load(
    source: str | Path,
    *,
    model: str | None = None,
    weights: str = "pretrained",
    device: str = "auto",
    threads: int | None = None,
    dtype: str | torch.dtype | None = None,
    size_hw: tuple[int, int] | int | None = None,
    decoder_layers: int | None = None,
    queries: int | None = None,
    accept_license: str | None = None,
    seed: int | None = None,
    strict_lock: bool | str | Path = False,
) -> Detector:
    """A Detector from a model name ("nano": official weights, downloaded once and verified; "pico": weights in the package), any
    checkpoint file, the folder of a training run (its best weights), an artifact, the pointer of a registry ("registry/current"),
    or an exported .onnx file, which runs without torch.

    `model` names the variant where a file does not tell. `weights="random"` starts fresh (COCO classes), reproducibly with
    `seed`. `device` is auto, cpu, cuda, cuda:1 or mps. `threads` sets torch's CPU threads for this process, or those of an .onnx
    file. `dtype` is float32 (default), bfloat16 or float16. `size_hw` (height, width) must be multiples of patch x windows. The
    decoder can stop after `decoder_layers` and use fewer `queries` without retraining: faster, a little less accurate; an .onnx
    file has them fixed, and ConfigError names the stored ones when others are asked for. `strict_lock` refuses with a
    ConfigError where machine, installation or weights have drifted from a lock: its path, or True for lock.json beside the weights.
    Raises CheckpointError and its kinds, DownloadError, LicenseRefused (weights under PML-1.0 need
    accept_license="PML-1.0"), ConfigError.
    """
    if weights not in ("pretrained", "random"):
        raise ConfigError(f"weights is {weights!r}; expected 'pretrained' or 'random' (a file goes first: rapidetr.load('my.pth'))")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; expected at least 1")
    size = (size_hw, size_hw) if isinstance(size_hw, int) else size_hw
    if size is not None and not (isinstance(size, tuple | list) and len(size) == 2 and all(hasattr(side, "__index__") for side in size)):
        raise ConfigError(f"size_hw is {size_hw!r}; expected (height, width) in pixels, or one whole number for a square")
    if weights == "pretrained" and (folder := find_artifact(source)):
        from rapidetr.runtime.artifact import load_artifact

        asked = {"model": model, "dtype": dtype, "size_hw": size_hw, "decoder_layers": decoder_layers, "queries": queries}
        return load_artifact(folder, device=device, threads=threads, accept_license=accept_license, strict_lock=strict_lock, asked=asked)
    exported = Path(source).suffix == ".onnx" and weights == "pretrained"
    if exported:
        device = "cpu" if device == "auto" else device  # what ONNX Runtime has is not torch's to say
    else:
        device = pick_device(device)
    if strict_lock:
        from rapidetr.runtime.lock import require_lock

        require_lock(strict_lock, source, device, engine="onnxruntime" if exported else "torch")
    if exported:
        from rapidetr.runtime.onnx_engine import open_onnx

        stored, facts = open_onnx(
            source,
            device=device,
            threads=threads,
            model=model,
            dtype=dtype,
            size_hw=size,
            decoder_layers=decoder_layers,
            queries=queries,
        )
        require_license(str(source), facts.license, accept_license)
        return Detector(stored, facts)
    checkpoint = aside(lambda: _random(str(source), model, seed)) if weights == "random" else _pretrained(source, model, accept_license)
    return Detector(_torch_engine(checkpoint, device, threads, dtype, size, decoder_layers, queries), checkpoint)


def open_torch(artifact: Artifact, device: str, threads: int | None) -> tuple[TorchEngine, Checkpoint]:
    """What runtime/artifact.py asks of an engine."""
    from rapidetr.checkpoints.file import open_checkpoint

    checkpoint, m = aside(lambda: open_checkpoint(artifact.path / "best.safetensors")), artifact.manifest
    return _torch_engine(checkpoint, pick_device(device), threads, m.precision, m.size_hw, m.decoder_layers, m.queries), checkpoint


def _torch_engine(
    checkpoint: Checkpoint,
    device: str,
    threads: int | None,
    dtype: str | torch.dtype | None,
    size_hw: tuple[int, int] | None,
    decoder_layers: int | None,
    queries: int | None,
) -> TorchEngine:
    import torch

    from rapidetr.runtime.torch_engine import TorchEngine

    if threads is not None:
        torch.set_num_threads(threads)

    def build() -> TorchEngine:
        network = checkpoint.network()
        # feature maps are channels last; kernels in the same order need no conversion at every call
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        return TorchEngine(network, device=device, dtype=dtype, size_hw=size_hw, decoder_layers=decoder_layers, queries=queries)

    return aside(build)


def pick_device(device: str) -> str:
    """`auto` is the first CUDA device if there is one, else the CPU."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; expected auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise ConfigError(f"device {device!r} is not available here; expected one of {', '.join(k for k, v in there.items() if v)}")
    return device


def _named(source: str | Path, model: str | None) -> ModelConfig:
    """The variant called `source`; ConfigError where `model` names another one."""
    config = variant(str(source))
    if model is not None and variant(model) != config:
        raise ConfigError(f"{source} is the name of a model, and model={model!r} of another one; leave model= out")
    return config


def _random(name: str, model: str | None, seed: int | None) -> Checkpoint:
    from rapidetr.checkpoints.file import Checkpoint
    from rapidetr.model.build import build

    network = build(_named(name, model), seed=seed)
    labels = LabelSpace.unnamed(network.config.class_rows)
    provenance = {"source": "random weights", "seed": seed}
    return Checkpoint(network.state_dict(), network.config, labels, Preprocessing.official(), "", provenance)


def _open(path: Path, model: str | None) -> Checkpoint:
    from rapidetr.checkpoints.file import open_checkpoint

    return aside(lambda: open_checkpoint(path, model=model))


def _pretrained(source: str | Path, model: str | None, accept_license: str | None) -> Checkpoint:
    from rapidetr.runtime.places import only_a_name

    path = Path(source)
    if not only_a_name(source) and (path.suffix in _SUFFIXES or path.exists()):
        if path.is_dir():
            theirs = path / "model.safetensors"  # a folder of transformers
            path = theirs if theirs.exists() and (path / "config.json").exists() else path / "best.safetensors"
            if not path.exists():
                raise CheckpointMissing(
                    f"{source}: is a folder without {path.name}; name a checkpoint file, or a run folder after its first epoch"
                )
        checkpoint = _open(path, model)
        require_license(str(path), checkpoint.license, accept_license)
        return checkpoint
    try:
        variant(str(source))
    except ConfigError:
        raise CheckpointMissing(f"{source}: neither a file nor a model name; models: {', '.join(VARIANTS)}") from None
    config = _named(source, model)
    entry = entry_for(config.name)
    require_license(config.name, entry.license, accept_license)
    if entry.bundled:
        with bundled_file(entry) as file:
            return replace(_open(file, config.name), license=entry.license)
    print(notice(entry), file=sys.stderr)
    from rapidetr.checkpoints.download import fetch

    checkpoint = _open(fetch(entry), config.name)
    return replace(checkpoint, license=entry.license, provenance={**checkpoint.provenance, "url": entry.url, "md5": entry.md5})
