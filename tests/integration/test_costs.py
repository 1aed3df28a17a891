"""What data of other libraries costs each way, as the table in the README says.

Counted by ``ex.stats()``, in multiples of the bytes of the data: given to a call, handed
back by it, and made in it.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest

import shmexec
from tests.contract import calls

pytestmark = pytest.mark.slow

N = 100_000
TOLERANCE = 0.1
"""Pickles, and parts under 32 KiB, are counted where they go through a block."""


def masked() -> Any:
    """Half of it is."""
    return np.ma.masked_array(np.arange(N) / 2, np.arange(N) % 2 == 0)


def frame() -> Any:
    """Numbers of two types, and times."""
    pd = importlib.import_module("pandas")
    times = pd.date_range("2020", periods=N, freq="s")
    return pd.DataFrame({"x": np.arange(N) / 2, "n": np.arange(N), "t": times})


def sparse() -> Any:
    """A matrix by rows."""
    scipy_sparse = importlib.import_module("scipy.sparse")
    rng = np.random.default_rng(3)
    return scipy_sparse.random_array(
        (10_000, 1000), density=0.02, format="csr", rng=rng
    )


def table() -> Any:
    """Numbers and texts."""
    pa = importlib.import_module("pyarrow")
    return pa.table({"n": range(N), "text": [f"{n:010}" for n in range(N)]})


def polars_frame() -> Any:
    """Numbers, with gaps, and texts."""
    pl = importlib.import_module("polars")
    some = pl.Series([1.5, None] * (N // 2))
    return pl.DataFrame({"n": range(N), "some": some}).with_columns(
        text=pl.col("n").cast(pl.String)
    )


def dataset() -> Any:
    """Two variables, one coordinate with an index."""
    xr = importlib.import_module("xarray")
    values = xr.DataArray(
        np.arange(N / 1).reshape(-1, 100),
        dims=("x", "y"),
        coords={"x": np.arange(N / 100) / 2},
        name="values",
    )
    return xr.Dataset({"values": values, "doubled": 2 * values})


def tensor() -> Any:
    """Of a type that NumPy does not have."""
    torch = importlib.import_module("torch")
    return torch.arange(N).bfloat16().reshape(100, -1)


class Cost(NamedTuple):
    """Copies per byte."""

    given: float
    back: float
    made: float


COSTS = {
    masked: Cost(1, 0, 0),
    frame: Cost(1, 0, 0),
    sparse: Cost(1, 0, 0),
    table: Cost(1, 0, 1),
    polars_frame: Cost(1, 0, 1),
    dataset: Cost(1, 0, 0),
    tensor: Cost(1, 0, 1),
}

NEEDS = {table: "pyarrow", polars_frame: "polars", dataset: "xarray", tensor: "torch"}


def _nbytes(value: Any) -> int:
    if hasattr(value, "memory_usage"):
        return int(value.memory_usage(index=False).sum())
    if hasattr(value, "estimated_size"):
        return int(value.to_arrow(compat_level=_newest()).nbytes)
    if isinstance(value, np.ma.MaskedArray):
        return int(value.data.nbytes + value.mask.nbytes)
    if hasattr(value, "indptr"):
        return int(value.data.nbytes + value.indices.nbytes + value.indptr.nbytes)
    return int(value.nbytes)


def _newest() -> Any:
    return importlib.import_module("polars").CompatLevel.newest()


def _equal(one: Any, other: Any) -> bool:
    if hasattr(one, "indptr"):
        return one.shape == other.shape and (one != other).nnz == 0
    if isinstance(one, np.ma.MaskedArray):
        same_mask = np.array_equal(one.mask, other.mask)
        return same_mask and np.array_equal(one.data, other.data)
    return bool(one.equals(other) if hasattr(one, "equals") else one.equal(other))


@pytest.fixture(scope="module")
def pool():
    with shmexec.Executor(1) as executor:
        # Room for what is born in its shared memory is granted after its first use.
        executor.submit(masked).result()
        executor.submit(masked).result()
        yield executor


@pytest.fixture(scope="module", autouse=True)
def _polars_has_its_threads() -> None:
    """It makes these, and their descriptors, when it first works, and keeps them."""
    if find_spec("polars") is not None:
        polars_frame()


class _Counted(NamedTuple):
    given: float
    back: float
    by_reference: float


def _count(pool: Any, nbytes: int, fn: Any, *args: Any) -> tuple[Any, _Counted]:
    before = pool.stats()
    result = pool.submit(fn, *args).result()
    after = pool.stats()
    names = ("bytes_copied_in", "bytes_copied_out", "bytes_by_reference")
    counted = (getattr(after, name) - getattr(before, name) for name in names)
    return result, _Counted(*(count / nbytes for count in counted))


@pytest.mark.parametrize("make", COSTS, ids=lambda make: make.__name__)
def test_costs(pool, make):
    if make in NEEDS:
        pytest.importorskip(NEEDS[make])
    value, cost = make(), COSTS[make]
    nbytes = _nbytes(value)

    back, counted = _count(pool, nbytes, calls.same, value)
    assert type(back) is type(value)
    assert _equal(back, value)
    assert counted.given == pytest.approx(cost.given, abs=TOLERANCE)
    assert counted.back == pytest.approx(cost.back, abs=TOLERANCE)

    pool.submit(make).result()  # what a library sets up at its first use may hold data
    made, counted = _count(pool, nbytes, make)
    assert _equal(made, value)
    assert counted.given == 0
    # Without the native part nothing is born in shared memory.
    expected = cost.made if shmexec.stats().native else 1
    assert counted.back == pytest.approx(expected, abs=TOLERANCE)


def _total(array: Any) -> float:
    return float(array.sum())


def test_memory_maps(pool, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(N, dtype=float))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    total, counted = _count(pool, mapped.nbytes, _total, mapped[N // 2 :])
    assert total == mapped[N // 2 :].sum()
    assert counted == pytest.approx((0, 0, 0.5), abs=TOLERANCE)
    back, counted = _count(pool, mapped.nbytes, calls.same, mapped)
    assert np.array_equal(back, mapped)
    assert back.flags.writeable
    assert counted == pytest.approx((0, 1, 1), abs=TOLERANCE)


def test_what_is_shared_goes_by_reference(pool):
    values = shmexec.share(masked())
    total, counted = _count(pool, _nbytes(values), _total, values)
    assert total == values.sum()
    assert counted == pytest.approx((0, 0, 1), abs=TOLERANCE)


def test_a_shared_array_stays_one_in_what_is_made_of_it(pool):
    xr = pytest.importorskip("xarray")
    values = xr.DataArray(shmexec.share(np.arange(N / 1)), dims="x")
    total, counted = _count(pool, values.nbytes, _total, values[N // 2 :])
    assert total == values[N // 2 :].sum()
    assert counted == pytest.approx((0, 0, 0.5), abs=TOLERANCE)
