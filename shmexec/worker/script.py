"""Scripts in the worker: loaded once, called often.

The source travels with the first call of each function, so that all workers run the same
version of a script whatever happens to its file meanwhile. One version of each script is
kept: when another one has been loaded, the one before goes, with its state.

A script is a module of a package that is made for its folder, so that relative imports of
its neighbours work, and scripts of one name in several folders are several modules. The
package's ``__init__.py`` does not run. What a script defines is pickled by value, since the
parent cannot import it (see :mod:`shmexec.wire.scripted` for its classes), and so is what
a neighbour does, unless the parent had the folder on its own path.
"""

from __future__ import annotations

import os
import sys
import threading
import types
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

import cloudpickle

from shmexec.wire import scripted
from shmexec.wire.functions import FunctionRef, Kept, ref_of
from shmexec.worker.loop import awaited
from shmexec.worker.memory import lasting_arrays

DESCRIBE = ""
"""The name under which an :class:`Entry` tells what is in its script."""


@dataclass(frozen=True)
class Source:
    """One version of a script.

    Attributes:
        path: Of the file, absolute, without symbolic links.
        digest: Of its contents; with the path it names the version.
        packed: Its contents, compressed.
    """

    path: str
    digest: bytes
    packed: bytes

    def text(self) -> bytes:
        """The contents of the file."""
        return zlib.decompress(self.packed)


class Entry(Kept):
    """A function of one version of a script; loads that where it is not loaded.

    Args:
        source: The version.
        name: ``function`` or ``Class.method``; for :data:`DESCRIBE` see
            :func:`shmexec.worker.described.describe`.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source = source
        self.name = name
        file = os.path.basename(source.path)
        self.__qualname__ = f"{file[:-3]}.{name}" if name else file
        self._ref: FunctionRef | None = None

    def ref(self) -> FunctionRef:
        """See :class:`~shmexec.wire.functions.Kept`."""
        if self._ref is None:
            self._ref = ref_of(self)
        return self._ref

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function, here."""
        script = load(self.source)
        if self.name == DESCRIBE:
            from shmexec.worker.described import describe

            return describe(script)
        return script.find(self.name)(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """Of the function, where it is loaded; notes on errors name its parameters."""
        import inspect

        script = _loaded.get(self.source.path)
        if script is None or script.digest != self.source.digest:
            raise AttributeError
        return inspect.signature(script.find(self.name))

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.source, self.name)


def _arrived(source: Source, name: str) -> Entry:
    # An argument may be of a class of this script, which is not loaded here yet.
    _sources[source.digest.hex()] = source
    return Entry(source, name)


@dataclass
class Loaded:
    """A script as it is in this process.

    Attributes:
        digest: Names the version.
        module: What it defines.
        folder: Where it lies.
        neighbours: Modules from its folder that came with it, by their names.
        instances: One of each class whose methods were called.
    """

    digest: bytes
    module: types.ModuleType
    folder: str
    neighbours: dict[str, types.ModuleType]
    instances: dict[type, Any] = field(default_factory=dict)

    def find(self, name: str) -> Callable[..., Any]:
        """What to call. Looked up each time: a script may replace what it defines."""
        if "." not in name:
            found: Callable[..., Any] = getattr(self.module, name)
            return found
        owner: Any = self.module
        *path, method = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        if not isinstance(owner, type):
            return getattr(owner, method)  # type: ignore[no-any-return]
        if not needs_instance(owner, method):
            return getattr(owner, method)  # type: ignore[no-any-return]
        return getattr(self._instance(owner), method)  # type: ignore[no-any-return]

    def _instance(self, cls: type) -> Any:
        try:
            return self.instances[cls]
        except KeyError:
            pass
        with _lock:  # without processes, several threads may come here
            if cls not in self.instances:
                with lasting_arrays():
                    self.instances[cls] = cls()
            return self.instances[cls]


def needs_instance(cls: type, method: str) -> bool:
    """Whether it is neither a class method nor a static one."""
    for base in cls.__mro__:
        if method in vars(base):
            return not isinstance(vars(base)[method], (staticmethod, classmethod))
    return True


_sources: weakref.WeakValueDictionary[str, Source] = weakref.WeakValueDictionary()
_loaded: dict[str, Loaded] = {}
_failed: dict[bytes, BaseException] = {}
_shown: dict[str, bytes] = {}
"""Which version of a script tracebacks show."""

_put: set[str] = set()
"""Folders that were not on the path before."""

_lock = threading.RLock()
"""Guards it while a script is loaded or an instance made; a script that
calls itself, without processes, comes here again."""


def load(source: Source) -> Loaded:
    """The script in this version, loaded if it is not.

    Raises:
        BaseException: Whatever its code raises; then nothing has changed.
        ImportError: If its code called ``sys.exit``.
    """
    script = _loaded.get(source.path)
    if script is not None and script.digest == source.digest:
        if _shown[source.path] != source.digest:
            _show(source)  # another version was tried since, and failed
        return script
    with _lock:
        script = _loaded.get(source.path)
        if script is None or script.digest != source.digest:
            failed = _failed.pop(source.digest, None)
            if failed is not None:
                raise failed
            with lasting_arrays():
                script = _loaded[source.path] = _load(source)
        return script


def begin(
    source: Source, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """In a new worker: run the pool's own initializer, then load a script.

    So that the time-out of its first call is for that call alone. If it cannot be
    loaded, the call that needs it is told how, as if it had been loaded there.
    """
    if initializer is not None:
        awaited(initializer(*initargs))
    try:
        load(source)
    except BaseException as error:  # noqa: BLE001  (raised by the call)
        _failed[source.digest] = error


def _load(source: Source) -> Loaded:
    folder = os.path.dirname(source.path)
    package = _package(folder).__name__
    module = _new_module(source, package)
    name = module.__name__
    hidden = _hide_neighbours(source.path, folder)
    foreign = _hide_foreign(folder)
    before = dict(sys.modules)
    sys.modules[name] = module
    by_value = _put_first(folder)
    try:
        _execute(source, module)
    except BaseException:
        # As it was: the version before may go on.
        for other in _new_neighbours(before, folder):
            _forget(other)
        _restore(hidden | foreign)
        if name in before:
            sys.modules[name] = before[name]
        raise
    neighbours = _neighbours(before, folder)
    neighbours.pop(name, None)
    left = {n: its for n, its in hidden.items() if n not in sys.modules}
    _restore({n: its for n, its in left.items() if not lies_in(its, folder)} | foreign)
    version = source.digest.hex()
    scripted.mark(module, version)
    for other, its in neighbours.items():
        if by_value or other.startswith(package):
            scripted.mark(its, version)
            if sys.modules.get(its.__name__) is its:  # else it is by value in any case
                cloudpickle.register_pickle_by_value(its)
    return Loaded(source.digest, module, folder, neighbours)


def _new_module(source: Source, package: str) -> types.ModuleType:
    file = os.path.basename(source.path)
    module = types.ModuleType(f"{package}.{file[:-3]}")
    module.__file__ = source.path
    module.__package__ = package
    loader = SourceFileLoader(module.__name__, source.path)
    module.__loader__ = loader
    module.__spec__ = ModuleSpec(module.__name__, loader, origin=source.path)
    module.__spec__.has_location = True
    return module


def _execute(source: Source, module: types.ModuleType) -> None:
    _show(source)
    code = compile(source.text(), source.path, "exec", dont_inherit=True)
    try:
        exec(code, module.__dict__)  # noqa: S102  (that is what loading means)
    except SystemExit as error:
        msg = f"{source.path} called sys.exit({error.code!r}) while it was loaded"
        raise ImportError(msg, path=source.path) from error


def _show(source: Source) -> None:
    """Have tracebacks show this version, not what the file holds by then."""
    import linecache
    from importlib.util import decode_source

    _shown[source.path] = source.digest
    text = source.text()
    try:
        lines = decode_source(text).splitlines(keepends=True)
    except (SyntaxError, UnicodeDecodeError):
        return  # compiling it will say more
    # Without a time, linecache does not look at the file again.
    linecache.cache[source.path] = (len(text), None, lines, source.path)


def _package(folder: str) -> types.ModuleType:
    """The package that scripts of a folder are in."""
    name = f"shmexec_scripts_{zlib.crc32(os.fsencode(folder)):08x}"
    found = sys.modules.get(name)
    while found is not None and found.__path__ != [folder]:
        name += "_"  # another folder of that number
        found = sys.modules.get(name)
    if found is None:
        found = types.ModuleType(name, f"Scripts in {folder}.")
        found.__path__ = [folder]
        found.__package__ = name
        found.__spec__ = ModuleSpec(name, None, is_package=True)
        found.__spec__.submodule_search_locations = [folder]
        sys.modules[name] = found
        cloudpickle.register_pickle_by_value(found)
    return found


def _put_first(folder: str) -> bool:
    """Have imports look in a folder first; whether the parent's would not find it."""
    if not any(os.path.realpath(part) == folder for part in sys.path):
        _put.add(folder)
    sys.path[:] = [folder, *(part for part in sys.path if part != folder)]
    return folder in _put


def _hide_neighbours(path: str, folder: str) -> dict[str, types.ModuleType]:
    """Take away what an import in a script must not find; the modules by their names.

    That are those of scripts in other folders, and in a new version of a script also its
    own neighbours: they may have changed along with it.
    """
    hidden = {}
    for script in _loaded.values():
        if script.folder == folder and path not in _loaded:
            continue
        for name, module in script.neighbours.items():
            if sys.modules.get(name) is module:
                hidden[name] = module
                _forget(name)
    return hidden


def _hide_foreign(folder: str) -> dict[str, types.ModuleType]:
    """Take away modules of the program's that have the names of neighbours.

    Functions that are submitted by name may be of those: they come back after loading.
    """
    offered = {
        entry.name.removesuffix(".py")
        for entry in os.scandir(folder)
        if entry.name.endswith(".py")
        or os.path.exists(os.path.join(entry.path, "__init__.py"))
    } - {"__main__", *sys.stdlib_module_names}
    hidden = {
        name: module
        for name, module in list(sys.modules.items())
        if name.split(".", 1)[0] in offered
        and _is_of_the_program(name.split(".", 1)[0], folder)
    }
    for name in hidden:
        _forget(name)
    return hidden


def _is_of_the_program(name: str, folder: str) -> bool:
    """Whether a module is neither installed nor a neighbour."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or file.startswith(os.path.join(folder, "")):
        return False
    return "site-packages" not in file and "dist-packages" not in file


def _forget(name: str) -> None:
    """Have the next import of a module load it."""
    module = sys.modules.pop(name)
    parent, _, last = name.rpartition(".")
    owner = vars(sys.modules[parent]) if parent in sys.modules else {}
    if owner.get(last) is module:
        del owner[last]


def _restore(modules: dict[str, types.ModuleType]) -> None:
    for name, module in modules.items():
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent])[last] = module


def _neighbours(
    before: dict[str, types.ModuleType], folder: str
) -> dict[str, types.ModuleType]:
    """Modules of the folder that a script imported, or may have, as others did before."""
    found = _new_neighbours(before, folder)
    for script in _loaded.values():
        if script.folder == folder:
            for name, module in script.neighbours.items():
                if sys.modules.get(name) is module:
                    found[name] = module
    return found


def _new_neighbours(
    before: dict[str, types.ModuleType], folder: str
) -> dict[str, types.ModuleType]:
    """Modules of the folder that were imported since."""
    return {
        name: module
        for name, module in list(sys.modules.items())
        if before.get(name) is not module and lies_in(module, folder)
    }


def lies_in(module: object, folder: str) -> bool:
    """Whether a module is a neighbour of the scripts in a folder."""
    file = getattr(module, "__file__", None)
    if not (isinstance(module, types.ModuleType) and isinstance(file, str)):
        return False
    inside = file.startswith(os.path.join(folder, ""))
    # An environment may lie in the folder as well: its packages are no neighbours.
    return inside and "-packages" not in file[len(folder) :]


def _find(version: str) -> None:
    """Load a script that a call of this process is of."""
    source = _sources.get(version)
    if source is not None:
        load(source)


scripted.find_script.append(_find)
