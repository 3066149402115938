"""The kernel's FUSE protocol: structures, operations and flags, with the kernel version that each came with.

Facts from include/uapi/linux/fuse.h (protocol 7.41, Linux 6.12). Integers are in the machine's byte order, and every
message starts with a header:

    request    len u32, opcode u32, unique u64, nodeid u64, uid u32, gid u32, pid u32, total_extlen u16, padding u16
    reply      len u32, error i32 (0 or -errno), unique u64
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

MAJOR: Final = 7
MINOR: Final = 40  # passthrough: Linux 6.9


class Op(IntEnum):
    """Operations that this program knows."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42  # Linux 2.6.38
    FALLOCATE = 43  # Linux 3.5
    READDIRPLUS = 44  # Linux 3.9
    RENAME2 = 45  # Linux 3.15
    LSEEK = 46  # Linux 4.5
    COPY_FILE_RANGE = 47  # Linux 4.20


# INIT flags: bits 0..31 are `flags`, the rest `flags2`, which INIT_EXT announces.
ASYNC_READ: Final = 1 << 0
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22  # Linux 4.20
CACHE_SYMLINKS: Final = 1 << 23  # Linux 4.20
HANDLE_KILLPRIV_V2: Final = 1 << 28  # Linux 5.11
INIT_EXT: Final = 1 << 30  # Linux 5.17
PASSTHROUGH: Final = 1 << 37  # Linux 6.9
HAS_RESEND: Final = 1 << 39  # Linux 6.9

NOTIFY_RESEND: Final = 7  # as the error of a message without a request: send again what is not answered yet
RESENT: Final = 1 << 63  # in `unique` of a request that was sent before

# OPEN and CREATE reply flags.
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_PASSTHROUGH: Final = 1 << 7  # Linux 6.9

# SETATTR: which fields are valid.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11  # Linux 5.11

OPEN_KILL_SUIDGID: Final = 1 << 0
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_DATA_ONLY: Final = 1 << 0

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
OUT_HEADER: Final = struct.Struct("=IiQ")
ATTR: Final = struct.Struct(
    "=QQQQQQIIIIIIIIII"
)  # ino size blocks a/m/ctime a/m/ctimensec mode nlink uid gid rdev blksize flags
ENTRY: Final = struct.Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
ATTR_OUT: Final = struct.Struct("=QII")  # attr_valid attr_valid_nsec dummy
INIT_IN: Final = struct.Struct("=IIII")  # major minor max_readahead flags
INIT_OUT: Final = struct.Struct(
    "=IIIIHHIIHHIIH14x"
)  # ... max_write time_gran max_pages map_alignment flags2 max_stack_depth
SETATTR_IN: Final = struct.Struct("=IIQQQQQQIIIIIIII")
OPEN_IN: Final = struct.Struct("=II")  # flags open_flags
OPEN_OUT: Final = struct.Struct("=QIi")  # fh open_flags backing_id
CREATE_IN: Final = struct.Struct("=IIII")  # flags mode umask open_flags
MKNOD_IN: Final = struct.Struct("=IIII")  # mode rdev umask padding
MKDIR_IN: Final = struct.Struct("=II")  # mode umask
RENAME_IN: Final = struct.Struct("=Q")  # newdir
RENAME2_IN: Final = struct.Struct("=QII")  # newdir flags padding
LINK_IN: Final = struct.Struct("=Q")  # oldnodeid
READ_IN: Final = struct.Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN: Final = struct.Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
WRITE_OUT: Final = struct.Struct("=II")  # size padding
RELEASE_IN: Final = struct.Struct("=QIIQ")  # fh flags release_flags lock_owner
FLUSH_IN: Final = struct.Struct("=QIIQ")  # fh unused padding lock_owner
FSYNC_IN: Final = struct.Struct("=QII")  # fh fsync_flags padding
SETXATTR_IN: Final = struct.Struct("=II")  # size flags (the extended form is not negotiated)
GETXATTR_IN: Final = struct.Struct("=II")  # size padding
GETXATTR_OUT: Final = struct.Struct("=II")  # size padding
STATFS_OUT: Final = struct.Struct(
    "=QQQQQIIII24x"
)  # blocks bfree bavail files ffree bsize namelen frsize padding spare[6]
FALLOCATE_IN: Final = struct.Struct("=QQQII")  # fh offset length mode padding
LSEEK_IN: Final = struct.Struct("=QQII")  # fh offset whence padding
LSEEK_OUT: Final = struct.Struct("=Q")
COPY_FILE_RANGE_IN: Final = struct.Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
FORGET_IN: Final = struct.Struct("=Q")  # nlookup
BATCH_FORGET_IN: Final = struct.Struct("=II")  # count dummy
FORGET_ONE: Final = struct.Struct("=QQ")  # nodeid nlookup
DIRENT: Final = struct.Struct("=QQII")  # ino off namelen type

# ioctl on /dev/fuse: _IOW(229, 1, struct {s32 fd; u32 flags; u64 padding}), _IOW(229, 2, u32), _IOR(229, 0, u32)
DEV_IOC_CLONE: Final = 0x8004E500
DEV_IOC_BACKING_OPEN: Final = 0x4010E501
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502
BACKING_MAP: Final = struct.Struct("=iIQ")
BACKING_ID: Final = struct.Struct("=I")
