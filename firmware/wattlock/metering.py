"""The continuity ledger: readings of one register become Wh that belong somewhere.

Rules
 1. A missing reading is unknown, never zero; nothing is subtracted from a missing baseline.
 2. `register` is the last durable reading of (serial, epoch); `last` the newest accepted one.
    Every record that moves `register` says where the difference went: a session (`period`),
    outside any session, or unobserved. So they sum to last register - first register.
 3. A reading that is lower, or higher than the connection could have delivered, or of another
    serial, must be shown twice in a row before it counts. Once is a glitch: dropped, and counted
    for a record of its own (`glitch`), of which there are few however many glitches there are.
 4. Confirmed, it is a fact of its own (`rollback`, `jump`, `serial`), never energy of a session.
    A lower register or another serial begins a new epoch.
 5. Lower because the register has no more digits (`rollover`) is energy as any other: the old
    epoch ends where the register would be with one digit more, and the new one begins at what it
    shows. Nothing lies between.
 6. The first reading of a boot continues the session that was open at the cut, if that much
    energy was possible since the last durable reading; without a session it is unobserved.
 7. A session that began without a fresh reading (`stale` in its start) owns nothing of what the
    first reading brings: that is unobserved, also when a reset lies between.
 8. A register that stands still while power flows (`frozen`) does not count as read; what flows
    back moves the export register, where the meter has one. In a charge that is so after 300 Wh
    and two of its steps: nobody knows how coarsely a meter counts inside. With the contactor open,
    where the power shown stands still as well, after 20 Wh and a step and a quarter.

Limits: energy that flowed while no reading could be had is attributed by the next reading, as a
whole. A meter that freezes while nothing flows looks well, until its energy comes as a jump or a
gap. One that counts inside in steps of more than 20 Wh that its description does not know, and
shows a power without a moving digit, is taken for frozen behind a welded contactor that no
feedback tells, until its next step. A rollover at a number that is neither the width of the
register nor in the meter's description is told as a rollback. All energies are integers in Wh of
an import register; what flows back is a ledger of its own (`export.py`), of which only the
durable register is kept here.
"""

OK = 0
NOTHING = 1  # unknown, or waiting for a second opinion
FOUND = "found"
SERIAL = "serial"
ROLLBACK = "rollback"
ROLLOVER = "rollover"
JUMP = "jump"
GAP = "gap"
LOST = "lost"
BACK = "back"
FROZEN = "frozen"
GLITCH = "glitch"

FIELDS = ("serial", "epoch", "register", "stale", "export")
_SLACK_WH = 20


class Ledger:
    def __init__(self):
        self.serial = None
        self.epoch = 0
        self.register = None
        self.stale = False  # the running session began without a fresh baseline
        self.export = None  # durable register of what flows back, see export.py
        self.forget()

    def forget(self):
        """RAM only: what this boot has seen."""
        self.last = self.register
        self.gap = True  # what comes next was not watched
        self.doubt = None
        self.doubt_wh = 0
        self.glitches = 0

    def advance(self):
        """Wh accepted since the last durable reading."""
        return 0 if self.register is None else self.last - self.register


def possible_wh(rating_w, elapsed_ms, step_wh=0):
    """The most that a register in steps of `step_wh` can have moved in `elapsed_ms` behind a
    connection of `rating_w`."""
    # in seconds, and a quarter on top for meters and fuses that are generous
    return rating_w * (elapsed_ms // 1000 + 2) // 2880 + _SLACK_WH + step_wh


def offer(ledger, serial, energy_wh, possible, rolls_wh=()):
    """Judge a reading against what was `possible` (Wh) since the last one; returns an outcome.
    `rolls_wh`: at which numbers the register may begin again at 0.

    OK: accepted into `last`. NOTHING: not a number, or not yet believed. Anything else is a fact
    to be recorded with `fact`, after which `evolve` accepts the reading.
    """
    if energy_wh is None:
        return NOTHING
    last = ledger.last
    if energy_wh >> 50:  # negative, or more than a meter counts in its life
        outcome = GLITCH
    elif last is None:
        return FOUND
    else:
        possible += last >> 22  # the step of an f32 in kWh
        if serial is not None and ledger.serial is not None and serial != ledger.serial:
            outcome = SERIAL
        elif energy_wh < last:
            outcome = ROLLBACK
            for span in rolls_wh:
                if 0 <= energy_wh + span - last <= possible:
                    outcome = ROLLOVER
                    last = energy_wh + span
                    break
        elif energy_wh - last > possible:
            outcome = JUMP
        else:
            if ledger.doubt is not None:
                ledger.glitches += 1
                ledger.doubt = None
            ledger.last = energy_wh
            return OK
    sure = ledger.doubt == outcome != GLITCH and 0 <= energy_wh - ledger.doubt_wh <= possible
    ledger.doubt_wh = energy_wh
    if not sure:
        ledger.doubt = outcome
        return NOTHING
    ledger.doubt = None
    if outcome == ROLLOVER:
        ledger.last = last
    return outcome


def fact(ledger, evse, what, serial, after_wh, outside_wh=0, unobserved_wh=0):
    """The `meter` record for `what`; the two attributions say where the difference between the
    durable register and `after_wh` went, as far as no period has taken it."""
    return {
        "t": "meter",
        "evse": evse,
        "what": what,
        "serial": serial if serial is not None else ledger.serial,
        "epoch": ledger.epoch + (1 if what in (SERIAL, ROLLBACK, ROLLOVER) else 0),
        "before_wh": ledger.last,
        "after_wh": after_wh,
        "outside_wh": outside_wh,
        "unobserved_wh": unobserved_wh,
    }


def evolve(ledger, record):
    """Apply a record that moves the durable register; the only mutation of it."""
    t = record["t"]
    if t == "meter":
        what = record["what"]
        if what in (LOST, BACK, FROZEN, GLITCH):
            return
        register = record["after_wh"]
        ledger.stale = False
        ledger.serial = record["serial"]
        ledger.epoch = record["epoch"]
        if what in (FOUND, SERIAL):
            ledger.export = record.get("export_wh")
    elif t == "start" or t == "period":
        register = record["register_wh"]
        if t == "start":
            ledger.stale = record.get("stale", False)
    else:
        if t == "export":
            ledger.export = record["after_wh"]
        return
    if register is not None:
        if ledger.last is None or ledger.last < register or t == "meter":
            ledger.last = register
        ledger.register = register
