"""Which parts of which tables a benchmark read, when, and how long each read took: see bench_cache_trace.c."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from bench_cache_optimum import Numbers
from numpy.typing import NDArray

from workloads.compare.tools import CompareError

SOURCE: Final = Path(__file__).with_suffix(".c")
READ: Final = np.dtype([("when", "<u8"), ("ino", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("took", "<u4")])
_ROOM: Final = 8 << 20  # reads; the file is sparse
_COUNT: Final = 8  # bytes before the first

Reads = NDArray[np.void]


def build(directory: Path) -> Path:
    """The library to be preloaded. Raises CompareError."""
    library = directory / "trace.so"
    command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompareError(f"{SOURCE.name}: {done.stderr.strip()}")
    return library


@contextmanager
def traced(library: Path, path: Path) -> Iterator[None]:
    """Processes that are started within the context write what they read to `path`."""
    with path.open("wb") as file:
        file.truncate(_COUNT + _ROOM * READ.itemsize)
    names = {"LD_PRELOAD": str(library), "KEIGO_BENCH_TRACE": str(path)}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def load(path: Path) -> Reads:
    """All reads of a trace, by the time when they began. Raises CompareError where some had no room."""
    (count,) = np.fromfile(path, "<u8", 1).tolist()
    if count > _ROOM:
        raise CompareError(f"{count} reads are more than a trace has room for")
    found = np.fromfile(path, READ, count, offset=_COUNT)
    return np.asarray(found[np.argsort(found["when"], kind="stable")])


@dataclass(frozen=True, slots=True)
class Layout:
    """Files of a database, cut into chunks that are numbered through, file after file, by name."""

    names: tuple[str, ...]
    sizes: Numbers
    chunk: int

    @property
    def starts(self) -> Numbers:
        """The first chunk of each file, and how many there are in all."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-self.sizes // self.chunk))])

    def chunk_sizes(self) -> Numbers:
        """All count as whole ones: the last of a file is short, and takes little less."""
        return np.full(int(self.starts[-1]), self.chunk, np.int64)


def layout_of(directory: Path, chunk: int) -> Layout:
    """The tables of a database."""
    paths = sorted(directory.glob("*.sst"))
    return Layout(tuple(path.name for path in paths), np.array([path.stat().st_size for path in paths]), chunk)


def inodes_of(directory: Path) -> dict[int, str]:
    """Inode -> name of each table."""
    return {path.stat().st_ino: path.name for path in directory.glob("*.sst")}


@dataclass(frozen=True, slots=True)
class Touched:
    """Reads of tables: arrays with an element for each read."""

    when: NDArray[np.float64]
    """Seconds, by CLOCK_MONOTONIC."""
    took: NDArray[np.float64]
    file: Numbers
    """Number in the layout."""
    first: Numbers
    """The first chunk, and the last."""
    last: Numbers

    def between(self, begin: float, end: float) -> Touched:
        """Those that began in that time."""
        chosen = (self.when >= begin) & (self.when < end)
        return Touched(self.when[chosen], self.took[chosen], self.file[chosen], self.first[chosen], self.last[chosen])


def touched(reads: Reads, inodes: Mapping[int, str], layout: Layout) -> Touched:
    """The reads of the layout's files; others, and what is beyond a file's end, are left out."""
    number = {name: place for place, name in enumerate(layout.names)}
    known = {ino: number[name] for ino, name in inodes.items() if name in number}
    unique, inverse = np.unique(reads["ino"], return_inverse=True)
    file = np.array([known.get(int(ino), -1) for ino in unique], np.int64)[inverse]
    chosen = file >= 0
    file, reads = file[chosen], reads[chosen]
    offset, size = reads["offset"].astype(np.int64), reads["size"].astype(np.int64)
    end = np.minimum(offset + size, layout.sizes[file])
    inside = end > offset
    file, offset, end, reads = file[inside], offset[inside], end[inside], reads[inside]
    first, last = (layout.starts[file] + at // layout.chunk for at in (offset, end - 1))
    return Touched(reads["when"] / 1e9, reads["took"] / 1e9, file, first, last)
