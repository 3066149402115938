"""What is done again and again, and must not end because it failed once."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


class Attempts:
    """Tells a failure when it begins and when it becomes another one, not each second. Of one thread."""

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}

    def attempt(self, what: str, work: Callable[[], object]) -> bool:
        """Do `work`; whether it succeeded. `what` says in the log what could not be done.

        Any exception is taken: a thread that ends by one leaves a daemon behind that seems well and writes no catalog.
        """
        try:
            work()
        except Exception as error:
            failure = repr(error)
            if self._failing.get(what) != failure:
                log.exception("%s", what)
            self._failing[what] = failure
            return False
        if self._failing.pop(what, None) is not None:
            log.warning("%s: not any more", what)
        return True
