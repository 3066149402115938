"""A FUSE file system of some files that are to be disks: it records, in order, every write and flush that reaches them.

    python -m tests.faults.recorder DIRECTORY LOG SIZE NAME...

The attribute user.NAME of DIRECTORY makes a disk fail: "read", "write" and "flush", or several of them, answer EIO;
"hang" holds all of the disk's requests until it is set to something else.

LOG is a sequence of records: kind (b"W", b"F"), disk (u8), offset (u64), length (u32), and the bytes of a write. Each
is recorded before its answer, and nothing else happens between: so what was answered before a flush came stands before
it in the log. Prints "ready" once it is mounted, and ends when it is unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    XAttrNameT,
)

HEAD = struct.Struct("<cBQI")


class Disks(pyfuse3.Operations):
    def __init__(self, log: int, names: Sequence[bytes], size: int) -> None:
        super().__init__()
        self.log = log
        self.names = names
        self.data = [bytearray(size) for _ in names]
        self.faults = [b"" for _ in names]
        self.told = trio.Condition()

    def _entry(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(inode)
        entry.st_nlink = 1
        entry.entry_timeout = entry.attr_timeout = 3600
        root = inode == pyfuse3.ROOT_INODE
        entry.st_mode = ModeT(stat.S_IFDIR | 0o700 if root else stat.S_IFREG | 0o600)
        entry.st_size = 0 if root else len(self.data[0])
        return entry

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        del parent_inode, ctx
        if name not in self.names:
            raise FUSEError(errno.ENOENT)
        return self._entry(2 + self.names.index(name))

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        del ctx
        return self._entry(inode)

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        del attr, fields, fh, ctx
        return self._entry(inode)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        del flags, ctx
        return FileInfo(fh=FileHandleT(inode - 2))

    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """An attribute `user.DISK` of the root tells how a disk fails.

        Not one of the disk's file: the kernel keeps that locked during a flush, which may hang until it is told.
        """
        del inode, ctx
        async with self.told:
            self.faults[self.names.index(name.removeprefix(b"user."))] = value
            self.told.notify_all()

    async def _fail(self, disk: int, what: bytes) -> None:
        async with self.told:
            while b"hang" in self.faults[disk]:
                await self.told.wait()
        if what in self.faults[disk]:
            raise FUSEError(errno.EIO)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        await self._fail(fh, b"read")
        return bytes(self.data[fh][off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        await self._fail(fh, b"write")
        self.data[fh][off : off + len(buf)] = buf
        os.writev(self.log, [HEAD.pack(b"W", fh, off, len(buf)), buf])
        return len(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        del datasync
        await self._fail(fh, b"flush")
        os.write(self.log, HEAD.pack(b"F", fh, 0, 0))


def main() -> None:
    directory, log, size, *names = sys.argv[1:]
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    disks = Disks(fd, [name.encode() for name in names], int(size))
    pyfuse3.init(disks, directory, {"fsname=keigo-test-disks"})
    print("ready", flush=True)
    trio.run(pyfuse3.main, 1, 64)  # a disk that hangs holds up no other
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
