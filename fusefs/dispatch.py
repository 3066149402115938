"""Each request gets one answer, and is carried out once, though the daemon die over it and the next be asked again.

Where a keeper holds /dev/fuse, too, a change of names is in the session's table while it is under way, and in the
catalog before it is answered; what an earlier daemon had begun is not done twice (`resume`).

Any worker may call. `Volume.lock` is taken to free a handle's number, and no lock is held while a request is carried
out. What is known of an earlier daemon's tries is only taken from.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Final

from fusefs import abi
from fusefs.abi import Op
from fusefs.inodes import Inodes
from fusefs.messages import RELEASES, Handler, Request, released
from fusefs.namespace import Namespace
from fusefs.resume import NOTED, before, is_done
from fusefs.session import Before, KeptHandle, Session
from fusefs.takeover import Unanswered
from keigo import failpoints

log = logging.getLogger(__name__)

_UNANSWERED: Final = frozenset({Op.INTERRUPT, Op.FORGET, Op.BATCH_FORGET})


class Dispatcher:
    """See the module's docstring."""

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        reply: Callable[[int, int, bytes], None],
        namespace: Namespace,
        inodes: Inodes,
        session: Session | None = None,
        unanswered: Unanswered | None = None,
    ) -> None:
        """`reply` is told a request's number, errno and answer; `unanswered` is what an earlier daemon left."""
        self._handlers = handlers
        self._reply = reply
        self._namespace = namespace
        self._inodes = inodes
        self._session = session
        left = Unanswered() if unanswered is None else unanswered
        self._begun = left.begun
        self._answered = left.opened

    def answer(self, raw: bytes) -> None:
        """Carry out a request, and answer it."""
        request = Request(raw)
        handler = self._handlers.get(request.op)
        if handler is None:
            if request.op not in _UNANSWERED:
                self._reply(request.unique, errno.ENOSYS, b"")
            return
        slot: int | None = None
        try:
            if self._session is not None and request.op in NOTED:
                slot, then = self._begin(self._session, request, raw)
                answer = self._name(request, then, handler)
            elif request.unique & abi.RESENT:
                answer = self._once_more(request, handler)
            else:
                answer = handler(request)
        except OSError as error:
            self._reply(request.unique, error.errno or errno.EIO, b"")
        except struct.error:
            log.error("malformed request: operation %d, %d bytes", request.op, len(raw))
            self._reply(request.unique, errno.EINVAL, b"")
        except MemoryError:
            log.warning("no memory for an operation: %s", Op(request.op).name)
            self._reply(request.unique, errno.ENOMEM, b"")
        except Exception:
            log.exception("operation %s failed", Op(request.op).name)
            self._reply(request.unique, errno.EIO, b"")
        else:
            if answer is not None:
                self._reply(request.unique, 0, answer)
            if request.op in RELEASES:
                # Not before the answer: until then the next daemon may be asked to release this number again.
                with self._namespace.volume.lock:
                    self._namespace.handles.reuse(released(request))
        if slot is not None and self._session is not None:
            self._session.end(slot)
        if request.op == Op.FSYNC and self._session is not None and len(request.body) >= abi.FSYNC_IN.size:
            self._session.owe(abi.FSYNC_IN.unpack_from(request.body)[0], False)

    def _begin(self, session: Session, request: Request, raw: bytes) -> tuple[int, Before | None]:
        """Note a change of names that is about to be made: its slot, and what an earlier daemon found if it tried."""
        known = self._begun.pop(request.unique & ~abi.RESENT, None)
        if known is not None:
            return known[0], known[1].before
        return session.begin(raw, before(self._namespace, request)), None

    def _name(self, request: Request, then: Before | None, handler: Handler) -> bytes | None:
        """Change names; the kernel hears of ids only once they are sure to outlive us."""
        if request.unique & abi.RESENT:
            kept = self._answered.get(request.unique & ~abi.RESENT)
            if kept is not None:
                return self._inodes.entry(self._namespace.nodes.getattr(kept.node)) + _open_again(kept)
            if then is not None and is_done(self._namespace, request, then):
                return b""
        failpoints.hit("names.begun")
        answer = handler(request)
        failpoints.hit("names.changed")
        self._namespace.volume.commit()
        failpoints.hit("names.committed")
        return answer

    def _once_more(self, request: Request, handler: Handler) -> bytes | None:
        """Answer what an earlier daemon was asked, and changes no names."""
        if request.op in (Op.OPEN, Op.OPENDIR):
            kept = self._answered.get(request.unique & ~abi.RESENT)
            if kept is not None:
                return _open_again(kept)
        elif request.op in RELEASES and not self._namespace.handles.is_open(released(request)):
            return b""
        return handler(request)


def _open_again(kept: KeptHandle) -> bytes:
    """The answer to an open that has its handle of an earlier daemon."""
    return abi.OPEN_OUT.pack(kept.number, abi.FOPEN_PASSTHROUGH if kept.bypass else 0, max(0, kept.backing))
