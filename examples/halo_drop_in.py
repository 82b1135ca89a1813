"""HaloAttention in the place of halonet-pytorch's: old weights, sizes that need not divide.

The layer has the package's keywords and parameter names, so a state dict loads as it is. Version
0.0.4 of the package trained with an inverted mask; `load_upstream` can reproduce that, or correct
it.

Prints:
    the old weights fit: <All keys matched successfully>
    a map of 37 x 53 pixels gives (1, 64, 37, 53)
    halonet-pytorch-0.0.5 or corrected: the same outputs
    halonet-pytorch-0.0.4, with its inverted mask: other outputs
"""

import tempfile
from pathlib import Path

import torch

import foveal
from foveal import testing

KEYWORDS = {"dim": 64, "block_size": 8, "halo_size": 4, "dim_head": 16, "heads": 4}


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "layer.pt"
    # stands for a checkpoint that halonet_pytorch.HaloAttention(**KEYWORDS) left
    torch.save(foveal.HaloAttention(**KEYWORDS).state_dict(), file)

    layer = foveal.HaloAttention(**KEYWORDS)
    print("the old weights fit:", layer.load_state_dict(torch.load(file, weights_only=True)))
    x = torch.randn(1, 64, 37, 53)
    print("a map of 37 x 53 pixels gives", tuple(layer(x).shape))

    # the weights give block_size + 2 * halo_size, so one of the two has to be said
    options = {"package": "halonet-pytorch", "config": {"block_size": 8}}
    corrected = foveal.load_upstream(file, compat=None, **options)(x)
    for compat in ("halonet-pytorch-0.0.5", "halonet-pytorch-0.0.4"):
        theirs = foveal.load_upstream(file, compat=compat, **options)(x)
        if testing.relative_rms(theirs, corrected) < 1e-6:
            print(f"{compat} or corrected: the same outputs")
        else:
            print(f"{compat}, with its inverted mask: other outputs")
    folder.cleanup()


if __name__ == "__main__":
    main()
