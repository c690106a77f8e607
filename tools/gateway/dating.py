"""When was it, and how sure is that? Moments of a board -> unix time, by its `time` records.

Purpose: records carry boot and uptime, never a date.
Theory
1. Within a boot, uptime is a ruler; one anchor dates all of it. The latest anchor at or before the
   moment is used, else the first after it, so that what is dated once stays so. The error is the
   anchor's, and 100 ppm of the way from it (what a crystal may be off).
2. A `step` says that the clock had been wrong: of the boot's anchors before it, those count that
   agree with it.
3. Time passes from boot to boot. Where a station's clock was ever stepped, its boots need not fit:
   then the longest row of boots that do, up to the newest, counts, and the others have no anchors.
4. A boot that never learnt the time lies between its neighbours: it began after the last moment of
   the dated boot before, all boots between having run as long as is known, and ended before the
   next one began. The middle is taken, and half of the span is the error.
Limits: a boot with no dated boot on both sides is not dated (None); `seen` takes its arrival for
the end. A gateway that was wrong for the whole of a boot, and in no contradiction to what the
board knew, dates it wrong, and does not know.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tools.gateway import ocpi
from tools.gateway.store import Alarm, Record

DRIFT = 10_000  # 100 ppm, as the board's clock.py has it
_STEP_MS = 2_000  # what two anchors may differ beyond their errors


@dataclass(frozen=True)
class When:
    """A moment: it was `unix_ms`, give or take `err_ms`."""

    unix_ms: int
    err_ms: int


@dataclass(frozen=True)
class Anchor:
    """At this uptime it was `unix_ms`, give or take `err_ms`."""

    up_ms: int
    unix_ms: int
    err_ms: int
    step: bool

    def at(self, up_ms: int) -> When:
        way_ms = up_ms - self.up_ms
        return When(self.unix_ms + way_ms, self.err_ms + -(-abs(way_ms) // DRIFT))

    def agrees(self, other: Anchor) -> bool:
        here = self.at(other.up_ms)
        off_ms = abs(here.unix_ms - other.unix_ms)
        return off_ms <= here.err_ms + other.err_ms + _STEP_MS


class Timeline:
    """Dates for one station within one transaction."""

    def __init__(self, db: Session, station_id: str) -> None:
        self._db = db
        self._station_id = station_id
        self._anchors = cache(self._load_anchors)
        self._lengths = cache(self._load_lengths)
        self._unfit = cache(self._load_unfit)

    def date(self, journal: str, boot: int, up_ms: int) -> int | None:
        """Unix ms of a moment, or None if nothing dates it."""
        when = self.when(journal, boot, up_ms)
        return None if when is None else when.unix_ms

    def when(self, journal: str, boot: int, up_ms: int) -> When | None:
        """A moment and how sure that is, or None if nothing dates it."""
        anchors = self._sound(journal, boot)
        if anchors:
            before = [anchor for anchor in anchors if anchor.up_ms <= up_ms]
            return (before[-1] if before else anchors[0]).at(up_ms)
        return self._between(journal, boot, up_ms, None)

    def seen(self, record: Record) -> When | None:
        """When a stored record was written; it arrived afterwards."""
        boot, up_ms = record.boot or 0, record.up_ms or 0
        return self.when(record.journal, boot, up_ms) or self._between(
            record.journal, boot, up_ms, record.received_ms
        )

    def _sound(self, journal: str, boot: int) -> list[Anchor]:
        return [] if boot in self._unfit(journal) else self._anchors(journal, boot)

    def _between(self, journal: str, boot: int, up_ms: int, until_ms: int | None) -> When | None:
        lengths = self._lengths(journal)
        before = [b for b in lengths if b < boot and self._sound(journal, b)]
        after = [b for b in lengths if b > boot and self._sound(journal, b)]
        if not before:
            return None
        last = max(before)
        following = min(after, default=max(lengths) + 1)
        lower = self.when(journal, last, lengths[last])
        upper = self.when(journal, following, 0) if after else None
        if lower is None or (upper is None and until_ms is None):
            return None
        first_ms = lower.unix_ms - lower.err_ms
        first_ms += _least(sum(lengths[b] for b in lengths if last < b < boot) + up_ms)
        if upper is not None:
            last_ms = upper.unix_ms + upper.err_ms
            last_ms -= _least(sum(lengths[b] for b in lengths if boot < b < following))
            last_ms -= _least(max(0, lengths.get(boot, up_ms) - up_ms))
        else:
            last_ms = until_ms or 0
        first_ms, last_ms = sorted((first_ms, last_ms))
        return When((first_ms + last_ms) // 2, -(-(last_ms - first_ms) // 2))

    def _load_anchors(self, journal: str, boot: int) -> list[Anchor]:
        """Anchors of a boot in rising order, those that a step put right left out."""
        rows = self._db.scalars(
            select(Record)
            .where(
                Record.station_id == self._station_id,
                Record.journal == journal,
                Record.t == "time",
                Record.boot == boot,
            )
            .order_by(Record.seq)
        ).all()
        anchors: list[Anchor] = []
        for row in rows:
            body = ocpi.loads(row.body)
            step = bool(body.get("step"))
            anchors.append(Anchor(body["up_ms"], body["unix_ms"], body["err_ms"], step))
        steps = [i for i, anchor in enumerate(anchors) if anchor.step]
        if steps:
            newest = anchors[steps[-1]]
            anchors = [a for a in anchors[: steps[-1]] if a.agrees(newest)] + anchors[steps[-1] :]
        return anchors

    def _load_lengths(self, journal: str) -> dict[int, int]:
        """Boot -> latest uptime known of it, in this journal."""
        here = (Record.station_id == self._station_id, Record.journal == journal)
        rows = self._db.execute(
            select(Record.boot, func.max(Record.up_ms))
            .where(*here, Record.boot.is_not(None))
            .group_by(Record.boot)
        )
        lengths = {boot or 0: up_ms or 0 for boot, up_ms in rows}
        for row in self._db.scalars(select(Record).where(*here, Record.t == "boot")):
            alive_ms = ocpi.loads(row.body).get("alive_ms")
            if isinstance(alive_ms, int) and row.boot is not None and row.boot - 1 in lengths:
                lengths[row.boot - 1] = max(lengths[row.boot - 1], alive_ms)
        return lengths

    def _load_unfit(self, journal: str) -> set[int]:
        """Boots whose anchors do not fit those of the others."""
        stepped = self._db.scalar(
            select(func.count())
            .select_from(Alarm)
            .where(
                Alarm.station_id == self._station_id,
                Alarm.journal == journal,
                Alarm.kind == "clock_step",
            )
        )
        if not stepped:
            return set()
        dated = [b for b in sorted(self._lengths(journal)) if self._anchors(journal, b)]
        # The longest row of boots that fit: the end of the best row of each length, and what is
        # before it in its row.
        ends: list[int] = []  # the earliest that the last anchor of such a row can be
        tails: list[int] = []  # its boot
        before: dict[int, int | None] = {}
        for boot in dated:
            first, last = self._anchors(journal, boot)[0], self._anchors(journal, boot)[-1]
            length = bisect_right(ends, first.unix_ms + first.err_ms)
            before[boot] = tails[length - 1] if length else None
            end_ms = last.unix_ms - last.err_ms
            if length == len(ends) or end_ms < ends[length]:
                ends[length : length + 1] = [end_ms]
                tails[length : length + 1] = [boot]
        fit: set[int] = set()
        boot = dated[-1] if dated else None
        while boot is not None:
            fit.add(boot)
            boot = before[boot]
        return set(dated) - fit


def _least(span_ms: int) -> int:
    """The least true time in which a crystal counts `span_ms`."""
    return span_ms - -(-span_ms // DRIFT)
