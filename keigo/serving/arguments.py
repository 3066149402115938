"""What requests on the control socket name: texts, tiers, files."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from keigo.control import ControlError
from keigo.lsm.roles import Role
from keigo.tiers.directories import shown
from keigo.tiers.volume import Volume


def text_of(request: Mapping[str, Any], key: str) -> str:
    """A text that a request must have. Raises ControlError."""
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise ControlError(f"request without {key}")
    return value


def tier_of(request: Mapping[str, Any], volume: Volume) -> str:
    """The name of a tier to which files are to come. Raises ControlError."""
    name = text_of(request, "tier")
    if name not in volume.by_name:
        raise ControlError(f"{name}: no such tier (tiers: {', '.join(volume.by_name)})")
    leaving = volume.evacuation.leaving
    if leaving is not None and leaving.name == name:
        raise ControlError(f"tier {name} is being removed")
    return name


def matching(volume: Volume, pattern: str) -> list[tuple[int, str, Role]]:
    """Files with a name that matches: id, the first such name, role."""
    with volume.lock:
        found = []
        for file, record in volume.catalog.files():
            paths = (shown(volume.path(*link)) for link in record.links)
            path = next((path for path in paths if fnmatch.fnmatchcase(path, pattern)), None)
            if path is not None and not record.special:
                found.append((file, path, record.role))
        return found
