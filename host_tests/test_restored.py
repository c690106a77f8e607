"""The gateway's database comes back from a backup, and the real firmware goes on with it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from portable.bench import ANNA
from wattlock import journal

from host_tests.gateway_kit import Bare
from host_tests.site_kit import MINUTE, Site
from tools.gateway.store import Alarm, Record


def backup(site: Site, folder: Path) -> None:
    folder.mkdir()
    live = site.bare.config.database.removeprefix("sqlite:///")
    with closing(sqlite3.connect(live)) as db, closing(
        sqlite3.connect(folder / "gateway.sqlite3")
    ) as copy:
        db.backup(copy)


def session(site: Site, number: int) -> None:
    """Reserved, charged, stopped, told."""
    site.command("RESERVE_NOW", {"evse": 1, "reservation_id": f"R{number}", "token": ANNA,
                                 "expiry_ms": site.unix_ms() + 30 * MINUTE})  # fmt: skip
    site.run(2000)
    site.pins[1].car = "C"
    site.app.card(ANNA["uid"])
    site.run(3 * MINUTE, 500)
    site.app.card(ANNA["uid"])
    site.run(10_000)
    site.pins[1].car = "A"
    site.run(5000)


@pytest.mark.parametrize("kept", [True, False])
def test_a_backup_from_before_what_the_board_still_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Kept: all is told again. Gone from the journal, since it was acknowledged once: a gap is on
    record, by its first and last sequence, and everything behind it arrives."""
    if not kept:
        monkeypatch.setattr(journal, "SEGMENT", 2048)
        monkeypatch.setattr(journal, "LIMIT", 8_000)
        monkeypatch.setattr(journal, "RESERVED", 4_000)
    site = Site(tmp_path, monkeypatch)
    site.boot()
    site.run(3000)
    session(site, 0)
    backup(site, tmp_path / "backup")
    before = len(site.bare.rows(Record))
    for number in range(1, 6):
        session(site, number)
    site.run(MINUTE)
    everything = {row.seq: row.body for row in site.bare.rows(Record)}
    first, last = site.app.journal.first, site.app.journal.seq
    assert (first <= before + 1) == kept
    stations = {n: s.model_dump() for n, s in site.bare.config.stations.items()}
    site.bare = Bare(tmp_path / "backup", stations=stations)
    assert len(site.bare.rows(Record)) == before
    id = site.command("SET_AVAILABILITY", {"evse": 1, "operative": False})
    site.run(3 * MINUTE)
    assert site.word(id) == "ACCEPTED"  # heard at once, though the backup has an older n
    restored = {row.seq: row.body for row in site.bare.rows(Record) if row.seq <= last}
    alarms = [(alarm.kind, alarm.first, alarm.last) for alarm in site.bare.rows(Alarm)]
    if kept:
        assert alarms == [] and restored == everything
    else:
        ((kind, begin, end),) = alarms
        assert (kind, begin) == ("gap", before + 1)
        assert end == min(set(restored) - set(range(before + 1))) - 1 >= before + 1
        assert restored == {s: b for s, b in everything.items() if not begin <= s <= end}
    assert site.app.journal.acked == site.app.journal.seq and not site.troubles
