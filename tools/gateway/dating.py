"""When was it? Moments of a board -> unix time, by its `time` records.

Purpose: records carry boot and uptime, never a date. Theory: within a boot, uptime is a ruler; one
anchor dates all of it. The latest anchor at or before the moment is used, else the first after
it, so that what is dated once stays so. A `step` says that the anchors before it were wrong.
A boot that never learnt the time lies between its neighbours: it started after the last moment of
the dated boot before and ended before the next one started; the middle is taken.
Limits: a boot with no dated boot on both sides is not dated (None). Uptime clocks drift by some
ten ppm: that is the error far from an anchor.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tools.gateway import ocpi
from tools.gateway.store import Record


class Timeline:
    """Dates for one station within one transaction."""

    def __init__(self, db: Session, station_id: str) -> None:
        self._db = db
        self._station_id = station_id
        self._anchors = cache(self._load_anchors)
        self._lengths = cache(self._load_lengths)

    def date(self, journal: str, boot: int, up_ms: int) -> int | None:
        """Unix ms of a moment, or None if nothing dates it."""
        anchors = self._anchors(journal, boot)
        if anchors:
            before = [anchor for anchor in anchors if anchor[0] <= up_ms]
            anchor_up, unix_ms = before[-1] if before else anchors[0]
            return unix_ms + up_ms - anchor_up
        return self._between(journal, boot, up_ms)

    def _between(self, journal: str, boot: int, up_ms: int) -> int | None:
        lengths = self._lengths(journal)
        before = [b for b in lengths if b < boot and self._anchors(journal, b)]
        after = [b for b in lengths if b > boot and self._anchors(journal, b)]
        if not before or not after:
            return None
        last, following = max(before), min(after)
        lower = self.date(journal, last, lengths[last])
        upper = self.date(journal, following, 0)
        if lower is None or upper is None:
            return None
        lower += sum(lengths[b] for b in lengths if last < b < boot) + up_ms
        upper -= sum(lengths[b] for b in lengths if boot < b < following)
        upper -= max(0, lengths.get(boot, up_ms) - up_ms)
        return max(lower, (lower + upper) // 2)

    def _load_anchors(self, journal: str, boot: int) -> list[tuple[int, int]]:
        """(up_ms, unix_ms) in rising order; of this journal, else of any life of it."""
        rows = self._db.scalars(
            select(Record)
            .where(Record.station_id == self._station_id, Record.t == "time", Record.boot == boot)
            .order_by(Record.id)
        ).all()
        rows = [row for row in rows if row.journal == journal] or rows
        anchors: list[tuple[int, int]] = []
        for row in rows:
            body = ocpi.loads(row.body)
            if body.get("step"):
                anchors.clear()
            anchors.append((body["up_ms"], body["unix_ms"]))
        return sorted(anchors)

    def _load_lengths(self, journal: str) -> dict[int, int]:
        """Boot -> latest uptime seen of it, in this journal."""
        rows = self._db.execute(
            select(Record.boot, func.max(Record.up_ms))
            .where(
                Record.station_id == self._station_id,
                Record.journal == journal,
                Record.boot.is_not(None),
            )
            .group_by(Record.boot)
        )
        return {boot or 0: up_ms or 0 for boot, up_ms in rows}
