"""Requests translated: each parsed, carried out by the namespace, and its answer packed as the kernel has it.

Any worker may call any handler. A malformed request raises struct.error or OSError EINVAL; no lock is held here.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from fusefs import abi
from fusefs.abi import Op
from fusefs.attributes import Changes
from fusefs.connection import MAX_WRITE
from fusefs.driver import CACHE_TIMEOUT
from fusefs.inodes import Inodes
from fusefs.messages import Handler, Request, ns_of, pack_attributes, timeout
from fusefs.namespace import Namespace
from fusefs.opens import Opens


class Operations:
    """See the module's docstring."""

    def __init__(self, namespace: Namespace, inodes: Inodes, opens: Opens) -> None:
        self._names = namespace.names
        self._nodes = namespace.nodes
        self._files = namespace.files
        self._io = namespace.io
        self._directories = namespace.directories
        self._statfs = namespace.statfs
        self._volume = namespace.volume
        self._inodes = inodes
        self._opens = opens

    def handlers(self) -> dict[int, Handler]:
        """Operation -> what carries it out and returns the answer; None: there is to be none."""
        found = ((op, getattr(self, f"_do_{op.name.lower()}", None)) for op in Op)
        return {op: handler for op, handler in found if handler is not None}

    def _do_lookup(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        try:
            found = self._names.lookup(request.node, name)
        except FileNotFoundError:
            valid, valid_ns = timeout(CACHE_TIMEOUT)
            return abi.ENTRY.pack(0, 0, valid, 0, valid_ns, 0) + bytes(abi.ATTR.size)
        return self._inodes.entry(found)

    def _do_forget(self, request: Request) -> None:
        (count,) = abi.FORGET_IN.unpack_from(request.body)
        self._inodes.forget(request.node, count)

    def _do_batch_forget(self, request: Request) -> None:
        count, _ = abi.BATCH_FORGET_IN.unpack_from(request.body)
        for number in range(count):
            node, lookups = abi.FORGET_ONE.unpack_from(
                request.body, abi.BATCH_FORGET_IN.size + number * abi.FORGET_ONE.size
            )
            self._inodes.forget(node, lookups)

    def _do_getattr(self, request: Request) -> bytes:
        return self._inodes.attributes(self._nodes.getattr(request.node))

    def _do_setattr(self, request: Request) -> bytes:
        (valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
            abi.SETATTR_IN.unpack_from(request.body)
        )
        now = None
        if valid & (abi.FATTR_ATIME_NOW | abi.FATTR_MTIME_NOW):
            now = time.time_ns()
        changes = Changes(
            mode=mode if valid & abi.FATTR_MODE else None,
            uid=uid if valid & abi.FATTR_UID else None,
            gid=gid if valid & abi.FATTR_GID else None,
            size=size if valid & abi.FATTR_SIZE else None,
            atime_ns=now
            if valid & abi.FATTR_ATIME_NOW
            else ns_of(atime, atime_ns)
            if valid & abi.FATTR_ATIME
            else None,
            mtime_ns=now
            if valid & abi.FATTR_MTIME_NOW
            else ns_of(mtime, mtime_ns)
            if valid & abi.FATTR_MTIME
            else None,
            kill_privileges=bool(valid & abi.FATTR_KILL_SUIDGID),
        )
        found = self._nodes.setattr(request.node, changes, handle if valid & abi.FATTR_FH else None)
        return self._inodes.attributes(found)

    def _do_readlink(self, request: Request) -> bytes:
        return self._nodes.readlink(request.node)

    def _do_symlink(self, request: Request) -> bytes:
        name, target = request.names(0, 2)
        return self._inodes.entry(self._names.symlink(request.node, name, target, request.caller))

    def _do_mknod(self, request: Request) -> bytes:
        mode, _, _, _ = abi.MKNOD_IN.unpack_from(request.body)
        (name,) = request.names(abi.MKNOD_IN.size, 1)
        return self._inodes.entry(self._names.mknod(request.node, name, mode, request.caller))

    def _do_mkdir(self, request: Request) -> bytes:
        mode, _ = abi.MKDIR_IN.unpack_from(request.body)
        (name,) = request.names(abi.MKDIR_IN.size, 1)
        return self._inodes.entry(self._names.mkdir(request.node, name, mode, request.caller))

    def _do_unlink(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        self._names.unlink(request.node, name)
        return b""

    def _do_rmdir(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        self._names.rmdir(request.node, name)
        return b""

    def _do_rename(self, request: Request) -> bytes:
        (parent,) = abi.RENAME_IN.unpack_from(request.body)
        old, new = request.names(abi.RENAME_IN.size, 2)
        self._names.rename(request.node, old, parent, new, 0)
        return b""

    def _do_rename2(self, request: Request) -> bytes:
        parent, flags, _ = abi.RENAME2_IN.unpack_from(request.body)
        old, new = request.names(abi.RENAME2_IN.size, 2)
        self._names.rename(request.node, old, parent, new, flags)
        return b""

    def _do_link(self, request: Request) -> bytes:
        (node,) = abi.LINK_IN.unpack_from(request.body)
        (name,) = request.names(abi.LINK_IN.size, 1)
        return self._inodes.entry(self._names.link(node, request.node, name))

    def _do_open(self, request: Request) -> bytes:
        flags, extra = abi.OPEN_IN.unpack_from(request.body)
        answer = self._opens.open(request.node, flags, request.unique)
        if extra & abi.OPEN_KILL_SUIDGID:
            self._nodes.setattr(request.node, Changes(kill_privileges=True))
        return answer

    def _do_create(self, request: Request) -> bytes:
        flags, mode, _, _ = abi.CREATE_IN.unpack_from(request.body)
        (name,) = request.names(abi.CREATE_IN.size, 1)
        found, handle = self._files.create(request.node, name, mode, flags, request.caller)
        self._volume.commit()
        entry = self._inodes.entry(found)
        return entry + self._opens.created(found.id, handle, request.unique)

    def _do_read(self, request: Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return self._io.read(handle, offset, min(size, MAX_WRITE))

    def _do_write(self, request: Request) -> bytes:
        handle, offset, size, flags, *_ = abi.WRITE_IN.unpack_from(request.body)
        data = request.body[abi.WRITE_IN.size : abi.WRITE_IN.size + size]
        if len(data) != size:
            raise OSError(errno.EINVAL, "malformed request")
        if flags & abi.WRITE_KILL_SUIDGID:
            self._nodes.setattr(request.node, Changes(kill_privileges=True))
        return abi.WRITE_OUT.pack(self._io.write(handle, offset, data), 0)

    def _do_statfs(self, _request: Request) -> bytes:
        space = self._statfs()
        return abi.STATFS_OUT.pack(
            space.blocks,
            space.free,
            space.free,
            space.inodes,
            space.inodes_free,
            space.block,
            255,
            space.block,
            0,
        )

    def _do_release(self, request: Request) -> bytes:
        handle, *_ = abi.RELEASE_IN.unpack_from(request.body)
        self._opens.release(request.node, handle)
        return b""

    def _do_flush(self, request: Request) -> bytes:
        handle, *_ = abi.FLUSH_IN.unpack_from(request.body)
        self._io.flush(handle)
        return b""

    def _do_fsync(self, request: Request) -> bytes:
        handle, flags, _ = abi.FSYNC_IN.unpack_from(request.body)
        self._io.fsync(handle, data_only=bool(flags & abi.FSYNC_DATA_ONLY))
        return b""

    def _do_setxattr(self, request: Request) -> bytes:
        size, flags = abi.SETXATTR_IN.unpack_from(request.body)
        (name,) = request.names(abi.SETXATTR_IN.size, 1)
        start = abi.SETXATTR_IN.size + len(name) + 1
        value = bytes(request.body[start : start + size])
        if len(value) != size:
            raise OSError(errno.EINVAL, "malformed request")
        self._nodes.setxattr(request.node, name, value, flags)
        return b""

    @staticmethod
    def _sized(value: bytes, size: int) -> bytes:
        """The answer to a caller with room for `size` bytes; 0 asks how many there are."""
        if size == 0:
            return abi.GETXATTR_OUT.pack(len(value), 0)
        if len(value) > size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return value

    def _do_getxattr(self, request: Request) -> bytes:
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        (name,) = request.names(abi.GETXATTR_IN.size, 1)
        return self._sized(self._nodes.getxattr(request.node, name), size)

    def _do_listxattr(self, request: Request) -> bytes:
        size, _ = abi.GETXATTR_IN.unpack_from(request.body)
        return self._sized(b"".join(name + b"\0" for name in self._nodes.listxattr(request.node)), size)

    def _do_removexattr(self, request: Request) -> bytes:
        (name,) = request.names(0, 1)
        self._nodes.removexattr(request.node, name)
        return b""

    def _do_opendir(self, request: Request) -> bytes:
        return self._opens.open_directory(request.node, request.unique)

    def _do_readdir(self, request: Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return self._directory(handle, offset, size, plus=False)

    def _do_readdirplus(self, request: Request) -> bytes:
        handle, offset, size, *_ = abi.READ_IN.unpack_from(request.body)
        return self._directory(handle, offset, size, plus=True)

    def _directory(self, handle: int, offset: int, size: int, *, plus: bool) -> bytes:
        inodes = self._inodes
        parts: list[bytes] = []
        used = 0
        for name, found, following in self._directories.readdir(handle, offset):
            head = abi.ENTRY.size + abi.ATTR.size if plus else 0
            length = -(-(head + abi.DIRENT.size + len(name)) // 8) * 8
            if used + length > size:
                break
            entry = b""
            if plus:
                # "." and ".." are not looked up by this; node 0 tells the kernel so.
                known = name not in (b".", b"..")
                entry = inodes.entry(found) if known else abi.ENTRY.pack(0, 0, 0, 0, 0, 0) + pack_attributes(found)
            entry += abi.DIRENT.pack(found.id, following, len(name), stat.S_IFMT(found.mode) >> 12) + name
            parts.append(entry.ljust(length, b"\0"))
            used += length
        return b"".join(parts)

    def _do_releasedir(self, request: Request) -> bytes:
        handle, *_ = abi.RELEASE_IN.unpack_from(request.body)
        self._opens.release_directory(handle)
        return b""

    def _do_fsyncdir(self, request: Request) -> bytes:
        handle, *_ = abi.FSYNC_IN.unpack_from(request.body)
        self._directories.fsyncdir(handle)
        return b""

    def _do_fallocate(self, request: Request) -> bytes:
        handle, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(request.body)
        self._io.fallocate(handle, mode, offset, length)
        return b""

    def _do_lseek(self, request: Request) -> bytes:
        handle, offset, whence, _ = abi.LSEEK_IN.unpack_from(request.body)
        return abi.LSEEK_OUT.pack(self._io.lseek(handle, offset, whence))

    def _do_copy_file_range(self, request: Request) -> bytes:
        source, offset, _, target, target_offset, length, _ = abi.COPY_FILE_RANGE_IN.unpack_from(request.body)
        done = self._io.copy_file_range(source, offset, target, target_offset, length)
        return abi.WRITE_OUT.pack(done, 0)

    def _do_destroy(self, _request: Request) -> bytes:
        return b""
