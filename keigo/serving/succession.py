"""What one daemon of a mount leaves to the next, and how it ends for it.

The keeper (`keeper.py`) holds the descriptors. `kept` are those that an earlier daemon has left; what this one leaves
replaces them all at once.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from fusefs.driver import Driver
from keigo.config import Config, ConfigError, parse
from keigo.control import ControlError
from keigo.devices_file import read
from keigo.keeper import AGAIN, BEFORE, DEVICES, Link
from keigo.live_config import primary_of
from keigo.serving.mounting import MountError, was_draining
from keigo.serving.tier_change import hold, put_back
from keigo.tiers.fds import Fd
from keigo.tiers.opening import Left
from keigo.tiers.tier import Tier

if TYPE_CHECKING:
    from fusefs.session import Session

log = logging.getLogger(__name__)

_ROOT: Final = "root:"  # before a tier's name, among what is kept
_DEVICE: Final = "device"
_SESSION: Final = "session"
_CONTROL: Final = "control"


class Succession:
    """Of one daemon. The main thread takes over; a request ends for the next, under the service's lock on changes."""

    def __init__(self, config: Config, directory: Path, link: Link | None, kept: Mapping[str, int] | None) -> None:
        self._config = config
        self._directory = directory
        self._link = link
        self._kept = kept
        self._driver: Driver | None = None
        self._tiers: Sequence[Tier] = ()
        self._control = -1
        self._devices: int | None = None
        """The devices.yaml of this daemon, for the next one."""
        self._before: int | None = None
        """The devices.yaml before a change of tiers, for the next daemon."""

    # --- what has been left to this daemon ---

    @property
    def takes_over(self) -> bool:
        """Whether an earlier daemon has left its mount to this one."""
        return self._kept is not None

    @property
    def wanted(self) -> bool:
        """Whether somebody would keep what this daemon leaves."""
        return self._link is not None

    def is_mounted(self) -> bool:
        """Whether the mount that was left is still there."""
        ready = select.poll()
        ready.register(self.device(), select.POLLIN)
        return not any(event & select.POLLERR for _, event in ready.poll(0))

    def device(self) -> int:
        """The /dev/fuse that was left."""
        return self._left()[_DEVICE]

    def control(self) -> int | None:
        """The control socket that was left."""
        return None if self._kept is None else self._kept[_CONTROL]

    def roots(self) -> dict[str, int]:
        """Tier -> descriptor of its root that was left."""
        kept = self._kept or {}
        return {name.removeprefix(_ROOT): fd for name, fd in kept.items() if name.startswith(_ROOT)}

    def left(self) -> tuple[Left, Session]:
        """What was left of the volume and of the driver's handles. Raises MountError."""
        from fusefs.resume import begun  # only of use below the kernel driver
        from fusefs.session import Session, SessionError

        try:
            session = Session(self._left()[_SESSION])
        except SessionError as error:
            raise MountError(f"{self._directory}: cannot be taken over: {error}") from error
        roots = {name: Fd(fd) for name, fd in self.roots().items()}
        primary = primary_of(self._config).name
        if primary not in roots:
            raise MountError(f"{self._directory}: cannot be taken over: tier {primary} was not there at the mount")
        draining = was_draining(self._directory, roots[primary])
        return Left(roots, *begun(session), draining=draining), session

    def _left(self) -> Mapping[str, int]:
        assert self._kept is not None  # noqa: S101
        return self._kept

    def put_back(self) -> None:
        """Leave the next daemon the devices.yaml with which the last one served, where this one has another."""
        if self._kept is None or BEFORE not in self._kept:
            return
        log.error("this devices.yaml does not come up; putting the one before back: %s", self._config.source)
        put_back(self._config.source, self._kept[BEFORE], self.roots())

    # --- what this daemon leaves ---

    def leave(self, driver: Driver, tiers: Sequence[Tier], control: int) -> None:
        """Give the keeper what the next daemon needs. Raises OSError where it is gone."""
        self._driver, self._tiers, self._control = driver, tiers, control
        self._keep()

    def _keep(self) -> None:
        kept = {} if self._driver is None else self._driver.kept()
        if self._link is None or not kept:
            return
        roots = {_ROOT + tier.name: tier.root.fd for tier in self._tiers}
        held = {} if self._before is None else {BEFORE: self._before}
        if self._devices is None:
            self._devices = self._hold_devices()
        if self._devices is not None:
            held[DEVICES] = self._devices
        self._link.keep({**kept, **roots, **held, _CONTROL: self._control})

    def _hold_devices(self) -> int | None:
        """The text of the devices.yaml that this daemon works with; None where it is not known any more."""
        try:
            text = read(self._config.source)
            if parse(self._config.source, text.encode()) == self._config:
                return hold(text)
        except ConfigError:
            pass  # it is being written, and was told when this daemon began
        return None if self._kept is None else self._kept.get(DEVICES)

    def go_by(self, text: str) -> None:
        """Have the next daemon go by another devices.yaml than this one. Raises OSError."""
        self._devices = hold(text)
        self._keep()

    def hold(self, text: str) -> None:
        """Give the keeper the devices.yaml that is about to be replaced. Raises OSError."""
        self._before = hold(text)
        self._keep()

    def let_go(self) -> None:
        """Undo `hold`. Raises OSError."""
        if self._before is not None:
            os.close(self._before)
        self._before = None
        self._keep()

    def serving(self) -> None:
        """Tell the keeper that requests are answered. Raises OSError where it is gone."""
        if self._link is not None:
            self._link.serving()

    # --- whether there is a next one ---

    def fact(self) -> str:
        """`there`, or why a daemon that dies would not be replaced."""
        return self._why_none() or "there"

    def _why_none(self) -> str | None:
        if self._link is None:
            return "was mounted without a keeper"
        if self._driver is None or not self._driver.kept():
            name = "" if self._driver is None else f"{self._driver.name} "
            return f"the {name}driver cannot be replaced under a mount"
        return None if self._link.is_there() else "its keeper is gone"

    def refuse_unkept(self, instead: str) -> None:
        """Raise ControlError where no daemon would follow this one, with what to do."""
        why = self._why_none()
        if why is not None:
            raise ControlError(f"{self._directory}: {why}: {instead}")

    def check_next(self) -> None:
        """Raise ControlError where the program would not start: the mount would be dead then."""
        tried = subprocess.run(
            [sys.executable, "-m", "keigo", "--version"], capture_output=True, text=True, check=False, cwd="/"
        )
        if tried.returncode != 0:
            last = tried.stderr.strip().rpartition("\n")[2]
            raise ControlError(f"the program that is installed does not start: {last}")


def end_for_next(what: str) -> NoReturn:
    """End this process as if killed: nothing may be under way, and the keeper starts the next daemon."""
    log.info("ending for %s", what)
    logging.shutdown()
    os._exit(AGAIN)
