"""Which tiers files are to leave: all but the primary one (a drain), or one that is taken out of the volume.

No new file comes to them, and the mover empties them. Who begins either sees it through, or ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

from keigo.tiers.tier import Tier


class Evacuation:
    """See the module's docstring. What is set under `Volume.lock` holds for every file created since."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = tuple(tiers)
        self.draining = False
        """Every file is to come to the primary tier."""
        self.leaving: Tier | None = None
        """A tier, not the primary one, to which no file comes any more.

        Where the primary alone is left, new databases get no guard meanwhile. Who ends it sets them.
        """

    @property
    def staying(self) -> list[Tier]:
        """The tiers but for one that leaves; the primary one is always among them."""
        return [tier for tier in self._tiers if tier is not self.leaving]
