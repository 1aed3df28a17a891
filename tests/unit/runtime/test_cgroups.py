"""Limits of control groups, read from folders as the kernel writes them."""

from __future__ import annotations

import pytest

from shmexec.runtime import cgroups, monitor
from shmexec.runtime.cgroups import Usage

MB = 1 << 20
NONE = 9223372036854771712


@pytest.fixture
def group(tmp_path):
    """Make the files of a group; values are written as they are."""

    def make(path, **files):
        folder = tmp_path / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / f"memory.{name}").write_text(f"{value}\n")

    return make


def tightest(root, own):
    return cgroups.tightest(cgroups.groups_of(str(root), own))


def stat(**values):
    return "\n".join(f"{name} {value}" for name, value in values.items())


def test_version_2(group, tmp_path):
    cache = stat(anon=1, inactive_file=20 * MB, active_file=10 * MB, shmem=99 * MB)
    group("a", max=100 * MB, high="max", current=60 * MB, stat=cache)
    usage = tightest(tmp_path, "0::/a\n")
    assert usage == Usage(100 * MB, 35 * MB)
    assert usage.free == 65 * MB


def test_version_1(group, tmp_path):
    cache = stat(total_inactive_file=20 * MB, total_active_file=10 * MB)
    group("memory/a", limit_in_bytes=100 * MB, usage_in_bytes=60 * MB, stat=cache)
    own = "12:cpu,cpuacct:/b\n5:memory:/a\n1:name=systemd:/c\n0::/a\n"
    assert tightest(tmp_path, own) == Usage(100 * MB, 35 * MB)


def test_of_nested_groups_the_one_with_the_least_left_counts(group, tmp_path):
    group("a", max=100 * MB, high="max", current=90 * MB, stat="")
    group("a/b", max=50 * MB, high="max", current=20 * MB, stat="")
    group("a/b/c", max="max", high="max", current=20 * MB, stat="")
    assert tightest(tmp_path, "0::/a/b/c\n") == Usage(100 * MB, 90 * MB)


def test_where_processes_are_slowed_down_is_a_limit(group, tmp_path):
    group("a", max=100 * MB, high=80 * MB, current=10 * MB, stat="")
    assert tightest(tmp_path, "0::/a\n") == Usage(80 * MB, 10 * MB)


def test_no_limit(group, tmp_path):
    group("a", max="max", high="max", current=10 * MB, stat="")
    none = stat(hierarchical_memory_limit=NONE)
    group("memory/a", limit_in_bytes=NONE, usage_in_bytes=10 * MB, stat=none)
    assert tightest(tmp_path, "0::/a\n") is None
    assert tightest(tmp_path, "5:memory:/a\n") is None
    assert tightest(tmp_path, "") is None


def test_limits_of_groups_around_it_that_are_not_mounted_count(group, tmp_path):
    outer = stat(hierarchical_memory_limit=70 * MB)
    group("memory", limit_in_bytes=NONE, usage_in_bytes=10 * MB, stat=outer)
    assert tightest(tmp_path, "5:memory:/gone\n") == Usage(70 * MB, 10 * MB)


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../../other"])
def test_in_a_container_the_root_is_its_own_group(group, tmp_path, path):
    group("", max=100 * MB, high="max", current=60 * MB, stat="")
    group("memory", limit_in_bytes=90 * MB, usage_in_bytes=60 * MB, stat="")
    assert tightest(tmp_path, f"0::{path}\n") == Usage(100 * MB, 60 * MB)
    assert tightest(tmp_path, f"4:memory:{path}\n") == Usage(90 * MB, 60 * MB)


def test_limits_are_read_anew(group, tmp_path):
    group("a", max=100 * MB, high="max", current=60 * MB, stat="")
    groups = cgroups.groups_of(str(tmp_path), "0::/a\n")
    group("a", max=200 * MB)
    assert cgroups.tightest(groups) == Usage(200 * MB, 60 * MB)
    group("a", current="nonsense")
    assert cgroups.tightest(groups) is None


def test_processes_killed_by_the_kernel_are_counted(group, tmp_path):
    group("a", max="max", events=stat(oom=3, oom_kill=2, oom_group_kill=0))
    group("memory/a", limit_in_bytes=NONE, oom_control=stat(under_oom=0, oom_kill=5))
    kills = [
        cgroups.oom_kills(cgroups.groups_of(str(tmp_path), own))
        for own in ("0::/a\n", "4:memory:/a\n", "")
    ]
    assert kills == [2, 5, None]


def test_the_limit_of_the_group_is_what_there_is(group, tmp_path, monkeypatch):
    group("a", max=100 * MB, high="max", current=60 * MB, stat="")
    groups = cgroups.groups_of(str(tmp_path), "0::/a\n")
    monkeypatch.setattr(cgroups, "own_groups", lambda: groups)
    assert monitor.memory() == (100 * MB, 40 * MB)
    assert monitor.total_bytes() == 100 * MB
    assert monitor.available_bytes() == 40 * MB
