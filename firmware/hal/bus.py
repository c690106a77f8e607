"""Many meters, one wire: whose turn it is, when to retry, when to give up.

A bus is polled: `turn(now)` returns at once, and a steady poll allocates nothing. One request is
in flight at a time. A poll of a meter is one request per block of its plan; between two requests
of one poll the other meters on the bus have their turn.

1. A meter is due when asked for (`demand`), when its period is over, or in the middle of a poll.
2. Due meters are served round robin, one request each.
3. A dropped reply is asked for again, RETRIES times; then the poll has failed.
4. After n failed polls in a row the meter waits period * 2^n, at most BACK_OFF_MS, or until it is
   asked for.
5. The serial number is read at the start, every IDENTIFY_MS, and after a failed poll: a meter may
   have been exchanged meanwhile.

A subclass brings the wire: _ready(poll, now); _send(poll, now); _receive(poll, now), which is
PENDING or an outcome of modbus (0: a sound reply); _data, the reply; _at, where its registers are.
"""

RETRIES = 2
BACK_OFF_MS = 30_000
IDENTIFY_MS = 300_000
PENDING = -1


class Poll:
    """A meter on this bus, and how far its poll has come."""

    def __init__(self, meter, unit, period_ms):
        self.meter = meter
        self.unit = unit
        self.period_ms = period_ms
        self.wait_ms = 0
        self.begun_at = 0
        self.running = False
        self.tries = 0
        self.identify = True
        self.identified_at = 0
        self.block = None


class Bus:
    _data = b""
    _at = 0

    def __init__(self, ticks_diff):
        self._diff = ticks_diff
        self._polls = []
        self._last = -1
        self._active = None

    def add(self, meter, unit, period_ms=1000):
        """Poll this meter at slave address `unit` every `period_ms`."""
        self._polls.append(Poll(meter, unit, period_ms))

    def turn(self, now):
        """One step, never a wait. `now`: ticks in ms."""
        poll = self._active
        if poll is None:
            i = self._due(now)
            if i >= 0 and self._ready(self._polls[i], now):
                self._ask(i, now)
            return
        outcome = self._receive(poll, now)
        if outcome == PENDING:
            return
        self._active = None
        meter = poll.meter
        if not outcome:
            outcome = meter.accept(self._data, self._at)
            if outcome:  # a sound answer that makes no sense: asking again would not help
                meter.reject(outcome)
                self._give_up(poll)
                return
        elif not meter.reject(outcome):
            poll.tries += 1
            if poll.tries > RETRIES:
                self._give_up(poll)
            return
        poll.tries = 0
        if meter.block() is None:
            self._complete(poll, now)

    def _ready(self, poll, now):
        raise NotImplementedError

    _send = _receive = _ready

    def _due(self, now):
        polls = self._polls
        size = len(polls)
        i = self._last
        for _ in range(size):
            i += 1
            if i >= size:
                i = 0
            poll = polls[i]
            if (
                poll.running
                or poll.meter.wanted
                or self._diff(now, poll.begun_at) >= poll.wait_ms
            ):
                return i
        return -1

    def _ask(self, i, now):
        poll = self._polls[i]
        if not poll.running:
            poll.running = True
            poll.begun_at = now
            poll.tries = 0
            if self._diff(now, poll.identified_at) >= IDENTIFY_MS:
                poll.identify = True
            poll.meter.begin(poll.identify)
        poll.block = poll.meter.block()
        self._active = poll
        self._send(poll, now)
        self._last = i

    def _complete(self, poll, now):
        poll.running = False
        poll.wait_ms = poll.period_ms
        if poll.identify:
            poll.identify = False
            poll.identified_at = now
        poll.meter.complete(now)

    def _give_up(self, poll):
        poll.running = False
        poll.identify = True
        poll.meter.fail()
        wait_ms = poll.period_ms
        for _ in range(poll.meter.failed):
            wait_ms *= 2
            if wait_ms >= BACK_OFF_MS:
                wait_ms = BACK_OFF_MS
                break
        poll.wait_ms = wait_ms
