"""The fast driver: speaks the FUSE protocol to /dev/fuse itself, so that the kernel moves the bytes.

A file opened for writing is handed to the kernel by passthrough: its writes never come here. READ, FSYNC and FLUSH of
all other files are served by `_datapath` without the GIL. What is left (names, opens, attributes) is Python, a few
times per file:

    connection   /dev/fuse: mounted, negotiated, answered
    workers      threads that take requests
    dispatch     each request is carried out once, and answered
    operations   a handler for each operation
    opens        handles: passthrough or mediated
    inodes       what the kernel knows of nodes
    read_counts  what the data path counted

Where a keeper holds /dev/fuse, too, a daemon that dies is replaced under the mount (`adopt`): by what `Session` says
the next one opens the same files, knows the kernel's handles and backing ids, and has the kernel send again what was
not answered (`takeover`, `resume`).

Locks, in order: `Inode.lock`, `Volume.lock`; leaves: of the inodes' table, of what was read, of the pinning opens, of
the workers. What is set here is set before `serve`, by the main thread.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Mapping

from fusefs import _datapath
from fusefs.connection import Connection, mount
from fusefs.dispatch import Dispatcher
from fusefs.inodes import Inodes
from fusefs.namespace import Namespace
from fusefs.opens import Opens
from fusefs.operations import Operations
from fusefs.read_counts import ReadCounts
from fusefs.session import Session
from fusefs.takeover import Unanswered, take_over
from fusefs.thread_classes import ThreadClasses
from fusefs.workers import SIGNALS, Workers
from keigo.tiers import orphans
from keigo.tiers.traffic import Moved

log = logging.getLogger(__name__)


class KernelDriver:
    """See the module's docstring."""

    name = "kernel"

    _namespace: Namespace
    _connection: Connection
    _inodes: Inodes
    _counts: ReadCounts
    _opens: Opens

    def __init__(self, *, refuse_passthrough: bool = False, keeping: bool = False) -> None:
        """With `keeping` somebody waits for `kept`, and the next daemon can take over."""
        self._refuse = refuse_passthrough
        self._keeping = keeping
        self._session: Session | None = None
        self._unanswered = Unanswered()

    def facts(self) -> dict[str, int]:
        """How many inodes the kernel remembers, how many of their files are in passthrough, how many opens for reading
        alone have pinned an SST or a blob file, and how often a daemon took over from one that died since the mount.
        """
        inodes = self._inodes.all()
        return {
            "inodes": len(inodes),
            "passthrough": sum(inode.passthrough > 0 for _, inode in inodes),
            "pinning_opens": self._opens.pinning,
            "successions": 0 if self._session is None else self._session.successions,
        }

    def reads(self) -> dict[int, dict[str, tuple[int, int]]]:
        """What the data path counted, of released and of open handles."""
        return self._counts.by_class()

    def fresh_reads(self) -> dict[int, tuple[int, int]]:
        """What the data path counted, of open handles and of those released meanwhile."""
        return self._counts.fresh()

    def kept(self) -> Mapping[str, int]:
        """Descriptors that the next daemon needs to take over; none where it cannot."""
        return {} if self._session is None else {"device": self._connection.device, "session": self._session.fd}

    def mount(self, namespace: Namespace, path: str, source: str, *, allow_other: bool) -> None:
        """Mount, and agree with the kernel on passthrough; where it has none nothing stays mounted."""
        connection, resends = mount(
            path, source, allow_other=allow_other, refuse_passthrough=self._refuse, resend=self._keeping
        )
        if resends:
            self._session = Session.new()
            namespace.volume.orphans.sheltering = True
            _prepare_orphans(namespace)
        self._tie(namespace, connection, Inodes())

    def adopt(self, namespace: Namespace, device: int, session: Session) -> None:
        """Take over a mount whose daemon is dead; requests wait until `serve`. Raises OSError."""
        self._session = session
        session.taken_over()
        namespace.volume.orphans.sheltering = True
        namespace.io.owe = session.owe
        self._tie(namespace, Connection(device), Inodes(adopted=namespace.volume.catalog.next_id))
        self._unanswered = take_over(namespace, self._opens, device, session)

    def _tie(self, namespace: Namespace, connection: Connection, inodes: Inodes) -> None:
        self._namespace, self._connection, self._inodes = namespace, connection, inodes
        self._counts = ReadCounts(inodes)
        self._opens = Opens(namespace, connection, inodes, self._counts, self._session)
        namespace.meter.writes_are_timed = False
        namespace.meter.read_elsewhere = lambda tier: Moved(*_datapath.tally(tier))
        namespace.meter.failed_elsewhere = _datapath.failures
        namespace.meter.synced_elsewhere = _datapath.syncs
        namespace.files.rehomed = self._opens.rehome
        if namespace.cache is not None:
            _datapath.set_cache_tier(namespace.cache.tier.index)

    def dispatcher(self) -> Dispatcher:
        """What answers the requests of this mount; for one caller."""
        handlers = Operations(self._namespace, self._inodes, self._opens).handlers()
        reply = self._connection.reply
        return Dispatcher(handlers, reply, self._namespace, self._inodes, self._session, self._unanswered)

    def serve(self, ready: Callable[[], None], stop: Callable[[], None]) -> None:
        """Run the workers until the unmount. Signals are this thread's; all that are started have them blocked."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        classes = ThreadClasses(_datapath.forget)
        _datapath.set_classifier(classes.class_of)
        self._namespace.files.works_at = classes.told
        workers = Workers(self._connection.device, self.dispatcher().answer)
        workers.start(self._unanswered.requests)

        def asked(number: int, _frame: object) -> None:
            log.info("%s: stopping", signal.Signals(number).name)
            threading.Thread(target=stop, name="keigo-stop", daemon=True).start()

        for number in SIGNALS:
            signal.signal(number, asked)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ready()
        workers.run()
        classes.close()
        self._connection.close()
        if self._session is not None:
            self._session.close()


def _prepare_orphans(namespace: Namespace) -> None:
    """Make their directories now: a device may be full when they are needed."""
    for tier in namespace.volume.tiers:
        try:
            orphans.directory(tier)
        except OSError as error:
            log.warning("tier %s: removed files that are open would not outlive the daemon: %s", tier.name, error)
