"""Start a volume's daemon and hear whether it mounted.

`keigo mount` starts `keigo mount --foreground --ready-fd N` as a session of its own, below a keeper (`keeper.py`), and
waits for one line on the pipe: `ok` with notes, or `error` with the reason. A daemon that dies without a word is an
error too.
"""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from keigo.capabilities import keep_only_used
from keigo.config import Config, ConfigError, load, parse
from keigo.errors import KeigoError
from keigo.keeper import BEFORE, DEVICES, Link, parse_kept
from keigo.tiers.directories import shown

if TYPE_CHECKING:
    from keigo.tiers.scan import Finding


__all__ = ["Link", "Ready", "become_keeper", "config_left", "default_log_file", "parse_kept", "serve", "start"]


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


def _command(arguments: Sequence[str], *, keeper: bool) -> list[str]:
    return [sys.executable, "-m", "keigo.keeper" if keeper else "keigo", *arguments]


def become_keeper(arguments: Sequence[str]) -> NoReturn:
    """Go on as the keeper of `keigo ARGUMENTS`, in this process."""
    sys.stderr.flush()
    os.execv(sys.executable, _command(arguments, keeper=True))  # noqa: S606


def start(arguments: Sequence[str], log_file: Path, *, keeper: bool, pid_file: Path | None = None) -> Ready:
    """Start a daemon with `keigo ARGUMENTS` and wait until it has mounted or failed.

    `pid_file` then says which process to watch: the keeper, or the daemon without one. Raises OSError where it cannot
    be written.
    """
    try:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return Ready(f"{log_file}: {error.strerror}", [])
    told, tell = os.pipe()
    try:
        process = subprocess.Popen(
            _command([*arguments, "--ready-fd", str(tell)], keeper=keeper),
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
    ready = msgspec.json.decode(said, type=Ready)
    if ready.error is None and pid_file is not None:
        pid_file.write_text(f"{process.pid}\n")
    return ready


def config_left(devices: Path, kept: Mapping[str, int]) -> Config:
    """The devices.yaml for a daemon that takes over: as it was, unless a command was changing it. Raises ConfigError.

    Who edits it must not lose the mount by a daemon that dies just then: `keigo restart` looks at what is new first.
    """
    source = Path(os.path.abspath(devices))
    if DEVICES not in kept:
        return load(source)
    was = parse(source, os.pread(kept[DEVICES], 1 << 20, 0))
    try:
        found = load(source)
    except ConfigError as error:
        why = str(error)
    else:
        if found == was or BEFORE in kept:  # the command has moved what was on a tier, or written what it has looked at
            return found
        why = f"{source}: has been changed, and is used after keigo restart"
    sys.stderr.write(f"{why}; going on with what it said before\n")
    return was


def _note(finding: Finding) -> str:
    done = "repaired" if finding.repaired else "look at it"
    return f"{shown(finding.path)}: {finding.problem}: {finding.detail} ({done})"


def serve(
    config: Config,
    directory: Path,
    *,
    driver: str,
    policy: str | None,
    ready_fd: int | None,
    debug: bool,
    link: Link | None = None,
    kept: Mapping[str, int] | None = None,
) -> None:
    """Be the daemon: mount, or take over the mount of which `kept` was kept, and serve until unmounted.

    Raises KeigoError where there is no `ready_fd` to tell.
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.umask(0)
    keep_only_used()

    def tell(ready: Ready) -> None:
        if ready_fd is not None:
            os.write(ready_fd, msgspec.json.encode(ready))
            os.close(ready_fd)

    def mounted(findings: list[Finding]) -> None:
        notes = [*service.notes, *(_note(finding) for finding in findings)]
        if ready_fd is None:
            for note in notes:
                sys.stderr.write(f"{note}\n")
            sys.stderr.write(f"mounted {directory}; interrupt or umount to end\n" if kept is None else "")
        tell(Ready(None, notes[:20]))

    from keigo.serving.service import Service  # who only starts a daemon need not load it: a third of the time of that

    service = Service(config, directory, driver=driver, policy=policy, link=link, kept=kept)
    try:
        service.run(mounted)
    except KeigoError as error:
        if ready_fd is None:
            raise
        tell(Ready(str(error), []))
        sys.exit(1)
