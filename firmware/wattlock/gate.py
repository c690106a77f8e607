"""The gate: may this start here, now? The one answer for every way to start a session.

The table's rows are (what the EVSE is, what right the asker has), its columns the source. The
operator, the fuse of faults and the meter are asked first, since they refuse everybody alike.

A right is what the asker has proven:
    NONE         nothing (free-vend, an unknown card)
    TOKEN        an authorised token that is not the reservation's
    GROUP        a token of the reservation's group, same eMSP
    RESERVATION  the reservation's own token
    SESSION      the session that was interrupted by a reset

The clock does not widen anything: while a reservation is in force, known time or not, it locks.
"""

# what the EVSE is
FREE = 0
HELD = 1  # reserved
BUSY = 2  # a session is open

# rights
NONE = 0
TOKEN = 1
GROUP = 2
RESERVATION = 3
SESSION = 4

# sources: the column of the table
CARD = 0
REMOTE = 1
PLUG_IN = 2
FREE_VEND = 3
RESUME = 4
SOURCES = ("card", "remote", "plug_in", "free_vend", "resume")

# answers: None allows
RESERVED = "reserved"
OCCUPIED = "occupied"
UNAUTHORISED = "unauthorised"
FAULTED = "faulted"
INOPERATIVE = "inoperative"
NO_METER = "no_meter"
_WHY = {"r": RESERVED, "o": OCCUPIED, "u": UNAUTHORISED}

#            source:  card remote plug_in free_vend resume     . allows
_TABLE = (  # one string: mpy-cross joins these
    "uuu.u"  # FREE  NONE
    "...uu"  #       TOKEN
    "...uu"  #       GROUP
    "...uu"  #       RESERVATION
    "uuuuu"  #       SESSION
    "rrrrr"  # HELD  NONE
    "rrrrr"  #       TOKEN
    "...rr"  #       GROUP
    "...rr"  #       RESERVATION
    "rrrrr"  #       SESSION
    "ooooo"  # BUSY  NONE
    "ooooo"  #       TOKEN
    "ooooo"  #       GROUP
    "ooooo"  #       RESERVATION
    "oooo."  #       SESSION
)


def refusal(evse, right, source, operative=True, faulted=False, metered=True):
    """Why this start is refused, or None when it is allowed.

    `evse` FREE, HELD or BUSY; `right` and `source` as above; `metered`: a live meter, or none
    required.
    """
    if not operative:
        return INOPERATIVE
    if faulted:
        return FAULTED
    why = _WHY.get(_TABLE[(evse * 5 + right) * 5 + source])
    if why is None and not metered:
        return NO_METER
    return why
