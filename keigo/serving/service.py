"""The daemon of one mount: wires volume, namespace, driver, mover and control socket together.

The main thread serves the driver. Others: the mover, the control server with a thread per request, the flusher
(commits the catalog), the sampler of the tiers' load, a drainer while a drain runs. The end is always the same, whoever
unmounted: the driver returns, then mover, flusher and sampler stop, then the volume closes.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from fusefs.driver import Driver, DriverError
from fusefs.namespace import Namespace
from keigo import clock, failpoints, mounts
from keigo.attempts import Attempts
from keigo.cache.store import remove_store
from keigo.config import Config, check
from keigo.control import ControlError, ControlServer, Operation, Progress
from keigo.devices.load import Counts, Load, LoadMonitor
from keigo.devices.scheduler import priority_notes
from keigo.devices.staleness import Known, examine
from keigo.keeper import Link
from keigo.placement.policy import Policy
from keigo.policies import make_policy
from keigo.serving.cache_requests import CacheRequests
from keigo.serving.changes import Changes
from keigo.serving.mounting import MountError, forget_mount, note_mount, open_for_mount, prepare
from keigo.serving.moves import Moves
from keigo.serving.succession import Succession
from keigo.serving.views import Views
from keigo.tiers.departure import clear_left
from keigo.tiers.health import Watch
from keigo.tiers.mover import Mover, elsewhere
from keigo.tiers.opening import Left, dissolve
from keigo.tiers.scan import Finding
from keigo.tiers.tier import TierError
from keigo.tiers.traffic import Moved

if TYPE_CHECKING:
    from fusefs.io_priority import IoPriority
    from fusefs.kernel_driver import KernelDriver
    from fusefs.session import Session
    from keigo.cache.filler import Filler

log = logging.getLogger(__name__)

_FLUSH_EVERY: Final = 1.0  # seconds; what a crash of the daemon may cost the catalog in levels, never in files
_SAMPLE_EVERY: Final = 1.0  # seconds; enough to show a load


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
        self.config = config
        self.directory = directory
        self._driver_name = driver
        self.driver_reason = "asked for"
        self._policy_name = policy
        self._allow_other = os.geteuid() == 0 if allow_other is None else allow_other
        self._ended = threading.Event()
        self._end_flusher = threading.Event()
        self._left: list[str] = []
        self.notes: list[str] = []
        """What a user should know of this mount, a line each."""
        self.succession = Succession(config, directory, link, kept)
        self._sampling = threading.Lock()  # taken before any lock of the namespace

    def run(self, ready: Callable[[list[Finding]], None]) -> None:
        """Mount, call `ready`, serve until unmounted, close. Raises MountError with nothing mounted or locked."""
        try:
            if not self._begin():
                return
        except BaseException:
            self.succession.put_back()
            raise
        log.info("mounted volume %s at %s (%s)", self.config.volume, self.directory, self.driver.name)
        self.driver.serve(lambda: self._started(ready), self._asked_to_stop)
        try:
            self._close()
        finally:
            self._ended.set()  # who asked for it waits, and would keep the process from ending

    def _begin(self) -> bool:
        """Mount, or take the mount over; False: it is gone. Raises MountError with nothing mounted or locked."""
        left = self.succession
        if not left.takes_over:
            self.directory = prepare(self.directory)
            check(self.config, self.directory)
        elif not left.is_mounted():
            # Unmounted meanwhile: the tiers are not ours any more, and a database may be open in the bare directory.
            log.warning("%s: was unmounted while there was no daemon", self.directory)
            ControlServer(self.config.volume, left.control()).stop()
            return False
        self.known = self._known_devices()
        policy = make_policy(self.config, self._policy_name)
        try:
            self.control = ControlServer(self.config.volume, left.control())
        except (ControlError, OSError) as error:
            raise MountError(str(error)) from error
        try:
            self._open(policy)
        except BaseException:
            if not left.takes_over:
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
        from keigo.cache.cache import Cache  # with numpy: 10 MiB and 40 ms that most mounts need not have
        from keigo.cache.filler import Filler

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
        for name, root in self.succession.roots().items():
            places[name] = Path(f"/proc/self/fd/{root}")
        known = examine(self.config.source, places, os.uname().release, datetime.now(UTC))
        for note in known.notes:
            log.warning("%s", note)
        self.notes += known.notes
        return known

    def _open(self, policy: Policy) -> None:
        left, session = self.succession.left() if self.succession.takes_over else (None, None)
        self.volume, self.findings = open_for_mount(self.config, self.directory, policy, left=left)
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
            cache = None if self.filler is None else self.filler.cache
            self.namespace = Namespace(self.volume, cache, self._io_priority())
            self.mover = Mover(self.volume, self.config.copy_limit)
            if session is None:
                self._mount()
                self._note_mount()
            else:
                self._take_over(self.succession.device(), session)
            self.succession.leave(self.driver, self.volume.tiers, self.control.fileno())
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

    def _take_over(self, device: int, session: Session) -> None:
        driver = _kernel_driver(keeping=True)
        driver.adopt(self.namespace, device, session)
        self.driver = driver
        self.driver_reason = "took over from a daemon that died"

    def _mount(self) -> None:
        """Mount with the driver asked for, or with the first that works."""
        if self._driver_name != "auto":
            self._mount_with(_DRIVERS[self._driver_name](keeping=self.succession.wanted))
            return
        try:
            self._mount_with(_DRIVERS["kernel"](keeping=self.succession.wanted))
            self.driver_reason = "the fastest that works here"
        except (DriverError, ImportError) as error:
            log.warning("the kernel driver cannot be used: %s", error)
            self._mount_with(_DRIVERS["pyfuse3"](keeping=False))
            self.driver_reason = f"the kernel driver cannot be used: {error}"

    def _mount_with(self, driver: Driver) -> None:
        source = mounts.SOURCE + self.config.volume
        driver.mount(self.namespace, str(self.directory), source, allow_other=self._allow_other)
        self.driver = driver

    def _note_mount(self) -> None:
        told = note_mount(self.volume, self.directory)
        if told is not None:
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
        changes = Changes(self.config, self.directory, self._policy_name, self.volume, self.mover, self.succession)
        views = self._views()
        self.control.start(self._operations(views, changes))
        self._end_metrics = self._serve_metrics(views)
        if self.volume.evacuation.draining:
            changes.drain_on()
        self.succession.serving()
        ready(self.findings)

    def _views(self) -> Views:
        return Views(
            self.config,
            self.directory,
            self.driver,
            self.driver_reason,
            self.namespace,
            self.filler,
            self.mover,
            self.known,
            self._loads,
            self.succession.fact,
        )

    def _operations(self, views: Views, changes: Changes) -> Mapping[str, Operation]:
        return {
            "umount": self._answer_umount,
            **views.operations(),
            **changes.operations(),
            **Moves(self.config, self.volume, self.mover).operations(),
            **CacheRequests(self.volume, self.filler).operations(),
        }

    def _serve_metrics(self, views: Views) -> Callable[[], None]:
        """Let Prometheus ask, if it is to; returns what ends that."""
        if self.config.metrics is None:
            return lambda: None
        from keigo.observe import metrics  # 2 MiB that most mounts need not have

        address, port = self.config.metrics
        try:
            return metrics.serve(address, port, views.status, views.trees, time.time())
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

    def _answer_umount(self, _request: Mapping[str, Any], progress: Progress) -> Any:  # noqa: ANN401
        self._unmount()
        progress("unmounted")
        self._ended.wait()
        return {"left": self._left}

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
        forget_mount(self.volume)
        if self.volume.evacuation.draining and not self.volume.guards.guarded and not elsewhere(self.volume):
            self._left = dissolve(self.volume)
        else:
            self.volume.close()
        log.info("volume %s is closed", self.config.volume)
        self.control.stop()
        self._ended.set()
        self.control.join()
        self.load.close()


def _counts(moved: Moved) -> Counts:
    took = None if moved.nanoseconds is None else moved.nanoseconds // 1_000_000
    return Counts(moved.requests, moved.bytes, took, moved.under_way)
