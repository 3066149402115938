"""`keigo tier` on a live mount: devices.yaml is changed, and the next daemon takes the mount over with other tiers.

All that the next daemon would refuse is refused before, while nothing has changed. Should it fail all the same, it
puts the old devices.yaml back, whose text the keeper holds (a memfd: it survives any daemon and is never out of date),
and the daemon after it goes on as before. `kill -9` at any moment leaves one of the two texts, and either mounts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Final

from keigo import failpoints
from keigo.config import Config, ConfigError, TierConfig, parse
from keigo.control import ControlError
from keigo.devices_file import mentions, read, replace, with_tier, without_tier
from keigo.live_config import primary_of, stands_against
from keigo.policies import make_policy
from keigo.serving.leaving import refuse_room
from keigo.tiers.joining import check_joining
from keigo.tiers.opening import forget_members
from keigo.tiers.tier import TierError
from keigo.tiers.volume import Volume
from keigo.units import format_size

_MOST: Final = 1 << 20  # bytes of a devices.yaml


def check_add(
    config: Config, volume: Volume, mountpoint: Path, tier: Mapping[str, str], before: str | None, policy: str | None
) -> tuple[str, str]:
    """Look at all that could stand against a new tier. Returns the text of devices.yaml as it is, and with the tier.

    `tier` is its mapping in devices.yaml, `policy` the one that the mount was given. Raises KeigoError.
    """
    source, name = config.source, tier["name"]
    refuse_change(volume)
    text = _text_of(config, mountpoint)
    names = [found.name for found in config.tiers]
    if name in names:
        raise ControlError(f"{name}: is a tier already (tiers: {', '.join(names)})")
    if before is not None and before not in names:
        raise ControlError(f"{before}: no such tier (tiers: {', '.join(names)})")
    if before is None and not volume.primary.in_place:
        raise ControlError(
            f"{name}: cannot be the slowest: tier {volume.primary.name} is, and holds the directories; "
            f"add it --before {volume.primary.name} or a faster one"
        )
    changed = with_tier(source, text, tier, before)
    after = parse(source, changed.encode())
    make_policy(after, policy)
    joining = next(found for found in after.tiers if found.name == name)
    _check_size(joining)
    try:
        check_joining(volume, joining, mountpoint)
    except OSError as error:
        raise TierError(f"tier {name}: {joining.path}: {error.strerror}") from error
    return text, changed


def refuse_change(volume: Volume) -> None:
    """Raise ControlError where tiers cannot be changed now: another change of what is where is under way."""
    if volume.evacuation.draining:
        raise ControlError("the volume is drained: nothing leaves the data directory until it is mounted again")
    if volume.evacuation.leaving is not None:
        raise ControlError(f"tier {volume.evacuation.leaving.name} is being removed")


def _text_of(config: Config, mountpoint: Path) -> str:
    """devices.yaml, which must say what the daemon goes by."""
    text = read(config.source)
    if parse(config.source, text.encode()) != config:
        raise ControlError(
            f"{config.source}: has been changed since the daemon read it: keigo restart {mountpoint} first"
        )
    return text


def check_restart(config: Config, volume: Volume, mountpoint: Path) -> str:
    """Look at what could stand against devices.yaml as it is now, and return it. Raises KeigoError.

    The daemon goes by `config`.
    """
    text = read(config.source)
    after = parse(config.source, text.encode())
    why = stands_against(config, after)
    if why is not None:
        raise ControlError(f"{config.source}: {why}: the mount stays as it is")
    joining = [tier for tier in after.tiers if tier.name not in volume.by_name]
    for one, other in permutations(joining, 2):
        assert one.path is not None  # noqa: S101
        assert other.path is not None  # noqa: S101
        if one.path.resolve().is_relative_to(other.path.resolve()):
            raise TierError(f"tier {one.name}: {one.path} and that of tier {other.name} are one inside the other")
    for tier in joining:
        try:
            check_joining(volume, tier, mountpoint)
        except OSError as error:
            raise TierError(f"tier {tier.name}: {tier.path}: {error.strerror}") from error
        _check_size(tier)
    if after.cache is not None:
        _check_cache(volume, next(tier for tier in after.tiers if tier.name == after.cache.tier), after.cache.capacity)
    return text


def _check_cache(volume: Volume, tier: TierConfig, size: int) -> None:
    """Refuse a cache that a tier, whose size may be that of its device, has no room for."""
    known = volume.by_name.get(tier.name)
    device = os.statvfs(tier.path) if known is None and tier.path is not None else None
    whole = device.f_blocks * device.f_frsize if device is not None else 0 if known is None else known.device_size
    capacity = tier.capacity if tier.capacity is not None else whole
    if size + tier.reserve_bytes(capacity) >= capacity:
        raise TierError(f"tier {tier.name}: a cache of {format_size(size)} leaves no room for files")


def check_remove(config: Config, volume: Volume, mountpoint: Path, name: str) -> None:
    """Look at all that could stand against taking a tier out, but for open files. Raises KeigoError."""
    source = config.source
    refuse_change(volume)
    if name not in volume.by_name:
        raise ControlError(f"{name}: no such tier (tiers: {', '.join(volume.by_name)})")
    tier = volume.by_name[name]
    if tier is volume.primary:
        line = next(found.line for found in config.tiers if found.name == name)
        what = "is in place" if tier.in_place else "is the slowest, and holds the directories"
        raise ControlError(f"{source}:{line}: tier {name} {what}: it cannot be removed")
    text = _text_of(config, mountpoint)
    for line, key in mentions(text, name):
        raise ControlError(f"{source}:{line}: {key}: names tier {name}: change that, umount, and mount again first")
    pinned = next((pattern for pattern, on in volume.pins.all().items() if on == name), None)
    if pinned is not None:
        raise ControlError(f"{pinned}: is pinned to tier {name}: keigo unpin {mountpoint} '{pinned}' first")
    refuse_room(volume, tier)


def text_without(config: Config, mountpoint: Path, name: str, policy: str | None) -> tuple[str, str]:
    """The text of devices.yaml as it is, and without a tier; `policy` is that of the mount. Raises KeigoError."""
    text = _text_of(config, mountpoint)
    changed = without_tier(config.source, text, name)
    make_policy(parse(config.source, changed.encode()), policy)
    return text, changed


def _check_size(tier: TierConfig) -> None:
    assert tier.path is not None  # noqa: S101
    try:
        device = os.statvfs(tier.path)
    except OSError as error:
        raise TierError(f"tier {tier.name}: {tier.path}: {error.strerror}") from error
    size = device.f_blocks * device.f_frsize
    if tier.capacity is not None and tier.capacity > size:
        text = f"capacity: {format_size(tier.capacity)} is above the device's {format_size(size)}"
        raise TierError(f"tier {tier.name}: {text}")
    if isinstance(tier.reserve, int) and tier.reserve >= size:
        text = f"reserve: {format_size(tier.reserve)} leaves nothing of the device's {format_size(size)}"
        raise TierError(f"tier {tier.name}: {text}")


def hold(text: str) -> int:
    """A descriptor of a text in memory, for the keeper. Raises OSError."""
    fd = os.memfd_create("keigo-devices", os.MFD_CLOEXEC)
    os.write(fd, text.encode())
    return fd


def write(source: Path, text: str) -> None:
    """Put the changed devices.yaml in place. Raises ControlError with the old one as it was."""
    failpoints.hit("tier.kept")
    try:
        replace(source, text)
    except OSError as error:
        raise ControlError(f"{source}: cannot be changed: {error.strerror}") from error
    failpoints.hit("tier.written")


def put_back(source: Path, held: int, roots: Mapping[str, int]) -> None:
    """Put the devices.yaml that was held in place of one with which no daemon came up.

    `roots` are descriptors of the tiers' roots. A tier that is only in the newer text has no files: nobody has served
    it. It is no member any more. Raises OSError, ConfigError.
    """
    text = os.pread(held, _MOST, 0).decode()
    config = parse(source, text.encode())
    primary = primary_of(config)
    if primary.name not in roots:
        raise ConfigError(f"{source}: tier {primary.name}: its root was not kept")
    forget_members(roots[primary.name], {tier.name for tier in config.tiers})
    replace(source, text)
