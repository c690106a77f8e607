"""The gate over its whole input space, against predicates written from DESIGN section 5 (Gate,
Reservation, Booking, Session), promises P3 and P4, and OCPI_NOTES: not from the table."""

from wattlock import clock, gate, reservation, session

from portable.bench import ANNA, UNIX_MS, World

RIGHTS = (gate.NONE, gate.TOKEN, gate.GROUP, gate.RESERVATION, gate.BOOKING, gate.SESSION)
SOURCES = (gate.CARD, gate.REMOTE, gate.PLUG_IN, gate.FREE_VEND, gate.RESUME)
YES_NO = (True, False)
NEVER, AHEAD, NOW = "never", "ahead", "now"  # when the booked slot is
HOUR = 3600000


class Case:
    """One point of the input space, in plain words."""

    def __init__(self, site, right, source, operator):
        self.in_use, self.reserved, self.slot, self.time_known, self.hold = site
        self.right = right
        self.source = source
        self.operative, self.faulted, self.metered = operator

    def __repr__(self):
        return repr(self.__dict__)


class Site:
    """A real EVSE of the agent, put into each state."""

    def __init__(self):
        self.world = World()
        self.world.config["bookings"] = True
        self.world.boot()
        self.world.run(3000)
        self.post = self.world.post()

    def put(self, site):
        in_use, reserved, slot, time_known, hold = site
        state = self.post.state
        state.session = session.Session("S1", ANNA, [1, 1]) if in_use else None
        state.reservation = None
        if reserved:
            state.reservation = reservation.Reservation("R1", "S2", ANNA, UNIX_MS + HOUR)
        state.slots.rows = {}
        if slot != NEVER:
            start = UNIX_MS + (HOUR if slot == AHEAD else -60000)
            state.slots.rows["B1"] = {
                "booking_id": "B1", "start_ms": start, "end_ms": start + HOUR, "tokens": [ANNA],
            }  # fmt: skip
        self.world.app.station.clock.state = clock.SYNCED if time_known else clock.UNSET
        self.post.config["clock_lost"] = "hold" if hold else "release"

    def answer(self, c):
        self.post.state.operative = c.operative
        self.world.pins[1].fail = c.faulted
        self.post.metered = lambda: c.metered
        return self.post.refusal(self.post.occupancy(), c.right, c.source)


def cases():
    """Every case with the agent's answer."""
    place = Site()
    sites = [
        (in_use, reserved, slot, known, hold)
        for in_use in YES_NO
        for reserved in YES_NO
        for slot in (NEVER, AHEAD, NOW)
        for known in YES_NO
        for hold in YES_NO
    ]
    operators = [(o, f, m) for o in YES_NO for f in YES_NO for m in YES_NO]
    for site in sites:
        place.put(site)
        for right in RIGHTS:
            for source in SOURCES:
                for operator in operators:
                    c = Case(site, right, source, operator)
                    yield c, place.answer(c)


# The promises, in words ----------------------------------------------------------------------


def can_work(c):
    """A resume waits for its meter instead of being refused."""
    return c.operative and not c.faulted and (c.metered or c.source == gate.RESUME)


def takes_up_its_own(c):
    """A session that was interrupted goes on; nothing else resumes, and it does nothing else."""
    return c.in_use and c.right == gate.SESSION and c.source == gate.RESUME


def booked_for_somebody(c):
    """The slot runs; or nobody knows what time it is, and it might: unless such slots are to be
    let go by configuration."""
    if c.time_known:
        return c.slot == NOW
    return c.slot != NEVER and c.hold


def may_use(c):
    """Who may start at an EVSE that nobody uses."""
    if c.right == gate.SESSION or c.source == gate.RESUME:
        return False
    if c.source == gate.FREE_VEND:  # for who proves nothing, where nothing is promised
        return c.right == gate.NONE and not c.reserved and not booked_for_somebody(c)
    if c.reserved:  # P4
        return c.right in (gate.RESERVATION, gate.GROUP)
    if booked_for_somebody(c):
        return c.right in (gate.BOOKING, gate.GROUP)
    return c.right != gate.NONE


def may_start(c):
    return can_work(c) and (takes_up_its_own(c) if c.in_use else may_use(c))


def test_allows_exactly_what_the_promises_allow():
    seen = 0
    for c, why in cases():
        assert (why is None) == may_start(c), (c, why)
        seen += 1
    assert seen == 2 * 2 * 3 * 2 * 2 * 6 * 5 * 2 * 2 * 2


def test_the_lock_holds():
    """P4 by itself: reserved, or booked for now, and neither its token nor its group; whatever the
    way, the clock, the operator and the meter."""
    for c, why in cases():
        if c.in_use:
            continue
        if c.reserved and c.right not in (gate.RESERVATION, gate.GROUP):
            assert why is not None, c
        if c.slot == NOW and (c.time_known or c.hold) and not c.reserved:
            assert c.right in (gate.BOOKING, gate.GROUP) or why is not None, c


def test_a_lost_clock_opens_nothing_that_is_held():
    for c, why in cases():
        if why is None and not c.time_known and c.hold and not c.in_use:
            c.time_known = True
            if c.slot == AHEAD:
                c.slot = NOW  # it may be that late
            assert may_start(c), c


def test_says_why():
    for c, why in cases():
        if not c.operative:
            assert why == gate.INOPERATIVE
        elif c.faulted:
            assert why == gate.FAULTED
        elif takes_up_its_own(c):
            assert why is None
        elif not c.in_use and may_use(c):
            assert why == (None if c.metered else gate.NO_METER)
        elif c.in_use:
            assert why == gate.OCCUPIED
        elif c.reserved:
            assert why == gate.RESERVED
        elif booked_for_somebody(c):
            assert why == gate.BOOKED
        else:
            assert why == gate.UNAUTHORISED


def test_without_a_live_meter_the_table_alone_refuses_a_resume_too():
    assert gate.refusal(gate.BUSY, gate.SESSION, gate.RESUME, metered=False) == gate.NO_METER


def test_sources_have_the_contract_s_names():
    assert [gate.SOURCES[s] for s in SOURCES[:4]] == ["card", "remote", "plug_in", "free_vend"]
