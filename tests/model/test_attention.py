"""Each attention module against its paper's equations by hand, and CBAM and ECA against timm's."""

import math

import pytest
import torch
from torch import nn

from wbc_model.network.attention import CBAM, ECA, SRM


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_eca_by_hand():
    """Two channels, k = 1 (log2(2) / 2 + 1 / 2 = 1): each channel is scaled by σ(w · mean)."""
    eca = ECA(2)
    assert eca.conv.kernel_size == (1,)
    nn.init.constant_(eca.conv.weight, 2.0)
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, -1.0]]]])  # means 2 and -0.5
    expected = torch.tensor([[[[sigmoid(4), 3 * sigmoid(4)]], [[0.0, -sigmoid(-1)]]]])
    torch.testing.assert_close(eca(x), expected)


@pytest.mark.parametrize(("channels", "kernel"), [(64, 3), (128, 5), (256, 5), (512, 5)])
def test_eca_kernel_follows_equation_12(channels: int, kernel: int):
    assert ECA(channels).conv.kernel_size == (kernel,)


def test_srm_by_hand():
    """One channel with values 1 and 3: μ = 2, σ = 1; BN in evaluation mode is the identity up to its epsilon."""
    srm = SRM(1).eval()
    srm.weight.data = torch.tensor([[0.5, -2.0]])
    out = srm(torch.tensor([[[[1.0, 3.0]]]]))
    gate = sigmoid(0.5 * 2 - 2.0 * 1)
    torch.testing.assert_close(out, torch.tensor([[[[gate, 3 * gate]]]]), rtol=1e-4, atol=1e-4)


def test_cbam_by_hand():
    """One channel, hidden size 1, identity MLP: M_c = σ(relu(mean) + relu(max)); the 7x7 kernel only sees its centre."""
    cbam = CBAM(1)
    nn.init.constant_(cbam.squeeze.weight, 1.0)
    nn.init.constant_(cbam.excite.weight, 1.0)
    nn.init.zeros_(cbam.spatial.weight)
    cbam.spatial.weight.data[0, :, 3, 3] = torch.tensor([1.0, 0.5])  # 1 on the mean map, 0.5 on the max map
    out = cbam(torch.tensor([[[[1.0, 3.0]]]]))
    channel = sigmoid(2.0 + 3.0)
    expected = [v * channel * sigmoid(1.5 * v * channel) for v in (1.0, 3.0)]
    torch.testing.assert_close(out, torch.tensor([[[expected]]]))


def test_cbam_equals_timm():
    from timm.layers.cbam import CbamModule

    torch.manual_seed(0)
    ours, theirs = CBAM(64).eval(), CbamModule(64, rd_ratio=1 / 16, rd_divisor=1).eval()
    theirs.channel.fc1.weight.data = ours.squeeze.weight.data[:, :, None, None]
    theirs.channel.fc2.weight.data = ours.excite.weight.data[:, :, None, None]
    theirs.spatial.conv.conv.weight.data = ours.spatial.weight.data
    theirs.spatial.conv.bn.eps = 0.0  # timm adds a batch norm that equation 3 does not have; with these statistics it is 1
    x = torch.randn(3, 64, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("channels", [64, 128, 256, 512])
def test_eca_equals_timm(channels: int):
    from timm.layers import EcaModule

    torch.manual_seed(0)
    ours, theirs = ECA(channels), EcaModule(channels)
    assert theirs.conv.kernel_size == ours.conv.kernel_size
    theirs.conv.weight.data = ours.conv.weight.data
    x = torch.randn(3, channels, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
