"""Augmentation: repeatable, per sample, and only what it says."""

import math

import pytest
import torch
import torch.nn.functional as F

from wbc_model.training import augment as augmentation
from wbc_model.training.augment import augment
from wbc_model.training.batches import seeded


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
    monkeypatch.setattr(augmentation, "_geometry", lambda values, generator: torch.eye(3)[:2].expand(8, 2, 3))
    out = augment(cell(), torch.zeros(8, dtype=torch.bool), seeded(0), still)
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


def test_restaining_is_a_linear_map_of_optical_density():
    """Twice the dye in red alone: the transmitted share of red is squared, that of the others stays."""
    images = torch.tensor([0.5, 0.8, 0.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    out = augmentation._restain(images, torch.diag(torch.tensor([2.0, 1.0, 1.0]))[None])
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.25, 0.8, 0.2]))


def test_a_turn_of_the_stain_keeps_grey_grey():
    turned = augmentation._turn(torch.tensor([0.0, 0.7])) @ torch.ones(3)
    torch.testing.assert_close(turned, torch.ones(2, 3))
    torch.testing.assert_close(augmentation._turn(torch.zeros(1))[0], torch.eye(3))


def test_sites_vary_stain_and_framing_more_than_mild():
    images = cell(count=256)
    none = torch.zeros(256, dtype=torch.bool)
    spread = [augment(images, none, seeded(1), s).mean((2, 3)).std(0).mean() for s in (augmentation.MILD, augmentation.SITES)]
    assert spread[1] > 1.5 * spread[0]


def test_a_frame_covers_with_the_brightest_colour_and_keeps_the_middle():
    images = cell().permute(0, 3, 1, 2).float() / 255
    out = augmentation._frame(images, seeded(5))
    assert torch.equal(out[..., 12:20, 12:20], images[..., 12:20, 12:20])
    changed = (out != images).any(dim=1)
    assert changed.any()
    assert torch.equal(out.amax((2, 3)), images.amax((2, 3)))


def test_more_eosin_leaves_the_blue_dye_as_it_is():
    """A pixel of blue dye alone keeps its colour, one of eosin alone has twice the density."""
    zero = {name: torch.zeros(1) for name in augmentation.Strength._fields}
    matrix = augmentation._stain({**zero, "eosin": torch.ones(1)})[0]
    blue, eosin = (torch.tensor(dye) for dye in augmentation.DYES)
    torch.testing.assert_close(matrix @ blue, blue, atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix @ eosin, 2 * eosin, atol=1e-5, rtol=0)
    torch.testing.assert_close(augmentation._stain(zero)[0], torch.eye(3), atol=1e-5, rtol=0)


def test_another_camera_mixes_the_channels_and_leaves_white_white():
    values = {"camera": torch.tensor([0.0, 0.5, -0.5])}
    matrix, offset = augmentation._camera(values, seeded(1))
    white = torch.full((3, 1), augmentation.WHITE / 255)
    torch.testing.assert_close(matrix @ white + offset, white.expand(3, 3, 1))
    torch.testing.assert_close(matrix[0], torch.eye(3))
    assert 0 < (matrix[1:] - torch.eye(3)).abs().max() <= 0.5
    assert not torch.equal(matrix[1], matrix[2])


def test_blur_spreads_a_point_by_its_standard_deviation():
    """The variance of a blurred point, along a row and along a column, is that of the blur; nothing is lost, nothing moves."""
    point = torch.zeros(2, 3, 33, 33)
    point[:, :, 16, 16] = 1
    out = augmentation._blur(point, torch.tensor([1.0, 2.0]))
    place = torch.arange(33.0) - 16
    for image, deviation in zip(out[:, 0], (1.0, 2.0), strict=True):
        for side in (0, 1):
            profile = image.sum(side)
            assert profile.sum() == pytest.approx(1, abs=1e-4)
            assert (profile * place).sum() == pytest.approx(0, abs=1e-4)
            assert (profile * place**2).sum() == pytest.approx(deviation**2, rel=0.01)


def test_blur_leaves_an_even_image_as_it_is():
    even = torch.full((1, 3, 16, 16), 0.7)
    torch.testing.assert_close(augmentation._blur(even, torch.tensor([3.0])), even)


def still(monkeypatch: pytest.MonkeyPatch, **ranges: float) -> augmentation.Strength:
    """Nothing but these transforms, and no turn or flip."""
    monkeypatch.setattr(augmentation, "_geometry", lambda values, generator: torch.eye(3)[:2].expand(len(values["zoom"]), 2, 3))
    return augmentation.Strength(**{**dict.fromkeys(augmentation.Strength._fields, 0.0), **ranges})


def test_sites_are_out_of_focus_by_different_amounts(monkeypatch: pytest.MonkeyPatch):
    """The same textured cell comes back with fewer fine details, by another amount each time; mild augmentation keeps them."""
    fine = (torch.arange(32)[:, None] + torch.arange(32)[None]) % 2 * 200 + 20
    images = fine.to(torch.uint8)[None, ..., None].expand(64, -1, -1, 3)
    none = torch.zeros(64, dtype=torch.bool)
    contrast = augment(images, none, seeded(2), still(monkeypatch, blur=augmentation.SITES.blur)).std((1, 2, 3))
    assert augmentation.MILD.blur == 0
    assert contrast.min() < 0.2 * contrast.max()
    assert contrast.unique().numel() > 32


def test_sites_are_seen_by_cameras_that_mix_channels(monkeypatch: pytest.MonkeyPatch):
    """Every cell comes back in other colours, on the background that it had; a mild augmentation has one camera."""
    images = torch.full((16, 8, 8, 3), augmentation.WHITE, dtype=torch.uint8)
    images[:, 2:6, 2:6] = torch.tensor([120, 80, 160], dtype=torch.uint8)
    out = augment(images, torch.zeros(16, dtype=torch.bool), seeded(3), still(monkeypatch, camera=augmentation.SITES.camera))
    cell, white = out[:, :, 4, 4], out[:, :, 0, 0]
    assert augmentation.MILD.camera == 0
    torch.testing.assert_close(white, torch.full((16, 3), augmentation.WHITE / 255), atol=1e-3, rtol=0)
    assert cell.unique(dim=0).shape == (16, 3)
    assert (cell - torch.tensor([120, 80, 160]) / 255).abs().amax(1).min() > 1e-4
