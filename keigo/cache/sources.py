"""What the cache reads from: which files of a volume it may have copies of, and what each is at its home."""

from __future__ import annotations

import os

from keigo.cache.shadow import Home
from keigo.lsm.roles import IMMUTABLE
from keigo.tiers.catalog import ROOT
from keigo.tiers.tier import Tier
from keigo.tiers.volume import Volume


def source_tier(volume: Volume, tier: Tier, file: int) -> Tier | None:
    """The home of a file that a cache on `tier` may have; None: it may not. Takes `Volume.lock`."""
    with volume.lock:
        record = volume.catalog.file(file)
        if record is None or record.special or record.role not in IMMUTABLE or not record.links:
            return None
        home = volume.tier_of(record)
        known = volume.open_files.by_id.get(file)
        if home.index <= tier.index or (known is not None and known.writers):
            return None
        return home


def home_of(volume: Volume, file: int) -> Home | None:
    """What a file is on its device, now; None where it is gone. Takes `Volume.lock`."""
    with volume.lock:
        try:
            return Home.of(volume.record(file).home, volume.stat_file(file))
        except OSError:
            return None


def file_at(volume: Volume, path: bytes) -> int | None:
    """The file of a path in a volume. Takes `Volume.lock`."""
    directory = ROOT
    *above, name = path.split(b"/")
    with volume.lock:
        for part in above:
            entry = volume.catalog.entry(directory, part)
            if entry is None or entry.kind != "dir":
                return None
            directory = entry.id
        entry = volume.catalog.entry(directory, name)
    return None if entry is None or entry.kind != "file" else entry.id


def source_of(volume: Volume, file: int) -> int:
    """A descriptor of a file's contents at its home. Raises OSError. `Volume.lock` is held."""
    directory, name = volume.locate(file)
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)
