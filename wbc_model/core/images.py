"""Decoding and preprocessing of one cell image: the same code in training, scoring and serving.

An image is untrusted bytes until `decode` has returned. Pure Pillow and NumPy, so that the service needs no PyTorch.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wbc_model.core.canonical import Nucleus, canonical_view, find_nucleus, without_padding
from wbc_model.core.errors import ImageRejected
from wbc_model.core.structure import check_scans, one_picture

View = Literal["whole", "canonical"]

MAX_BYTES: Final = 32 * 2**20
MAX_PIXELS: Final = 40_000_000  # a 40-megapixel smear photograph is not a cell; 120 MB decoded is the most one image may cost
MAX_SIDE: Final = 8192  # the network's view is square: 16x2,000,000 pixels would become a square of terabytes
MIN_SIDE: Final = 16
APPEARANCE: Final = ("radius", "density_r", "density_g", "density_b", "background_r", "background_g", "background_b")
FAINT: Final = 0.05  # added to a density before its logarithm: a channel may not absorb at all
# Modes that hold 8 bits a channel and so have one RGB form; 16-bit grey, float and Lab images do not.
RGB_CONVERTIBLE: Final = frozenset({"RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1"})


@dataclass(frozen=True)
class ImageFacts:
    """What the header of an accepted image says: `width` and `height` in pixels as stored, `format`, Pillow `mode`."""

    width: int
    height: int
    format: str
    mode: str


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageRejected("undecodable", "the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageRejected("too_large", f"{len(data):,} bytes, at most {MAX_BYTES:,} are accepted")
    kind = one_picture(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own pixel limit below is stricter than Pillow's warning
            image = Image.open(io.BytesIO(data), formats=(kind,))
    except Image.DecompressionBombError:
        raise ImageRejected("too_large", f"more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, TypeError, OverflowError, EOFError):
        raise ImageRejected("undecodable", f"not a readable {kind} image") from None
    if image.format != kind:  # Pillow's MPO
        raise ImageRejected("undecodable", f"a {image.format} image inside a {kind} file")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRejected("too_large", f"{width}x{height} pixels, at most {MAX_PIXELS:,} are accepted")
    if max(width, height) > MAX_SIDE:
        raise ImageRejected("too_large", f"{width}x{height} pixels, no side may be longer than {MAX_SIDE:,}")
    if min(width, height) < MIN_SIDE:
        raise ImageRejected("too_small", f"{width}x{height} pixels, at least {MIN_SIDE}x{MIN_SIDE} are needed")
    check_scans(data, kind, width * height)
    if image.mode not in RGB_CONVERTIBLE:
        raise ImageRejected("undecodable", f"pixel mode {image.mode} has no 8-bit RGB form")
    return image


def decode(data: bytes, at_least: int | None = None) -> tuple[Image.Image, ImageFacts]:
    """Decode untrusted bytes to an upright RGB image.

    `at_least` lets a JPEG be decoded at a half, quarter or eighth of its size (DCT scaling), which is several times faster. No
    side falls under that many pixels. The facts always give the stored size.
    Transparent pixels are laid on white, the background of a smear.

    Raises ImageRejected with reason `undecodable`, `truncated`, `too_large` or `too_small`.
    """
    image = _open(data)
    facts = ImageFacts(*image.size, str(image.format), image.mode)
    if at_least is not None and image.format == "JPEG" and image.mode in ("RGB", "L"):
        image.draft(image.mode, (at_least, at_least))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.new("RGB", layer.size, "white")
                image.paste(layer, mask=layer.getchannel("A"))
            return image.convert("RGB"), facts
    except OSError as error:
        if "truncated" in str(error) or "broken" in str(error) or "incomplete" in str(error):
            raise ImageRejected("truncated", "the image ends before its last row") from None
        raise ImageRejected("undecodable", f"damaged {facts.format} data") from None
    except (SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError, EOFError, MemoryError):
        raise ImageRejected("undecodable", f"damaged {facts.format} data") from None
    except Exception as error:  # struct.error and zlib.error escape Pillow's plugins on hostile files
        if type(error).__module__ not in ("struct", "zlib"):
            raise
        raise ImageRejected("undecodable", f"damaged {facts.format} data") from None


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The network's view of a decoded image: uint8 array (size, size, 3), the longer side resized to `size`.

    A crop that is not square is laid on the mean colour of its own border, so that the cell keeps its shape.
    """
    if image.width != image.height:
        pixels = np.asarray(image)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        colour = tuple(int(value) for value in border.mean(axis=0).round())
        square = Image.new("RGB", (max(image.size),) * 2, colour)
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        image = square
    if image.width != size:
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(image)


def appearance(nucleus: Nucleus | None, scale: float) -> NDArray[np.float64]:
    """How the cell was shown, (7,): logarithms of the nucleus's radius, of its optical density and of the background's light,
    both RGB. The radius is in pixels of the image as stored, `scale` pixels of the decoded image each. NaN where no nucleus was
    found."""
    if nucleus is None:
        return np.full(len(APPEARANCE), np.nan)
    shown: NDArray[np.float64] = np.log(np.r_[nucleus.radius / scale, nucleus.density + FAINT, nucleus.background])
    return shown


def look(data: bytes, size: int, view: View) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Untrusted bytes to the network's input, uint8 (size, size, 3), and the cell's appearance (7,); raises ImageRejected.

    `whole` is the crop as it is, `canonical` the cell in a standard size, stain and light (wbc_model/core/canonical.py).
    """
    return look_at(*decode(data, at_least=large_enough(size, view)), size, view)


def look_at(image: Image.Image, facts: ImageFacts, size: int, view: View) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """As `look`, of what `decode` returned."""
    scale = shown_scale(image, facts)
    if view == "whole":
        return to_square(image, size), appearance(find_nucleus(without_padding(image)), scale)
    seen, nucleus = canonical_view(image, size)
    return seen, appearance(nucleus, scale)


def preprocess(data: bytes, size: int, view: View) -> NDArray[np.uint8]:
    """As `look`, without the appearance."""
    image = decode(data, at_least=large_enough(size, view))[0]
    return to_square(image, size) if view == "whole" else canonical_view(image, size)[0]


def shown_scale(image: Image.Image, facts: ImageFacts) -> float:
    """Pixels of a decoded image for each pixel of its file; less than 1 where a JPEG was decoded small."""
    return max(image.size) / max(facts.width, facts.height)


def large_enough(size: int, view: View) -> int:
    """The `at_least` of `decode` for a network's input."""
    return size if view == "whole" else 2 * size  # the canonical view is about half the crop's side
