"""The decoder's grouped 3 x 3 convolution in several forms, to be timed on a GPU.

Every form takes x (R, S, 8, C), the weight (C, C / G, 3, 3) and the number of groups,
G, and gives (R, S, 8, C), without the bias. `python -m benchmarks.gpu --rows conv`
times them.
"""

import torch
import torch.nn.functional as F

from espnet2_sslam.banded import grouped_conv


def conv2d(x, weight, groups):
    """cuDNN's grouped convolution, channels last in memory (the decoder's form)."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, None, 1, 1, 1, groups).permute(
        0, 2, 3, 1
    )


def conv2d_contiguous(x, weight, groups):
    """The same with channels first in memory."""
    y = F.conv2d(x.permute(0, 3, 1, 2).contiguous(), weight, None, 1, 1, 1, groups)
    return y.permute(0, 2, 3, 1)


def merged(parts):
    """cuDNN with `parts` groups: block-diagonal weights, G / parts times the work."""

    def form(x, weight, groups):
        out_channels, width = weight.shape[:2]
        merge = groups // parts
        blocks = weight.view(parts, merge, width, width, 3, 3)
        eye = torch.eye(merge, dtype=weight.dtype, device=weight.device)
        dense = torch.einsum("pmoihw,mn->pmonihw", blocks, eye)
        return conv2d(x, dense.reshape(out_channels, merge * width, 3, 3), parts)

    form.__name__ = f"merged_{parts}"
    return form


def unfolded(x, weight, groups):
    """Nine shifted copies side by side, one batched product per group."""
    rows, steps, bands, channels = x.shape
    width = channels // groups
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # (R, S, 8, C, 3, 3)
    windows = windows.reshape(-1, groups, width * 9).transpose(0, 1)
    matrix = weight.view(groups, width, width * 9).transpose(1, 2)
    y = torch.bmm(windows, matrix)
    return y.transpose(0, 1).reshape(rows, steps, bands, channels)


def banded(weight, groups, bands=8):
    """Weights of the convolution over frequency as matrices (G, 3, 8 * W, 8 * W).

    Tap t of time: rows (in band, in channel), columns (out band, out channel).
    """
    width = weight.shape[1]
    kernel = weight.view(groups, width, width, 3, 3)  # G, out, in, time, frequency
    shift = torch.zeros(3, bands, bands, dtype=weight.dtype, device=weight.device)
    for tap in range(3):  # output band b takes input band b + tap - 1
        shift[tap] = torch.diag(
            torch.ones(bands - abs(tap - 1), dtype=weight.dtype, device=weight.device),
            1 - tap,
        )
    matrix = torch.einsum("goitf,fab->gtaibo", kernel, shift)
    return matrix.reshape(groups, 3, bands * width, bands * width)


def _by_group(x, groups):
    """(R, S, 8, C) -> (R, S, G, 8 * W)."""
    rows, steps, bands, channels = x.shape
    x = x.view(rows, steps, bands, groups, channels // groups)
    return x.permute(0, 1, 3, 2, 4).reshape(rows, steps, groups, -1)


def _from_groups(y, bands=8):
    """(R, S, G, 8 * W) -> (R, S, 8, C)."""
    rows, steps, groups, _ = y.shape
    y = y.view(rows, steps, groups, bands, -1).permute(0, 1, 3, 2, 4)
    return y.reshape(rows, steps, bands, -1)


def time_taps(x, weight, groups):
    """Frequency as dense matrices; three taps of time side by side in one product."""
    rows, steps = x.shape[:2]
    padded = F.pad(_by_group(x, groups), (0, 0, 0, 0, 1, 1))
    taps = torch.cat([padded[:, k : k + steps] for k in range(3)], -1)
    matrix = banded(weight, groups, x.shape[2]).flatten(1, 2)
    y = torch.bmm(taps.flatten(0, 1).transpose(0, 1), matrix)
    return _from_groups(y.transpose(0, 1).reshape(rows, steps, groups, -1), x.shape[2])


def time_views(x, weight, groups):
    """Frequency as dense matrices; three products on shifted views, no copies of x."""
    rows, steps = x.shape[:2]
    padded = F.pad(_by_group(x, groups), (0, 0, 0, 0, 1, 1))  # (R, S + 2, G, 8W)
    flat = F.pad(padded.flatten(0, 1), (0, 0, 0, 0, 0, 2)).transpose(0, 1)
    matrix = banded(weight, groups, x.shape[2])
    total = rows * (steps + 2)  # the products over the padding are thrown away
    y = torch.bmm(flat[:, :total], matrix[:, 0])
    for tap in (1, 2):
        y = torch.baddbmm(y, flat[:, tap : tap + total], matrix[:, tap])
    y = y.view(groups, rows, steps + 2, -1)[:, :, :steps].permute(1, 2, 0, 3)
    return _from_groups(y, x.shape[2])


FORMS = [conv2d, conv2d_contiguous, *map(merged, (8, 4, 2, 1))]
FORMS += [unfolded, time_taps, time_views]
FORMS.append(grouped_conv)
