"""The keeper of a mount: a small process that starts the daemon, and another one when it dies.

    python -m keigo.keeper ARGUMENTS    runs `keigo ARGUMENTS --keeper-fd N`, and after a death `... --kept NAME=FD,...`

A FUSE mount lives as long as somebody has its /dev/fuse open. The daemon gives that, its table of handles, the tiers'
roots and the control socket to the keeper as soon as it has mounted; so when it dies (SIGKILL, a crash, `keigo
restart`) the kernel's requests wait, commands wait in the socket's queue, and the next daemon goes on with all of it.

The keeper ends when a daemon ends by itself, when one dies before it has mounted, or when ten in a row die without
serving, or crash as soon as they serve (over the same request, perhaps, which comes again): then the mount is dead, as
without a keeper. Its own death ends nothing.

It imports nothing of Keigo's and next to nothing else: it must be small, and must not crash.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

_MOST_FDS: Final = 128
_LINE_MAX: Final = 1 << 14
_WAITS: Final = (0.0, 0.1, 0.3, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0)
"""Seconds before each daemon after one that died without serving."""
_CALM: Final = 5.0
"""Seconds that a daemon must have served for its crash to be a new one."""
AGAIN: Final = 75
"""Exit status of a daemon that asks for its successor (EX_TEMPFAIL)."""
SERVING: Final = b"serving"
DEVICES: Final = "devices"
"""Name, among what is kept, of the text of the devices.yaml that the daemon works with."""
BEFORE: Final = "before"
"""Likewise, of the devices.yaml before a change of tiers."""


class Link:
    """The daemon's end: tells the keeper what to keep. Raises OSError where the keeper is gone."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)

    def keep(self, kept: Mapping[str, int]) -> None:
        """Give descriptors to the keeper, by name, in place of all that it has."""
        names = ",".join(kept).encode()
        descriptors = array.array("i", kept.values())
        self._socket.sendmsg([names], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])

    def serving(self) -> None:
        """Tell that requests are answered."""
        self._socket.send(SERVING)

    def is_there(self) -> bool:
        """Whether the keeper lives."""
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        return not ready.poll(0)  # it never says anything: what can be read is the end


def parse_kept(text: str) -> dict[str, int]:
    """What `--kept` says: name -> descriptor, from now on not for the daemon's own children. Raises ValueError."""
    kept = {name: int(number) for name, _, number in (part.rpartition("=") for part in text.split(","))}
    for number in kept.values():
        os.set_inheritable(number, False)
    return kept


class Keeper:
    """See the module's docstring."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._kept: dict[str, int] = {}
        self._failures = 0
        self._served_at: float | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None
        """A signal that no daemon has been given yet."""
        self._ready: list[int] = []
        if "--ready-fd" in arguments:
            self._ready = [int(arguments[arguments.index("--ready-fd") + 1])]

    def run(self) -> int:
        """Keep a mount until it ends; returns an exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        while True:
            status = self._run_daemon()
            if status == 0 or not self._kept:
                return status if status >= 0 else 128 - status
            if self._has_served(status):
                self._failures = 0
            if self._failures >= len(_WAITS):
                self._say("the last daemons died before they served, or at once; giving up: the mount is dead")
                return 1
            time.sleep(_WAITS[self._failures])
            self._failures += 1

    def _has_served(self, status: int) -> bool:
        """Whether a daemon that ended so was of use: it was ended by somebody, or not at once."""
        if self._served_at is None:
            return False
        return status in (-signal.SIGKILL, AGAIN) or time.monotonic() - self._served_at >= _CALM

    def _forward(self, number: int, _frame: object) -> None:
        self._asked = number
        self._pass_on()

    def _pass_on(self) -> None:
        """Give the daemon the signal. One that takes a mount over gets it when it serves: it would die of it before."""
        if self._asked is None or self._daemon is None or self._daemon.poll() is not None:
            return
        if self._kept and self._served_at is None:
            return
        number, self._asked = self._asked, None
        self._daemon.send_signal(number)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"keeper: {text}\n")
        sys.stderr.flush()

    def _run_daemon(self) -> int:
        self._served_at = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [*self._arguments, "--keeper-fd", str(theirs.fileno())]
        given = [theirs.fileno(), *self._kept.values()]
        if self._kept:
            arguments += ["--kept", ",".join(f"{name}={number}" for name, number in self._kept.items())]
        else:
            given += self._ready
        environment = dict(os.environ)
        if self._kept:
            environment.pop("KEIGO_FAILPOINT", None)  # a crash that a test asks for happens once
        # A session of its own: an interrupt from the terminal comes from here, once.
        self._daemon = subprocess.Popen(
            [sys.executable, "-m", "keigo", *arguments], pass_fds=given, start_new_session=True, env=environment
        )
        self._pass_on()
        theirs.close()
        for number in self._ready:  # whoever waits at the other end waits for the daemon's death, too
            os.close(number)
        self._ready = []
        with ours:
            while self._heard(ours):
                pass
        status = self._daemon.wait()
        if status != 0 and self._kept:
            why = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            self._say(f"daemon {self._daemon.pid} {why}; starting another")
        return status

    def _heard(self, link: socket.socket) -> bool:
        """Take one message of the daemon's; False when it is gone."""
        try:
            said, descriptors, _, _ = socket.recv_fds(link, _LINE_MAX, _MOST_FDS)
        except OSError:
            return False
        if not said:
            return False
        if said == SERVING:
            self._served_at = time.monotonic()
            self._pass_on()
        else:
            before, self._kept = self._kept, dict(zip(said.decode().split(","), descriptors, strict=True))
            for number in before.values():
                os.close(number)
        return True


def main() -> None:
    """Be the keeper of `keigo ARGUMENTS`."""
    sys.exit(Keeper(sys.argv[1:]).run())


if __name__ == "__main__":
    main()
