"""Reading a trace file, whose format `trace` documents; a mistake in it is one line with file and place."""

from __future__ import annotations

import csv
import gzip
import importlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Final

import numpy as np

from workloads.generators.workload import WorkloadError
from workloads.operations import Floats, Int32s, Int64s, Op, UInt8s

COLUMNS: Final = ("time", "op", "key", "size")

_OPS: Final = {op.name.lower(): int(op) for op in Op} | {"get": Op.READ, "put": Op.UPDATE, "seek": Op.SCAN}
_SIZED: Final = frozenset((Op.UPDATE, Op.INSERT, Op.RMW, Op.SCAN))
_MOST_KEY: Final = (1 << 63) - 1
_MOST_SIZE: Final = (1 << 31) - 1
_WHOLE: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_CHUNK: Final = 65536


@dataclass(frozen=True, slots=True)
class Columns:
    """A trace as parallel arrays: seconds since the first row, `Op`, record number, size in bytes or records or 0."""

    time: Floats
    op: UInt8s
    key: Int64s
    size: Int32s


def read_trace(path: str) -> Columns:
    """The whole trace. Raises WorkloadError for a file that cannot be read, has a mistake, or has no operations."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == b"PAR1":
                chunks = list(_parquet_chunks(path, file))
            elif start[:2] == b"\x1f\x8b":
                with gzip.open(file, "rb") as plain:
                    chunks = list(_csv_chunks(path, plain))
            else:
                chunks = list(_csv_chunks(path, file))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise WorkloadError(f"{path}: not a whole gzip file: {_line(error)}") from error
    except OSError as error:
        raise WorkloadError(f"{path}: {error.strerror or _line(error)}") from error
    if not chunks:
        raise WorkloadError(f"{path}: no operations")
    time = np.concatenate([chunk.time for chunk in chunks])
    return Columns(
        time - time[0],
        np.concatenate([chunk.op for chunk in chunks]),
        np.concatenate([chunk.key for chunk in chunks]),
        np.concatenate([chunk.size for chunk in chunks]),
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _RowError(Exception):
    """What is wrong with a row; the reader adds file and place."""


class _Rows:
    """Rows of text or numbers, checked one by one and gathered."""

    def __init__(self) -> None:
        self.time: list[float] = []
        self.op: list[int] = []
        self.key: list[int] = []
        self.size: list[int] = []
        self._before = -math.inf

    def add(self, time: str, op: str, key: str, size: str) -> None:
        """Raises _RowError."""
        at = float(time) if _NUMBER.fullmatch(time) else math.nan
        if not math.isfinite(at):
            raise _RowError(f"time {_shown(time)} is not a number of seconds")
        if at < self._before:
            raise _RowError(f"time {_shown(time)} is before that of the row above, {self._before!r}")
        code = _OPS.get(op.strip().lower())
        if code is None:
            raise _RowError(f"op {_shown(op)} is none of {', '.join(_OPS)}")
        number = int(key) if _WHOLE.fullmatch(key) else -1
        if not 0 <= number <= _MOST_KEY:
            raise _RowError(f"key {_shown(key)} is not a whole number from 0 to {_MOST_KEY}")
        count = 0
        if code in _SIZED:
            count = int(size) if _WHOLE.fullmatch(size) else 0
            if not 1 <= count <= _MOST_SIZE:
                raise _RowError(f"size {_shown(size)} is not a whole number from 1 to {_MOST_SIZE}")
        self._before = at
        self.time.append(at)
        self.op.append(code)
        self.key.append(number)
        self.size.append(count)

    def taken(self) -> Columns:
        """The rows since the last call, at least one."""
        columns = Columns(
            np.array(self.time, np.float64),
            np.array(self.op, np.uint8),
            np.array(self.key, np.int64),
            np.array(self.size, np.int32),
        )
        self.time, self.op, self.key, self.size = [], [], [], []
        return columns


def _csv_lines(file: Iterable[bytes]) -> Iterator[str]:
    # Bytes that are no UTF-8 end up in a field, and the field's own check names line and value.
    for line in file:
        yield line.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def _csv_chunks(path: str, file: Iterable[bytes]) -> Iterator[Columns]:
    lines = csv.reader(_csv_lines(file), strict=True)
    rows = _Rows()
    try:
        header = [name.strip().lower().removeprefix("\ufeff") for name in next(lines, [])]
        if sorted(header) != sorted(COLUMNS):
            raise _RowError(f"the first line must name the columns {','.join(COLUMNS)}, not {_shown(','.join(header))}")
        time, op, key, size = (header.index(name) for name in COLUMNS)
        for row in lines:
            if len(row) != len(COLUMNS):
                if not row:
                    continue
                raise _RowError(f"{len(row)} columns instead of {len(COLUMNS)}")
            rows.add(row[time], row[op], row[key], row[size])
            if len(rows.time) >= _CHUNK:
                yield rows.taken()
    except (_RowError, csv.Error) as error:
        raise WorkloadError(f"{path}:{max(1, lines.line_num)}: {_line(error)}") from error
    if rows.time:
        yield rows.taken()


def _parquet_chunks(path: str, file: IO[bytes]) -> Iterator[Columns]:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise WorkloadError(f"{path}: a Parquet trace needs pyarrow: pip install pyarrow") from error
    row_number = 0
    rows = _Rows()
    try:
        table = parquet.ParquetFile(file)
        missing = [name for name in COLUMNS if name not in table.schema_arrow.names]
        if missing:
            raise WorkloadError(f"{path}: no column {missing[0]}; a trace has {', '.join(COLUMNS)}")
        for batch in table.iter_batches(batch_size=_CHUNK, columns=list(COLUMNS)):
            for values in zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True):
                row_number += 1
                rows.add(*("" if value is None else str(value) for value in values))
            if rows.time:
                yield rows.taken()
    except _RowError as error:
        raise WorkloadError(f"{path}: row {row_number}: {error}") from error
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: not a readable Parquet file: {_line(error)}") from error
