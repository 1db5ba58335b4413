"""Why this class: a heat map by occlusion.

A patch of empty smear is laid over the cell, place by place. The network looks where the logit of the named class falls most
(occlusion sensitivity, Zeiler & Fergus, ECCV 2014). This needs only the network's answers. In a deletion test it is ahead of
CBAM's own spatial attention and of Grad-CAM (studies/explain).
"""

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.inference.engine import Engine
from wbc_model.core.canonical import WHITE

PLACES: Final = 9  # patches a side, each half over the next
SHOWN: Final = 256  # pixels a side of the picture
HOT: Final = (255, 64, 0)
OPAQUE: Final = 0.75  # of the picture under the hottest place


def occlusions(view: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The view (S, S, 3) with each patch covered, (P, S, S, 3), and where it is covered, (P, S, S)."""
    size = len(view)
    edges = np.linspace(0, size, PLACES + 2).round().astype(int)
    masks = np.zeros((PLACES * PLACES, size, size), bool)
    for place in range(PLACES * PLACES):
        row, column = divmod(place, PLACES)
        masks[place, edges[row] : edges[row + 2], edges[column] : edges[column + 2]] = True
    return np.where(masks[..., None], np.uint8(WHITE), view), masks


def heat(view: NDArray[np.uint8], engine: Engine, label: int) -> NDArray[np.float64]:
    """How much each pixel of the view (S, S, 3) speaks for the class, (S, S), 0 to 1: the mean fall of the class's logit, against
    the mean of the others, over the patches that cover the pixel. All 0 where nothing speaks for it."""
    covered, masks = occlusions(view)
    images = np.concatenate([view[None], covered])
    logits = np.concatenate([engine.infer(part).logits for part in np.array_split(images, -(-len(images) // engine.chunk))])
    lead = logits[:, label] - np.delete(logits, label, axis=1).mean(axis=1)
    fall = lead[0] - lead[1:].astype(np.float64)
    mean: NDArray[np.float64] = np.tensordot(fall, masks, axes=1) / masks.sum(axis=0)
    positive = mean.clip(min=0)
    return positive / max(float(positive.max()), 1e-9)


def heat_map(view: NDArray[np.uint8], hot: NDArray[np.float64]) -> bytes:
    """A PNG, SHOWN pixels a side, of the view as the network sees it with the heat laid over it."""
    picture = Image.fromarray(view).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
    mask = Image.fromarray((255 * OPAQUE * hot).round().astype(np.uint8)).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
    picture.paste(HOT, (0, 0), mask)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
