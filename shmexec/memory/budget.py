"""How many bytes of shared memory a parent process and its workers may take.

One limit holds for all accounts together; each account (the parent's arguments, one
worker's results) may have a limit of its own besides. Not here: who waits when a charge is
refused, and how much memory the machine has. No lock is held; the caller's own guards it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class Budget:
    """A limit in bytes, and the accounts that share it.

    An account's limit reserves nothing: the limits may add up to more than the total, and
    whoever comes first is served.

    Args:
        limit: What all accounts together may be charged, in bytes.

    Raises:
        ValueError: If the limit is negative.

    Example:
        >>> budget = Budget(100)
        >>> budget.open("arguments")
        >>> budget.open("worker 1", limit=30)
        >>> budget.charge("worker 1", 40), budget.charge("worker 1", 30)
        (False, True)
        >>> budget.free("arguments")
        70
    """

    def __init__(self, limit: int) -> None:
        self._limit = _checked("limit", limit)
        self._used = 0
        # Open accounts have a limit. What a closed one still owes stays in `_charged`
        # until it is discharged; without charges it is forgotten.
        self._limits: dict[Hashable, int | None] = {}
        self._charged: dict[Hashable, int] = {}

    def open(self, account: Hashable, limit: int | None = None) -> None:
        """Open an account.

        One that was closed and still has charges opens again with these.

        Args:
            account: Its name; anything hashable but ``None``, which means the total.
            limit: What it may be charged, in bytes; by default only the total limits it.

        Raises:
            ValueError: If the account is open, or the limit is negative.
        """
        if account is None:
            msg = "cannot open an account named None: that means all accounts together"
            raise ValueError(msg)
        if account in self._limits:
            msg = f"cannot open account {account!r}: it is open; close it first"
            raise ValueError(msg)
        self._limits[account] = None if limit is None else _checked("limit", limit)
        self._charged.setdefault(account, 0)

    def close(self, account: Hashable) -> None:
        """Close an account: nothing more can be charged to it.

        What it was charged goes on to count in the total until it is discharged: the
        blocks of a dead worker take memory as long as somebody reads them.

        Raises:
            ValueError: If the account is not open.
        """
        self._check_open(account)
        del self._limits[account]
        if not self._charged[account]:
            del self._charged[account]

    def charge(self, account: Hashable, nbytes: int) -> bool:
        """Charge an account, if both its limit and the total allow.

        Returns:
            False if one of the limits would be passed: nothing changes then.

        Raises:
            ValueError: If the account is not open, or `nbytes` is negative.
        """
        self._check_open(account)
        _checked("charge", nbytes)
        if nbytes > self.free(account):
            return False
        self._charged[account] += nbytes
        self._used += nbytes
        return True

    def charge_beyond(self, account: Hashable, nbytes: int) -> None:
        """Charge an account whatever the limits say: they count as used up until then.

        For what exists already and is larger than any room that could be made for it.

        Raises:
            ValueError: If the account is not open, or `nbytes` is negative.
        """
        self._check_open(account)
        self._charged[account] += _checked("charge", nbytes)
        self._used += nbytes

    def discharge(self, account: Hashable, nbytes: int) -> None:
        """Give back what an account, open or closed, was charged.

        Raises:
            ValueError: If `nbytes` is negative, or more than the account's charges;
                nothing changes then.
        """
        _checked("discharge", nbytes)
        charged = self._charged.get(account, 0)
        left = charged - nbytes
        if left < 0:
            msg = (
                f"cannot discharge {nbytes} bytes from account {account!r}: it has "
                f"{charged}; discharge each charge once"
            )
            raise ValueError(msg)
        self._used -= nbytes
        if left or account in self._limits:
            self._charged[account] = left
        else:
            self._charged.pop(account, None)

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

        An account that never was, or was closed and discharged, has none.
        """
        return self._used if account is None else self._charged.get(account, 0)

    def free(self, account: Hashable = None) -> int:
        """Return the bytes that could still be charged to an open account.

        Raises:
            ValueError: If the account is not open.
        """
        # Below zero after charges beyond the limit, or where an account was opened
        # again with more charges than its limit.
        total = max(0, self._limit - self._used)
        if account is None:
            return total
        left = self.limit(account) - self._charged[account]
        return max(0, min(total, left))

    def limit(self, account: Hashable = None) -> int:
        """Return what an open account may be charged at most, in bytes.

        That is the total limit by default, and for an account that has none of its own.

        Raises:
            ValueError: If the account is not open.
        """
        if account is None:
            return self._limit
        self._check_open(account)
        limit = self._limits[account]
        return self._limit if limit is None else min(limit, self._limit)

    def validate(self) -> None:
        """Assert that the total is the sum of the accounts."""
        assert self._used == sum(self._charged.values()), "total and accounts disagree"
        assert self._used >= 0, "a negative total"
        assert all(n >= 0 for n in self._charged.values()), "a negative account"
        assert self._limits.keys() <= self._charged.keys(), "an account without record"
        settled = [a for a, n in self._charged.items() if not n]
        assert all(a in self._limits for a in settled), "a settled account is listed"

    def _check_open(self, account: Hashable) -> None:
        if account not in self._limits:
            msg = f"account {account!r} is not open: open it before it is used"
            raise ValueError(msg)


def _checked(what: str, nbytes: int) -> int:
    if nbytes < 0:
        msg = f"a {what} of {nbytes} bytes is negative: give zero or more"
        raise ValueError(msg)
    return nbytes
