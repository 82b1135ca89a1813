"""Programs that leave without foveal: a model as plain operators of torch, weights included.

from foveal import export
program = export.program(model)          # a torch.export.ExportedProgram
export.check(program, model)             # equal to the model, at sizes that were not traced
export.save(program, model, "model.pt2")  # torch.export.load needs nothing but torch
"""

from foveal.export.check import check
from foveal.export.files import describe, load, save
from foveal.export.inputs import Input, Span, inputs_of
from foveal.export.program import program

__all__ = ["Input", "Span", "check", "describe", "inputs_of", "load", "program", "save"]
