"""What a comparison found, as plain data and a file of JSON that is whole after each run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from workloads.compare.tools import CompareError
from workloads.compare.traffic import Moved
from workloads.runner.result import Machine, Result

FORMAT: Final = 1


class Described(msgspec.Struct, frozen=True):
    """A tier, a setup or a workload: its name, and what it is."""

    name: str
    about: str


class SetupRecord(msgspec.Struct, frozen=True):
    """A setup of the plan."""

    name: str
    about: str
    unable: str | None
    """Why it cannot run here; None where it can."""


class Run(msgspec.Struct, frozen=True):
    """One run of a workload on a setup, or why it failed."""

    workload: str
    setup: str
    repetition: int
    """From 0."""
    result: Result | None
    began: dict[str, float]
    """`load`, `run` and the steps between -> seconds after `devices` began to count."""
    devices: Moved | None
    """None where the devices of the tiers do not count, or not each for itself."""
    error: str | None


class Comparison(msgspec.Struct, frozen=True):
    """All of it."""

    format: int
    keigo: str
    title: str
    began: str
    """ISO 8601, UTC."""
    plan: str
    """Its text."""
    fingerprint: str
    """Of what must not change while runs are added."""
    base: str
    repeats: int
    machine: Machine
    engine: str
    options: dict[str, str | int | bool]
    tiers: list[Described]
    setups: list[SetupRecord]
    workloads: list[Described]
    runs: list[Run]


def save(found: Comparison, path: Path) -> None:
    """Write the file in one piece: after a crash it is what it was before, or this. Raises CompareError."""
    fresh = path.with_name(f"{path.name}.part")
    try:
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(found) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise CompareError(f"{path}: {error.strerror}") from error


def load(path: Path) -> Comparison:
    """Raises CompareError for a file that is no comparison."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise CompareError(f"{path}: {error.strerror}") from error


def decode(text: bytes, source: str) -> Comparison:
    """The comparison that a file holds. Raises CompareError, which names `source`."""
    try:
        found = msgspec.json.decode(text, type=Comparison)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CompareError(f"{source}: not a comparison of keigo bench: {error}") from error
    if found.format != FORMAT:
        raise CompareError(f"{source}: format {found.format} is not known to this version, which writes {FORMAT}")
    return found
