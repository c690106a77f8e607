"""The gate: may this start here, now? The one answer for every way to start a session.

The table's rows are (what the EVSE is, what right the asker has), its columns the source. The
operator, the fuse of faults and the meter are asked first, since they refuse everybody alike.

An EVSE is
    FREE  nobody's
    HELD  reserved
    SLOT  booked, and the slot is running: or may be, where the time is unknown
    BUSY  in use: a session is open, or about to start

A right is what the asker has proven:
    NONE         nothing (free-vend, an unknown card)
    TOKEN        an authorised token, and no more
    GROUP        a token of the group that the reservation or the booking is for, same eMSP
    RESERVATION  the reservation's own token
    BOOKING      the booking's own token
    SESSION      the session's own: that of one which a reset interrupted

The clock widens nothing: a reservation in force locks, known time or not, and a slot that may be
running counts as running (`reservation.py`, `booking.py`).
"""

# what the EVSE is
FREE = 0
HELD = 1
SLOT = 2
BUSY = 3

# rights
NONE = 0
TOKEN = 1
GROUP = 2
RESERVATION = 3
BOOKING = 4
SESSION = 5

# sources: the column of the table
CARD = 0
REMOTE = 1
PLUG_IN = 2
FREE_VEND = 3
RESUME = 4
SOURCES = ("card", "remote", "plug_in", "free_vend", "resume")

# answers: None allows
RESERVED = "reserved"
BOOKED = "booked"
OCCUPIED = "occupied"
UNAUTHORISED = "unauthorised"
FAULTED = "faulted"
INOPERATIVE = "inoperative"
NO_METER = "no_meter"
_WHY = {"r": RESERVED, "b": BOOKED, "o": OCCUPIED, "u": UNAUTHORISED}

#            source:  card remote plug_in free_vend resume     . allows
_TABLE = (  # one string: mpy-cross joins these
    "uuu.u"  # FREE  NONE
    "...uu"  #       TOKEN
    "...uu"  #       GROUP
    "...uu"  #       RESERVATION
    "...uu"  #       BOOKING
    "uuuuu"  #       SESSION
    "rrrrr"  # HELD  NONE
    "rrrrr"  #       TOKEN
    "...rr"  #       GROUP
    "...rr"  #       RESERVATION
    "rrrrr"  #       BOOKING
    "rrrrr"  #       SESSION
    "bbbbb"  # SLOT  NONE
    "bbbbb"  #       TOKEN
    "...bb"  #       GROUP
    "bbbbb"  #       RESERVATION
    "...bb"  #       BOOKING
    "bbbbb"  #       SESSION
    "ooooo"  # BUSY  NONE
    "ooooo"  #       TOKEN
    "ooooo"  #       GROUP
    "ooooo"  #       RESERVATION
    "ooooo"  #       BOOKING
    "oooo."  #       SESSION
)


def occupancy(used, reserved, booked):
    """What an EVSE is. A reservation in force and a slot that may be running count, whatever the
    clock knows: the nouns have decided that."""
    return BUSY if used else HELD if reserved else SLOT if booked else FREE


def refusal(evse, right, source, operative=True, faulted=False, metered=True):
    """Why this start is refused, or None when it is allowed.

    `evse` FREE, HELD, SLOT or BUSY; `right` and `source` as above; `metered`: a live meter, or
    none required.
    """
    if not operative:
        return INOPERATIVE
    if faulted:
        return FAULTED
    why = _WHY.get(_TABLE[(evse * 6 + right) * 5 + source])
    if why is None and not metered:
        return NO_METER
    return why
