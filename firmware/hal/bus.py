"""Many meters, one wire: whose turn it is, when to retry, when to give up.

A bus is polled: `turn(now)` returns at once, and a steady poll allocates nothing. One request is
in flight at a time. A poll of a meter is one request per block of its plan; between two requests
of one poll the other meters on the bus have their turn.

1. A meter is due when asked for (`demand`), when its period is over, or in the middle of a poll.
2. Due meters are served in turn, one request each. Between two requests there is the rest that
   the wire asks for, and at a change of meter the pause that the next one asks for.
3. A dropped reply is asked for again, RETRIES times; then the poll has failed.
4. After n failed polls in a row the meter waits period * 2^n, at most BACK_OFF_MS, or until it is
   asked for.
5. The serial number is read at the start, every IDENTIFY_MS, and after a failed poll: a meter may
   have been exchanged meanwhile.

A subclass brings the wire: _exchanges(), a generator that is sent the time at every turn of an
exchange. It asks for `_poll.meter.block`, yields PENDING until the exchange is over and then its
outcome (of modbus; 0: a sound reply, in `_data` from index `_at`), with `_rest_ms` set. Generators
because a resumed one keeps its locals: no call, no look-up, no allocation.
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


class Bus:
    """`turn(now)`: one step, never a wait. `now`: ticks in ms."""

    _data = b""
    _at = 0

    def __init__(self, ticks_diff):
        self._diff = ticks_diff
        self._polls = []  # the one that waits longest for its turn first
        self._poll = None  # the one in flight, or the last that was
        self._rest_ms = 0
        self._begin()

    def _begin(self):
        turns = self._turns()
        next(turns)
        self.turn = turns.send

    def add(self, meter, unit, period_ms=1000):
        """Poll this meter at slave address `unit` every `period_ms`."""
        self._polls.append(Poll(meter, unit, period_ms))

    def _exchanges(self):
        raise NotImplementedError

    def _turns(self):
        now = yield
        try:
            diff = self._diff
            polls = self._polls
            ended_at = now
            exchanges = self._exchanges()
            next(exchanges)
            exchange = exchanges.send
            while True:
                for poll in polls:
                    meter = poll.meter
                    if poll.running or meter.wanted or diff(now, poll.begun_at) >= poll.wait_ms:
                        break
                else:
                    now = yield
                    continue
                rest_ms = self._rest_ms
                if poll is not self._poll:
                    if self._poll is not None:
                        rest_ms = max(rest_ms, meter.switch_ms)
                if diff(now, ended_at) < rest_ms:
                    now = yield
                    continue
                if poll is not polls[-1]:
                    polls.remove(poll)
                    polls.append(poll)
                if not poll.running:
                    poll.running = True
                    poll.begun_at = now
                    poll.tries = 0
                    if diff(now, poll.identified_at) >= IDENTIFY_MS:
                        poll.identify = True
                    if poll.identify:
                        meter.begin(True)
                    meter.wanted = False
                self._poll = poll
                outcome = exchange(now)
                while outcome == PENDING:
                    now = yield
                    outcome = exchange(now)
                ended_at = now
                if not outcome:
                    outcome = meter.accept(self._data, self._at)
                    if outcome:  # a sound answer that makes no sense: again would not help
                        poll.tries = RETRIES
                if outcome:
                    self._dropped(poll, outcome)
                else:
                    poll.tries = 0
                if meter.block is None:
                    poll.running = False
                    poll.wait_ms = poll.period_ms
                    if poll.identify:
                        poll.identify = False
                        poll.identified_at = now
                    meter.complete(now)
                now = yield
        except Exception:
            self._begin()  # a generator that has raised is over
            raise

    def _dropped(self, poll, outcome):
        """A reply was no answer: go on without, ask again, or give up."""
        if poll.meter.reject(outcome):
            poll.tries = 0
            return
        poll.tries += 1
        if poll.tries > RETRIES:
            self._give_up(poll)

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
