"""Decisions as log lines: `decided create path=... tier=... reason="..."`, at debug, one line each.

Keys and values as in logfmt: a value with a space, a quote or an equals sign is in double quotes, as JSON has them.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Final

_PLAIN: Final = re.compile(r"[^\s\"=\x00-\x1f\x7f]+")
log = logging.getLogger(__name__)


def decided(what: str, **facts: object) -> None:
    """Log a decision; facts that are None are left out. Costs nothing where nobody logs at debug."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s", line(what, facts))


def line(what: str, facts: dict[str, object]) -> str:
    """The line."""
    return " ".join(
        [f"decided {what}", *(f"{key}={_shown(value)}" for key, value in facts.items() if value is not None)]
    )


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
