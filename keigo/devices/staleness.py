"""Whether a profile still speaks of the devices at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from keigo.devices.identity import device_of, same_device, shown
from keigo.devices.profile import DeviceId, Profile, ProfileError, TierProfile, load_profile, profile_path

OLD: Final = timedelta(days=180)
"""Flash wears and fills up; after half a year it is worth a minute to look again."""


def remarks(profile: Profile, devices: Mapping[str, DeviceId], kernel: str, now: datetime) -> list[str]:
    """What is wrong with a profile for these tiers (name -> device), a line each; empty if nothing is.

    `kernel` is the release that runs now, `now` an aware datetime.
    """
    lines = []
    for name, device in devices.items():
        tier = profile.tier(name)
        if tier is None:
            lines.append(f"tier {name} is not in it; keigo profile measures it")
        elif not same_device(tier.device, device):
            lines.append(
                f"tier {name} was measured on another device ({shown(tier.device)}, now {shown(device)}); "
                f"these figures are not used"
            )
    tiers = [tier for tier in profile.tiers if tier.tier in devices]
    releases = sorted({_series(tier.kernel or profile.kernel) for tier in tiers} - {_series(kernel)})
    if releases:
        lines.append(f"was measured on Linux {' and '.join(releases)}, this is {_series(kernel)}")
    for date in sorted({tier.created or profile.created for tier in tiers}):
        try:
            age = now - datetime.fromisoformat(date)
        except (ValueError, TypeError, OverflowError):  # TypeError: without a time zone
            lines.append(f"{date[:40]!r} is not a date")
            continue
        if age > OLD:
            lines.append(f"was measured {age.days} days ago")
            break
    # A damaged or foreign profile may name its device by line breaks and escapes of a terminal.
    return ["".join(sign if sign.isprintable() else "?" for sign in line) for line in lines]


def _series(kernel: str) -> str:
    """6.18 of 6.18.3-amd64."""
    return ".".join(kernel.split(".")[:2])


def usable(profile: Profile, devices: Mapping[str, DeviceId]) -> dict[str, TierProfile]:
    """The parts of a profile that were measured on the devices that these tiers are on now, by tier."""
    found = {name: profile.tier(name) for name in devices}
    return {name: tier for name, tier in found.items() if tier is not None and same_device(tier.device, devices[name])}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a volume's devices at a mount."""

    path: Path
    profile: Profile | None
    tiers: Mapping[str, TierProfile]
    """Of the devices at hand only."""
    remarks: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """The remarks as lines that name the file."""
        return [f"{self.path.name}: {remark}" for remark in self.remarks]

    def facts(self) -> dict[str, object] | None:
        """Plain data for JSON; None without a profile."""
        if self.profile is None and not self.remarks:
            return None
        return {
            "path": str(self.path),
            "created": None if self.profile is None else self.profile.created,
            "tiers": list(self.tiers),
            "remarks": list(self.remarks),
        }


def examine(devices: Path, places: Mapping[str, Path], kernel: str, now: datetime) -> Known:
    """Read the profile beside a devices.yaml and hold it against the directories of its tiers, name -> path.

    Raises nothing: what cannot be read is a remark, for a volume works without a profile.
    """
    path = profile_path(devices)
    try:
        profile = load_profile(path)
    except ProfileError as error:
        return Known(path, None, {}, (str(error).removeprefix(f"{path}: "),))
    if profile is None:
        return Known(path, None, {}, ())
    found, lines = {}, []
    for name, place in places.items():
        try:
            found[name] = device_of(place)
        except OSError as error:
            lines.append(f"tier {name}: {place}: {error.strerror}")
    lines += remarks(profile, found, kernel, now)
    return Known(path, profile, usable(profile, found), tuple(lines))
