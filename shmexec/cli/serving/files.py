"""Arrays in ``.npy`` files, which spare large ones the way through JSON."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np

from shmexec.cli.serving.jsonrpc import INVALID_PARAMS, RpcError

__all__ = ["make_saver", "open_array"]


def open_array(path: str) -> np.ndarray:
    """Map a ``.npy`` file, read-only: workers get it without a copy.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no ``.npy`` file of numbers or texts.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait
        msg = "it is not a file"
        raise ValueError(msg)
    array: np.memmap = np.lib.format.open_memmap(path, mode="r")
    return array


class Saver:
    """Writes each array to a new file in a folder; removing them is the client's part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, array: np.ndarray) -> str:
        """Write one array; returns the path of its file."""
        path = self._folder / f"shmexec-{secrets.token_hex(8)}.npy"
        try:
            with open(path, "xb", opener=_private) as file:
                np.save(file, array, allow_pickle=False)
        except BaseException:
            with suppress(FileNotFoundError):
                path.unlink()
            raise
        return str(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def make_saver(arrays: dict[str, object] | None) -> Saver | None:
    """What ``params.arrays`` asks for: None, or ``{"npy": folder}``.

    Raises:
        RpcError: It asks for something else, or there is no such folder.
    """
    if arrays is None:
        return None
    folder = arrays.get("npy")
    if arrays.keys() != {"npy"} or not isinstance(folder, str):
        msg = 'params.arrays must be {"npy": the path of a folder}'
        raise RpcError(INVALID_PARAMS, msg)
    try:
        if Path(folder).is_dir():
            return Saver(Path(folder).absolute())
    except (OSError, ValueError):  # a name that no folder can have
        pass
    msg = f"params.arrays.npy: there is no folder {folder}"
    raise RpcError(INVALID_PARAMS, msg)
