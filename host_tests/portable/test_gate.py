"""The gate over its whole input space, against predicates written from DESIGN section 5 (Gate,
Reservation, Session), promises P3 and P4, and OCPI_NOTES: not from the table."""

from wattlock import gate

BUSY, HELD, FREE = gate.BUSY, gate.HELD, gate.FREE
RIGHTS = (gate.NONE, gate.TOKEN, gate.GROUP, gate.RESERVATION, gate.SESSION)
SOURCES = (gate.CARD, gate.REMOTE, gate.PLUG_IN, gate.FREE_VEND, gate.RESUME)


def inputs():
    for evse in (FREE, HELD, BUSY):
        for right in RIGHTS:
            for source in SOURCES:
                for operative in (True, False):
                    for faulted in (True, False):
                        for metered in (True, False):
                            yield evse, right, source, operative, faulted, metered


def may_start(evse, right, source, operative, faulted, metered):
    """The promises, in words."""
    if not operative or faulted or not metered:
        return False
    if source == gate.RESUME:  # takes an open session up again, and nothing else does
        return evse == BUSY and right == gate.SESSION
    if evse == BUSY:  # in use
        return False
    if right == gate.SESSION:  # a session's right is to be resumed
        return False
    if source == gate.FREE_VEND:  # free-vend is for who proves nothing, where nothing is reserved
        return evse == FREE and right == gate.NONE
    # card, remote, plug-in: who is authorised; where reserved (P4): its token, or its group
    if evse == HELD:
        return right in (gate.RESERVATION, gate.GROUP)
    return right != gate.NONE


def test_allows_exactly_what_the_promises_allow():
    seen = 0
    for case in inputs():
        assert (gate.refusal(*case) is None) == may_start(*case), case
        seen += 1
    assert seen == 3 * 5 * 5 * 2 * 2 * 2


def test_the_lock_holds():
    """P4 by itself: reserved, and neither its token nor its group."""
    for case in inputs():
        if case[0] == HELD and case[1] not in (gate.RESERVATION, gate.GROUP):
            assert gate.refusal(*case) is not None


def test_says_why():
    for case in inputs():
        evse, right, source, operative, faulted, metered = case
        why = gate.refusal(*case)
        if not operative:
            assert why == gate.INOPERATIVE
        elif faulted:
            assert why == gate.FAULTED
        elif evse == BUSY and not (right == gate.SESSION and source == gate.RESUME):
            assert why == gate.OCCUPIED
        elif evse == HELD and not may_start(evse, right, source, True, False, True):
            assert why == gate.RESERVED
        elif evse == FREE and not may_start(evse, right, source, True, False, True):
            assert why == gate.UNAUTHORISED
        elif not metered:
            assert why == gate.NO_METER
        else:
            assert why is None


def test_sources_have_the_contract_s_names():
    assert [gate.SOURCES[s] for s in SOURCES[:4]] == ["card", "remote", "plug_in", "free_vend"]
