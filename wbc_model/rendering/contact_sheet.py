"""A contact sheet: cells in rows under a title, to be looked at by a person."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wbc_model.core.errors import WbcError

INK: Final = (30, 30, 40)
PAPER: Final = (255, 255, 255)
GAP: Final = 4


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]], title: str = "", note: str = "", tile: int = 128
) -> Image.Image:
    """Lay out rows of (row title, images uint8 (H, W, 3) of any size) as one RGB image, each image in a `tile` px square.

    An image that is not square keeps its shape. Raises WbcError when there is nothing to show.
    """
    columns = max((len(images) for _, images in rows), default=0)
    if columns == 0:
        raise WbcError("a contact sheet needs at least one image")
    small_px, large_px = max(10, tile // 8), max(12, tile // 5)
    small, large = ImageFont.load_default(small_px), ImageFont.load_default(large_px)
    margin = tile // 8
    left = margin * 2 + int(max(small.getlength(name) for name, _ in rows))
    top = margin * 2 + (large_px if title else 0)
    bottom = margin * 2 + (small_px if note else 0)
    width = left + columns * (tile + GAP) + margin
    if title or note:
        width = max(width, int(max(large.getlength(title), small.getlength(note))) + 2 * margin)
    sheet = Image.new("RGB", (width, top + len(rows) * (tile + GAP) + bottom), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin), title, fill=INK, font=large)
    draw.text((margin, sheet.height - margin), note, fill=INK, font=small, anchor="ls")
    for row, (name, images) in enumerate(rows):
        y = top + row * (tile + GAP)
        draw.text((margin, y + tile // 2), name, fill=INK, font=small, anchor="lm")
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels)
            ratio = tile / max(image.size)
            if ratio != 1:
                image = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
            sheet.paste(image, (left + column * (tile + GAP) + (tile - image.width) // 2, y + (tile - image.height) // 2))
    return sheet
