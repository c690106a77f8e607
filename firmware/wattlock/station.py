"""The station: its whole durable state, how a record changes it, and its checkpoint.

`evolve` is the only way in which durable state changes, live and in replay alike: the shell makes
the records of one transition durable as one group and then hands each of them to `evolve`.
"""

from . import clock, commands, metering, reservation, session


class Evse:
    """Durable state of one EVSE."""

    def __init__(self, n):
        self.n = n
        self.operative = True
        self.fault = None  # its name, or None
        self.reservation = None
        self.session = None
        self.signing = None  # (session id, token) whose signed record is still owed
        self.ledger = metering.Ledger()
        self.slots = None  # booking.Slots where there are bookings


class Station:
    def __init__(self, evses, booking=None):
        self.booking = booking  # the module, or None: no bookings
        self.boot = 0
        self.last = [0, 0]  # moment of the newest record
        self.clock = clock.Clock()
        self.results = {}
        self.evses = {}
        for n in evses:
            self.evses[n] = Evse(n)
            if booking is not None:
                self.evses[n].slots = booking.Slots()

    def evolve(self, record):
        """Apply one record."""
        t = record["t"]
        last = self.last
        self.last = [record["boot"], record["up_ms"]]
        if t == "boot":
            self.boot = record["boot"]
            if "alive_ms" in record:  # what RTC memory knew of the boot before
                last = [last[0], record["alive_ms"]]
            clock.evolve(self.clock, record, last[1])
            for n in self.evses:
                evse = self.evses[n]
                evse.session = session.evolve(evse.session, record, last)
                evse.ledger.forget()
        elif t == "time":
            clock.evolve(self.clock, record, last[1])
            if "step" in record:
                commands.stepped(self.results, record["unix_ms"])
        elif t == "result":
            commands.evolve(self.results, record, self.clock.bound(record["up_ms"]))
        evse = self.evses.get(record.get("evse"))
        if evse is None:
            return
        evse.reservation = reservation.evolve(evse.reservation, record)
        evse.session = session.evolve(evse.session, record, last)
        metering.evolve(evse.ledger, record)
        if evse.slots is not None:
            self.booking.evolve(evse.slots, record)
        if "signs" in record:
            evse.signing = [record["session_id"], record["token"]]
        elif t == "signed":
            if record["nature"] == "end" and ("of" in record or "failed" in record):
                evse.signing = None
        elif t == "event":
            what = record["what"]
            if what == "availability":
                evse.operative = record["operative"]
            elif what == "fault":
                evse.fault = record["fault"]
            elif what == "fault_cleared":
                evse.fault = None

    def checkpoint(self):
        """The durable state as JSON can hold it."""
        evses = {}
        slots = {}
        for n in self.evses:
            e = self.evses[n]
            if e.slots is not None:
                slots["slots%d" % n] = e.slots.dump()
            evses[str(n)] = {
                "operative": e.operative,
                "fault": e.fault,
                "reservation": _dump(e.reservation, reservation.FIELDS),
                "session": _dump(e.session, session.FIELDS),
                "signing": e.signing,
                "ledger": _dump(e.ledger, metering.FIELDS),
            }
        state = {
            "boot": self.boot,
            "last": self.last,
            "clock": _dump(self.clock, clock.FIELDS),
            "results": self.results,
            "evses": evses,
        }
        state.update(slots)
        return state

    def restore(self, state):
        """Take over a checkpoint. EVSEs that the configuration no longer has are left out."""
        self.boot = state["boot"]
        self.last = state["last"]
        _load(self.clock, state["clock"])
        self.results = state["results"]
        for key in state["evses"]:
            evse = self.evses.get(int(key))
            if evse is None:
                continue
            kept = state["evses"][key]
            evse.operative = kept["operative"]
            evse.fault = kept["fault"]
            evse.signing = kept.get("signing")
            _load(evse.ledger, kept["ledger"])
            evse.ledger.forget()
            if evse.slots is not None and "slots" + key in state:
                evse.slots.load(state["slots" + key])
            if kept["reservation"]:
                evse.reservation = reservation.Reservation(*[None] * 4)
                _load(evse.reservation, kept["reservation"])
            if kept["session"]:
                evse.session = session.Session(None, None, None)
                _load(evse.session, kept["session"])


def _dump(thing, fields):
    if thing is None:
        return None
    kept = {}
    for field in fields:
        kept[field] = getattr(thing, field)
    return kept


def _load(thing, kept):
    for field in kept:
        setattr(thing, field, kept[field])
