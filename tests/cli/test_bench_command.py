"""`keigo bench` as users run it: real databases, in plain directories and on mounts of both drivers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from keigo import cli_bench
from keigo.cli import main
from tests.conftest import MakeWorld, World
from workloads.engines import ON_DISK, open_engine
from workloads.engines.options import COMPRESSIONS
from workloads.runner.isolation import IsolationError, memory_hierarchy
from workloads.runner.place import MARKER
from workloads.runner.result import decode

SMALL = ("--records", "2000", "--operations", "3000", "--value-size", "200")
STORES = ("rocksdb", "leveldb", "speedb")


def bench(*args: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, args)])


def refused(*args: str | Path) -> str:
    done = bench(*args)
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def read(path: Path) -> dict[str, Any]:
    decode(path.read_bytes(), str(path))
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@pytest.mark.parametrize("engine", STORES)
def test_each_engine_on_a_mount_is_verified(world: World, engine: str, tmp_path: Path) -> None:
    world.mount()
    out = tmp_path / "r.json"
    done = bench("ycsb", "--workload", "a", "--engine", engine, *SMALL, "--verify", "--threads", 2, "--write-buffer",
                 "256KiB", "--interval", "0.1", "--json", out, world.directory / "db")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = read(out)
    assert found["mount"]["driver"] == world.driver
    assert found["mount"]["tiers"] == ["fast", "mid", "slow"]
    assert found["verification"]["final"] == found["verification"]["reopened"] == 2000
    load, phase = found["phases"]
    assert load["daemon_cpu"] >= 0
    assert set(load["written_bytes"]) == set(load["samples"]["used"]) == {"fast", "mid", "slow"}
    assert load["samples"]["used"]["fast"][-1] + load["samples"]["used"]["mid"][-1] > 0
    assert phase["operations"] == 3000
    world.umount()


def test_bytes_of_each_tier_are_told(mounted: World, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert bench("ycsb", "--workload", "c", *SMALL, "--engine", "leveldb", mounted.directory / "db").exit_code == 0
    options = ("--records", "5000", "--operations", "2000", "--seconds", "5", "--write-buffer", "256KiB")
    done = bench("ycsb", "--workload", "b", *options, "--warm-up", "1.5", "--json", out, mounted.directory / "db")
    assert done.exit_code == 0, done.output
    load = read(out)["phases"][0]
    assert sum(load["written_bytes"].values()) > 0
    assert "written" in done.stdout


@pytest.mark.parametrize("letter", "bcdef")
def test_ycsb_in_a_plain_directory(tmp_path: Path, letter: str) -> None:
    out = tmp_path / "r.json"
    done = bench("ycsb", "--workload", letter, *SMALL, "--verify", "--json", out, tmp_path / "db")
    assert done.exit_code == 0, done.output
    found = read(out)
    assert (found["workload"], found["mount"], found["error"]) == (f"ycsb-{letter}", None, None)
    assert "verified: " in done.stdout


def test_other_workloads(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("time,op,key,size\n0,insert,7,100\n0,get,7,\n0.01,scan,7,3\n0.02,delete,7,\n")
    for name, *args in (
        ("mixgraph", "--records", "500", "--operations", "500"),
        ("shifting", "--records", "500", "--operations", "500"),
        ("timeseries", "--series", "10", "--points", "50", "--operations", "500", "--threads", "2"),
        ("trace", str(trace)),
    ):
        out = tmp_path / f"{name}.json"
        done = bench("run", name, *args, "--verify", "--json", out, tmp_path / name)
        assert done.exit_code == 0, done.output
        assert read(out)["phases"][1]["operations"] in (500, 4)
    trace.write_text("time,op,key,size\n0,fly,7,\n")
    assert "t.csv:2:" in refused("run", "trace", trace, tmp_path)


def test_load_and_run_apart(tmp_path: Path) -> None:
    where = tmp_path / "db"
    assert bench("ycsb", "--workload", "d", *SMALL, "--load-only", where).exit_code == 0
    for seed in ("1", "2"):
        done = bench("ycsb", "--workload", "d", *SMALL, "--run-only", "--verify", "--seed", seed, where)
        assert done.exit_code == 0, done.output
    assert "was loaded with engine rocksdb, not leveldb" in refused(
        "ycsb", "--workload", "d", *SMALL, "--run-only", "--engine", "leveldb", where
    )


def damaged(where: Path, damage: str) -> None:
    engine = open_engine("rocksdb", str(where), create=False)
    (first, _), (second, value), *_ = engine.scan(b"", 2)
    if damage == "lost":
        engine.delete(first)
    elif damage == "swapped":
        engine.put(first, value)
    else:
        engine.put(first + b"0", value)
    engine.close()
    assert second


@pytest.mark.parametrize(
    ("damage", "told"), [("lost", "lost: key user"), ("swapped", "wrong: key user"), ("strange", "wrong: key user")]
)
def test_what_another_program_changed_is_found(tmp_path: Path, damage: str, told: str) -> None:
    where, out = tmp_path / "db", tmp_path / "r.json"
    options = ("ycsb", "--workload", "c", *SMALL)
    assert bench(*options, "--load-only", where).exit_code == 0
    damaged(where, damage)
    done = bench(*options, "--run-only", "--verify", "--json", out, where)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: verification failed: {told}")
    assert "expected" in line
    assert "got" in line
    assert read(out)["verification"]["failures"] == [line.removeprefix("Error: verification failed: ")]


def test_a_damaged_table_is_an_error_of_the_engine(tmp_path: Path) -> None:
    where, out = tmp_path / "db", tmp_path / "r.json"
    options = ("ycsb", "--workload", "c", *SMALL, "--compression", "none")
    assert bench(*options, "--load-only", where).exit_code == 0
    for table in where.glob("*.sst"):
        with table.open("r+b") as file:
            file.seek(table.stat().st_size // 2)
            file.write(b"damage")
    done = bench(*options, "--run-only", "--json", out, where)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: rocksdb {where}: Corruption")
    found = read(out)
    assert found["error"] == line.removeprefix("Error: ")
    assert found["phases"][0]["operations"] < 3000


@pytest.mark.parametrize("engine", STORES)
def test_a_table_that_is_gone_is_an_error_of_the_engine(tmp_path: Path, engine: str) -> None:
    where = tmp_path / "db"
    options = ("ycsb", "--workload", "c", *SMALL, "--engine", engine)
    assert bench(*options, "--load-only", where).exit_code == 0
    for table in [*where.glob("*.sst"), *where.glob("*.ldb")]:
        table.unlink()
    assert f"{engine} {where}: " in refused(*options, "--run-only", "--verify", where)


def test_a_directory_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    where = tmp_path / "precious"
    engine = open_engine("rocksdb", str(where), create=True)
    engine.put(b"user1", b"precious")
    engine.close()
    before = sorted(os.listdir(where))
    for command in (("ycsb", "--workload", "a"), ("run", "mixgraph"), ("db-bench", "--benchmarks", "fillrandom")):
        assert "give a new or empty directory" in refused(*command, where)
    assert "--db-path takes a new or empty directory" in refused(
        "ycsb", "--workload", "a", "--db-path", f"{where}:1GiB", tmp_path / "ours"
    )
    assert sorted(os.listdir(where)) == before
    engine = open_engine("rocksdb", str(where), create=False)
    assert engine.get(b"user1") == b"precious"
    engine.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--engine", "leveldb", "--direct-reads"), "leveldb cannot set direct_reads"),
        (("--json", "/nowhere/r.json"), "/nowhere/r.json: No such file"),
        (("--run-only",), "nothing is loaded here"),
        (("--distribution", "gauss"), "distribution 'gauss': must be one of"),
        (("--background-jobs", "99999999999"), "background_jobs: 99999999999 is more than 2147483647"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    assert told in refused("ycsb", "--workload", "a", *SMALL, *options, tmp_path / "db")


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--block-cache", "8QiB", "'8QiB' is not a size"),
        ("--value-size", "2GiB", "is not from 1 to 2147483647 bytes"),
        ("--db-path", "/fast", "must be PATH:SIZE"),
        ("--seconds", "nan", "nan is not a number"),
        ("--seconds", "inf", "is not in the range"),
        ("--warm-up", "inf", "is not in the range"),
        ("--rate", "nan", "nan is not a number"),
        ("--rate", "1e-300", "is not in the range"),
        ("--interval", "1e-12", "is not in the range"),
        ("--threads", "100000", "is not in the range"),
        ("--seed", "18446744073709551616", "is not in the range"),
    ],
)
def test_values_that_are_none(tmp_path: Path, option: str, value: str, told: str) -> None:
    done = bench("ycsb", "--workload", "a", option, value, tmp_path)
    assert done.exit_code == 2
    assert told in done.stderr


def test_db_paths(tmp_path: Path) -> None:
    places = (f"{tmp_path / 'fast'}:1MiB", f"{tmp_path / 'slow'}:1GiB")
    options = ("ycsb", "--workload", "a", *SMALL, *(item for place in places for item in ("--db-path", place)))
    for _ in range(2):
        assert bench(*options, "--write-buffer", "256KiB", "--verify", tmp_path / "db").exit_code == 0
    assert list((tmp_path / "slow").glob("*.sst")) or list((tmp_path / "fast").glob("*.sst"))


def test_the_page_cache_is_dropped_between_load_and_run(tmp_path: Path) -> None:
    done = bench("ycsb", "--workload", "c", *SMALL, "--drop-caches", "--verify", tmp_path / "db")
    assert done.exit_code == 0, done.output


def test_a_memory_limit_holds_or_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """Which of the two is up to the machine."""
    command = ("ycsb", "--workload", "c", *SMALL, "--memory", "1GiB", tmp_path / "db")
    try:
        hierarchy = memory_hierarchy()
    except IsolationError:
        assert "has no memory controller" in refused(*command)
        assert not (tmp_path / "db").exists()
        return
    assert bench(*command).exit_code == 0
    assert not list(hierarchy.root.glob("keigo-bench-*"))


INTERRUPTED = """
import os, signal, sys
from keigo.cli import main
from workloads.engines import OPEN
from workloads.engines.null import DictEngine

class Interrupting(DictEngine):
    reads = 0
    def get(self, key):
        self.reads += 1
        if self.reads == 1000:
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        return super().get(key)

OPEN["rocksdb"] = lambda path, options, *, create: Interrupting()
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a background job
main(["bench", "ycsb", "--workload", "c", "--engine", "rocksdb", "--records", "100", "--seconds", "1000",
      "--threads", "2", "--verify", "--json", sys.argv[2], sys.argv[3]])
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_ctrl_c_writes_what_was_measured(tmp_path: Path, signal: str) -> None:
    out = tmp_path / "r.json"
    command = [sys.executable, "-c", INTERRUPTED, signal, str(out), str(tmp_path / "db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    found = read(out)
    assert found["interrupted"]
    assert found["phases"][1]["operations"] >= 1000
    assert not found["verification"]["complete"]
    assert found["verification"]["failures"] == []


def test_db_bench(tmp_path: Path, make_world: MakeWorld) -> None:
    world = make_world()
    world.mount()
    where, out = world.directory / "db", tmp_path / "r.json"
    options = ("--num", "2000", "--json", out, where)
    done = bench("db-bench", "--benchmarks", "fillrandom,readrandom", "--write-buffer", "256KiB", *options)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_bytes())
    assert [result["name"] for result in found["report"]["results"]] == ["fillrandom", "readrandom"]
    assert found["mount"]["driver"] == world.driver
    assert found["database_cpu"] > 0
    assert bench("db-bench", "--benchmarks", "readrandom", "--use-existing", *options).exit_code == 0
    for _ in range(2):
        assert bench("db-bench", "--benchmarks", "fillseq", *options).exit_code == 0
    assert "no earlier run of db_bench" in refused(
        "db-bench", "--benchmarks", "readrandom", "--use-existing", tmp_path / "new"
    )
    world.umount()


def test_a_result_that_cannot_be_written_is_shown(tmp_path: Path) -> None:
    done = bench("ycsb", "--workload", "c", *SMALL, "--json", "/dev/full", tmp_path / "db")
    assert done.exit_code == 1
    assert done.stderr == "Error: /dev/full: No space left on device\n"
    assert "ycsb-c on rocksdb" in done.stdout


def test_a_run_that_does_not_keep_its_rate_says_so(tmp_path: Path) -> None:
    done = bench("ycsb", "--workload", "c", *SMALL[:2], "--rate", "1e8", "--seconds", "0.5", tmp_path / "db")
    assert done.exit_code == 0
    assert "run ended 0.5 s behind its times" in done.stdout


def test_choices_are_those_of_the_engines() -> None:
    """The command line names them without importing what has them."""
    assert ON_DISK == cli_bench.ENGINES
    assert cli_bench.COMPRESSIONS == COMPRESSIONS


def test_the_command_line_does_not_import_numpy() -> None:
    code = "import sys, keigo.cli; print({'numpy', 'workloads'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_the_marker_is_beside_the_database(tmp_path: Path) -> None:
    assert bench("ycsb", "--workload", "a", *SMALL, tmp_path).exit_code == 0
    assert json.loads((tmp_path / MARKER).read_text())["loaded"]
