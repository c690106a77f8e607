"""The gate over its whole input space, against predicates written from DESIGN section 5 (Gate,
Reservation, Booking, Session), promises P3 and P4, and OCPI_NOTES: not from the table."""

from wattlock import gate

RIGHTS = (gate.NONE, gate.TOKEN, gate.GROUP, gate.RESERVATION, gate.BOOKING, gate.SESSION)
SOURCES = (gate.CARD, gate.REMOTE, gate.PLUG_IN, gate.FREE_VEND, gate.RESUME)
YES_NO = (True, False)


class Case:
    """One point of the input space, in plain words."""

    def __init__(self, site, right, source, operator):
        self.in_use, self.reserved, self.slot, self.time_known = site
        self.right = right
        self.source = source
        self.operative, self.faulted, self.metered = operator

    def answer(self):
        evse = gate.occupancy(self.in_use, self.reserved, self.slot, self.time_known)
        return gate.refusal(
            evse, self.right, self.source, self.operative, self.faulted, self.metered
        )

    def __repr__(self):
        return repr(self.__dict__)


def cases():
    sites = [
        (in_use, reserved, slot, known)
        for in_use in YES_NO
        for reserved in YES_NO
        for slot in (None, False, True)
        for known in YES_NO
    ]
    operators = [(o, f, m) for o in YES_NO for f in YES_NO for m in YES_NO]
    for site in sites:
        for right in RIGHTS:
            for source in SOURCES:
                for operator in operators:
                    yield Case(site, right, source, operator)


# The promises, in words ----------------------------------------------------------------------


def can_work(c):
    return c.operative and not c.faulted and c.metered


def takes_up_its_own(c):
    """A session that was interrupted goes on; nothing else resumes, and it does nothing else."""
    return c.in_use and c.right == gate.SESSION and c.source == gate.RESUME


def booked_for_somebody(c):
    """The slot runs; or nobody knows what time it is, and it might."""
    return c.slot is True or (c.slot is False and not c.time_known)


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
    for c in cases():
        assert (c.answer() is None) == may_start(c), c
        seen += 1
    assert seen == 2 * 2 * 3 * 2 * 6 * 5 * 2 * 2 * 2


def test_the_lock_holds():
    """P4 by itself: reserved or booked, and neither its token nor its group; whatever the way, the
    clock, the operator and the meter."""
    for c in cases():
        if c.in_use:
            continue
        if c.reserved and c.right not in (gate.RESERVATION, gate.GROUP):
            assert c.answer() is not None, c
        if c.slot and c.right not in (gate.BOOKING, gate.GROUP, gate.RESERVATION):
            assert c.answer() is not None, c


def test_a_lost_clock_opens_nothing():
    for c in cases():
        if not c.time_known and c.answer() is None and not c.in_use:
            c.time_known = True
            c.slot = True if c.slot is False else c.slot  # it may be that late
            assert c.answer() is None, c


def test_says_why():
    for c in cases():
        why = c.answer()
        if not c.operative:
            assert why == gate.INOPERATIVE
        elif c.faulted:
            assert why == gate.FAULTED
        elif takes_up_its_own(c) or (not c.in_use and may_use(c)):
            assert why == (None if c.metered else gate.NO_METER)
        elif c.in_use:
            assert why == gate.OCCUPIED
        elif c.reserved:
            assert why == gate.RESERVED
        elif booked_for_somebody(c):
            assert why == gate.BOOKED
        else:
            assert why == gate.UNAUTHORISED


def test_sources_have_the_contract_s_names():
    assert [gate.SOURCES[s] for s in SOURCES[:4]] == ["card", "remote", "plug_in", "free_vend"]
