"""Replay of a recorded trace.

A trace is a table of four columns, one operation a row, in the order of time:

    time   seconds since any moment, a finite number, never falling; replay counts from the first row
    op     read, update, insert, scan, rmw or delete, in any case; get, put and seek mean read, update and scan
    key    the record number, a whole number from 0 to 2^63 - 1
    size   update, insert, rmw: bytes of the value, 1 to 2^31 - 1; scan: records to read, 1 to 2^31 - 1;
           read, delete: empty or anything

as CSV, UTF-8, whose first line names the columns (`time,op,key,size`, in any order), plain or compressed by gzip; or as
Parquet, which needs pyarrow. What the file is is told by its first bytes, not by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from workloads.generators.trace_file import Columns, read_trace
from workloads.generators.workload import BLOCK, check_thread, cut, positive
from workloads.operations import Batch, Int32s, Int64s, Op
from workloads.records import KeyFormat, UserKeys, fnv64

_WRITES: Final = (Op.UPDATE, Op.INSERT, Op.RMW)


@dataclass(frozen=True)
class Trace:
    """The operations of the trace `path`, read and checked as a whole when this is made: 21 bytes of memory each.

    `load` inserts, in the order of keys, every record whose first operation in the trace is not an insert, with the
    size of its first value in the trace, or `value_size` if it is never written; so nothing is read that was never
    there, but what the trace itself deletes. With several threads each does the operations on its own records (by
    hash of the key), so that those on one record keep their order. paced: operations carry the time at which they are
    due. Raises WorkloadError, whose text names file, line and value.
    """

    path: str
    value_size: int = 1000
    paced: bool = True
    key_format: KeyFormat = field(default_factory=UserKeys)
    batch: int = BLOCK
    columns: Columns = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positive(value_size=self.value_size, batch=self.batch)
        object.__setattr__(self, "columns", read_trace(self.path))

    @property
    def name(self) -> str:
        """See Workload."""
        return "trace"

    @property
    def records(self) -> int:
        """See Workload."""
        return len(self._loaded[0])

    @cached_property
    def _loaded(self) -> tuple[Int64s, Int32s]:
        """Records to load, ascending, and the sizes of their values."""
        columns = self.columns
        keys, first = np.unique(columns.key, return_index=True)
        keys = keys[columns.op[first] != Op.INSERT]
        writes = np.isin(columns.op, _WRITES)
        written, at = np.unique(columns.key[writes], return_index=True)
        place = np.minimum(np.searchsorted(written, keys), max(0, len(written) - 1))
        sizes = np.full(len(keys), self.value_size, np.int32)
        if len(written):
            known = written[place] == keys
            sizes[known] = columns.size[writes][at[place[known]]]
        return keys, sizes

    def load(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload."""
        check_thread(thread, threads)
        keys, sizes = self._loaded
        keys, sizes = keys[thread::threads], sizes[thread::threads]
        whole = Batch(np.full(len(keys), Op.INSERT, np.uint8), keys, sizes, np.zeros(len(keys), np.int32))
        return cut([whole], self.batch)

    def run(self, thread: int = 0, threads: int = 1) -> Iterator[Batch]:
        """See Workload. Ends with the trace."""
        check_thread(thread, threads)
        return cut(self._blocks(thread, threads), self.batch)

    def _blocks(self, thread: int, threads: int) -> Iterator[Batch]:
        columns = self.columns
        for start in range(0, len(columns.op), BLOCK):
            rows = slice(start, start + BLOCK)
            mine = fnv64(columns.key[rows]) % threads == thread
            op, size = columns.op[rows][mine], columns.size[rows][mine]
            scans = op == Op.SCAN
            at = columns.time[rows][mine] if self.paced else None
            yield Batch(op, columns.key[rows][mine], np.where(scans, 0, size), np.where(scans, size, 0), at)
