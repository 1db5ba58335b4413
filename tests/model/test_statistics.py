"""Batch normalisation by a site's own statistics."""

import numpy as np
import pytest
import torch
from torch import nn

from wbc_model.network.batch_norm_statistics import MAX_CELLS, MIN_CELLS, some_cells, with_statistics_of
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def network() -> AttentionResNet18:
    torch.manual_seed(3)
    return AttentionResNet18("cbam", lossnet=True).eval()


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_the_first_layer_has_the_mean_and_variance_of_its_input(network: AttentionResNet18):
    cells = images(64)
    measured = with_statistics_of(network, cells)
    x = (torch.from_numpy(cells).permute(0, 3, 1, 2).float() / 255 - network.mean) / network.std
    with torch.no_grad():
        y = network.conv1(x)
    torch.testing.assert_close(measured.bn1.running_mean, y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.bn1.running_var, y.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def test_weights_stay_and_the_given_network_is_not_touched(network: AttentionResNet18):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    measured = with_statistics_of(network, images(40))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in measured.named_parameters())
    assert not measured.training
    assert {m.momentum for m in measured.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_a_site_with_half_the_contrast_looks_like_home(network: AttentionResNet18):
    """Half the contrast about the normalisation's mean is half the first layer's output: its own statistics undo that."""
    home = images(128, seed=1)
    mean = 255 * np.array(network.mean.flatten())
    dark = ((home - mean) / 2 + mean).round().astype(np.uint8)
    at_home = predict(with_statistics_of(network, home), [home], embeddings=True).embedding
    without = predict(with_statistics_of(network, home), [dark], embeddings=True).embedding
    with_own = predict(with_statistics_of(network, dark), [dark], embeddings=True).embedding
    far, near = np.abs(without - at_home).mean(), np.abs(with_own - at_home).mean()
    assert near < 0.1 * far


def test_every_batch_counts_and_the_result_repeats(network: AttentionResNet18):
    cells = images(200)
    one, two = with_statistics_of(network, cells), with_statistics_of(network, cells)
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))
    part = with_statistics_of(network, cells[:100])
    assert not torch.equal(one.bn1.running_mean, part.bn1.running_mean)


def test_too_few_images_are_refused(network: AttentionResNet18):
    with pytest.raises(ValueError, match="31 images are too few"):
        with_statistics_of(network, images(MIN_CELLS - 1))


def test_some_cells_are_distinct_mixed_and_bounded():
    some = some_cells(5000, seed=0)
    assert len(some) == len(set(some)) == MAX_CELLS
    assert sorted(some_cells(50, seed=0)) == list(range(50))
    assert list(some_cells(50, seed=0)) != list(range(50))
