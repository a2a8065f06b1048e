"""Everything that a run needs to go on as if it had never stopped, in one file that no code can hide in.

Tensors (weights, average, optimizer, generators) and, in the file's metadata, one JSON record of all the rest.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapidetr.checkpoints.file import write_atomically
from rapidetr.core.errors import CheckpointError
from rapidetr.training.optimizer import names_in
from rapidetr.training.step import Learner
from rapidetr.training.stopping import Judge

FORMAT_VERSION = 1


@dataclass
class Progress:
    """Where a run is. `step` counts optimizer steps, `window` those of this epoch; `totals` adds up this epoch's losses."""

    epoch: int = 0
    window: int = 0
    step: int = 0
    seconds: float = 0.0  # of training, over all sessions
    stopped: bool = False
    totals: Tensor | None = None
    counted: int = 0  # steps in `totals`
    skipped: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # one record an epoch
    best: dict[str, Any] = field(default_factory=dict)  # the record of the best evaluation
    judge: Judge = field(default_factory=Judge)


def save_state(path: Path, learner: Learner, progress: Progress) -> None:
    """Written whole or not at all; called by all processes, the first one writes."""
    generators = learner.world.gather(_generators(learner.device))
    if not learner.world.first:
        return
    from safetensors.torch import save_file

    tensors = {f"model/{n}": p for n, p in learner.network.state_dict().items()}
    if learner.average is not None:
        tensors |= {f"average/{n}": p for n, p in learner.average.network.state_dict().items()}
    names = names_in(learner.optimizer)
    for index, slots in learner.optimizer.state_dict()["state"].items():
        filled = {key: value for key, value in slots.items() if value is not None}
        tensors |= {f"optimizer/{key}/{names[index]}": torch.as_tensor(value) for key, value in filled.items()}
    for rank, (bits, _) in enumerate(generators):
        tensors |= {f"generator/{rank}/{name}": value for name, value in bits.items()}
    if progress.totals is not None:
        tensors["totals"] = progress.totals
    record = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(replace(progress, totals=None)),
        "average_updates": learner.average.updates if learner.average else 0,
        "scaler": learner.scaler.state_dict(),
        "generators": [others for _, others in generators],
    }
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda part: save_file(whole, part, {"rapidetr-state": json.dumps(record)}))


def load_state(path: Path, learner: Learner) -> Progress:
    """Puts a saved state into the learner; CheckpointError for a file that is not one, or of another network."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["rapidetr-state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"state version {record['format_version']}; this release reads {FORMAT_VERSION}")
        learner.network.load_state_dict(_under("model/", tensors))
        if learner.average is not None:
            learner.average.network.load_state_dict(_under("average/", tensors))
            learner.average.updates = record["average_updates"]
        _load_optimizer(learner, _under("optimizer/", tensors))
        if record["scaler"]:  # empty where it was not needed; a run may go on elsewhere, in fp16
            learner.scaler.load_state_dict(record["scaler"])
        rank = learner.world.rank
        if rank < len(record["generators"]):
            _restore_generators(_under(f"generator/{rank}/", tensors), record["generators"][rank], learner.device)
        totals = tensors["totals"].to(learner.device) if "totals" in tensors else None
        return Progress(**{**record["progress"], "totals": totals, "judge": Judge(**record["progress"]["judge"])})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise CheckpointError(f"{path}: is no state of this run ({problem}); start anew with fresh=True") from None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_optimizer(learner: Learner, slots: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    place = {name: index for index, name in enumerate(names_in(learner.optimizer))}
    for key, tensor in slots.items():
        slot, _, name = key.partition("/")
        state.setdefault(place[name], {})[slot] = tensor
    learner.optimizer.load_state_dict({"state": state, "param_groups": learner.optimizer.state_dict()["param_groups"]})


def _generators(device: str) -> tuple[dict[str, Tensor], list[Any]]:
    """States of all random generators of this process: torch's as tensors; Python's and numpy's as JSON."""
    bits = {"cpu": torch.get_rng_state()}
    if device.startswith("cuda"):
        bits["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, *rest = np.random.get_state()
    return bits, [random.getstate(), [kind, np.asarray(keys).tolist(), *rest]]


def _restore_generators(bits: dict[str, Tensor], others: list[Any], device: str) -> None:
    torch.set_rng_state(bits["cpu"])
    if "cuda" in bits and device.startswith("cuda"):
        torch.cuda.set_rng_state(bits["cuda"], device)
    (version, words, gauss), (kind, keys, *rest) = others
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
