"""Which epoch was the best, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rapidetr.training.recipe import Recipe


@dataclass
class Judge:
    """Remembers the best AP50:95 and how long there was no gain; its fields are saved with the state of a run."""

    best: dict[str, Any] = field(default_factory=dict)  # epoch, weights ("raw" or "ema"), AP
    reference: float = float("-inf")  # what the next gain is counted from
    waited: int = 0  # epochs

    def judge(self, epoch: int, scores: dict[str, float]) -> bool:
        """Whether these scores (AP by kind of weights) are the best so far; a tie is not, but later is better than AP 0."""
        weights = max(scores, key=lambda kind: (scores[kind], kind == "ema"))
        if self.best and scores[weights] <= self.best["AP"] and self.best["AP"] > 0:
            return False
        self.best = {"epoch": epoch, "weights": weights, "AP": scores[weights]}
        return True

    def should_stop(self, recipe: Recipe, epochs: int, scores: dict[str, float]) -> bool:
        """After the scores of another `epochs` epochs: no gain of at least `min_gain` for `patience` epochs."""
        score = max(scores.values())
        if score >= self.reference + recipe.min_gain or self.reference == float("-inf"):
            self.reference, self.waited = score, 0
        else:
            self.waited += epochs
        return 0 < recipe.patience <= self.waited
