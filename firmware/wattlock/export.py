"""Energy that flows back, on the meter's export register: a ledger of its own.

Nothing here is ever set off against import. An `export` record takes the durable export register
(`export` of the ledger in metering.py, by its `evolve`) from `before_wh` to `after_wh`:

- `wh` of it flowed in the session that the record names, or, without one, outside any session;
- `unobserved_wh` of it is more than the connection could have given (`jump`), or came with the
  first reading of a session that had begun without one (`gap`, rule 7 of metering.py): told, and
  nobody's.

So they sum to after - before, but where the register was set back (`rollback`) or is seen for the
first time (`found`, before unknown). A new meter's register comes with the `serial` fact.

A reading that the import side has believed is judged here as there: lower, or too much at once,
counts when it was shown twice. Records are written with the groups that divide import (start,
period, stop), so a power cut loses none: the register goes on from the durable one.

Loaded when an export register first moves.
"""


class Export:
    """What this boot has seen of the export register of one EVSE."""

    def __init__(self, ledger, n):
        self._ledger = ledger
        self._n = n
        self._last = ledger.export
        self._doubt_wh = None
        self._stale = False
        self._possible = 0  # Wh, before a fact that could not be written

    def offer(self, meter, possible, session_id, commit, stale):
        """Judge the reading against what was `possible` (Wh) since the last one; `stale`: the
        session began without one. What is found out by it goes to `commit`; where that fails, the
        next reading finds it again."""
        self._stale = self._stale or stale
        possible += self._possible
        wh = meter.export_wh
        if wh is None or wh >> 50:
            return
        last = self._last
        what = None
        if last is None:
            what = "found"
        elif not 0 <= wh - last <= possible:
            sure = self._doubt_wh is not None and 0 <= wh - self._doubt_wh <= possible
            self._doubt_wh = wh
            if not sure:
                return
            what = "jump" if wh > last else "rollback"
        elif self._stale and wh != last:
            what = "gap"
        self._doubt_wh = None
        if what is not None:
            fact = self._record(what, session_id, last, wh, 0)
            if what in ("jump", "gap"):
                fact["unobserved_wh"] = wh - last
            if not commit(self.owed(session_id) + (fact,)):
                self._possible = possible
                return
        self._possible = 0
        self._stale = False
        self._last = wh

    def owed(self, session_id):
        """The record of what has flowed since the last one: () where nothing has."""
        before = self._ledger.export
        last = self._last
        if before is None or last == before:
            return ()
        return (self._record("counted", session_id, before, last, last - before),)

    def _record(self, what, session_id, before_wh, after_wh, wh):
        return {
            "t": "export",
            "evse": self._n,
            "what": what,
            "session_id": session_id,
            "serial": self._ledger.serial,
            "before_wh": before_wh,
            "after_wh": after_wh,
            "wh": wh,
            "unobserved_wh": 0,
        }
