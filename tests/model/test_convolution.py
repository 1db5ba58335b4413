"""Convolutions of small maps as matrix products, and CBAM's pooling: the sums and the gradients of the plain operations."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import onnx
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wbc_model.network import attention, processors
from wbc_model.network.attention import mean_and_max_of_channels, mean_and_max_of_pixels
from wbc_model.network.convolution import Conv3x3, convolved
from wbc_model.network.processors import TABLE, Way, kind, kind_of, way
from wbc_model.network.resnet import AttentionResNet18

STUDIES = Path(__file__).parents[2] / "studies"
MatrixWay = st.sampled_from(["unfold", "dense"])


def gradients(x: Tensor, weight: Tensor, stride: int, chosen: Way, autocast: bool = False) -> list[Tensor]:
    """The result of a convolution and its gradients by the images and by the weights, for a fixed random gradient."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = convolved(x, weight, stride, chosen)
    onto = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, [x, weight], onto)]


def images_and_weight(n: int, channels: tuple[int, int], side: int, last: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels[0], side, side, generator=generator, dtype=dtype)
    weight = torch.randn(channels[1], channels[0], 3, 3, generator=generator, dtype=dtype)
    layout = torch.channels_last if last else torch.contiguous_format
    return x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 5),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    side=st.integers(1, 6),
    stride=st.integers(1, 2),
    last=st.booleans(),
    chosen=MatrixWay,
)
def test_a_matrix_product_is_the_convolution_and_has_its_gradients(
    n: int, channels: tuple[int, int], side: int, stride: int, last: bool, chosen: Way
) -> None:
    x, weight = images_and_weight(n, channels, min(side, 2) if chosen == "dense" else side, last, torch.float64)
    for ours, plain in zip(gradients(x, weight, stride, chosen), gradients(x, weight, stride, "plain"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("side", "stride", "chosen"), [(2, 1, "dense"), (2, 1, "unfold"), (4, 2, "unfold"), (4, 1, "unfold")])
def test_in_bf16_it_errs_no_more_than_the_plain_one_may_and_repeats_bit_for_bit(side: int, stride: int, chosen: Way) -> None:
    x, weight = images_and_weight(32, (64, 64), side, True, torch.float32)
    truth = gradients(x.bfloat16().double(), weight.bfloat16().double(), stride, "plain")
    ours, again = (gradients(x, weight, stride, chosen, autocast=True) for _ in range(2))
    for result, exact in zip(ours, truth, strict=True):
        off = (result.double() - exact).norm() / exact.norm()
        assert off < 2**-7, "a rounding of bfloat16 or two"
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert ours[0].dtype == torch.bfloat16
    assert ours[2].dtype == torch.float32


def test_it_computes_in_autocasts_precision_or_in_its_inputs() -> None:
    x, weight = images_and_weight(2, (3, 4), 2, True, torch.float32)
    assert convolved(x, weight, 1, "dense").dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert convolved(x, weight, 1, "dense").dtype == convolved(x, weight, 1, "plain").dtype == torch.bfloat16


def network_gradients(monkeypatch: pytest.MonkeyPatch, size: int, plain: bool) -> list[Tensor]:
    """The logits and all gradients of a network on images of `size` pixels."""
    with monkeypatch.context() as patch:
        if plain:
            patch.setitem(processors.TABLE, kind(), {})
            patch.setattr(attention, "_with_places", lambda x: False)
        torch.manual_seed(0)
        network = AttentionResNet18(lossnet=False).double().to(memory_format=torch.channels_last)
        logits = network(torch.rand(3, 3, size, size, dtype=torch.float64)).logits
        logits.square().mean().backward()
    return [logits.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("size", [32, 64])
def test_the_network_learns_what_it_would_with_plain_convolutions(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = network_gradients(monkeypatch, size, False), network_gradients(monkeypatch, size, True)
    assert len(ours) == len(plain) > 60
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_an_exported_network_has_plain_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(processors.TABLE, kind(), {(2, 1): "dense"})
    module = nn.Sequential(Conv3x3(2, 2), Conv3x3(2, 2))
    assert list(module.state_dict()) == ["0.weight", "1.weight"]
    torch.onnx.export(module, (torch.zeros(1, 2, 2, 2),), str(tmp_path / "m.onnx"), dynamo=False)
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node] == ["Conv", "Conv"]


Pool = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.mark.parametrize(("pool", "dims"), [(mean_and_max_of_pixels, (2, 3)), (mean_and_max_of_channels, (1,))])
@pytest.mark.parametrize("last", [True, False])
def test_means_and_largest_values_have_the_gradients_of_the_plain_ones(pool: Pool, dims: Sequence[int], last: bool) -> None:
    x, _ = images_and_weight(3, (5, 1), 4, last, torch.float32)
    results = []
    for function in (pool, lambda x: (x.mean(tuple(dims)), x.amax(tuple(dims)))):
        leaf = x.clone().requires_grad_()
        mean, largest = function(leaf)
        results.append([mean, largest, *torch.autograd.grad(mean.square().sum() + 3 * largest.square().sum(), leaf)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_of_equal_values_one_moves() -> None:
    x = torch.ones(1, 2, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(mean_and_max_of_pixels(x)[1].sum(), x)
    assert sorted(gradient[0, 0].flatten().tolist()) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu amx_tile amx_bf16 avx512_bf16", "amx_bf16"), ("avx2 avx512_bf16", "avx512_bf16"), ("avx2 avx512f", "other")],
)
def test_a_processor_is_known_by_its_features(flags: str, expected: str) -> None:
    assert kind_of(f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n") == expected
    assert kind_of("") == "other"


def test_the_table_is_for_maps_that_its_ways_can_do_and_for_the_processor_alone() -> None:
    assert set(TABLE) == {*processors.KINDS, "other"}
    for chosen in TABLE.values():
        assert all(side <= 2 for (side, _), name in chosen.items() if name == "dense")
    assert way(torch.empty(1, 1, 2, 2, device="meta"), 1) == "plain"
    assert way(torch.empty(1, 1, 99, 99), 1) == "plain"


def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("processors_study", STUDIES / "processors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_what_the_study_found_fastest() -> None:
    measured, fastest = pd.read_csv(STUDIES / "processors/convolutions.csv"), study().fastest
    assert set(measured["kind"]) <= set(TABLE)
    for name, rows in measured.groupby("kind"):
        assert TABLE[str(name)] == fastest(rows), name
