"""A run of `db_bench` that writes, and the wait until its compactions are over.

db_bench's own `waitforcompaction` looks every 10 s. Here it only keeps the database open, and the end is that of the
last flush or compaction in RocksDB's log.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from workloads.engines.db_bench import DbBench
from workloads.engines.db_bench_output import BenchReport, parse, parse_result
from workloads.engines.protocol import EngineError
from workloads.engines.readback import check_in_effect

_QUIET: Final = 0.4  # seconds without a compaction: the next one is scheduled within a millisecond of the last
_POLL: Final = 0.2
_EVENT: Final = re.compile(
    r'EVENT_LOG_v1 (\{.*"event": "(?:compaction_started|compaction_finished|flush_started|flush_finished)".*\})\n'
)
_WAIT: Final = "waitforcompaction"


@dataclass(frozen=True, slots=True)
class Settled:
    """What was written, and what that cost."""

    report: BenchReport
    seconds: float
    """From the first write to the last, of all benchmarks."""
    settle_seconds: float
    """From the last write to the end of the last flush or compaction."""
    write_amplification: float
    """Bytes written to tables for each byte flushed."""


@dataclass(frozen=True, slots=True)
class Event:
    """The end of a flush or compaction."""

    time: float
    """Unix time."""
    name: Literal["flush", "compaction"]
    bytes: int
    """Flushed from memtables, or written by the compaction."""


def run_settled(bench: DbBench) -> Settled:
    """Run benchmarks that write, and wait until no compaction is due. Raises OptionError and EngineError."""
    bench = replace(bench, benchmarks=(*bench.benchmarks, _WAIT))
    with _started(bench) as process:
        assert process.stdout is not None  # noqa: S101
        began = ended = 0.0
        text = ""
        for line in process.stdout:
            text += line
            if (found := parse_result(line.rstrip("\n"))) is not None:
                ended = time.time()
                began = began or ended - found.seconds
            if line.startswith(_WAIT) and "started" in line:
                break
        else:
            raise EngineError(f"db_bench {bench.path}: ended early: {text.strip()[-200:]}")
        events = _events_once_quiet(Path(bench.path) / "LOG", process)
        process.send_signal(signal.SIGTERM)
    check_in_effect("db_bench", bench.path, bench.options)
    written = {name: sum(event.bytes for event in events if event.name == name) for name in ("flush", "compaction")}
    amplification = 1 + written["compaction"] / written["flush"] if written["flush"] else 1.0
    last = max((event.time for event in events), default=ended)
    return Settled(parse(text), ended - began, max(0.0, last - ended), amplification)


def _events_once_quiet(log: Path, process: subprocess.Popen[str]) -> list[Event]:
    """All flushes and compactions since the database was opened, once none runs and none has begun for a while.

    Or once db_bench has ended, for then it has seen itself that none is due.
    """
    ended, since = False, time.time()
    while not ended:
        ended = process.poll() is not None
        running, events = events_of(log.read_text(errors="replace"))
        quiet = time.time() - max([since, *(event.time for event in events[-1:])])
        if running == 0 and quiet > _QUIET:
            return events
        time.sleep(_POLL)  # a log has no event of its own to wait for
    if process.returncode:
        raise EngineError(f"db_bench {log.parent}: exit {process.returncode} while compactions were due")
    return events


def events_of(log: str) -> tuple[int, list[Event]]:
    """Flushes and compactions that run, and what has ended, by the text of RocksDB's LOG."""
    running = 0
    flushed: dict[int, int] = {}
    events = []
    for line in _EVENT.findall(log):
        event = json.loads(line)
        moment, name = event["time_micros"] / 1e6, event["event"]
        if name == "flush_started":
            flushed[event["job"]] = event["total_data_size"]
        elif name == "flush_finished":
            events.append(Event(moment, "flush", flushed.pop(event["job"], 0)))
        elif name == "compaction_started":
            running += 1
        else:
            running -= 1
            events.append(Event(moment, "compaction", event["total_output_size"]))
    return running + len(flushed), events


@contextmanager
def _started(bench: DbBench) -> Iterator[subprocess.Popen[str]]:
    """db_bench in a process group of its own, its lines as they come; ended at the end."""
    command = ["stdbuf", "-oL", *bench.command()]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    except OSError as error:
        raise EngineError(f"db_bench cannot be started: {error.strerror}") from error
    with process:
        try:
            yield process
        finally:
            process.kill()
