"""Programs that leave without foveal: a model as plain operators of torch, weights included.

`save` writes a file that torch.export.load reads, or onnxruntime:

    from foveal import export
    export.save(model, "model.pt2")      # traces, compares, and only then writes
    export.save(model, "model.onnx", "onnx")
    run = export.open_program("model.onnx")  # either, called like the model
    program = export.program(model)      # the same without a file
    export.check(program, model)         # raises unless they agree, at other sizes too
    with export.lowering(): ...          # torch.export of a module of your own
"""

from foveal.export.check import check
from foveal.export.files import describe, load, save
from foveal.export.inputs import Input, Span, inputs_of
from foveal.export.onnx import OnnxProgram
from foveal.export.opened import OpenedProgram, open_program
from foveal.export.program import program
from foveal.ops.lowered import lowering

__all__ = [
    "Input",
    "OnnxProgram",
    "OpenedProgram",
    "Span",
    "check",
    "describe",
    "inputs_of",
    "load",
    "lowering",
    "open_program",
    "program",
    "save",
]
