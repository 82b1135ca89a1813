"""Programs as ONNX: what `program` gives, for onnxruntime and whoever else reads it."""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from foveal.common.inputs import require_file
from foveal.common.packages import need

FACTS = "foveal"
"""Key of our note, a JSON object, among the metadata of an ONNX file."""

_MOST_BYTES = 2_000_000_000
_LOUD = ("torch.onnx", "onnxscript", "onnx_ir")
_ERRORS_ALONE = 3  # of onnxruntime's levels


def need_onnx(dtype: torch.dtype | None, weights: Iterable[Tensor] = ()) -> None:
    """Whether an ONNX file of such weights can be made, asked before the long work begins.

    Raises:
        ModuleNotFoundError: a package of the extra onnx is missing.
        ValueError: onnxruntime, by which the file is compared, has no such numbers, or there are
            more than one file holds.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, "a program as ONNX")
    if dtype == torch.bfloat16:
        raise ValueError(
            "onnxruntime computes nothing in bfloat16 on a CPU, where programs are compared; load "
            "the model with dtype='float32', or use format='torch'."
        )
    size = sum(x.numel() * x.element_size() for x in weights)
    if size > _MOST_BYTES:
        raise ValueError(
            f"an ONNX file holds at most {_MOST_BYTES:,} bytes, and the weights have {size:,}; "
            "use format='torch'."
        )


def to_onnx(program: ExportedProgram, about: Mapping[str, Any]) -> Any:
    """A program as an onnx.ModelProto, weights and all; sizes that vary have their names in it.

    Args:
        about: what `describe` says of it.

    Raises:
        ModuleNotFoundError: a package of the extra onnx is missing.
        ValueError: weights of more than ONNX has in one file, or in bfloat16, or an operator that
            it lacks.
    """
    need_onnx(getattr(torch, about["dtype"]), _distinct(program))
    inputs, results = about["inputs"], program.graph_signature.user_outputs
    with quiet(*_LOUD):
        try:
            found: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[one["name"] for one in inputs],
                output_names=["output"] if len(results) == 1 else None,
                custom_translation_table={operator.floordiv: _floor_of_quotient},
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f"ONNX cannot say this program: {_first_line(error)}") from error
        _name_sizes(found.model, inputs)
        _choose_by_logic(found.model)
        return found.model_proto


def _distinct(program: ExportedProgram) -> Iterator[Tensor]:
    """What a program holds: its weights, and the tables of its plans."""
    seen: set[int] = set()
    for x in chain(program.state_dict.values(), program.constants.values()):
        if isinstance(x, Tensor) and x.data_ptr() not in seen:
            seen.add(x.data_ptr())
            yield x


def serialized(graph: Any) -> bytes:
    """An onnx.ModelProto as the bytes of a file.

    Raises:
        ValueError: they are more than one file holds.
    """
    from google.protobuf.message import EncodeError

    try:
        written: bytes = graph.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ValueError(
            f"an ONNX file holds at most {_MOST_BYTES:,} bytes, and this program has more "
            f"({_first_line(error)}); use format='torch'."
        ) from error
    return written


def with_note(graph: Any, about: Mapping[str, Any]) -> bytes:
    """The file of an onnx.ModelProto that tells what it is; see `OnnxProgram.about`."""
    note = graph.metadata_props.add()
    note.key, note.value = FACTS, json.dumps(dict(about))
    return serialized(graph)


class OnnxProgram:
    """An ONNX program in onnxruntime, on the CPU.

    Args:
        source: its file, or its bytes.

    Attributes:
        about: what `describe` said of it when it was written; {} in a file of somebody else.

    Raises:
        ModuleNotFoundError: onnxruntime is missing.
        ValueError: there is no such file, or it is no ONNX program that onnxruntime runs.
    """

    def __init__(self, source: str | Path | bytes) -> None:
        onnxruntime: Any = need("onnxruntime", "running an ONNX program")
        if not isinstance(source, bytes):
            source = str(require_file(source, "an ONNX program"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ALONE
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own, which have no common base
            name = "these bytes" if isinstance(source, bytes) else repr(source)
            raise ValueError(
                f"{name} must be an ONNX program that onnxruntime runs: {_first_line(error)}"
            ) from error
        self.about = _about_in(self._session.get_modelmeta().custom_metadata_map)
        self._names = [one.name for one in self._session.get_inputs()]

    def __repr__(self) -> str:
        told = (f"{one.name} {one.shape} {one.type}" for one in self._session.get_inputs())
        return f"OnnxProgram({', '.join(told)})"

    def __call__(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs for inputs, a tensor or a tuple of them; shapes and dtypes as of the model.

        Raises:
            ValueError: other inputs than it has, or such as it refuses.
        """
        tensors = {**dict(zip(self._names, inputs, strict=False)), **named}
        if len(inputs) + len(named) != len(self._names) or set(tensors) != set(self._names):
            raise ValueError(
                f"the program has {len(self._names)} inputs ({', '.join(self._names)}), got "
                f"{len(inputs) + len(named)}."
            )
        given = {name: x.detach().cpu().numpy() for name, x in tensors.items()}
        try:
            found = self._session.run(None, given)
        except Exception as error:
            raise ValueError(f"onnxruntime refuses the inputs: {_first_line(error)}") from error
        outputs = tuple(torch.from_numpy(one) for one in found)
        return outputs[0] if len(outputs) == 1 else outputs


def _floor_of_quotient(count: Any, size: Any) -> Any:
    """count // size of sizes in operators of ONNX, whose Div of a negative number rounds up: as in
    -(-count // size), the number of blocks that a length fills."""
    from onnxscript import opset18 as op

    return op.Div(op.Sub(count, op.Mod(count, size)), size)


def _name_sizes(model: Any, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Give the symbols of sizes the names that the inputs have for them: batch, length."""
    names: dict[str, str] = {}
    for value, one in zip(model.graph.inputs, inputs, strict=True):
        for dim, name in zip(value.shape or (), one["sizes"], strict=True):
            if not isinstance(dim, int):
                names.setdefault(str(dim.value), name)
    words = re.compile("|".join(rf"\b{re.escape(one)}\b" for one in names) or "(?!)")
    # of what lies between, onnxruntime finds the shapes itself: those that are noted give one name
    # to sizes that differ, and it would use memory of the one for the other
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            renamed = [
                dim if isinstance(dim, int) else words.sub(lambda x: names[x[0]], str(dim.value))
                for dim in value.shape
            ]
            value.shape = type(value.shape)(renamed)


def _choose_by_logic(model: Any) -> None:
    """Write a choice between truths as And and Or: onnxruntime has no Where of them."""
    import onnx_ir

    truth = onnx_ir.DataType.BOOL
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Where" or truth not in (node.outputs[0].dtype, node.inputs[1].dtype):
            continue

        def made(kind: str, *operands: Any, node: Any = node) -> Any:
            new = onnx_ir.Node("", kind, operands, num_outputs=1)
            new.outputs[0].dtype = truth
            node.graph.insert_before(node, new)
            return new.outputs[0]

        chosen, yes, no = node.inputs
        either = made("Or", made("And", chosen, yes), made("And", made("Not", chosen), no))
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], either)
        node.graph.remove(node, safe=True)


def _about_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(FACTS, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_line(error: Exception) -> str:
    """What a package says of its trouble, without the traces that follow."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)[:300]


@contextlib.contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """No word of packages about their own code."""
    loggers = [logging.getLogger(name) for name in packages]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
