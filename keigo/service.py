"""The daemon of one mount: wires volume, namespace, driver, mover and control socket together.

The main thread serves the driver. Others: the mover, the control server with a thread per request, the flusher
(commits the catalog), the sampler of the tiers' load, a drainer while a drain runs. The end is always the same, whoever
unmounted: the driver returns, then mover, flusher and sampler stop, then the volume closes.
"""

from __future__ import annotations

import errno
import fnmatch
import logging
import os
import select
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from fusefs.driver import Driver, DriverError
from fusefs.namespace import Namespace
from keigo import clock, failpoints, mounts
from keigo.attempts import Attempts
from keigo.cache.cache import Cache
from keigo.cache.filler import Filler, Warm
from keigo.cache.store import remove_store
from keigo.config import Config, ConfigError, check, load, parse
from keigo.control import ControlError, ControlServer, Progress, is_served
from keigo.devices.load import Counts, Load, LoadMonitor
from keigo.devices.scheduler import priority_notes
from keigo.devices.staleness import Known, examine
from keigo.devices_file import read
from keigo.drain import Drainer
from keigo.errors import KeigoError
from keigo.keeper import DEVICES, Link
from keigo.leaving import PATIENCE, Leaver
from keigo.lsm.roles import IMMUTABLE, Role
from keigo.observe.cache import cache_facts, file_facts
from keigo.observe.explain import explain
from keigo.observe.lsm import trees_of
from keigo.observe.status import file_rows, status_of
from keigo.placement.policy import Policy
from keigo.policies import make_policy
from keigo.tier_change import BEFORE, check_add, check_remove, hold, put_back, refuse_change, text_without, write
from keigo.tiers.catalog import boot_id
from keigo.tiers.departure import clear_left, take_back, take_out
from keigo.tiers.directories import shown
from keigo.tiers.fds import Fd, open_dir, read_file, write_durably
from keigo.tiers.health import Watch
from keigo.tiers.mover import Mover, Request, elsewhere
from keigo.tiers.opening import Left, dissolve, open_volume
from keigo.tiers.scan import Finding
from keigo.tiers.tier import STATE, Tier, TierError
from keigo.tiers.traffic import Moved
from keigo.tiers.volume import Volume

if TYPE_CHECKING:
    from fusefs.io_priority import IoPriority
    from fusefs.kernel_driver import KernelDriver
    from fusefs.session import Session

log = logging.getLogger(__name__)

_FLUSH_EVERY: Final = 1.0  # seconds; what a crash of the daemon may cost the catalog in levels, never in files
_SAMPLE_EVERY: Final = 1.0  # seconds; enough to show a load
_CLOSE_WAIT: Final = 1.0  # seconds: close(2) returns before the file system hears of it
_TELL_EVERY: Final = 0.2  # seconds between two words on a warm-up
_MOUNTED: Final = b"mounted.json"
_ROOT: Final = "root:"  # before a tier's name, among what is kept
_AGAIN: Final = 75  # exit status of a daemon that asks for its successor (EX_TEMPFAIL)


class MountError(KeigoError):
    """The volume cannot be mounted; the text is one line that says why."""


class _Mounted(msgspec.Struct):
    """Contents of mounted.json: the mount that may still have holders after it was lazily detached."""

    boot: str
    mount_id: int
    device: str
    unique: int | None = None
    """See `mounts.unique_id`."""
    draining: bool = False
    """Whether the volume is drained: a daemon that takes over is to go on with it."""


def _kernel_driver(*, keeping: bool) -> KernelDriver:
    from fusefs.kernel_driver import KernelDriver

    return KernelDriver(refuse_passthrough=failpoints.wanted("init.no-passthrough"), keeping=keeping)


def _pyfuse3_driver(*, keeping: bool) -> Driver:  # noqa: ARG001 - a library that mounts for itself cannot be replaced
    # Imported only when used: pyfuse3 and trio take 15 MiB.
    from fusefs.pyfuse3_driver import Pyfuse3Driver

    return Pyfuse3Driver()


class _MakeDriver(Protocol):
    def __call__(self, *, keeping: bool) -> Driver: ...


_DRIVERS: Final[Mapping[str, _MakeDriver]] = {"kernel": _kernel_driver, "pyfuse3": _pyfuse3_driver}


def prepare(directory: Path) -> Path:
    """Make sure that a volume may be mounted over `directory`; returns its real path.

    A mount whose daemon is dead is unmounted first, unless a process still holds files of it. Raises MountError.
    """
    path = mounts.real_path(directory)
    mount = mounts.mount_at(path)
    if mount is not None and mount.volume is not None:
        if is_served(mount.volume):
            raise MountError(f"{directory}: is mounted already (volume {mount.volume})")
        holders = mounts.users_of(mount)
        if holders:
            raise MountError(
                f"{directory}: the daemon of volume {mount.volume} is dead and its files are still in use: "
                + "; ".join(map(str, holders[:5]))
                + ". End these processes and mount again"
            )
        try:
            mounts.unmount(path)
        except OSError as error:
            raise MountError(f"{directory}: the dead mount of volume {mount.volume}: {error.strerror}") from error
    elif mount is not None and mount.fstype.startswith("fuse"):
        raise MountError(f"{directory}: is a mount of {mount.fstype} already")
    below = mounts.mounts_below(path)
    if below:
        raise MountError(f"{directory}: another file system is mounted inside, at {below[0].path}")
    if not Path(path).is_dir():
        raise MountError(f"{directory}: no such directory")
    resolved = str(Path(path).resolve())
    openers = mounts.openers_below(resolved)
    if openers:
        raise MountError(
            f"{directory}: files below are open, and would be written underneath the mount: "
            + "; ".join(map(str, openers[:5]))
        )
    return Path(resolved)


def _refuse_detached(directory: Path, primary: Tier) -> None:
    """Refuse while a process holds files of an earlier mount of this volume that was detached lazily.

    It may still write them, past any daemon. That mount's daemon is dead: we have the tier's lock. Raises MountError.
    """
    try:
        last = msgspec.json.decode(read_file(primary.state.fd, _MOUNTED), type=_Mounted)
    except (FileNotFoundError, msgspec.MsgspecError):
        return
    except OSError as error:
        raise MountError(f"{directory}: {error}") from error
    mounted = mounts.mounts()
    if last.boot != boot_id() or any(mount.id == last.mount_id for mount in mounted):
        return
    # Numbers are used again once nobody holds the mount; where a mount that can be seen has one, it says nothing.
    devices = {last.device} - {mount.device for mount in mounted}
    holders = mounts.holders_of_dead(last.mount_id, devices, last.unique)
    if holders:
        raise MountError(
            f"{directory}: files of an earlier mount are still in use: " + "; ".join(map(str, holders[:5]))
        )


def _open_volume(
    config: Config, directory: Path, policy: Policy, *, apply: bool = True, left: Left | None = None
) -> tuple[Volume, list[Finding]]:
    """Open the volume unless an earlier mount of it still has holders. Raises MountError."""

    def locked(tier: Tier) -> None:
        if left is None:
            _refuse_detached(directory, tier)

    try:
        return open_volume(config, directory, policy, locked, apply=apply, left=left)
    except TierError as error:
        raise MountError(str(error)) from error


class Service:
    """One mounted volume."""

    driver: Driver

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        driver: str = "auto",
        policy: str | None = None,
        allow_other: bool | None = None,
        link: Link | None = None,
        kept: Mapping[str, int] | None = None,
    ) -> None:
        """`kept` are the descriptors that an earlier daemon of this mount has left, and `link` leads to who keeps."""
        self._link = link
        self._kept = kept
        self.config = config
        self.directory = directory
        self._driver_name = driver
        self.driver_reason = "asked for"
        self._policy_name = policy
        self._allow_other = os.geteuid() == 0 if allow_other is None else allow_other
        self._ended = threading.Event()
        self._end_flusher = threading.Event()
        self._left: list[str] = []
        self._drainer: Drainer | None = None
        self.notes: list[str] = []
        """What a user should know of this mount, a line each."""
        self._closing = threading.Lock()
        self._devices: int | None = None
        """The devices.yaml of this daemon, for the next one."""
        self._before: int | None = None
        """The devices.yaml before a change of tiers, for the next daemon."""
        self._sampling = threading.Lock()  # taken before any lock of the namespace

    def run(self, ready: Callable[[list[Finding]], None]) -> None:
        """Mount, call `ready`, serve until unmounted, close. Raises MountError with nothing mounted or locked."""
        try:
            if not self._begin():
                return
        except BaseException:
            self._put_back()
            raise
        log.info("mounted volume %s at %s (%s)", self.config.volume, self.directory, self.driver.name)
        self.driver.serve(lambda: self._started(ready), self._asked_to_stop)
        try:
            self._close()
        finally:
            self._ended.set()  # who asked for it waits, and would keep the process from ending

    def _put_back(self) -> None:
        """Leave the next daemon the devices.yaml with which the last one served, where this one has another."""
        if self._kept is None or BEFORE not in self._kept:
            return
        log.error("this devices.yaml does not come up; putting the one before back: %s", self.config.source)
        put_back(self.config.source, self._kept[BEFORE], self._kept_roots())

    def _begin(self) -> bool:
        """Mount, or take the mount over; False: it is gone. Raises MountError with nothing mounted or locked."""
        if self._kept is None:
            self.directory = prepare(self.directory)
            check(self.config, self.directory)
        elif not _is_connected(self._kept["device"]):
            # Unmounted meanwhile: the tiers are not ours any more, and a database may be open in the bare directory.
            log.warning("%s: was unmounted while there was no daemon", self.directory)
            ControlServer(self.config.volume, {}, self._kept["control"]).stop()
            return False
        self.known = self._known_devices()
        policy = make_policy(self.config, self._policy_name)
        try:
            listening = None if self._kept is None else self._kept["control"]
            self.control = ControlServer(self.config.volume, self._operations(), listening)
        except (ControlError, OSError) as error:
            raise MountError(str(error)) from error
        try:
            self._open(policy)
        except BaseException:
            if self._kept is None:
                self.control.stop()
            raise
        return True

    def _cache(self) -> Filler | None:
        """The read cache that is configured; what others have left behind is removed. Raises OSError."""
        config = self.config.cache
        for tier in self.volume.tiers:
            if config is None or tier.name != config.tier:
                remove_store(tier)
        if config is None:
            return None
        tier = self.volume.by_name[config.tier]
        tier.lend(config.capacity)
        return Filler(Cache(self.volume, tier, config.capacity, config.chunk), self.config.copy_limit)

    def _io_priority(self) -> IoPriority | None:
        if not self.config.io_priority:
            return None
        from fusefs.io_priority import IoPriority  # it brings psutil along, 2.5 MiB that most mounts need not have

        notes = priority_notes((tier.name, os.fstat(tier.root.fd).st_dev) for tier in self.volume.tiers)
        for note in notes:
            log.warning("%s", note)
        self.notes += notes
        return IoPriority()

    def _known_devices(self) -> Known:
        """What the profile beside devices.yaml says; looked at before the mount hides the tier in place."""
        places = {tier.name: tier.path or self.directory for tier in self.config.tiers}
        for name, root in self._kept_roots().items():
            places[name] = Path(f"/proc/self/fd/{root}")
        known = examine(self.config.source, places, os.uname().release, datetime.now(UTC))
        for note in known.notes:
            log.warning("%s", note)
        self.notes += known.notes
        return known

    def _kept_roots(self) -> dict[str, int]:
        """Tier -> descriptor of its root that an earlier daemon has left."""
        kept = self._kept or {}
        return {name.removeprefix(_ROOT): fd for name, fd in kept.items() if name.startswith(_ROOT)}

    def _open(self, policy: Policy) -> None:
        left, session = None, None
        if self._kept is not None:
            from fusefs.resume import begun
            from fusefs.session import Session, SessionError

            try:
                session = Session(self._kept["session"])
            except SessionError as error:
                raise MountError(f"{self.directory}: cannot be taken over: {error}") from error
            roots = {name: Fd(fd) for name, fd in self._kept_roots().items()}
            left = Left(roots, *begun(session), draining=self._was_draining(roots))
        self.volume, self.findings = _open_volume(self.config, self.directory, policy, left=left)
        if left is not None:
            self._clear_left(left)
        self.volume.placing.measured({name: tier.model for name, tier in self.known.tiers.items()})
        for finding in self.findings:
            log.warning("%s: %s: %s", os.fsdecode(finding.path), finding.problem, finding.detail)
        for tier in self.volume.tiers:
            mode = stat.S_IMODE(os.fstat(tier.root.fd).st_mode)
            if not tier.in_place and mode & 0o077:
                note = f"tier {tier.name}: others can reach its files past the mount: chmod 700 {tier.label}"
                log.warning("%s", note)
                self.notes.append(note)
        try:
            self.filler = self._cache()
            self.namespace = Namespace(self.volume)
            self.namespace.cache = None if self.filler is None else self.filler.cache
            self.namespace.io_priority = self._io_priority()
            self.mover = Mover(self.volume, self.config.copy_limit)
            if session is None or self._kept is None:
                self._mount()
                self._note_mount()
            else:
                self._take_over(self._kept["device"], session)
            self._keep()
            devices = [(tier.name, os.fstat(tier.root.fd).st_dev) for tier in self.volume.tiers]
            self.load = LoadMonitor(devices, self._counted)
            self.load.sample(time.monotonic())
        except (DriverError, OSError) as error:
            self.volume.close()
            raise MountError(str(error)) from error
        except MountError:
            self.volume.close()
            raise

    def _clear_left(self, left: Left) -> None:
        """What is Keigo's goes from a tier that the daemon before has taken out of the volume."""
        for name in left.roots.keys() - self.volume.by_name.keys():
            try:
                stays = clear_left(self.volume.primary, name, left.roots[name])
            except (OSError, TierError) as error:
                stays = str(error)
            if stays is not None:
                note = f"tier {name} has left the volume; left behind: {stays}"
                log.warning("%s", note)
                self.notes.append(note)

    def _was_draining(self, roots: Mapping[str, Fd]) -> bool:
        """Whether the daemon that died was draining the volume. Raises MountError."""
        primary = next((tier.name for tier in self.config.tiers if tier.in_place), self.config.tiers[-1].name)
        if primary not in roots:
            raise MountError(f"{self.directory}: cannot be taken over: tier {primary} was not there at the mount")
        try:
            state = open_dir(STATE, roots[primary].fd)
            return msgspec.json.decode(read_file(state.fd, _MOUNTED), type=_Mounted).draining
        except (OSError, msgspec.MsgspecError) as error:
            raise MountError(f"{self.directory}: cannot be taken over: mounted.json: {error}") from error

    def _take_over(self, device: int, session: Session) -> None:
        driver = _kernel_driver(keeping=True)
        driver.adopt(self.namespace, device, session)
        self.driver = driver
        self.driver_reason = "took over from a daemon that died"

    def _keep(self) -> None:
        """Give the keeper what the next daemon needs. Raises OSError where it is gone."""
        kept = self.driver.kept()
        if self._link is None or not kept:
            return
        roots = {_ROOT + tier.name: tier.root.fd for tier in self.volume.tiers}
        held = {} if self._before is None else {BEFORE: self._before}
        if self._devices is None:
            self._devices = self._hold_devices()
        if self._devices is not None:
            held[DEVICES] = self._devices
        self._link.keep({**kept, **roots, **held, "control": self.control.fileno()})

    def _hold_devices(self) -> int | None:
        """The text of the devices.yaml that this daemon works with; None where it is not known any more."""
        try:
            text = read(self.config.source)
            if parse(self.config.source, text.encode()) == self.config:
                return hold(text)
        except ConfigError:
            pass  # it is being written, and was told when this daemon began
        return None if self._kept is None else self._kept.get(DEVICES)

    def _mount(self) -> None:
        """Mount with the driver asked for, or with the first that works."""
        if self._driver_name != "auto":
            self._mount_with(_DRIVERS[self._driver_name](keeping=self._link is not None))
            return
        try:
            self._mount_with(_DRIVERS["kernel"](keeping=self._link is not None))
            self.driver_reason = "the fastest that works here"
        except (DriverError, ImportError) as error:
            log.warning("the kernel driver cannot be used: %s", error)
            self._mount_with(_DRIVERS["pyfuse3"](keeping=False))
            self.driver_reason = f"the kernel driver cannot be used: {error}"

    def _mount_with(self, driver: Driver) -> None:
        source = mounts.SOURCE + self.config.volume
        driver.mount(self.namespace, str(self.directory), source, allow_other=self._allow_other)
        self.driver = driver

    def _note_mount(self, *, draining: bool = False) -> None:
        mount = mounts.mount_at(str(self.directory))
        if mount is not None:
            note = _Mounted(boot_id(), mount.id, mount.device, mounts.unique_id(mount.path), draining)
            try:
                write_durably(self.volume.primary.state.fd, _MOUNTED, msgspec.json.encode(note))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # Only a lazy unmount is not noticed without it; and who is to make room needs the mount.
                told = f"tier {self.volume.primary.name}: {error.strerror}: do not umount with -l while files are open"
                log.warning("%s", told)
                self.notes.append(told)

    def _started(self, ready: Callable[[list[Finding]], None]) -> None:
        self.mover.start()
        meter = self.namespace.meter
        self._watch = Watch(self.volume.tiers, meter.failed_elsewhere, meter.progress)
        self._watch.start()
        if self.filler is not None:
            self.filler.start()
        self.namespace.observer.start()
        self._flusher = threading.Thread(target=self._flush_often, name="keigo-flusher", daemon=True)
        self._flusher.start()
        self._sampler = threading.Thread(target=self._sample_often, name="keigo-load", daemon=True)
        self._sampler.start()
        self.control.start()
        self._end_metrics = self._serve_metrics()
        if self.volume.draining:
            self._drain_on()
        if self._link is not None:
            self._link.serving()
        ready(self.findings)

    def _serve_metrics(self) -> Callable[[], None]:
        """Let Prometheus ask, if it is to; returns what ends that."""
        if self.config.metrics is None:
            return lambda: None
        from keigo.observe import metrics  # 2 MiB that most mounts need not have

        address, port = self.config.metrics
        nothing: dict[str, Any] = {}
        try:
            return metrics.serve(
                address,
                port,
                lambda: self._status(nothing, _nobody),
                lambda: self._lsm(nothing, _nobody),
                time.time(),
            )
        except OSError as error:  # a database must not stay away for that
            note = f"metrics: {address}:{port}: {error.strerror}: nobody listens there"
            log.warning("%s", note)
            self.notes.append(note)
            return lambda: None

    def _flush_often(self) -> None:
        attempts = Attempts()
        while not self._end_flusher.wait(_FLUSH_EVERY):
            attempts.attempt("what the kernel wrote past us is not known", self.namespace.meter.measure_writers)
            attempts.attempt("the catalog cannot be written", self.volume.flush)

    def _sample_often(self) -> None:
        wait = _SAMPLE_EVERY
        attempts = Attempts()
        while not self._end_flusher.wait(wait):
            began = time.thread_time()
            attempts.attempt("the load of the tiers is not known", self._loads)
            attempts.attempt("placement goes on with old loads", self._tell_placing)
            # At most 5% of a processor: what is read meanwhile is told at once the next time.
            wait = max(_SAMPLE_EVERY, 20 * (time.thread_time() - began))

    def _tell_placing(self) -> None:
        """Loads, pressure and reads, for placement."""
        now = clock.now()
        placing = self.volume.placing
        for directory, pressure in self.namespace.observer.pressures().items():
            placing.felt(directory, pressure, now)
        placing.refresh(now, self.load.loads(), self.driver.fresh_reads())

    def _counted(self, tiers: Sequence[str]) -> list[tuple[Counts, Counts]]:
        return [(_counts(reads), _counts(writes)) for reads, writes in self.namespace.meter.traffic(tiers)]

    def _loads(self) -> tuple[Load, ...]:
        """The load of each tier, now."""
        with self._sampling:
            self.load.sample(time.monotonic())
        return self.load.loads()

    def _asked_to_stop(self) -> None:
        """SIGTERM or SIGINT: unmount, if nobody uses the files; else go on serving, for they are somebody's."""
        try:
            self._unmount()
        except ControlError as error:
            log.error("asked to stop, but: %s", error)

    def _unmount(self) -> None:
        """Stop migrations and unmount. Raises ControlError naming who keeps the mount busy; it then goes on."""
        self.mover.pause()
        try:
            mounts.unmount(str(self.directory))
        except OSError as error:
            self.mover.resume()
            if error.errno != errno.EBUSY:
                raise ControlError(f"{self.directory}: {error.strerror}") from error
            mount = mounts.mount_at(str(self.directory))
            users = [] if mount is None else mounts.users_of(mount)
            who = "; ".join(map(str, users[:5])) or "a process of another mount namespace, or the kernel"
            raise ControlError(f"{self.directory}: is in use: {who}") from None

    def _close(self) -> None:
        self._end_metrics()
        self._watch.stop()
        self.mover.stop()
        if self.filler is not None:
            self.filler.stop()
        if self.namespace.io_priority is not None:
            self.namespace.io_priority.restore()
        self.namespace.observer.stop()
        self._end_flusher.set()
        self._flusher.join()
        self._sampler.join()
        self._tell_placing()
        self.namespace.close()
        if self.filler is not None:
            self.filler.cache.close()
        try:
            os.unlink(_MOUNTED, dir_fd=self.volume.primary.state.fd)
        except FileNotFoundError:
            pass
        if self.volume.draining and not self.volume.guarded and not elsewhere(self.volume):
            self._left = dissolve(self.volume)
        else:
            self.volume.close()
        log.info("volume %s is closed", self.config.volume)
        self.control.stop()
        self._ended.set()
        self.control.join()
        self.load.close()

    # --- requests ---

    def _operations(self) -> Mapping[str, Callable[[Mapping[str, Any], Progress], Any]]:
        return {
            "status": self._status,
            "ls": self._ls,
            "lsm": self._lsm,
            "explain": self._explain,
            "umount": self._umount,
            "restart": self._restart,
            "tier-add": self._tier_add,
            "tier-remove": self._tier_remove,
            "drain": self._drain,
            "pin": self._pin,
            "unpin": self._unpin,
            "migrate": self._migrate,
            "cache": self._cache_command,
        }

    def _status(self, _request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        self.namespace.meter.measure_writers()
        self.namespace.observer.settle()
        status = status_of(self.volume, self._loads())
        return {
            "pid": os.getpid(),
            "volume": self.config.volume,
            "mount": str(self.directory),
            "config": str(self.config.source),
            "driver": self.driver.name,
            "driver_reason": self.driver_reason,
            "driver_facts": self.driver.facts(),
            "keeper": self._keeper_fact(),
            "context": self.namespace.observer.facts(),
            "profile": self.known.facts(),
            "io_priority": None if self.namespace.io_priority is None else self.namespace.io_priority.facts(),
            **status,
            "cache": {} if self.filler is None else cache_facts(self.filler),
            "migrations": asdict(self.mover.progress),
        }

    def _keeper_fact(self) -> str:
        """`there`, or why a daemon that dies would not be replaced."""
        if self._link is not None and self.driver.kept() and self._link.is_there():
            return "there"
        return self._why_not_kept()

    def _ls(self, _request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        self.namespace.observer.settle()
        cached = {} if self.filler is None else file_facts(self.filler.cache)
        return file_rows(self.volume, self.driver.reads(), cached)

    def _lsm(self, _request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        self.namespace.observer.settle()
        return trees_of(self.volume, self.namespace.observer)

    def _explain(self, request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        name = _text(request, "name")
        self.namespace.observer.settle()
        found = explain(self.volume, name, self.mover.held)
        if found is None:
            raise ControlError(f"{name}: no such file in the volume (see keigo ls)")
        return found

    def _umount(self, _request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        self._unmount()
        progress("unmounted")
        self._ended.wait()
        return {"left": self._left}

    def _restart(self, _request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        """End as if killed, at a good moment; the keeper starts the next daemon."""
        self._refuse_unkept("umount and mount again")
        self._check_successor()
        self._end_for_next(progress)

    def _refuse_unkept(self, instead: str) -> None:
        """Raise ControlError where no daemon would follow this one, with what to do."""
        if self._link is None or not self._link.is_there() or not self.driver.kept():
            raise ControlError(f"{self.directory}: {self._why_not_kept()}: {instead}")

    def _tier_add(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        """Write the tier into devices.yaml and end: the next daemon has it."""
        self._refuse_unkept(f"umount, add the tier to {self.config.source}, and mount again")
        tier = {key: _text(request, key) for key in ("name", "path", "capacity", "reserve") if request.get(key)}
        before = _text(request, "before") if request.get("before") else None
        with self._closing:
            text, changed = check_add(self.config, self.volume, self.directory, tier, before, self._policy_name)
            self._check_successor()
            self._hold(text)
            try:
                write(self.config.source, changed)
            except ControlError:
                self._let_go()
                raise
            self._end_for_next(progress)

    def _hold(self, text: str) -> None:
        """Give the keeper the devices.yaml that is about to be replaced."""
        self._before = hold(text)
        self._keep()

    def _let_go(self) -> None:
        """Undo `_hold`."""
        if self._before is not None:
            os.close(self._before)
        self._before = None
        self._keep()

    def _tier_remove(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        """Empty a tier, write devices.yaml without it, and end: the next daemon goes on without."""
        self._refuse_unkept(
            f"keigo drain, umount, take the tier out of {self.config.source}, and mount again"
            if self.volume.primary.in_place
            else "umount, and mount with the kernel driver and a keeper"
        )
        name = _text(request, "name")
        with self._closing:
            check_remove(self.config, self.volume, self.directory, name)
            text_without(self.config, self.directory, name, self._policy_name)
            self._check_successor()
            tier = self.volume.by_name[name]
            leaver = Leaver(self.volume, self.mover, tier, request.get("patience", PATIENCE))
            leaver.begin()
        try:
            while True:
                leaver.evacuate(progress)
                failpoints.hit("leave.evacuated")
                self._check_successor()
                progress({"ending": True})
                self._end_without(leaver, tier)
        except BaseException as error:
            against = leaver.take_back()
            if isinstance(error, KeigoError | OSError):
                raise ControlError(f"{error}" if against is None else f"{error}; {against}") from error
            raise

    def _end_without(self, leaver: Leaver, tier: Tier) -> None:
        """End for a daemon that goes on without a tier; return where a file has come to it after all.

        From the last look at the tier until the end nobody may touch the volume: what is made on it would be lost.
        """
        self.mover.pause()
        try:
            with self._closing, self.volume.lock:
                if not leaver.is_empty():
                    return
                text, changed = text_without(self.config, self.directory, tier.name, self._policy_name)
                self.volume.flush()
                self._hold(text)
                try:
                    before = take_out(self.volume, tier)
                    try:
                        write(self.config.source, changed)
                    except ControlError:
                        take_back(self.volume, before)
                        raise
                except BaseException:
                    self._let_go()
                    raise
                self.volume.flush()
                log.info("ending for a daemon without tier %s", tier.name)
                logging.shutdown()
                os._exit(_AGAIN)
        finally:
            self.mover.resume()

    def _end_for_next(self, progress: Progress) -> None:
        """End at a moment when nothing is under way that the next daemon would have to finish."""
        self.mover.pause()
        self.volume.flush()
        log.info("ending for the next daemon")
        progress({"pid": os.getpid()})
        logging.shutdown()
        os._exit(_AGAIN)

    def _check_successor(self) -> None:
        """Raise ControlError where the next daemon could not start: the mount would be dead then."""
        try:
            config = load(self.config.source)
        except ConfigError as error:
            raise ControlError(str(error)) from error
        missing = {tier.name for tier in self.volume.tiers} - {tier.name for tier in config.tiers}
        if config.volume != self.config.volume or missing:
            what = f"tier {', '.join(sorted(missing))} is missing" if missing else f"is volume {config.volume}'s now"
            raise ControlError(f"{self.config.source}: {what}: the mount stays as it is")
        tried = subprocess.run(
            [sys.executable, "-m", "keigo", "--version"], capture_output=True, text=True, check=False, cwd="/"
        )
        if tried.returncode != 0:
            last = tried.stderr.strip().rpartition("\n")[2]
            raise ControlError(f"the program that is installed does not start: {last}")

    def _why_not_kept(self) -> str:
        if self._link is None:
            return "was mounted without a keeper"
        if not self.driver.kept():
            return f"the {self.driver.name} driver cannot be replaced under a mount"
        return "its keeper is gone"

    def _drain(self, _request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        with self._closing:
            if self.volume.leaving is not None:
                refuse_change(self.volume)
            if self._drainer is None or self._drainer.finished:
                self._drainer = Drainer(self.volume, self.mover)
                self._note_mount(draining=True)
                self._drainer.start()
            drainer = self._drainer
        try:
            return drainer.follow(progress)
        except ControlError:
            if not self.volume.draining:
                self._note_mount()
            raise

    def _drain_on(self) -> None:
        """Go on with the drain of a daemon that died."""
        try:
            self._drainer = Drainer(self.volume, self.mover)
        except ControlError as error:  # new files stay in place, as was promised
            log.error("the drain does not go on: %s", error)
        else:
            self._drainer.start()

    def _pin(self, request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        pattern, tier = _text(request, "pattern"), self._tier(request)
        with self.volume.lock:
            self._refuse_leaving(tier)
            try:
                self.volume.pins.pin(pattern, tier)
            except OSError as error:
                raise ControlError(f"the pin cannot be stored: {error.strerror}") from error
        self.mover.poke()
        return {"matching": len(self._matching(pattern))}

    def _unpin(self, request: Mapping[str, Any], _progress: Progress) -> Any:  # noqa: ANN401
        pattern = _text(request, "pattern")
        with self.volume.lock:
            if pattern in self.config.pins:
                raise ControlError(f"{pattern}: is pinned by {self.config.source}; remove it there")
            try:
                removed = self.volume.pins.unpin(pattern)
            except OSError as error:
                raise ControlError(f"the pins cannot be stored: {error.strerror}") from error
            if not removed:
                known = ", ".join(self.volume.pins.all()) or "none"
                raise ControlError(f"{pattern}: no such pin (pins: {known})")
        self.mover.poke()
        return {}

    def _migrate(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        pattern, tier = _text(request, "pattern"), self._tier(request)
        if self.volume.draining and tier != self.volume.primary.name:
            raise ControlError("the volume is drained: nothing leaves the data directory until it is mounted again")
        self._refuse_leaving(tier)
        found = self._matching(pattern)
        if not found:
            raise ControlError(f"{pattern}: no file matches")
        self.volume.wait_released([file for file, _, role in found if role in IMMUTABLE], _CLOSE_WAIT)
        waiting = threading.Semaphore(0)
        outcome: dict[str, str | None] = {}
        for file, path, role in found:
            if role not in IMMUTABLE:
                outcome[path] = "only SST and blob files move"
                waiting.release()
                continue

            def done(why: str | None, path: str = path) -> None:
                outcome[path] = why
                waiting.release()

            self.mover.submit(Request(file, tier, f"moved to {tier} by command", done, keep=True))
        for number in range(1, len(found) + 1):
            waiting.acquire()
            progress({"done": number, "of": len(found)})
        return {
            "moved": sorted(path for path, why in outcome.items() if why is None),
            "skipped": {path: why for path, why in sorted(outcome.items()) if why is not None},
        }

    def _cache_command(self, request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        if self.filler is None:
            raise ControlError("there is no cache: devices.yaml configures none")
        pattern = _text(request, "pattern")
        files = [(file, path) for file, path, role in self._matching(pattern) if role in IMMUTABLE]
        if not files:
            raise ControlError(f"{pattern}: no SST or blob file matches")
        if _text(request, "what") == "drop":
            dropped = self.filler.cache.drop_files([file for file, _ in files])
            self.filler.poke()
            return {"dropped": dropped}
        return self._warm_cache(self.filler, [file for file, _ in files], progress)

    def _warm_cache(self, filler: Filler, files: Sequence[int], progress: Progress) -> Any:  # noqa: ANN401
        slow = [file for file in files if filler.cache.takes(file)]
        if not slow:
            raise ControlError(
                f"nothing to cache: all of it is on {filler.cache.tier.name} or faster, or being written"
            )
        before, total = filler.cache.cached_bytes_of(slow), filler.cache.bytes_of(slow)
        ended = threading.Event()
        outcome: list[str | None] = []
        copied = [before]

        def done(why: str | None) -> None:
            outcome.append(why)
            ended.set()

        def told(size: int) -> None:
            copied[0] += size

        filler.warm(Warm(deque(slow), done, told))
        while not ended.wait(_TELL_EVERY):
            progress({"done": copied[0], "of": total})
        return {"files": len(slow), "cached": filler.cache.cached_bytes_of(slow), "of": total, "why": outcome[0]}

    def _tier(self, request: Mapping[str, Any]) -> str:
        tier = _text(request, "tier")
        if tier not in self.volume.by_name:
            raise ControlError(f"{tier}: no such tier (tiers: {', '.join(self.volume.by_name)})")
        return tier

    def _refuse_leaving(self, tier: str) -> None:
        leaving = self.volume.leaving
        if leaving is not None and leaving.name == tier:
            raise ControlError(f"tier {tier} is being removed")

    def _matching(self, pattern: str) -> list[tuple[int, str, Role]]:
        """Files with a name that matches: id, the first such name, role."""
        with self.volume.lock:
            found = []
            for file, record in self.volume.catalog.files():
                paths = (shown(self.volume.path(*link)) for link in record.links)
                path = next((path for path in paths if fnmatch.fnmatchcase(path, pattern)), None)
                if path is not None and not record.special:
                    found.append((file, path, record.role))
            return found


def _is_connected(device: int) -> bool:
    """Whether an open /dev/fuse still has its mount."""
    ready = select.poll()
    ready.register(device, select.POLLIN)
    return not any(event & select.POLLERR for _, event in ready.poll(0))


def _nobody(_what: object) -> None:
    """Progress that nobody hears of."""


def _counts(moved: Moved) -> Counts:
    took = None if moved.nanoseconds is None else moved.nanoseconds // 1_000_000
    return Counts(moved.requests, moved.bytes, took, moved.under_way)


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise ControlError(f"request without {key}")
    return value


def open_offline(config: Config, directory: Path, *, apply: bool = True) -> tuple[Volume, list[Finding]]:
    """Open a volume that is not mounted, for `fsck` and `drain --offline`. Raises MountError."""
    path = mounts.real_path(directory)
    mount = mounts.mount_at(path)
    if mount is not None and mount.volume is not None:
        raise MountError(f"{directory}: volume {mount.volume} is mounted; umount it first")
    resolved = prepare(directory)
    check(config, resolved)
    return _open_volume(config, resolved, make_policy(config), apply=apply)
