"""What the next daemon of a mount could take for something else: numbers, ids, offsets, and what is asked twice."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path

import pytest

from fusefs import abi
from fusefs.abi import Op
from fusefs.attributes import ROOT_ID, Caller
from fusefs.connection import Connection
from fusefs.dispatch import Dispatcher
from fusefs.inodes import Inodes
from fusefs.kernel_driver import KernelDriver
from fusefs.namespace import Namespace
from fusefs.opens import Opens
from fusefs.operations import Operations
from fusefs.read_counts import ReadCounts
from fusefs.session import KeptHandle, Session
from keigo import config, mounts
from keigo.control import ask
from keigo.lsm.roles import Role
from keigo.policies import make_policy
from keigo.tiers import adoption, orphans
from keigo.tiers.adoption import BegunLink, BegunRename
from keigo.tiers.opening import open_volume
from tests.conftest import MakeWorld, World
from tests.devices.disks import ext4
from tests.faults import keeping
from tests.faults.keeping import keeper_of, kept, replace, wait_for
from tests.fs.test_listing import listing

pytestmark = pytest.mark.timeout(300)
ME = Caller(0, 0, 0)
driver, world = keeping.driver, keeping.world


@pytest.fixture
def namespace(make_world: MakeWorld) -> Iterator[Namespace]:
    """A namespace without a driver, in this process."""
    world = make_world()
    loaded = config.load(world.config)
    volume, _ = open_volume(loaded, world.directory, make_policy(loaded))
    namespace = Namespace(volume)
    yield namespace
    namespace.close()
    volume.close()


def without_daemon(world: World, do: Callable[[], object]) -> int:
    """Kill the daemon, and do something before the keeper starts the next; returns the keeper's pid."""
    keeper = keeper_of(world.pids[-1])
    os.kill(keeper, signal.SIGSTOP)
    try:
        world.kill()
        do()
    finally:
        os.kill(keeper, signal.SIGCONT)
    return keeper


def wait_ended(pid: int) -> None:
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([watched], [], [], 120)[0], "it did not end"
    os.close(watched)


def request(op: Op, node: int, body: bytes) -> bytes:
    return abi.IN_HEADER.pack(abi.IN_HEADER.size + len(body), op, 2, node, 0, 0, 0, 0, 0) + body


@pytest.mark.parametrize("op", [Op.RELEASE, Op.RELEASEDIR])
def test_a_number_is_not_used_again_before_its_release_is_answered(namespace: Namespace, op: Op) -> None:
    """Else a daemon that dies before the answer leaves a RELEASE that would close somebody else's file."""
    found, first = namespace.files.create(ROOT_ID, b"plain", 0o644, os.O_RDWR, ME)
    inodes = Inodes()
    opens = Opens(namespace, Connection(-1), inodes, ReadCounts(inodes), None)
    meanwhile: list[int] = []

    def reply(_unique: int, _error: int, _data: bytes) -> None:
        meanwhile.append(namespace.files.open(found.id, os.O_RDONLY))

    dispatcher = Dispatcher(Operations(namespace, inodes, opens).handlers(), reply, namespace, inodes)
    node, number = found.id, first
    if op == Op.RELEASEDIR:
        node, number = ROOT_ID, namespace.directories.opendir(ROOT_ID)
    else:
        inodes.get(node).handles[number] = (False, True)
    body = abi.RELEASE_IN.pack(number, 0, 0, 0)
    dispatcher.answer(request(op, node, body))
    assert meanwhile
    assert meanwhile[0] != number
    assert namespace.files.open(found.id, os.O_RDONLY) == number, "after the answer it is free"


def test_a_number_whose_release_comes_again_is_not_used_before(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = request(Op.RELEASE, 5, abi.RELEASE_IN.pack(1, 0, 0, 0))
    monkeypatch.setattr("fusefs.takeover.read_resent", lambda *_: [again])
    driver, session = KernelDriver(keeping=True), Session.new()
    driver.adopt(namespace, -1, session)
    _, handle = namespace.files.create(ROOT_ID, b"plain", 0o644, os.O_RDWR, ME)
    assert handle != 1
    session.close()


@pytest.mark.parametrize("point", ["names.begun", "names.changed", "names.committed"])
def test_an_attribute_is_set_and_removed_once(world: World, point: str) -> None:
    kept(world, f"{point}:3")  # after a CREATE and a SETXATTR
    path = world.directory / "file"
    path.write_bytes(b"")
    os.setxattr(path, "user.old", b"1")
    before = world.status()["pid"]
    os.setxattr(path, "user.new", b"2", os.XATTR_CREATE)
    assert world.status()["pid"] != before
    assert os.getxattr(path, "user.new") == b"2"
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.new", b"3", os.XATTR_CREATE)
    world.pids.append(world.status()["pid"])


@pytest.mark.parametrize("point", ["names.begun", "names.changed", "names.committed"])
def test_an_attribute_is_removed_once(world: World, point: str) -> None:
    kept(world, f"{point}:3")
    path = world.directory / "file"
    path.write_bytes(b"")
    os.setxattr(path, "user.old", b"1")
    before = world.status()["pid"]
    os.removexattr(path, "user.old")
    assert world.status()["pid"] != before
    assert os.listxattr(path) == []
    world.pids.append(world.status()["pid"])


def test_names_in_a_directory_that_was_renamed_meanwhile(namespace: Namespace) -> None:
    """Both changes were under way, in two threads, and neither was recorded."""
    volume = namespace.volume
    above = namespace.names.mkdir(ROOT_ID, b"old", 0o755, ME).id
    nodes = {}
    for name in (b"one", b"two"):
        found, handle = namespace.files.create(above, name, 0o644, os.O_RDWR, ME)
        namespace.files.release(handle)
        nodes[name] = found.id
    at = Path(f"/proc/self/fd/{volume.primary.root.fd}")
    inodes = {name: (at / "old" / os.fsdecode(name)).stat().st_ino for name in nodes}
    inode = (at / "old").stat().st_ino
    (at / "old").rename(at / "new")
    (at / "new" / "one").rename(at / "new" / "three")
    os.link(at / "new" / "two", at / "new" / "four")
    volume.directories.clear()
    renames = [
        BegunRename((above, b"one"), (above, b"three"), False, nodes[b"one"], 0, inodes[b"one"], 0),
        BegunRename((ROOT_ID, b"old"), (ROOT_ID, b"new"), False, above, 0, inode, 0),
    ]
    adoption.settle(volume, renames, [BegunLink(nodes[b"two"], (above, b"four"))])
    assert volume.path(above) == b"new"
    for name, node in ((b"three", b"one"), (b"two", b"two"), (b"four", b"two")):
        entry = volume.lookup(above, name)
        assert entry is not None
        assert entry.id == nodes[node], name


def test_two_links_of_a_file_that_were_exchanged(namespace: Namespace) -> None:
    """Nothing tells whether that was done, nor does it matter."""
    found, handle = namespace.files.create(ROOT_ID, b"one", 0o644, os.O_RDWR, ME)
    namespace.files.release(handle)
    namespace.names.link(found.id, ROOT_ID, b"two")
    inode = namespace.volume.stat_file(found.id).st_ino
    begun = BegunRename((ROOT_ID, b"one"), (ROOT_ID, b"two"), True, found.id, found.id, inode, inode)
    adoption.settle(namespace.volume, [begun], [])
    assert namespace.nodes.getattr(found.id).nlink == 2


def test_a_listing_goes_on_where_it_was(world: World) -> None:
    kept(world)
    names = {b"%05d" % number for number in range(3000)}
    at = os.fsencode(world.directory / "many")
    os.mkdir(at)
    for name in names:
        os.close(os.open(os.path.join(at, name), os.O_CREAT))
    with listing(world.directory / "many") as opened:
        found = [opened.read() for _ in range(500)]
        for gone in found:
            if gone is not None and gone not in (b".", b".."):
                os.unlink(os.path.join(at, gone))
        replace(world)
        found += opened.rest()
    assert sorted(filter(None, found)) == sorted(names | {b".", b".."})


def test_a_directory_that_was_removed_stays_open(world: World) -> None:
    kept(world)
    (world.directory / "gone").mkdir()
    opened = os.open(world.directory / "gone", os.O_RDONLY)
    os.rmdir(world.directory / "gone")
    for _ in range(2):
        replace(world)
        assert os.listdir(opened) == []
        assert os.fstat(opened).st_nlink == 0
        with pytest.raises(FileNotFoundError):
            os.open("file", os.O_CREAT, dir_fd=opened)
    os.close(opened)
    assert not world.log().count("handle is lost")


def leads_to(fd: Path) -> str | None:
    """Another process closes descriptors while we look."""
    try:
        return os.readlink(fd)
    except FileNotFoundError:
        return None


def test_a_file_made_to_be_written_in_sync_is_so_still(world: World) -> None:
    kept(world)
    opened = os.open(world.directory / "LOG", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    replace(world)
    fds = Path(f"/proc/{world.pids[-1]}/fd")
    (number,) = [fd.name for fd in fds.iterdir() if leads_to(fd) == str(world.directory / "LOG")]
    flags = int(Path(f"/proc/{world.pids[-1]}/fdinfo/{number}").read_text().split("flags:")[1].split()[0], 8)
    assert flags & os.O_SYNC == os.O_SYNC
    os.close(opened)


def test_files_that_are_gone_are_forgotten(world: World) -> None:
    kept(world)
    replace(world)
    for number in range(100):
        path = world.directory / f"{number}"
        path.write_bytes(b"")
        path.unlink()
    wait_for(lambda: world.status()["driver_facts"]["inodes"] < 50)


def test_a_mount_that_is_gone_is_not_taken_over(world: World) -> None:
    """Its tiers are nobody's, and a database may be open in the bare directory: no guard may come there."""
    kept(world)
    (world.directory / "db").mkdir()

    def umount() -> None:
        mounts.unmount(str(world.directory))  # umount(8) would look at it first, and wait
        (world.directory / "db" / "CURRENT").write_text("somebody's")
        (world.directory / "db" / "LOCK").write_text("")

    wait_ended(without_daemon(world, umount))
    assert (world.directory / "db" / "LOCK").is_file()
    assert world.log().count("starting another") == 1
    kept(world)


def test_a_drain_goes_on(world: World) -> None:
    kept(world)
    database = world.directory / "db"
    database.mkdir()
    for name in ("CURRENT", "000001.log", "LOCK"):
        (database / name).write_text(name)
    assert world.used_tiers() == {"fast", "slow"}
    wait_for(lambda: world.status()["open_files"] == 0)
    ask(world.volume, "drain")
    replace(world)
    (database / "000002.log").write_text("new")
    assert world.used_tiers() == {"slow"}
    world.umount()
    assert (database / "LOCK").is_file()
    assert not (world.directory / ".keigo").exists()


def test_ids_never_come_to_stand_for_other_files(world: World) -> None:
    """Without its catalog the next daemon would give the ids that the kernel knows to whatever it finds first."""
    kept(world)
    for name in ("b", "a"):
        (world.directory / name).write_text(name)
    opened = os.open(world.directory / "b", os.O_RDWR)
    below = _catalog_of(world.pids[-1])
    wait_ended(without_daemon(world, lambda: os.unlink(b"data.mdb", dir_fd=below)))
    os.close(below)
    with pytest.raises(OSError, match="not connected") as caught:
        os.stat(world.directory / "nobody")
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(OSError, match="not connected"):
        os.close(opened)
    kept(world)
    assert {name: (world.directory / name).read_text() for name in "ab"} == {"a": "a", "b": "b"}


def _catalog_of(pid: int) -> int:
    """The directory of the catalog, which the mount hides, by a descriptor of the daemon's."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            return os.open(f"/proc/{pid}/fd/{fd}/catalog", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
    raise AssertionError("no descriptor leads to a catalog")


def test_a_full_device_keeps_what_is_open(tmp_path: Path, make_world: MakeWorld) -> None:
    """Ids, and files without a name; and the next daemon starts, though it can write nothing."""
    world = make_world()
    with ext4(tmp_path, 48 << 20) as disk:
        world.directory = world.tiers["slow"] = disk / "db"
        world.directory.mkdir()
        kept(world)
        try:
            _fill_and_replace(world, disk)
        finally:
            world.umount()


def _fill_and_replace(world: World, disk: Path) -> None:
    at = world.directory
    removed = [os.open(at / f"{number}", os.O_RDWR | os.O_CREAT) for number in range(20)]
    for number, fd in enumerate(removed):
        os.write(fd, b"%d" % number)
    with (disk / "fill").open("wb", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            with pytest.raises(OSError, match="No space"):
                _write_on(filler, bytes(size))
    made = [os.open(at / f"{number:06}.log", os.O_RDWR | os.O_CREAT) for number in range(300)]
    for number in range(len(removed)):
        (at / f"{number}").unlink()
    replace(world)
    assert [os.pread(fd, 10, 0) for fd in removed] == [b"%d" % number for number in range(len(removed))]
    for number, fd in enumerate(made):
        assert os.fstat(fd).st_ino == (at / f"{number:06}.log").stat().st_ino
    for fd in removed + made:
        os.close(fd)
    (disk / "fill").unlink()


def _write_on(file: RawIOBase, data: bytes) -> None:
    """Write until there is no room on the device."""
    while file.write(data):
        if len(data) > 1:  # what was not written back is promised no block yet
            os.fsync(file.fileno())


def test_an_error_that_one_file_was_told_is_owed_to_the_others(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells the tier's root once; a second death must not make of it that all was written."""
    session = Session.new()
    nodes = []
    for number in (1, 2):
        found, handle = namespace.files.create(ROOT_ID, b"%d" % number, 0o644, os.O_RDWR, ME)
        namespace.files.release(handle)
        nodes.append(found.id)
        session.opened(KeptHandle(number, found.id, 0, flags=os.O_RDWR))
    monkeypatch.setattr("fusefs.takeover.read_resent", lambda *_: [])
    told: list[int] = []
    monkeypatch.setattr(Connection, "reply", lambda _self, _unique, error, _data=b"": told.append(error))

    def daemon(of_root: int, *handles: int) -> None:
        monkeypatch.setattr("keigo.tiers.tier.sync_file_system", lambda _fd: of_root)
        for tier in namespace.volume.tiers:
            tier._written_back = None
        names, driver = Namespace(namespace.volume), KernelDriver(keeping=True)
        driver.adopt(names, -1, session)
        answer = driver.dispatcher().answer
        for handle in handles:
            answer(request(Op.FSYNC, nodes[handle - 1], abi.FSYNC_IN.pack(handle, 0, 0)))
        names.close()

    daemon(errno.EIO, 1)
    daemon(0, 1, 2, 2)
    daemon(0, 1, 2)
    assert told == [errno.EIO, 0, errno.EIO, 0, 0, 0]
    session.close()


def test_what_was_open_without_a_name_is_charged_until_nobody_has_it_open(namespace: Namespace) -> None:
    """The daemon died in its last RELEASE, perhaps."""
    volume = namespace.volume
    tier = volume.tiers[0]
    before = tier.used, tier.files
    place = orphans.directory(tier)
    for number, size in ((1000, 10), (1001, 100)):
        fd = os.open(b"%d" % number, os.O_WRONLY | os.O_CREAT, dir_fd=place.fd)
        os.write(fd, bytes(size))
        os.fsync(fd)  # of what is not written back the blocks may not be known
        os.close(fd)
    adoption.adopt_orphans(volume)
    assert (tier.used, tier.files) == (before[0] + 110, before[1] + 2)
    opened = volume.open_again(1001, os.O_RDONLY)
    adoption.drop_unused_orphans(volume)
    assert os.listdir(place.fd) == ["1001"]
    assert (tier.used, tier.files) == (before[0] + 100, before[1] + 1)
    volume.open_files.close(1001, opened, write=False)
    assert os.listdir(place.fd) == []
    assert (tier.used, tier.files) == before


def test_a_handle_that_cannot_be_restored_is_open_nowhere(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is lost to who has it, and to nobody else: its file is closed, and others of the inode are counted right."""
    session = Session.new()
    found, handle = namespace.files.create(ROOT_ID, b"000001.sst", 0o644, os.O_RDWR, ME)
    namespace.files.release(handle)
    for number in (1, 2):
        session.opened(KeptHandle(number, found.id, 0, flags=os.O_RDONLY, role=list(Role).index(Role.SST)))
    monkeypatch.setattr("fusefs.takeover.read_resent", lambda *_: [])
    told: list[int] = []
    monkeypatch.setattr(Connection, "reply", lambda _self, _unique, error, _data=b"": told.append(error))
    names, driver = Namespace(namespace.volume), KernelDriver(keeping=True)

    def direct_of(handle: int) -> int:
        if handle == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return -1

    monkeypatch.setattr(names.files, "direct_of", direct_of)
    driver.adopt(names, -1, session)
    assert not names.handles.is_open(1)
    assert names.handles.is_open(2)
    assert namespace.volume.open_files.by_id[found.id].readers == 1
    assert [kept.number for kept in session.handles()] == [2]
    answer = driver.dispatcher().answer
    for number in (1, 2):
        answer(request(Op.RELEASE, found.id, abi.RELEASE_IN.pack(number, 0, 0, 0)))
    assert told == [errno.EIO, 0]
    assert found.id not in namespace.volume.open_files.by_id
    assert driver._inodes.get(found.id).mediated == 0
    assert names.files.open(found.id, os.O_RDONLY) == 2, "nobody ever says that 1 is free"
    names.close()
    session.close()


def test_room_is_promised_again_to_who_is_still_writing(namespace: Namespace) -> None:
    volume, files = namespace.volume, []
    for name, size in ((b"000001.sst", 1 << 20), (b"000002.sst", 1 << 18)):
        found, handle = namespace.files.create(ROOT_ID, name, 0o644, os.O_RDWR, ME)
        namespace.io.write(handle, 0, bytes(size))
        namespace.files.release(handle)
        files.append(found.id)
    large, small = (volume.tier_of(volume.record(file)) for file in files)
    assert large is small
    assert large.promised == 0
    opened = [volume.open_again(files[1], os.O_RDWR) for _ in range(2)]
    record = volume.record(files[1])
    assert large.promised == volume.placing.expected_of(record) - record.space > 0
    again = volume.open_again(files[0], os.O_RDONLY)
    for file, fd, write in ((files[1], opened[0], True), (files[0], again, False)):
        volume.open_files.close(file, fd, write=write)
    assert large.promised > 0
    volume.open_files.close(files[1], opened[1], write=True)
    assert large.promised == 0
