"""Data of other libraries: one copy per buffer in each direction, shown by the counters."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import shmexec
from tests.contract import calls

pytestmark = pytest.mark.slow

N = 100_000
SMALL = 20_000
"""What a pickle, and parts under 32 KiB, may take beside the large buffers."""


@pytest.fixture(scope="module", params=["memfd", "posix"])
def pool(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMEXEC_SEGMENT", request.param)
        with shmexec.Executor(1) as executor:
            executor.submit(calls.pid).result()
            yield executor


@pytest.fixture
def there_and_back(pool):
    """Send something there and back; checks how much was copied each way."""

    def go(value, nbytes):
        before = pool.stats()
        result = pool.submit(calls.same, value).result()
        after = pool.stats()
        copied_in = after.bytes_copied_in - before.bytes_copied_in
        copied_out = after.bytes_copied_out - before.bytes_copied_out
        assert nbytes - SMALL <= copied_in <= nbytes + SMALL
        # None at all where the memory it came in can be handed back.
        assert copied_out <= nbytes + SMALL
        assert type(result) is type(value)
        return result

    return go


def in_shared_memory(*addresses):
    """Whether all of these addresses are of memory that came from another process."""
    with open("/proc/self/maps") as maps:
        spans = [
            [int(bound, 16) for bound in line.split()[0].split("-")]
            for line in maps
            if "memfd:shmexec" in line or "/dev/shm/" in line
        ]
    return [any(low <= at < high for low, high in spans) for at in addresses]


def _address(array):
    return array.__array_interface__["data"][0]


# -- pandas ------------------------------------------------------------------------------


def _frames():
    numbers = np.arange(N)
    yield "floats", pd.DataFrame(np.ones((N, 5))), 40 * N
    mixed = pd.DataFrame({"a": numbers, "b": numbers / 2, "c": numbers % 3 == 0})
    yield "mixed", mixed, 17 * N
    yield "every second row", mixed.iloc[::2], 17 * N // 2
    yield "some rows", mixed.iloc[1000:51_000], 17 * N // 2
    yield "nullable", pd.DataFrame({"i": pd.array(numbers, dtype="Int64")}), 9 * N
    yield "categories", pd.DataFrame({"c": pd.Categorical(numbers % 5)}), N
    times = pd.date_range("2020", periods=N, freq="s", tz="UTC")
    yield "times", pd.DataFrame({"t": times}), 8 * N
    yield "index", pd.DataFrame({"x": numbers}, index=numbers / 7), 16 * N
    yield "series", pd.Series(numbers), 8 * N
    yield "series with index", pd.Series(numbers, index=numbers / 7, name="n"), 16 * N
    yield "series by time", pd.Series(numbers, index=times), 16 * N


@pytest.mark.parametrize(
    ("frame", "nbytes"), [pytest.param(f, n, id=name) for name, f, n in _frames()]
)
def test_pandas(there_and_back, frame, nbytes):
    result = there_and_back(frame, nbytes)
    pd.testing.assert_frame_equal(pd.DataFrame(result), pd.DataFrame(frame))


def test_indexes_on_one_memory_keep_their_frequencies(pool):
    times = pd.date_range("2020", periods=N, freq="s")
    plain = pd.DatetimeIndex(times.to_numpy(), copy=False)
    for indexes in [(times, plain), (plain, times)]:
        result = pool.submit(calls.same, indexes).result()
        assert [each.freq for each in result] == [each.freq for each in indexes]


@pytest.mark.parametrize("dtype", ["string[pyarrow]", "int64[pyarrow]", "str"])
def test_pandas_on_arrow(there_and_back, dtype):
    pa = pytest.importorskip("pyarrow")
    values = pd.Series([f"{n:010}" for n in range(N)]) if "str" in dtype else range(N)
    frame = pd.DataFrame({"x": pd.Series(values, dtype=dtype)})
    nbytes = pa.array(frame["x"]).nbytes
    result = there_and_back(frame, nbytes)
    pd.testing.assert_frame_equal(result, frame)


def _frame_lies_in(frame):
    return in_shared_memory(*[_address(frame[name].to_numpy()) for name in frame])


def test_a_frame_lies_where_it_was_received(pool):
    frame = pd.DataFrame({"a": np.ones(N), "b": np.arange(N)})
    assert pool.submit(_frame_lies_in, frame).result() == [True, True]
    assert _frame_lies_in(pool.submit(calls.same, frame).result()) == [True, True]


# -- SciPy -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia"])
def test_sparse_matrices(there_and_back, kind):
    rng = np.random.default_rng(5)
    matrix = scipy.sparse.random(20_000, 2000, 0.002, random_state=rng).asformat("csr")
    if kind == "dia":
        matrix = scipy.sparse.diags(np.arange(float(N)))
    matrix = matrix.asformat(kind)
    parts = [matrix.data, *getattr(matrix, "coords", ())]
    parts += [getattr(matrix, name, np.empty(0)) for name in ("indices", "indptr")]
    result = there_and_back(matrix, sum(part.nbytes for part in parts))
    assert result.format == kind
    assert (result != matrix).nnz == 0


# -- Arrow -------------------------------------------------------------------------------


@pytest.fixture
def table():
    pa = pytest.importorskip("pyarrow")
    texts = [f"{n:010}" for n in range(N)]
    return pa.table({"n": np.arange(N), "text": texts, "some": [1.5, None] * (N // 2)})


ARROW = {
    "table": lambda t: t,
    "batch": lambda t: t.to_batches()[0],
    "column": lambda t: t["text"],
    "array": lambda t: t["some"].chunk(0),
    "dictionary": lambda t: t["text"].chunk(0).dictionary_encode(),
}


@pytest.mark.parametrize("kind", ARROW)
@pytest.mark.parametrize("rows", [None, (1000, 50_000), (7, 0), (3, 5)])
def test_arrow(there_and_back, table, kind, rows):
    data = ARROW[kind](table)
    if rows is not None:
        data = data.slice(*rows)
    nbytes = data.nbytes
    if kind == "dictionary":  # the dictionary itself is not sliced
        nbytes = data.indices.nbytes + data.dictionary.nbytes if len(data) else 0
    result = there_and_back(data, nbytes)
    assert result.equals(data)
    result.validate(full=True)


def _table_lies_in(table):
    buffers = [b for c in table.columns for b in c.chunk(0).buffers() if b is not None]
    return in_shared_memory(*[buffer.address for buffer in buffers if len(buffer) > N])


@pytest.mark.parametrize("rows", [N, N - 1])
def test_a_table_lies_where_it_was_received(pool, table, rows):
    table = table.slice(0, rows)
    assert pool.submit(_table_lies_in, table).result() == [True] * 4
    assert _table_lies_in(pool.submit(calls.same, table).result()) == [True] * 4


# -- polars ------------------------------------------------------------------------------

POLARS = {
    "frame": lambda pl: pl.DataFrame({"n": np.arange(N), "x": np.ones(N)}),
    "rows": lambda pl: pl.DataFrame({"n": np.arange(N), "x": np.ones(N)})[500:50_500],
    "two chunks": lambda pl: pl.concat([pl.DataFrame({"n": np.arange(N)})] * 2),
    "series": lambda pl: pl.Series("s", np.arange(N)),
    "with gaps": lambda pl: pl.Series([1.5, None] * (N // 2)),
    "bool": lambda pl: pl.Series(np.arange(8 * N) % 3 == 0),
    "enum": lambda pl: pl.Series(["a", "b"] * N, dtype=pl.Enum(["b", "a"])),
    "times": lambda pl: pl.Series(np.arange(N)).cast(pl.Datetime("ms", "UTC")),
    "lists": lambda pl: pl.Series([[1, 2, 3, 4], []] * (N // 8)),
    "vectors": lambda pl: pl.Series(np.ones((N // 8, 8))),
    "wide integers": lambda pl: pl.Series(range(N), dtype=pl.Int128),  # not Arrow's
}


@pytest.fixture(scope="module")
def pl():
    polars = pytest.importorskip("polars")
    # It makes its threads, and their descriptors, when it first works, and keeps them.
    polars.DataFrame({"a": [1]}).with_columns(polars.col("a") + 1)
    return polars


@pytest.mark.parametrize("kind", POLARS)
def test_polars(there_and_back, pl, kind):
    data = POLARS[kind](pl)
    result = there_and_back(data, data.estimated_size())
    assert result.equals(data)
    if kind in {"frame", "rows", "two chunks"}:
        assert result.schema == data.schema
    else:
        assert (result.name, result.dtype) == (data.name, data.dtype)


def test_polars_takes_no_text_along_that_it_does_not_show(pool, pl):
    some = pl.Series([f"{n:030}" for n in range(N)])[7:2007]
    before = pool.stats().bytes_copied_in
    assert pool.submit(calls.same, some).result().equals(some)
    assert pool.stats().bytes_copied_in - before < 30 * N / 10


def test_polars_remembers_what_is_sorted(there_and_back, pl):
    frame = pl.DataFrame({"up": np.arange(N), "down": -np.arange(N), "n": np.ones(N)})
    frame = frame.with_columns(
        pl.col("up").set_sorted(), pl.col("down").set_sorted(descending=True)
    )
    result = there_and_back(frame, frame.estimated_size())
    assert result.flags == frame.flags


# -- PyTorch -----------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


TENSORS = {
    "plain": lambda t: t.arange(N, dtype=t.float32),
    "of integers": lambda t: t.arange(N),
    "bfloat16": lambda t: t.arange(2 * N).bfloat16(),
    "complex": lambda t: t.arange(N).to(t.complex64),
    "bool": lambda t: t.arange(4 * N) % 2 == 0,
    "transposed": lambda t: t.arange(N).reshape(100, -1).T,
    "channels last": lambda t: (
        t.arange(N).reshape(2, 5, 100, 100).contiguous(memory_format=t.channels_last)
    ),
    "every second": lambda t: t.arange(2 * N)[::2],
    "part": lambda t: t.arange(10 * N)[N : 2 * N],
    "with gradient": lambda t: t.ones(N, requires_grad=True),
    "buffer of a module": lambda t: t.nn.Buffer(t.ones(N)),
    "parameter": lambda t: t.nn.Parameter(t.ones(N), requires_grad=False),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors(there_and_back, torch, kind):
    tensor = TENSORS[kind](torch)
    result = there_and_back(tensor, tensor.nelement() * tensor.element_size())
    assert torch.equal(result, tensor)
    assert result.dtype == tensor.dtype
    assert result.requires_grad == tensor.requires_grad
    if kind not in {"every second", "part"}:
        assert result.stride() == tensor.stride()
    result.detach().zero_()  # it is ours
    assert tensor.detach().any()


def _fill(tensor):
    tensor[...] = 7
    return tensor


def test_a_tensor_is_private(pool, torch):
    tensor = torch.zeros(N)
    assert pool.submit(_fill, tensor).result().min() == 7
    assert not tensor.any()


def test_a_tensor_keeps_its_attributes(there_and_back, torch):
    tensor = torch.ones(N)
    tensor.unit, tensor.itself = "metre", [tensor]
    result = there_and_back(tensor, 4 * N)
    assert result.unit == "metre"
    assert result.itself[0] is result
    del result.itself, tensor.itself  # circles, which would live on


def _other_tensors(torch):
    yield torch.eye(200).to_sparse()
    yield torch.ones(N, dtype=torch.complex64).conj()
    yield torch.empty(0)
    yield torch.tensor(3.5)
    with_attribute = torch.ones(N)
    with_attribute.unit = "metre"
    yield with_attribute


def test_other_tensors_pickle_as_ever(pool, torch):
    for tensor in _other_tensors(torch):
        result = pool.submit(calls.same, tensor).result()
        assert torch.equal(result.to_dense(), tensor.to_dense())
        assert getattr(result, "unit", None) == getattr(tensor, "unit", None)


def test_a_model(there_and_back, torch):
    model = torch.nn.Sequential(torch.nn.Linear(300, 400), torch.nn.ReLU())
    model[0].weight.requires_grad_(False)
    result = there_and_back(model, 300 * 400 * 4)
    x = torch.ones(300)
    assert torch.equal(result(x), model(x))
    assert not result[0].weight.requires_grad
    assert result[0].bias.requires_grad


def test_nothing_is_imported_that_is_not_used(run_script):
    done = run_script(
        "import sys, numpy as np, shmexec\n"
        "def look(x):\n"
        "    import sys\n"
        "    return 'torch' in sys.modules, 'pyarrow' in sys.modules\n"
        "with shmexec.Executor(1) as ex:\n"
        "    print(ex.submit(look, np.ones(10**5)).result())\n"
        "print('torch' in sys.modules, 'pyarrow' in sys.modules)\n"
    )
    assert done.stdout.split("\n")[:2] == ["(False, False)", "False False"], done.stderr
