"""Changes to a devices.yaml that leave every other byte of it as it is: comments, order and style.

ruamel.yaml says where things stand, and the change is made in the text: a round trip would attach the comments above
an item to the one before it. What comes out is read again, and must say what was meant.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from keigo.config import Config, ConfigError, line_of, parse

_PLAIN: Final = re.compile(r"[A-Za-z0-9./_%-]*[A-Za-z./_%-][A-Za-z0-9./_%-]*")
"""Texts that YAML takes for nothing else, in a flow mapping either; `yes` and its like are caught by reading again."""


class EditError(ConfigError):
    """A devices.yaml cannot be changed by program; the text is one line that says what to do."""


def with_tier(source: Path, text: str, tier: Mapping[str, str], before: str | None) -> str:
    """The text with one more tier, `tier` as its mapping in devices.yaml, before the tier called so, or as the slowest.

    Raises ConfigError where the outcome would be no valid devices.yaml, or the text cannot be changed.
    """
    config = parse(source, text.encode())
    names = [found.name for found in config.tiers]
    at = len(names) if before is None else names.index(before)
    sequence = _tiers(source, text)
    changed = _in_flow(text, sequence, tier, at) if sequence.flow_style else _in_lines(text, sequence, tier, at)
    after = parse(source, changed.encode())
    if [found.name for found in after.tiers] != [*names[:at], tier["name"], *names[at:]] or not _alike(config, after):
        raise EditError(f"{source}: cannot be changed by program: add the tier there, and umount and mount again")
    return changed


def without_tier(source: Path, text: str, name: str) -> str:
    """The text without the tier called so, which nothing else in it may name (`mentions`). Comments above it stay.

    Raises ConfigError where the outcome would be no valid devices.yaml, or the text cannot be changed.
    """
    config = parse(source, text.encode())
    names = [found.name for found in config.tiers]
    sequence, at = _tiers(source, text), names.index(name)
    refused = EditError(
        f"{source}: cannot be changed by program: keigo drain, umount, take {name} out, and mount again"
    )
    changed = _cut_flow(text, sequence, at) if sequence.flow_style else _cut_lines(text, sequence, at)
    if changed is None:
        raise refused
    after = parse(source, changed.encode())
    if [found.name for found in after.tiers] != [other for other in names if other != name] or not _alike(
        after, config
    ):
        raise refused
    return changed


def mentions(text: str, name: str) -> list[tuple[int, str]]:
    """(line, key) of whatever in a valid text names a tier, but for its own item."""
    top = YAML(typ="rt").load(text)
    found = [(line_of(top, "catalog"), "catalog")] if top.get("catalog") == name else []
    cache, placement, pins = (top.get(key) for key in ("cache", "placement", "pins"))
    if isinstance(cache, CommentedMap) and cache.get("tier") == name:
        found.append((line_of(cache, "tier"), "cache: tier"))
    levels = placement.get("levels") if isinstance(placement, CommentedMap) else None
    if isinstance(levels, CommentedMap) and name in levels:
        found.append((line_of(levels, name), f"placement: levels: {name}"))
    if isinstance(pins, CommentedMap):
        found += [(line_of(pins, pattern), f"pins: {pattern}") for pattern, tier in pins.items() if tier == name]
    return found


def _alike(one: Config, other: Config) -> bool:
    """Whether the tiers of one are tiers of the other, the same in everything, and all else is alike."""
    rest = [tier for tier in other.tiers if tier in one.tiers]
    return rest == list(one.tiers) and (one.volume, one.pins, one.catalog, one.cache, one.metrics) == (
        other.volume,
        other.pins,
        other.catalog,
        other.cache,
        other.metrics,
    )


def _tiers(source: Path, text: str) -> SequenceNode:
    """The list of tiers in a text that is known to be valid."""
    root = YAML(typ="rt").compose(text)
    for key, value in root.value:
        if key.value == "tiers" and isinstance(value, SequenceNode):
            return value
    raise EditError(f"{source}: tiers: stand behind an alias; add the tier there, and umount and mount again")


def _end(node: Node) -> tuple[int, int]:
    """(line, index) where a node's own text ends; a block's end mark is behind the comments that follow it."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        return max(_end(value) for _, value in node.value)
    return node.end_mark.line, node.end_mark.index


def _scalar(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _flow(tier: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in tier.items()) + "}"


def _in_flow(text: str, sequence: SequenceNode, tier: Mapping[str, str], at: int) -> str:
    if at < len(sequence.value):
        index = sequence.value[at].start_mark.index
        return f"{text[:index]}{_flow(tier)}, {text[index:]}"
    _, index = _end(sequence.value[-1])
    return f"{text[:index]}, {_flow(tier)}{text[index:]}"


def _in_lines(text: str, sequence: SequenceNode, tier: Mapping[str, str], at: int) -> str:
    """A line, or some, after those of the tier before, in the style of the list's first item."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    first = sequence.value[0]
    dash = " " * sequence.start_mark.column + "-"
    lead = dash + " " * (first.start_mark.column - len(dash))
    if first.flow_style or first.start_mark.line != sequence.start_mark.line:
        new = [f"{dash} {_flow(tier)}\n"]
    else:
        keys = [f"{key}: {_scalar(value)}\n" for key, value in tier.items()]
        new = [lead + keys[0], *(" " * len(lead) + key for key in keys[1:])]
    line = _end(sequence.value[at - 1])[0] + 1 if at else sequence.start_mark.line
    return "".join([*lines[:line], *new, *lines[line:]])


def _cut_flow(text: str, sequence: SequenceNode, at: int) -> str | None:
    """Without an item and one comma; None where that is not what stands there."""
    start, (_, end) = sequence.value[at].start_mark.index, _end(sequence.value[at])
    if at + 1 < len(sequence.value):
        comma = end + len(text[end:]) - len(text[end:].lstrip())
        rest = text[comma + 1 :]
        return text[:start] + rest.lstrip(" ") if text[comma] == "," else None
    _, before = _end(sequence.value[at - 1])
    comma = before + len(text[before:]) - len(text[before:].lstrip())
    between = text[comma + 1 : start]
    return text[:comma] + between.rstrip(" ") + text[end:] if text[comma] == "," else None


def _cut_lines(text: str, sequence: SequenceNode, at: int) -> str | None:
    """Without an item's lines, from its dash on; None where no dash stands before it."""
    item = sequence.value[at]
    lines = text.splitlines(keepends=True)
    line = item.start_mark.line
    while not lines[line].lstrip().startswith("-"):
        line -= 1
        if line < sequence.start_mark.line:
            return None
    return "".join([*lines[:line], *lines[_end(item)[0] + 1 :]])


def read(source: Path) -> str:
    """The text of a devices.yaml. Raises ConfigError."""
    try:
        return source.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EditError(f"{source}: {error}") from None


def replace(source: Path, text: str) -> None:
    """Put a text in place of a devices.yaml: atomically, durably, with its owner and mode. Raises OSError.

    A link stays a link: the file that it leads to is replaced. An error leaves what was there.
    """
    real = source.resolve(strict=True)
    before = real.read_bytes()
    above = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _put(real, text.encode())
        try:
            os.fsync(above)
        except OSError:
            _put(real, before)  # who hears of an error goes by what was there before
            raise
    finally:
        os.close(above)


def _put(real: Path, data: bytes) -> None:
    """Replace a file, whose name is not durable yet when this returns. Raises OSError with the file as it was."""
    before = real.stat()
    temporary = real.with_name(f".{real.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchown(fd, before.st_uid, before.st_gid)
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.rename(real)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
