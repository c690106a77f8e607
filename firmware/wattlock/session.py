"""Session: from the durable start to the durable stop, under one id.

Rules
 1. `start` is durable before the contactor closes. It carries the baseline register.
 2. Seen energised is a fact of its own (`status` CHARGING with the session's id). What was not
    seen energised before a reset is never energised after it.
 3. A session is a row of periods: charging, not_requesting (the vehicle pauses), not_offered (the
    EVSE does). A period is cut at each change and at UTC quarters, so that at most a quarter of
    an hour rests on one reading.
 4. Stopping is written down at once (`event` stopping) but the contactor does not wait for it. The
    `stop` follows when the contactor is seen open and the reading has settled, or after 5 s.
 5. A reset interrupts. The interrupted session is resumed, at most 3 times, or stopped as of the
    last moment known to be alive; the energy until the cut is its own either way.

      state       | start   | closed    | cut       | stopping | settled | reset       | resume
      ------------+---------+-----------+-----------+----------+---------+-------------+--------
      NONE        | STARTED |           |           |          |         |             |
      STARTED     |         | ENERGISED | STARTED   | ENDING   |         | ENDING      |
      ENERGISED   |         |           | ENERGISED | ENDING   |         | INTERRUPTED |
      INTERRUPTED |         |           |           | ENDING   |         | INTERRUPTED | RESUMED
      RESUMED     |         | ENERGISED | RESUMED   | ENDING   |         | INTERRUPTED |
      ENDING      |         |           | ENDING    |          | NONE    | ENDING      |

RESUMED is STARTED after an interruption: it was seen energised once. Each event has its function
that decides: `energised`, `cut`, `stopping`, `stop`, `resumed`; the start is made in `evse.py`,
where gate and reservation meet; a reset is a fact. A moment is [boot, up_ms].
"""

from .ocpi import CHARGING

STARTED = 1
ENERGISED = 2
INTERRUPTED = 3
ENDING = 4

# kinds of period
KIND_CHARGING = "charging"
NOT_REQUESTING = "not_requesting"
NOT_OFFERED = "not_offered"

# end causes
LOCAL = "local"
REMOTE = "remote"
UNPLUGGED = "unplugged"
EMERGENCY = "emergency"
METER_LOST = "meter_lost"
POWER_LOSS = "power_loss"
OPERATOR = "operator"
BOOKING_ENDED = "booking_ended"
FAULT = "fault"

MAX_RESUMES = 3

FIELDS = (
    "id",
    "token",
    "phase",
    "kind",
    "since",
    "alive",
    "total_wh",
    "unobserved_wh",
    "resumes",
    "cause",
    "stopper",
)


class Session:
    """State of a session that has begun and not ended."""

    def __init__(self, id, token, since):
        self.id = id
        self.token = token
        self.phase = STARTED
        self.kind = KIND_CHARGING
        self.since = since  # start of the period that runs
        self.alive = since  # last moment known, for sessions that a reset interrupted
        self.total_wh = 0  # closed periods
        self.unobserved_wh = 0
        self.resumes = 0
        self.cause = None  # why it ends
        self.stopper = None  # token that ended it


def period(session, evse, to, next_kind, register_wh, wh, max_w=None):
    """The `period` record that closes the running period at the moment `to`."""
    record = {
        "t": "period",
        "evse": evse,
        "session_id": session.id,
        "kind": session.kind,
        "next": next_kind,
        "from": session.since,
        "to": to,
        "wh": wh,
        "total_wh": session.total_wh + wh,
        "register_wh": register_wh,
    }
    if max_w is not None:
        record["max_w"] = max_w
    return record


def cut(session, evse, *reading):
    """The end of the running period, with `period`'s arguments. () while interrupted."""
    return () if session.phase == INTERRUPTED else (period(session, evse, *reading),)


def energised(session, evse):
    """The `status` record that says: seen energised. () where the table has nothing."""
    if session.phase != STARTED:
        return ()
    record = {"t": "status", "evse": evse, "status": CHARGING, "plugged": True}
    record["session_id"] = session.id
    return (record,)


def stopping(session, evse, cause, token=None):
    """The record that a session is to end. () when it is ending already."""
    if session.phase == ENDING:
        return ()
    record = {
        "t": "event",
        "what": "stopping",
        "evse": evse,
        "session_id": session.id,
        "cause": cause,
    }
    if token is not None:
        record["token"] = token
    return (record,)


def stop(session, evse, at, register_wh, wh):
    """The closing group: the last period, whose energy is `wh`, and the stop. () before ENDING."""
    if session.phase != ENDING:
        return ()
    record = {
        "t": "stop",
        "evse": evse,
        "session_id": session.id,
        "cause": session.cause,
        "at": at,
        "total_wh": session.total_wh + wh,
        "register_wh": register_wh,
        "unobserved_wh": session.unobserved_wh,
    }
    if session.stopper is not None:
        record["token"] = session.stopper
    return (period(session, evse, at, NOT_OFFERED, register_wh, wh), record)


def resumed(session, evse, at, register_wh, wh):
    """The group that takes an interrupted session up again: what ran before the cut is closed at
    `at`, the last moment known alive, and the outage begins there. () where none is interrupted,
    or it was too often."""
    if session.phase != INTERRUPTED or session.resumes >= MAX_RESUMES:
        return ()
    return (
        period(session, evse, at, NOT_OFFERED, register_wh, wh),
        {
            "t": "event",
            "what": "resumed",
            "evse": evse,
            "session_id": session.id,
            "resumes": session.resumes + 1,
        },
    )


def evolve(session, record, last):
    """The session after `record`; the only mutation. `last` is the moment of the record before."""
    t = record["t"]
    if t == "start":
        return Session(
            record["session_id"], record["token"], [record["boot"], record["up_ms"]]
        )
    if session is None:
        return None
    if t == "boot":
        if session.phase != INTERRUPTED:
            session.alive = last
        if session.phase == ENERGISED or (session.phase == STARTED and session.resumes):
            session.phase = INTERRUPTED
        elif session.phase == STARTED:
            session.phase = ENDING
            session.cause = POWER_LOSS
        return session
    if t == "meter":
        session.unobserved_wh += record["unobserved_wh"]
        return session
    if record.get("session_id") != session.id:
        return session
    if t == "stop":
        return None
    if t == "period":
        session.total_wh = record["total_wh"]
        session.since = record["to"]
        session.kind = record["next"]
    elif t == "status":
        session.phase = ENERGISED
    elif t == "event":
        if record["what"] == "resumed":
            session.phase = STARTED
            session.resumes = record["resumes"]
        elif record["what"] == "stopping":
            session.phase = ENDING
            session.cause = record["cause"]
            session.stopper = record.get("token")
    return session
