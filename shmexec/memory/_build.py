"""Builds the native part; setuptools runs this, nothing else imports it.

Where there is no compiler, or with ``SHMEXEC_NATIVE=0``, the package is built without.
``SHMEXEC_NATIVE_CFLAGS`` adds flags, ``-Werror`` and sanitizers for instance.
"""

from __future__ import annotations

import contextlib
import os

from setuptools.command.build_ext import build_ext


class BuildNative(build_ext):  # type: ignore[misc]
    """Adds NumPy's headers, which the build environment has."""

    def run(self) -> None:
        """Build, or leave out what an earlier build may have left behind."""
        if os.environ.get("SHMEXEC_NATIVE") != "0":
            super().run()
            return
        for extension in self.extensions:
            name = self.get_ext_fullname(extension.name)
            built = os.path.join(self.build_lib, self.get_ext_filename(name))
            for path in (built, self.get_ext_fullpath(extension.name)):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)

    def build_extensions(self) -> None:
        """Build what is to be built."""
        import numpy as np

        flags = ["-O2", "-Wall", "-Wextra"]
        flags += os.environ.get("SHMEXEC_NATIVE_CFLAGS", "").split()
        for extension in self.extensions:
            extension.include_dirs.append(np.get_include())
            extension.extra_compile_args += flags
            extension.extra_link_args += [f for f in flags if "sanitize" in f]
        super().build_extensions()
