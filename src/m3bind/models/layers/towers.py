"""Small image towers trained from scratch: one residual network for 1-D, 2-D and 3-D input.

n items, C channels in, then 1 to 3 axes; w width of the last stage.
GroupNorm throughout: it has no running statistics, so that a result does not depend on the batch or on earlier
ones. It also removes the absolute level and amplitude of an item (contrast, HU, voltage); these are measured on the
input and concatenated with the pooled maps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut: relu(shortcut(x) + f(x)); the first convolution may stride."""

    def __init__(self, dims: int, in_width: int, width: int, kernel: int, stride: int) -> None:
        """`dims` axes of space or time (1, 2 or 3)."""
        super().__init__()
        conv = _CONVS[dims]
        self.conv1 = conv(in_width, width, kernel, stride, kernel // 2, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = conv(width, width, kernel, 1, kernel // 2, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        same = in_width == width and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else conv(in_width, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_width, *axes) -> (n, width, *axes / stride)."""
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResidualTower(nn.Module):
    """Residual network with average and maximum pooling and the input's own level and amplitude: (n, out_dim)."""

    def __init__(self, dims: int, channels: int, widths: Sequence[int], kernel: int = 3, stem_stride: int = 1) -> None:
        """`widths` are the stages' widths (multiples of 8), each halving every axis; the stem strides before them.

        out_dim = 2 * widths[-1] (mean and maximum of the last maps) + 3 * channels (mean, log spread, log range).
        """
        super().__init__()
        conv = _CONVS[dims]
        wide = 2 * kernel + 1 if dims == 1 else (5 if dims == 2 else 3)
        self.stem = conv(channels, widths[0], wide, stem_stride, wide // 2, bias=False)
        self.stem_norm = nn.GroupNorm(8, widths[0])
        pairs = zip([widths[0], *widths], widths)
        blocks = [ResidualBlock(dims, before, width, kernel, stride=2) for before, width in pairs]
        self.blocks = nn.Sequential(*blocks)
        self.out_dim = 2 * widths[-1] + 3 * channels

    def forward(self, batch: Tensor) -> Tensor:
        """(n, C, *axes) -> (n, out_dim)."""
        maps = self.blocks(F.relu(self.stem_norm(self.stem(batch)))).flatten(2)  # (n, w, positions)
        flat = batch.flatten(2)
        spread = torch.log(flat.std(-1) + 1e-2)
        extent = torch.log(flat.amax(-1) - flat.amin(-1) + 1e-2)
        return torch.cat([maps.mean(-1), maps.amax(-1), flat.mean(-1), spread, extent], dim=1)
