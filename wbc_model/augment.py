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


class Strength(NamedTuple):
    """Half widths of the uniform ranges from which a sample's transform is drawn."""

    zoom: float  # of log2 magnification
    shift: float  # of the image side
    shear: float
    brightness: float  # additive, pixel values are 0..1
    contrast: float  # of log2 contrast
    saturation: float  # of log2 saturation
    hue: float  # radians around the grey axis
    blur: float  # probability
    erase: float  # probability


MILD: Final = Strength(0.2, 0.05, 0.05, 0.05, 0.15, 0.2, 0.06, 0.0, 0.0)
STRONG: Final = Strength(0.5, 0.12, 0.2, 0.15, 0.45, 0.6, 0.25, 0.4, 0.4)
SWITCH_ON: Final = 0.6  # probability with which a strong sample receives each transform


def _draw_ranges(strong: Tensor, generator: Generator) -> dict[str, Tensor]:
    """For each sample of `strong` (N,) bool a value per transform: uniform in its half width, or a 0/1 decision."""
    count = strong.shape[0]
    values = {}
    for name, mild, hard in zip(Strength._fields, MILD, STRONG, strict=True):
        uniform = torch.rand(count, generator=generator) * 2 - 1
        on = torch.rand(count, generator=generator) < SWITCH_ON
        if name in ("blur", "erase"):
            values[name] = (uniform + 1) / 2 < torch.where(strong, torch.tensor(hard), torch.tensor(mild))
        else:
            values[name] = uniform * torch.where(strong & on, torch.tensor(hard), torch.tensor(mild))
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


def _colour(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One affine map of RGB a sample, (N, 3, 3) and (N, 3, 1): hue around the grey axis, saturation, contrast, brightness."""
    count = values["hue"].shape[0]
    identity = torch.eye(3).expand(count, 3, 3)
    grey = torch.full((count, 3, 3), 1 / 3)
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = torch.cos(values["hue"])[:, None, None], torch.sin(values["hue"])[:, None, None]
    turn = cos * identity + sin * axis + (1 - cos) * grey  # Rodrigues' rotation around (1, 1, 1)
    saturation = torch.exp2(values["saturation"])[:, None, None]
    contrast = torch.exp2(values["contrast"])[:, None, None]
    matrix = contrast * (saturation * turn + (1 - saturation) * grey)
    offset = 0.5 * (1 - contrast) + values["brightness"][:, None, None]
    return matrix, offset.expand(count, 3, 1)


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


def augment(images: Tensor, strong: Tensor, generator: Generator) -> Tensor:
    """Augment uint8 images (N, S, S, 3) to float32 (N, 3, S, S) in 0..1, channels last, on their device.

    `strong` (N,) bool on the CPU marks the samples that get the strong set. All randomness comes from `generator` (CPU), so
    that a seed gives the same batch whatever the device.
    """
    device = images.device
    values = _draw_ranges(strong, generator)
    matrix, offset = (part.to(device) for part in _colour(values))
    x = images.permute(0, 3, 1, 2).float() / 255
    theta = _geometry(values, generator).to(device)
    x = F.grid_sample(x, _sampling_grid(theta, x.shape[-1]), padding_mode="reflection", align_corners=False)
    x = torch.baddbmm(offset, matrix, x.flatten(2)).clamp_(0, 1).view(x.shape)
    blurred = values["blur"].to(device).nonzero().squeeze(1)
    if len(blurred):
        x[blurred] = F.avg_pool2d(F.pad(x[blurred], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    if values["erase"].any():
        erased = values["erase"].nonzero().squeeze(1)
        x[erased.to(device)] = _erase(x[erased.to(device)], generator)
    return x.contiguous(memory_format=torch.channels_last)
