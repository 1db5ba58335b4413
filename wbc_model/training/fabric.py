"""Lightning Fabric, loaded without torchmetrics.

Fabric imports torchmetrics only to compare its version, for a callback that nothing here uses. With it come torchvision,
`scipy.signal` and matplotlib: three seconds of every training.
"""

import sys

_ABSENT = "torchmetrics" not in sys.modules
if _ABSENT:
    sys.modules["torchmetrics"] = None  # type: ignore[assignment]  # None: an import fails, and Fabric goes on without
try:
    from lightning_fabric import Fabric
finally:
    if _ABSENT:
        del sys.modules["torchmetrics"]

__all__ = ["Fabric"]
