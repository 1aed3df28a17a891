"""The README's examples in Python run as they stand there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import readme
from tests.waiting import LONG

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"


def test_examples_run(tmp_path):
    pytest.importorskip("tqdm")
    pytest.importorskip("opentelemetry.sdk")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.readme", README, tmp_path],
        cwd=README.parent,
        capture_output=True,
        text=True,
        timeout=3 * LONG,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_sections_are_found_with_their_examples():
    text = "# a\n## One\n```sh\nls\n```\n```python\n1\n2\n```\n### Two\nx\n```python\n```\n"
    assert readme.sections(text) == {"One": ["1\n2\n"], "Two": [""]}
