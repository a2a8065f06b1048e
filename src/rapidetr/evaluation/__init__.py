"""How good a detector is: average precision, thresholds, confusion and the worst pictures; how far two detectors agree."""

from rapidetr.evaluation.agreement import Agreement, agreement
from rapidetr.evaluation.evaluate import evaluate, score
from rapidetr.evaluation.objects import Found, Truths
from rapidetr.evaluation.report import Evaluation, Measure

__all__ = ["Agreement", "Evaluation", "Found", "Measure", "Truths", "agreement", "evaluate", "score"]
