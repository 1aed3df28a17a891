"""Budget: one idea per test. Random sequences are in tests/property."""

from __future__ import annotations

import pytest

from shmexec.memory.budget import Budget


@pytest.fixture
def budget():
    budget = Budget(100)
    budget.open("args")
    budget.open("worker", 30)
    yield budget
    budget.validate()


def test_a_charge_counts_in_its_account_and_in_the_total(budget):
    assert budget.charge("worker", 10)
    assert (budget.used("worker"), budget.used("args"), budget.used()) == (10, 0, 10)


def test_a_charge_over_the_accounts_limit_changes_nothing(budget):
    assert not budget.charge("worker", 31)
    assert budget.used() == 0
    assert budget.charge("worker", 30)


def test_a_charge_over_the_total_changes_nothing(budget):
    assert budget.charge("args", 90)
    assert not budget.charge("worker", 11)
    assert budget.used("worker") == 0


def test_free_is_what_both_limits_leave(budget):
    assert (budget.free("args"), budget.free("worker"), budget.free()) == (100, 30, 100)
    budget.charge("args", 80)
    assert (budget.free("args"), budget.free("worker"), budget.free()) == (20, 20, 20)


def test_a_discharge_makes_room(budget):
    budget.charge("args", 100)
    budget.discharge("args", 40)
    assert budget.charge("args", 40)


def test_more_than_charged_cannot_be_discharged(budget):
    budget.charge("args", 10)
    with pytest.raises(ValueError, match="cannot discharge 11 bytes"):
        budget.discharge("args", 11)
    assert budget.used("args") == 10


@pytest.mark.parametrize("account", ["worker", "unknown", None])
def test_another_accounts_charges_cannot_be_discharged(budget, account):
    budget.charge("args", 10)
    with pytest.raises(ValueError, match="cannot discharge"):
        budget.discharge(account, 1)
    assert budget.used() == 10


@pytest.mark.parametrize("name", ["charge", "discharge"])
def test_negative_amounts_are_refused(budget, name):
    with pytest.raises(ValueError, match="negative"):
        getattr(budget, name)("args", -1)


def test_negative_limits_are_refused(budget):
    with pytest.raises(ValueError, match="negative"):
        Budget(-1)
    with pytest.raises(ValueError, match="negative"):
        budget.open("new", -1)


def test_the_charges_of_a_closed_account_count_until_discharged(budget):
    budget.charge("worker", 30)
    budget.close("worker")
    assert budget.free("args") == 70
    budget.discharge("worker", 30)
    assert budget.free("args") == 100


@pytest.mark.parametrize("call", ["charge", "close", "free", "limit"])
def test_a_closed_account_is_not_open(budget, call):
    budget.charge("worker", 10)
    budget.close("worker")
    with pytest.raises(ValueError, match="not open"):
        getattr(budget, call)("worker", *([1] if call == "charge" else []))


def test_an_account_opened_again_has_its_old_charges(budget):
    budget.charge("worker", 30)
    budget.close("worker")
    budget.open("worker", 20)
    assert (budget.used("worker"), budget.free("worker")) == (30, 0)
    assert not budget.charge("worker", 1)
    budget.discharge("worker", 15)
    assert budget.free("worker") == 5


def test_an_account_is_opened_once(budget):
    with pytest.raises(ValueError, match="it is open"):
        budget.open("args")


def test_none_is_no_account(budget):
    with pytest.raises(ValueError, match="None"):
        budget.open(None)


def test_an_account_without_limit_has_the_total_one(budget):
    assert (budget.limit(), budget.limit("args"), budget.limit("worker")) == (
        100,
        100,
        30,
    )


def test_raising_the_limit_makes_room(budget):
    budget.charge("args", 100)
    budget.raise_limit(150)
    assert (budget.free("args"), budget.limit()) == (50, 150)


def test_the_limit_is_not_lowered(budget):
    with pytest.raises(ValueError, match="cannot raise"):
        budget.raise_limit(99)
    assert budget.limit() == 100


@pytest.fixture
def executors():
    budget = Budget(100)
    budget.open("executor", 50)
    budget.open("actor", within="executor")
    yield budget
    budget.validate()


def test_the_limit_of_an_account_holds_for_those_within_it(executors):
    assert executors.charge("executor", 20)
    assert not executors.charge("actor", 31)
    assert executors.charge("actor", 30)
    assert (executors.used("executor"), executors.used("actor")) == (50, 30)
    assert (executors.free("actor"), executors.free()) == (0, 50)
    assert executors.limit("actor") == 50


def test_an_account_is_closed_after_those_within_it(executors):
    with pytest.raises(ValueError, match="lie in it"):
        executors.close("executor")
    executors.charge("actor", 10)
    executors.close("actor")
    executors.close("executor")
    assert executors.used("executor") == executors.used() == 10
    executors.discharge("actor", 10)
    assert executors.used() == 0


def test_what_nothing_takes_leaves_room_past_the_limits(executors):
    executors.charge("actor", 50)
    assert not executors.charge("executor", 20, {"actor": 19})
    assert executors.charge("executor", 20, {"actor": 20})
    assert (executors.used("executor"), executors.free("executor")) == (70, 0)
    assert executors.charge("executor", 0)


def test_what_another_account_leaves_unused_helps_only_the_total(executors):
    executors.open("other")
    executors.charge("other", 80)
    assert executors.free("actor", {"other": 70}) == 50
