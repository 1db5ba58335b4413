"""3x3 convolutions of small maps as matrix products: the same sums, by what a processor does faster.

The last stages of a small image have maps of 2x2 and 4x4 pixels. There a library's convolution spends its time on borders and on
packing, in the backward pass above all. What is faster differs between processors: wbc_model/network/processors.py has the table.
Weights keep their names and shapes, and an exported network has plain convolutions.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wbc_model.network.processors import Way, way

SIDE: Final = 3  # of the kernel


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and without bias, computed in the way that the processor's table names."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, SIDE, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H / stride, W / stride), rounded up."""
        chosen = "plain" if torch.onnx.is_in_onnx_export() or x.shape[2] != x.shape[3] else way(x, self.stride[0])
        return convolved(x, self.weight, self.stride[0], chosen)


def convolved(x: Tensor, weight: Tensor, stride: int, chosen: Way) -> Tensor:
    """The convolution of `x` (N, C, S, S) with `weight` (channels, C, 3, 3) and padding 1, in one of the ways.

    Under autocast it is computed in autocast's precision, as a plain convolution is. `dense` is for S up to 2.
    """
    if chosen == "plain":
        return F.conv2d(x, weight, None, stride, padding=1)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    product: type[_Unfolded] | type[_Dense] = _Dense if chosen == "dense" else _Unfolded
    result: Tensor = product.apply(x, weight, stride)
    return result


def _patches(x: Tensor, stride: int) -> Tensor:
    """The 3x3 surroundings of each output position of `x` (N, S, S, C): (N * positions, 9 * C)."""
    n, side, _, channels = x.shape
    out = _out(side, stride)
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    image, row, column, channel = padded.stride()
    windows = (n, out, out, SIDE, SIDE, channels), (image, row * stride, column * stride, row, column, channel)
    return padded.as_strided(*windows).reshape(n * out * out, SIDE * SIDE * channels)


def _out(side: int, stride: int) -> int:
    return (side - 1) // stride + 1


def _last(x: Tensor) -> Tensor:
    """(N, C, H, W) with the channels last, (N, H, W, C) without gaps."""
    return x.permute(0, 2, 3, 1).contiguous()


class _Unfolded(torch.autograd.Function):
    """Each output position's surroundings as a row, times the weights as a matrix (im2col)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        last, cast = _last(x), weight.to(x.dtype)
        rows = _patches(last, stride)
        ctx.save_for_backward(rows, cast)
        ctx.side, ctx.stride, ctx.dtype = x.shape[2], stride, weight.dtype
        out = _out(x.shape[2], stride)
        return (rows @ _last(cast).flatten(1).t()).view(len(x), out, out, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        channels, channels_in = weight.shape[:2]
        last = _last(gradient)
        flat = last.flatten(0, 2)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (flat.t() @ rows).view(channels, SIDE, SIDE, channels_in).permute(0, 3, 1, 2).to(ctx.dtype)
        if ctx.needs_input_grad[0] and ctx.stride == 1:  # the same convolution with the kernel turned, in one sum
            turned = weight.flip((2, 3)).permute(1, 2, 3, 0).reshape(channels_in, -1)
            of_x = (_patches(last, 1) @ turned.t()).view(len(last), ctx.side, ctx.side, -1).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            of_x = _folded(flat @ _last(weight).flatten(1), len(last), ctx.side, ctx.stride).permute(0, 3, 1, 2)
        return of_x, of_weight, None


def _folded(rows: Tensor, n: int, side: int, stride: int) -> Tensor:
    """The inverse of `_patches`, which adds up what belongs to the same pixel: (N, S, S, C), summed in float32 or better."""
    out, precise = _out(side, stride), torch.promote_types(rows.dtype, torch.float32)
    taps = rows.view(n, out, out, SIDE, SIDE, -1)
    padded = torch.zeros((n, side + 2, side + 2, taps.shape[-1]), dtype=precise, device=rows.device)
    reach = stride * (out - 1) + 1
    for row in range(SIDE):
        for column in range(SIDE):
            padded[:, row : row + reach : stride, column : column + reach : stride].add_(taps[:, :, :, row, column])
    return padded[:, 1:-1, 1:-1].to(rows.dtype)


class _Dense(torch.autograd.Function):
    """On a map of at most 2x2 every output position sees every pixel: one linear map of the whole image.

    A plain convolution computes the nine taps of four positions, of which 20 of 36 fall on the border.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        side, out = x.shape[2], _out(x.shape[2], stride)
        images, last = _last(x).flatten(1), weight.permute(0, 2, 3, 1)
        matrix = x.new_empty(out, out, len(weight), side, side, x.shape[1])
        for place, taps in _seen(side, stride):
            matrix[place] = last[taps]
        matrix = matrix.view(-1, images.shape[1])
        ctx.save_for_backward(images, matrix)
        ctx.side, ctx.stride, ctx.shape, ctx.dtype = side, stride, weight.shape, weight.dtype
        return (images @ matrix.t()).view(len(x), out, out, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        images, matrix = ctx.saved_tensors
        side, out = ctx.side, _out(ctx.side, ctx.stride)
        channels, channels_in = ctx.shape[:2]
        flat = _last(gradient).flatten(1)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = (flat @ matrix).view(len(flat), side, side, -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            blocks = (flat.t() @ images).view(out, out, channels, side, side, channels_in)
            summed = torch.zeros((channels, SIDE, SIDE, channels_in), dtype=ctx.dtype, device=blocks.device)
            for place, taps in _seen(side, ctx.stride):
                summed[taps].add_(blocks[place])
            of_weight = summed.permute(0, 3, 1, 2)
        return of_x, of_weight, None


def _seen(side: int, stride: int) -> Iterator[tuple[tuple[int, int], tuple[slice, slice, slice]]]:
    """Each output position with the taps by which it sees the whole map, as an index into weights (channels, 3, 3, C)."""
    starts = [1 - stride * place for place in range(_out(side, stride))]
    for row, first in enumerate(starts):
        for column, second in enumerate(starts):
            yield (row, column), (slice(None), slice(first, first + side), slice(second, second + side))
