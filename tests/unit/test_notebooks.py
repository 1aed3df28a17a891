"""The notebooks as they are committed, and what their runner would not let pass."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests import notebooks

pytestmark = pytest.mark.skipif(find_spec("nbformat") is None, reason="needs nbformat")

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_has_outputs_fit_to_be_seen(path):
    nbformat = import_module("nbformat")  # takes seconds: not for all other tests
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(notebooks.complaints(notebook)) == []
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    lines = "\n".join(texts).splitlines()
    assert [line for line in lines if line.startswith("# ")] == lines[:1]  # one title


def test_there_are_notebooks():
    assert PATHS[0].name == "01-quickstart.ipynb"


def made(*outputs, metadata=notebooks.FORMAT, count=1):
    """A notebook of one cell with these outputs, each as keywords for what makes it."""
    v4 = import_module("nbformat.v4")
    outputs = [v4.new_output(**each) for each in outputs]
    cell = v4.new_code_cell("1", execution_count=count, outputs=outputs)
    return v4.new_notebook(cells=[cell], metadata=metadata)


def printed(text):
    return {"output_type": "stream", "text": text}


def test_what_is_well_is_let_pass():
    result = {
        "output_type": "execute_result",
        "data": {"text/plain": "array of /shape/"},
    }
    bar = printed("100%|██████████| 9/9 [00:01<00:00, 7.1row/s] 1.5 MB/s, and/or\n")
    assert list(notebooks.complaints(made(result, bar), {"myhost"})) == []


@pytest.mark.parametrize(
    ("outputs", "settings", "told"),
    [
        ((), {}, "no cell has an output"),
        ([printed("1")], {"count": 2}, "code cell 1 was not run in its turn"),
        ([printed("1")], {"count": None}, "code cell 1 was not run"),
        (
            [{"output_type": "error", "ename": "OSError", "evalue": "x"}],
            {},
            "raised OSError: x",
        ),
        ([printed("in /home/me/x.py now")], {}, "shows '/home/me/x.py'"),
        ([printed("at 23:59:01")], {}, "shows '23:59:01'"),
        ([printed("it is \x1b[31mmyhost\x1b[0m")], {}, "shows 'myhost'"),
        (
            [{"output_type": "display_data", "data": {"text/html": "<b>/tmp/x</b>"}}],
            {},
            "shows '/tmp/x</b>'",
        ),
        ([printed("1")], {"metadata": {"kernel": "3.11"}}, "not clean"),
    ],
)
def test_what_does_not_belong_into_a_repository_is_told(outputs, settings, told):
    (complaint,) = notebooks.complaints(made(*outputs, **settings), {"myhost"})
    assert told in complaint


def test_of_widgets_stays_what_they_showed_at_last():
    widgets = {
        "box": {"children": ["IPY_MODEL_left", "IPY_MODEL_bar", "IPY_MODEL_right"]},
        "left": {"value": "100%"},
        "bar": {"value": 30, "max": 40},
        "right": {"value": " 30/40 [00:01&lt;00:00]"},
    }
    view = {"model_id": "box", "version_major": 2}
    data = {notebooks._VIEW: view, "text/plain": "  0%|"}
    notebook = made({"output_type": "display_data", "data": data})
    notebooks._write_out_widgets(notebook, widgets)
    shown = "100%|███████████████     | 30/40 [00:01<00:00]"
    assert notebook.cells[0].outputs[0].data == {"text/plain": shown}


@pytest.mark.stress
def test_a_notebook_runs_in_a_copy_and_is_saved_only_if_all_is_well(tmp_path):
    nbformat, v4 = import_module("nbformat"), import_module("nbformat.v4")
    good, bad = tmp_path / "01.ipynb", tmp_path / "02.ipynb"
    cells = ["open('left', 'w').close()", "import os; sorted(os.listdir())"]
    notebook = v4.new_notebook(cells=[v4.new_code_cell(each) for each in cells])
    nbformat.write(notebook, good)
    notebook.cells[0].source = "raise ValueError('on purpose')"
    nbformat.write(notebook, bad)
    before = bad.read_bytes()

    done = subprocess.run(
        [sys.executable, "-m", "tests.notebooks", "--folder", tmp_path, "--save"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    told = done.stdout.partition("02.ipynb")
    assert "ValueError: on purpose" in told[2]
    assert len(told[0].splitlines()) == 1  # nothing is wrong with the first
    saved = nbformat.read(good, as_version=4)
    assert saved.cells[1].outputs[0].data["text/plain"] == "['01.ipynb', 'left']"
    assert bad.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == [good.name, bad.name]
