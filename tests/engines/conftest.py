"""Stores and other programs in processes that end with the test."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.processes import OpenStore, StoreProcess


@pytest.fixture
def open_store() -> Iterator[OpenStore]:
    """Open a database in a process: `open_store("rocksdb", path, create=True)`."""
    opened: list[StoreProcess] = []

    def open_one(engine: str, path: Path, *, create: bool = False) -> StoreProcess:
        store = StoreProcess(engine, path, create=create)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.kill()


Run = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Run]:
    """subprocess.Popen whose process is killed at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(*command: str | Path, **how: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(list(map(str, command)), **how)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
