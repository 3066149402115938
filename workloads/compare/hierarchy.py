"""The tiers that all setups share, and what runs leave on them.

Everything is done in a directory `keigo-bench-ID` on each tier, where ID follows from the plan's place: what a killed
comparison left there, mounts included, goes when the next one begins.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keigo import mounts
from keigo.units import format_size
from workloads.compare.tools import ROOT, CompareError, keigo, module, run, undisturbed

SCRATCH: Final = "keigo-bench-"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TierPlan:
    """A tier as the plan names it."""

    name: str
    path: Path | None
    """A directory on its device; None: the testbed's device of that name."""
    capacity: int | None
    """Bytes that setups with several tiers may use of it; None: the size of its device."""


@dataclass(frozen=True, slots=True)
class TestbedPlan:
    """The emulated devices to bring up for the time of the comparison."""

    __test__ = False  # no class of tests, whatever pytest thinks of its name

    directory: Path | None
    dilate: float
    sizes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier that can be used now."""

    name: str
    directory: Path
    """Ours alone; empty between runs."""
    capacity: int | None

    @property
    def about(self) -> str:
        """What it is, for the report."""
        found = os.statvfs(self.directory)
        size = format_size(found.f_blocks * found.f_frsize)
        limit = "" if self.capacity is None else f"; {format_size(self.capacity)} of it for setups with several tiers"
        mount = next((m for m in reversed(mounts.mounts()) if _holds(m.path, self.directory)), None)
        kind = "" if mount is None else f"{mount.fstype} on {mount.source}, "
        return f"{kind}{size}{limit}"


def _holds(mount: str, path: Path) -> bool:
    return os.path.ismount(mount) and path.is_relative_to(mount) and os.stat(mount).st_dev == path.stat().st_dev


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """All tiers, fast to slow."""

    tiers: tuple[Tier, ...]
    scratch: str
    """A name for directories and Keigo volumes that no other comparison uses."""

    @property
    def fastest(self) -> Tier:
        """The first."""
        return self.tiers[0]

    @property
    def slowest(self) -> Tier:
        """The last."""
        return self.tiers[-1]

    def clear(self) -> None:
        """Unmount and remove all that a run left. Raises CompareError, naming what stays."""
        with undisturbed():
            for tier in reversed(self.tiers):
                unmount_below(tier.directory)
            for tier in self.tiers:
                for path in tier.directory.iterdir():
                    remove(path)


def identity(source: Path) -> str:
    """Eight letters for a plan's place."""
    return hashlib.sha256(os.fsencode(source)).hexdigest()[:8]


@contextmanager
def prepared(tiers: tuple[TierPlan, ...], testbed: TestbedPlan | None, source: Path, say: Say) -> Iterator[Hierarchy]:
    """The hierarchy of the plan `source` for as long as the context lasts; `say` gets a line for what takes long.

    Everything of it is gone at the end, whatever happened. Raises CompareError.
    """
    name = identity(source)
    with ExitStack() as stack:
        places = {tier.name: tier.path for tier in tiers}
        if testbed is not None:
            where = testbed.directory or Path(f"/var/tmp/{SCRATCH}{name}")  # noqa: S108
            names = [tier.name for tier in tiers]
            stack.enter_context(_testbed(where, testbed, names, say))
            places = {tier: where / tier for tier in names}
        found = []
        for tier in tiers:
            place = places[tier.name]
            assert place is not None  # noqa: S101  # the plan has a path or a testbed
            found.append(Tier(tier.name, stack.enter_context(_scratch(place, name)), tier.capacity))
        hierarchy = Hierarchy(tuple(found), f"{SCRATCH}{name}")
        hierarchy.clear()
        stack.callback(hierarchy.clear)
        yield hierarchy


@contextmanager
def _testbed(where: Path, testbed: TestbedPlan, names: list[str], say: Say) -> Iterator[None]:
    if not (ROOT / "testbed").is_dir():
        raise CompareError(f"testbed: is in a checkout of Keigo only, not in {ROOT}")
    sizes = [part for name, size in testbed.sizes for part in ("--size", f"{name}={size}")]
    down = module("testbed", "down", where)
    if testbed.directory is None and where.exists():
        unmount_below(where)  # a mount of a killed comparison would hold its devices
        run(down)
    say(f"bringing up {', '.join(names)}, {testbed.dilate:g} times slower than the real devices")
    run(module("testbed", "up", where, "--devices", ",".join(names), "--dilate", str(testbed.dilate), *sizes))
    try:
        yield
    finally:
        run(down)


@contextmanager
def _scratch(place: Path, name: str) -> Iterator[Path]:
    """A directory of ours on a tier, for this process alone."""
    if not place.is_dir():
        raise CompareError(f"{place}: no such directory")
    if (place / ".keigo").exists():
        raise CompareError(f"{place}: is a tier of a Keigo volume, which would find our files; name one beside it")
    scratch = place.resolve() / f"{SCRATCH}{name}"
    try:
        scratch.mkdir(mode=0o700, exist_ok=True)
        held = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CompareError(f"{scratch}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompareError(
                f"{scratch}: another comparison by this plan is running, or two tiers share it"
            ) from None
        try:
            yield scratch
        finally:
            remove(scratch)
    finally:
        os.close(held)


def unmount_below(directory: Path) -> None:
    """Unmount what is mounted below a directory of ours, Keigo's by its own command. Raises CompareError."""
    for mount in reversed(mounts.mounts_below(str(directory))):
        if mount.volume is not None:
            keigo("umount", mount.path)
            continue
        try:
            mounts.unmount(mount.path)
        except OSError as error:
            users = ", ".join(map(str, mounts.users_of(mount)[:3]))
            raise CompareError(f"{mount.path}: umount: {error.strerror}{users and f': {users}'}") from error


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it, but never through a mount. Raises CompareError."""
    inside = mounts.mounts_below(str(path))
    if inside or mounts.mount_at(str(path)) is not None:
        raise CompareError(f"{inside[0].path if inside else path}: is mounted")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise CompareError(f"{error.filename or path}: {error.strerror}") from error
