"""The kernel of another processor, run by an emulator in a process of its own.

`Remote` stands where the loaded library stands: it writes a call and all memory that the call
points to into a file, lets driver.cpp compute under the emulator, and copies what it wrote back.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foveal.ops.native import abi, plans
from foveal.ops.native import flags as native_flags

HERE = Path(__file__).parent
WORD = 8
ALIGNED = 64


class Remote:
    """`foveal_forward` and `foveal_backward` by the program `driver`, started by `emulator`."""

    def __init__(self, driver: Path, emulator: list[str]) -> None:
        self.command = [*emulator, str(driver)]
        self.calls = 0

    def foveal_forward(self, reference: Any) -> int:
        return self._run(reference._obj, backward=False)

    def foveal_backward(self, reference: Any) -> int:
        return self._run(reference._obj, backward=True)

    def _run(self, call: abi.Call, backward: bool) -> int:
        self.calls += 1
        written = list(tensors(call, OUTPUTS[backward]))
        read = tensors(call, {**OUTPUTS[False], **INPUTS} if backward else INPUTS)
        segments = joined([*written, *read, *plan_memory(call)])
        start = 3 * WORD + ctypes.sizeof(call) + 3 * WORD * len(segments)
        table, contents, place = b"", [], -(-start // ALIGNED) * ALIGNED
        for address, size in segments:
            table += words(address, size, place)
            contents.append((place, address, size))
            place = -(-(place + size) // ALIGNED) * ALIGNED
        blob = bytearray(place)
        head = words(backward, ctypes.sizeof(call), len(segments)) + bytes(call) + table
        blob[: len(head)] = head
        for offset, address, size in contents:
            blob[offset : offset + size] = ctypes.string_at(address, size)
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder, "given"), Path(folder, "found")
            given.write_bytes(blob)
            code = subprocess.run([*self.command, given, found], timeout=300).returncode
            if code not in (0, 1):
                raise RuntimeError(f"the emulated kernel ended with {code}.")
            result = found.read_bytes()
        for address, size in joined(written):
            offset = next(o + address - a for o, a, s in contents if a <= address < a + s)
            ctypes.memmove(address, result[offset : offset + size], size)
        return code


def compile_driver(folder: Path, compiler: str, flags: tuple[str, ...]) -> Path:
    """The kernel and driver.cpp as one program for a class of processors."""
    driver = folder / "driver"
    wanted = [flag for flag in (*native_flags.FLAGS, *flags) if flag not in ("-shared", "-fPIC")]
    sources = [native_flags.SOURCE, HERE / "driver.cpp"]
    command = [compiler, *wanted, "-fopenmp", "-Wall", f"-I{native_flags.HERE}", *sources]
    subprocess.run([*command, "-o", driver], check=True)
    return driver


def words(*values: int) -> bytes:
    return b"".join(int(value).to_bytes(WORD, "little") for value in values)


# name -> heads, tokens, features, all by the names of their fields; bytes of an element, or None
# for that of the queries
INPUTS = {
    "q": ("heads", "num_queries", "head_dim", None),
    "k": ("kv_heads", "num_keys", "head_dim", None),
    "v": ("kv_heads", "num_keys", "value_dim", None),
    "rows": ("heads", "num_queries", "window_height", 4),
    "columns": ("heads", "num_queries", "window_width", 4),
    "bias": ("heads", "num_queries", "num_keys", 4),
    "key_mask": ("one", "num_keys", "one", 1),
    "d_out": ("heads", "num_queries", "value_dim", None),
    "d_lse": ("heads", "num_queries", "one", 4),
    "sinks": ("heads", "one", "one", 4),
}
OUTPUTS = {
    False: {"out": INPUTS["d_out"], "lse": INPUTS["d_lse"]},
    True: {
        **{f"d_{name}": INPUTS[name] for name in ("q", "k", "v", "rows", "columns")},
        "d_bias": ("bias_copies", "bias_size", "one", 4),
        "delta": INPUTS["d_lse"],
        "d_table": ("heads", "table_size", "one", 4),
    },
}


def tensors(call: abi.Call, of: dict[str, tuple]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of tensors that a call points to."""
    for name, (count, tokens, width, size) in of.items():
        x = getattr(call, name)
        sizes = (call.batch, *(length(call, field) for field in (count, tokens, width)))
        if isinstance(x, abi.Matrix):
            strides = (x.batch, x.head, x.token, 1)
        elif isinstance(x, abi.Bias):
            strides = (x.batch, x.head, x.query, x.key)
        elif name == "d_table":
            sizes, strides = sizes[1:], (sizes[2], 1, 1)
        elif name == "d_bias":
            sizes, strides = (1, *sizes[1:]), (0, call.bias_size, 1, 1)
        elif name == "sinks":  # all sequences share them
            sizes, strides = (1, *sizes[1:]), (0, 1, 1, 1)
        else:
            strides = (sizes[1] * sizes[2], sizes[2], 1, 1)
        item = size or (2 if call.is_bfloat16 else 4)
        yield (getattr(x, "data", x) or 0), item * extent(sizes, strides)


def length(call: abi.Call, field: str) -> int:
    if field == "one":
        return 1
    if field == "heads":
        return call.kv_heads * call.repeats
    if field == "table_size":
        return call.table.size
    return max(1, call.bias_copies) if field == "bias_copies" else getattr(call, field)


def plan_memory(call: abi.Call) -> Iterator[tuple[int, int]]:
    table, heads = call.table, call.kv_heads * call.repeats
    numbers = table.size + 16 + (heads - 1) * table.head  # a vector more than asked for
    yield table.data or 0, 4 * numbers
    yield table.query or 0, WORD * call.num_queries
    yield table.key or 0, WORD * call.num_keys
    yield address(call.groups), call.num_groups * ctypes.sizeof(abi.Group)
    tiles = sum(call.groups[index].num_tiles for index in range(call.num_groups))
    yield call.order or 0, 2 * WORD * tiles
    yield call.pieces or 0, 2 * WORD * (call.num_pieces + 1)
    for index in range(call.num_groups):
        group = call.groups[index]
        yield from places_memory(group.queries, group.num_tiles)
        yield address(group.keys), group.num_parts * ctypes.sizeof(abi.Places)
        for part in range(group.num_parts):
            yield from places_memory(group.keys[part], group.num_tiles)
        mask = -(-group.tile_q // plans.WORD) * group.tile_k
        yield group.mask or 0, WORD * (mask + (group.num_tiles - 1) * group.mask_step)
        yield group.window_rows or 0, WORD * group.tile_k
        yield group.window_columns or 0, WORD * group.tile_k


def places_memory(places: abi.Places, num_tiles: int) -> Iterator[tuple[int, int]]:
    yield places.tiles or 0, WORD * num_tiles
    yield places.items or 0, WORD * (places.count + (num_tiles - 1) * places.item_step)


def address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def extent(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last one, both included."""
    if 0 in sizes:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def joined(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint (address, bytes), in order; q, k and v are often views of one tensor."""
    found: list[tuple[int, int]] = []
    for start, size in sorted(part for part in parts if part[0] and part[1]):
        if found and start < sum(found[-1]):
            first, before = found[-1]
            found[-1] = (first, max(before, start + size - first))
        else:
            found.append((start, size))
    return found
