"""The map of colours from one site to another, and what it says of a network."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wbc_model.evaluation.recolour import colour_map, recoloured
from wbc_model.evaluation.shift import cost_of_colours
from wbc_model.network.predict import predict
from wbc_model.network.resnet import Output


def views(seed: int, mean: tuple[float, ...], spread: tuple[float, ...], mix: float = 0.0) -> np.ndarray:
    """Forty views of 16x16 pixels with normally distributed colours whose channels share a part."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(40, 16, 16, 3))
    noise = (1 - mix) * noise + mix * noise.mean(axis=3, keepdims=True)
    return (np.array(mean) + noise * np.array(spread)).clip(0, 255).round().astype(np.uint8)


def test_by_hand_where_channels_are_independent():
    """Each channel gets the other site's mean and spread: x -> 150 + 2 (x - 100) for one that has twice the spread about 150."""
    rng = np.random.default_rng(0)
    home = np.stack([rng.permutation(np.repeat([90, 110], 5120)) for _ in range(3)], 1).reshape(40, 16, 16, 3).astype(np.uint8)
    site = (150 + 2 * (home.astype(int) - 100)).astype(np.uint8)
    matrix, offset = colour_map(home, site)
    np.testing.assert_allclose(matrix, 2 * np.eye(3), atol=2e-3)
    np.testing.assert_allclose(offset, -50, atol=0.3)
    np.testing.assert_array_equal(recoloured(home, matrix, offset), site)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 1000),
    st.tuples(*[st.floats(90, 160)] * 6),
    st.tuples(*[st.floats(5, 25)] * 6),
    st.tuples(st.floats(0, 0.8), st.floats(0, 0.8)),
)
def test_mapped_cells_have_the_sites_mean_and_covariance(seed, means, spreads, mixes):
    home, site = views(seed, means[:3], spreads[:3], mixes[0]), views(seed + 1, means[3:], spreads[3:], mixes[1])
    matrix, offset = colour_map(home, site)
    mapped = home.reshape(-1, 3) @ matrix.T + offset
    target = site.reshape(-1, 3)
    np.testing.assert_allclose(mapped.mean(axis=0), target.mean(axis=0), atol=1e-6)
    ratios = np.linalg.eigvals(np.linalg.solve(np.cov(target.T), np.cov(mapped.T)))  # of the variances, whatever the direction
    np.testing.assert_allclose(ratios, 1, atol=0.05)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)  # it turns nothing it need not turn


def test_the_same_site_keeps_its_colours():
    home = views(3, (120, 90, 150), (20, 25, 15), 0.5)
    np.testing.assert_allclose(recoloured(home, *colour_map(home, home)).astype(int), home, atol=1)


def test_a_map_looks_at_cells_from_all_over_a_list():
    """Cells that lie class by class are not mapped as if they were all of the first class."""
    dark, bright = (np.tile(views(seed, (mean,) * 3, (10,) * 3), (8, 1, 1, 1)) for seed, mean in ((1, 70.0), (2, 180.0)))
    matrix, offset = colour_map(np.concatenate([dark, bright]), np.concatenate([bright, dark]))
    np.testing.assert_allclose(matrix, np.eye(3), atol=0.02)
    np.testing.assert_allclose(offset, 0, atol=2)


def test_colours_stay_within_what_there_is():
    far = np.array([[[[0, 128, 255]]]], np.uint8)
    np.testing.assert_array_equal(recoloured(far, 3 * np.eye(3), np.full(3, -256.0)), [[[[0, 128, 255]]]])


def test_a_site_without_any_colour_is_no_error():
    grey, coloured = np.full((20, 8, 8, 3), 200, np.uint8), views(6, (120, 90, 150), (20, 25, 15))
    assert np.isfinite(colour_map(grey, coloured)[0]).all()
    np.testing.assert_array_equal(recoloured(coloured, *colour_map(coloured, grey)), np.full_like(coloured, 200))


class ByRed(nn.Module):
    """Calls a cell of class 1 where its mean red is above a half, else of class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> Output:
        red = images[:, 0].mean((1, 2)) * self.weight - 0.5
        logits = torch.stack([-red, red, *[torch.full_like(red, -9.0)] * 3], dim=1)
        return Output(logits, torch.zeros_like(red), torch.zeros(len(red), 1))


def test_the_cost_of_colours_is_what_a_network_loses_by_them():
    """At home class 1 is red and class 0 is not; at a site all cells are redder, so that class 0 is taken for class 1."""
    home = np.concatenate([views(1, (60, 90, 90), (5, 5, 5)), views(2, (190, 90, 90), (5, 5, 5))])
    labels = np.repeat([0, 1], 40)
    redder = (home * np.array([0.2, 1, 1]) + np.array([200, 0, 0])).astype(np.uint8)
    network = ByRed()
    logits = predict(network, [home]).logits
    assert cost_of_colours(network, home, labels, logits, home) == {"home": 1.0, "site": 1.0}
    assert cost_of_colours(network, home, labels, logits, redder) == {"home": 1.0, "site": 0.5}
