"""The tests' end of `worker`: a database that is open in another process, and what it should hold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent.parent


class StoreError(Exception):
    """The store said no, in its own words."""


class StoreProcess:
    """A database that is open in a process of its own. Raises StoreError where it could not be opened."""

    def __init__(self, engine: str, path: Path, *, create: bool) -> None:
        flags = ["create"] if create else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engines.worker", engine, str(path), *flags],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, op: str, **arguments: Any) -> Any:
        self.send(op, **arguments)
        return self._answer()

    def send(self, op: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        message = self.next_line()
        if message is None:
            raise StoreError(f"the process ended ({self._process.wait()})")
        if "error" in message:
            raise StoreError(message["error"])
        return message["ok"]

    def next_line(self) -> dict[str, Any] | None:
        """The next message; None when the process is gone."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def put(self, numbers: range, version: int, *, sync: bool = False) -> None:
        self.ask("put", numbers=_span(numbers), version=version, sync=sync)

    def delete(self, numbers: range) -> None:
        self.ask("delete", numbers=_span(numbers))

    def dump(self) -> dict[int, int]:
        return {int(number): version for number, version in self.ask("dump").items()}

    def compact(self) -> None:
        self.ask("compact")

    def levels(self) -> dict[int, int]:
        return {int(level): count for level, count in self.ask("levels").items()}

    def acks(self, first: int, size: int) -> Iterator[int]:
        """Synced writes without end; yields the number after the last one acknowledged, until a write fails."""
        self.send("stream", first=first, size=size)
        while (message := self.next_line()) is not None and "acked" in message:
            yield message["acked"]

    def close(self) -> None:
        """Close the database and end."""
        self.ask("close")
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0

    def kill(self) -> None:
        """End the process as a crash would. It may be waiting for a file system that answers no more."""
        if self._process.poll() is None:
            self._process.kill()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                pass

    def __enter__(self) -> StoreProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


def _span(numbers: range) -> list[int]:
    return [numbers.start, numbers.stop, numbers.step]


OpenStore = Callable[..., StoreProcess]


def destroy(engine: str, path: Path, *, check: bool = True) -> str:
    """The engine's own DestroyDB; returns its error, which is one without `check`."""
    command = [sys.executable, "-m", "tests.engines.worker", engine, str(path), "destroy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == check, done.stderr
    return done.stderr


@dataclass
class Oracle:
    """Writes to a store and remembers what it must hold then."""

    versions: dict[int, int] = field(default_factory=dict)
    _version: int = 0

    def put(self, store: StoreProcess, numbers: range, *, sync: bool = False) -> None:
        self._version += 1
        store.put(numbers, self._version, sync=sync)
        self.versions.update(dict.fromkeys(numbers, self._version))

    def delete(self, store: StoreProcess, numbers: range) -> None:
        store.delete(numbers)
        for number in numbers:
            self.versions.pop(number, None)

    def check(self, store: StoreProcess) -> None:
        found = store.dump()
        wrong = {n: (found.get(n), self.versions.get(n)) for n in found.keys() | self.versions.keys()}
        wrong = {n: pair for n, pair in wrong.items() if pair[0] != pair[1]}
        assert not wrong, f"{len(wrong)} keys are wrong, (found, wanted): {dict(list(wrong.items())[:5])}"
