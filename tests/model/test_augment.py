"""Augmentation: repeatable, per sample, and only what it says."""

import math

import pytest
import torch
import torch.nn.functional as F

from wbc_model import augment as augmentation
from wbc_model.augment import augment
from wbc_model.sampling import seeded


def cell(size: int = 32, count: int = 8) -> torch.Tensor:
    """A bright disc off the centre, so that turns and flips show."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disc = ((x - size * 0.6) ** 2 + (y - size * 0.5) ** 2 < (size * 0.2) ** 2)[None, ..., None]
    image = disc * torch.tensor([180, 90, 200]) + (~disc) * torch.tensor([230, 220, 225])
    return image.to(torch.uint8).expand(count, -1, -1, -1)


def test_shape_range_and_repeatability():
    images, strong = cell(), torch.arange(8) % 2 == 0
    first = augment(images, strong, seeded(0, 1))
    assert first.shape == (8, 3, 32, 32)
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, augment(images, strong, seeded(0, 1)))
    assert not torch.equal(first, augment(images, strong, seeded(0, 2)))


def test_each_sample_has_its_own_transform():
    out = augment(cell(), torch.zeros(8, dtype=torch.bool), seeded(3))
    assert all(not torch.equal(out[0], out[i]) for i in range(1, 8))


def test_strong_changes_colour_more_than_mild():
    images = cell(count=256)
    plain = images.float().mean((1, 2)) / 255
    mild = (augment(images, torch.zeros(256, dtype=torch.bool), seeded(1)).mean((2, 3)) - plain).abs().mean()
    strong = (augment(images, torch.ones(256, dtype=torch.bool), seeded(1)).mean((2, 3)) - plain).abs().mean()
    assert strong > 1.5 * mild
    assert mild < 0.06


def test_no_transform_leaves_the_image(monkeypatch: pytest.MonkeyPatch):
    """With all ranges at zero, angle 0 and no flip, the image comes back as it went in."""
    still = augmentation.Strength(*[0.0] * len(augmentation.Strength._fields))
    monkeypatch.setattr(augmentation, "MILD", still)
    monkeypatch.setattr(augmentation, "_geometry", lambda values, generator: torch.eye(3)[:2].expand(8, 2, 3))
    out = augment(cell(), torch.zeros(8, dtype=torch.bool), seeded(0))
    torch.testing.assert_close(out, cell().permute(0, 3, 1, 2).float() / 255, rtol=0, atol=1e-4)


def test_sampling_grid_is_torchs_affine_grid():
    theta = torch.randn(5, 2, 3)
    expected = F.affine_grid(theta, [5, 3, 24, 24], align_corners=False)
    torch.testing.assert_close(augmentation._sampling_grid(theta, 24), expected)


def test_hue_turn_by_hand():
    """A third of a turn around the grey axis makes green of red; grey stays grey."""
    values = {name: torch.zeros(1) for name in augmentation.Strength._fields} | {"hue": torch.tensor([2 * math.pi / 3])}
    matrix, offset = augmentation._colour(values)
    red, grey = torch.tensor([1.0, 0.0, 0.0]), torch.full((3,), 0.4)
    torch.testing.assert_close(matrix[0] @ red + offset[0, :, 0], torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix[0] @ grey + offset[0, :, 0], grey, rtol=0, atol=1e-6)
