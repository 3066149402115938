"""Taking over a mount from a daemon that died: its handles are opened again, and what it did not answer is collected.

Nothing is answered meanwhile: one thread, before there are workers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from fusefs import abi
from fusefs.connection import LONGEST
from fusefs.messages import RELEASES, Request, released
from fusefs.namespace import Namespace
from fusefs.opens import Opens
from fusefs.resume import read_resent
from fusefs.session import KeptHandle, KeptOperation, Session
from keigo.tiers.adoption import drop_unused_orphans

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Requests that an earlier daemon was asked, too, and what is known of its tries."""

    requests: list[bytes] = field(default_factory=list)
    begun: dict[int, tuple[int, KeptOperation]] = field(default_factory=dict)
    """Number of a request that changes names -> its slot in the session, and what the names stood for."""
    opened: dict[int, KeptHandle] = field(default_factory=dict)
    """Number of a request -> the handle that it got."""


def take_over(namespace: Namespace, opens: Opens, device: int, session: Session) -> Unanswered:
    """Open every handle again that can be, and have the kernel send again what was not answered. Raises OSError."""
    kept = list(session.handles())
    restored = []
    again = read_resent(device, LONGEST)
    # A number whose RELEASE comes again must not stand for another handle by then.
    closing = [released(request) for raw in again if (request := Request(raw)).op in RELEASES]
    namespace.handles.restore_numbers([*(handle.number for handle in kept), *closing])
    for handle in kept:
        try:
            opens.restore(handle)
            restored.append(handle)
        except OSError as error:
            log.error("an open handle is lost (node %d): %s", handle.node, error)
            session.released(handle.number)
    drop_unused_orphans(namespace.volume)
    operations = {Request(op.request).unique & ~abi.RESENT: (slot, op) for slot, op in session.operations()}
    asked = {Request(raw).unique & ~abi.RESENT for raw in again}
    begun = {unique: found for unique, found in operations.items() if unique in asked}
    session.keep_only({slot for slot, _ in begun.values()})
    return Unanswered(again, begun, {handle.unique: handle for handle in restored if handle.unique in asked})
