"""Start a volume's daemon and hear whether it mounted.

`keigo mount` starts `keigo mount --foreground --ready-fd N` as a session of its own and waits for one line on the
pipe: `ok` with notes, or `error` with the reason. A daemon that dies without a word is an error too.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keigo.config import Config
from keigo.errors import KeigoError
from keigo.tiers.directories import shown

if TYPE_CHECKING:
    from keigo.tiers.scan import Finding


class Ready(msgspec.Struct):
    """What the daemon says once: an error, or notes on what it found at the mount."""

    error: str | None
    notes: list[str]


def default_log_file(volume: str) -> Path:
    """Where a daemon logs: /var/log/keigo for root, the user's state directory else."""
    if os.geteuid() == 0:
        return Path("/var/log/keigo") / f"{volume}.log"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "keigo" / f"{volume}.log"


def start(arguments: Sequence[str], log_file: Path) -> Ready:
    """Start a daemon with `keigo mount ARGUMENTS` and wait until it has mounted or failed."""
    try:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return Ready(f"{log_file}: {error.strerror}", [])
    told, tell = os.pipe()
    try:
        subprocess.Popen(
            [sys.executable, "-m", "keigo", "mount", *arguments, "--foreground", "--ready-fd", str(tell)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(tell,),
            start_new_session=True,
            cwd="/",
        )
    finally:
        os.close(tell)
        os.close(log)
    with os.fdopen(told, "rb") as pipe:
        said = pipe.read()
    if not said:
        return Ready(f"the daemon died before it mounted; see {log_file}", [])
    return msgspec.json.decode(said, type=Ready)


def _note(finding: Finding) -> str:
    done = "repaired" if finding.repaired else "look at it"
    return f"{shown(finding.path)}: {finding.problem}: {finding.detail} ({done})"


def serve(
    config: Config, directory: Path, *, driver: str, policy: str | None, ready_fd: int | None, debug: bool
) -> None:
    """Be the daemon: mount and serve until unmounted. Raises KeigoError where there is no `ready_fd` to tell."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0)

    def tell(ready: Ready) -> None:
        if ready_fd is not None:
            os.write(ready_fd, msgspec.json.encode(ready))
            os.close(ready_fd)

    def mounted(findings: list[Finding]) -> None:
        notes = [*service.notes, *(_note(finding) for finding in findings)]
        if ready_fd is None:
            for note in notes:
                sys.stderr.write(f"{note}\n")
            sys.stderr.write(f"mounted {directory}; interrupt or umount to end\n")
        tell(Ready(None, notes[:20]))

    from keigo.service import Service  # who only starts a daemon need not load it: a third of the time of that

    service = Service(config, directory, driver=driver, policy=policy)
    try:
        service.run(mounted)
    except KeigoError as error:
        if ready_fd is None:
            raise
        tell(Ready(str(error), []))
        sys.exit(1)
