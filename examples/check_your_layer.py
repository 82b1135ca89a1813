"""Does your layer see the future, and does it see all that it should? Two tests say so.

The layers are plain PyTorch; nothing in them knows foveal.

Prints:
    a GRU is causal
    a convolution that is padded on both sides is not: not causal: output 0 moves with input 1 ...
    padded on the left only, it reads exactly the last 3 inputs
    BatchNorm in training lets every output see every input: 64 of 64 pairs
    attention whose window is one too short: 29 pairs lost, first output 3, input 0
"""

import torch
from torch import Tensor, nn

from foveal import patterns as P
from foveal import testing


def main() -> None:
    torch.manual_seed(0)
    gru = nn.GRU(8, 8, batch_first=True).double()
    testing.assert_causal(lambda x: gru(x)[0], 32)
    print("a GRU is causal")

    conv = nn.Conv1d(8, 8, 3).double()

    def padded(x: Tensor, left: int, right: int) -> Tensor:
        return conv(nn.functional.pad(x.mT, (left, right))).mT

    try:
        testing.assert_causal(lambda x: padded(x, 1, 1), 32)
    except AssertionError as error:
        print("a convolution that is padded on both sides is not:", error)
    # a convolution of width 3 should read what a window of 3 reads, no more and no less
    testing.assert_reaches(lambda x: padded(x, 2, 0), P.SlidingWindow(3).mask(32))
    print("padded on the left only, it reads exactly the last 3 inputs")

    norm = nn.BatchNorm1d(8).double()
    found = testing.reach(lambda x: norm(x.mT).mT, 8)
    print(f"BatchNorm in training lets every output see every input: {found.sum()} of 64 pairs")

    attend = testing.attention_fn(P.SlidingWindow(3), 32)
    try:
        testing.assert_reaches(attend, P.SlidingWindow(4).mask(32))
    except AssertionError as error:
        print("attention whose window is one too short:", error)


if __name__ == "__main__":
    main()
