"""Clock: what time it is, how sure that is, and the least it can be.

Rules
 1. A boot begins without a time (UNSET). The RTC may remember one over a reset that kept its
    power (HOLDOVER). An authenticated answer of the gateway makes it SYNCED.
 2. A trusted answer is one to a message sent less than 10 s ago: the true time lies between
    sending and receiving, so the error is half the round trip, and grows by 100 ppm after that.
 3. Time never reaches back before the firmware was built. An answer that contradicts the clock,
    or what is known of earlier boots (rule 4), counts only when another one agrees with it. Then
    the clock, and the bound with it, steps: `step` in the record.
 4. Each `time` record is an anchor that dates records of its boot, and a lower bound of time for
    ever after: the bound, plus the uptime since, carries over boots that never learn the time.

All moments are unix milliseconds; `up` is milliseconds since boot.
"""

UNSET = "unset"
HOLDOVER = "holdover"
SYNCED = "synced"

BUILT_MS = 1767225600000  # 2026-01-01: no firmware of this version ran before
ANSWER_MS = 10000
_ANCHOR_MS = 6 * 3600 * 1000
_DRIFT = 10000  # 100 ppm
_STEP_MS = 2000
_WORTH_MS = 2000  # an error below this is not worth another record

FIELDS = ("floor_ms", "floor_up")


class Clock:
    def __init__(self):
        self.floor_ms = None  # durable: it was at least this ...
        self.floor_up = 0  # ... at this uptime of the boot that is replayed
        self.state = UNSET
        self.unix_ms = self.up = self.err_ms = 0
        self.odd = None  # unix ms at uptime 0 by the last answer that contradicted

    def now(self, up):
        """Unix ms, or None while unset."""
        return None if self.state == UNSET else self.unix_ms + up - self.up

    def err(self, up):
        """How far `now` may be off, in ms."""
        return self.err_ms + (up - self.up) // _DRIFT

    def least(self, up):
        """The earliest it can be now, or None when nothing is known at all."""
        if self.state != UNSET:
            return self.now(up) - self.err(up)
        return self.bound(up)

    def bound(self, up):
        """The part of `least` that is durable: the same before a reset and in its replay."""
        if self.floor_ms is None:
            return None
        span = up - self.floor_up
        return self.floor_ms + span - (span + _DRIFT - 1) // _DRIFT

    def hold(self, unix_ms, err_ms, up):
        """Take over what the RTC kept, unless it is plainly wrong. RAM only."""
        if self.state == UNSET and unix_ms >= max(BUILT_MS, self.least(up) or 0):
            self.state = HOLDOVER
            self.unix_ms, self.err_ms, self.up = unix_ms, err_ms, up


def decide(clock, up, sent_up, unix_ms):
    """The `time` record (or None) that an authenticated answer deserves.

    `sent_up` is when the answered message was made, `unix_ms` the gateway's word.
    """
    trip = up - sent_up
    if not 0 <= trip < ANSWER_MS or unix_ms < BUILT_MS:
        return None
    now = unix_ms + trip // 2
    err = trip // 2 + 20
    record = {"t": "time", "unix_ms": now, "err_ms": err}
    known = clock.now(up)
    bound = clock.bound(up)
    if (known is None or abs(now - known) <= clock.err(up) + err + _STEP_MS) and (
        bound is None or now + err + _STEP_MS >= bound
    ):
        clock.odd = None
        due = up - clock.up > _ANCHOR_MS or max(err * 4, _WORTH_MS) < clock.err(up)
        return record if due or clock.state != SYNCED else None
    zero = now - up
    if clock.odd is not None and abs(zero - clock.odd) <= _STEP_MS + err:
        clock.odd = None
        record["step"] = True
        return record
    clock.odd = zero
    return None


def evolve(clock, record, last):
    """Apply a `time` or `boot` record; `last` is the uptime of the record before it."""
    if record["t"] == "time":
        clock.unix_ms = record["unix_ms"]
        clock.up = record["up_ms"]
        clock.err_ms = record["err_ms"]
        clock.state = SYNCED
        least = record["unix_ms"] - record["err_ms"]
        bound = clock.bound(record["up_ms"])
        if record.get("step") or bound is None or least > bound:
            clock.floor_ms = least
            clock.floor_up = record["up_ms"]
    else:
        if clock.floor_ms is not None and last > clock.floor_up:
            clock.floor_ms = clock.bound(last)
        clock.floor_up = 0
        clock.state = UNSET
        clock.odd = None
