"""What a file costs on a tier: predicted seconds, weighted by who waits for them.

A new file of S bytes that lives L seconds costs on a tier

    write    S (u w + v d + r)       w: seconds per byte as one more writer; d, r: what other writers and readers lose
    read     S L q + S b             q: seconds of foreground reads per byte and second of life; b: of the compaction
                                     that reads it at its end
    room     S (N s + (L - N)) p     p: the price of room there, s: how scarce it is for the next N seconds

where u is how urgent the writing is, v how urgent that of others is taken to be, and readers in the foreground count
in full. Everything per byte is a rate of the tier's device at its present load (`rates`). Costs in seconds can be added
because all of them delay somebody; the weights say how much of the delay reaches those who use the database.

What is only kept (a closed file) costs q + b / L per byte and second, and moving it, once, what reading it here and
writing it there takes. What comes again and again, a group whose files are written, live L and are gone, costs
(u w + v d + r + b) / L + q per byte and second: by this different groups compete for room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from keigo.lsm.pressure import Pressure
from keigo.lsm.roles import Role
from keigo.lsm.threads import Job
from keigo.placement.policy import Bucket, Context, Expectation, TierCost, TierState
from keigo.placement.rates import Rates

HORIZON: Final = 600.0
"""Seconds that a decision looks ahead: what lives longer can be moved later, for the price of a copy."""
_SMALL: Final = 4096
_FLUSH: Final = 0.5
"""Of a flush's time, the share that writers wait for while nothing is backed up: a second memtable takes their writes
meanwhile, and they stop when that one is full, too."""
_UPPER: Final = 0.25
"""Likewise of a compaction into level 0 or 1, which empties level 0."""
_DEEP: Final = 0.1
"""Likewise of a compaction into a deeper level: nobody waits for it until level 0 backs up behind it."""
SCARCEST: Final = 100.0
"""The most that a price is multiplied by."""
UNKNOWN: Final = Expectation(64 << 20, HORIZON)
"""Where nothing at all is known: RocksDB's own size of a table."""


def urgency(job: Job, role: Role, level: int | None, pressure: Pressure) -> float:
    """How much of the time that a file takes to be written delays those who use the database: 0 to 1."""
    if role is Role.WAL:
        return 1.0
    if job is Job.FLUSH:
        calm = _FLUSH
    elif job is Job.COMPACTION:
        calm = _UPPER if level is not None and level <= 1 else _DEEP
    else:
        return 1.0  # ingestion, a repair, LevelDB's recovery: somebody in the foreground waits
    backed_up = 1.0 if pressure.stalled else pressure.level0
    return calm + (1 - calm) * backed_up


def costs(context: Context, size: float, expected: Expectation, tiers: Sequence[TierState]) -> list[TierCost]:
    """What a new file costs on each tier."""
    urgent = urgency(context.job, context.role, context.level, context.pressure)
    life = min(expected.life, HORIZON)
    small = context.role is Role.WAL
    found = []
    for tier in tiers:
        rates = tier.rates
        write = rates.append / _SMALL if small else writing(urgent, context.pressure, tier)
        read = 0.0 if small else life * reading(expected, rates) + _UPPER * rates.stream
        room = tier.price * occupying(life, tier, size) if tier.price else 0.0
        found.append(TierCost(size * write, size * read, size * room))
    return found


def writing(urgent: float, pressure: Pressure, tier: TierState) -> float:
    """Seconds per byte of a large file that is written to a tier, so urgent, as one more beside those that are now."""
    n, rates = tier.writers, tier.rates
    backed_up = 1.0 if pressure.stalled else pressure.level0
    others = _DEEP + (1 - _DEEP) * backed_up
    return urgent * rates.write(n) + others * rates.delay(n) + rates.disturb(n)


def reading(expected: Expectation, rates: Rates) -> float:
    """Seconds of foreground reads per byte and second of a file."""
    if not expected.reads:
        return 0.0
    return expected.reads * (rates.read + rates.read_byte * max(0.0, expected.read_size - _SMALL))


def keeping(bucket: Bucket, expected: Expectation, rates: Rates) -> float:
    """Seconds per byte and second that the files of a bucket cost on a tier while they live."""
    reads = 0.0 if bucket.heat is None else 1.5 * 2.0**bucket.heat
    foreground = reads * (rates.read + rates.read_byte * max(0.0, expected.read_size - _SMALL))
    return foreground + _UPPER * rates.stream / expected.life


def recurring(bucket: Bucket, expected: Expectation, pressure: Pressure, tier: TierState) -> float:
    """Seconds per byte and second that files like those of a bucket cost on a tier, being written there, too."""
    group = bucket.group
    job = Job.FLUSH if group.level == 0 else Job.COMPACTION
    urgent = urgency(job, group.role, group.level, pressure)
    return writing(urgent, pressure, tier) / expected.life + keeping(bucket, expected, tier.rates)


def copying(source: Rates, target: Rates) -> float:
    """Seconds per byte of a migration."""
    return source.stream + target.write(0)


def headroom(tier: TierState) -> int:
    """Bytes that are to be free for what comes next: some seconds of it, within bounds.

    A flush must never wait for room, and a migration that makes some takes about as long as what fills it.
    """
    return int(min(max(0.02 * tier.capacity, 5.0 * tier.inflow), 0.15 * tier.capacity))


def occupying(life: float, tier: TierState, size: float) -> float:
    """Seconds of the price that a file pays for its life on a tier.

    What room is left there now says something of the time in which what is created uses up as much; after that the
    price holds as it is. So what lives long does not come in for nothing because there is room at the moment, nor is
    it kept out because there is none.
    """
    near = life
    if tier.inflow:
        near = min(life, max(tier.room, headroom(tier)) / tier.inflow)
    return near * scarcity(tier, size) + life - near


def scarcity(tier: TierState, size: float = 0) -> float:
    """What the price of room on a tier is multiplied by, for a file of so many bytes: the less is left, the more.

    1 where one headroom is left once the file is there, or its own size; nothing where three are, twice and a half at
    the half of one, and without bound towards the last byte. So the room that is left settles where its price does, in
    spite of prices that are some seconds old, and the last of it is for what is worth many times the price.
    """
    spare = max(headroom(tier), size, 1)
    left = tier.room - size
    if left >= 3 * spare:
        return 0.0
    if left <= 0:
        return SCARCEST
    return min(SCARCEST, spare / left * (3 * spare - left) / (2 * spare))
