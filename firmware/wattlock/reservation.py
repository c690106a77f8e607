"""Reservation: one EVSE kept for one token until a moment.

Rules
 1. At most one reservation holds an EVSE. It has the gateway's id, a session id and a token.
 2. Placing under the id that is in force replaces it in one record; the session id stays.
 3. It ends by use, expiry, the eMSP's cancellation, the operator's, or by moving to another EVSE:
    one `release`, with the cause.
 4. It expires when now - err >= expiry, so that no clock error ends it early. With the time
    unknown, a lower bound of time that reaches the expiry ends it.
 5. The empty set is state: a `release` is replayed like anything else.

     state | place | place other | used | expired | cancelled_by_emsp | cancelled_by_cpo | replaced
     ------+-------+-------------+------+---------+-------------------+------------------+---------
     NONE  | HELD  | HELD        |      |         |                   |                  |
     HELD  | HELD  |             | NONE | NONE    | NONE              | NONE             | NONE

`place other` is placing under another id than the one in force. An end is one of its own id.
"""

# Events; all but PLACE are also the cause in the `release` record.
PLACE = "place"
USED = "used"
EXPIRED = "expired"
BY_EMSP = "cancelled_by_emsp"
BY_CPO = "cancelled_by_cpo"
REPLACED = "replaced"

FIELDS = ("id", "session_id", "token", "expiry_ms", "authorization_reference")


class Reservation:
    """State of a reservation in force. Times are unix ms."""

    def __init__(self, id, session_id, token, expiry_ms, authorization_reference=None):
        self.id = id
        self.session_id = session_id
        self.token = token
        self.expiry_ms = expiry_ms
        self.authorization_reference = authorization_reference


def same_id(a, b):
    """Reservation ids compare without case (OCPI CiString)."""
    return a.upper() == b.upper()


def decide(held, evse, event, wish=None, session_id=None):
    """Records that answer `event` at `evse`; () where the table says there is nothing to do.

    `held` is the reservation in force or None. PLACE takes `wish` (reservation_id, token,
    expiry_ms, [authorization_reference], [command_id]) and the session id to give a new one.
    """
    if event != PLACE:
        if held is None:
            return ()
        return (
            {
                "t": "release",
                "evse": evse,
                "reservation_id": held.id,
                "session_id": held.session_id,
                "cause": event,
            },
        )
    if held is not None:
        if not same_id(held.id, wish["reservation_id"]):
            return ()
        session_id = held.session_id
    record = {"t": "reserve", "evse": evse, "session_id": session_id}
    for key in ("reservation_id", "token", "expiry_ms", "authorization_reference", "command_id"):
        if wish.get(key) is not None:
            record[key] = wish[key]
    return (record,)


def is_over(held, lower_bound_ms):
    """Has `held` expired, when it is at least `lower_bound_ms` now (None: no bound known)?"""
    return lower_bound_ms is not None and lower_bound_ms >= held.expiry_ms


def evolve(held, record):
    """The reservation in force after `record`; the only mutation."""
    t = record["t"]
    if t == "reserve":
        return Reservation(
            record["reservation_id"],
            record["session_id"],
            record["token"],
            record["expiry_ms"],
            record.get("authorization_reference"),
        )
    if t == "release" and held is not None and same_id(held.id, record["reservation_id"]):
        return None
    return held
