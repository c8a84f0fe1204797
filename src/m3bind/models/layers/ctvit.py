"""CTViT, the image network of CT-CLIP: a volume in patches, attention in space and in time, one code per patch.

n volumes, D slices, t = D / 10 slabs, P = 576 patches of a slab (24 x 24), w = 512 width, K = 8192 codes.

    patches       LayerNorm, Linear, LayerNorm on the 10 x 20 x 20 voxels of each patch      (n, t, 24, 24, w)
    spatial       4 layers of attention among the P patches of a slab, with a bias by relative position
    temporal      4 layers of attention among the t patches at one place
    quantiser     each token is replaced by the nearest row (cosine) of a fixed table         codes (n, t, 24, 24)
    output        mean over t, flattened                                                      (n, 294912)

Differences from a standard transformer, which must stay: keys and values are made from the input before its LayerNorm;
queries and keys are unit vectors with learned factors and a fixed scale of 8; the depthwise convolution of the temporal
layers reads tokens stored as (24, 24, t) as if they were (t, 24, 24), so that its neighbours are not spatial
neighbours.

The table never changes, not even in training: it is a buffer without an update rule. The gradient passes the quantiser
as if it were the identity. Hamamci et al. 2024, https://arxiv.org/abs/2403.17834.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m3bind.errors import ConfigError

SIDE, SLAB, PATCH = 480, 10, 20  # voxels
GRID = SIDE // PATCH
WIDTH, LAYERS, HEADS, HEAD, INNER, CODES = 512, 4, 8, 32, 1365, 8192
FEATURES = GRID * GRID * WIDTH
COSINE_SCALE = 8.0
SEARCHED = 1024  # tokens per comparison with all codes: 32 MB


class CTViT(nn.Module):
    """(n, 1, D, 480, 480) -> (n, 294912); D any multiple of 10."""

    recomputes = True  # training stores the input of each layer only

    def __init__(self) -> None:
        super().__init__()
        voxels = SLAB * PATCH * PATCH
        self.patches = nn.Sequential(Patches(), nn.LayerNorm(voxels), nn.Linear(voxels, WIDTH), nn.LayerNorm(WIDTH))
        self.position_bias = PositionBias()
        self.spatial = Transformer()
        self.temporal = Transformer()
        self.quantiser = Quantiser()

    def forward(self, volumes: Tensor) -> Tensor:
        """(n, 1, D, 480, 480) -> (n, 294912), one volume at a time, so that memory does not depend on n.

        Raises:
            ConfigError: another shape.
        """
        self._check(volumes)
        rows = [self.quantiser(self.tokens(volume[None])).mean(1).flatten(1) for volume in volumes]
        return torch.cat(rows) if rows else volumes.new_zeros(0, FEATURES)

    def codes(self, volumes: Tensor) -> Tensor:
        """(n, 1, D, 480, 480) -> int64 (n, t, 24, 24), which determine the output.

        Raises:
            ConfigError: another shape.
        """
        self._check(volumes)
        return torch.cat([self.quantiser.codes(self.tokens(volume[None])) for volume in volumes])

    def tokens(self, volumes: Tensor) -> Tensor:
        """(n, 1, D, 480, 480) -> (n, t, 24, 24, w), as they enter the quantiser."""
        n, t = volumes.shape[0], volumes.shape[2] // SLAB
        x: Tensor = torch.cat([self.patches(slab) for slab in torch.split(volumes, SLAB, 2)], 1)
        shape = (n, t, GRID, GRID, WIDTH)
        x = self.spatial(x.reshape(n * t, GRID * GRID, WIDTH), shape, self.position_bias())
        x = x.view(shape).permute(0, 2, 3, 1, 4).reshape(n * GRID * GRID, t, WIDTH)
        x = self.temporal(x, shape)
        return x.view(n, GRID, GRID, t, WIDTH).permute(0, 3, 1, 2, 4)

    @staticmethod
    def _check(volumes: Tensor) -> None:
        if volumes.ndim != 5 or volumes.shape[1] != 1 or volumes.shape[3:] != (SIDE, SIDE):
            raise ConfigError(
                f"CT-CLIP takes volumes (n, 1, D, {SIDE}, {SIDE}), this batch is {tuple(volumes.shape)}; "
                "prepare samples with the model's preprocess."
            )
        if volumes.shape[2] == 0 or volumes.shape[2] % SLAB:
            raise ConfigError(
                f"CT-CLIP takes {SLAB} slices together; {volumes.shape[2]} slices cannot be divided so. "
                f"Pad or crop the depth to a multiple of {SLAB}."
            )


class Patches(nn.Module):
    """The voxels of each patch, slice by slice, row by row."""

    def forward(self, volumes: Tensor) -> Tensor:
        """(n, 1, D, H, W) -> (n, t, H / 20, W / 20, 4000)."""
        n, _, depth, height, width = volumes.shape
        x = volumes.reshape(n, depth // SLAB, SLAB, height // PATCH, PATCH, width // PATCH, PATCH)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)


class PositionBias(nn.Module):
    """A bias on attention for each head and pair of patches: a small network on their signed log distances.

    Pairs with the same offset share their value, so the network runs on 47 x 47 offsets, not on 576 x 576 pairs.
    """

    index: Tensor
    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, WIDTH), nn.LeakyReLU(0.1), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.1), nn.Linear(WIDTH, HEADS)
        )
        steps = torch.arange(1 - GRID, GRID, dtype=torch.float32)
        distances = steps.sign() * steps.abs().log1p()
        place = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID))  # (P, 2)
        apart = place[:, None] - place[None] + GRID - 1  # (P, P, 2), 0 and up
        self.register_buffer("offsets", torch.cartesian_prod(distances, distances), persistent=False)
        self.register_buffer("index", apart[..., 0] * (2 * GRID - 1) + apart[..., 1], persistent=False)

    def forward(self) -> Tensor:
        """(1, heads, P, P)."""
        return self.net(self.offsets)[self.index].permute(2, 0, 1)[None]  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Layers and a last norm: (rows, tokens, w) -> the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = HalfNorm(WIDTH)

    def forward(self, x: Tensor, shape: tuple[int, ...], bias: Tensor | None = None) -> Tensor:
        """`shape` (n, t, 24, 24, w) is the view of the tokens, in memory order, that the convolutions read."""
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        for layer in self.layers:  # training stores the input of each layer and recomputes the rest
            x = checkpoint(layer, x, shape, bias, use_reentrant=False) if trains else layer(x, shape, bias)
        return self.norm(x)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Depthwise convolution, attention and gated network, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Conv3d(WIDTH, WIDTH, 3, groups=WIDTH)
        self.attention = Attention()
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * INNER, bias=False),
            GatedGelu(),
            nn.Identity(),  # dropout of the authors' code, at 0
            nn.Linear(INNER, WIDTH, bias=False),
        )

    def forward(self, x: Tensor, shape: tuple[int, ...], bias: Tensor | None) -> Tensor:
        """(rows, tokens, w) -> the same shape; see `Transformer`."""
        grid = F.pad(x.reshape(shape), (0, 0, 1, 1, 1, 1, 2, 0))  # in time: a token and the two before it
        x = x + self.position(grid.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).reshape(x.shape)
        x = x + self.attention(x, bias)
        return x + self.feed_forward(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention by cosines: unit queries and keys with learned factors, times 8."""

    def __init__(self) -> None:
        super().__init__()
        inner = HEADS * HEAD
        self.norm = HalfNorm(WIDTH)
        self.to_q = nn.Linear(WIDTH, inner, bias=False)
        self.to_kv = nn.Linear(WIDTH, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(HEAD))
        self.k_scale = nn.Parameter(torch.ones(HEAD))
        self.to_out = nn.Linear(inner, WIDTH, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(rows, tokens, w) and a bias (1, heads, tokens, tokens) on the scores -> (rows, tokens, w)."""
        parts = (self.to_q(self.norm(x)), *self.to_kv(x).chunk(2, -1))  # keys and values: of x without the norm
        q, k, v = (part.view(*part.shape[:2], HEADS, HEAD).transpose(1, 2) for part in parts)
        q = (F.normalize(q, dim=-1) * self.q_scale).to(v.dtype)
        k = (F.normalize(k, dim=-1) * self.k_scale).to(v.dtype)
        bias = None if bias is None else bias.to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=COSINE_SCALE)
        return self.to_out(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class HalfNorm(nn.Module):
    """LayerNorm with a learned factor; its offset is a constant buffer."""

    bias: Tensor
    eps = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., w) -> (..., w)."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class GatedGelu(nn.Module):
    """The first half of the features times the exact GELU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., 2 f) -> (..., f)."""
        value, gate = x.chunk(2, -1)
        return F.gelu(gate) * value


class Quantiser(nn.Module):
    """Replaces tokens (..., w) by the rows of a fixed table (K, w) that are nearest by cosine."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", F.normalize(torch.randn(CODES, WIDTH), dim=-1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., w) -> (..., w), exactly rows of the table; the gradient reaches `tokens` unchanged."""
        rows = self.table[self.codes(tokens)].to(tokens.dtype)
        return rows + (tokens - tokens.detach()) if tokens.requires_grad else rows

    @torch.no_grad()
    def codes(self, tokens: Tensor) -> Tensor:
        """(..., w) -> int64 (...), compared in float32 also under autocast, since half precision changes near ties."""
        with torch.autocast(tokens.device.type, enabled=False):
            table = F.normalize(self.table.float(), dim=-1).T
            flat = F.normalize(tokens.reshape(-1, WIDTH).float(), dim=-1)
            # An exported graph for any n cannot loop over parts.
            parts = (flat,) if torch.compiler.is_exporting() else torch.split(flat, SEARCHED)
            nearest = [(part @ table).argmax(-1) for part in parts]
        return torch.cat(nearest).view(tokens.shape[:-1])
