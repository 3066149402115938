"""The ways to put a database on the tiers. Each says beforehand if it cannot, and takes down what it put up."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from keigo.config import POLICIES, Level
from keigo.devices.profile import profile_path
from keigo.units import format_size
from workloads.compare.hierarchy import Hierarchy, Tier, TierPlan, unmount_below
from workloads.compare.tools import CompareError, keigo, undisturbed

DRIVERS: Final = ("auto", "kernel", "pyfuse3")
_DB_PATHS: Final = ("rocksdb", "speedb")
# Its own least free space of a branch is 4 GiB, and a file whose branch is full meanwhile would stay there.
_MERGERFS: Final = "allow_other,cache.files=auto-full,category.create=ff,minfreespace=0,moveonenospc=true"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the database goes, ready."""

    directory: Path
    db_paths: tuple[tuple[str, int], ...] = ()


class Setup(Protocol):
    """A way to use a hierarchy."""

    @property
    def name(self) -> str:
        """As the report shows it; no two setups of a plan have the same."""

    def about(self, tiers: Sequence[TierPlan]) -> str:
        """What it is, for a reader who knows the tiers."""

    def unable(self, tiers: Sequence[TierPlan], engine: str) -> str | None:
        """Why it cannot run on these tiers with this engine; None where it can."""

    def up(self, hierarchy: Hierarchy) -> AbstractContextManager[Place]:
        """An empty place for a database, for as long as the context lasts. Raises CompareError."""


@dataclass(frozen=True, slots=True)
class OneTier:
    """Everything on one tier, without any layer between."""

    name: str
    tier: int
    """Its number; -1: the slowest."""

    def about(self, tiers: Sequence[TierPlan]) -> str:
        """See Setup."""
        what = {0: ": the upper bound", len(tiers) - 1: ": the lower bound"}.get(self.tier % len(tiers), "")
        return f"everything on {tiers[self.tier].name}, however large it grows{what}"

    def unable(self, tiers: Sequence[TierPlan], engine: str) -> str | None:  # noqa: ARG002
        """See Setup."""
        return None

    @contextmanager
    def up(self, hierarchy: Hierarchy) -> Iterator[Place]:
        """See Setup."""
        yield Place(made(hierarchy.tiers[self.tier], "db"))


@dataclass(frozen=True, slots=True)
class Plain:
    """A directory of the machine that is on no tier."""

    name: str
    path: Path

    def about(self, tiers: Sequence[TierPlan]) -> str:  # noqa: ARG002
        """See Setup."""
        return f"everything in a plain directory in {self.path}, which is on no tier"

    def unable(self, tiers: Sequence[TierPlan], engine: str) -> str | None:  # noqa: ARG002
        """See Setup."""
        return None if self.path.is_dir() else f"{self.path}: no such directory"

    @contextmanager
    def up(self, hierarchy: Hierarchy) -> Iterator[Place]:
        """See Setup."""
        directory = self.path / hierarchy.scratch
        try:
            shutil.rmtree(directory, ignore_errors=True)  # of a comparison that was killed
            directory.mkdir()
        except OSError as error:
            raise CompareError(f"{directory}: {error.strerror}") from error
        try:
            yield Place(directory)
        finally:
            shutil.rmtree(directory)


@dataclass(frozen=True, slots=True)
class DbPaths:
    """RocksDB's own tiering."""

    name: str
    targets: Mapping[str, int] = field(default_factory=dict)
    """Tier -> target size in bytes, where it is not the tier's capacity."""
    share: float = 1.0
    """Of each capacity that its target is; RocksDB goes beyond targets while compactions are behind."""

    def about(self, tiers: Sequence[TierPlan]) -> str:
        """See Setup."""
        sizes = ", ".join(f"{tier.name} {format_size(size)}" for tier, size in self._sized(tiers[:-1]))
        return f"db_paths with target sizes {sizes}, {tiers[-1].name} the rest; WAL and MANIFEST on {tiers[0].name}"

    def unable(self, tiers: Sequence[TierPlan], engine: str) -> str | None:
        """See Setup."""
        if engine not in _DB_PATHS:
            return f"{engine} has no db_paths"
        sizeless = [tier.name for tier in tiers[:-1] if self._size(tier) is None]
        return f"no target size: give tier {sizeless[0]} a capacity" if sizeless else None

    def _size(self, tier: Tier | TierPlan) -> int | None:
        size = self.targets.get(tier.name)
        return size if size is not None or tier.capacity is None else int(self.share * tier.capacity)

    def _sized(self, tiers: Sequence[TierPlan]) -> list[tuple[TierPlan, int]]:
        return [(tier, size) for tier in tiers if (size := self._size(tier)) is not None]

    @contextmanager
    def up(self, hierarchy: Hierarchy) -> Iterator[Place]:
        """See Setup."""
        # What does not fit anywhere else goes to the last path whatever its target; 1 TiB says that it all may.
        paths = [(str(made(tier, "tables")), self._size(tier) or 1 << 40) for tier in hierarchy.tiers[:-1]]
        paths.append((str(made(hierarchy.slowest, "tables")), 1 << 40))
        yield Place(made(hierarchy.fastest, "db"), tuple(paths))


@dataclass(frozen=True, slots=True)
class Mergerfs:
    """A pool of all tiers, where a new file goes to the first tier with room."""

    name: str

    def about(self, tiers: Sequence[TierPlan]) -> str:
        """See Setup."""
        return f"mergerfs over {', '.join(tier.name for tier in tiers)}; a new file goes to the first with room"

    def unable(self, tiers: Sequence[TierPlan], engine: str) -> str | None:  # noqa: ARG002
        """See Setup."""
        return None if shutil.which("mergerfs") else "mergerfs is not installed (Debian: mergerfs)"

    @contextmanager
    def up(self, hierarchy: Hierarchy) -> Iterator[Place]:
        """See Setup."""
        mount = made(hierarchy.slowest, "mount")
        branches = ":".join(_branch(tier, made(tier, "branch")) for tier in hierarchy.tiers)
        _mount(["mergerfs", "-o", _MERGERFS, branches, str(mount)], mount)
        try:
            yield Place(mount)
        finally:
            unmount_below(hierarchy.slowest.directory)


def _branch(tier: Tier, path: Path) -> str:
    """A branch that takes no new file once its tier's capacity is used."""
    if tier.capacity is None:
        return f"{path}=RW"
    free = shutil.disk_usage(path).free
    return f"{path}=RW,{max(0, free - tier.capacity) >> 10}K"


def _mount(command: list[str], mount: Path) -> None:
    """Run a mount helper, which leaves a daemon behind: its output is not waited for."""
    with undisturbed():
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, start_new_session=True
        )
    if done.returncode != 0 or not mount.is_mount():
        raise CompareError(f"{command[0]}: did not mount {mount}: exit {done.returncode}")


@dataclass(frozen=True, slots=True)
class Keigo:
    """Keigo over the hierarchy, the slowest tier in place."""

    name: str
    policy: str
    driver: str = "auto"
    cache: bool = False
    levels: Mapping[str, tuple[Level, ...]] | None = None
    """Tier -> levels, for the policy of that name; None: the policy's own."""
    profile: Path | None = None
    """A profile of the tiers' devices, for `cost`; None: it goes by their order."""

    def about(self, tiers: Sequence[TierPlan]) -> str:
        """See Setup."""
        levels = "" if self.levels is None else f", {json.dumps({t: list(ls) for t, ls in self.levels.items()})}"
        cache = ", with the cache" if self.cache else ""
        names = ", ".join(tier.name for tier in tiers)
        profile = "" if self.profile is None else f", profile {self.profile.name}"
        return f"Keigo over {names}, policy {self.policy}{levels}{cache}{profile}, driver {self.driver}"

    def unable(self, tiers: Sequence[TierPlan], engine: str) -> str | None:  # noqa: ARG002
        """See Setup."""
        if self.policy not in POLICIES:
            return f"this version of Keigo has no policy {self.policy} (it has {', '.join(POLICIES)})"
        if self.profile is not None and not self.profile.is_file():
            return f"{self.profile}: no such file"
        return "this version of Keigo has no cache" if self.cache else None

    @contextmanager
    def up(self, hierarchy: Hierarchy) -> Iterator[Place]:
        """See Setup."""
        mount = made(hierarchy.slowest, "db")
        config = made(hierarchy.slowest, "config") / "devices.yaml"
        config.write_text(json.dumps(self._config(hierarchy), indent=1))  # JSON is YAML
        if self.profile is not None:
            try:
                shutil.copyfile(self.profile, profile_path(config))
            except OSError as error:
                raise CompareError(f"{self.profile}: {error.strerror}") from error
        log = config.with_name("log")
        keigo("mount", mount, "-d", config, "--driver", self.driver, "--log-file", log)
        try:
            yield Place(mount)
        finally:
            keigo("umount", mount)

    def _config(self, hierarchy: Hierarchy) -> dict[str, object]:
        tiers: list[dict[str, object]] = []
        for tier in hierarchy.tiers:
            place = {"in_place": True} if tier is hierarchy.slowest else {"path": str(made(tier, "tier"))}
            limit = {} if tier.capacity is None else {"capacity": tier.capacity}
            tiers.append({"name": tier.name, **place, **limit})
        placement: dict[str, object] = {"policy": self.policy}
        if self.levels is not None:
            placement["levels"] = {tier: list(levels) for tier, levels in self.levels.items()}
        return {"volume": hierarchy.scratch, "tiers": tiers, "placement": placement}


def made(tier: Tier, name: str) -> Path:
    """A new directory on a tier. Raises CompareError."""
    path = tier.directory / name
    try:
        path.mkdir(mode=0o755)
    except OSError as error:
        raise CompareError(f"{path}: {error.strerror}") from error
    return path
