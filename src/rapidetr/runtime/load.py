"""From a name or a file to a Detector."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from rapidetr.checkpoints.download import fetch
from rapidetr.checkpoints.file import Checkpoint, open_checkpoint
from rapidetr.checkpoints.licenses import notice, require_license
from rapidetr.checkpoints.weights import bundled_file, entry_for
from rapidetr.core.config import VARIANTS, variant
from rapidetr.core.errors import CheckpointMissing, ConfigError, NotSupportedYet
from rapidetr.core.labels import LabelSpace
from rapidetr.core.preprocessing import Preprocessing
from rapidetr.model.build import build
from rapidetr.runtime.detector import Detector
from rapidetr.runtime.torch_engine import TorchEngine

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
    checkpoint file, or the folder of a training run (its best weights).

    `model` names the variant where a file does not tell. `weights="random"` starts fresh (COCO classes), reproducibly with
    `seed`. `device` is auto, cpu, cuda, cuda:1 or mps. `threads` sets torch's CPU threads for this process. `dtype` is float32
    (default), bfloat16 or float16. `size_hw` (height, width) must be multiples of patch x windows. The decoder can stop after
    `decoder_layers` and use fewer `queries` without retraining: faster, a little less accurate. `strict_lock` refuses with a
    ConfigError where machine, installation or weights have drifted from a lock: its path, or True for lock.json beside the weights.
    Raises CheckpointError and its kinds, DownloadError, LicenseRefused (weights under PML-1.0 need
    accept_license="PML-1.0"), ConfigError.
    """
    if weights not in ("pretrained", "random"):
        raise ConfigError(f"weights is {weights!r}; expected 'pretrained' or 'random' (a file goes first: rapidetr.load('my.pth'))")
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"threads is {threads}; expected at least 1")
        torch.set_num_threads(threads)
    device = pick_device(device)
    if strict_lock:
        from rapidetr.runtime.lock import require_lock

        require_lock(strict_lock, source, device)
    checkpoint = _random(str(source), seed) if weights == "random" else _pretrained(source, model, accept_license)
    network = checkpoint.network()
    # feature maps are channels last; kernels in the same order need no conversion at every call
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    size = (size_hw, size_hw) if isinstance(size_hw, int) else size_hw
    engine = TorchEngine(network, device=device, dtype=dtype, size_hw=size, decoder_layers=decoder_layers, queries=queries)
    return Detector(engine, checkpoint)


def pick_device(device: str) -> str:
    """`auto` is the first CUDA device if there is one, else the CPU."""
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


def _random(name: str, seed: int | None) -> Checkpoint:
    network = build(variant(name), seed=seed)
    rows = network.config.class_rows
    labels = LabelSpace.coco() if rows == 91 else LabelSpace.contiguous([f"class {i}" for i in range(rows - 1)])
    provenance = {"source": "random weights", "seed": seed}
    return Checkpoint(network.state_dict(), network.config, labels, Preprocessing.official(), "", provenance)


def _pretrained(source: str | Path, model: str | None, accept_license: str | None) -> Checkpoint:
    path = Path(source)
    if path.suffix in _SUFFIXES or path.exists():
        if path.is_dir():
            path = path / "best.safetensors"
            if not path.exists():
                raise NotSupportedYet(
                    f"{source}: is a folder without {path.name}; name a checkpoint file, or a run folder after its first epoch"
                )
        checkpoint = open_checkpoint(path, model=model)
        require_license(str(path), checkpoint.license, accept_license)
        return checkpoint
    try:
        config = variant(str(source))
    except ConfigError:
        raise CheckpointMissing(f"{source}: neither a file nor a model name; models: {', '.join(VARIANTS)}") from None
    entry = entry_for(config.name)
    require_license(config.name, entry.license, accept_license)
    if entry.bundled:
        with bundled_file(entry) as file:
            return replace(open_checkpoint(file, model=config.name), license=entry.license)
    print(notice(entry), file=sys.stderr)
    checkpoint = open_checkpoint(fetch(entry), model=config.name)
    return replace(checkpoint, license=entry.license, provenance={**checkpoint.provenance, "url": entry.url, "md5": entry.md5})
