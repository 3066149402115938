"""What the next daemon of a mount must know of this one: its open handles, and the changes of names under way.

A table in memory (memfd) that another process, the keeper, holds too: what is written there survives a SIGKILL at any
moment, and costs a store and no system call. Nothing of it survives the machine, nor has to: the kernel's side of the
mount ends with it.

    header       magic, the highest handle number so far, how often another daemon took over
    operations   1024 slots of 1 KiB: a request that changes names, from before it is carried out until it is answered,
                 with what the names stood for when it began
    handles      a slot of 32 bytes each, by number, from before the kernel hears of the number until its RELEASE

A slot's first byte says whether it holds; it is set last and cleared first. Catalog changes are not here: they are
committed before the answer (`Volume.flush`), and an LMDB commit survives a SIGKILL as well.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"keigo-s1"
_HEADER: Final = struct.Struct("=8sQQ")
_OPERATION: Final = struct.Struct("=xxxxIQQQQ")  # length of the request, ids and inode numbers of both names
_HANDLE: Final = struct.Struct("=xBBBIixxxxQQ")  # kind elsewhere; passthrough, role, owed, flags, backing, node, unique
_OWED_AT: Final = 3
_OPERATIONS_AT: Final = 4096
_OPERATION_SIZE: Final = 1024
OPERATIONS: Final = 1024
"""More than there can be workers."""
_HANDLES_AT: Final = _OPERATIONS_AT + OPERATIONS * _OPERATION_SIZE
HANDLES: Final = 1 << 20
_SIZE: Final = _HANDLES_AT + HANDLES * _HANDLE.size
_FILE: Final = 1
_DIRECTORY: Final = 2


@dataclass(frozen=True, slots=True)
class KeptHandle:
    """An open handle, as far as the next daemon has to know it."""

    number: int
    node: int
    unique: int
    """Of the request that opened it: asked again, it is to get this handle."""
    is_directory: bool = False
    flags: int = 0
    bypass: bool = False
    backing: int = -1
    """The kernel's id of the backing file, if in passthrough."""
    role: int = 0
    owed: bool = False
    """Whether an fsync of it is to fail, whoever does it."""


@dataclass(frozen=True, slots=True)
class Before:
    """What the names of a request stood for when it began: ids, and inode numbers at home; 0: nothing, or not asked."""

    first: int = 0
    second: int = 0
    first_inode: int = 0
    second_inode: int = 0


@dataclass(frozen=True, slots=True)
class KeptOperation:
    """A change of names that may or may not have been carried out."""

    request: bytes
    """Header and body, cut off after some 900 bytes: two names fit, a symbolic link's target may not."""
    before: Before


class SessionError(Exception):
    """The table is not one of this version's."""


class Session:
    """See the module's docstring. A number's slot is written by whoever has the number: no lock is needed."""

    def __init__(self, fd: int) -> None:
        """Map the table behind `fd`, which is taken over. Raises SessionError where it is something else."""
        self.fd = fd
        if os.fstat(fd).st_size != _SIZE:
            raise SessionError("the table of handles is of another version")
        self._map = mmap.mmap(fd, _SIZE)
        magic, self._highest, self.successions = _HEADER.unpack_from(self._map)
        if magic != _MAGIC:
            raise SessionError("the table of handles is of another version")
        self._free = list(range(OPERATIONS))
        self._rising = threading.Lock()
        """Guards the header."""

    @classmethod
    def new(cls) -> Session:
        """An empty table; only what is used of it takes memory. Raises OSError."""
        fd = os.memfd_create("keigo-session", os.MFD_CLOEXEC)
        os.ftruncate(fd, _SIZE)
        os.pwrite(fd, _HEADER.pack(_MAGIC, 0, 0), 0)
        return cls(fd)

    def _write_header(self) -> None:
        _HEADER.pack_into(self._map, 0, _MAGIC, self._highest, self.successions)

    def taken_over(self) -> None:
        """Count that a daemon went on with the table of another."""
        self.successions += 1
        self._write_header()

    def close(self) -> None:
        """Let go of the table; the keeper may have it still."""
        self._map.close()
        os.close(self.fd)

    # --- operations ---

    def begin(self, request: bytes, before: Before) -> int:
        """Note a request that is about to be carried out; returns its slot, for `end`."""
        slot = self._free.pop()
        at = _OPERATIONS_AT + slot * _OPERATION_SIZE
        kept = request[: _OPERATION_SIZE - _OPERATION.size]
        _OPERATION.pack_into(
            self._map, at, len(kept), before.first, before.second, before.first_inode, before.second_inode
        )
        self._map[at + _OPERATION.size : at + _OPERATION.size + len(kept)] = kept
        self._map[at] = 1
        return slot

    def end(self, slot: int) -> None:
        """The request is answered."""
        self._map[_OPERATIONS_AT + slot * _OPERATION_SIZE] = 0
        self._free.append(slot)

    def operations(self) -> Iterator[tuple[int, KeptOperation]]:
        """(slot, request) of what was begun and not ended."""
        for slot in range(OPERATIONS):
            at = _OPERATIONS_AT + slot * _OPERATION_SIZE
            if self._map[at]:
                length, *before = _OPERATION.unpack_from(self._map, at)
                start = at + _OPERATION.size
                yield slot, KeptOperation(self._map[start : start + length], Before(*before))

    def keep_only(self, slots: Collection[int]) -> None:
        """Free all slots but these: what an earlier daemon began in them is answered."""
        self._free = [slot for slot in range(OPERATIONS) if slot not in slots]
        for slot in self._free:
            self._map[_OPERATIONS_AT + slot * _OPERATION_SIZE] = 0

    # --- handles ---

    def opened(self, handle: KeptHandle) -> None:
        """Note a handle, before the kernel hears of it. One with a number beyond the table is not kept."""
        if handle.number >= HANDLES:
            return
        at = _HANDLES_AT + handle.number * _HANDLE.size
        _HANDLE.pack_into(
            self._map, at, handle.bypass, handle.role, False, handle.flags, handle.backing, handle.node, handle.unique
        )
        if handle.number > self._highest:
            with self._rising:
                self._highest = max(self._highest, handle.number)
                self._write_header()
        self._map[at] = _DIRECTORY if handle.is_directory else _FILE

    def owe(self, number: int, owed: bool) -> None:
        """Note whether the next fsync of a handle is to fail, also if another daemon does it."""
        if number < HANDLES:
            self._map[_HANDLES_AT + number * _HANDLE.size + _OWED_AT] = owed

    def released(self, number: int) -> None:
        """A handle is about to be closed for good."""
        if number < HANDLES:
            self._map[_HANDLES_AT + number * _HANDLE.size] = 0

    def handles(self) -> Iterator[KeptHandle]:
        """All handles that the kernel may know."""
        for number in range(self._highest + 1):
            at = _HANDLES_AT + number * _HANDLE.size
            kind = self._map[at]
            if kind:
                bypass, role, owed, flags, backing, node, unique = _HANDLE.unpack_from(self._map, at)
                is_directory = kind == _DIRECTORY
                yield KeptHandle(number, node, unique, is_directory, flags, bool(bypass), backing, role, bool(owed))
