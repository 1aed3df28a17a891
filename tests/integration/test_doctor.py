"""``shmexec doctor`` and ``shmexec completion``, and the help of all commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from shmexec import limits
from shmexec.cli import _parser, main
from shmexec.cli.examining import machine, software, trial
from shmexec.cli.examining.findings import Finding
from shmexec.memory import native
from shmexec.runtime import cgroups, monitor


def _checks(capsys):
    code = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["works"] == (code == 0)
    return code, {each["name"]: each for each in told["checks"]}


# -- what works ------------------------------------------------------------------------


def test_it_says_what_there_is_and_that_a_pool_works(capsys):
    code, checks = _checks(capsys)
    assert code == 0
    assert checks["shmexec"]["data"]["python"] == sys.version.split()[0]
    assert checks["CPUs"]["data"]["usable"] >= 1
    assert checks["memory"]["data"]["free"] > 0
    assert checks["native part"]["data"]["built"] == native.is_built()
    assert checks["open files"]["data"]["limit"] == limits.limit_of("RLIMIT_NOFILE")
    assert checks["start methods"]["data"]["default"] in {"forkserver", "spawn"}
    assert {"cli", "otel"} <= set(checks["extras"]["data"]["missing"])
    assert checks["a pool"]["data"]["start_seconds"] > 0


def test_the_text_is_for_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("shmexec.cli.doctor.try_pool", lambda: WELL)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^ok    a pool +works$", text, re.MULTILINE)
    assert "change" in text


WELL = Finding("pool", "a pool", "works")

# -- what does not ---------------------------------------------------------------------


def test_a_setting_that_makes_no_sense_is_named(capsys, monkeypatch):
    monkeypatch.setenv("SHMEXEC_NATIVE", "maybe")
    code, checks = _checks(capsys)
    assert code == 1
    assert checks["SHMEXEC_NATIVE"]["level"] == "bad"
    assert "SHMEXEC_NATIVE must be" in checks["a pool"]["value"]


def test_a_pool_that_cannot_start_is_a_failure(capsys, monkeypatch):
    def refuse(*_settings, **_more):
        raise OSError("no processes\nleft")

    monkeypatch.setattr("shmexec.executor.Executor", refuse)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "BAD   a pool             does not work: OSError: no processes left" in text
    assert "What to change:" in text
    assert trial.try_pool().level == "bad"


def _find(findings, name):
    return next(each for each in findings if each.name == name)


@pytest.mark.parametrize(
    ("limit", "name", "advice"),
    [
        ("RLIMIT_NOFILE", "open files", "ulimit -n"),
        ("RLIMIT_AS", "address space", "ulimit -v"),
        ("RLIMIT_FSIZE", "size of files", "ulimit -f"),
        ("RLIMIT_NPROC", "processes", "ulimit -u"),
    ],
)
def test_limits_come_with_the_command_that_raises_them(
    monkeypatch, limit, name, advice
):
    monkeypatch.setattr(limits, "limit_of", {limit: 64}.get)
    found = _find(machine.machine(), name)
    assert (found.level, found.data["limit"]) == ("note", 64)
    assert advice in found.advice
    monkeypatch.setattr(limits, "limit_of", lambda _name: None)
    assert not _find(machine.machine(), name).advice


def test_one_cpu_by_affinity_is_told(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    found = _find(machine.machine(), "CPUs")
    assert found.value.startswith("1 usable of 16; affinity allows 1")
    assert found.level == "note"


def test_scarce_memory_and_its_cgroup_are_told(monkeypatch):
    monkeypatch.setattr(monitor, "memory", lambda: monitor.Memory(1 << 30, 1 << 20))
    usage = cgroups.Usage(1 << 30, (1 << 30) - (1 << 20))
    monkeypatch.setattr(cgroups, "tightest", lambda _groups: usage)
    monkeypatch.setattr(monitor, "oom_kills", lambda: 3)
    found = _find(machine.machine(), "memory")
    assert "1.05 MB free of 1.07 GB, which is the cgroup's limit" in found.value
    assert "min_free_memory=" in found.advice
    assert _find(machine.machine(), "killed for memory").data == {"oom_kills": 3}


def test_refused_memory_files_make_dev_shm_matter(monkeypatch):
    monkeypatch.setattr(limits, "memfd_refused", lambda: "memfd_create is refused")
    monkeypatch.setattr(machine, "_space", lambda _folder: (64 << 20, 60 << 20))
    assert "seccomp" in _find(machine.machine(), "memory files").advice
    found = _find(machine.machine(), "/dev/shm")
    assert (found.level, found.data["needed"]) == ("note", True)
    assert "--shm-size" in found.advice
    monkeypatch.setattr(machine, "_space", lambda _folder: (0, 0))
    assert _find(machine.machine(), "/dev/shm").level == "bad"


@pytest.mark.parametrize(
    ("built", "setting", "words"),
    [
        (True, "1", "without a copy"),
        (True, "0", "switched off"),
        (False, "1", "not built"),
    ],
)
def test_the_native_part(monkeypatch, built, setting, words):
    monkeypatch.setattr(native, "is_built", lambda: built)
    monkeypatch.setenv("SHMEXEC_NATIVE", setting)
    found = _find(software.software(), "native part")
    assert words in found.value
    assert bool(found.advice) == ("without" not in words)


def test_extras_that_lack_a_package_are_told(monkeypatch):
    installed = software._is_installed
    monkeypatch.setattr(
        software, "_is_installed", lambda name: name != "rich" and installed(name)
    )
    found = _find(software.software(), "extras")
    assert "rich" in found.data["missing"]["cli"]
    assert "pip install 'shmexec[" in found.value


# -- completion, and help ------------------------------------------------------------------

_COMPLETE = """
eval "$SCRIPT"
COMP_WORDS=({words}); COMP_CWORD={last}
$(complete -p shmexec | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script():
    pytest.importorskip("shtab")
    return subprocess.run(
        [sys.executable, "-m", "shmexec", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("shmexec t", {"top"}),
        ("shmexec do", {"doctor"}),
        ("shmexec top --in", {"--interval"}),
        ("shmexec completion ", {"bash", "zsh", "fish"}),
        ("shmexec run mod", {"model.py"}),
        ("shmexec serve model.py --so", {"--socket"}),
    ],
)
def test_bash_completes(bash_script, tmp_path, line, expected):
    (tmp_path / "model.py").touch()
    words = line.split(" ")
    command = _COMPLETE.format(words=shlex.join(words), last=len(words) - 1)
    done = subprocess.run(
        ["bash", "--norc", "-c", command],
        env={**os.environ, "SCRIPT": bash_script},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected <= set(done.stdout.split()), done


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_served(capsys, shell):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "shmexec" in script
    assert "doctor" in script


def test_completion_without_shtab_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'shmexec[cli]'" in capsys.readouterr().err


def _commands():
    (commands,) = [a for a in _parser()._actions if hasattr(a, "choices") and a.choices]
    return sorted(commands.choices)


@pytest.mark.parametrize("command", _commands())
def test_help_of_each_command_has_examples_that_parse(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    examples = text.partition("examples:\n")[2].replace("\\\n", " ")
    found = re.findall(
        rf"^ .*?(shmexec {command}\b[^|>&)#\n]*)", examples, re.MULTILINE
    )
    assert found
    for line in found:
        _parser().parse_args(shlex.split(line)[1:])
    assert re.search(rf"^ +{command}\s+\w", _parser().format_help(), re.MULTILINE)
