"""Run the notebooks of docs/notebooks from the top and keep what their cells show: make notebooks

A test runs them likewise, in a kernel as a notebook server starts it, and compares.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import queue
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from nbformat.v4 import output_from_msg

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""Of every notebook: nothing that another machine would write otherwise."""

SHOWN = ("stream", "display_data", "execute_result", "error")
COLOURS = 64
ADDRESS = re.compile(r"\bat 0x[0-9a-f]+\b")
SECONDS = 120
"""Most that a cell may take."""


def connection(folder: Path) -> str:
    """The path of a file that tells a kernel and its client where to meet: sockets in a folder."""
    path, _ = write_connection_file(
        str(folder / "kernel.json"), transport="ipc", ip=str(folder / "kernel")
    )
    return path


@contextlib.contextmanager
def connected(path: str) -> Iterator[BlockingKernelClient]:
    """A client of the kernel that starts, or has started, with this file; ends the kernel."""
    client = BlockingKernelClient(connection_file=path)
    client.load_connection_file()
    client.start_channels()
    try:
        _wait(client)
        yield client
    finally:
        client.shutdown()
        client.stop_channels()


def _wait(client: BlockingKernelClient) -> None:
    """Until the kernel answers, and is heard too; the client's own way gives up after a second."""
    end = time.monotonic() + SECONDS
    while True:
        client.kernel_info()
        try:
            client.get_shell_msg(timeout=1)
            client.get_iopub_msg(timeout=1)
            return
        except queue.Empty:
            if time.monotonic() > end:
                raise TimeoutError(f"no kernel has answered in {SECONDS} s.") from None


@contextlib.contextmanager
def kernel() -> Iterator[BlockingKernelClient]:
    """A client of a kernel in a process of its own, that keeps no history."""
    with tempfile.TemporaryDirectory() as folder:
        path = connection(Path(folder))
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", path]
        environment = os.environ | {"IPYTHONDIR": folder}
        quiet = subprocess.DEVNULL  # how to end it
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet) as process:
            try:
                with connected(path) as client:
                    yield client
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()


def run(notebook: Any, client: BlockingKernelClient) -> list[list[Any]]:
    """What each cell of code shows, run one after another from an empty namespace.

    Raises:
        RuntimeError: a cell raised an error, whose traceback is the message.
    """
    outputs_of("%reset -f", client)
    return [outputs_of(cell.source, client) for cell in code_cells(notebook)]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(code: str, client: BlockingKernelClient) -> list[Any]:
    """What one cell shows; pieces of a stream are joined, since they are cut by the clock."""
    outputs: list[Any] = []

    def keep(message: Any) -> None:
        if message["header"]["msg_type"] not in SHOWN:
            return
        output = output_from_msg(message)
        for form, text in output.get("data", {}).items():
            output.data[form] = ADDRESS.sub("at 0x...", text)
        last = outputs[-1] if outputs else {}
        if "name" in output and output.get("name") == last.get("name"):
            last["text"] += output["text"]
        else:
            outputs.append(output)

    reply = client.execute_interactive(code, timeout=SECONDS, output_hook=keep, allow_stdin=False)[
        "content"
    ]
    if reply["status"] != "ok":
        raise RuntimeError("\n".join([code, *reply.get("traceback", ())]))
    return outputs


def keep_outputs(notebook: Any, found: list[list[Any]]) -> None:
    """Put outputs into a notebook, numbered from the top, with pictures made small."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, (cell, outputs) in enumerate(
        zip(code_cells(notebook), found, strict=True), start=1
    ):
        cell.execution_count, cell.outputs = number, outputs
        for output in outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])


def _small(picture: str) -> str:
    """A PNG in base 64 in few colours."""
    from PIL import Image

    image, file = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), io.BytesIO()
    few = image.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(names: list[str]) -> None:
    chosen = [path for path in NOTEBOOKS if not names or path.stem in names]
    with kernel() as client:
        for path in chosen:
            notebook = nbformat.read(path, as_version=4)
            keep_outputs(notebook, run(notebook, client))
            nbformat.validate(notebook)
            nbformat.write(notebook, path)
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
