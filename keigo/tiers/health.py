"""Whether a tier's device works: what failed there, and since when.

An error that a full or misused file system gives says nothing of the device; the others do. From the first one on the
tier is *degraded*: placement goes past it, where it can, and `status` says so. Its files are read and written as ever,
and whoever does so hears the errors. Every few seconds a small file is written there, synced and read back: when that
works, and nothing has failed meanwhile, the tier is well again. A device that has requests and ends none of them for
HANGS seconds is degraded, too; what looks at it may hang as well, so each tier is looked at by a thread of its own.

Threads: `failed` and `is_degraded` are called by any; the watch is one thread of its own. `_lock` is a leaf.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from keigo.errors import KeigoError
from keigo.tiers.fds import read_file, write_durably

if TYPE_CHECKING:
    from keigo.tiers.tier import Tier

log = logging.getLogger(__name__)

BROKEN: Final = frozenset(
    (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT,
     errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG, errno.ESHUTDOWN)
)  # fmt: skip
"""Errors that say that a device, or the file system on it, does not work."""
_EVERY: Final = 2.0  # seconds between two looks
_CALM: Final = 10.0  # seconds without an error until a tier that answers again is believed
HANGS: Final = 10.0
"""Seconds without an end of any of a tier's requests until it is taken for hung: no device in use takes as long."""
_PROBE: Final = b"probe"


class Health:
    """Of one tier."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self.errors = 0
        """Since the mount."""
        self.last: str | None = None
        self._since: float | None = None
        self._at = 0.0
        self._seen = 0
        """Errors elsewhere that were taken in."""

    @property
    def is_degraded(self) -> bool:
        """Whether something has failed, and nothing has shown since that it works again."""
        return self._since is not None

    @property
    def degraded_for(self) -> float | None:
        """Seconds; None: it is well."""
        since = self._since
        return None if since is None else time.monotonic() - since

    def failed(self, error: OSError) -> None:
        """An operation on the tier has failed; errors that do not speak of the device are passed over."""
        if error.errno in BROKEN:
            self._add(1, error.strerror or str(error))

    def failed_elsewhere(self, total: int) -> None:
        """So many operations have failed by now that were done without telling each."""
        with self._lock:
            more, self._seen = total - self._seen, total
        if more > 0:
            self._add(more, os.strerror(errno.EIO))

    def _add(self, count: int, what: str) -> None:
        with self._lock:
            self.errors += count
            self.last = what
            self._at = time.monotonic()
            began = self._since is None
            if began:
                self._since = self._at
        if began:
            log.error("tier %s is degraded: %s", self._name, what)

    def hangs(self, seconds: float) -> None:
        """No request has ended for so long, though there are some."""
        with self._lock:
            self._at = time.monotonic()
            began = self._since is None
            if began:
                self._since = self._at
            self.last = f"no request has ended for {seconds:.0f} s"
        if began:
            log.error("tier %s is degraded: %s", self._name, self.last)

    def works(self) -> None:
        """A look at the tier found nothing wrong."""
        with self._lock:
            if self._since is None or time.monotonic() - self._at < _CALM:
                return
            self._since = None
        log.warning("tier %s works again", self._name)


def probe(tier: Tier) -> None:
    """Write, sync and read back a small file. Raises OSError."""
    said = os.urandom(16)
    write_durably(tier.state.fd, _PROBE, said)
    if read_file(tier.state.fd, _PROBE) != said:
        raise OSError(errno.EIO, "other bytes are read than were written")


class Stalled:
    """How long a tier's requests have been without an end."""

    def __init__(self) -> None:
        self._ended = -1
        self._at = 0.0

    def seconds(self, ended: int, under_way: int, now: float) -> float:
        """By how many have ended so far, and how many are under way now."""
        if ended != self._ended or not under_way:
            self._ended, self._at = ended, now
        return now - self._at


class Watch:
    """Looks at degraded tiers, and takes in what failed elsewhere and what does not end."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        elsewhere: Callable[[int], int],
        progress: Callable[[Tier], tuple[int, int]] = lambda _tier: (0, 0),
    ) -> None:
        """`elsewhere`: index of a tier -> how many operations failed there so far that nobody told `Health` of.

        `progress`: how many of a tier's requests have ended so far, and how many are under way.
        """
        self._tiers = tiers
        self._elsewhere = elsewhere
        self._progress = progress
        self._stalled = {tier.name: Stalled() for tier in tiers}
        self._looking: dict[str, threading.Thread] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keigo-health", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End. A look that hangs on its device is not waited for."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(_EVERY):
            for tier in self._tiers:
                tier.health.failed_elsewhere(self._elsewhere(tier.index))
                stalled = self._stalled[tier.name].seconds(*self._progress(tier), time.monotonic())
                if stalled >= HANGS:
                    tier.health.hangs(stalled)
                if tier.health.is_degraded and not self._end.is_set():
                    self._look_at(tier)

    def _look_at(self, tier: Tier) -> None:
        last = self._looking.get(tier.name)
        if last is None or not last.is_alive():
            look = threading.Thread(target=_look, args=(tier,), name="keigo-probe", daemon=True)
            self._looking[tier.name] = look
            look.start()


def _look(tier: Tier) -> None:
    try:
        probe(tier)
    except (OSError, ValueError, KeigoError) as error:
        log.debug("tier %s: %s", tier.name, error)
    else:
        tier.health.works()
