"""One run on several processes, as torchrun starts them: every process takes its part of each batch, gradients are averaged.

gloo on CPU, proven by tests; nccl on CUDA, written and not yet run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rapidetr.core.errors import ConfigError

PATIENCE = timedelta(hours=3)  # the others wait while the first process scores and writes


class World:
    """The processes of a run; with one alone every method is trivial."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process scores, writes and prints."""
        return self.rank == 0

    def check(self, batch_size: int) -> None:
        if batch_size % self.size:
            raise ConfigError(f"batch_size {batch_size} does not divide into {self.size} processes; it counts the pictures of all of them")

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients exchanged; made anew when other parameters learn."""
        if self.size == 1:
            return network
        return DistributedDataParallel(network)

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[None]:
        """For forward passes before the last of a step."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else _nothing()

    def mean(self, value: float, device: str) -> Tensor | float:
        """Mean over the processes, without waiting for it."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return total / self.size

    def mean_of(self, values: Tensor) -> Tensor:
        """Element-wise mean over the processes."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total / self.size

    def all_true(self, value: bool, device: str) -> bool:
        return float(self.mean(float(value), device)) == 1

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def to_first(self, value: Any) -> list[Any]:
        """The values of all processes, in order, for the first process; [] for the others."""
        if self.size == 1:
            return [value]
        found = [None] * self.size if self.first else None
        distributed.gather_object(value, found)
        return found or []

    def join_names(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for part in self.gather(tuple(names)) for name in part)

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def join(device: str) -> Iterator[tuple[World, str]]:
    """The World that torchrun's environment describes, and this process's device; a group that exists already is used."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        with torch.cuda.device(device) if device.startswith("cuda") else _nothing():  # some of torch asks the current one
            yield World(), device
        return
    if device.startswith("cuda:"):
        raise ConfigError(f"device is {device!r} for all {size} processes; expected cuda, of which each takes its own")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    mine = not distributed.is_initialized()
    if mine:
        # objects, such as everything found in an evaluation, travel through the memory of the CPU
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        if mine:
            distributed.destroy_process_group()
