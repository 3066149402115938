"""Places where a test can kill the daemon, to prove that a crash there loses nothing.

`KEIGO_FAILPOINT=NAME` in the daemon's environment ends it with SIGKILL the first time it passes `hit("NAME")`, and
`KEIGO_FAILPOINT=NAME:N` the N-th time. Without the variable a call costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

FAILPOINTS: Final = (
    "open.noted",
    "release.noted",
    "names.begun",
    "names.changed",
    "names.committed",
    "migrate.copying",
    "migrate.copied",
    "migrate.verified",
    "migrate.intent-undo",
    "migrate.landed",
    "migrate.landed-synced",
    "migrate.intent-redo",
    "migrate.switched",
    "migrate.unlinked",
    "migrate.done",
    "rename.intent",
    "rename.step",
    "rename.steps",
    "rename.synced",
    "rename.done",
    "guard.built",
    "guard.exchanged",
    "guard.done",
    "unguard.exchanged",
    "leave.evacuated",
    "leave.locked",
    "leave.unguarded",
    "leave.mirrors",
    "leave.forgotten",
    "tier.kept",
    "tier.written",
    "cache.created",
    "cache.written",
    "cache.sealed",
    "cache.punched",
    "cache.deleting",
    "cache.closing",
    "cache.closed",
)

# Failures other than a crash: `init.no-passthrough` makes the kernel driver believe that the kernel has none.
_name, _, _count = os.environ.get("KEIGO_FAILPOINT", "").partition(":")
_left = int(_count or 1)


def wanted(name: str) -> bool:
    """Whether the environment asks for a failure other than a crash."""
    return name == _name


def hit(name: str) -> None:
    """Die here if the environment asks for it."""
    global _left  # noqa: PLW0603
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
