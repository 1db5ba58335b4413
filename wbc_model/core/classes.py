"""The five classes of the differential, in the one order used by every array, file and answer."""

from typing import Final

CLASSES: Final[tuple[str, ...]] = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")
CLASS_INDEX: Final[dict[str, int]] = {name: index for index, name in enumerate(CLASSES)}
