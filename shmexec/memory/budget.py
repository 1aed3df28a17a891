"""How many bytes of shared memory a parent process and its workers may take.

One limit holds for all accounts together; each account (all that is an executor's, or
one pool's part of that) may have a limit of its own besides. Not here: who waits when a
charge is refused, and how much memory the machine has. No lock is held; the caller's own
guards it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

_NOTHING: Mapping[Hashable, int] = MappingProxyType({})


class NotOpen(ValueError):
    """The account is not open, or not any more."""


class Budget:
    """A limit in bytes, and the accounts that share it.

    An account's limit reserves nothing: the limits may add up to more than the total, and
    whoever comes first is served. Accounts may lie within others: a charge counts in all
    that it lies in, and all their limits hold.

    Args:
        limit: What all accounts together may be charged, in bytes.

    Raises:
        ValueError: If the limit is negative.

    Example:
        >>> budget = Budget(100)
        >>> budget.open("executor", limit=30)
        >>> budget.open("actor", within="executor")
        >>> budget.charge("actor", 40), budget.charge("actor", 30)
        (False, True)
        >>> budget.free("executor"), budget.free()
        (0, 70)
    """

    def __init__(self, limit: int) -> None:
        self._limit = _checked("limit", limit)
        self._used = 0
        # Open accounts have a limit. What a closed one still owes stays in `_charged`
        # until it is discharged; without charges it is forgotten.
        self._limits: dict[Hashable, int | None] = {}
        self._charged: dict[Hashable, int] = {}
        # Each with those that it lies in, from the inside out.
        self._paths: dict[Hashable, tuple[Hashable, ...]] = {}

    def open(
        self, account: Hashable, limit: int | None = None, within: Hashable = None
    ) -> None:
        """Open an account.

        One that was closed and still has charges opens again with these.

        Args:
            account: Its name; anything hashable but ``None``, which means the total.
            limit: What it may be charged, in bytes; by default only the total limits it.
            within: An open account that it is a part of.

        Raises:
            ValueError: If the account is open, the one it is to lie in is not, or the
                limit is negative.
        """
        if account is None:
            msg = "cannot open an account named None: that means all accounts together"
            raise ValueError(msg)
        if account in self._limits:
            msg = f"cannot open account {account!r}: it is open; close it first"
            raise ValueError(msg)
        path: tuple[Hashable, ...] = (account,)
        if within is not None:
            self._check_open(within)
            path += self._paths[within]
        if self._paths.get(account, path) != path:
            msg = f"cannot move account {account!r}: it still has charges elsewhere"
            raise ValueError(msg)
        self._limits[account] = None if limit is None else _checked("limit", limit)
        self._charged.setdefault(account, 0)
        self._paths[account] = path

    def close(self, account: Hashable) -> None:
        """Close an account: nothing more can be charged to it.

        What it was charged goes on to count in the total until it is discharged: the
        blocks of a dead worker take memory as long as somebody reads them.

        Raises:
            ValueError: If the account is not open, or others that are lie in it.
        """
        self._check_open(account)
        if any(account in self._paths[other][1:] for other in self._limits):
            msg = f"cannot close account {account!r}: close those that lie in it first"
            raise ValueError(msg)
        del self._limits[account]
        self._forget_if_settled(account)

    def charge(
        self,
        account: Hashable,
        nbytes: int,
        unused: Mapping[Hashable, int] = _NOTHING,
    ) -> bool:
        """Charge an account, if all limits it is under allow.

        Args:
            account: Which one.
            nbytes: How much.
            unused: By account, bytes among the charges that nothing takes: they leave
                room for others, whose charges may then go past the limits by as much.

        Returns:
            False if one of the limits would be passed: nothing changes then.

        Raises:
            ValueError: If the account is not open, or `nbytes` is negative.
        """
        self._check_open(account)
        _checked("charge", nbytes)
        if nbytes > self.free(account, unused):
            return False
        self.charge_beyond(account, nbytes)
        return True

    def charge_beyond(self, account: Hashable, nbytes: int) -> None:
        """Charge an account whatever the limits say: they count as used up until then.

        For what exists already and is larger than any room that could be made for it.

        Raises:
            ValueError: If the account is not open, or `nbytes` is negative.
        """
        self._check_open(account)
        _checked("charge", nbytes)
        for each in self._paths[account]:
            self._charged[each] += nbytes
        self._used += nbytes

    def discharge(self, account: Hashable, nbytes: int) -> None:
        """Give back what an account, open or closed, was charged.

        Raises:
            ValueError: If `nbytes` is negative, or more than the account's charges;
                nothing changes then.
        """
        _checked("discharge", nbytes)
        charged = self._charged.get(account, 0)
        if nbytes > charged:
            msg = (
                f"cannot discharge {nbytes} bytes from account {account!r}: it has "
                f"{charged}; discharge each charge once"
            )
            raise ValueError(msg)
        self._used -= nbytes
        for each in self._paths.get(account, ()):
            self._charged[each] -= nbytes
            self._forget_if_settled(each)

    def raise_limit(self, limit: int) -> None:
        """Raise the total limit.

        Raises:
            ValueError: If the new limit is below the present one.
        """
        if limit < self._limit:
            msg = f"cannot raise the limit to {limit} bytes: it is {self._limit} now"
            raise ValueError(msg)
        self._limit = limit

    def used(self, account: Hashable = None) -> int:
        """Return the bytes charged to an account, by default to all, closed ones too.

        What was charged to accounts within it counts. An account that never was, or was
        closed and discharged, has none.
        """
        return self._used if account is None else self._charged.get(account, 0)

    def free(
        self, account: Hashable = None, unused: Mapping[Hashable, int] = _NOTHING
    ) -> int:
        """Return the bytes that could still be charged to an open account.

        Args:
            account: Which one; by default any.
            unused: As in :meth:`charge`.

        Raises:
            ValueError: If the account is not open.
        """
        left = self._limit - self._used
        if unused:
            left += sum(unused.values())
        for each in self._path(account):
            limit = self._limits.get(each)
            if limit is not None:
                room = limit - self._charged[each]
                if unused:
                    room += self._sum_within(each, unused)
                left = min(left, room)
        # Below zero after charges beyond the limit, or where an account was opened
        # again with more charges than its limit.
        return max(0, left)

    def limit(self, account: Hashable = None) -> int:
        """Return what an open account may be charged at most, in bytes.

        That is the total limit by default, and for an account that has none of its own
        and lies in none that has.

        Raises:
            ValueError: If the account is not open.
        """
        limits = [self._limits.get(each) for each in self._path(account)]
        return min([self._limit, *(each for each in limits if each is not None)])

    def validate(self) -> None:
        """Assert that the total is the sum of the accounts."""
        parts: dict[Hashable, int] = {}
        for account, nbytes in self._charged.items():
            within = [*self._paths[account][1:], None][0]
            parts[within] = parts.get(within, 0) + nbytes
        assert self._used == parts.pop(None, 0), "total and accounts disagree"
        assert all(n <= self._charged[a] for a, n in parts.items()), "more within it"
        assert self._used >= 0, "a negative total"
        assert all(n >= 0 for n in self._charged.values()), "a negative account"
        assert self._limits.keys() <= self._charged.keys(), "an account without record"
        assert self._paths.keys() == self._charged.keys(), "an account without place"
        settled = [a for a, n in self._charged.items() if not n]
        assert all(a in self._limits for a in settled), "a settled account is listed"

    def _path(self, account: Hashable) -> tuple[Hashable, ...]:
        if account is None:
            return ()
        self._check_open(account)
        return self._paths[account]

    def _sum_within(self, account: Hashable, unused: Mapping[Hashable, int]) -> int:
        return sum(
            nbytes
            for other, nbytes in unused.items()
            if account in self._paths.get(other, ())
        )

    def _forget_if_settled(self, account: Hashable) -> None:
        if not self._charged[account] and account not in self._limits:
            del self._charged[account], self._paths[account]

    def _check_open(self, account: Hashable) -> None:
        if account not in self._limits:
            msg = f"account {account!r} is not open: open it before it is used"
            raise NotOpen(msg)


def _checked(what: str, nbytes: int) -> int:
    if nbytes < 0:
        msg = f"a {what} of {nbytes} bytes is negative: give zero or more"
        raise ValueError(msg)
    return nbytes
