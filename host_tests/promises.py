"""The witness of a life on a flash that is cut: what was durable, acted on, reported; P1 to P9.

It shares no code with the firmware and runs in the MicroPython VM beside it. It hears each group
of records when the store is asked for it and when that returned, each closing of a contactor,
each card, and in the end the lines that the gateway has. From the records it keeps a small
picture of its own: reservation, session, boot. `broken` is the first promise that does not hold,
in words.
"""

import json

UNIX_MS = 1790000000000  # true time at ms 0 of the site
TURN_MS = 1000  # the longest turn of the loop


def stop_of(k):
    return "an emergency stop" if k % 2 else "the holder's card"


def same(a, b):
    for key in ("country_code", "party_id", "type", "uid"):
        if a[key].lower() != b[key].lower():
            return False
    return True


class Witness:
    def __init__(self, site):
        self.site = site
        self.broken = None
        self.log = []  # (sequence, lines, records, operations before and after, ms): durable
        self.next = 1
        self.unsure = None  # (sequence, lines): asked for when the power went
        self.boot = None
        self.began = {}  # boot -> ms
        self.booting = None
        self.reservation = self.session = None
        self.slot = None  # the one that is booked
        self.energised = None  # boot in which the session was seen energised
        self.cards = []
        self.base_wh = 0

    def fail(self, promise, text):
        if self.broken is None:
            self.broken = "%s: %s" % (promise, text)

    @property
    def durable(self):
        return sum([len(group[1]) for group in self.log])

    # -- what it hears -------------------------------------------------------------------------

    def begin(self, seq, chip):
        """From here on all is asked of the firmware; everything before it was another life."""
        self.log = []
        self.next = seq
        self.chip = chip
        self.base_wh = self.site.real[1].mwh // 1000
        self.broken = None

    def boots(self):
        self.booting = self.site.ms

    def asked(self, seq, lines):
        self.unsure = (seq, lines)

    def written(self, seq, lines, begun, ended):
        self.unsure = None
        records = [json.loads(line) for line in lines]
        self.log.append((seq, lines, records, begun, ended, self.site.ms))
        self._take(seq, records, self.site.ms)

    def shown(self, uid):
        self.cards.append((self.site.ms, uid))

    def closes(self):
        """The contactor is driven to close."""
        s = self.session
        if s is None:
            self.fail("P3", "closes without a durable start")
        elif s["boot"] != self.boot and (self.energised is None or self.energised == self.boot):
            self.fail("P3", "closes for a session that was never seen energised")
        if self.reservation is not None:
            self.fail("P4", "closes while %s holds" % self.reservation["reservation_id"])

    def inherit(self, life, k, site):
        """Know what `life` had made durable by its operation `k`. What was under way then may be
        there or not: the next record tells."""
        self.base_wh = life.base_wh
        self.next = life.log[0][0]
        self.cards = [card for card in life.cards if card[0] <= site.ms]
        for seq, lines, records, begun, ended, ms in life.log:
            if ended <= k:
                self.log.append((seq, lines, records, begun, ended, ms))
                if records[0]["t"] == "boot":
                    self.booting = life.began[records[0]["boot"]]
                self._take(seq, records, ms)
            elif begun <= k:
                self.unsure = (seq, lines, records, ms, life.began)

    # -- what it thinks of it ------------------------------------------------------------------

    def _take(self, seq, records, ms):
        unsure = self.unsure
        if seq != self.next and unsure is not None and len(unsure) == 5:
            if seq == unsure[0] + len(unsure[1]):  # it was there after all
                self.unsure = None
                if unsure[2][0]["t"] == "boot":
                    booting, self.booting = self.booting, unsure[4][unsure[2][0]["boot"]]
                    self._take(unsure[0], unsure[2], unsure[3])
                    self.booting = booting
                else:
                    self._take(unsure[0], unsure[2], unsure[3])
                self.log.append((unsure[0], unsure[1], unsure[2], 0, 0, unsure[3]))
        if seq != self.next:
            self.fail("P2", "record %d follows %d" % (seq, self.next - 1))
        self.next = seq + len(records)
        for record in records:
            self._record(record, records, ms)

    def _record(self, r, group, ms):
        t = r["t"]
        if t == "boot":
            if self.boot is not None and r["boot"] != self.boot + 1:
                self.fail("P2", "boot %d follows boot %d" % (r["boot"], self.boot))
            self.boot = r["boot"]
            self.began[r["boot"]] = self.booting
            if r["cause"] != "power" or not r["fw"] or r["slot"] not in ("a", "b"):
                self.fail("P9", "boot says %r" % r)
        elif t == "time":
            off = r["unix_ms"] - UNIX_MS - self.began[r["boot"]] - r["up_ms"]
            if abs(off) > r["err_ms"]:
                self.fail("P3", "time is off by %d ms, said to be within %d" % (off, r["err_ms"]))
        elif t == "reserve":
            held = self.reservation
            if held is not None and held["reservation_id"] != r["reservation_id"]:
                self.fail("P4", "%r takes the place of %r" % (r, held))
            self.reservation = r
        elif t == "release":
            self._release(r, group, ms)
        elif t == "start":
            self._start(r, group, ms)
        elif t == "status" and self.session is not None:
            if r.get("session_id") == self.session["session_id"] and r["status"] == "CHARGING":
                self.energised = self.energised or r["boot"]
        elif t == "stop":
            if self.session is None or self.session["session_id"] != r["session_id"]:
                self.fail("P2", "stop of %s" % r["session_id"])
            elif self.slot and self.session.get("booking_id") == self.slot["booking_id"]:
                self.slot = None  # used
            self.session = None
        elif t == "event" and r["what"] == "booked":
            self.slot = r["slot"]
        elif t == "event" and r["what"] == "unbooked":
            self._unbooked(r, ms)
        elif t == "event" and r["what"] == "journal_new":
            if self.boot != 1 or self.next > 5:
                self.fail("P2", "the journal is new")
        elif t == "lost":
            self.fail("P2", "records are lost: %r" % r)

    def _unbooked(self, r, ms):
        slot = self.slot
        self.slot = None
        if slot is None or slot["booking_id"] != r["booking_id"]:
            self.fail("P4", "unbooked: %r" % r)
        elif UNIX_MS + ms < slot["end_ms"]:
            self.fail("P4", "the slot is given up %d ms early" % (slot["end_ms"] - UNIX_MS - ms))

    def _release(self, r, group, ms):
        held = self.reservation
        if held is None or held["reservation_id"] != r["reservation_id"]:
            self.fail("P4", "release of %s" % r["reservation_id"])
            return
        self.reservation = None
        if r["cause"] == "expired":
            late = UNIX_MS + ms - held["expiry_ms"]
            if late < 0:
                self.fail("P4", "expired %d ms early" % -late)
            if late > 1000 + 2 * 600 + TURN_MS:
                self.fail("P5", "expired %d ms late" % late)
        elif r["cause"] == "used":
            start = [other for other in group if other["t"] == "start"]
            if not start or not same(start[0]["token"], held["token"]):
                self.fail("P4", "used by %r" % start)
        elif r["cause"] != "cancelled_by_emsp":
            self.fail("P4", "released by %s" % r["cause"])

    def _start(self, r, group, ms):
        if self.session is not None:
            self.fail("P3", "two sessions at once")
        if self.reservation is not None:
            self.fail("P4", "starts while %s holds" % self.reservation["reservation_id"])
        slot = self.slot
        if slot is not None and -slot["guard_ms"] <= UNIX_MS + ms - slot["start_ms"]:
            if UNIX_MS + ms < slot["end_ms"] and not same(slot["tokens"][0], r["token"]):
                self.fail("P4", "starts in the slot of %s" % slot["booking_id"])
        if r["source"] == "card":
            shown = [c for c in self.cards if c[1] == r["token"]["uid"] and ms - c[0] < 150000]
            if not shown:
                self.fail("P3", "start by a card that nobody showed")
        elif not [other for other in group if other["t"] == "result"]:
            self.fail("P6", "remote start without its command")
        self.session = r
        self.energised = None

    # -- the end -------------------------------------------------------------------------------

    def finish(self, lines, first):
        """Hold the gateway's lines, from sequence `first` on, against all of it."""
        for seq, durable, _, _, _, _ in self.log:
            for i in range(len(durable)):
                at = seq + i - first
                if not 0 <= at < len(lines) or lines[at] != durable[i]:
                    self.fail("P2", "record %d is lost: %r" % (seq + i, durable[i]))
        if first + len(lines) != self.next:
            self.fail("P2", "%d lines of %d" % (first + len(lines), self.next))
        starts, stops, results = {}, {}, {}
        attributed = own = 0
        for line in lines:
            if b'"t":"event"' in line:
                continue
            r = json.loads(line)
            t = r["t"]
            if t == "start":
                starts[r["session_id"]] = starts.get(r["session_id"], 0) + 1
                attributed += r["outside_wh"]
            elif t == "stop":
                stops[r["session_id"]] = stops.get(r["session_id"], 0) + 1
                own -= r["total_wh"]
            elif t == "period":
                if r["wh"] < 0 or r["to"] < r["from"]:
                    self.fail("P3", "impossible period %r" % r)
                attributed += r["wh"]
                own += r["wh"]
            elif t == "meter":
                attributed += r["outside_wh"] + r["unobserved_wh"]
            elif t == "result":
                id = r["command_id"]
                if id in results:
                    self.fail("P6", "command %s has two results" % id)
                results[id] = r["result"]
        if starts != stops or [n for n in starts.values() if n != 1]:
            self.fail("P2", "starts %r, stops %r" % (starts, stops))
        advance = self.site.real[1].mwh // 1000 - self.base_wh
        if attributed != advance or own != 0:
            self.fail("P1", "%d Wh on record, the meter moved by %d" % (attributed, advance))
