"""db_bench and small-file work on the bare file system, on Keigo with each driver, and on other FUSE file systems.

All setups use directories of one file system. Runs are interleaved: each repetition runs every setup once, in turn, and
every figure is the median of the repetitions; ratios are medians of the ratios within a repetition, so that a slow
minute of the machine hits both sides.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from ending import end_by_sigterm, run_to_end
from rich.console import Console
from rich.table import Table

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
NATIVE = "native"


@dataclass
class Setup:
    """A directory to work in, and the daemon behind it, if it is Keigo's."""

    name: str
    directory: Path
    pid: int | None = None


def keigo(*args: str | Path) -> str:
    return run_to_end(sys.executable, "-m", "keigo", *args)


@contextmanager
def mounted(name: str, base: Path) -> Iterator[Setup]:
    """Bring a setup up under `base`, and down again."""
    home = base / name
    (home / "db").mkdir(parents=True)
    directory = home / "db"
    if name == NATIVE:
        yield Setup(name, directory)
        return
    if name.startswith("keigo-"):
        (home / "fast").mkdir()
        config = home / "devices.yaml"
        config.write_text(
            f"volume: bench-{os.getpid()}-{name}\n"
            f"tiers:\n  - {{name: fast, path: {home}/fast}}\n  - {{name: slow, in_place: true}}\n"
            "placement: {policy: levels}\n"
        )
        driver = name.removeprefix("keigo-")
        try:
            keigo("mount", directory, "-d", config, "--driver", driver, "--log-file", home / "log")
            yield Setup(name, directory, json.loads(keigo("status", directory, "--json"))["pid"])
        finally:
            if os.path.ismount(directory):
                keigo("umount", directory)
        return
    (home / "branch").mkdir()
    command = {
        "mergerfs": ["mergerfs", "-o", "allow_other,cache.files=auto-full", str(home / "branch"), str(directory)],
        "unionfs": ["unionfs", "-o", "allow_other", f"{home / 'branch'}=RW", str(directory)],
    }[name]
    try:
        run_to_end(*command)
        yield Setup(name, directory)
    finally:
        if os.path.ismount(directory):
            run_to_end("umount", directory)


def db_bench(setup: Setup, benchmark: str, num: int, threads: int = 1, *, fresh: bool = False, **options: int) -> float:
    """Operations per second of one db_bench benchmark."""
    database = setup.directory / "bench"
    if fresh and database.exists():
        shutil.rmtree(database)
    arguments = {
        "db": database,
        "benchmarks": benchmark,
        "num": num // threads if benchmark.startswith(("read", "seek")) else num,
        "value_size": 400,
        "threads": threads,
        "cache_size": 8 << 20,
        "compression_type": "none",
        "use_existing_db": int(not fresh),
        "seed": 1,
        **options,
    }
    done = subprocess.run(
        ["db_bench", *(f"--{key}={value}" for key, value in arguments.items())], capture_output=True, text=True
    )
    found = re.search(rf"^{benchmark}\s*:.*?([0-9]+) ops/sec", done.stdout, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{setup.name}: db_bench {benchmark} failed:\n{done.stdout[-500:]}\n{done.stderr[-500:]}")
    return float(found[1])


def small_files(setup: Setup, count: int) -> float:
    """create + write 4 KiB + close + unlink, times per second."""
    data = b"x" * 4096
    directory = os.fsencode(setup.directory)
    began = time.perf_counter()
    for number in range(count):
        path = b"%s/%06d.sst" % (directory, number)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, data)
        os.close(fd)
        os.unlink(path)
    return count / (time.perf_counter() - began)


Workload = Callable[[Setup], float]
Figures = dict[str, dict[str, list[float]]]
"""Workload -> setup -> figures, one per repetition."""


def workloads(num: int) -> dict[str, Workload]:
    """By name; the order matters, for reads need what a fill wrote."""
    return {
        "fillsync": lambda s: db_bench(s, "fillsync", num // 20, fresh=True),
        "fillrandom": lambda s: db_bench(s, "fillrandom", num, fresh=True),
        "overwrite": lambda s: db_bench(s, "overwrite", num),
        "readseq": lambda s: db_bench(s, "readseq", num),
        "readrandom": lambda s: db_bench(s, "readrandom", num // 2),
        "readrandom 2 threads": lambda s: db_bench(s, "readrandom", num // 2, 2),
        "seekrandom": lambda s: db_bench(s, "seekrandom", num // 4),
        "seekrandom 2 threads": lambda s: db_bench(s, "seekrandom", num // 4, 2),
        "small files": lambda s: small_files(s, 2000),
    }


TARGETS = {
    "fillsync": 0.92,
    "fillrandom": 0.97,
    "overwrite": 0.97,
    "readseq": 0.95,
    "readrandom": 0.95,
    "readrandom 2 threads": 0.95,
    "seekrandom": 0.95,
    "seekrandom 2 threads": 0.95,
}


def compare(setups: list[Setup], num: int, repeats: int) -> Figures:
    """All workloads on all setups."""
    found: Figures = defaultdict(lambda: defaultdict(list))
    for repeat in range(repeats):
        for workload, run in workloads(num).items():
            for setup in setups if repeat % 2 == 0 else reversed(setups):
                if workload.startswith(("read", "seek")):
                    run(setup)  # warms the page cache
                found[workload][setup.name].append(run(setup))
            done = ", ".join(f"{setup.name} {found[workload][setup.name][-1]:,.0f}" for setup in setups)
            console.print(f"  {repeat + 1}/{repeats} {workload}: {done}", style="dim")
    return found


def ratio(figures: dict[str, list[float]], name: str, to: str = NATIVE) -> float:
    return statistics.median(a / b for a, b in zip(figures[name], figures[to], strict=True))


def direct_reads(setups: list[Setup], num: int, repeats: int) -> dict[str, dict[str, float]]:
    """readrandom with direct reads from memory: us per operation with 1 thread, and how 2 threads scale."""
    one: dict[str, list[float]] = defaultdict(list)
    two: dict[str, list[float]] = defaultdict(list)
    for setup in setups:
        db_bench(setup, "fillrandom", num, fresh=True)
        db_bench(setup, "compact", num)
    for _ in range(repeats):
        for setup in setups:
            one[setup.name].append(1e6 / db_bench(setup, "readrandom", num // 2, use_direct_reads=1))
            two[setup.name].append(1e6 / db_bench(setup, "readrandom", num // 2, 2, use_direct_reads=1))
    return {
        setup.name: {
            "us": statistics.median(one[setup.name]),
            "scaling": statistics.median(a / b for a, b in zip(one[setup.name], two[setup.name], strict=True)),
        }
        for setup in setups
    }


def wake_up_floor(rounds: int = 20_000) -> float:
    """Microseconds for a signal to another process and back: what a FUSE request costs here before anyone works on it.

    On an idle virtual machine most of it is waking a halted CPU, twice.
    """
    there, back = os.eventfd(0), os.eventfd(0)
    child = os.fork()
    if child == 0:
        for _ in range(rounds):
            os.eventfd_read(there)
            os.eventfd_write(back, 1)
        os._exit(0)
    began = time.perf_counter()
    for _ in range(rounds):
        os.eventfd_write(there, 1)
        os.eventfd_read(back)
    took = time.perf_counter() - began
    os.waitpid(child, 0)
    os.close(there)
    os.close(back)
    return took / rounds * 1e6


@contextmanager
def all_mounted(names: list[str], where: Path) -> Iterator[list[Setup]]:
    """Several setups side by side in a fresh directory of one file system."""
    base = Path(tempfile.mkdtemp(prefix="keigo-bench-", dir=where))
    try:
        with ExitStack() as stack:
            yield [stack.enter_context(mounted(name, base)) for name in names]
    finally:
        shutil.rmtree(base)


def rss_anon(pid: int) -> int:
    match = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def memory(where: Path, fills: int, num: int) -> list[int]:
    """RssAnon of the kernel driver's daemon after each of several fills."""
    found = []
    with all_mounted(["keigo-kernel"], where) as (setup,):
        assert setup.pid is not None
        for _ in range(fills):
            db_bench(setup, "fillrandom", num, fresh=True)
            found.append(rss_anon(setup.pid))
        modules = Path(f"/proc/{setup.pid}/maps").read_text()
        if "scipy" in modules or "matplotlib" in modules:
            raise SystemExit("the daemon has imported scipy or matplotlib")
    return found


def churn(where: Path, count: int) -> list[int]:
    """RssAnon of the kernel driver's daemon at each tenth of many creates and unlinks."""
    found = []
    with all_mounted(["keigo-kernel"], where) as (setup,):
        assert setup.pid is not None
        for _ in range(10):
            small_files(setup, count // 10)
            found.append(rss_anon(setup.pid))
    return found


@click.command()
@click.option("--num", default=1_000_000, show_default=True, help="Keys of 400 bytes.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the keys, three repetitions, no memory test.")
@click.option("--setups", default="native,keigo-kernel,keigo-pyfuse3,mergerfs,unionfs", show_default=True)
@click.option(
    "--where", default="/var/tmp", type=click.Path(path_type=Path), help="A directory on the file system to use."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here.")
def main(num: int, repeats: int, quick: bool, setups: str, where: Path, json_file: Path | None) -> None:
    """Compare drivers and file systems."""
    end_by_sigterm()
    if quick:
        num, repeats = num // 10, 3
    names = setups.split(",")
    with all_mounted(names, where) as mounts:
        found = compare(mounts, num, repeats)
    with all_mounted([name for name in names if name != "unionfs"], Path("/dev/shm")) as mounts:
        direct = direct_reads(mounts, num // 4, repeats)
    floor = statistics.median(wake_up_floor() for _ in range(repeats))
    anon = [] if quick else [*memory(where, 1, 5_000_000), *memory(where, 10, 500_000)]
    churned = [] if quick else churn(where, 1_000_000)

    table = Table(
        title=f"operations per second, and ratio to {NATIVE} (medians of {repeats})", box=None, pad_edge=False
    )
    table.add_column("workload")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("target", justify="right")
    for workload, figures in found.items():
        cells = [f"{statistics.median(figures[n]):,.0f}  {ratio(figures, n):.2f}" for n in names]
        table.add_row(workload, *cells, f"{TARGETS[workload]:.2f}" if workload in TARGETS else "")
    console.print(table)
    if "mergerfs" in names and "keigo-kernel" in names:
        times = 1 / ratio(found["small files"], "keigo-kernel", "mergerfs")
        console.print(f"small files: keigo-kernel takes {times:.2f} times the time of mergerfs (target: at most 2.5)")
    for name, figure in direct.items():
        added = figure["us"] - direct[NATIVE]["us"]
        relative = figure["scaling"] / direct[NATIVE]["scaling"]
        console.print(
            f"direct reads from memory: {name:14} {figure['us']:6.2f} us per readrandom (+{added:.2f}; target: +8), "
            f"2 threads {figure['scaling']:.2f} x ({relative:.2f} of native's scaling; target: 0.9)"
        )
    console.print(
        f"a byte to another process and back takes {floor:.2f} us on this machine: each FUSE request does that"
    )
    if anon:
        fills = [size >> 20 for size in anon[1:]]
        console.print(f"daemon's RssAnon after 2 GiB: {anon[0] >> 20} MiB; after each of ten fills: {fills} MiB")
    if churned:
        console.print(f"after each 100,000 of a million creates and unlinks: {[size >> 20 for size in churned]} MiB")
    if json_file is not None:
        measured = {
            "ops_per_second": found,
            "direct": direct,
            "floor_us": floor,
            "rss_anon": anon,
            "rss_anon_churn": churned,
        }
        json_file.write_text(json.dumps({"num": num, "repeats": repeats, **measured}))


if __name__ == "__main__":
    main()
