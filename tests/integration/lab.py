"""A real JupyterLab, and a headless Chromium that has a notebook open in it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shmexec.deadline import Deadline
from tests.waiting import wait_until

KERNEL = "shmexec-test"
PAUSE = threading.Event()
SOON = 60.0
"""Seconds that something in the browser may take."""

SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {
        "windowingMode": "none"
    },  # all cells are in the page
}

CHROMIUM = (
    "--headless",
    "--no-sandbox",  # root cannot have one
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # Nothing is asked for from anybody but the server.
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1400",
    "--force-device-scale-factor=1",
)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of these cells, for this interpreter."""
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    _write(
        path,
        {
            "cells": [
                {**code, "source": each, "id": f"cell-{i}"}
                for i, each in enumerate(cells)
            ],
            "metadata": {"kernelspec": {"name": KERNEL, "display_name": KERNEL}},
            "nbformat": 4,
            "nbformat_minor": 5,
        },
    )


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """JupyterLab for a folder, with settings of its own; its address.

    Who starts it wakes nobody: it says where it listens in a file, which is looked for.
    """
    home = folder / ".home"
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    _write(home / "data" / "kernels" / KERNEL / "kernel.json", spec)
    for name, settings in SETTINGS.items():
        file = f"@jupyterlab/{name}.jupyterlab-settings"
        _write(home / "settings" / file, settings)
    environ = {
        **os.environ,
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "run"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": os.getcwd(),
    }
    options = (
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=0",
        "--ServerApp.ip=127.0.0.1",
    )
    lab = ("--expose-app-in-browser", "--LabApp.extension_manager=readonly")
    with open(home / "log", "w+") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                *options,
                *lab,
                f"--notebook-dir={folder}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
        try:
            found = wait_until(
                lambda: (
                    server.poll() is not None or list(home.glob("run/jpserver-*.json"))
                ),
                SOON,
            )
            assert isinstance(found, list), (home / "log").read_text()
            said = json.loads(wait_until(found[0].read_text))
            yield f"{said['url']}lab/tree/{{}}?token={said['token']}"
        finally:
            server.send_signal(signal.SIGTERM)  # with it end its kernels
            try:
                server.wait(20)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)


class Browser:
    """Chromium with one notebook open."""

    def __init__(self, profile: Path, chromium: str, driver: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for each in (*CHROMIUM, f"--user-data-dir={profile}"):
            options.add_argument(each)
        self.driver = webdriver.Chrome(options=options, service=Service(driver))

    def close(self) -> None:
        self.driver.quit()

    def ask(self, script: str, *args: Any) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script, *args)

    def wait(self, script: str, *args: Any) -> Any:
        """What JavaScript returns as soon as that is something."""
        deadline = Deadline(SOON)
        while not deadline.passed():
            value = self.ask(script, *args)
            if value:
                return value
            PAUSE.wait(0.1)
        raise AssertionError((script, self.ask("return document.body.innerText")))

    def open(self, url: str) -> None:
        """Open a notebook, and wait until its kernel can be used."""
        self.driver.get(url)
        self.wait("return window.jupyterapp && document.querySelector('.jp-Notebook')")
        self.wait(
            "const panel = jupyterapp.shell.currentWidget;"
            "return panel && panel.sessionContext && panel.sessionContext.isReady"
            " && panel.sessionContext.session?.kernel?.status === 'idle'"
        )

    def command(self, name: str, args: object = None) -> None:
        """Run one of JupyterLab's commands."""
        self.driver.set_script_timeout(SOON)
        self.driver.execute_async_script(
            "const done = arguments[2];"
            "jupyterapp.commands.execute(arguments[0], arguments[1]).then(() => done());",
            name,
            args or {},
        )

    def screenshot(self, path: Path) -> None:
        """Keep what is to be seen as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(path))
