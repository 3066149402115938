"""Replay of traces: formats, mistakes, what is loaded, threads."""

from __future__ import annotations

import gzip
import importlib
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.workloads.drawn import joined
from workloads.generators.trace import Trace
from workloads.generators.workload import WorkloadError
from workloads.operations import Op

pa: Any = importlib.import_module("pyarrow")  # neither of them has types
parquet: Any = importlib.import_module("pyarrow.parquet")

HEADER = "time,op,key,size\n"
ROWS = "10.5,update,7,100\n10.5,READ,7,\n11,scan,3,20\n12,insert,9,64\n12.25,rmw,7,80\n13,delete,9,\n13,get,1,0\n"
PARSED = [
    (Op.UPDATE, 7, 100, 0, 0.0),
    (Op.READ, 7, 0, 0, 0.0),
    (Op.SCAN, 3, 0, 20, 0.5),
    (Op.INSERT, 9, 64, 0, 1.5),
    (Op.RMW, 7, 80, 0, 1.75),
    (Op.DELETE, 9, 0, 0, 2.5),
    (Op.READ, 1, 0, 0, 2.5),
]


def replayed(path: Path, thread: int = 0, threads: int = 1) -> list[tuple[int, ...]]:
    done = joined(Trace(str(path)).run(thread, threads))
    assert done.at is not None
    return list(zip(*(column.tolist() for column in (done.op, done.key, done.size, done.length, done.at)), strict=True))


def mistake(path: Path) -> str:
    with pytest.raises(WorkloadError) as caught:
        Trace(str(path))
    text = str(caught.value)
    assert text.startswith(str(path))
    assert len(text.splitlines()) == 1
    return text.removeprefix(str(path))


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROWS,
        "\ufeff" + HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r\n"),
        "Time, Op ,KEY,size\n" + ROWS + "\n\n",
        '"time","op","key","size"\n' + ROWS.replace("READ", '" Read"'),
    ],
    ids=["plain", "bom", "crlf", "capitals and blank lines", "quotes"],
)
def test_csv(tmp_path: Path, content: str) -> None:
    assert replayed(write(tmp_path, content)) == PARSED


def test_columns_may_come_in_any_order(tmp_path: Path) -> None:
    assert replayed(write(tmp_path, "key,size,time,op\n7,100,10.5,put\n")) == PARSED[:1]


def test_gzip_whatever_the_name(tmp_path: Path) -> None:
    assert replayed(write(tmp_path, gzip.compress((HEADER + ROWS).encode()))) == PARSED


def table(**columns: Any) -> Any:
    time, op, key, size = zip(*(line.split(",") for line in ROWS.splitlines()), strict=True)
    given = {
        "time": [float(t) for t in time],
        "op": op,
        "key": [int(k) for k in key],
        "size": [int(s or 0) for s in size],
    }
    return pa.table({name: values for name, values in (given | columns).items() if values is not None})


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"size": [100, None, 20, 64, 80, None, None]},
        {"more": list(range(7))},
        {"op": pa.array(["update", "read", "scan", "insert", "rmw", "delete", "get"]).dictionary_encode()},
        {"key": pa.array([7, 7, 3, 9, 7, 9, 1], pa.uint16())},
    ],
    ids=["plain", "nulls", "more columns", "dictionary", "small integers"],
)
def test_parquet(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = tmp_path / "trace.parquet"
    parquet.write_table(table(**columns), path, row_group_size=3)
    assert replayed(path) == PARSED


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"op": ["read", "read", "read", "read", "flush", "read", "read"]}, ": row 5: op 'flush' is none of read, "),
        ({"key": None}, ": no column key; a trace has time, op, key, size"),
        ({"key": [1, 2, -3, 4, 5, 6, 7]}, ": row 3: key '-3' is not a whole number from 0 to 9223372036854775807"),
        ({"key": [1, None, 3, 4, 5, 6, 7]}, ": row 2: key '' is not a whole number"),
        ({"time": [1.0, 2.0, 1.5, 3.0, 3.0, 3.0, 3.0]}, ": row 3: time '1.5' is before that of the row above, 2.0"),
        ({"op": pa.array([b"\xff"] * 7).cast(pa.string(), safe=False)}, ": not a readable Parquet file: "),
    ],
)
def test_mistakes_in_parquet(tmp_path: Path, columns: dict[str, Any], text: str) -> None:
    path = tmp_path / "trace.parquet"
    parquet.write_table(table(**columns), path)
    assert mistake(path).startswith(text)


def test_parquet_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    parquet.write_table(table(), path)
    whole = path.read_bytes()
    for size in (4, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert mistake(path).startswith(": not a readable Parquet file: ")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert mistake(path) == ": a Parquet trace needs pyarrow: pip install pyarrow"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ":1: the first line must name the columns time,op,key,size, not ''"),
        (ROWS, ":1: the first line must name the columns time,op,key,size, not '10.5,update,7,100'"),
        (HEADER, ": no operations"),
        (HEADER + "1,read,1\n", ":2: 3 columns instead of 4"),
        (HEADER + "1,read,1,,\n", ":2: 5 columns instead of 4"),
        (HEADER + "1,read,1,\n\nx,read,1,\n", ":4: time 'x' is not a number of seconds"),
        (HEADER + "nan,read,1,\n", ":2: time 'nan' is not a number of seconds"),
        (HEADER + "1e999,read,1,\n", ":2: time '1e999' is not a number of seconds"),
        (HEADER + "2,read,1,\n1,read,1,\n", ":3: time '1' is before that of the row above, 2.0"),
        (HEADER + "1,flush,1,\n", ":2: op 'flush' is none of read, update, insert, scan, rmw, delete, get, put, seek"),
        (HEADER + "1,read,-1,\n", ":2: key '-1' is not a whole number from 0 to 9223372036854775807"),
        (HEADER + "1,read,9223372036854775808,\n", ":2: key '9223372036854775808' is not a whole number from 0 to "),
        (HEADER + "1,read,1_0,\n", ":2: key '1_0' is not a whole number"),
        (HEADER + "1,read,\u0661,\n", ":2: key "),
        (HEADER + "1,update,1,\n", ":2: size '' is not a whole number from 1 to 2147483647"),
        (HEADER + "1,update,1,0\n", ":2: size '0' is not a whole number from 1 to 2147483647"),
        (HEADER + "1,scan,1,2147483648\n", ":2: size '2147483648' is not a whole number"),
        (HEADER + f"1,read,{'9' * 500},\n", f":2: key '{'9' * 56}... is not a whole number"),
        (HEADER + '1,read,"1,\n', ":2: unexpected end of data"),
        (HEADER.encode() + b"1,\xff\xfe,1,\n", ":2: op '\\\\xff\\\\xfe' is none of "),
        (gzip.compress((HEADER + ROWS).encode())[:-9], ": not a whole gzip file: "),
        (b"\x1f\x8b\x00", ": not a whole gzip file: "),
    ],
)
def test_mistakes_in_csv(tmp_path: Path, content: str | bytes, text: str) -> None:
    assert mistake(write(tmp_path, content)).startswith(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert mistake(tmp_path / "none.csv") == ": No such file or directory"
    assert mistake(tmp_path) == ": Is a directory"


FIELD = st.one_of(
    st.sampled_from(
        ["", "1", "0.5", "read", "scan", "update", "time", "key", "9" * 25, "nan", "-1", "1e400", '"', "\0"]
    ),
    st.text(max_size=5),
)


def overwritten(at: int, by: bytes) -> bytes:
    whole = gzip.compress((HEADER + ROWS).encode(), mtime=0)
    return whole[:at] + by + whole[at + len(by) :]


LINES = st.lists(st.lists(FIELD, min_size=3, max_size=5).map(",".join), max_size=5)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        LINES.map(lambda lines: (HEADER + "\n".join(lines)).encode("utf-8", "surrogatepass")),
        st.binary(max_size=60).map(lambda tail: (HEADER + ROWS).encode() + tail),
        st.builds(overwritten, st.integers(0, 90), st.binary(max_size=6)),
    )
)
@example((HEADER + "1,read,1,\r2,read,1,\n").encode())
def test_any_bytes_are_a_trace_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    try:
        trace = Trace(str(path))
    except WorkloadError as error:
        assert str(error).startswith(f"{path}:")
        assert len(str(error).splitlines()) == 1
    else:
        assert all(len(batch) for batch in trace.run())


OPERATIONS = st.lists(
    st.tuples(st.sampled_from([op.name.lower() for op in Op]), st.integers(0, 12), st.integers(1, 99)),
    min_size=1,
    max_size=60,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS, st.integers(1, 4))
def test_load_makes_what_the_trace_counts_on(tmp_path: Path, rows: list[tuple[str, int, int]], threads: int) -> None:
    lines = "".join(f"{i},{op},{key},{size}\n" for i, (op, key, size) in enumerate(rows))
    trace = Trace(str(write(tmp_path, HEADER + lines)), value_size=1234)
    expected: dict[int, int] = {}
    seen: set[int] = set()
    for op, key, _ in rows:
        if key not in seen and op != "insert":
            sizes = [size for o, k, size in rows if k == key and o in ("update", "insert", "rmw")]
            expected[key] = [*sizes, 1234][0]
        seen.add(key)
    loaded = [joined(trace.load(thread, threads)) for thread in range(threads) if thread < trace.records]
    found = {key: size for part in loaded for key, size in zip(part.key.tolist(), part.size.tolist(), strict=True)}
    assert found == expected
    assert trace.records == len(expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPERATIONS, st.integers(1, 4))
def test_threads_share_a_trace_and_keep_the_order_of_each_record(
    tmp_path: Path, rows: list[tuple[str, int, int]], threads: int
) -> None:
    lines = "".join(f"{i},{op},{key},{size}\n" for i, (op, key, size) in enumerate(rows))
    trace = Trace(str(write(tmp_path, HEADER + lines)), batch=7)
    by_key: dict[int, list[float]] = defaultdict(list)
    for thread in range(threads):
        own = set()
        for batch in trace.run(thread, threads):
            assert batch.at is not None
            for key, at in zip(batch.key.tolist(), batch.at.tolist(), strict=True):
                by_key[key].append(at)
                own.add(key)
        assert not own & {key for key in by_key if key not in own}
    expected: dict[int, list[float]] = defaultdict(list)
    for i, (_, key, _) in enumerate(rows):
        expected[key].append(float(i))
    assert by_key == expected


def test_as_fast_as_it_goes_on_request(tmp_path: Path) -> None:
    assert joined(Trace(str(write(tmp_path, HEADER + ROWS)), paced=False).run()).at is None


def test_a_long_trace(tmp_path: Path) -> None:
    rows = 150_000
    lines = "".join(f"{i / 100},read,{i * 31 % rows},\n" for i in range(rows))
    trace = Trace(str(write(tmp_path, HEADER + lines)))
    done = joined(trace.run())
    assert np.array_equal(done.key, np.arange(rows, dtype=np.int64) * 31 % rows)
    assert trace.records == rows


def test_a_mistake_far_down_is_found(tmp_path: Path) -> None:
    lines = "".join(f"{i},read,{i},\n" for i in range(100_000))
    assert re.match(r":100002: key 'x' ", mistake(write(tmp_path, HEADER + lines + "100000,read,x,\n")))
