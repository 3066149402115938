"""What is up in a directory: `.testbed/state.json`, for `status` and for the names that `down` goes through."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from keigo.errors import KeigoError
from testbed.calibrate import Overhead
from testbed.parameters import Device

HOME: Final = ".testbed"


class StateError(KeigoError):
    """The record of a testbed cannot be read or written."""


class Member(msgspec.Struct, frozen=True):
    """One device of a testbed."""

    name: str
    device: Device
    """Dilated."""
    reads: Overhead | None = None
    """What is taken off; None until it is measured."""
    writes: Overhead | None = None


class State(msgspec.Struct, frozen=True):
    """A testbed, fast to slow."""

    dilation: float
    members: tuple[Member, ...]
    made_directory: bool
    """Whether `up` made the directory itself."""
    config: str | None = None
    """What `up` wrote to devices.yaml; None where one was there."""


def _file(directory: Path) -> Path:
    return directory / HOME / "state.json"


def save(directory: Path, state: State) -> None:
    """Write the record in one piece. Raises StateError."""
    path = _file(directory)
    fresh = path.with_suffix(".new")
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
        fresh.rename(path)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error


def load(directory: Path) -> State | None:
    """The record of a testbed; None where there is none. Raises StateError."""
    path = _file(directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StateError(f"{path}: is not a testbed's record: {error}") from error
