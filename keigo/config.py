"""devices.yaml: what it may say, and one clear line for each mistake in it.

`load` finds what can be found without looking at the machine, `check` the rest. Every error names file, line and key.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from keigo.errors import KeigoError
from keigo.units import format_size, parse_rate, parse_seconds, parse_size

POLICIES: Final = ("cost", "levels", "fill-order", "popularity", "mutant")
"""The first is the default."""
_PERIODIC: Final = ("popularity", "mutant")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_DEEPEST: Final = 6  # RocksDB's and LevelDB's default number of levels is 7
_MOST_TIERS: Final = 64  # the data path counts for so many
_CHUNK: Final = 64 << 10  # bytes of the cache's chunks
_LEAST_CHUNK: Final = 16 << 10  # below, copying them takes longer than they save
_MOST_CHUNK: Final = 4 << 20
_LIMIT: Final = 1 << 20  # bytes; a devices.yaml is a page
T = TypeVar("T")

Level = int | Literal["wal"]


class ConfigError(KeigoError):
    """A mistake in devices.yaml: one line, `FILE:LINE: key: what is wrong`.

    Without LINE where the mistake is not in the text: no such file, a mount point that cannot be one.
    """


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier as configured. `capacity` in bytes, None: the size of its device."""

    name: str
    path: Path | None
    in_place: bool
    capacity: int | None
    reserve: int | float = 0.05
    """Bytes if int, else a share of the capacity."""
    line: int = field(default=0, compare=False, repr=False)

    def reserve_bytes(self, capacity: int) -> int:
        """Bytes that placement leaves free of a capacity."""
        return self.reserve if isinstance(self.reserve, int) else int(self.reserve * capacity)


@dataclass(frozen=True, slots=True)
class PlacementConfig:
    """The policy and its options."""

    policy: str
    levels: Mapping[str, tuple[Level, ...]]
    """For `levels`: the levels of each tier by its name. The default ones with other policies."""
    period: float | None = None
    """For `popularity` and `mutant`: seconds from plan to plan; None: the policy's own."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The read cache."""

    tier: str
    capacity: int
    """Bytes, taken from the tier's capacity."""
    chunk: int
    """Bytes, a power of two."""


@dataclass(frozen=True, slots=True)
class Config:
    """A devices.yaml. `tiers` are ordered fast to slow."""

    source: Path
    volume: str
    tiers: tuple[TierConfig, ...]
    placement: PlacementConfig
    pins: Mapping[str, str]
    """Pattern -> tier name."""
    catalog: str | None
    """Tier that holds the catalog; None: the primary one."""
    copy_limit: int | None
    """Bytes per second that migrations may copy."""
    io_priority: bool = False
    """Whether background threads of databases get a lower I/O priority."""
    cache: CacheConfig | None = None
    """None: nothing is cached."""
    metrics: tuple[str, int] | None = None
    """Address and port that Prometheus may ask; None: nobody listens."""


def default_levels(tiers: Sequence[str]) -> dict[str, tuple[Level, ...]]:
    """WAL and levels 0 and 1 on the fastest tier, the rest spread evenly over the others, deeper on slower."""
    if len(tiers) == 1:
        return {tiers[0]: ("wal", *range(_DEEPEST + 1))}
    first: list[tuple[Level, ...]] = [("wal", 0, 1)]
    rest = list(range(2, _DEEPEST + 1))
    others = len(tiers) - 1
    # The slower of two takes the odd level: deeper levels are larger, and so are slower devices.
    cuts = [len(rest) * number // others for number in range(others + 1)]
    return dict(zip(tiers, [*first, *(tuple(rest[a:b]) for a, b in pairwise(cuts))], strict=True))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _mistake(where: str | Path, text: str) -> ConfigError:
    """The text may hold what stands in the file: keys with line ends, terminal escapes."""
    return ConfigError(f"{_printable(str(where))}: {' '.join(_printable(text).split())}")


class _Reader:
    """Takes values out of the parsed file, remembering where they stand."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def error(self, line: int, key: str, text: str) -> ConfigError:
        return _mistake(f"{self.source}:{line}", _join(key, text))

    def mapping(self, value: Any, line: int, key: str, known: Sequence[str]) -> CommentedMap:  # noqa: ANN401
        if not isinstance(value, CommentedMap):
            raise self.error(line, key, f"must be a mapping with {', '.join(known)}, not {_shown(value)}")
        for found in value:
            if found not in known:
                close = difflib.get_close_matches(str(found), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise self.error(line_of(value, found), _join(key, str(found)), f"unknown key ({hint})")
        return value

    def get(
        self, mapping: CommentedMap, name: str, key: str, convert: Callable[[Any], T], default: T | None = None
    ) -> T | None:
        """The value of a key, converted; its absence or null gives `default`. ValueError becomes a ConfigError."""
        if mapping.get(name) is None:
            return default
        try:
            return convert(mapping[name])
        except ValueError as error:
            raise self.error(line_of(mapping, name), _join(key, name), str(error)) from None

    def need(self, mapping: CommentedMap, name: str, key: str, line: int, convert: Callable[[Any], T]) -> T:
        found = self.get(mapping, name, key, convert)
        if found is None:
            raise self.error(line_of(mapping, name) if name in mapping else line, _join(key, name), "is missing")
        return found


def _shown(value: Any) -> str:  # noqa: ANN401
    text = (
        repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__.removeprefix("Commented")
    )
    return "nothing" if value is None else text[:60]


def _join(key: str, name: str) -> str:
    return f"{key}: {name}" if key else name


def line_of(container: CommentedMap | CommentedSeq, key: Any) -> int:  # noqa: ANN401
    """Line, from 1, on which a key or an item stands."""
    try:
        return int(container.lc.data[key][0]) + 1
    except (KeyError, TypeError, AttributeError):
        return int(container.lc.line or 0) + 1


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a text, not {_shown(value)}")
    return str(value)


def _name(value: Any) -> str:  # noqa: ANN401
    if not _NAME.fullmatch(_text(value)) or value in (".", ".."):
        raise ValueError(f"{value!r} is not a name (letters, digits, '.', '_', '-', at most 64)")
    return str(value)


def _flag(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_shown(value)}")
    return value


def _sized(parse: Callable[[str | int], int]) -> Callable[[Any], int]:
    def convert(value: Any) -> int:  # noqa: ANN401
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"must be a size, not {_shown(value)}")
        size = parse(value)
        if size == 0:
            raise ValueError("must be above zero")
        return size

    return convert


def _period(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be a time, not {_shown(value)}")
    seconds = parse_seconds(value)
    if seconds == 0:
        raise ValueError("must be above zero")
    return seconds


def _reserve(value: Any) -> int | float:  # noqa: ANN401
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            share = float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"{value!r} is not a percentage") from None
        if not 0 <= share < 1:
            raise ValueError(f"{value!r} is not between 0% and 100%")
        return share
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"must be a size or a percentage, not {_shown(value)}")
    return parse_size(value)


def load(path: Path) -> Config:
    """Read and validate a devices.yaml; `path` should be absolute. Raises ConfigError."""
    try:
        raw = path.read_bytes()[: _LIMIT + 1]
    except OSError as error:
        raise _mistake(path, str(error.strerror)) from None
    return parse(path, raw)


def parse(path: Path, raw: bytes) -> Config:
    """Validate the text of a devices.yaml that stands, or is to stand, at `path`. Raises ConfigError."""
    reader = _Reader(path)
    if len(raw) > _LIMIT:
        raise reader.error(1, "", "is too long for a devices.yaml")
    root = _parse(reader, raw)
    known = ("volume", "tiers", "placement", "cache", "pins", "catalog", "copy_limit", "io_priority", "metrics")
    top = reader.mapping(root, 1, "", known)
    tiers = _tiers(reader, top)
    names = [tier.name for tier in tiers]
    catalog = top.get("catalog")
    if catalog is not None:
        catalog = _known_tier(reader, catalog, names, line_of(top, "catalog"), "catalog")
    return Config(
        path,
        reader.need(top, "volume", "", 1, _name),
        tiers,
        _placement(reader, top, names),
        _pins(reader, top, names),
        catalog,
        reader.get(top, "copy_limit", "", _sized(parse_rate)),
        reader.get(top, "io_priority", "", _flag) or False,
        _cache(reader, top, tiers),
        reader.get(top, "metrics", "", _address),
    )


def _parse(reader: _Reader, raw: bytes) -> Any:  # noqa: ANN401
    yaml = YAML(typ="rt")
    yaml.composer.warn_double_anchors = False  # YAML 1.2 allows them; a warning would go to the user's terminal
    try:
        return yaml.load(raw.decode())
    except UnicodeDecodeError as error:
        raise reader.error(raw[: error.start].count(b"\n") + 1, "", "is not UTF-8 text") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise reader.error(mark.line + 1 if mark else 1, "", f"is not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError, RecursionError, NotImplementedError, AttributeError, TypeError, KeyError) as error:
        # ruamel.yaml lets some of Python's own errors through for odd tags and timestamps.
        raise reader.error(1, "", f"is not YAML: {error}") from None


def _tiers(reader: _Reader, top: CommentedMap) -> tuple[TierConfig, ...]:
    found = top.get("tiers")
    if found is None:
        raise reader.error(line_of(top, "tiers") if "tiers" in top else 1, "tiers", "is missing")
    if not isinstance(found, CommentedSeq) or not found:
        raise reader.error(
            line_of(top, "tiers"), "tiers", f"must be a list of tiers, fast to slow, not {_shown(found)}"
        )
    if len(found) > _MOST_TIERS:
        raise reader.error(line_of(top, "tiers"), "tiers", f"has {len(found)} tiers, more than {_MOST_TIERS}")
    tiers: list[TierConfig] = []
    for number, item in enumerate(found):
        tier = _tier(reader, item, line_of(found, number), number)
        if any(other.name == tier.name for other in tiers):
            raise reader.error(line_of(item, "name"), f"tiers: {tier.name}", "is the name of two tiers")
        if tier.in_place and any(other.in_place for other in tiers):
            raise reader.error(line_of(item, "in_place"), f"tiers: {tier.name}", "is the second tier with in_place")
        tiers.append(tier)
    return tuple(tiers)


def _tier(reader: _Reader, item: Any, line: int, number: int) -> TierConfig:  # noqa: ANN401
    key = f"tiers[{number}]"
    mapping = reader.mapping(item, line, key, ("name", "path", "in_place", "capacity", "reserve"))
    name = reader.need(mapping, "name", key, line, _name)
    key = f"tiers: {name}"
    in_place = reader.get(mapping, "in_place", key, _flag) or False
    path = reader.get(mapping, "path", key, _text)
    if in_place and path is not None:
        raise reader.error(line_of(mapping, "path"), key, "has a path and in_place; in place is the mounted directory")
    if not in_place and path is None:
        raise reader.error(line, key, "needs a path, or in_place: true")
    capacity = reader.get(mapping, "capacity", key, _sized(parse_size))
    reserve = reader.get(mapping, "reserve", key, _reserve, 0.05)
    assert reserve is not None  # noqa: S101
    if capacity is not None and isinstance(reserve, int) and reserve >= capacity:
        line = line_of(mapping, "reserve")
        raise reader.error(line, f"{key}: reserve", f"{format_size(reserve)} leaves nothing of {format_size(capacity)}")
    where = None if path is None else reader.source.parent / path
    return TierConfig(name, where, in_place, capacity, reserve, line)


def _known_tier(reader: _Reader, name: Any, names: Sequence[str], line: int, key: str) -> str:  # noqa: ANN401
    if not isinstance(name, str):
        raise reader.error(line, key, f"must be the name of a tier, not {_shown(name)}")
    if name not in names:
        raise reader.error(line, key, f"{name!r} is not a tier (tiers: {', '.join(names)})")
    return str(name)


def _placement(reader: _Reader, top: CommentedMap, names: Sequence[str]) -> PlacementConfig:
    if top.get("placement") is None:
        return PlacementConfig(POLICIES[0], default_levels(names))
    known = ("policy", "levels", "period")
    mapping = reader.mapping(top["placement"], line_of(top, "placement"), "placement", known)
    policy = reader.get(mapping, "policy", "placement", _text, POLICIES[0]) or POLICIES[0]
    if policy not in POLICIES:
        text = f"{policy!r} is not a policy (known: {', '.join(POLICIES)})"
        raise reader.error(line_of(mapping, "policy"), "placement: policy", text)
    for option, policies in (("levels", ("levels",)), ("period", _PERIODIC)):
        if mapping.get(option) is not None and policy not in policies:
            text = f"is for policy {' and '.join(policies)} only; the policy is {policy}"
            raise reader.error(line_of(mapping, option), f"placement: {option}", text)
    period = reader.get(mapping, "period", "placement", _period)
    if mapping.get("levels") is None:
        return PlacementConfig(policy, default_levels(names), period)
    key = "placement: levels"
    found = mapping["levels"]
    if not isinstance(found, CommentedMap):
        raise reader.error(line_of(mapping, "levels"), key, f"must map tiers to levels, not {_shown(found)}")
    levels: dict[str, tuple[Level, ...]] = {}
    seen: dict[Level, str] = {}
    for name, listed in found.items():
        line = line_of(found, name)
        tier = _known_tier(reader, name, names, line, key)
        if not isinstance(listed, CommentedSeq):
            raise reader.error(line, f"{key}: {tier}", f"must be a list of levels, not {_shown(listed)}")
        for level in listed:
            if level != "wal" and (isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < 64):
                raise reader.error(line, f"{key}: {tier}", f"{_shown(level)} is not a level (0, 1, ... or wal)")
            if level in seen:
                raise reader.error(line, f"{key}: {tier}", f"{level} is listed for {seen[level]} too")
            seen[level] = tier
        levels[tier] = tuple(listed)
    return PlacementConfig(policy, levels)


def _cache(reader: _Reader, top: CommentedMap, tiers: Sequence[TierConfig]) -> CacheConfig | None:
    found = top.get("cache")
    if found is None or found is False or found == "off":
        return None
    line = line_of(top, "cache")
    if not isinstance(found, CommentedMap):
        raise reader.error(line, "cache", f"must be off, or a mapping with tier, capacity, chunk, not {_shown(found)}")
    mapping = reader.mapping(found, line, "cache", ("tier", "capacity", "chunk"))
    names = [tier.name for tier in tiers]
    name = _known_tier(reader, mapping.get("tier"), names, line_of(mapping, "tier"), "cache: tier")
    if name == names[-1]:
        raise reader.error(line_of(mapping, "tier"), "cache: tier", f"{name} is the slowest: nothing is slower")
    capacity = reader.need(mapping, "capacity", "cache", line, _sized(parse_size))
    chunk = reader.get(mapping, "chunk", "cache", _chunk, _CHUNK)
    assert chunk is not None  # noqa: S101
    tier = tiers[names.index(name)]
    if tier.capacity is not None and capacity + tier.reserve_bytes(tier.capacity) >= tier.capacity:
        text = f"{format_size(capacity)} leaves no room for files of the {format_size(tier.capacity)} of tier {name}"
        raise reader.error(line_of(mapping, "capacity"), "cache: capacity", text)
    if capacity < 4 * chunk:
        raise reader.error(line_of(mapping, "capacity"), "cache: capacity", "is less than four chunks")
    return CacheConfig(name, capacity, chunk)


def _address(value: Any) -> tuple[str, int]:  # noqa: ANN401
    """A port of this machine, or ADDRESS:PORT."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    host, colon, port = text.rpartition(":")
    try:
        address = str(ipaddress.ip_address(host.strip("[]"))) if colon else "127.0.0.1"
        if not 0 < int(port) < 1 << 16 or not port.isascii():
            raise ValueError
    except ValueError:
        raise ValueError(f"{_shown(value)} is neither a port nor ADDRESS:PORT (like 9123, 127.0.0.1:9123)") from None
    return address, int(port)


def _chunk(value: Any) -> int:  # noqa: ANN401
    size = _sized(parse_size)(value)
    if not _LEAST_CHUNK <= size <= _MOST_CHUNK or size & (size - 1):
        least, most = format_size(_LEAST_CHUNK), format_size(_MOST_CHUNK)
        raise ValueError(f"{_shown(value)} is not a power of two from {least} to {most}")
    return size


def _pins(reader: _Reader, top: CommentedMap, names: Sequence[str]) -> dict[str, str]:
    found = top.get("pins")
    if found is None:
        return {}
    if not isinstance(found, CommentedMap):
        raise reader.error(line_of(top, "pins"), "pins", f"must map patterns to tiers, not {_shown(found)}")
    pins = {}
    for pattern, tier in found.items():
        line = line_of(found, pattern)
        if not isinstance(pattern, str) or not pattern:
            raise reader.error(line, "pins", f"{_shown(pattern)} is not a pattern")
        pins[str(pattern)] = _known_tier(reader, tier, names, line, f"pins: {pattern}")
    return pins


def _not_a_directory(path: Path) -> str | None:
    """What stands against using a path as a directory: it is absent, a file, below a dead mount, ..."""
    try:
        return None if stat.S_ISDIR(path.stat().st_mode) else "is not a directory"
    except FileNotFoundError:
        return "no such directory"
    except OSError as error:
        return str(error.strerror)
    except ValueError:  # a NUL in it
        return "is not a path"


def check(config: Config, mountpoint: Path) -> None:
    """Validate what depends on the machine, for a mount at `mountpoint`. Raises ConfigError."""

    def error(tier: TierConfig, text: str) -> ConfigError:
        return _mistake(f"{config.source}:{tier.line}", f"tiers: {tier.name}: {text}")

    if problem := _not_a_directory(mountpoint):
        raise _mistake(mountpoint, problem)
    where = mountpoint.resolve()
    # Also a link in there: its target stays in sight, its name does not.
    if any(path.is_relative_to(where) for path in (config.source.resolve(), config.source.parent.resolve())):
        raise _mistake(config.source, f"is inside {mountpoint} and would be hidden by the mount; put it elsewhere")
    try:
        stranded = not any(tier.in_place for tier in config.tiers) and bool(os.listdir(where))
    except OSError as why:
        raise _mistake(mountpoint, str(why.strerror)) from None
    if stranded:
        text = f"tiers: {mountpoint} has data, which needs a tier with in_place: true"
        raise _mistake(f"{config.source}:{config.tiers[0].line}", text)
    places: list[tuple[TierConfig, Path]] = []
    for tier in config.tiers:
        path = where if tier.path is None else tier.path
        if problem := _not_a_directory(path):
            raise error(tier, f"path: {path}: {problem}")
        real = path.resolve()
        if tier.path is not None and real != where and real.is_relative_to(where):
            raise error(tier, f"path: {path} is inside {mountpoint}, below the mount")
        if tier.path is not None and real != where and where.is_relative_to(real):
            raise error(tier, f"path: {path} contains {mountpoint}, which is to be mounted over")
        for other, taken in places:
            if os.path.samestat(real.stat(), taken.stat()):
                raise error(tier, f"path: {path} is the directory of tier {other.name} too")
            if real.is_relative_to(taken) or taken.is_relative_to(real):
                raise error(tier, f"path: {path} and that of tier {other.name} are one inside the other")
        if tier.path is not None and os.path.samestat(real.stat(), where.stat()):
            raise error(tier, f"path: {path} is the mounted directory itself; write in_place: true instead")
        places.append((tier, real))
        device = os.statvfs(real)
        size = device.f_blocks * device.f_frsize
        if tier.capacity is not None and tier.capacity > size:
            raise error(tier, f"capacity: {format_size(tier.capacity)} is above the device's {format_size(size)}")
        if isinstance(tier.reserve, int) and tier.reserve >= size:
            raise error(
                tier, f"reserve: {format_size(tier.reserve)} leaves nothing of the device's {format_size(size)}"
            )
