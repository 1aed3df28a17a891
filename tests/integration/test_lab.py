"""A notebook in a real JupyterLab, seen with a real browser, in both themes.

``SHMEXEC_TEST_SCREENSHOTS=folder`` keeps what there was to be seen.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.integration import lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here"),
    pytest.mark.skipif(
        shutil.which("chromedriver") is None, reason="no ChromeDriver here"
    ),
]

CELLS = (
    """\
import numpy as np
import shmexec

ex = shmexec.Executor(2, name="<my pool>")
kept = [ex.submit(np.ones, 1_000_000).result() for _ in range(3)]
shared = shmexec.share(np.arange(2_000_000.0))
totals = [ex.submit(np.sum, shared) for _ in range(20)]
bad = ex.submit(lambda: 1 / 0)
sum(each.result() for each in totals), bad.exception()""",
    "_ = ex.broadcast(lambda: print('from a worker'))",
    "rows = ex.map_batches(np.sqrt, np.ones(1000), batch_size=100, progress=True)",
    "waiting = [ex.submit(__import__('time').sleep, 600) for _ in range(5)]",
    "ex",
    "_ = [each.cancel(running=True) for each in waiting], ex.shutdown()",
    "ex",
    """\
def initialize():
    raise OSError("no <model> & no weights")


broken = shmexec.Executor(1, initializer=initialize)
broken.submit(abs, 1).exception()
broken""",
)

PANELS = """
const found = [...document.querySelectorAll('.jp-OutputArea-output.jp-RenderedHTML > div')]
    .filter(each => each.offsetHeight > 40);
return found.length === 3 && found;
"""

LOOKS = """
const luminance = color => {
    const [r, g, b] = color.match(/[0-9.]+/g).map(Number)
        .map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
};
let behind = arguments[0];
const clear = /rgba\\(.*, 0(\\.\\d+)?\\)|transparent/;
while (clear.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
const back = luminance(getComputedStyle(behind).backgroundColor);
const contrast = color => {
    const [low, high] = [luminance(color), back].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
};
const all = [...arguments[0].querySelectorAll('*')];
const box = arguments[0].getBoundingClientRect();
return {
    text: arguments[0].innerText,
    contrast: Math.min(...all.map(each => contrast(getComputedStyle(each).color))),
    fills: all.filter(each => /width: ?[\\d.]+%/.test(each.getAttribute('style')))
        .map(each => each.getBoundingClientRect().width),
    over: all.filter(each => each.getBoundingClientRect().right > box.right + 1).length,
    faint: Math.min(...all.filter(each => each.style.width === '8px')
        .map(each => contrast(getComputedStyle(each).backgroundColor))),
};
"""


def test_a_display_in_both_themes(tmp_path):
    pytest.importorskip("jupyterlab")
    pytest.importorskip("selenium")
    kept = Path(os.environ.get("SHMEXEC_TEST_SCREENSHOTS", tmp_path))
    lab.write_notebook(tmp_path / "display.ipynb", *CELLS)
    with lab.serving(tmp_path) as address:
        browser = lab.Browser(
            tmp_path / ".profile",
            shutil.which("chromium"),
            shutil.which("chromedriver"),
        )
        try:
            browser.open(address.format("display.ipynb"))
            browser.command("notebook:run-all-cells")
            for theme in ("JupyterLab Light", "JupyterLab Dark"):
                browser.command("apputils:change-theme", {"theme": theme})
                browser.wait(
                    "return document.body.dataset.jpThemeName === arguments[0]", theme
                )
                look_at(browser)
                browser.screenshot(kept / f"{theme.split()[1].lower()}.png")
        finally:
            browser.close()


def look_at(browser):
    panels = browser.wait(PANELS)
    seen, closed, broken = (browser.ask(LOOKS, each) for each in panels)
    for part in (
        "<my pool>",
        "busy",
        "private memory",
        "2 running",
        "3 pending",
        "1 failed",
    ):
        assert part in seen["text"]
    assert len(seen["fills"]) >= 8  # of all bars, and wide enough to be seen
    assert max(seen["fills"]) > 50
    assert "closed" in closed["text"]
    assert "failed" in broken["text"]
    assert "no <model> & no weights" in broken["text"]
    for each in (seen, closed, broken):
        assert each["contrast"] > 4.5  # what one can read, says WCAG
        assert each["faint"] > 2
        assert not each["over"]
        assert "style=" not in each["text"]  # nothing is shown as its source
    text = browser.ask("return document.querySelector('.jp-Notebook').innerText")
    assert text.count("from a worker") == 3  # in its cell's code, and from both
    browser.wait("return document.querySelector('.widget-hprogress, progress')")
