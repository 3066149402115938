"""Open a volume: take its tiers, finish what a crash interrupted, reconcile, and guard its databases.

    ROOT of the primary tier/.keigo/volume.json    the volume's id and the tiers that may hold its files

A tier that volume.json lists must be there with its own tier.json, or the volume does not open: a device that is not
mounted would look like a tier whose files are all gone.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from keigo.config import Config
from keigo.placement.policy import Policy
from keigo.tiers import adoption, orphans
from keigo.tiers.adoption import BegunLink, BegunRename
from keigo.tiers.catalog import Catalog, CatalogError
from keigo.tiers.directories import shown
from keigo.tiers.fds import O_DIR, Fd, open_dir, read_file, write_durably
from keigo.tiers.intents import IntentError, IntentLog
from keigo.tiers.pins import Pins, PinsError
from keigo.tiers.scan import LOST, Finding, reconcile
from keigo.tiers.tier import FORMAT, IDENTITY, LOST_FOUND, STATE, Tier, TierError
from keigo.tiers.volume import Volume

VOLUME: Final = b"volume.json"
log = logging.getLogger(__name__)


class Membership(msgspec.Struct):
    """Contents of volume.json."""

    format: int
    volume: str
    id: str
    tiers: list[str]


@dataclass(frozen=True, slots=True)
class Left:
    """What a daemon that died under a live mount has left to the next."""

    roots: Mapping[str, Fd]
    """Tier -> its root: one in place cannot be reached by its path, and each knows what was not written back."""
    renames: Collection[BegunRename]
    links: Collection[BegunLink]
    draining: bool
    """Whether it was being drained: no file is to leave the tier in place, and no guard to come back."""


def open_volume(
    config: Config,
    directory: Path,
    policy: Policy,
    locked: Callable[[Tier], None] = lambda _primary: None,
    *,
    apply: bool = True,
    left: Left | None = None,
) -> tuple[Volume, list[Finding]]:
    """Open the volume of `config` over `directory`, which must not be mounted yet.

    `locked` hears of the primary tier once all tiers are locked, before anything else is done; what it raises ends
    the opening. With `apply` false the trees and the catalog on the tiers stay as they are (`fsck`), but intents are
    finished all the same. With `left` the mount is there already, and so are open files. Raises TierError with one
    line for whatever stands in the way; nothing is then locked or mounted.
    """
    tiers = _open_tiers(config, directory, {} if left is None else left.roots)
    try:
        primary = next((tier for tier in tiers if tier.in_place), tiers[-1])
        locked(primary)
        _check_members(config, tiers, primary)
        intents = IntentLog(primary.state)
        for done in intents.replay({tier.name: tier.root for tier in tiers}):
            log.warning("finished after a crash: %s", done)
        for tier in tiers:
            tier.clear_incoming()
            if left is None:
                orphans.clear(tier)
        keeper = next((tier for tier in tiers if tier.name == config.catalog), primary)
        catalog = Catalog.open(keeper.state, hold=not apply, known=left is not None)
    except (IntentError, CatalogError, OSError) as error:
        raise TierError(f"volume {config.volume}: {error}") from error
    try:
        pins = Pins(primary.state, config.pins)
        volume = Volume(config.volume, tiers, catalog, intents, policy, pins)
        if left is not None:
            volume.evacuation.draining = left.draining
            adoption.settle(volume, left.renames, left.links)
        findings = reconcile(volume, apply=apply)
        if left is not None:
            adoption.adopt_orphans(volume)
        with volume.lock:
            volume.placing.follow()
    except (PinsError, OSError) as error:
        catalog.abandon()
        raise TierError(f"volume {config.volume}: {error}") from error
    return volume, findings


def _open_tiers(config: Config, directory: Path, roots: Mapping[str, Fd]) -> list[Tier]:
    tiers = []
    for index, tier_config in enumerate(config.tiers):
        path = directory if tier_config.path is None else tier_config.path
        try:
            root = roots.get(tier_config.name) or Fd(os.open(path.resolve(strict=True), O_DIR))
        except OSError as error:
            raise TierError(f"tier {tier_config.name}: {path}: {error.strerror}") from error
        tiers.append(Tier(index, tier_config, root, str(path)))
    devices = [os.fstat(tier.root.fd).st_dev for tier in tiers]
    for tier, device in zip(tiers, devices, strict=True):
        tier.sharing = tuple(other for other, its in zip(tiers, devices, strict=True) if its == device)
    for tier in tiers:
        fresh = not tier.has_state()
        if fresh and not tier.in_place and set(os.listdir(tier.root.fd)) - {"lost+found"}:
            raise TierError(f"tier {tier.name}: {tier.label}: is neither empty nor a tier of Keigo's")
    for tier in tiers:
        tier.lock()
    return tiers


def _check_members(config: Config, tiers: Sequence[Tier], primary: Tier) -> None:
    """Refuse tiers that are missing, foreign or swapped; brand those that are new."""
    known: Membership | None = None
    try:
        known = msgspec.json.decode(read_file(primary.state.fd, VOLUME), type=Membership)
        members = msgspec.structs.replace(known)
    except FileNotFoundError:
        members = Membership(FORMAT, config.volume, str(uuid.uuid4()), [])
    except (OSError, ValueError) as error:
        raise TierError(f"tier {primary.name}: {primary.label}/.keigo/volume.json: {error}") from error
    if members.format != FORMAT:
        raise TierError(f"{primary.label}/.keigo/volume.json: format {members.format}, this version knows {FORMAT}")
    if members.volume != config.volume:
        raise TierError(
            f"{primary.label}: holds volume {members.volume}, and {config.source} describes {config.volume}"
        )
    absent = set(members.tiers) - {tier.name for tier in tiers}
    if absent:
        raise TierError(
            f"{config.source}: tier {', '.join(sorted(absent))} is not listed and belongs to volume {members.volume}"
        )
    identities = [tier.identity() for tier in tiers]
    for tier, identity in zip(tiers, identities, strict=True):
        if identity is None and tier.name in members.tiers:
            raise TierError(f"tier {tier.name}: {tier.label}: its files are not there (is the device mounted?)")
        if identity is not None and identity.id != members.id:
            raise TierError(f"tier {tier.name}: {tier.label}: belongs to volume {identity.volume} ({identity.id})")
        if identity is not None and identity.tier != tier.name:
            raise TierError(f"tier {tier.name}: {tier.label}: is tier {identity.tier} of volume {identity.volume}")
    if members.tiers == [tier.name for tier in tiers] and None not in identities:
        return  # all is written: a device that is full must not keep anybody from what is on it
    # The volume's id is on the primary before a tier refers to it, so that a crash between leaves no foreign tier.
    if known is None:
        write_membership(primary, members)
    for tier, identity in zip(tiers, identities, strict=True):
        if identity is None:
            tier.brand(config.volume, members.id)
    members.tiers = [tier.name for tier in tiers]
    if members != known:  # a device that is full can be mounted, and taken over
        write_membership(primary, members)


def volume_id(primary: Tier) -> str:
    """The id of the open volume to which a primary tier belongs. Raises OSError, ValueError."""
    return members_of(primary).id


def members_of(primary: Tier) -> Membership:
    """What volume.json of an open volume says. Raises OSError, ValueError."""
    return msgspec.json.decode(read_file(primary.state.fd, VOLUME), type=Membership)


def forget_members(root: int, known: Collection[str]) -> None:
    """Take all tiers but the known ones out of volume.json below a primary tier's root; they hold no files.

    Raises OSError, ValueError.
    """
    state = open_dir(STATE, root)
    members = msgspec.json.decode(read_file(state.fd, VOLUME), type=Membership)
    if not set(members.tiers) <= set(known):
        members.tiers = [name for name in members.tiers if name in known]
        write_durably(state.fd, VOLUME, msgspec.json.encode(members))


def write_membership(primary: Tier, members: Membership) -> None:
    """Write volume.json durably. Raises OSError."""
    write_durably(primary.state.fd, VOLUME, msgspec.json.encode(members))


def dissolve(volume: Volume) -> list[str]:
    """Remove everything of Keigo's from a drained volume: mirrors, `.keigo` of every tier, the primary's last.

    Closes the volume. Returns what is left behind and where (files that were put aside), for the user. Raises
    TierError if a tier still holds a file, with nothing removed.
    """
    primary = volume.primary
    with volume.lock:
        for _, record in volume.catalog.files():
            if record.home != primary.name:
                raise TierError(f"tier {record.home}: still holds {shown(volume.path(*record.links[0]))}")
        if volume.guards.guarded:
            raise TierError("a guard is still in place")
        volume.intents.finish(volume.roots)
        volume.close_tables()
        members = msgspec.json.decode(read_file(primary.state.fd, VOLUME), type=Membership)
        members.tiers = []  # from here on no tier is missed at an open
        write_membership(primary, members)
    left = []
    for tier in sorted(volume.tiers, key=lambda t: t is primary):
        if tier is not primary:
            remove_mirrors(tier.root)
        lost = put_aside(tier)
        if lost:
            os.unlink(IDENTITY, dir_fd=tier.state.fd)
            left.append(f"{tier.label}/.keigo/lost: {lost} file(s) that were put aside")
        else:
            tier.remove_state()
        tier.close()
    return left


def put_aside(tier: Tier) -> int:
    """How many files are in `.keigo/lost` of a tier. Raises OSError."""
    try:
        lost = open_dir(LOST, tier.state.fd)
        return len(os.listdir(lost.fd))
    except FileNotFoundError:
        return 0


def remove_mirrors(root: Fd, ours: Collection[bytes] = (STATE, LOST_FOUND)) -> None:
    """Remove empty directories below a tier's root, but for `ours` in it. Raises OSError."""
    for item in list(os.scandir(root.fd)):
        if item.is_dir(follow_symlinks=False) and os.fsencode(item.name) not in ours:
            below = Fd(os.open(item.name, O_DIR, dir_fd=root.fd))
            remove_mirrors(below, ())
            if not os.listdir(below.fd):
                os.rmdir(item.name, dir_fd=root.fd)
