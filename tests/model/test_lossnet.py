"""LossNet and its ranking loss by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wbc_model.network.lossnet import LossNet, ranking_accuracy, ranking_loss
from wbc_model.network.resnet import AttentionResNet18


def test_ranking_loss_even_batch_is_the_papers_mean_over_disjoint_pairs():
    """Pairs (0, 2) and (1, 3), margin 1: 0 ranks right by 3 (loss 0), 1 ranks wrong by 0.5 (loss 1.5)."""
    actual = torch.tensor([2.0, 1.0, 0.5, 0.2])
    predicted = torch.tensor([4.0, 0.0, 1.0, 0.5])
    torch.testing.assert_close(ranking_loss(predicted, actual), torch.tensor((0.0 + 1.5) / 2))


def test_ranking_loss_odd_batch():
    """Three samples, pairs (0, 2), (1, 0), (2, 1) by cyclic shift; margin 1."""
    actual = torch.tensor([3.0, 2.0, 1.0])
    predicted = torch.tensor([0.0, 0.0, 0.0])
    torch.testing.assert_close(ranking_loss(predicted, actual), torch.tensor(1.0))
    predicted = torch.tensor([1.0, 0.5, 0.0])  # right by 1, 0.5, 0.5: losses 0, 0.5, 0.5
    torch.testing.assert_close(ranking_loss(predicted, actual), torch.tensor(1.0 / 3))


def test_ranking_loss_of_one_sample_is_zero_and_has_a_gradient():
    predicted = torch.tensor([1.0], requires_grad=True)
    ranking_loss(predicted, torch.tensor([2.0])).backward()
    assert predicted.grad is not None
    assert predicted.grad.item() == 0


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=17), st.integers(0, 2**31))
def test_ranking_loss_needs_no_more_than_the_right_order_with_margin(actual: list[float], seed: int):
    target = torch.tensor(actual, dtype=torch.float64)
    order = target.argsort().argsort().double() * 2  # neighbours two apart: every margin of 1 is kept
    loss = ranking_loss(order, target)
    ties = (target == target.roll(len(actual) // 2)).double().mean()  # sign 0 leaves the margin itself
    torch.testing.assert_close(loss, ties)


def test_no_gradient_into_the_targets():
    actual = torch.tensor([1.0, 2.0], requires_grad=True)
    ranking_loss(torch.tensor([1.0, 0.0], requires_grad=True), actual).backward()
    assert actual.grad is None


def test_ranking_accuracy_by_hand():
    actual = torch.tensor([1.0, 2.0, 3.0])
    assert ranking_accuracy(torch.tensor([0.0, 1.0, 2.0]), actual) == pytest.approx(1.0)
    assert ranking_accuracy(torch.tensor([2.0, 1.0, 0.0]), actual) == pytest.approx(0.0)
    assert ranking_accuracy(torch.zeros(3), actual) == pytest.approx(0.5)
    assert ranking_accuracy(torch.tensor([1.0, 0.0, 2.0]), actual) == pytest.approx(2 / 3)
    assert math.isnan(ranking_accuracy(torch.zeros(2), torch.ones(2)))


def test_lossnet_by_hand_and_to_the_same_digit_under_autocast():
    """Means 2.001 and -1 + 4, each through a ReLU: 2 · 2.001 + 3 · 3 + 1/2; of the second image -2 counts as 0."""
    lossnet = LossNet((1, 2), hidden=1)
    for parameter in lossnet.parameters():
        torch.nn.init.ones_(parameter) if parameter.ndim > 1 else torch.nn.init.zeros_(parameter)
    lossnet.head.weight.data, lossnet.head.bias.data = torch.tensor([[2.0, 3.0]]), torch.tensor([0.5])
    features = [torch.tensor([[[[1.0, 3.002]]], [[[-1.0, -3.0]]]]), torch.tensor([[[[-1.0]], [[4.0]]]]).repeat(2, 1, 1, 1)]
    plain = lossnet(features)
    torch.testing.assert_close(plain, torch.tensor([13.502, 9.5]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lossnet(features), plain)


def test_lossnet_takes_any_image_size():
    lossnet = LossNet()
    for side in (2, 7):
        assert lossnet([torch.randn(3, c, side, side) for c in (64, 128, 256, 512)]).shape == (3,)


def test_stopping_the_gradient_spares_the_backbone():
    network = AttentionResNet18("none")
    images = torch.rand(4, 3, 32, 32)
    network(images, lossnet_gradient=False).predicted_loss.sum().backward()
    assert network.layer4[1].conv2.weight.grad is None
    assert network.lossnet.head.weight.grad is not None
    network(images, lossnet_gradient=True).predicted_loss.sum().backward()
    assert network.conv1.weight.grad.abs().sum() > 0
