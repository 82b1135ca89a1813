"""The convolutions of the picture tokenizers, with dalle-pytorch's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from foveal.models.vae.config import ImageTokenizerConfig


class ResBlock(nn.Module):
    """x + convolutions(x)."""

    def __init__(self, chan: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(chan, chan, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(chan, chan, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(chan, chan, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, chan, height, width) -> same."""
        return x + self.net(x)


def make_encoder(c: ImageTokenizerConfig, dim_out: int) -> nn.Sequential:
    """Pictures -> (batch, dim_out, grid height, grid width)."""
    layers: list[nn.Module] = []
    for i in range(c.num_layers):
        down = nn.Conv2d(c.hidden_dim if i else c.channels, c.hidden_dim, 4, stride=2, padding=1)
        layers.append(nn.Sequential(down, nn.ReLU()))
    layers += [ResBlock(c.hidden_dim) for _ in range(c.num_resnet_blocks)]
    return nn.Sequential(*layers, nn.Conv2d(c.hidden_dim, dim_out, 1))


def make_decoder(c: ImageTokenizerConfig) -> nn.Sequential:
    """(batch, codebook_dim, grid height, grid width) -> pictures."""
    layers: list[nn.Module] = []
    dim = c.codebook_dim
    if c.num_resnet_blocks:
        layers.append(nn.Conv2d(dim, c.hidden_dim, 1))
        layers += [ResBlock(c.hidden_dim) for _ in range(c.num_resnet_blocks)]
        dim = c.hidden_dim
    for i in range(c.num_layers):
        width = c.hidden_dim if i else dim
        up = nn.ConvTranspose2d(width, c.hidden_dim, 4, stride=2, padding=1)
        layers.append(nn.Sequential(up, nn.ReLU()))
    return nn.Sequential(*layers, nn.Conv2d(c.hidden_dim, c.channels, 1))
