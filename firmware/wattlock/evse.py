"""One EVSE at work: what is seen becomes records, and outputs follow the state.

Each turn: look at the inputs, drive the outputs as the state wants them (opening waits for
nothing), then decide, make durable, evolve. A record that cannot be written leaves the state as it
was, so the next turn decides again. Only what is level-triggered lives here; what a reset must not
forget is in `station.Evse`.
"""

from . import gate, lights, metering, reservation, session, tokens
from .lock import LOCK_STUCK, STUCK, STUCK_OPEN, WELDED, WELL, Drive, again, decide
from .ocpi import AVAILABLE, CHARGING, INOPERATIVE, OUTOFORDER, RESERVED, RFID

_ARMED_MS = 120000  # a right waits this long for the plug
_BASELINE_MS = 5000  # a start waits this long for a fresh reading
_SETTLE_MS = 5000  # a stop waits this long for a settled reading
_RETURN_MS = 60000  # from the boot record: how long a session waits for meter and time
_OFF_MS = 5000  # least time without power before a session is resumed
_OUTAGE_MS = 600000  # without a lock to prove that the cable stayed: longest outage to resume
_KIND_MS = 2000  # a pause counts when it has lasted this long
_LIVE_MS = 15000  # a meter whose newest reading is older is not live
_METER_LOST_MS = 60000
_DEAD_MS = 200  # from the contactor seen open to the unlocking and the last reading
_UNLOCK_MS = 10000  # UNLOCK_CONNECTOR waits this long for the lock
_QUARTER_MS = 900000
_WELDED_W = 200
_LOAD_MS = 10000  # so long after the first sign of it, current while open is a welded contactor
_FROZEN_WS = 300 * 3600  # what may flow, beyond two steps of it, before a register is frozen
_STILL_WS = 20 * 3600  # while open and the power stands still, too: beyond a step and a quarter
_UNKNOWN_TIME_MS = 120000  # `clock_lost` release: how long to wait for the time
_GIVE_BACK_MS = 10000  # out of service for so long: its reservation is given back

UNPLUGGED = "unplugged"
_LIGHTS = {
    OUTOFORDER: lights.FAULT,
    INOPERATIVE: lights.OUT,
    CHARGING: lights.CHARGING,
    RESERVED: lights.RESERVED,
}


class Grant:
    """A right that was given and is not yet a session."""

    def __init__(self, right, source, token, auth_method, reference, command, ticks):
        self.right = right
        self.source = source
        self.token = token
        self.auth_method = auth_method
        self.reference = reference
        self.command = command  # the START_SESSION that is still to be answered, or None
        self.session_id = None  # given by the gateway, or None
        self.since = ticks
        self.accepted: int | None = None  # count of readings when the baseline was asked for


class Post:
    exported = None  # once energy flows back, see export.py
    glitch_at = None  # ticks of the last record of glitches

    def __init__(self, app, state, pins, meter, config):
        self.app = app
        self.state = state
        self.pins = pins
        self.meter = meter
        self.config = config
        self.rating_w = config["max_a"] * config["phases"] * 230
        self.contactor = Drive()
        self.lock = Drive()
        self.seal = None
        if hasattr(meter, "sign"):
            from .seal import Seal

            self.seal = Seal(self)
        self.grant = None
        self.booked = None  # booked.Booked where there are bookings
        self.held = None  # id of the session that this boot started or resumed
        self.reserved_up = -86400000  # up_ms of the newest RESERVE_NOW, of this boot or long ago
        self.ending = None  # cause of a stop that is not durable yet
        self.stopper = None
        self.plugged = self.ready = False
        self.stayed_locked = pins.locked()  # before anything is driven
        if hasattr(meter, "floor") and state.ledger.serial == meter.serial:
            meter.floor(state.ledger.register)  # pulses: what has been told was counted
        self.readings = meter.readings
        self.accepted = 0  # readings that the ledger took, this boot
        self.accepted_at = None
        self.settled = 0  # accepted in a row without a change
        self.meter_down = False
        self.still_ws = 0  # what has flowed since the readings moved last, about
        self.power_w = self.energy_wh = 0  # of the newest reading; both registers together
        self.discontinuous = False
        self.max_w = 0
        self.kind_since = None
        self.open_since = None  # ticks when the contactor was first seen open, wanted open
        self.open_up = 0
        self.open_accepted = 0
        # ticks since when power is seen while open, in readings that move; a welded contactor of
        # a boot before has it until a reading tells
        self.load_since = app.ticks if state.fault == WELDED else None
        self.unlocking = None  # UNLOCK_CONNECTOR that waits for the lock
        self.unlocking_since = 0
        self.vended = False
        self.refused_at = None
        self.quarter = None
        self.checked = None
        self.out_since = None  # ticks since when a reserved EVSE is out of service
        self.told = self._shown = None

    # -- what it is ----------------------------------------------------------------------------

    def status(self):
        s = self.state
        if s.fault is not None or self.app.estop():
            return OUTOFORDER
        if not s.operative:
            return INOPERATIVE
        if s.session is not None:
            return CHARGING
        if s.reservation is not None or self._slot() is not None:
            return RESERVED
        return CHARGING if self.plugged else AVAILABLE

    def inoperative(self):
        """Out of service, whatever the reason: the operator, a fault, the emergency stop."""
        state = self.state
        return (
            not state.operative
            or state.fault is not None
            or self.pins.fault()
            or self.app.estop()
        )

    def time_unknown(self):
        """Reserved, and nobody knows for how long still."""
        return self.app.now() is None and (
            self.state.reservation is not None or self._slot() is not None
        )

    def _outline(self):
        s = self.state.session
        return (self.status(), None if s is None else s.id, self.time_unknown(), self.plugged)

    def live(self, brief=False):
        """The picture of now; a brief one has what flows, and nothing where nothing can."""
        picture = {}
        s = self.state.session
        if not brief:
            self._shown = self._outline()
            picture["status"] = self.status()
            picture["plugged"] = self.plugged
            if self.time_unknown():
                picture["time_unknown"] = True
            if s is not None:
                picture["session"] = s.id
        if s is not None:
            picture["wh"] = s.total_wh
            if s.phase != session.INTERRUPTED:
                picture["wh"] += self.state.ledger.advance()
            if self.meter.power_w is not None and not self.meter_down:
                picture["w"] = self.meter.power_w
            until = None if brief or self.booked is None else self.booked.until()
            if until is not None:
                picture["until_ms"] = until
        return picture

    def occupancy(self):
        """What the EVSE is to the gate, leaving aside a right that waits for its start."""
        state = self.state
        return gate.occupancy(
            state.session is not None, state.reservation is not None, self._slot() is not None
        )

    def refusal(self, occupancy, right, source):
        """The gate's answer as this EVSE stands."""
        return gate.refusal(
            occupancy,
            right,
            source,
            self.state.operative,
            self.inoperative(),
            self.metered() or source == gate.RESUME,
        )

    def right_of(self, token, remote=False):
        """The right that an authorised token has here."""
        held = self.state.reservation
        if held is not None:
            if tokens.same(token, held.token):
                return gate.RESERVATION
            if tokens.same_group(token, held.token):
                return gate.GROUP
        elif self.booked is not None and self.booked.by_token(token, remote) is not None:
            return gate.BOOKING
        return gate.TOKEN

    def kept_for(self, uid):
        """(token, authorization_reference) of the reservation or the booking here, if this is the
        card of it; else None."""
        held = self.state.reservation
        if held is not None:
            if tokens.is_card(held.token, RFID, uid):
                return held.token, held.authorization_reference
        elif self.booked is not None:
            found = self.booked.by_card(RFID, uid)
            if found is not None:
                return found[1], None
        return None

    def _slot(self):
        """The booked slot that locks now, or None."""
        return None if self.booked is None else self.booked.slot()

    def metered(self):
        return not self.config["require_meter"] or self._live()

    def _live(self):
        return self.accepted_at is not None and self.app.since(self.accepted_at) < _LIVE_MS

    # -- a turn --------------------------------------------------------------------------------

    def turn(self, ticks):
        pins = self.pins
        self.plugged = pins.plugged()
        self.ready = pins.ready()
        s = self.state.session
        running = s is not None and s.phase in (session.STARTED, session.ENERGISED)
        if running and self.app.booted:  # before that, it is what a reset has interrupted
            self._watch()
        self._outputs(ticks)
        self._read(ticks)
        if self.seal is not None:
            self.seal.turn()
        s = self.state.session
        if s is None:
            self._idle(ticks)
        elif s.phase == session.INTERRUPTED:
            self._recover(s)
        elif s.phase == session.ENDING:
            self._finish(s)
        else:
            self._run(s, ticks)
        if self.app.wrote or (
            self.checked is not None and self.app.since(self.checked) < 1000
        ):
            return
        self._each_second()
        if not self.app.wrote:
            self._drives()
            self._tell()
        if not self.app.wrote:  # else there may be more: the next turn looks again
            self.checked = ticks

    def _tell(self):
        """Whenever the status, the session or the plug changes: a line on the console, and a whole
        picture upwards where none has shown it."""
        told = self._outline()
        if told != self.told:
            self.told = told
            picture = {"evse": self.state.n, "status": told[0], "session": told[1]}
            if told[2]:
                picture["time_unknown"] = True
            self.app.tell(picture)
            if told != self._shown:
                self.app.uplink.hurry = True

    def _watch(self):
        """Reasons to stop that the EVSE sees itself."""
        if self.app.estop():
            self.stop(session.EMERGENCY)
        elif self.pins.fault() or self.state.fault is not None:
            self.stop(session.FAULT)
        elif not self.plugged:
            self.stop(session.UNPLUGGED)
        elif not self.state.operative:
            self.stop(session.OPERATOR)
        elif (
            self.config["require_meter"]
            and self.accepted_at is not None
            and self.app.since(self.accepted_at) > _METER_LOST_MS
        ):
            self.stop(session.METER_LOST)

    def stop(self, cause, token=None):
        """End the session: the contactor opens this turn, the record follows."""
        if self.ending is None:
            self.ending = cause
            self.stopper = token
            self._outputs(self.app.ticks)

    def unlock(self, command):
        """UNLOCK_CONNECTOR: the lock is driven open once there is no current; answered when it is
        seen open, or FAILED when it is not."""
        self.unlocking = command
        self.unlocking_since = self.app.ticks
        self.lock.tries = 0  # one that is stuck is tried again

    def is_stopping(self):
        """Does it stop or unlock just now? Nothing that takes long is begun meanwhile."""
        since = self.app.since
        if self.unlocking is not None and since(self.unlocking_since) <= _UNLOCK_MS:
            return True
        if self.ending is None:
            s = self.state.session
            if s is not None and s.phase != session.ENDING:
                return False
            if not (self.lock.wanted or self.pins.locked()):
                return False
        return since(self.contactor.since) <= _UNLOCK_MS

    def _outputs(self, ticks):
        s = self.state.session
        want = (
            s is not None
            and s.phase in (session.STARTED, session.ENERGISED)
            and s.id == self.held
            and self.ending is None
            and (self.seal is None or self.seal.open)
            and self.plugged
            and not self.app.estop()
            and (self.contactor.wanted or self.pins.locked() is not False)
        )
        closed = self.pins.closed()
        if self.contactor.want(want, ticks):
            self.pins.contactor(want)
            self._opened(None)
        if not want and self.open_since is None and closed is not True:
            self._opened(ticks)
        keep = self.plugged and (
            (s is not None and s.phase != session.ENDING and self.ending is None)
            or (self.grant is not None and self.grant.accepted is not None)
            or not self.dead(closed)
        )
        if self.unlocking is not None and self.dead(closed):
            keep = False
        if self.lock.want(keep, ticks):
            self.pins.lock(keep)
        self._light(ticks)

    def _opened(self, ticks):
        self.open_since = ticks
        self.open_up = self.app.up_ms()
        self.open_accepted = self.accepted

    def dead(self, closed):
        """Is the outlet without current? Without feedback the meter's power must have fallen."""
        if self.open_since is None:
            return False
        passed = self.app.since(self.open_since)
        if self._live() and abs(self.meter.power_w or 0) >= _WELDED_W:
            unread = self.accepted < self.open_accepted + 2 and passed < _SETTLE_MS
            if closed is None or self.load_since is not None or unread:
                return False  # whatever the feedback says
        return passed >= _DEAD_MS

    def _light(self, ticks):
        if self.refused_at is not None and self.app.since(self.refused_at) >= 2000:
            self.refused_at = None
        if self.refused_at is not None:
            row = lights.WRONG_CARD
        elif self.app.waits(self.state.n) or self.grant is not None:
            row = lights.WAITING
        else:
            row = _LIGHTS.get(self.status())
            if row is None:
                row = lights.AVAILABLE if self.app.board.link.connected else lights.OFFLINE
        self.pins.led(lights.colour(row, ticks))

    # -- readings ------------------------------------------------------------------------------

    def _read(self, ticks):
        meter = self.meter
        ledger = self.state.ledger
        if meter.readings == self.readings:
            if meter.failed >= 5:
                self._down(metering.LOST)
            return
        if self.app.wrote:
            return  # what it brings may have to be on record: the next turn takes it
        self.readings = meter.readings
        if not self.app.booted:
            return
        elapsed = _QUARTER_MS + 60000
        if self.accepted_at is not None:
            elapsed = self.app.since(self.accepted_at)
        before = ledger.last
        possible = metering.possible_wh(self.rating_w, elapsed, meter.step_wh)
        what = metering.offer(ledger, meter.serial, meter.energy_wh, possible, meter.rolls_wh)
        if what == metering.NOTHING:
            if self.app.up_ms() > _LIVE_MS:
                self._down(metering.LOST)
            return
        if what != metering.OK and not self._fact("moved", what):
            return
        power = meter.power_w or 0
        load_w = abs(power)
        energy_wh = ledger.last + (meter.export_wh or 0)
        opened = self.open_since is not None
        # power that only falls is what pulses that have ceased still allow
        moved = energy_wh != self.energy_wh or (opened and load_w > abs(self.power_w or 0))
        self.energy_wh = energy_wh
        self.power_w = power
        step_wh = meter.step_wh or ledger.last >> 22
        uncounted = power < 0 and meter.export_wh is None and not opened
        if moved or load_w < _WELDED_W or uncounted:
            self.still_ws = 0
        elif self.still_ws > (
            _STILL_WS + step_wh * 4500 if opened else _FROZEN_WS + step_wh * 7200
        ):
            self._down(metering.FROZEN)
            return
        else:
            self.still_ws += load_w * min(elapsed, 5000) // 1000
        if not opened or load_w < _WELDED_W:
            self.load_since = None
        elif moved and self.accepted > self.open_accepted:  # the first may be of before
            if self.load_since is None:
                self.load_since = ticks
            elif self.app.since(self.load_since) > _LOAD_MS:
                self._fault(WELDED)  # also where no feedback tells it
        self.settled = self.settled + 1 if ledger.last == before else 0
        self.accepted += 1
        self.accepted_at = ticks
        if power > self.max_w:
            self.max_w = power
        stale = ledger.stale
        if ledger.gap:
            s = self.state.session
            ours = s is not None and s.id != self.held and not ledger.stale
            if ours or not (ledger.advance() or ledger.stale) or self._fact("gap"):
                ledger.gap = False
        if meter.export_wh != ledger.export:
            s = self.state.session
            if self.exported is None:
                from .export import Export

                self.exported = Export(ledger, self.state.n)
            self.exported.offer(meter, possible, s and s.id, self.app.commit, stale)
        if self.meter_down and self._fact("told", metering.BACK):
            self.meter_down = False

    def _down(self, what):
        """No reading counts: a fact once the last one that did is old."""
        if not self.meter_down and not self._live():
            self.meter_down = self._fact("told", what)

    def _fact(self, name, *args):
        """Call one of `facts`. False where that, or its record, cannot be had now."""
        return self.app.may_write() and self.app.once("facts", name, self, *args)

    def commit(self, records):
        """`commit` of a group that divides energy: what has flowed back goes with it, and the
        highest power is counted anew."""
        if records and self.exported is not None:
            s = self.state.session
            records = self.exported.owed(s and s.id) + records
        done = self.app.commit(records)
        if done:
            self.max_w = 0
        return done

    def cut(self, s, next_kind):
        ledger = self.state.ledger
        at = self.app.moment()
        return session.cut(
            s, self.state.n, at, next_kind, ledger.last, ledger.advance(), self.max_w
        )

    # -- without a session ---------------------------------------------------------------------

    def ask(self, right, source, token, auth_method, reference=None, command=None):
        """Ask the gate for a start. Returns why not, or None: then it starts, or waits for the
        plug. `command` is the START_SESSION that is answered with the start."""
        occupancy = gate.BUSY if self.grant is not None else self.occupancy()
        why = self.refusal(occupancy, right, source)
        if why is not None:
            return why
        self.grant = Grant(
            right, source, token, auth_method, reference, command, self.app.ticks
        )
        return None

    def coming(self):
        """Id of the session that a right waits to begin, or None."""
        if self.grant is None:
            return None
        held = self.state.reservation
        return self.grant.session_id if held is None else held.session_id

    def refuse(self, why):
        self.refused_at = self.app.ticks
        self.app.refuse("card", why, self.state.n)

    def _idle(self, ticks):
        self.ending = None
        grant = self.grant
        if grant is None:
            if not self.plugged:
                self.vended = False
            elif self.config["free_vend"] and not self.vended and self.metered():
                self.vended = self.ask(gate.NONE, gate.FREE_VEND, None, None) is None
            return
        if grant.accepted is None:
            if self.plugged:
                grant.accepted = self.accepted
                grant.since = ticks
                self.meter.demand()
            elif self.app.since(grant.since) > _ARMED_MS:
                self.grant = None
            return
        why = self.refusal(self.occupancy(), grant.right, grant.source)
        if not self.plugged or (why is not None and why != gate.NO_METER):
            self._drop(grant, why or UNPLUGGED)
        elif self.seal is not None and self.seal.owes():
            grant.since = ticks  # the last session's record comes first
        elif self.accepted != grant.accepted:
            self._start(grant, True)
        elif self.app.since(grant.since) > _BASELINE_MS:
            if self.config["require_meter"]:
                self._drop(grant, gate.NO_METER)
            else:
                self._start(grant, False)

    def _drop(self, grant, why):
        if grant.command is not None and not self.app.failed(grant.command, self.state.n):
            return
        self.grant = None
        self.refuse(why)

    def _start(self, grant, fresh):
        """Begin the session; without a `fresh` reading its baseline is a stale one."""
        ledger = self.state.ledger
        n = self.state.n
        held = self.state.reservation
        records = ()
        record = {
            "t": "start",
            "evse": n,
            "token": grant.token,
            "auth_method": grant.auth_method,
            "source": gate.SOURCES[grant.source],
            "register_wh": ledger.last,
            "serial": self.meter.serial or ledger.serial,
            "epoch": ledger.epoch,
            "outside_wh": ledger.advance(),
        }
        if not fresh:
            record["stale"] = True
        if self.seal is not None:
            record["signs"] = True
        if held is not None:
            records = reservation.decide(held, n, reservation.USED)
            record["reservation_id"] = held.id
        record["session_id"] = self.coming() or self.app.new_id()
        if self.booked is not None:
            self.booked.name(record, grant)
        if grant.reference:
            record["authorization_reference"] = grant.reference
        records += (record,)
        if grant.command is not None:
            record["command_id"] = grant.command["id"]
            records += (self.app.accepted(grant.command, n, record["session_id"]),)
        self.held = record["session_id"]
        if self.commit(records):
            self.grant = None
            self.quarter = None
            self.kind_since = None
            ledger.gap = not fresh
            if self.seal is not None:
                self.seal.begin()
        else:
            self.held = None
            if not self.app.wrote and self.app.since(grant.since) > 2 * _BASELINE_MS:
                self.grant = None  # what cannot be written down does not start

    # -- with a session ------------------------------------------------------------------------

    def _run(self, s, ticks):
        n = self.state.n
        if self.ending is not None:
            self.app.commit(session.stopping(s, n, self.ending, self.stopper))
            return
        closed = self.contactor.wanted and (
            self.pins.closed() or (self.pins.closed() is None and self._since_want() > 100)
        )
        if closed and s.phase == session.STARTED:
            records = session.energised(s, n)
            if s.kind == session.NOT_OFFERED:  # resumed: the outage ends here
                records += self.cut(s, session.KIND_CHARGING)
            self.commit(records)
            return
        if closed:
            kind = session.KIND_CHARGING if self.ready else session.NOT_REQUESTING
        else:
            kind = session.NOT_OFFERED
        if kind == s.kind:
            self.kind_since = None
        elif self.kind_since is None:
            self.kind_since = ticks
        elif self.app.since(self.kind_since) >= _KIND_MS:
            self.commit(self.cut(s, kind))

    def _since_want(self):
        return self.app.since(self.contactor.since)

    def _finish(self, s):
        """The contactor is open or opening: write the stop once the reading has settled."""
        self.ending = None
        ours = s.id == self.held
        if ours:
            fresh = (
                self.open_since is not None
                and self.app.since(self.open_since) >= _DEAD_MS
                and self.accepted - self.open_accepted >= 2
                and self.settled >= 1
            )
            waited = self._since_want() > _SETTLE_MS
            at = max([self.app.boot, self.open_up], s.since)  # it may never have been closed
        else:
            fresh = self.accepted > 0
            waited = self.app.up_ms() - self.app.booted_up > _RETURN_MS
            at = self.cut_moment(s)
        if not fresh:
            self.meter.demand()
            if not waited:
                return
        ledger = self.state.ledger
        if self.commit(session.stop(s, self.state.n, at, ledger.last, ledger.advance())):
            self.held = None
            self.discontinuous = False
            ledger.gap = not fresh

    def _recover(self, s):
        """After a reset: take the session up again, or end it as of the last moment alive."""
        app = self.app
        n = self.state.n
        up = app.up_ms()
        why = self.refusal(gate.BUSY, gate.SESSION, gate.RESUME)
        if (
            why is not None
            or self.config["on_power_return"] != "resume"
            or s.resumes >= session.MAX_RESUMES
            or not self.plugged
            or self.discontinuous
            or self.stayed_locked is False
            or self.ending is not None
        ):
            cause = self.ending or session.POWER_LOSS
            app.commit(session.stopping(s, n, cause, self.stopper))
            return
        ready = up >= _OFF_MS and (self.accepted > 0 or not self.config["require_meter"])
        if ready and not self.stayed_locked:  # no feedback: the outage must have been short
            outage = app.outage_ms()
            ready = outage is not None
            if ready and outage > _OUTAGE_MS:
                self.ending = session.POWER_LOSS
        if self.config["overstay"] == "stop" and self._slot() is not None:
            ready = False  # another's slot, or what may be one: the time will tell
        if ready and self.ending is None:
            ledger = self.state.ledger
            records = session.resumed(s, n, self.cut_moment(s), ledger.last, ledger.advance())
            if self.commit(records):
                self.held = s.id
                self.kind_since = None
                self.quarter = None
                # before the cut or after it: the energy is this session's
                ledger.gap = ledger.stale
        elif up - app.booted_up > _RETURN_MS:
            self.ending = session.POWER_LOSS

    def cut_moment(self, s):
        """The latest moment at which an interrupted session is known to have been alive: its last
        record, or as long after its period began as its energy takes at least."""
        boot, up = s.alive
        if s.since[0] == boot:
            up = max(up, s.since[1] + self.state.ledger.advance() * 3600000 // self.rating_w)
        return [boot, up]

    # -- once a second -------------------------------------------------------------------------

    def _each_second(self):
        app = self.app
        state = self.state
        s = state.session
        if s is not None and s.id == self.held and s.phase == session.ENERGISED:
            now = app.now()
            quarter = (app.up_ms() if now is None else now) // _QUARTER_MS
            if self.quarter in (None, quarter) or self.commit(self.cut(s, s.kind)):
                self.quarter = quarter
        self.lapse()
        if state.reservation is None:
            self.out_since = None
        elif self._give_back():
            app.commit(reservation.decide(state.reservation, state.n, reservation.BY_CPO))
        if self.booked is not None:
            self.booked.keep()
        if state.ledger.glitches and (
            self.glitch_at is None or app.since(self.glitch_at) >= _QUARTER_MS
        ):
            if self._fact("glitch"):
                self.glitch_at = app.ticks

    def lapse(self):
        """Let go of a reservation that is over. Asked before anybody is refused on its account.
        Whose start is under way came in time: that ends by itself, within 2 * _BASELINE_MS."""
        held = self.state.reservation
        grant = self.grant
        if grant is not None and grant.accepted is not None and grant.right != gate.TOKEN:
            return
        if held is not None and reservation.is_over(held, self.app.least()):
            self.app.commit(reservation.decide(held, self.state.n, reservation.EXPIRED))

    def _give_back(self):
        """Is the reservation given back to the gateway? Out of service it has some seconds to move
        it elsewhere; with the time unknown it depends on the configuration."""
        app = self.app
        if not self.inoperative():
            self.out_since = None
        elif self.out_since is None:
            self.out_since = app.ticks
        elif app.since(self.out_since) >= _GIVE_BACK_MS:
            return True
        return (
            self.config["clock_lost"] == "release"
            and app.now() is None
            and app.up_ms() > _UNKNOWN_TIME_MS
        )

    def _drives(self):
        """Do contactor and lock follow? Faults are facts; they clear when the drive is well."""
        contactor = decide(self.contactor, self.pins.closed(), self._since_want())
        lock = decide(self.lock, self.pins.locked(), self.app.since(self.lock.since))
        if self.unlocking is not None:
            if lock == WELL and not self.lock.wanted:
                if self.app.commit((self.app.accepted(self.unlocking, self.state.n),)):
                    self.unlocking = None
            elif self.app.since(self.unlocking_since) > _UNLOCK_MS:
                if self.app.failed(self.unlocking, self.state.n):
                    self.unlocking = None
        if again(self.lock, lock, self.dead(self.pins.closed()), self.app.ticks):
            self.pins.lock(self.lock.wanted == (not self.lock.tries & 1))
            return
        if contactor == STUCK:
            self._fault(STUCK_OPEN if self.contactor.wanted else WELDED)
        elif lock == STUCK:
            self._fault(LOCK_STUCK)
        elif self.pins.fault():
            self._fault("pilot")
        elif self.state.fault not in (None, STUCK_OPEN):
            loaded = self.load_since is not None and self.state.fault == WELDED
            if contactor == WELL and lock == WELL and not loaded:
                self.app.commit((self.fault_record("fault_cleared", self.state.fault),))

    def _fault(self, what):
        if self.state.fault is None:
            self.app.commit((self.fault_record("fault", what),))

    def fault_record(self, what, fault):
        return {"t": "event", "what": what, "evse": self.state.n, "fault": fault}
