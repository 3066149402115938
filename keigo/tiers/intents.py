"""Intents: what must be finished after a crash, written durably before it is begun.

An intent is a list of steps, each on one tier and guarded by the identity of what it acts on, so that a step which
was done already, or whose object is gone, is skipped: replaying a list any number of times gives the same trees.
Whatever changes names on two tiers, or makes a second copy, does it under an intent. One file per intent in
`.keigo/intent/` of the primary tier; a file appears, changes and goes atomically.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from keigo import failpoints
from keigo.tiers.fds import RENAME_EXCHANGE, Fd, lstat_or_none, open_dir, open_path, read_file, renameat2, write_durably

INTENT: Final = b"intent"
Op = Literal["rename", "exchange", "unlink"]
logger = logging.getLogger(__name__)


class Ident(msgspec.Struct, frozen=True, array_like=True):
    """Which object a name stood for. Inode numbers are reused at once, so size and time of a file count too."""

    ino: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Ident:
        """Identity of an object; of a directory only the inode, for its size and time change with its contents."""
        if stat.S_ISDIR(status.st_mode):
            return cls(status.st_ino, 0, 0)
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Step(msgspec.Struct):
    """One idempotent change of one tier's tree: done only while `path` is the object `ident`."""

    tier: str
    op: Op
    path: bytes
    ident: Ident
    target: bytes = b""


class Intent(msgspec.Struct):
    """What is under way, for people, and its steps."""

    what: str
    steps: list[Step]


class IntentError(Exception):
    """An intent cannot be read or carried out; the text says which and why."""


def run(step: Step, roots: Mapping[str, Fd], *, live: bool = False) -> None:
    """Carry out one step if it has not been yet. Raises OSError.

    `live` says that no name has changed since the step was made: the inode then tells enough, and a file that is
    written meanwhile (its size and time change) is still the same.
    """
    root = roots[step.tier]
    try:
        directory, name = open_path(root, step.path)
    except FileNotFoundError:
        return
    found = lstat_or_none(name, directory.fd)
    if found is None or (found.st_ino != step.ident.ino if live else Ident.of(found) != step.ident):
        return
    if step.op == "unlink":
        os.unlink(name, dir_fd=directory.fd)
        return
    target_dir, target = open_path(root, step.target)
    renameat2(directory.fd, name, target_dir.fd, target, RENAME_EXCHANGE if step.op == "exchange" else 0)


def sync(steps: Sequence[Step], roots: Mapping[str, Fd]) -> None:
    """Make the steps' changes durable: fsync each directory in which one took place."""
    seen: set[tuple[str, bytes]] = set()
    for step in steps:
        for path in (step.path, step.target):
            above = path.rpartition(b"/")[0]
            if not path or (step.tier, above) in seen:
                continue
            seen.add((step.tier, above))
            try:
                directory, _ = open_path(roots[step.tier], path)
            except FileNotFoundError:
                continue  # it moved with a later step, which is synced by its own parent
            os.fsync(directory.fd)


@dataclass(slots=True)
class _Left:
    """See `IntentLog.leave`."""

    intent: Intent
    durable: bool
    done: bool


class IntentLog:
    """The intents of a volume. Calls for different intents may come from several threads.

    `leave` and `finish` are called under `Volume.lock`, but for what `begin` leaves: one store into the table, of a key
    that only its own thread uses.

    `finish` syncs anew what an earlier fsync failed for. That failure was told; a journal that could not be written
    does not come back by itself (ext4, xfs), so that the second one succeeds only where nothing was lost.
    """

    def __init__(self, state: Fd) -> None:
        self._left: dict[str, _Left] = {}
        try:
            os.mkdir(INTENT, 0o700, dir_fd=state.fd)
            os.fsync(state.fd)
        except FileExistsError:
            pass
        self._dir = open_dir(INTENT, state.fd)

    def write(self, key: str, intent: Intent) -> None:
        """Make an intent durable, replacing the one of the same key. Raises OSError; either may then be written."""
        write_durably(self._dir.fd, key.encode(), msgspec.json.encode(intent))

    def begin(self, key: str, intent: Intent) -> None:
        """Make the first intent of a key durable. Raises OSError; the next mount must then find none."""
        try:
            self.write(key, intent)
        except OSError:
            try:
                self.remove(key)
            except OSError:
                self.leave(key, Intent(intent.what, []), durable=True, done=True)
            raise

    def remove(self, key: str) -> None:
        """Forget an intent, durably: nothing may replay it once its names can be used for something else."""
        try:
            os.unlink(key.encode(), dir_fd=self._dir.fd)
        except FileNotFoundError:
            return
        os.fsync(self._dir.fd)

    def leave(self, key: str, intent: Intent, *, durable: bool, done: bool = False) -> None:
        """Note what an error has left undone.

        `durable`: whether the intent is known to be written as it is. `done`: whether its steps were all carried out,
        and only not made durable; they are not run again, for what they made may have been undone since.
        """
        self._left[key] = _Left(intent, durable, done)

    def finish(self, roots: Mapping[str, Fd], needed: str = "") -> None:
        """Do now what was left, while its paths are still true. Raises OSError where `needed`, a key, still cannot be.

        The others' errors are told no second time: they stay written, for the next attempt or the next mount.
        """
        for key, left in list(self._left.items()):
            try:
                if not left.durable:
                    self.write(key, left.intent)
                    left.durable = True
                if not left.done:
                    for step in left.intent.steps:
                        run(step, roots)
                sync(left.intent.steps, roots)
                self.remove(key)
                del self._left[key]
            except OSError:
                if key == needed:
                    raise

    def holds(self, key: str, intent: Intent) -> bool:
        """Whether this is what is written under a key. Raises OSError."""
        try:
            return read_file(self._dir.fd, key.encode()) == msgspec.json.encode(intent)
        except FileNotFoundError:
            return False

    def pending(self) -> dict[str, Intent]:
        """All intents, by key. Raises IntentError for one that cannot be read."""
        found = {}
        for key in sorted(os.listdir(self._dir.fd)):
            if key.endswith(".tmp"):
                os.unlink(key, dir_fd=self._dir.fd)
                continue
            try:
                found[key] = msgspec.json.decode(read_file(self._dir.fd, key.encode()), type=Intent)
            except (OSError, ValueError) as error:
                raise IntentError(f".keigo/intent/{key}: {error}") from error
        return found

    def replay(self, roots: Mapping[str, Fd]) -> list[str]:
        """Finish everything that a crash interrupted; returns what was finished, for the log.

        Raises IntentError naming the intent that cannot be finished; it stays for the next attempt.
        """
        done = []
        for key, intent in self.pending().items():
            missing = {step.tier for step in intent.steps} - roots.keys()
            if missing:
                raise IntentError(f".keigo/intent/{key}: needs tier {', '.join(sorted(missing))}, which is not there")
            try:
                for step in intent.steps:
                    run(step, roots)
                sync(intent.steps, roots)
            except OSError as error:
                raise IntentError(f".keigo/intent/{key}: {intent.what}: {error}") from error
            self.remove(key)
            done.append(intent.what)
        return done


def carry_out(log: IntentLog, key: str, intent: Intent, roots: Mapping[str, Fd]) -> OSError | None:
    """Do what an intent says, so that after a crash anywhere in it the next mount finishes it.

    Raises OSError when nothing was changed. Returns an error when all is done but not known to be durable; the
    intent then stays, for `IntentLog.finish` or the next mount, and the caller reports the error once its own tables
    are right.
    """
    log.begin(key, intent)
    failpoints.hit("rename.intent")
    done: list[Step] = []
    for step in intent.steps:
        try:
            run(step, roots, live=True)
        except OSError as error:
            if step.op == "unlink":
                # What should go is superseded already; the intent stays, and removes it at the next mount.
                logger.error("%s: %s: %s", intent.what, os.fsdecode(step.path), error)
                log.leave(key, Intent(intent.what, [step]), durable=False)
                return error
            _undo(done, roots)
            log.remove(key)
            raise
        done.append(step)
        failpoints.hit("rename.step")
    failpoints.hit("rename.steps")
    try:
        sync(intent.steps, roots)
        failpoints.hit("rename.synced")
        log.remove(key)
    except OSError as error:
        logger.error("%s: not known to be durable: %s", intent.what, error)
        log.leave(key, intent, durable=True, done=True)
        return error
    failpoints.hit("rename.done")
    return None


def _undo(done: Sequence[Step], roots: Mapping[str, Fd]) -> None:
    """Take back renames and exchanges, last first. Raises OSError with the intent left to be finished."""
    for step in reversed(done):
        back = Step(step.tier, step.op, step.target, step.ident, step.path)
        run(back, roots, live=True)
    sync(done, roots)
