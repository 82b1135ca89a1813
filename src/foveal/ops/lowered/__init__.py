"""attend() in plain operators of torch, for programs that leave without foveal.

An opaque operator of ours plans when it runs; a program that runs elsewhere must bring its plan.
While `lowering()` is on, a call that torch.export traces becomes gathers by block, masks in tensor
arithmetic and one softmax over the keys gathered, with batch and length as symbols.
"""

from foveal.ops.lowered.attend import attend_lowered
from foveal.ops.lowered.state import NotLoweredError, is_lowering, lowering

__all__ = ["NotLoweredError", "attend_lowered", "is_lowering", "lowering"]
