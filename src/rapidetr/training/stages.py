"""Which parameters learn when: `head:5,blocks8-11:10@0.3,all:35@0.1` is five epochs of everything behind the encoder, ten with
the encoder's last blocks as well, at 0.3 of the rate, and 35 of all at a tenth.

A stage trains what it names and what the stages before it named. Names, joined by +: all, encoder, blocks0-3, blocks11,
head (all but the encoder), projector, decoder, classes (class heads alone).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rapidetr.core.errors import ConfigError
from rapidetr.model.rfdetr import RfDetr

_PART = re.compile(r"(?P<what>[a-z0-9+-]+):(?P<epochs>\d+)(?:@(?P<factor>\d*\.?\d+))?")
_PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "encoder": lambda name: name.startswith("vit."),
    "head": lambda name: not name.startswith("vit."),
    "projector": lambda name: name.startswith("projector."),
    "decoder": lambda name: name.startswith("decoder."),
    "classes": lambda name: name.startswith("class_head.") or (name.startswith("proposals.") and ".classes." in name),
}


@dataclass(frozen=True)
class Stage:
    """Epochs `start` to `stop` - 1 train the parameters that `parts` name, at `factor` times their rates."""

    start: int
    stop: int
    parts: tuple[str, ...]
    factor: float

    def trains(self, name: str) -> bool:
        return any(_names(part)(name) for part in self.parts)


def parse_stages(text: str, epochs: int, depth: int) -> tuple[Stage, ...]:
    """The stages of `text`, or one of all parameters for `epochs` where there is none; `depth` counts the encoder's blocks."""
    stages: list[Stage] = []
    parts: tuple[str, ...] = ()
    for piece in (text or f"all:{epochs}").replace(" ", "").split(","):
        found = _PART.fullmatch(piece)
        if not found or int(found["epochs"]) < 1:
            raise ConfigError(f"stages: {piece!r} is not WHAT:EPOCHS or WHAT:EPOCHS@FACTOR, as in head:5,blocks8-11:10@0.3,all:35@0.1")
        for part in found["what"].split("+"):
            _check(part, depth)
            parts += (part,)
        start = stages[-1].stop if stages else 0
        stages.append(Stage(start, start + int(found["epochs"]), parts, float(found["factor"] or 1)))
    return tuple(stages)


def _check(part: str, depth: int) -> None:
    blocks = re.fullmatch(r"blocks(\d+)(?:-(\d+))?", part)
    if blocks and not int(blocks[1]) <= int(blocks[2] or blocks[1]) < depth:
        raise ConfigError(f"stages: {part!r}; this encoder has blocks 0-{depth - 1}")
    if not blocks and part not in _PARTS:
        raise ConfigError(f"stages: unknown part {part!r}; there are {', '.join(_PARTS)} and blocks0-{depth - 1}")


def _names(part: str) -> Callable[[str], bool]:
    if part in _PARTS:
        return _PARTS[part]
    first, _, last = part.removeprefix("blocks").partition("-")
    chosen = range(int(first), int(last or first) + 1)
    return lambda name: name.startswith("vit.blocks.") and int(name.split(".")[2]) in chosen


def never_used(name: str, network: RfDetr) -> bool:
    """Parameters that official files hold and no forward pass reads: the mask token, blocks behind the last taken stage."""
    return name == "vit.mask_token" or (name.startswith("vit.blocks.") and int(name.split(".")[2]) >= network.config.stages[-1])


def enter(stage: Stage, network: RfDetr) -> list[nn.Parameter]:
    """The parameters that learn in this stage; all others are frozen, and without a gradient the optimizer leaves them alone."""
    chosen = []
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(stage.trains(name) and not never_used(name, network))
        parameter.grad = None
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def table(stages: tuple[Stage, ...], network: RfDetr) -> list[str]:
    """One line a stage: epochs, what learns, how many parameters, at which factor of the rate."""
    lines = [f"{'epochs':>9}  {'parameters':>11}  {'rate':>5}  learning"]
    for stage in stages:
        count = sum(p.numel() for n, p in network.named_parameters() if stage.trains(n) and not never_used(n, network))
        lines.append(f"{f'{stage.start}-{stage.stop - 1}':>9}  {count:>11,}  {stage.factor:>5g}  {', '.join(dict.fromkeys(stage.parts))}")
    return lines
