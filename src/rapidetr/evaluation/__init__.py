"""How good a detector is: average precision, thresholds, confusion and the worst pictures; how far two detectors agree."""

from rapidetr.evaluation.agreement import Agreement, agreement
from rapidetr.evaluation.evaluate import Share, evaluate, find, score, score_shares
from rapidetr.evaluation.objects import Found, Truths
from rapidetr.evaluation.report import Evaluation, Measure

__all__ = ["Agreement", "Evaluation", "Found", "Measure", "Share", "Truths", "agreement", "evaluate", "find", "score", "score_shares"]
