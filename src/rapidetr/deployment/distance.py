"""How far a converted network is from its source: what every export measures and tells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

LOGITS, BOXES, MASKS = 1e-3, 1e-4, 1e-2  # "close": ten times what rounding in fp32 was seen to do
BATCHES = (1, 2, 3)  # pictures of the forward passes that are compared


@dataclass(frozen=True, kw_only=True)
class Distance(ABC):
    """What was written, and its largest differences from the source network in fp32; infinite where nothing could be compared."""

    path: str
    bytes: int
    seconds: float
    size_hw: tuple[int, int]
    decoder_layers: int
    queries: int
    inputs: str
    pictures: int  # answers that are compared, in batches of BATCHES; ONNX files see three pictures, one of them in every batch
    same_topk: int  # answers for which both chose the same tokens in the same order
    topk_gap: float  # largest difference of scores that changed places in the others, in logits
    max_logit_error: float
    max_box_error: float  # in units of the picture
    max_mask_error: float | None  # in logits

    @property
    def close(self) -> bool:
        """Whether the differences are rounding in fp32."""
        errors = ((self.max_logit_error, LOGITS), (self.max_box_error, BOXES), (self.max_mask_error or 0.0, MASKS), (self.topk_gap, LOGITS))
        return all(error <= limit for error, limit in errors)  # not a number is beyond every limit

    @property
    @abstractmethod
    def kind(self) -> str:
        """The form that was written, in two or three words."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "size_hw": list(self.size_hw), "close": self.close}

    def __str__(self) -> str:
        masks = "" if self.max_mask_error is None else f", mask logits {self.max_mask_error:.1e}"
        gap = "" if self.same_topk == self.pictures else f" (else scores {self.topk_gap:.1e} apart changed places)"
        return (
            f"{self.path}: {self.bytes / 1e6:.1f} MB, {self.kind}, {self.seconds:.0f} s; largest differences from the source: logits "
            f"{self.max_logit_error:.1e}, boxes {self.max_box_error:.1e}{masks}; same top-k in {self.same_topk} of {self.pictures} "
            f"answers{gap}"
        )
