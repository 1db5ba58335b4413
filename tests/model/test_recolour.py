"""The map of colours from one site to another."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wbc_model.recolour import colour_map


def views(seed: int, mean: tuple[float, ...], spread: tuple[float, ...], mix: float = 0.0) -> np.ndarray:
    """Twenty views of 16x16 pixels with normally distributed colours whose channels share a part."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(20, 16, 16, 3))
    noise = (1 - mix) * noise + mix * noise.mean(axis=3, keepdims=True)
    return (np.array(mean) + noise * np.array(spread)).clip(0, 255).round().astype(np.uint8)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def test_by_hand_where_channels_are_independent():
    """Each channel gets the other site's mean and spread: x -> 150 + 2 (x - 100) for one that has twice the spread about 150."""
    rng = np.random.default_rng(0)
    home = np.clip(np.stack([rng.permutation(np.repeat([90, 110], 5120)) for _ in range(3)], 1), 0, 255)
    home = home.reshape(40, 16, 16, 3).astype(np.uint8)
    site = (150 + 2 * (home.astype(int) - 100)).astype(np.uint8)
    mapped = colour_map(home, site)
    torch.testing.assert_close(mapped.matrix, 2 * torch.eye(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(mapped(as_images(home)), as_images(site), atol=2e-3, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.tuples(*[st.floats(90, 160)] * 6),
    st.tuples(*[st.floats(5, 25)] * 6),
    st.tuples(st.floats(0, 0.8), st.floats(0, 0.8)),
)
def test_mapped_cells_have_the_sites_mean_and_covariance(seed, means, spreads, mixes):
    home, site = views(seed, means[:3], spreads[:3], mixes[0]), views(seed + 1, means[3:], spreads[3:], mixes[1])
    map_ = colour_map(home, site)
    mapped = home.reshape(-1, 3) / 255 @ map_.matrix.double().numpy().T + map_.offset.double().numpy()
    target = site.reshape(-1, 3) / 255
    np.testing.assert_allclose(mapped.mean(axis=0), target.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(np.cov(mapped.T), np.cov(target.T), atol=1e-4)
    torch.testing.assert_close(map_.matrix, map_.matrix.T, atol=1e-4, rtol=1e-4)  # it turns nothing it need not turn


def test_the_same_site_keeps_its_colours():
    home = views(3, (120, 90, 150), (20, 25, 15), 0.5)
    images = as_images(home)
    torch.testing.assert_close(colour_map(home, home)(images), images, atol=2e-3, rtol=0)


def test_colours_stay_within_what_there_is():
    mapped = colour_map(views(4, (128,) * 3, (5,) * 3), views(5, (128,) * 3, (60,) * 3))(torch.rand(4, 3, 8, 8))
    assert mapped.min() >= 0
    assert mapped.max() <= 1


def test_a_site_without_any_colour_is_no_error():
    grey = np.full((20, 8, 8, 3), 200, np.uint8)
    mapped = colour_map(grey, views(6, (120, 90, 150), (20, 25, 15)))
    assert torch.isfinite(mapped.matrix).all()
    back = colour_map(views(6, (120, 90, 150), (20, 25, 15)), grey)
    torch.testing.assert_close(back(torch.rand(2, 3, 4, 4)), torch.full((2, 3, 4, 4), 200 / 255), atol=0.02, rtol=0)


def test_views_are_mapped_as_images_are():
    home, site = views(7, (120, 90, 150), (20, 25, 15)), views(8, (150, 110, 170), (10, 15, 25), 0.3)
    mapped = colour_map(home, site)
    seen = mapped.views(home)
    assert (seen.dtype, seen.shape) == (np.uint8, home.shape)
    torch.testing.assert_close(as_images(seen), mapped(as_images(home)), atol=0.5 / 255 + 1e-6, rtol=0)
