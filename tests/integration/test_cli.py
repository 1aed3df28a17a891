"""The command line, through ``main`` and as a real process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import shmexec
from shmexec.cli import main
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

MODEL = """
import os
import signal
import sys
from pathlib import Path

import numpy as np
import helper

class Net:
    def predict(self, batch):
        return batch.sum(axis=1)

class OddError(Exception):
    pass

net = Net()
number = 5

def predict(batch):
    return batch * helper.FACTOR

def to_lists(batch):
    return batch[:, 0].tolist()

def fails(batch):
    if 40 in batch[:, 0]:
        raise ValueError("row 40\\nis bad")
    return batch

def fails_oddly(batch):
    raise OddError("odd")

def too_few(batch):
    return batch[:-1]

def reshaped(batch):
    return np.zeros((len(batch), 3 if 40 in batch[:, 0] else 2))

def retyped(batch):
    return np.zeros(len(batch), "f4" if 40 in batch[:, 0] else "f8")

def objects(batch):
    return np.array([None] * len(batch))

def nothing(batch):
    return None

def writes(batch):
    batch[:] = 0
    return batch

def dies(batch):
    os.kill(os.getpid(), signal.SIGKILL)

def sleeps(batch):
    Path(__file__).with_name("asleep").touch()
    while True:
        signal.pause()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a script and an input of 100 rows, as the current one."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "helper.py").write_text("FACTOR = 3\n")
    np.save(tmp_path / "input.npy", rows())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def rows():
    return np.arange(100.0).reshape(100, 1) * np.ones(4)


def run(*argv, target="model.py:predict", source="input.npy", output="output.npy"):
    argv = ("--workers", "2", "--batch-size", "16", *argv)
    return main(["run", target, str(source), "-o", str(output), *argv])


def one_error(capsys, *patterns):
    """Check that stderr has one line, and that stdout is empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("shmexec")
    assert "error: " in lines[0]
    for pattern in patterns:
        assert re.search(pattern, lines[0]), lines[0]


def files(folder):
    return {path.name for path in folder.iterdir() if path.name != "__pycache__"}


SOURCES = {"model.py", "helper.py", "input.npy"}


# ---- what works


def test_run(folder, capsys):
    assert run("--timeout", "60") == 0
    np.testing.assert_array_equal(np.load("output.npy"), rows() * 3)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert re.fullmatch(
        r"100 rows in \d+\.\d\d s \([\d,]+ rows/s\) -> output\.npy, "
        r"shape \(100, 4\), float64\n",
        captured.out,
    )
    assert files(folder) == {*SOURCES, "output.npy"}


def test_default_batch_size(folder):
    assert main(["run", "model.py:predict", "input.npy", "-o", "output.npy"]) == 0
    np.testing.assert_array_equal(np.load("output.npy"), rows() * 3)


@pytest.mark.parametrize("target", ["model.py:net.predict", "model.py:to_lists"])
def test_other_functions(folder, target):
    assert run(target=target) == 0
    expected = rows().sum(axis=1) if "net" in target else rows()[:, 0]
    np.testing.assert_array_equal(np.load("output.npy"), expected)


def test_structured_and_fortran_input(folder):
    np.save("records.npy", np.zeros((20,), [("a", "f8"), ("b", "i4")]))
    np.save("columns.npy", np.asfortranarray(rows()))
    (folder / "own.py").write_text("def same(batch):\n    return batch\n")
    for name in ("records.npy", "columns.npy"):
        assert run(source=name, target="own.py:same") == 0
        np.testing.assert_array_equal(np.load("output.npy"), np.load(name))


def test_output_is_replaced_and_links_are_followed(folder):
    (folder / "real.npy").write_bytes(b"old")
    (folder / "link.npy").symlink_to("real.npy")
    assert run(output="link.npy") == 0
    assert (folder / "link.npy").is_symlink()
    np.testing.assert_array_equal(np.load("real.npy"), rows() * 3)


def test_output_has_ordinary_permissions(folder):
    before = os.umask(0o027)
    try:
        assert run() == 0
    finally:
        os.umask(before)
    assert (folder / "output.npy").stat().st_mode & 0o777 == 0o640


def test_a_script_named_like_a_known_module(folder):
    (folder / "random.py").write_text("def same(batch):\n    return batch\n")
    assert run(target="random.py:same") == 0


def test_progress(folder, capsys):
    pytest.importorskip("tqdm")
    assert run("--progress") == 0
    assert "100/100" in capsys.readouterr().err


def test_progress_without_tqdm(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run("--progress") == 2
    one_error(capsys, "needs tqdm")
    assert files(folder) == SOURCES


# ---- bad arguments: exit code 2, nothing written


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        ("model.py", "script.py:function, not 'model.py'"),
        (":predict", "script.py:function"),
        ("model.py:", "script.py:function"),
        ("model.py:a b", "script.py:function"),
        ("model:predict", r"must be a \.py file"),
        ("missing.py:predict", "missing.py does not exist"),
        ("folder.py:predict", "folder.py is not a file"),
        ("model.py:missing", "model.py has no function 'missing'; it has .*predict"),
        ("model.py:number", "'number' in model.py is a int, not a function"),
        ("broken.py:predict", "cannot load broken.py: ModuleNotFoundError: .*nowhere"),
        ("typo.py:predict", "cannot load typo.py: SyntaxError"),
        ("exits.py:predict", "cannot load exits.py: SystemExit: 3"),
        ("dies.py:predict", "cannot load dies.py: WorkerDied: .*code 7"),
    ],
)
def test_bad_target(folder, capsys, target, pattern):
    scripts = {
        "broken.py": "import nowhere_at_all",
        "typo.py": "def predict(:",
        "exits.py": "raise SystemExit(3)",
        "dies.py": "import os; os._exit(7)",
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
    (folder / "folder.py").mkdir()
    assert run(target=target) == 2
    one_error(capsys, pattern)
    assert files(folder) == {*SOURCES, *scripts, "folder.py"}


def npy_objects(path):
    np.save(path, np.array([None, "x"]), allow_pickle=True)


def npy_archive(path):
    with open(path, "wb") as file:
        np.savez(file, x=rows())


def npy_truncated(path):
    np.save(path, rows())
    os.truncate(path, path.stat().st_size - 100)


def npy_header_only(path):
    np.save(path, rows())
    os.truncate(path, 20)


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda path: None, "bad.npy: No such file"),
        (Path.mkdir, "bad.npy: Is a directory"),
        (lambda path: path.write_bytes(b""), "not a .npy file"),
        (lambda path: path.write_text("1,2,3\n" * 100), "not a .npy file"),
        (npy_objects, "holds Python objects"),
        (npy_archive, "an .npz archive"),
        (npy_truncated, r"truncated: shape \(100, 4\) .* needs 3,200 bytes.* 3,100"),
        (npy_header_only, "cannot read input bad.npy"),
        (lambda path: np.save(path, np.float64(3)), r"no rows .*\(\)"),
        (lambda path: np.save(path, np.zeros((0, 4))), r"no rows .*\(0, 4\)"),
    ],
    ids=range(10),
)
def test_bad_input(folder, capsys, make, pattern):
    make(folder / "bad.npy")
    before = files(folder)
    assert run(source="bad.npy") == 2
    one_error(capsys, pattern)
    assert files(folder) == before


@pytest.mark.parametrize(
    ("output", "pattern"),
    [
        ("missing/output.npy", "folder .*/missing does not exist"),
        (".", "is a directory"),
        ("input.npy", "is the input file"),
        ("./link.npy", "is the input file"),
        ("/dev/null", "not a regular file"),
        # Even root cannot make a file here.
        ("/proc/self/output.npy", "cannot write to the output's folder /proc"),
    ],
)
def test_bad_output(folder, capsys, output, pattern):
    (folder / "link.npy").symlink_to("input.npy")
    assert run(output=output) == 2
    one_error(capsys, pattern)
    assert files(folder) == {*SOURCES, "link.npy"}
    np.testing.assert_array_equal(np.load("input.npy"), rows())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_without_permission(folder, capsys):
    (folder / "locked").mkdir(mode=0o500)
    assert run(output="locked/output.npy") == 2
    one_error(capsys, "cannot write .*locked: Permission denied")


@pytest.mark.parametrize(
    ("option", "value", "pattern"),
    [
        ("--workers", "0", "at least 1, not '0'"),
        ("--workers", "1000000", "at most 4096, not 1000000"),
        ("--workers", "two", "at least 1, not 'two'"),
        ("--batch-size", "0", "at least 1"),
        ("--batch-size", "-5", "at least 1"),
        ("--batch-size", "1.5", "at least 1"),
        ("--timeout", "0", "greater than 0"),
        ("--timeout", "nan", "greater than 0"),
        ("--timeout", "soon", "greater than 0"),
        ("--nonsense", "1", "unrecognized arguments"),
    ],
)
def test_bad_options(folder, capsys, option, value, pattern):
    assert run(f"{option}={value}") == 2
    one_error(capsys, pattern, "see shmexec")
    assert files(folder) == SOURCES


def test_missing_arguments(capsys):
    assert main(["run", "model.py:predict"]) == 2
    one_error(capsys, "required: INPUT.npy, -o/--output")


def test_bad_default_workers(folder, capsys, monkeypatch):
    monkeypatch.setenv("SHMEXEC_WORKERS", "many")
    assert main(["run", "model.py:predict", "input.npy", "-o", "output.npy"]) == 2
    one_error(capsys, "SHMEXEC_WORKERS .*'many'")
    assert files(folder) == SOURCES


# ---- failing batches: exit code 1, nothing written

WHERE = "batch 2, rows 32:48"


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("fails", [WHERE, "ValueError: row 40 is bad"]),
        ("fails_oddly", ["batch 0", "OddError: odd"]),
        ("too_few", ["batch 0, rows 0:16", "15 rows"]),
        ("reshaped", [WHERE, "ValueError"]),
        ("retyped", [WHERE, "ValueError"]),
        ("objects", ["batch 0", "TypeError: objects returned .* object"]),
        ("nothing", ["batch 0", "object"]),
        ("writes", ["batch 0", "ValueError: .*read-only"]),
        ("dies", ["batch [01]", "WorkerDied: .*SIGKILL"]),
    ],
)
def test_failing_batch(folder, capsys, name, patterns):
    (folder / "output.npy").write_bytes(b"the last result")
    assert run(target=f"model.py:{name}") == 1
    one_error(capsys, *patterns)
    assert files(folder) == {*SOURCES, "output.npy"}
    assert (folder / "output.npy").read_bytes() == b"the last result"


def test_timeout(folder, capsys):
    assert run("--timeout", "0.2", target="model.py:sleeps") == 1
    one_error(capsys, "batch [01]", r"CallTimeout: .*0\.2 s")
    assert files(folder) == {*SOURCES, "asleep"}


def test_loading_is_not_part_of_the_timeout(folder):
    (folder / "slow.py").write_text(
        "import time\ntime.sleep(0.5)\ndef same(batch):\n    return batch\n"
    )
    assert run("--timeout", "0.3", target="slow.py:same") == 0


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("model.py:fails", ["in fails", "Traceback"]),
        ("broken.py:predict", ['broken.py", line 1', "Traceback"]),
        ("model.py:sleeps", ["in sleeps"]),
    ],
)
def test_traceback(folder, capsys, target, lines):
    (folder / "broken.py").write_text("import nowhere_at_all\n")
    assert run("--traceback", "--timeout", "0.5", target=target) in {1, 2}
    text = capsys.readouterr().err
    for line in lines:
        assert line in text
    assert text.splitlines()[-1].startswith("shmexec run: error: ")


def test_full_disk(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert run() == 1
    one_error(capsys, "no room for .* bytes of output: No space left on device")
    assert files(folder) == SOURCES


# ---- interruption


def command(*argv):
    return [sys.executable, "-m", "shmexec", *argv]


@pytest.mark.parametrize(
    ("name", "code", "pattern"),
    [
        ("SIGINT", 130, "interrupted; no output"),
        ("SIGTERM", 143, "stopped by SIGTERM; no output"),
        ("SIGHUP", 129, "stopped by SIGHUP; no output"),
    ],
)
@pytest.mark.parametrize("asleep", ["batch", "load"])
def test_signals(folder, name, code, pattern, asleep):
    (folder / "load.py").write_text(f"{MODEL}\nsleeps(None)\n")
    target = "model.py:sleeps" if asleep == "batch" else "load.py:predict"
    process = subprocess.Popen(
        command("run", target, "input.npy", "-o", "output.npy", "--workers", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        asleep_now = (folder / "asleep").exists
        assert wait_until(lambda: asleep_now() or process.poll() is not None)
        assert asleep_now()
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert out == ""
    assert re.fullmatch(f"shmexec run: error: {pattern}.*\n", err), err
    assert files(folder) == {*SOURCES, "load.py", "asleep"}


# ---- as a process


def output_of(*argv, **settings):
    return subprocess.run(
        command(*argv),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **settings,
    )


def test_process(folder):
    done = output_of("run", "model.py:predict", "input.npy", "-o", "output.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "100 rows in" in done.stdout
    np.testing.assert_array_equal(np.load("output.npy"), rows() * 3)


def test_process_failing(folder):
    done = output_of("run", "model.py:fails", "input.npy", "-o", "output.npy")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert files(folder) == SOURCES


def test_version():
    done = output_of("--version")
    assert (done.returncode, done.stdout) == (0, f"shmexec {shmexec.__version__}\n")


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["demo", "--help"]])
def test_help_has_examples(capsys, argv):
    assert main(argv) == 0
    assert "examples:\n  shmexec " in capsys.readouterr().out


def test_no_command(capsys):
    assert main([]) == 2
    assert "usage: shmexec" in capsys.readouterr().err


# ---- the demo

SMALL = ["demo", "--quick", "--rows", "2000", "--workers", "2", "--batch-size", "128"]


@pytest.mark.parametrize("rich", [True, False])
def test_demo(capsys, monkeypatch, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(SMALL) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "16 batches of 128; 2 workers" in captured.out
    assert "shmexec pool, once started" in captured.out
    assert captured.out.count("yes, every bit") == 4
    assert "estimated" in captured.out


def test_demo_says_if_results_differ(capsys, monkeypatch):
    from shmexec.cli import demo

    right = demo._fresh_interpreter
    monkeypatch.setattr(demo, "_fresh_interpreter", lambda *args: right(*args) + 1)
    assert main(SMALL) == 1
    captured = capsys.readouterr()
    assert re.search(r"new Python.* NO ", captured.out)
    assert "differs from the serial result: one process per call: new" in captured.err


def test_demo_failure_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("SHMEXEC_WORKERS", "2")
    assert main(["demo", "--quick", "--rows", "100"]) == 1
    assert "a fresh Python failed" in capsys.readouterr().err


def test_demo_bad_arguments(capsys):
    assert main(["demo", "--rows", "0"]) == 2
    one_error(capsys, "--rows: must be")
