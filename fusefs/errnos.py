"""Errors as the kernel understands them: of a name that is too long, and of a node that is gone."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from keigo.tiers.directories import fail

NAME_MAX: Final = 255
P = ParamSpec("P")
R = TypeVar("R")


def check_name(name: bytes) -> None:
    """Raises OSError ENAMETOOLONG."""
    if len(name) > NAME_MAX:
        raise fail(errno.ENAMETOOLONG, name)


def of_node(operation: Callable[P, R]) -> Callable[P, R]:
    """An operation on a node, which may be gone since it was looked up: ESTALE, not ENOENT.

    The kernel then looks the name up again. So whoever opens a name while another file is renamed over it gets the one
    or the other, as from any file system, and never hears that there is none.
    """

    @functools.wraps(operation)
    def tried(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return operation(*args, **kwargs)
        except FileNotFoundError as error:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), error.filename) from error

    return tried
