"""RapiDETR: RF-DETR, the real-time detection transformer, for production.

    import rapidetr
    detector = rapidetr.load("nano")
    one = detector.predict("street.jpg")[0]
    run = rapidetr.train("data/", model="nano", epochs=50, out="runs/mine")  # run.best is a Detector

Nothing heavy is imported until it is used: `import rapidetr` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Detections", "Detector", "LabelSpace", "Masks", "ModelConfig", "RapidetrError", "Recipe", "Run", "build", "list_models", "load",
    "optimize", "train",
]  # fmt: skip

_HOMES = {
    "Detections": "rapidetr.core.detections",
    "Detector": "rapidetr.runtime.detector",
    "LabelSpace": "rapidetr.core.labels",
    "Masks": "rapidetr.core.masks",
    "ModelConfig": "rapidetr.core.config",
    "RapidetrError": "rapidetr.core.errors",
    "Recipe": "rapidetr.training.recipe",
    "Run": "rapidetr.training.run",
    "build": "rapidetr.model.build",
    "list_models": "rapidetr.core.config",
    "load": "rapidetr.runtime.load",
    "optimize": "rapidetr.deployment.optimize",
    "train": "rapidetr.training.run",
}

if TYPE_CHECKING:
    from rapidetr.core.config import ModelConfig, list_models
    from rapidetr.core.detections import Detections
    from rapidetr.core.errors import RapidetrError
    from rapidetr.core.labels import LabelSpace
    from rapidetr.core.masks import Masks
    from rapidetr.deployment.optimize import optimize
    from rapidetr.model.build import build
    from rapidetr.runtime.detector import Detector
    from rapidetr.runtime.load import load
    from rapidetr.training.recipe import Recipe
    from rapidetr.training.run import Run, train


def __getattr__(name: str) -> Any:
    if name == "compat":  # a room, not a name; heavy, so on demand
        return import_module("rapidetr.compat")
    if name not in _HOMES:
        raise AttributeError(f"module 'rapidetr' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
