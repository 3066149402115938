"""readdir: types, offsets, and listings of what changes meanwhile."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fs.support import Area

libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Listing:
    """readdir(3) and its kin."""

    def __init__(self, path: Path) -> None:
        self.stream = libc.opendir(os.fsencode(path))
        assert self.stream

    def read(self) -> bytes | None:
        entry = libc.readdir(self.stream)
        return None if entry is None else ctypes.string_at(entry + 19)  # d_name in glibc's struct dirent

    def rest(self) -> list[bytes]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(libc.telldir(self.stream))

    def seek(self, where: int) -> None:
        libc.seekdir(self.stream, where)

    def rewind(self) -> None:
        libc.rewinddir(self.stream)


@contextmanager
def listing(path: Path) -> Iterator[Listing]:
    found = Listing(path)
    try:
        yield found
    finally:
        libc.closedir(found.stream)


def test_list_with_types_and_inodes(area: Area, file: Path) -> None:
    file.write_bytes(b"x")
    (area.path / "d").mkdir()
    (area.path / "l").symlink_to("x")
    os.mkfifo(area.path / "p")
    with os.scandir(area.path) as found:
        items = {item.name: item for item in found}
    assert set(items) == {file.name, "d", "l", "p"}
    assert items["d"].is_dir(follow_symlinks=False)
    assert items["l"].is_symlink()
    assert items[file.name].is_file(follow_symlinks=False)
    for item in items.values():
        assert item.inode() == item.stat(follow_symlinks=False).st_ino
    with listing(area.path) as names:
        assert names.rest()[:2] == [b".", b".."]


def test_seek_in_a_large_directory(area: Area) -> None:
    for number in range(1500):
        os.close(os.open(area.path / f"{number:06}.log", os.O_CREAT | os.O_WRONLY))
    with listing(area.path) as names:
        places = []
        while True:
            where = names.tell()
            name = names.read()
            if name is None:
                break
            places.append((where, name))
        assert sorted(name for _, name in places) == sorted(map(os.fsencode, [*os.listdir(area.path), ".", ".."]))
        for number in (1501, 0, 1, 2, 777, 1499, 64, 63):
            where = places[number][0]
            names.seek(where)
            assert names.tell() == where
            assert names.rest() == [name for _, name in places[number:]]
        names.rewind()
        assert names.rest() == [name for _, name in places]


def test_list_while_files_come_and_go(area: Area) -> None:
    """Whatever stays throughout is listed exactly once; nothing that never was is."""
    stay = {f"{number:06}.log" for number in range(1500)}
    for name in stay:
        os.close(os.open(area.path / name, os.O_CREAT | os.O_WRONLY))
    stop = threading.Event()

    def come_and_go() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = area.path / f"gone-{number % 50}"
            path.touch()
            path.rename(area.path / f"moved-{number % 50}")
            (area.path / f"moved-{number % 50}").unlink()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(5):
            found = [name for name in os.listdir(area.path) if name in stay]
            assert len(found) == len(stay)
            assert set(found) == stay
    finally:
        stop.set()
        other.join()
    assert set(os.listdir(area.path)) == stay


def test_a_name_that_went_while_it_was_listed_is_gone(area: Area) -> None:
    """The rest of a listing, read later, must not put old names back into the kernel's cache."""
    count = 500
    for number in range(count):
        (area.path / f"{number:06}.log").write_bytes(b"%d" % number)
    with listing(area.path) as names:
        names.read()
        for number in range(count):
            # Renamed: the file is still there. Its old name is free, or stands for another file.
            (area.path / f"{number:06}.log").rename(area.path / f"moved-{number:06}")
            if number % 2:
                (area.path / f"{number:06}.log").write_bytes(b"another")
        names.rest()
    for number in range(count):
        path = area.path / f"{number:06}.log"
        if number % 2:
            assert path.read_bytes() == b"another"
        else:
            assert not path.exists()
        assert (area.path / f"moved-{number:06}").read_bytes() == b"%d" % number
