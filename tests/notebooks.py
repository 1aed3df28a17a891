"""Executes ``notebooks/`` from clean kernels, and looks at what is committed there.

``python -m tests.notebooks`` runs each in a copy: it fails if a cell raises or a notebook
takes too long, or if a committed one lacks outputs or has some that do not belong into a
repository. ``--save`` keeps the outputs. Names, such as ``01``, choose notebooks.
"""

from __future__ import annotations

import argparse
import getpass
import html
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"
SECONDS = 120.0
"""What a notebook may take on two cores that do nothing else."""

FORMAT = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
"""A notebook's metadata: nothing of the machine that ran it."""

_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|var|usr|opt|Users|work|mnt)/[\w.]")
_TIME_OF_DAY = re.compile(r"\b[012]\d:[0-5]\d:[0-5]\d\b")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def names_of_this_machine() -> set[str]:
    """What would tell where a notebook was run; names as short as ``root`` do not."""
    names = {socket.gethostname(), socket.getfqdn(), getpass.getuser()}
    names |= {str(Path.home()), sys.prefix, str(FOLDER.parent)}
    return {name for name in names if len(name) > 4 and name != "localhost"}


# -- looking at outputs ----------------------------------------------------------------


def complaints(notebook: Any, names: Sequence[str] | set[str] = ()) -> Iterator[str]:
    """What is wrong with a notebook's outputs, cell by cell."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in cells):
        yield "no cell has an output: save it with them"
    for number, cell in enumerate(cells, 1):
        if cell.execution_count != number:
            yield f"code cell {number} was not run in its turn in a clean kernel"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} raised {output.ename}: {output.evalue}"
            for text in _texts(output):
                for found in _unwanted(text, names):
                    yield f"code cell {number} shows {found!r}"
    if {**notebook.metadata} != FORMAT:
        yield "its metadata are not clean: save it by this program"


def _texts(output: Any) -> Iterator[str]:
    yield output.get("text", "")
    for kind, data in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            yield str(data)


def _unwanted(text: str, names: Sequence[str] | set[str]) -> Iterator[str]:
    text = _COLOURS.sub("", text)
    for pattern in (_PATH, _TIME_OF_DAY):
        for match in pattern.finditer(text):
            yield text[match.start() : match.end() + 20].split()[0]
    yield from (name for name in names if name in text)


# -- running ---------------------------------------------------------------------------


def run(path: Path, seconds: float) -> Any:
    """Execute a copy, from a clean kernel in a folder of its own; the result.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises.
        nbclient.exceptions.CellTimeoutError: If all takes longer than that.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        _execute(notebook, folder, seconds)
    notebook.metadata = nbformat.from_dict(FORMAT)
    return notebook


def _execute(notebook: Any, folder: str, seconds: float) -> None:
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    kernel = AsyncKernelManager(kernel_name="python3")
    # Whatever kernels are installed: this interpreter's.
    kernel.kernel_spec.argv[0] = sys.executable
    client = NotebookClient(
        notebook,
        km=kernel,
        resources={"metadata": {"path": folder}},
        record_timing=False,  # times of day
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # loopback is not encrypted
    )
    end = time.monotonic() + seconds
    # What is left of the time, whichever cell takes it.
    client.timeout_func = lambda _cell: max(1.0, end - time.monotonic())
    # In a thread of its own: nbclient starts an event loop, which stays the thread's.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(client.execute).result()
    _write_out_widgets(notebook, client.widget_state)


# A widget needs the kernel that made it. What it showed at last is kept as text.

_VIEW = "application/vnd.jupyter.widget-view+json"


def _write_out_widgets(notebook: Any, widgets: dict[str, dict[str, Any]]) -> None:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            view = output.get("data", {}).pop(_VIEW, None)
            if view is not None:
                output.data["text/plain"] = _shown(view["model_id"], widgets)


def _shown(model: str, widgets: dict[str, dict[str, Any]]) -> str:
    """What tqdm's box of texts and a bar looks like as text."""
    state = widgets[model]
    if "children" in state:
        parts = [each.removeprefix("IPY_MODEL_") for each in state["children"]]
        return "".join(_shown(part, widgets) for part in parts).strip()
    value = state.get("value", "")
    if "max" not in state:
        return html.unescape(str(value))
    filled = round(20 * value / (state["max"] or 1))
    return f"|{'█' * filled}{' ' * (20 - filled)}|"


# -- the program -----------------------------------------------------------------------


def main() -> int:
    """Run or save what was chosen; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, prog="tests.notebooks")
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01")
    parser.add_argument("--save", action="store_true", help="keep the outputs")
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="what each may take; default: %(default)g",
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="default: %(default)s"
    )
    options = parser.parse_args()
    paths = [
        path
        for path in sorted(options.folder.glob("*.ipynb"))
        if path.name.startswith(tuple(options.names or [""]))
    ]
    if not paths:
        parser.error(f"there is no such notebook in {options.folder}")
    return max([_treat(path, options.seconds, save=options.save) for path in paths])


def _treat(path: Path, seconds: float, *, save: bool) -> int:
    """Run one, and say what is wrong; 0 if nothing is. ``save`` keeps its outputs then."""
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    start = time.monotonic()
    wrong = []
    if not save:
        committed = nbformat.read(path, as_version=4)
        wrong += [f"as committed: {each}" for each in complaints(committed)]
    try:
        notebook = run(path, seconds)
    except (CellExecutionError, CellTimeoutError) as error:
        wrong.append(_COLOURS.sub("", str(error)))
    else:
        wrong += complaints(notebook, names_of_this_machine())
        if save and not wrong:
            nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)
    for each in wrong:
        print(f"  {each}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
