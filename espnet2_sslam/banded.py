"""The decoder's grouped convolution as plain matrix products, for tensor cores.

cuDNN gives grouped 3 x 3 convolutions of 48 channels a twentieth of a GPU's matrix
rate. The patch grid is only 8 bands high, so a group's convolution over frequency is
multiplied out as a banded matrix (8 W, 8 W): 2.7 times the work, at full rate. Over
time, `taps` neighbouring steps lie side by side in memory: every window of them is a
row of a view, and windows that start `taps` steps apart do not overlap, so that `taps`
products read the input in place.

Shapes: R rows, S time steps, K taps, G groups, W channels of a group, F bands,
L = S + K - 1 steps of a row with its padding.
"""

import torch
import torch.nn.functional as F


def grouped_conv(x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Convolve (R, S, F, C) with weight (C', C / G, K, K), K odd, without a bias.

    Returns:
        (R, S, F, C'), in the type of x; zeros are taken beyond the border.
    """
    rows, steps, bands, channels = x.shape
    taps = weight.shape[-1]
    side = taps // 2
    x = x.view(rows, steps, bands, groups, channels // groups)
    x = F.pad(x.permute(3, 0, 1, 2, 4), (0, 0, 0, 0, side, side))  # (G, R, L, F, W)
    matrix = banded_matrix(weight.to(x.dtype), groups, bands)
    y = _windows_product(x.flatten(3).flatten(1, 2), matrix)
    y = y.view(groups, rows, steps + 2 * side, bands, -1)[:, :, :steps]
    return y.permute(1, 2, 3, 0, 4).reshape(rows, steps, bands, -1)


def banded_matrix(weight: torch.Tensor, groups: int, bands: int) -> torch.Tensor:
    """The weights (C', W, K, K) of a group as a matrix (G, K F W, F W').

    Its rows are (tap of time, input band, input channel), its columns (output band,
    output channel); zero where the bands are further apart than the kernel reaches.
    """
    taps, width = weight.shape[-1], weight.shape[1]
    kernel = weight.view(groups, -1, width, taps, taps)  # G, out, in, time, frequency
    band = torch.arange(bands, device=weight.device)
    tap = torch.arange(taps, device=weight.device)
    distance = band[:, None] - band + taps // 2  # (input band, output band)
    reach = (distance == tap[:, None, None]).to(weight.dtype)  # frequency, in, out
    matrix = torch.einsum("goitf,fab->gtaibo", kernel, reach)
    return matrix.reshape(groups, taps * bands * width, -1)


@torch.library.custom_op("espnet2_sslam::windows_product", mutates_args=())
def _windows_product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Every window of K steps times a matrix: (G, N, A), (G, K A, B) -> (G, N, B).

    Row n is made of the steps n, ..., n + K - 1; the last K - 1 rows are zero.
    """
    groups, length, width = x.shape
    taps = matrix.shape[1] // width
    y = x.new_empty(groups, length, matrix.shape[2])
    y[:, length - taps + 1 :].zero_()
    for first in range(taps):
        count = (length - first) // taps
        window = x[:, first : first + count * taps].view(groups, count, -1)
        out = y[:, first : first + count * taps].view(groups, count, taps, -1)
        torch.bmm(window, matrix, out=out[:, :, 0])
    return y


@_windows_product.register_fake
def _(x, matrix):
    return x.new_empty(x.shape[0], x.shape[1], matrix.shape[2])


@torch.library.custom_op("espnet2_sslam::windows_weight", mutates_args=())
def _windows_weight(x: torch.Tensor, gradient: torch.Tensor, taps: int) -> torch.Tensor:
    """The gradient of the matrix: (G, N, A), (G, N, B) -> (G, K A, B)."""
    groups, length = x.shape[:2]
    kind = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros(groups, taps * x.shape[2], gradient.shape[2], dtype=kind)
    for first in range(taps):
        count = (length - first) // taps
        window = x[:, first : first + count * taps].view(groups, count, -1)
        rows = gradient[:, first : first + count * taps]
        rows = rows.view(groups, count, taps, -1)[:, :, 0]
        total += torch.bmm(window.transpose(1, 2), rows)
    return total.to(x.dtype)


@_windows_weight.register_fake
def _(x, gradient, taps):
    return x.new_empty(x.shape[0], taps * x.shape[2], gradient.shape[2])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    """Of the product: a product with the taps the other way round, and the weights."""
    x, matrix = ctx.saved_tensors
    taps = matrix.shape[1] // x.shape[2]
    gradient = gradient.contiguous()
    of_x = of_matrix = None
    if ctx.needs_input_grad[0]:
        # row n of x has part in the windows n - K + 1, ..., n
        back = matrix.view(len(matrix), taps, x.shape[2], -1).flip(1).transpose(2, 3)
        last = gradient[:, : gradient.shape[1] - taps + 1]  # the others are no windows
        padded = F.pad(last, (0, 0, taps - 1, taps - 1))
        of_x = _windows_product(padded, back.flatten(1, 2))[:, : x.shape[1]]
    if ctx.needs_input_grad[1]:
        of_matrix = _windows_weight(x, gradient, taps)
    return of_x, of_matrix


_windows_product.register_autograd(_backward, setup_context=_save)
