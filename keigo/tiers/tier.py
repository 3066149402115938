"""One tier: a directory on one device, its state directory `.keigo`, and its room.

ROOT/.keigo/tier.json    which volume and tier this is (format version, volume id)
ROOT/.keigo/lock         held with flock while a daemon, drain or fsck works on the tier
ROOT/.keigo/incoming/    copies that are not yet in the tree; emptied at every open
ROOT/.keigo/orphans/     files that are open and have lost their last name (`orphans.py`); emptied at every mount
ROOT/...                 the files themselves, under the same paths as in the mount
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from keigo.config import TierConfig
from keigo.errors import KeigoError
from keigo.tiers.fds import O_DIR, Fd, lstat_or_none, open_dir, read_file, sync_file_system, write_durably
from keigo.tiers.health import Health
from keigo.tiers.traffic import Traffic

STATE: Final = b".keigo"
INCOMING: Final = b"incoming"
IDENTITY: Final = b"tier.json"
LOCK: Final = b"lock"
LOST_FOUND: Final = b"lost+found"
"""mkfs makes it in the root of ext file systems."""
FORMAT: Final = 1


class TierError(KeigoError):
    """A tier cannot be used; the text is one line that names it and says what to do."""


class Identity(msgspec.Struct):
    """Contents of tier.json."""

    format: int
    volume: str
    id: str
    tier: str


class Tier:
    """A tier that is open and locked for this process.

    `used`, `files` and `promised` are changed by `charge` and `promise` under `_account`, a leaf lock: writers
    report growth without `Volume.lock`.
    """

    def __init__(self, index: int, config: TierConfig, root: Fd, label: str) -> None:
        self.index = index
        self.name = config.name
        self.in_place = config.in_place
        self.label = label
        self.root = root
        self._account = threading.Lock()
        self._syncing = threading.Lock()
        self._written_back: int | None = None
        """Of `check_written_back`: the errno that syncfs gave, 0 for none; None: not asked yet."""
        device = os.fstatvfs(root.fd)
        self.device_size = device.f_blocks * device.f_frsize
        self.capacity = config.capacity if config.capacity is not None else self.device_size
        self.reserve = config.reserve_bytes(self.capacity)
        self._reserve_on_device = 0 if config.capacity is not None else self.reserve
        self.used = 0
        self.files = 0
        self.promised = 0
        self._lent = 0
        self.cached = 0
        """Bytes that the read cache takes now."""
        self.sharing: Sequence[Tier] = (self,)
        """The volume's tiers on the same device."""
        self.traffic = Traffic()
        self.health = Health(config.name)
        self._state: Fd | None = None
        self._incoming: Fd | None = None
        self._lock: Fd | None = None

    def __repr__(self) -> str:
        return f"Tier({self.name})"

    @property
    def state(self) -> Fd:
        """Descriptor of `.keigo`; only after `lock`."""
        if self._state is None:
            raise TierError(f"tier {self.name}: not open")
        return self._state

    @property
    def incoming(self) -> Fd:
        """Descriptor of `.keigo/incoming`; only after `lock`."""
        if self._incoming is None:
            raise TierError(f"tier {self.name}: not open")
        return self._incoming

    def has_state(self) -> bool:
        """Whether `.keigo` exists, without making it."""
        return lstat_or_none(STATE, self.root.fd) is not None

    def lock(self) -> None:
        """Make `.keigo` where needed and take the tier for this process.

        Raises TierError if another process has it or the directory cannot be written.
        """
        try:
            for name, above in ((STATE, self.root), (INCOMING, None)):
                parent = above if above is not None else self.state
                try:
                    os.mkdir(name, 0o700, dir_fd=parent.fd)
                    os.fsync(parent.fd)
                except FileExistsError:
                    pass
                opened = open_dir(name, parent.fd)
                if above is not None:
                    self._state = opened
                else:
                    self._incoming = opened
            self._lock = Fd(
                os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.state.fd)
            )
        except OSError as error:
            raise TierError(f"tier {self.name}: {self.label}: cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TierError(f"tier {self.name}: {self.label}: in use by another keigo process") from None

    def identity(self) -> Identity | None:
        """What tier.json says; None where the tier is new. Raises TierError if it cannot be read."""
        try:
            found = msgspec.json.decode(read_file(self.state.fd, IDENTITY), type=Identity)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise TierError(f"tier {self.name}: {self.label}/.keigo/tier.json: {error}") from error
        if found.format != FORMAT:
            raise TierError(
                f"tier {self.name}: {self.label}/.keigo/tier.json: format {found.format}, this version knows {FORMAT}"
            )
        return found

    def brand(self, volume: str, volume_id: str) -> None:
        """Write tier.json durably: from now on the tier belongs to this volume."""
        identity = Identity(FORMAT, volume, volume_id, self.name)
        write_durably(self.state.fd, IDENTITY, msgspec.json.encode(identity))

    def clear_incoming(self) -> None:
        """Remove copies that a crash left unfinished."""
        for name in os.listdir(self.incoming.fd):
            raw = os.fsencode(name)
            if stat.S_ISDIR(os.stat(raw, dir_fd=self.incoming.fd, follow_symlinks=False).st_mode):
                shutil.rmtree(raw, dir_fd=self.incoming.fd)
            else:
                os.unlink(raw, dir_fd=self.incoming.fd)

    def remove_state(self) -> None:
        """Remove `.keigo` and all in it, durably; the lock is held until `close`."""
        shutil.rmtree(STATE, dir_fd=self.root.fd)
        os.fsync(self.root.fd)

    def reopen(self) -> Fd:
        """Another descriptor of the tier's root."""
        return Fd(os.open(b".", O_DIR, dir_fd=self.root.fd))

    def lend(self, size: int) -> None:
        """Take room from the capacity for good: the read cache has it. Raises TierError where there is not so much."""
        if size + self.reserve >= self.capacity:
            raise TierError(f"tier {self.name}: {self.label}: a cache of {size} bytes leaves no room for files")
        self.capacity -= size
        self._lent += size

    def charge(self, size: int, files: int = 0) -> None:
        """Add bytes and files that live here now (negative: no longer do)."""
        with self._account:
            self.used += size
            self.files += files

    def promise(self, size: int) -> None:
        """Set room aside for bytes that an open writer is expected to write (negative: give it back)."""
        with self._account:
            self.promised += size

    def check_written_back(self) -> None:
        """Sync the tier's file system, once, and raise OSError, each time, if any of its files could not be written
        back since the root was opened (errseq of the super block, Linux 5.8; see syncfs(2))."""
        with self._syncing:
            if self._written_back is None:
                self._written_back = sync_file_system(self.root.fd)
            if self._written_back:
                raise OSError(self._written_back, os.strerror(self._written_back))

    def room(self) -> int:
        """Bytes that may still be placed here: by capacity and by what the device has, less reserve and promises."""
        device = os.fstatvfs(self.root.fd)
        left = max(0, self._lent - self.cached)
        by_device = device.f_bavail * device.f_frsize - self._reserve_on_device - left
        by_device -= sum(tier.promised for tier in self.sharing)
        return int(min(self.capacity - self.reserve - self.used - self.promised, by_device))

    def free(self) -> int:
        """Bytes left before the tier's capacity or its device is exhausted, the reserve included."""
        device = os.fstatvfs(self.root.fd)
        left = max(0, self._lent - self.cached)
        by_device = device.f_bavail * device.f_frsize - left
        return int(max(0, min(self.capacity - self.used, by_device)))

    def close(self) -> None:
        """Give the tier back."""
        self._lock = self._incoming = self._state = None


def space_of(status: os.stat_result) -> int:
    """Bytes that a file is charged for: holes cost nothing, and blocks set aside beyond its end do not last."""
    return min(status.st_size, status.st_blocks * 512)
