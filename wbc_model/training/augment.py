"""Augmentation per sample, batched on the device: one geometric and one colour transform an image, blur and erasing on top.

A cell has no up and no left, so every turn and flip is allowed. The mild set keeps what a microscope shows; the strong set
is for the hardest labelled samples (active iterative augmentation): each of its transforms is switched on at random, so
that the same cell comes back in another composition every time.
"""

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from wbc_model.core.canonical import WHITE


class Strength(NamedTuple):
    """Half widths of the uniform ranges from which a sample's transform is drawn, and probabilities of the last three."""

    zoom: float  # of log2 magnification
    shift: float  # of the image side
    shear: float
    density: float  # of log2 optical density, all channels alike
    red: float  # of log2 optical density of the channel
    green: float
    blue: float
    stain: float  # radians around the grey axis, of the optical density
    eosin: float  # of log2 of the eosin in it, the red of granules and of some stains' cytoplasm
    brightness: float  # additive, pixel values are 0..1
    contrast: float  # of log2 contrast
    saturation: float  # of log2 saturation
    hue: float  # radians around the grey axis
    camera: float  # of the entries of a random matrix that mixes the channels; white stays white
    blur: float  # standard deviation of the lens's blur, of the image side; the drawn value's sign means nothing
    coarse: float  # half the resolution
    frame: float  # what lies outside a square is background, as in a crop that was cut tightly
    erase: float


# Optical densities of Giemsa's two dyes, methylene blue and eosin (Ruifrok & Johnston 2001, as ImageJ has them).
DYES: Final = ((0.834750, 0.513556, 0.196330), (0.092789, 0.954111, 0.283111))

CHANCES: Final = ("coarse", "frame", "erase")
MILD: Final = Strength(
    zoom=0.2,
    shift=0.05,
    shear=0.05,
    density=0,
    red=0,
    green=0,
    blue=0,
    stain=0,
    eosin=0,
    brightness=0.05,
    contrast=0.15,
    saturation=0.2,
    hue=0.06,
    camera=0,
    blur=0,
    coarse=0,
    frame=0,
    erase=0,
)
SITES: Final = Strength(
    zoom=0.35,
    shift=0.08,
    shear=0.12,
    density=0.35,
    red=0.4,
    green=0.25,
    blue=0.7,
    stain=0.2,
    eosin=0.8,
    brightness=0.08,
    contrast=0.35,
    saturation=1.6,
    hue=0.3,
    camera=0.4,
    blur=0.03,
    coarse=0.25,
    frame=0.3,
    erase=0,
)
STRONG: Final = Strength(
    zoom=0.5,
    shift=0.12,
    shear=0.2,
    density=0.5,
    red=0.5,
    green=0.3,
    blue=0.8,
    stain=0.25,
    eosin=1.0,
    brightness=0.15,
    contrast=0.45,
    saturation=0.6,
    hue=0.25,
    camera=0,
    blur=0.02,
    coarse=0.3,
    frame=0.3,
    erase=0.4,
)
SWITCH_ON: Final = 0.6  # probability with which a strong sample receives each transform
SHARP: Final = 0.3  # a blur with a standard deviation of fewer pixels than this changes nothing that is worth its time


def _draw_ranges(strong: Tensor, regular: Strength, generator: Generator) -> dict[str, Tensor]:
    """For each sample of `strong` (N,) bool a value per transform: uniform in its half width, or a 0/1 decision."""
    count = strong.shape[0]
    values = {}
    for name, usual, hard in zip(Strength._fields, regular, STRONG, strict=True):
        uniform = torch.rand(count, generator=generator) * 2 - 1
        on = torch.rand(count, generator=generator) < SWITCH_ON
        if name in CHANCES:
            values[name] = (uniform + 1) / 2 < torch.where(strong, torch.tensor(float(hard)), torch.tensor(float(usual)))
        else:
            reach = torch.where(strong & on, torch.tensor(float(hard)), torch.tensor(float(usual)))
            values[name] = uniform * reach
    return values


def _geometry(values: dict[str, Tensor], generator: Generator) -> Tensor:
    """Affine matrices (N, 2, 3) that `affine_grid` takes: turn, flip, zoom, shear, shift."""
    count = values["zoom"].shape[0]
    angle = torch.rand(count, generator=generator) * (2 * math.pi)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift_y = (torch.rand(count, generator=generator) * 2 - 1) * values["shift"].abs()
    scale = torch.exp2(-values["zoom"])
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    row_x = torch.stack([cos * flip, -sin + values["shear"], 2 * values["shift"]], dim=1)
    row_y = torch.stack([sin * flip, cos, 2 * shift_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _sampling_grid(theta: Tensor, size: int) -> Tensor:
    """`F.affine_grid` for square images, (N, S, S, 2), by broadcasting: on a CPU five times as fast."""
    steps = (torch.arange(size, device=theta.device) * 2 + 1) / size - 1
    x, y = steps[None, None, :, None], steps[None, :, None, None]
    column = theta[:, None, None]  # (N, 1, 1, 2, 3)
    return torch.addcmul(torch.addcmul(column[..., 2], y, column[..., 1]), x, column[..., 0])


def _turn(angle: Tensor) -> Tensor:
    """Rotations of RGB around the grey axis by `angle` (N,) radians, (N, 3, 3) (Rodrigues)."""
    identity, grey = torch.eye(3), torch.full((3, 3), 1 / 3)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    return cos * identity + sin * axis + (1 - cos) * grey


def _stain(values: dict[str, Tensor]) -> Tensor:
    """One linear map of optical density a sample, (N, 3, 3): how much eosin there is beside the blue dye (colour
    deconvolution, Ruifrok & Johnston 2001; as augmentation, Tellez et al. 2018), the stain's strength, and its colours."""
    channels = torch.stack([values["density"] + values[name] for name in ("red", "green", "blue")], dim=1)
    blue, eosin = (torch.tensor(dye) for dye in DYES)
    dyes = torch.stack([blue, eosin, torch.linalg.cross(blue, eosin)], dim=1)
    amounts = torch.exp2(torch.stack([torch.zeros_like(values["eosin"]), values["eosin"], torch.zeros_like(values["eosin"])], 1))
    redyed = dyes @ (amounts[:, :, None] * torch.linalg.inv(dyes))
    matrix: Tensor = torch.exp2(channels)[:, :, None] * (_turn(values["stain"]) @ redyed)
    return matrix


def _restain(images: Tensor, matrix: Tensor) -> Tensor:
    """Apply a map of optical density (Beer-Lambert) to images (N, 3, S, S) in 0..1."""
    density = images.clamp(1 / 255, 1).log_().neg_().flatten(2)
    return torch.bmm(matrix, density).neg_().exp_().clamp_(0, 1).view(images.shape)


def _colour(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One affine map of RGB a sample, (N, 3, 3) and (N, 3, 1): hue around the grey axis, saturation, contrast, brightness."""
    count = values["hue"].shape[0]
    grey, turn = torch.full((count, 3, 3), 1 / 3), _turn(values["hue"])
    saturation = torch.exp2(values["saturation"])[:, None, None]
    contrast = torch.exp2(values["contrast"])[:, None, None]
    matrix = contrast * (saturation * turn + (1 - saturation) * grey)
    offset = 0.5 * (1 - contrast) + values["brightness"][:, None, None]
    return matrix, offset.expand(count, 3, 1)


def _camera(values: dict[str, Tensor], generator: Generator) -> tuple[Tensor, Tensor]:
    """How another camera mixes the channels: an affine map of RGB a sample, (N, 3, 3) and (N, 3, 1), that leaves white white."""
    mixing = torch.rand(len(values["camera"]), 3, 3, generator=generator) * 2 - 1
    matrix = torch.eye(3) + values["camera"].abs()[:, None, None] * mixing
    white = torch.full((3, 1), WHITE / 255)
    return matrix, white - matrix @ white


def _erase(images: Tensor, generator: Generator) -> Tensor:
    """Lay a rectangle of the image's mean colour over a part of each image (random erasing, Zhong et al. 2020)."""
    count, _, height, width = images.shape
    centre = torch.rand(count, 2, generator=generator).to(images.device)
    half = (0.08 + 0.12 * torch.rand(count, 2, generator=generator)).to(images.device)
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    inside_y = (y[None] - centre[:, :1]).abs() < half[:, :1]
    inside_x = (x[None] - centre[:, 1:]).abs() < half[:, 1:]
    mask = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return torch.where(mask, images.mean((2, 3), keepdim=True), images)


def _frame(images: Tensor, generator: Generator) -> Tensor:
    """Lay each image's own border colour over what lies outside a square about its middle."""
    count, _, height, width = images.shape
    low = (0.3 * torch.rand(count, 2, generator=generator)).to(images.device)
    high = (1 - 0.3 * torch.rand(count, 2, generator=generator)).to(images.device)
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    inside_y = (y[None] > low[:, :1]) & (y[None] < high[:, :1])
    inside_x = (x[None] > low[:, 1:]) & (x[None] < high[:, 1:])
    mask = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return torch.where(mask, images, images.amax((2, 3), keepdim=True))


def _coarse(images: Tensor) -> Tensor:
    """Half the resolution, at the same size."""
    half = F.avg_pool2d(images, 2)
    return F.interpolate(half, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur of images (N, 3, S, S) by `deviation` (N,) pixels each: one matrix for rows and columns, whose weights sum to
    one at the border too."""
    place = torch.arange(images.shape[-1], device=images.device)
    distance = (place[:, None] - place[None]) / deviation[:, None, None].to(images.device)
    weight = torch.softmax(-0.5 * distance**2, dim=2)[:, None]
    return (weight @ images @ weight.mT).clamp_(0, 1)  # rounding may leave the range by a bit


def augment(images: Tensor, strong: Tensor, generator: Generator, regular: Strength = MILD) -> Tensor:
    """Augment uint8 images (N, S, S, 3) to float32 (N, 3, S, S) in 0..1, channels last, on their device.

    `strong` (N,) bool on the CPU marks the samples that get the strong set; the others get `regular`. All randomness comes
    from `generator` (CPU), so that a seed gives the same batch whatever the device.
    """
    device = images.device
    values = _draw_ranges(strong, regular, generator)
    matrix, offset = _colour(values)
    if regular.camera:
        mixing, white = _camera(values, generator)
        matrix, offset = mixing @ matrix, mixing @ offset + white
    x = images.permute(0, 3, 1, 2).float() / 255
    theta = _geometry(values, generator).to(device)
    x = F.grid_sample(x, _sampling_grid(theta, x.shape[-1]), padding_mode="reflection", align_corners=False)
    if regular.density or strong.any():
        x = _restain(x, _stain(values).to(device))
    x = torch.baddbmm(offset.to(device), matrix.to(device), x.flatten(2)).clamp_(0, 1).view(x.shape)
    deviation = values["blur"].abs() * x.shape[-1]
    blurred, coarse = (deviation > SHARP).nonzero().squeeze(1), values["coarse"].nonzero().squeeze(1).to(device)
    if len(blurred):
        x[blurred.to(device)] = _blur(x[blurred.to(device)], deviation[blurred])
    if len(coarse):
        x[coarse] = _coarse(x[coarse])
    for name, cover in (("frame", _frame), ("erase", _erase)):
        some = values[name].nonzero().squeeze(1).to(device)
        if len(some):
            x[some] = cover(x[some], generator)
    return x.contiguous(memory_format=torch.channels_last)
