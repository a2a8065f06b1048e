"""The official package's class names and behaviour: change `from rfdetr import ...` to `from rapidetr.compat import ...`.

docs/migrate-from-rfdetr.md says for each official name what it does here, or what to use instead.
"""

from rapidetr.compat.models import (
    RFDETR,
    RFDETR2XLarge,
    RFDETRBase,
    RFDETRKeypointPreview,
    RFDETRLarge,
    RFDETRLargeDeprecated,
    RFDETRMedium,
    RFDETRNano,
    RFDETRSeg2XLarge,
    RFDETRSegLarge,
    RFDETRSegMedium,
    RFDETRSegNano,
    RFDETRSegPreview,
    RFDETRSegSmall,
    RFDETRSegXLarge,
    RFDETRSmall,
    RFDETRXLarge,
    from_checkpoint,
)
from rapidetr.core.labels import COCO_NAMES as COCO_CLASSES

COCO_CLASS_NAMES = list(COCO_CLASSES.values())

__all__ = [
    "COCO_CLASSES",
    "COCO_CLASS_NAMES",
    "RFDETR",
    "RFDETR2XLarge",
    "RFDETRBase",
    "RFDETRKeypointPreview",
    "RFDETRLarge",
    "RFDETRLargeDeprecated",
    "RFDETRMedium",
    "RFDETRNano",
    "RFDETRSeg2XLarge",
    "RFDETRSegLarge",
    "RFDETRSegMedium",
    "RFDETRSegNano",
    "RFDETRSegPreview",
    "RFDETRSegSmall",
    "RFDETRSegXLarge",
    "RFDETRSmall",
    "RFDETRXLarge",
    "from_checkpoint",
]
