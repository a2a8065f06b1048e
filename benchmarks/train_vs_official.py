"""Training steps, ours and the official package's: time, peak memory, and what 800 boxes in one image cost; interleaved rounds.

    .venv/bin/python benchmarks/train_vs_official.py --official OFFICIAL/bin/python

OFFICIAL is an environment with `rfdetr` 1.11 on a CPU build of torch. Nano at 384 x 384, each package's own fresh weights, the same
pictures and boxes. A step is forward, losses, backward, clipping and AdamW (one rate for all, no averaged weights) on both sides; bf16
is autocast around the forward pass, and around the official criterion, as its trainer has it. Every side is a process of its own.
The matcher and the losses are also measured alone, forward and backward on given outputs: their memory is the largest sum of tensors
alive, as torch's profiler counts it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from measure import HERE, Worker, serve, summary, write

CLASSES, FEW, MANY = 90, 10, 800
SIDES = ("ours float32", "official float32", "ours bfloat16", "official bfloat16")
CHECKPOINTING = "ours float32 checkpointing"


def draw_batch(counts: list[int], side: int) -> list[tuple[Any, dict[str, Any]]]:
    """Pictures [3, side, side] with so many boxes each, the same in every process; torch tensors."""
    import torch

    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    import parity_fill

    drawn = []
    for i, count in enumerate(counts):
        target = parity_fill.targets(i, count, CLASSES, 1, 1)  # masks of one pixel: nobody looks at them
        truth = {name: torch.from_numpy(target[name]) for name in ("labels", "boxes")}
        drawn.append((torch.from_numpy(parity_fill.image(i, side, side)), truth))
    return drawn


class Ours:
    def __init__(self, precision: str, checkpointing: bool) -> None:
        from rapidetr.model.build import build
        from rapidetr.training.distributed import World
        from rapidetr.training.recipe import Recipe
        from rapidetr.training.stages import parse_stages
        from rapidetr.training.step import Learner

        network = build("nano", num_classes=CLASSES, seed=0)
        recipe = Recipe(precision=precision, checkpointing=checkpointing, rates="uniform", ema_decay=0)
        self.learner = Learner(network, recipe, "cpu", World())
        self.learner.enter(parse_stages("", 1, network.config.vit_depth)[0])
        self.optimizer = self.learner.optimizer
        prime(self.optimizer)
        self.optimizer.zero_grad()

    def batch(self, drawn: list) -> Any:
        import torch

        from rapidetr.data.batches import TrainBatch, Truth

        truths = tuple(Truth(truth["labels"], truth["boxes"], None) for _, truth in drawn)
        return TrainBatch(torch.stack([image for image, _ in drawn]), truths, tuple(map(str, range(len(drawn)))))

    def step(self, batch: Any) -> float:
        return float(self.learner.step([batch], 1.0).losses[0])

    def answers(self, batch: Any) -> Any:
        return self.learner.network(batch.pixels, self.learner.groups, every_layer=True)

    def losses(self, answers: Any, batch: Any) -> Any:
        from rapidetr.training.step import targets_of

        return self.learner.criterion(answers, targets_of(batch), groups=self.learner.groups).total


class Official:
    def __init__(self, precision: str) -> None:
        import logging
        import warnings

        import torch

        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        import rfdetr
        from rfdetr import config
        from rfdetr.models.lwdetr import build_criterion_from_config

        self.model = rfdetr.RFDETRNano(pretrain_weights=None, device="cpu").model.model.train()
        recipe = config.TrainConfig(dataset_dir=".", output_dir=".", amp_dtype=None)
        self.criterion, _ = build_criterion_from_config(config.RFDETRNanoConfig(pretrain_weights=None, device="cpu"), recipe)
        self.criterion.train()
        self.model.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=1e-4)
        prime(self.optimizer)  # gradients stay until the next forward pass is done, as in its trainer
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def batch(self, drawn: list) -> Any:
        return [image for image, _ in drawn], [truth for _, truth in drawn]

    def step(self, batch: Any) -> float:
        import torch

        with self.autocast:
            total = self.losses(self.answers(batch), batch)
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        return float(total)

    def answers(self, batch: Any) -> Any:
        from rfdetr.utilities.tensors import nested_tensor_from_tensor_list

        return self.model(nested_tensor_from_tensor_list(batch[0]))

    def losses(self, answers: Any, batch: Any) -> Any:
        losses, weights = self.criterion(answers, batch[1]), self.criterion.weight_dict
        return sum(losses[name] * weight for name, weight in weights.items() if name in losses)


def prime(optimizer: Any) -> None:
    """Moments are there, as after any step, so that the first step holds what every step holds."""
    import torch

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()


class Side:
    """One package at one precision in one process, with one batch."""

    def __init__(self, which: str, counts: list[int], side: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        package, precision, *rest = which.split()
        self.package = Ours(precision, bool(rest)) if package == "ours" else Official(precision)
        self.batch = self.package.batch(draw_batch(counts, side))
        self.resting_mb, self.losses = memory_mb("VmRSS"), []

    def handle(self, do: str, n: int = 1) -> dict[str, Any]:
        if do == "criterion":
            return self.measure_criterion(n)
        if do == "facts":
            return {
                "peak_mb": memory_mb("VmHWM"), "resting_mb": self.resting_mb, "losses": [round(loss, 4) for loss in self.losses],
                "torch": version("torch"),
            }  # fmt: skip
        seconds = []
        for _ in range(n):
            began = time.perf_counter()
            self.losses.append(self.package.step(self.batch))
            seconds.append(time.perf_counter() - began)
        check_finite(self.losses)
        return {"seconds": seconds}

    def measure_criterion(self, n: int) -> dict[str, Any]:
        """Seconds of matcher and losses, forward and backward, and the most memory that they hold beyond the network's answers."""
        import torch

        with torch.no_grad():
            answers = self.package.answers(self.batch)

        def once() -> None:
            total = self.package.losses(as_leaves(answers), self.batch)
            total.backward()
            self.losses.append(float(total))

        once()
        seconds = []
        for _ in range(n):
            began = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - began)
        check_finite(self.losses)
        return {"seconds": seconds, "peak_mb": round(allocated_peak_mb(once), 1)}


def as_leaves(value: Any) -> Any:
    """The same structure with tensors that collect gradients."""
    if hasattr(value, "requires_grad"):
        return value.detach().requires_grad_(value.is_floating_point())
    if isinstance(value, dict):
        return {name: as_leaves(part) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(as_leaves, value))
    return type(value)(map(as_leaves, value)) if isinstance(value, list | tuple) else value


def allocated_peak_mb(call: Any) -> float:
    """The largest sum of tensors alive at once that were made during the call."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]") / 2**20


def memory_mb(what: str) -> float:
    """VmRSS: now; VmHWM: the most so far of this process alone."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return round(int(line.split()[1]) / 1024, 1)


def check_finite(values: list[float]) -> None:
    if not all(abs(value) < float("inf") for value in values):
        raise SystemExit(f"losses are not finite: {values}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="python of an environment with rfdetr")
    parser.add_argument("--batches", default="2,4")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each float32 side, one at a time, after one that does not count")
    parser.add_argument(
        "--half-batches", default="2", help="batches that bfloat16 is timed with; without units for it a step takes minutes"
    )
    parser.add_argument("--half-rounds", type=int, default=1, help="steps of each bfloat16 side, from the first one on")
    parser.add_argument("--size", type=int, default=384, help="side of the input in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "BOXES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        which, boxes = args.worker
        serve(Side(which, json.loads(boxes), args.size, args.threads).handle)
        return
    batches = {size: run_steps(int(size), args) for size in args.batches.split(",")}
    record = {"threads": args.threads, "model": "nano", "size_hw": [args.size, args.size], "boxes_per_image": FEW, "rounds": args.rounds}
    write("train_vs_official", {**record, "batches": batches, "many_boxes": run_criterion(args)}, args.out)


def start(which: str, counts: list[int], args: argparse.Namespace) -> Worker:
    python = sys.executable if which.startswith("ours") else args.official
    command = [
        python,
        "-W",
        "ignore",
        __file__,
        "--size",
        str(args.size),
        "--threads",
        str(args.threads),
        "--worker",
        which,
        json.dumps(counts),
    ]
    return Worker(command, {"HF_HUB_OFFLINE": "1"})


def run_steps(size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every side takes one step in turn, the order reversed in every other round."""
    half = str(size) in args.half_batches.split(",")
    names = [which for which in SIDES if half or "float32" in which] + [CHECKPOINTING] * (size >= 4)
    sides = {which: start(which, [FEW] * size, args) for which in names}
    for which in names:
        if "float32" in which:
            sides[which].ask(do="step")
    seconds: dict[str, list[float]] = {which: [] for which in names}
    for i in range(args.rounds):
        for which in names if i % 2 else reversed(names):
            if "float32" in which or i < args.half_rounds:
                seconds[which] += sides[which].ask(do="step")["seconds"]
    result = {}
    for which, side in sides.items():
        result[which] = {"ms": summary([1000 * s for s in seconds[which]]), **side.ask(do="facts")}
        result[which]["all_ms"] = [round(1000 * s) for s in seconds[which]]
        side.close()
        print(f"batch {size}, {which}: p50 {result[which]['ms']['p50']} ms, peak {result[which]['peak_mb']} MB", file=sys.stderr)
    return result


def run_criterion(args: argparse.Namespace) -> dict[str, Any]:
    """Matcher and losses alone, float32, batch 2, with FEW boxes in each image and with MANY in the first."""
    result: dict[str, Any] = {}
    for boxes in (FEW, MANY):
        sides = {which: start(which, [boxes, FEW], args) for which in ("ours float32", "official float32")}
        for which, side in sides.items():
            found = side.ask(do="criterion", n=max(1, args.rounds // 2))
            result.setdefault(which, {})[str(boxes)] = {"ms": summary([1000 * s for s in found["seconds"]]), "peak_mb": found["peak_mb"]}
            side.close()
            print(f"{boxes} boxes, {which}: {result[which][str(boxes)]}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
