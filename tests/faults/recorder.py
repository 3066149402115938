"""A FUSE file system of some files that are to be disks: it records, in order, every write and flush that reaches them.

    python -m tests.faults.recorder DIRECTORY LOG SIZE NAME...

LOG is a sequence of records: kind (b"W", b"F"), disk (u8), offset (u64), length (u32), and the bytes of a write. One
request at a time is answered, each recorded before its answer: so what was answered before a flush came stands before
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
)

HEAD = struct.Struct("<cBQI")


class Disks(pyfuse3.Operations):
    def __init__(self, log: int, names: Sequence[bytes], size: int) -> None:
        super().__init__()
        self.log = log
        self.names = names
        self.data = [bytearray(size) for _ in names]

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

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return bytes(self.data[fh][off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self.data[fh][off : off + len(buf)] = buf
        os.writev(self.log, [HEAD.pack(b"W", fh, off, len(buf)), buf])
        return len(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        del datasync
        os.write(self.log, HEAD.pack(b"F", fh, 0, 0))


def main() -> None:
    directory, log, size, *names = sys.argv[1:]
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    disks = Disks(fd, [name.encode() for name in names], int(size))
    pyfuse3.init(disks, directory, {"fsname=keigo-test-disks"})
    print("ready", flush=True)
    trio.run(pyfuse3.main, 1, 1)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
