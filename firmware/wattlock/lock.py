"""Contactor and connector lock: wanted against observed.

Rules
 1. What is wanted follows from the state every turn; nothing is driven by an event.
 2. The contactor is wanted closed only for a session that is STARTED or ENERGISED, in this boot's
    hands, with the plug in and no fault. Everything else wants it open.
 3. The connector is held locked while a session is open, and after it until the outlet is dead:
    the contactor seen open, and no power in a reading after that. Without feedback, what is
    driven is believed, and the meter's power must have fallen.
 4. A drive that does not follow within its time is stuck. Closed though wanted open is a welded
    contactor. So is power at the meter, either way, while the contactor is open, with feedback or
    without, when after some seconds the readings still move. It stays one until a reading shows
    none.
 5. A meter that shows power and stands still to the last digit may be frozen and proves neither:
    nothing is called welded. Where the contactor is not seen open, the connector stays locked
    until the register would have moved.
 6. A stuck lock is driven the other way for a second and then again, at most TRIES times: that
    frees a bolt under tension, and gives a motor's driver its edge. Never while the outlet lives.

      wanted | observed | within its time | after it
      -------+----------+-----------------+----------------------------
      open   | closed   | wait            | fault contactor_welded
      closed | open     | wait            | fault contactor_stuck_open
      same   | same     | well            | well
"""

WELL = 0
WAIT = 1
STUCK = 2

WELDED = "contactor_welded"
STUCK_OPEN = "contactor_stuck_open"
LOCK_STUCK = "lock_stuck"

FOLLOW_MS = 1500
TRIES = 3


class Drive:
    """An output and what was seen of it. RAM only."""

    def __init__(self):
        self.wanted = None
        self.since = 0  # ticks when `wanted` last changed
        self.tries = 0  # drives since, the other way and back

    def want(self, value, ticks):
        """Set what is wanted; True when that is a change and the pin must be driven."""
        if value == self.wanted:
            return False
        self.wanted = value
        self.since = ticks
        self.tries = 0
        return True


def decide(drive, observed, elapsed_ms):
    """WELL, WAIT or STUCK. `observed` None means that there is no feedback: it is believed."""
    if observed is None or observed == drive.wanted:
        return WELL
    return WAIT if elapsed_ms < FOLLOW_MS else STUCK


def again(drive, state, dead, ticks):
    """Is a stuck lock to be driven again? Then `tries` is odd for the other way, even for the
    wanted one."""
    if not drive.tries & 1 and (state != STUCK or drive.tries >= 2 * TRIES or not dead):
        return False
    drive.tries += 1
    drive.since = ticks
    return True
