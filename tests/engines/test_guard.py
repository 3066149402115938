"""What could destroy a database is refused: opening the bare directory while files are elsewhere, mounting beside a
process that still has files of a dead mount, mounting over a database that is running, unmounting one."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keigo import mounts
from keigo.tiers.catalog import boot_id
from tests.conftest import MakeWorld, World
from tests.engines.conftest import Run
from tests.engines.processes import OpenStore, Oracle, StoreError, destroy
from tests.engines.stores import ENGINES
from tests.engines.volumes import assert_nothing_left, refused, refused_mount, trees

ROOMY = {"fast": "64MiB", "mid": "64MiB"}
LEVELS = "{fast: [wal, 0], mid: [1, 2], slow: [3, 4, 5, 6]}"

engines = pytest.mark.parametrize("engine", ENGINES)

# What is elsewhere -> (levels, pins); everything else stays in place.
ELSEWHERE = {
    "wal": ("{fast: [wal], slow: [0, 1, 2, 3, 4, 5, 6]}", ""),
    "metadata": (
        "{slow: [wal, 0, 1, 2, 3, 4, 5, 6]}",
        'pins: {"*CURRENT*": fast, "*.dbtmp": fast, "*MANIFEST-*": fast, "*OPTIONS-*": fast, "*IDENTITY": fast}\n',
    ),
    "tables": ("{fast: [0, 1, 2, 3, 4, 5, 6], slow: [wal]}", ""),
}
ROLES = {"wal": {"wal"}, "metadata": {"manifest", "current"}, "tables": {"sst"}}


def assert_guarded(world: World, engine: str, path: Path, open_store: OpenStore) -> None:
    """Neither opening nor destroying the bare database natively works, or changes anything on any tier."""
    before = trees(world)
    for create in (False, True):
        with pytest.raises(StoreError, match="LOCK|lock"):
            open_store(engine, path, create=create)
    assert "LOCK" in destroy(engine, path, check=False)
    after = trees(world)
    # The bindings of RocksDB and Speedb remove their own file whatever the engine says.
    for name in before["slow"].keys() - after["slow"].keys():
        assert name.endswith("-config.json")
        after["slow"][name] = before["slow"][name]
    assert after == before


def drain_offline(world: World) -> None:
    world.keigo("drain", "--offline", "-d", world.config, world.directory)
    assert_nothing_left(world)


@engines
@pytest.mark.parametrize(("end", "back"), [("umount", "drain"), ("kill", "offline")])
def test_bare_directory(engine: str, end: str, back: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    oracle = Oracle()
    with open_store(engine, world.directory, create=True) as store:
        oracle.put(store, range(6000))
    if end == "kill":
        world.kill()
    world.umount()
    assert any(path.suffix in (".sst", ".ldb") for name in ("fast", "mid") for path in world.tiers[name].iterdir())

    assert_guarded(world, engine, world.directory, open_store)
    if back == "offline":
        drain_offline(world)
    else:
        world.mount()
        world.keigo("drain", world.directory)
        world.umount()
        assert_nothing_left(world)
    with open_store(engine, world.directory) as store:
        oracle.check(store)


@engines
@pytest.mark.parametrize("what", ELSEWHERE)
def test_only_some_files_elsewhere(engine: str, what: str, make_world: MakeWorld, open_store: OpenStore) -> None:
    levels, extra = ELSEWHERE[what]
    world = make_world({"fast": "256MiB"}, levels, extra, names=("fast", "slow"))
    world.mount()
    path = world.directory / "deep/db"
    path.parent.mkdir()
    oracle = Oracle()
    store = open_store(engine, path, create=True)
    oracle.put(store, range(3000))
    store.kill()  # closing would leave nothing in the WAL
    world.wait_closed()
    roles = {row["role"] for row in world.ls() if row["tier"] == "fast" and row["size"]}
    assert ROLES[what] <= roles
    if what == "wal":
        assert roles == {"wal"}
    else:
        assert "wal" not in roles
    world.umount()
    assert_guarded(world, engine, path, open_store)
    drain_offline(world)
    with open_store(engine, path) as store:
        oracle.check(store)


@engines
def test_adopted_database_is_guarded_from_the_mount_on(engine: str, world: World, open_store: OpenStore) -> None:
    """The guard stands before anything can leave, so that there is no moment without it."""
    oracle = Oracle()
    with open_store(engine, world.directory, create=True) as store:
        oracle.put(store, range(100))
    world.mount()
    world.kill()
    world.umount()
    assert_guarded(world, engine, world.directory, open_store)
    drain_offline(world)
    with open_store(engine, world.directory) as store:
        oracle.check(store)


def test_interrupted_offline_drain_stays_guarded(make_world: MakeWorld, open_store: OpenStore) -> None:
    world = make_world(ROOMY, LEVELS)
    world.mount()
    oracle = Oracle()
    with open_store("rocksdb", world.directory, create=True) as store:
        oracle.put(store, range(6000))
    world.umount()
    world.keigo(
        "drain",
        "--offline",
        "-d",
        world.config,
        world.directory,
        check=False,
        env={"KEIGO_FAILPOINT": "migrate.switched"},
    )
    assert_guarded(world, "rocksdb", world.directory, open_store)
    drain_offline(world)
    with open_store("rocksdb", world.directory) as store:
        oracle.check(store)


def test_drained_volume_moves_nothing_out_again(mounted: World, open_store: OpenStore) -> None:
    """The guards are gone: until it is mounted again, nothing may leave."""
    oracle = Oracle()
    with open_store("rocksdb", mounted.directory, create=True) as store:
        oracle.put(store, range(6000))
    mounted.keigo("drain", mounted.directory)
    refused(mounted, "migrate", mounted.directory, "*.sst", "fast")
    mounted.keigo("pin", mounted.directory, "*.sst", "fast")
    with open_store("rocksdb", mounted.directory) as store:
        oracle.put(store, range(3000, 9000))
    assert mounted.used_tiers() == {"slow"}
    mounted.umount()
    assert_nothing_left(mounted)
    with open_store("rocksdb", mounted.directory) as store:
        oracle.check(store)


def test_failed_drain_guards_again(make_world: MakeWorld, open_store: OpenStore, start: Run) -> None:
    """While draining, a new database has no guard; it gets one if the drain fails and files may leave again."""
    world = make_world({"fast": "64MiB", "slow": "4MiB"}, "{fast: [wal, 0, 1, 2, 3, 4, 5, 6]}", names=("fast", "slow"))
    world.mount()
    with open(world.directory / "000001.log", "wb") as wal:  # open for writing, so the drain waits for it
        wal.write(bytes(1 << 20))
        wal.flush()
        command = (sys.executable, "-m", "keigo", "drain", world.directory)
        drain = start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert drain.stderr is not None
        assert b"waiting for 000001.log" in drain.stderr.readline()
        store = open_store("rocksdb", world.directory / "new", create=True)
        assert world.used_tiers() <= {"fast", "slow"}
        assert world.status()["guards"] == 0
        (world.directory / "filler").write_bytes(bytes(3 << 20))
    assert drain.wait(60) == 1
    assert b"room" in drain.stderr.read()
    oracle = Oracle()
    oracle.put(store, range(3000), sync=True)
    assert world.status()["guards"] == 1
    store.kill()
    world.umount()
    assert_guarded(world, "rocksdb", world.directory / "new", open_store)
    world.mount()
    with open_store("rocksdb", world.directory / "new") as store:
        oracle.check(store)


def test_guard_is_invisible_in_the_mount(mounted: World, open_store: OpenStore) -> None:
    path = mounted.directory / "db"
    with open_store("rocksdb", path, create=True) as store:
        assert mounted.status()["guards"] == 1
        lock = path / "LOCK"
        assert lock.is_file()
        assert "LOCK" in os.listdir(path)
        assert path.stat().st_nlink == 2, "no sub-directory to be seen"
        with open(lock, "r+b") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(StoreError, match="(?i)lock"):
            open_store("rocksdb", path)
        store.put(range(10), 1)
    with open(lock, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(StoreError, match="(?i)lock"):
            open_store("rocksdb", path)
    mounted.umount()
    assert lock.is_dir()


def test_lock_is_kept_across_a_drain(mounted: World, open_store: OpenStore) -> None:
    """The guard goes and LOCK comes in place while the store has it locked: nobody else gets it meanwhile."""
    path = mounted.directory / "db"
    with open_store("rocksdb", path, create=True) as store:
        store.put(range(10), 1)
    with open(path / "LOCK", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mounted.keigo("drain", mounted.directory)
        assert mounted.status()["guards"] == 0
        with pytest.raises(StoreError, match="(?i)lock"):
            open_store("rocksdb", path)
    with open_store("rocksdb", path) as store:
        assert len(store.dump()) == 10


@engines
def test_destroyed_database_leaves_nothing(engine: str, mounted: World, open_store: OpenStore) -> None:
    path = mounted.directory / "db"
    oracle = Oracle()
    for _ in range(2):
        with open_store(engine, path, create=True) as store:
            oracle.put(store, range(3000))
        destroy(engine, path)
        # The engines remove the directory where nothing of others' is in it, as a binding's own file is.
        for left in path.iterdir() if path.exists() else ():
            assert left.name.endswith("-config.json") or left.name.startswith("LOG"), left
            left.unlink()
        if path.exists():
            path.rmdir()
        assert os.listdir(mounted.directory) == []
        assert mounted.status()["guards"] == 0
        assert mounted.ls() == []
    for name in ("fast", "mid"):
        assert sorted(os.listdir(mounted.tiers[name])) in ([], [".keigo"])
    mounted.umount()
    assert sorted(os.listdir(mounted.directory)) == [".keigo"]


# --- holders of a dead mount ---


def test_dead_mount_with_holders_is_not_replaced(mounted: World, open_store: OpenStore) -> None:
    store = open_store("rocksdb", mounted.directory, create=True)
    oracle = Oracle()
    oracle.put(store, range(1000), sync=True)
    mounted.kill()
    for line in (refused_mount(mounted), refused(mounted, "umount", mounted.directory)):
        assert f"pid {store.pid}" in line
        assert "dead" in line
    done = subprocess.run(["umount", mounted.directory], capture_output=True, text=True)
    assert "busy" in done.stderr
    store.kill()
    mounted.mount()
    with open_store("rocksdb", mounted.directory) as store:
        oracle.check(store)


def test_working_directory_holds_a_dead_mount(mounted: World, start: Run) -> None:
    sleeper = start("sleep", "infinity", cwd=mounted.directory)
    mounted.kill()
    assert f"pid {sleeper.pid}" in refused_mount(mounted)
    sleeper.kill()
    sleeper.wait()
    mounted.mount()


MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
held = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("lazily", [False, True])
def test_mapping_holds_a_dead_mount(lazily: bool, mounted: World, start: Run) -> None:
    """As LevelDB holds its tables: mapped, with the descriptor closed."""
    (mounted.directory / "000001.ldb").write_bytes(b"x" * 8192)
    command = (sys.executable, "-c", MAPPER, mounted.directory / "000001.ldb")
    mapper = start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert mapper.stdout is not None
    assert mapper.stdout.readline() == b"mapped\n"
    mounted.kill()
    if lazily:
        subprocess.run(["umount", "-l", mounted.directory], check=True)
    assert f"pid {mapper.pid}" in refused_mount(mounted)
    mapper.kill()
    mapper.wait()
    mounted.mount()
    assert (mounted.directory / "000001.ldb").read_bytes() == b"x" * 8192


def test_lazily_unmounted_dead_mount_with_a_holder(mounted: World, open_store: OpenStore) -> None:
    store = open_store("rocksdb", mounted.directory, create=True)
    oracle = Oracle()
    oracle.put(store, range(1000), sync=True)
    mounted.kill()
    subprocess.run(["umount", "-l", mounted.directory], check=True)
    assert not mounted.is_mounted()
    assert f"pid {store.pid}" in refused_mount(mounted)
    assert not mounted.is_mounted()
    assert f"pid {store.pid}" in refused(mounted, "drain", "--offline", "-d", mounted.config, mounted.directory)
    store.kill()
    mounted.mount()
    with open_store("rocksdb", mounted.directory) as store:
        oracle.check(store)


OPENER = """
import os, sys
held = os.open(sys.argv[1], os.O_PATH)
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """A directory that a test may mount on."""
    directory = tmp_path / "other"
    directory.mkdir()
    yield directory
    if mounts.mount_at(str(directory)) is not None:
        detach(directory)


def mount_or_skip(kind: bytes, directory: Path, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", os.fsencode(directory), kind, 0, options.encode()):
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")


def detach(directory: Path) -> None:
    assert ctypes.CDLL(None).umount2(os.fsencode(directory), 2) == 0


def held_and_detached(start: Run, program: str, path: Path, mounted: Path) -> tuple[int, mounts.Mount]:
    """Have `program` hold `path`, and detach the mount that it is on. Returns its pid, and what was mounted."""
    holder = start(sys.executable, "-c", program, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline()
    found = mounts.mount_at(str(mounted))
    assert found is not None
    detach(mounted)
    return holder.pid, found


def note_last_mount(world: World, last: mounts.Mount, unique: int | None) -> None:
    note = {"boot": boot_id(), "mount_id": last.id, "device": last.device, "unique": unique}
    (world.directory / ".keigo" / "mounted.json").write_text(json.dumps(note))


@pytest.mark.parametrize("driver", ["pyfuse3"], indirect=True)
@pytest.mark.parametrize("program", [OPENER, MAPPER], ids=["open", "mapped"])
def test_what_has_the_numbers_of_an_earlier_mount_is_no_holder(
    program: str, mounted: World, other: Path, start: Run
) -> None:
    """The kernel gives a mount's id and device to the next one at once: here to a tmpfs, itself detached."""
    unique = mounts.unique_id(str(mounted.directory))
    mounted.umount()
    mount_or_skip(b"tmpfs", other, "size=1m")
    (other / "file").write_bytes(b"x" * 8192)
    _, last = held_and_detached(start, program, other / "file", other)
    for known in {unique, None}:  # None: as before Linux 6.8
        note_last_mount(mounted, last, known)
        mounted.mount()
        mounted.umount()


@pytest.mark.parametrize("driver", ["pyfuse3"], indirect=True)
@pytest.mark.parametrize("owner", [0, 1000])
def test_a_dead_mount_without_a_unique_id(owner: int, mounted: World, other: Path, start: Run) -> None:
    """As before Linux 6.8. Without `allow_other` it tells others nothing at all, not even that it is dead."""
    unique = mounts.unique_id(str(mounted.directory))
    mounted.umount()
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        mount_or_skip(b"fuse", other, f"fd={device},rootmode=40000,user_id={owner},group_id={owner}")
        pid, last = held_and_detached(start, OPENER, other, other)
    finally:
        os.close(device)  # as the daemon dies
    note_last_mount(mounted, last, None)
    assert f"pid {pid}" in refused_mount(mounted)
    if unique is not None and owner == 0:  # of another volume, then
        note_last_mount(mounted, last, unique)
        mounted.mount()


def test_lazily_unmounted_while_alive(mounted: World, open_store: OpenStore) -> None:
    """The daemon still serves the detached mount, and its database is alive: there must not be a second."""
    store = open_store("rocksdb", mounted.directory, create=True)
    oracle = Oracle()
    oracle.put(store, range(1000), sync=True)
    subprocess.run(["umount", "-l", mounted.directory], check=True)
    refused_mount(mounted)
    refused(mounted, "drain", "--offline", "-d", mounted.config, mounted.directory)
    oracle.put(store, range(500, 1500), sync=True)
    oracle.check(store)
    store.close()
    mounted.wait_dead()
    mounted.mount()
    with open_store("rocksdb", mounted.directory) as store:
        oracle.check(store)


# --- live databases ---


@engines
def test_mount_over_a_running_database(engine: str, world: World, open_store: OpenStore) -> None:
    path = world.directory / "below"
    oracle = Oracle()
    with open_store(engine, path, create=True) as store:
        oracle.put(store, range(1000))
        line = refused_mount(world)
        assert f"pid {store.pid}" in line
        assert not world.is_mounted()
        assert not (world.directory / ".keigo").exists()
        assert (path / "LOCK").is_file()
        oracle.put(store, range(1000, 2000))
        oracle.check(store)
    world.mount()
    with open_store(engine, path) as store:
        oracle.check(store)


@engines
def test_umount_of_a_running_database(engine: str, mounted: World, open_store: OpenStore) -> None:
    oracle = Oracle()
    with open_store(engine, mounted.directory / "db", create=True) as store:
        oracle.put(store, range(3000))
        assert f"pid {store.pid}" in refused(mounted, "umount", mounted.directory)
        assert mounted.is_mounted()
        oracle.put(store, range(2000, 6000))
        oracle.check(store)
        # Migrations, which a try to unmount stops, go on too.
        upper = [row for row in mounted.ls() if row["role"] == "sst" and row["level"] is not None and row["level"] < 3]
        name = next(row["name"] for row in upper if row["tier"] != "slow")
        mounted.keigo("migrate", mounted.directory, name, "slow")
        oracle.check(store)
    mounted.umount()
