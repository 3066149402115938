"""A YAML file that remembers its lines: every value knows where it stands, and says so when it is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from keigo.config import line_of
from keigo.errors import KeigoError
from keigo.units import parse_size

_LIMIT: Final = 1 << 20  # bytes; a plan is a page
_COUNTS: Final = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


class PlanError(KeigoError):
    """A mistake in a plan: one line, `FILE:LINE: key: what is wrong`."""


def _plain(text: str) -> str:
    """One line without terminal escapes, whatever stands in the file."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str | int | float | bool):
        return repr(value)[:60]
    return type(value).__name__.removeprefix("Commented").lower()


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the file, its line (from 1) and the keys that lead to it."""

    value: Any
    source: Path
    line: int
    key: str = ""

    def error(self, text: str) -> PlanError:
        """The mistake that this value is."""
        key = f"{self.key}: " if self.key else ""
        return PlanError(_plain(f"{self.source}:{self.line}: {key}{text}"))

    def mapping(self, known: Sequence[str]) -> dict[str, Node]:
        """Its keys, all of them known, and their values; keys without a value are left out."""
        found = self.entries()
        for name, node in found.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise node.error(f"unknown key ({hint})")
        return {name: node for name, node in found.items() if node.value is not None}

    def entries(self) -> dict[str, Node]:
        """Its keys, whatever they are, and their values."""
        if not isinstance(self.value, CommentedMap):
            raise self.error(f"must be a mapping, not {_shown(self.value)}")
        return {str(name): self._inner(name, str(name)) for name in self.value}

    def items(self) -> Iterator[Node]:
        """The items of a list that is not empty."""
        if not isinstance(self.value, CommentedSeq) or not self.value:
            raise self.error(f"must be a list, not {_shown(self.value)}")
        return (self._inner(number, f"[{number}]") for number in range(len(self.value)))

    def _inner(self, key: Any, name: str) -> Node:  # noqa: ANN401
        joined = name if not self.key else f"{self.key}{name}" if name.startswith("[") else f"{self.key}: {name}"
        return Node(self.value[key], self.source, line_of(self.value, key), joined)

    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self.value, CommentedMap)

    def text(self) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"must be a text, not {_shown(self.value)}")
        return str(self.value)

    def choice(self, choices: Sequence[str]) -> str:
        """One of some texts."""
        found = self.text()
        if found not in choices:
            raise self.error(f"{found!r} is none of {', '.join(choices)}")
        return found

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"must be true or false, not {_shown(self.value)}")
        return self.value

    def number(self, least: float = 0.0) -> float:
        """A finite number, `least` or more."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
            raise self.error(f"must be a number from {least:g} on, not {_shown(value)}")
        return float(value)

    def count(self, least: int = 1) -> int:
        """A whole number, `least` or more; `10k` and `2M` are understood."""
        value = self.value
        if isinstance(value, str) and value[:-1].isdecimal() and value.isascii():
            value = int(value[:-1][:18]) * _COUNTS.get(value[-1].lower(), -1)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
            raise self.error(f"must be a whole number from {least} on, not {_shown(self.value)}")
        return value

    def size(self, least: int = 1) -> int:
        """Bytes, of a size like 64MiB, `least` or more."""
        if isinstance(self.value, bool) or not isinstance(self.value, str | int):
            raise self.error(f"must be a size, not {_shown(self.value)}")
        try:
            found = parse_size(self.value)
        except ValueError as error:
            raise self.error(str(error)) from None
        if found < least:
            raise self.error(f"must be at least {least}")
        return found


def read(path: Path) -> Node:
    """The root of a YAML file. Raises PlanError."""
    root = Node(None, path, 1)
    try:
        raw = path.read_bytes()[: _LIMIT + 1]
    except OSError as error:
        raise PlanError(_plain(f"{path}: {error.strerror}")) from None
    if len(raw) > _LIMIT:
        raise root.error("is too long for a plan")
    yaml = YAML(typ="rt")
    yaml.composer.warn_double_anchors = False  # YAML 1.2 allows them; a warning would go to the user's terminal
    try:
        return Node(yaml.load(raw.decode()), path, 1)
    except UnicodeDecodeError as error:
        raise Node(None, path, raw[: error.start].count(b"\n") + 1).error("is not UTF-8 text") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise Node(None, path, line).error(f"is not YAML: {error.problem or error.context}") from None
    except (YAMLError, ValueError, RecursionError, NotImplementedError, AttributeError, TypeError, KeyError) as error:
        # ruamel.yaml lets some of Python's own errors through for odd tags and timestamps.
        raise root.error(f"is not YAML: {error}") from None
