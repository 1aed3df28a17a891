"""Calling the functions of a Python file: the parent's side of scripts.

Reads the file, has a worker load it and say what is in it, and checks calls against that
before they are sent. How a script is loaded is in :mod:`shmexec.worker.script`.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import inspect
import os
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shmexec.errors import UnknownFunction, WrongArguments
from shmexec.options import CREDIT_AT_MOST, CallOptions, positive_int
from shmexec.runtime.cache import Blob, Store, make_store
from shmexec.runtime.content import NoDigestError, digest
from shmexec.worker.script import DESCRIBE, Entry, Source

if TYPE_CHECKING:
    from shmexec.runtime.futures import Future
    from shmexec.runtime.inline import InlinePool
    from shmexec.runtime.pool import Pool
    from shmexec.runtime.streams import Stream
    from shmexec.worker.described import Description, FunctionKind, Note

_BUFFERSIZE = 16
"""Items that a generator may be ahead of its consumer."""

_SURE_AFTER = 2 * 10**9
"""Nanoseconds after which a change of a file shows in its times, however coarse they are."""


@dataclass(frozen=True)
class FunctionInfo:
    """A function of a script, as :meth:`Script.functions` tells it.

    Attributes:
        name: ``function`` or ``Class.method``.
        kind: ``"function"``, ``"async"``, ``"generator"`` or ``"async generator"``.
        signature: What it takes, without ``self``; None if it does not say. Defaults and
            annotations are texts: their values are in the workers.
        doc: The first line of its doc string, or ``""``.

    Example:
        >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
        >>> info = ex.script("model.py").functions()["double"]
        >>> str(info), info.kind
        ('double(x)', 'function')
    """

    name: str
    kind: FunctionKind
    signature: inspect.Signature | None
    doc: str

    def __str__(self) -> str:
        return f"{self.name}{'(...)' if self.signature is None else self.signature}"

    def check(
        self, script: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, by position where they have one.

        Raises:
            WrongArguments: If the function does not take these.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> ex.script("model.py").functions()["double"].check("model.py", (), {"x": 1})
            ((1,), {})
        """
        if self.signature is None:
            return args, kwargs
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            msg = f"{script}: {self.name}() was not called: {error}. It is defined as {self}"
            raise WrongArguments(msg) from None
        return bound.args, bound.kwargs


class _Text:
    """A default value or an annotation, of which only the text is known here."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _info(note: Note) -> FunctionInfo:
    signature = None
    if note.parameters is not None:
        empty = inspect.Parameter.empty
        signature = inspect.Signature(
            [
                inspect.Parameter(
                    each.name,
                    inspect._ParameterKind(each.kind),  # noqa: SLF001
                    default=empty if each.default is None else _Text(each.default),
                    annotation=empty
                    if each.annotation is None
                    else _Text(each.annotation),
                )
                for each in note.parameters
            ],
            return_annotation=empty if note.returns is None else _Text(note.returns),
        )
    return FunctionInfo(note.name, note.kind, signature, note.doc)


class _Version:
    """A script's contents, and what workers found in them."""

    def __init__(self, source: Source, description: Description) -> None:
        self.source = source
        notes = description.notes
        self.infos = MappingProxyType({note.name: _info(note) for note in notes})
        self.contents = source.digest + description.neighbours
        self._entries: dict[str, Entry] = {}

    def entry(self, name: str) -> Entry:
        """What to submit; the same object each time, since it keeps how it travels."""
        entry = self._entries.get(name)
        if entry is None:
            entry = self._entries[name] = Entry(self.source, name)
        return entry


class ScriptFile:
    """A script's file and the version in use; shared by all views of a script.

    Args:
        owner: Kept, since an executor that nobody holds ends its pool.
        pool: Where it is loaded.
        options: The pool's own; loading is not tried again.
        path: The file.
        autoreload: Whether to look at it at each call.
        cache: Where to keep results, see :meth:`shmexec.Executor.script`.
    """

    def __init__(
        self,
        owner: object,
        pool: Pool | InlinePool,
        options: CallOptions,
        path: str | os.PathLike[str],
        *,
        autoreload: bool,
        cache: str | int | os.PathLike[str] | None,
    ) -> None:
        self._owner = owner
        self.pool = pool
        self.path = checked_path(path)
        self.store = make_store(cache)
        self._autoreload = autoreload
        self._options = CallOptions(options.timeout, 0, options.priority)
        # Held while a new version is loaded, by whoever waits for the worker; other
        # calls go on with the version in use. A time-out or the worker's end wakes it.
        self._loading = threading.Lock()
        self._seen, contents = self._read()
        self._looked_at = _digest(contents)
        self.version = self._load(contents, self._looked_at)

    def current(self) -> _Version:
        """The version to call, after a look at the file if that was asked for."""
        if (
            self._autoreload
            and self._may_have_changed()
            and self._loading.acquire(False)
        ):
            try:
                self._renew(again=False)
            finally:
                self._loading.release()
        return self.version

    def reload(self) -> bool:
        """See :meth:`Script.reload`."""
        with self._loading:
            return self._renew(again=True)

    def stream(
        self,
        entry: Entry,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: CallOptions,
        buffersize: int,
    ) -> Stream[Any]:
        """Run a generator function."""
        stream = self.pool.stream(entry, args, kwargs, options, buffersize)
        return stream.keep_alive(self._owner)

    def _renew(self, *, again: bool) -> bool:
        """Load the file if it has changed; whether it had.

        Args:
            again: Also if it was looked at as it is now, and could not be loaded.
        """
        try:
            self._seen, contents = self._read()
        except OSError:
            if again:
                raise
            return False  # it is just being replaced, perhaps
        digest = _digest(contents)
        if digest == self.version.source.digest:
            self._looked_at = digest
            return False
        if digest == self._looked_at and not again:
            return False
        try:
            self.version = self._load(contents, digest)
        except Exception:  # not if it was interrupted: then it is tried again
            self._looked_at = digest
            raise
        self._looked_at = digest
        return True

    def _load(self, contents: bytes, digest: bytes) -> _Version:
        """Have one worker load it."""
        source = Source(self.path, digest, zlib.compress(contents))
        describe = Entry(source, DESCRIBE)
        future = self.pool.submit(describe, (), {}, self._options)
        try:
            return _Version(source, future.result())
        except BaseException:
            future.cancel(running=True)  # a Ctrl-C while it waited
            raise

    def _read(self) -> tuple[tuple[int, ...] | None, bytes]:
        """What the file looks like, and what is in it."""
        with open(self.path, "rb") as file:
            seen = _look(os.fstat(file.fileno()))
            return seen, file.read()

    def _may_have_changed(self) -> bool:
        try:
            return self._seen is None or _look(os.stat(self.path)) != self._seen
        except OSError:
            return False


def read_source(path: str) -> Source:
    """A script's file as workers get it.

    Args:
        path: Absolute, without symbolic links.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        contents = file.read()
    return Source(path, _digest(contents), zlib.compress(contents))


def _look(stat: os.stat_result) -> tuple[int, ...] | None:
    """What changes with a file; None if another change might not show in it yet."""
    if abs(time.time_ns() - stat.st_mtime_ns) < _SURE_AFTER:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


def _digest(contents: bytes) -> bytes:
    return hashlib.blake2b(contents, digest_size=16).digest()


def checked_path(path: str | os.PathLike[str]) -> str:
    """A script's path, absolute and without symbolic links.

    Raises:
        TypeError, FileNotFoundError, IsADirectoryError, ValueError: If it is none.
    """
    given: object = os.fspath(path)
    if not isinstance(given, str):
        msg = f"the path of a script must be a text or a Path, not {path!r}"
        raise TypeError(msg)
    real = os.path.realpath(given)
    if os.path.isdir(real):
        msg = "a script must be a file"
        raise IsADirectoryError(errno.EISDIR, msg, given)
    if not os.path.exists(real):
        msg = "no such script"
        raise FileNotFoundError(errno.ENOENT, msg, given)
    if not real.endswith(".py"):
        msg = f"a script's name must end in .py: {given!r}"
        raise ValueError(msg)
    return real


class Script:
    """A Python file whose functions run in workers; made by :meth:`Executor.script`.

    ``script.predict(x)`` and ``script["predict"](x)`` submit a call of its function
    ``predict`` and return a :class:`shmexec.Future`, or a :class:`shmexec.Stream` if it
    is a generator function. Coroutines are awaited in the worker. ``script["Classifier.predict"](x)``
    calls a method of the one instance that each worker has of that class, made without
    arguments at the first such call.

    Arguments are checked before anything is sent. Calls keep the version of the script
    that was in use when they were submitted. What a script has under a name of this
    class (``functions``, ``options``, ``reload``) is reached by ``script["reload"]``.

    The first call in a worker loads the script, and a ``timeout`` includes that; not
    with :func:`shmexec.load`, whose workers load it as they start.

    Example:
        >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
        >>> script = ex.script("model.py")
        >>> script.double(21).result(), script["double"](4).result()
        (42, 8)
    """

    def __init__(
        self, file: ScriptFile, options: CallOptions, buffersize: int = _BUFFERSIZE
    ) -> None:
        self._file = file
        self._options = options
        self._buffersize = positive_int("buffersize", buffersize, CREDIT_AT_MOST)

    def functions(self) -> Mapping[str, FunctionInfo]:
        """What can be called, by name, in the order in which it is defined.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> [*ex.script("model.py").functions()]
            ['double']
        """
        return self._file.current().infos

    def reload(self) -> bool:
        """Load the file again, if it has changed since it was loaded.

        One worker loads it now, after the calls submitted before; the others do at their
        next call. Module state starts afresh, also that of neighbours that the script
        imports. Only the file itself is looked at.

        Returns:
            Whether it had changed.

        Raises:
            Exception: Whatever it raises while it is loaded, or if it is gone. The
                version before stays in use.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> script = ex.script("model.py")
            >>> script.reload()
            False
            >>> _ = Path("model.py").write_text("def double(x): return x + x")
            >>> script.reload()
            True
        """
        return self._file.reload()

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        priority: int | None = None,
        buffersize: int | None = None,
    ) -> Script:
        """The same script with other settings for the calls made through it.

        Args:
            timeout: Seconds a call may run. Default: as here.
            retries: How often it runs again after its worker died. Default: as here.
            priority: Calls of a higher one run earlier. Default: as here.
            buffersize: How many items a generator may be ahead of the consumer of its
                stream. Default: as here, at first 16.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> ex.script("model.py").options(timeout=60).double(21).result()
            42
        """
        own = self._options
        return Script(
            self._file,
            CallOptions(
                own.timeout if timeout is None else timeout,
                own.retries if retries is None else retries,
                own.priority if priority is None else priority,
            ),
            self._buffersize if buffersize is None else buffersize,
        )

    def __getitem__(self, name: str) -> ScriptFunction:
        self._find(name)
        return ScriptFunction(self, name)

    def __getattr__(self, name: str) -> ScriptFunction:
        if name[:1] == "_":
            # Others look for protocols here; and a script's own are its own.
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg, name=name, obj=self)
        return self[name]

    def __dir__(self) -> list[str]:
        own = (name for name in self._file.version.infos if "." not in name)
        return sorted({*super().__dir__(), *own})

    def __repr__(self) -> str:
        return (
            f"<shmexec.{type(self).__name__} {self._file.path!r}: "
            f"{', '.join(self._file.version.infos) or 'no functions'}>"
        )

    def _find(self, name: str) -> tuple[_Version, FunctionInfo]:
        version = self._file.current()
        info = version.infos.get(name)
        if info is None:
            raise _unknown(self._file.path, name, tuple(version.infos))
        return version, info

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        version, info = self._find(name)
        ordered = info.check(self._file.path, args, kwargs)
        entry = version.entry(name)
        if "generator" in info.kind:
            return self._file.stream(
                entry, args, kwargs, self._options, self._buffersize
            )
        store = self._file.store
        key = None if store is None else _key(version, info, *ordered)
        if store is None or key is None:
            return self._file.pool.submit(entry, args, kwargs, self._options)
        self._file.pool.check_open()
        return _kept(store, key) or self._file.pool.submit(
            entry, args, kwargs, self._options, keep=partial(_keep, store, key)
        )


def _key(
    version: _Version,
    info: FunctionInfo,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bytes | None:
    """What names the result of a call; None if it is not to be kept."""
    try:
        return digest(version.contents, info.name, args, kwargs)
    except NoDigestError:
        return None


def _kept(store: Store, key: bytes) -> Future[Any] | None:
    """A future that has the result which was kept, if there is one."""
    blob = store.get(key)
    if blob is None:
        return None
    from shmexec.runtime.futures import Future

    try:
        value = blob.value()
    except Exception:  # noqa: BLE001  (a class of it is gone: as if it was not there)
        return None
    future: Future[Any] = Future()
    future.cached = True
    future.set_running_or_notify_cancel()
    future.set_result(value)
    return future


def _keep(store: Store, key: bytes, result: object) -> None:
    blob = Blob.of(result)
    if blob is not None:
        store.put(key, blob)


def _unknown(path: str, name: str, names: tuple[str, ...]) -> UnknownFunction:
    closest = _closest(str(name), names)
    hint = "" if closest is None else f"; did you mean {closest!r}?"
    there = f"It has {', '.join(names)}" if names else "It has none"
    msg = f"{path} has no function {name!r}{hint or '.'} {there}"
    return UnknownFunction(msg, names=names, closest=closest)


def _closest(name: str, names: tuple[str, ...]) -> str | None:
    """The name that was perhaps meant: if none is alike, a method's without its class."""
    methods = {each.rpartition(".")[2]: each for each in reversed(names)}
    for number, among in (0.7, names), (0.7, tuple(methods)), (0.4, names):
        close = difflib.get_close_matches(name, among, 1, number)
        if close:
            return close[0] if close[0] in names else methods[close[0]]
    return None


class ScriptFunction:
    """A function of a script, called in a worker; always of the version in use.

    Example:
        >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
        >>> double = ex.script("model.py").double
        >>> double(21).result()
        42
    """

    def __init__(self, script: Script, name: str) -> None:
        self._script = script
        self._name = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Submit a call.

        Returns:
            A :class:`shmexec.Future`; of a generator function a :class:`shmexec.Stream`.

        Raises:
            WrongArguments: If the function does not take these.
            UnknownFunction: If the script was loaded again, without this function.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> ex.script("model.py").double(x=21).result()
            42
        """
        return self._script._call(self._name, args, kwargs)  # noqa: SLF001

    @property
    def info(self) -> FunctionInfo:
        """Its signature, kind and doc.

        Example:
            >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
            >>> str(ex.script("model.py").double.info)
            'double(x)'
        """
        return self._script._find(self._name)[1]  # noqa: SLF001

    @property
    def __signature__(self) -> inspect.Signature | None:
        return self.info.signature

    def __repr__(self) -> str:
        return f"<{self.info} of {self._script!r}>"
