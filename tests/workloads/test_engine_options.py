"""Every option is in effect, or an error; by what the engines write of themselves, and by what they do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.workloads.engine_support import ROOT, fill, info_log, key, on_disk, rocks, value
from workloads.engines import open_engine
from workloads.engines.options import CompactionStyle, Compression, DbPath, EngineOptions, OptionError, asked_for
from workloads.engines.readback import read_options

ALL = EngineOptions(
    write_buffer=1 << 20,
    file_size=1 << 18,
    background_jobs=3,
    subcompactions=2,
    block_cache=3 << 20,
    bloom_bits=7,
    direct_reads=True,
    direct_writes=True,
    compression="lz4",
    max_open_files=50,
    sync=True,
    compaction_style="universal",
    growth_factor=4,
    level_base=1 << 20,
    level0_slowdown=9,
    level0_stop=11,
    dynamic_levels=False,
)
STORED = {
    "write_buffer_size": "1048576",
    "target_file_size_base": "262144",
    "max_background_jobs": "3",
    "max_subcompactions": "2",
    "no_block_cache": "false",
    "filter_policy": "bloomfilter",
    "use_direct_reads": "true",
    "use_direct_io_for_flush_and_compaction": "true",
    "compression": "kLZ4Compression",
    "max_open_files": "50",
    "compaction_style": "kCompactionStyleUniversal",
    "max_bytes_for_level_multiplier": "4.000000",
    "max_bytes_for_level_base": "1048576",
    "level0_slowdown_writes_trigger": "9",
    "level0_stop_writes_trigger": "11",
    "level_compaction_dynamic_level_bytes": "false",
}


def test_all_means_all() -> None:
    assert set(asked_for(ALL)) == {field.name for field in fields(EngineOptions)} - {"wal", "db_paths"}


@rocks
def test_options_read_back(name: str, tmp_path: Path) -> None:
    with closing(open_engine(name, str(tmp_path / "db"), ALL, create=True)) as engine:
        assert read_options(str(tmp_path / "db")).items() >= STORED.items()
        assert "capacity : 3145728" in info_log(tmp_path / "db")
        fill(engine, 20)
    assert "Options.compression: LZ4" in info_log(tmp_path / "db")


@rocks
def test_options_of_an_older_life_do_not_stay(name: str, tmp_path: Path) -> None:
    """Bindings take a column family's options from the database where they are not told twice."""
    path = str(tmp_path / "db")
    open_engine(name, path, ALL, create=True).close()
    other = EngineOptions(write_buffer=2 << 20, compression="none", compaction_style="universal", block_cache=0)
    open_engine(name, path, other, create=False).close()
    stored = read_options(path)
    assert stored["write_buffer_size"] == str(2 << 20)
    assert stored["compression"] == "kNoCompression"
    assert (stored["no_block_cache"], stored["filter_policy"]) == ("true", "nullptr")
    assert stored["target_file_size_base"] == str(64 << 20), "what is not asked for is as RocksDB has it"


@rocks
def test_bits_of_the_filter(name: str, tmp_path: Path) -> None:
    sizes = []
    for bits in (0, 5, 20):
        path = tmp_path / str(bits)
        with closing(open_engine(name, str(path), EngineOptions(bloom_bits=bits), create=True)) as engine:
            fill(engine, 4000)
            engine.flush()
        (found,) = re.findall(r'"filter_size": (\d+)', info_log(path))
        sizes.append(int(found) * 8 / 4000)
    assert sizes[0] == 0
    assert 4.5 < sizes[1] < 6
    assert 19 < sizes[2] < 22


@rocks
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("wal", [False, True])
def test_sync_and_wal(name: str, wal: bool, sync: bool, tmp_path: Path) -> None:
    """By the log's own counters."""
    if sync and not wal:
        with pytest.raises(OptionError, match="no log to sync"):
            EngineOptions(sync=sync, wal=wal)
        return
    with closing(open_engine(name, str(tmp_path / "db"), EngineOptions(wal=wal, sync=sync), create=True)) as engine:
        engine.put(b"a", b"1")
        engine.delete(b"a")
        engine.write([(b"b", b"1")])
        counted = re.search(r"Cumulative WAL: (\d+) writes, (\d+) syncs", stats_text(engine))
        assert counted is not None
        assert counted.groups() == ("3" if wal else "0", "3" if sync else "0")
        engine.sync()
        assert bool(engine.stats().levels) == (not wal), "without a log only a flush makes writes durable"


def stats_text(engine: Any) -> str:
    return str(engine._db.property_value("rocksdb.dbstats"))


@rocks
def test_direct_reads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "db"
    for direct in (False, True):
        options = EngineOptions(direct_reads=direct, direct_writes=direct, compression="none")
        with closing(open_engine(name, str(path), options, create=True)) as engine:
            pairs = fill(engine, 500)
            engine.flush()
            assert engine.get(key(1)) == pairs[key(1)]
            assert {bool(flags & os.O_DIRECT) for flags in open_flags(path, ".sst")} == {direct}


def open_flags(directory: Path, suffix: str) -> list[int]:
    """The flags of this process's open files of a kind below a directory."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith(f"{directory}/") and target.endswith(suffix):
                text = Path(f"/proc/self/fdinfo/{entry}").read_text()
                found.append(int(text.split("flags:")[1].split()[0], 8))
        except FileNotFoundError:
            continue
    return found


@rocks
@pytest.mark.parametrize("style", ["leveled", "universal"])
def test_db_paths(name: str, style: CompactionStyle, tmp_path: Path) -> None:
    paths = tuple(DbPath(str(tmp_path / part), size) for part, size in (("fast", 700_000), ("slow", 1 << 30)))
    options = EngineOptions(
        write_buffer=64 << 10,
        file_size=64 << 10,
        level_base=256 << 10,
        compression="none",
        compaction_style=style,
        db_paths=paths,
    )
    with closing(open_engine(name, str(tmp_path / "db"), options, create=True)) as engine:
        pairs = fill(engine, 4000)
        engine.wait_for_compactions()
        used = [any(Path(place.path).glob("*.sst")) for place in paths]
        # Universal compaction may end with a single run, which is on the slow path.
        assert used == [True, True] or (style == "universal" and used == [False, True])
        assert not list((tmp_path / "db").glob("*.sst"))
        assert engine.stats().bytes > 4000 * 400
    with closing(open_engine(name, str(tmp_path / "db"), options, create=False)) as engine:
        assert dict(engine.scan(b"", 5000)) == pairs


def test_leveldb_options(tmp_path: Path) -> None:
    """LevelDB writes no OPTIONS file: by what it does."""

    def tables(options: EngineOptions, part: str) -> list[Path]:
        with closing(open_engine("leveldb", str(tmp_path / part), options, create=True)) as engine:
            for number in range(20_000):
                engine.put(key(number), b"x" * 400)
            engine.wait_for_compactions()
        return list((tmp_path / part).glob("*.ldb"))

    plain = tables(EngineOptions(compression="none", write_buffer=4 << 20), "plain")
    filtered = tables(EngineOptions(compression="none", write_buffer=1 << 20, bloom_bits=10), "filtered")
    packed = tables(EngineOptions(compression="snappy"), "packed")
    assert len(filtered) > 2 * len(plain), "smaller memtables make more tables"
    assert all(b"filter.leveldb.BuiltinBloomFilter2" in path.read_bytes() for path in filtered)
    assert not any(b"filter.leveldb" in path.read_bytes() for path in (*plain, *packed))
    raw = sum(path.stat().st_size for path in plain)
    assert raw > 20_000 * 400 > 4 * sum(path.stat().st_size for path in packed)


def test_leveldb_cache(tmp_path: Path) -> None:
    path, written = tmp_path / "db", b"x" * 400
    with closing(open_engine("leveldb", str(path), EngineOptions(write_buffer=64 << 10), create=True)) as engine:
        for number in range(10_000):
            engine.put(key(number), written)
        engine.wait_for_compactions()
    used = {}
    for cache in (0, 1 << 20, 64 << 20):
        opened: Any = open_engine("leveldb", str(path), EngineOptions(block_cache=cache), create=False)
        with closing(opened) as engine:
            assert all(engine.get(key(number)) == written for number in range(10_000))
            used[cache] = int(opened._db.get_property(b"leveldb.approximate-memory-usage"))
    assert used[0] < 100_000 < used[1 << 20] < 1.2 * (1 << 20) < used[64 << 20]


def test_leveldb_open_files(tmp_path: Path) -> None:
    """Of 74 open files 10 are for other things; a table that is open is mapped into memory."""
    path = tmp_path / "db"
    with closing(open_engine("leveldb", str(path), EngineOptions(write_buffer=64 << 10), create=True)) as engine:
        for number in range(20_000):
            engine.put(key(number), value(number))
        engine.wait_for_compactions()
    assert len(list(path.glob("*.ldb"))) > 100
    mapped = {}
    for most in (74, 1000):
        options = EngineOptions(max_open_files=most)
        with closing(open_engine("leveldb", str(path), options, create=False)) as engine:
            assert all(engine.get(key(number)) for number in range(20_000))
            mapped[most] = len(set(re.findall(rf"{path}/\d+\.ldb", Path("/proc/self/maps").read_text())))
    assert mapped[74] <= 64
    assert mapped[1000] > 100


SYNCING = """
import os, sys
from workloads.engines import open_engine
from workloads.engines.options import EngineOptions
engine = open_engine(sys.argv[1], sys.argv[2], EngineOptions(sync=sys.argv[3] == "sync option"), create=True)
engine.put(b"a", b"1")
engine.delete(b"a")
engine.write([(b"b", b"1")])
if sys.argv[3] == "sync call":
    engine.sync()
os._exit(0)
"""


@on_disk
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_what_reaches_the_device(name: str, tmp_path: Path) -> None:
    synced = {}
    for how in ("nothing", "sync option", "sync call"):
        command = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(tmp_path / "trace")]
        command += [sys.executable, "-c", SYNCING, name, str(tmp_path / how.replace(" ", "")), how]
        subprocess.run(command, check=True, cwd=ROOT, timeout=120)
        trace = (tmp_path / "trace").read_text()
        synced[how] = len(re.findall(r"sync\(\d+<[^>]*/\d+\.(?:log|sst|ldb)>", trace))
    assert synced == {"nothing": 0, "sync option": 3, "sync call": 1}


LEVELDB_HAS_NOT: dict[str, Any] = {
    "background_jobs": 2,
    "subcompactions": 2,
    "direct_reads": True,
    "direct_writes": True,
    "wal": False,
    "growth_factor": 4,
    "level_base": 1 << 20,
    "level0_slowdown": 9,
    "level0_stop": 11,
    "dynamic_levels": True,
    "db_paths": (DbPath("a", 1),),
}


@pytest.mark.parametrize("option", LEVELDB_HAS_NOT)
def test_leveldb_has_no(option: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=rf"^leveldb cannot set {option} \(to "):
        open_engine("leveldb", str(tmp_path / "db"), EngineOptions(**{option: LEVELDB_HAS_NOT[option]}), create=True)
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(write_buffer=(64 << 10) - 1),
        EngineOptions(file_size=(1 << 20) - 1),
        EngineOptions(file_size=(1 << 30) + 1),
        EngineOptions(max_open_files=73),
        EngineOptions(max_open_files=-1),
        EngineOptions(compression="zstd"),
        EngineOptions(compaction_style="universal"),
    ],
)
def test_leveldb_takes_no_such_value(options: EngineOptions, tmp_path: Path) -> None:
    (option,) = asked_for(options)
    with pytest.raises(OptionError, match=f"^leveldb cannot set {option} to .*"):
        open_engine("leveldb", str(tmp_path / "db"), options, create=True)


@pytest.mark.parametrize("name", ["null", "dict"])
def test_engines_without_options(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^{name} cannot set sync "):
        open_engine(name, str(tmp_path / "db"), EngineOptions(sync=True), create=True)


@rocks
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EngineOptions(write_buffer=100), "write_buffer 100: write_buffer_size=65536"),
        (EngineOptions(max_open_files=5), "max_open_files 5: max_open_files=20"),
        (EngineOptions(dynamic_levels=True, compaction_style="universal"), None),
    ],
)
def test_values_that_are_changed_behind_our_back(
    name: str, options: EngineOptions, words: str | None, tmp_path: Path
) -> None:
    path = str(tmp_path / "db")
    try:
        open_engine(name, path, options, create=True).close()
    except OptionError as error:
        assert str(error).startswith(f"{name} does not run with ")
        assert words is None or words in str(error)
    else:
        assert words is None
        assert read_options(path)["level_compaction_dynamic_level_bytes"] == "true"
    open_engine(name, path, create=True).close()  # and nothing holds it open


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"write_buffer": 0}, "write_buffer: 0 is less than 1"),
        ({"max_open_files": -2}, "max_open_files: -2"),
        ({"growth_factor": 1}, "growth_factor: 1"),
        ({"compression": "rar"}, "compression: 'rar' is none of none, snappy"),
        ({"compaction_style": "fifo"}, "compaction_style: 'fifo' is none of"),
        ({"db_paths": (DbPath("", 1),)}, "db_paths: ''"),
    ],
)
def test_options_that_no_engine_has(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=f"^{words}"):
        EngineOptions(**options)


@rocks
@pytest.mark.parametrize("compression", ["none", "snappy", "bz2", "lz4", "lz4hc", "zstd"])
def test_every_compression(name: str, compression: Compression, tmp_path: Path) -> None:
    options = EngineOptions(compression=compression)
    with closing(open_engine(name, str(tmp_path / "db"), options, create=True)) as engine:
        for number in range(2000):
            engine.put(key(number), b"x" * 400)
        engine.flush()
        assert (engine.stats().bytes < 400_000) == (compression != "none")
        assert engine.get(key(7)) == b"x" * 400


@rocks
def test_zlib_would_be_silence(name: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^{name} cannot set compression to 'zlib': .* compresses nothing"):
        open_engine(name, str(tmp_path / "db"), EngineOptions(compression="zlib"), create=True)
