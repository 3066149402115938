"""What others want to hear of a volume, or are asked by it: whoever serves files, the mover, the cache, the observer.

Each is set by one of them, before the volume is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Hooks:
    """See the module's docstring."""

    reopen: Callable[[int], None] = lambda _file: None
    """Called, under the lock, when a file's home has changed: open handles are to be moved there."""
    file_closed: Callable[[], None] = lambda: None
    """Called when a writer closed a file or a tier's room changed: there may be something to migrate."""
    rewritten: Callable[[int], None] = lambda _file: None
    """Called, under the lock, when a file was opened to be written (and its writer not yet counted) or was cut,
    before anybody hears of it, and when it has lost its last name (and is out of the catalog): what is known of its
    contents does not hold any more."""
    moved: Callable[[int], None] = lambda _file: None
    """Called, under the lock, when a file has migrated, or has got or lost a name and has others."""
    doomed: Callable[[], frozenset[int]] = frozenset
    """Asked, without locks, for the files that running compactions read."""
