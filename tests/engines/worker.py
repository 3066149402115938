"""A store in a process of its own, told what to do on standard input: a JSON object a line, answered by one.

    python -m tests.engines.worker ENGINE PATH

Only so can a store be killed, have a pid that Keigo may name, and leave no thread behind in the tests. The first
line of output says whether the database could be opened: {"ok": null} or {"error": TEXT}.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from tests.engines.stores import DESTROY, OPEN, Store, key_of, number_of, value_of, version_of

BATCH = 100


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def batches(numbers: Iterable[int], size: int = BATCH) -> Iterable[list[int]]:
    left = iter(numbers)
    while batch := list(islice(left, size)):
        yield batch


def put(store: Store, numbers: list[int], version: int, sync: bool) -> None:
    for batch in batches(range(*numbers)):
        store.put([(key_of(number), value_of(number, version)) for number in batch], sync=sync)


def delete(store: Store, numbers: list[int]) -> None:
    for batch in batches(range(*numbers)):
        store.delete([key_of(number) for number in batch])


def dump(store: Store) -> dict[int, int]:
    """Number -> version of everything, every value compared with what was written, by a scan and by single reads."""
    found = {}
    for key, value in store.items():
        number = number_of(key)
        found[number] = version_of(number, value)
    for number in sorted(found)[::5]:
        value = store.get(key_of(number)) or b""
        if version_of(number, value) != found[number]:
            raise ValueError(f"key {number}: a scan and a read find different versions")
    return found


def stream(store: Store, first: int, size: int) -> None:
    """Write synced batches without end; say the number after each that was acknowledged."""
    while True:
        store.put([(key_of(number), value_of(number, 1)) for number in range(first, first + size)], sync=True)
        first += size
        say(acked=first)


def checkpoint_under_load(store: Store, path: str, first: int, size: int, before: int) -> dict[str, int]:
    """Take a checkpoint while another thread writes keys from `first` on, `size` in a batch.

    Returns the numbers reached when the checkpoint began (at least `before` batches in) and after it.
    """
    reached = first
    enough, end = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        nonlocal reached
        try:
            while not end.is_set():
                store.put([(key_of(n), value_of(n, 1)) for n in range(reached, reached + size)], sync=False)
                reached += size
                if reached >= first + before * size:
                    enough.set()
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)
            enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        enough.wait()
        began = reached
        store.checkpoint(path)
        ended = reached + size  # one batch may be under way
    finally:
        end.set()
        writer.join()
    if failed:
        raise failed[0]
    return {"began": began, "ended": ended, "reached": reached}


def main() -> None:
    engine, path, *flags = sys.argv[1:]
    if "destroy" in flags:
        DESTROY[engine](path)
        return
    try:
        store = OPEN[engine](path, create="create" in flags)
    except Exception as error:  # noqa: BLE001 - each engine has its own
        say(error=f"{type(error).__name__}: {error}")
        return
    say(ok=None)
    operations: dict[str, Callable[..., Any]] = {
        "put": put,
        "delete": delete,
        "dump": dump,
        "stream": stream,
        "checkpoint_under_load": checkpoint_under_load,
        "compact": lambda store: store.compact(),
        "levels": lambda store: store.levels(),
        "close": lambda store: store.close(),
    }
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        try:
            say(ok=operations[operation](store, **request))
        except Exception as error:  # noqa: BLE001
            say(error=f"{type(error).__name__}: {error}")
        if operation == "close":
            return


if __name__ == "__main__":
    main()
