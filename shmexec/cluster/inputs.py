"""Large inputs: sent to the cluster once, known by their content, sent again if lost.

What a call is given must not change after ``submit``, and must not be lost with a node. So
there is a copy of it here for as long as the future of a call lives that needs it; none of
what cannot change, nor of what is lent for the time of a call that waits. When no call needs an input any more it stays on the
cluster for later ones, up to ``keep`` bytes of them; then it goes there, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numpy as np

from shmexec.cluster.cargo import Cargo
from shmexec.memory.files import in_file
from shmexec.memory.views import loan_of

if TYPE_CHECKING:
    from distributed import Client, Future as DaskFuture

    from shmexec.worker.remote import Form

SEND_FROM = 256 * 1024
"""Bytes from which something is sent by itself; less goes along with the call."""

SENDS_AT_MOST = 4
"""How often sending is tried: as often as Dask has a call run whose node is lost."""


class Sent:
    """One input on the cluster.

    Args:
        client: Of the cluster.
        name: Of its content.
        nbytes: Its size.
        direct: Whether nodes can be reached from here.
    """

    def __init__(
        self, client: Client, name: str, nbytes: int, direct: bool | None
    ) -> None:
        self._client = client
        self._name = name
        self._direct = direct
        self._cargo: weakref.ref[Cargo] | None = None
        self._remote: DaskFuture[Any] | None = None
        self._times = 0
        # Held while it is sent: who needs it, too, waits for that. What ends the
        # transfer, also the loss of the scheduler, wakes them.
        self._sending = threading.Lock()
        self.nbytes = nbytes

    def held(self) -> Cargo | None:
        """The copy that is here, if a call keeps one."""
        return None if self._cargo is None else self._cargo()

    def hold(self, cargo: Cargo) -> Cargo:
        """The copy that is here, this one if there was none; to be kept by the call."""
        own = self.held()
        if own is None:
            self._cargo = weakref.ref(cargo)
            return cargo
        return own

    def remote(self, cargo: Cargo, count: Callable[[int], object]) -> DaskFuture[Any]:
        """Where it is on the cluster; sends it if it is not there.

        Args:
            cargo: The input.
            count: Told the bytes that were sent.
        """
        with self._sending:
            if self._remote is None or self._remote.cancelled():
                self._remote = self._send(cargo)
                count(self.nbytes)
            return self._remote

    def _send(self, cargo: Cargo) -> DaskFuture[Any]:
        """Send it to a node; to the next one if that is lost on the way."""
        attempts = 0
        while True:
            # Under another name than before: a lost one may still be spoken of.
            self._times += 1
            attempts += 1
            key = f"shmexec-input-{self._name}-{self._times}"
            try:
                return self._client.scatter(
                    {key: cargo}, direct=self._direct, hash=False
                )[key]
            except OSError:  # Dask's errors of connections are such
                if attempts == SENDS_AT_MOST:
                    raise


class Inputs:
    """All inputs of one executor.

    Args:
        client: Of the cluster.
        keep: Bytes that stay there for later calls.
        direct: Whether nodes can be reached from here; None: as the client knows.
    """

    def __init__(self, client: Client, keep: int, direct: bool | None) -> None:
        self._client = client
        self._keep = keep
        self._direct = direct
        # Guards all below; held for bookkeeping only.
        self._lock = threading.Lock()
        self._alive: weakref.WeakValueDictionary[str, Sent] = (
            weakref.WeakValueDictionary()
        )
        self._latest: OrderedDict[str, Sent] = OrderedDict()
        self._latest_bytes = 0
        self._loans: list[Loan] = []
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.sent = self.bytes_sent = self.reused = 0

    @contextlib.contextmanager
    def lend(self, arrays: Iterable[np.ndarray]) -> Iterator[None]:
        """Take no copies of these, or of parts of them: they do not change meanwhile."""
        loan = Loan([_bounds(array) for array in arrays if array.flags.forc])
        with self._lock:
            self._loans.append(loan)
        try:
            yield
        finally:
            loan.over = True
            with self._lock:
                self._loans.remove(loan)

    def add_array(self, array: np.ndarray) -> Need:
        """An array that a call needs."""
        constant = is_constant(array)
        known = self._names.get(id(array)) if constant else None
        if known is not None and known[0]() is array:
            name = known[1]
        else:
            name = name_of(array)
            if constant:
                self._remember(array, name)
        with self._lock:
            loans = [] if constant else [*self._loans]
        loan = next((each for each in loans if each.covers(array)), None)

        def copy() -> np.ndarray:
            if loan is not None or (constant and array.flags.forc):
                return array.view(np.ndarray)
            return np.array(array, order="K", subok=False)

        return self._add(name, "array", array.nbytes, copy, loan)

    def add_packed(self, data: np.ndarray, owner: Any = None) -> Need:
        """A packed object that a call needs.

        Args:
            data: Its bytes, which do not change any more.
            owner: The handle of an object that was shared.
        """
        name = name_of(data) + ("" if owner is None else "-kept")
        if owner is not None:
            self._remember(owner, name)
        return self._add(name, "object", data.nbytes, lambda: data)

    def find_packed(self, owner: Any) -> Need | None:
        """What was added for a handle, if that is still known here."""
        known = self._names.get(id(owner))
        if known is None or known[0]() is not owner:
            return None
        with self._lock:
            sent = self._alive.get(known[1])
            cargo = None if sent is None else sent.held()
            if sent is None or cargo is None:
                return None
            self.reused += 1
            return Need(self, sent, cargo)

    def _remember(self, owner: Any, name: str) -> None:
        number = id(owner)

        def forget(_: object) -> None:
            self._names.pop(number, None)

        self._names[number] = weakref.ref(owner, forget), name

    def _add(
        self,
        name: str,
        form: Form,
        nbytes: int,
        copy: Callable[[], np.ndarray],
        loan: Loan | None = None,
    ) -> Need:
        with self._lock:
            sent = self._alive.get(name)
            cargo = None if sent is None else sent.held()
        if cargo is None:
            cargo = Cargo(form, copy(), kept=name.endswith("-kept"))
        with self._lock:
            sent = self._alive.get(name)
            if sent is None:
                sent = Sent(self._client, name, nbytes, self._direct)
                self._alive[name] = sent
            else:
                self.reused += 1
            if loan is None:
                cargo = sent.hold(cargo)
            if name not in self._latest:
                self._latest_bytes += nbytes
            self._latest[name] = sent
            self._latest.move_to_end(name)
            while self._latest_bytes > self._keep:
                self._latest_bytes -= self._latest.popitem(last=False)[1].nbytes
        return Need(self, sent, cargo, loan)

    def count(self, nbytes: int) -> None:
        """Note that an input was sent."""
        with self._lock:
            self.sent += 1
            self.bytes_sent += nbytes

    def clear(self) -> None:
        """Let go of what is kept for later calls."""
        with self._lock:
            self._latest.clear()
            self._latest_bytes = 0


class Loan:
    """Memory that does not change until the loan is over.

    Args:
        bounds: First address, and that behind the last, of each part of it.
    """

    def __init__(self, bounds: list[tuple[int, int]]) -> None:
        self._bounds = bounds
        self.over = False

    def covers(self, array: np.ndarray) -> bool:
        """Whether an array lies in it, in one piece."""
        low, high = _bounds(array)
        return array.flags.forc and any(
            first <= low and high <= last for first, last in self._bounds
        )


def _bounds(array: np.ndarray) -> tuple[int, int]:
    """Address of the first byte of a contiguous array, and that behind the last."""
    low = int(array.__array_interface__["data"][0])
    return low, low + array.nbytes


class Need:
    """An input as one call needs it: holds the copy that is here."""

    def __init__(
        self, inputs: Inputs, sent: Sent, cargo: Cargo, loan: Loan | None = None
    ) -> None:
        self._inputs = inputs
        self._sent = sent
        self._loan = loan
        self.cargo = cargo

    def remote(self) -> DaskFuture[Any]:
        """Where it is on the cluster; sends it if need be."""
        if self._loan is not None and self._loan.over:
            raise CancelledError  # and nobody waits for the call any more
        return self._sent.remote(self.cargo, self._inputs.count)


def name_of(array: np.ndarray) -> str:
    """A name for the content of an array, of its dtype, shape and order.

    By SHA-256, which processors have instructions for: three times as fast as others.
    """
    order = "F" if array.flags.fnc else "C"
    flat = np.ascontiguousarray(array.T if order == "F" else array)
    kind = pickle.dumps((array.dtype, array.shape, order), 5)
    found = hashlib.sha256(kind)
    found.update(flat.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def is_constant(array: np.ndarray) -> bool:
    """Whether nobody can write to it: it was shared, or is mapped read-only."""
    if array.flags.writeable:
        return False
    loan = loan_of(array)
    if loan is not None:
        return loan.mode == "r"
    with contextlib.suppress(OSError):
        return in_file(array) is not None
    return False
