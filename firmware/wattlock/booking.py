"""Bookings: time slots of an EVSE in advance, each for its own tokens. Loaded where config.json
says "bookings".

Rules
 1. The list goes from one version to the next by the gateway's word only; a change that does not
    begin at the version that is here changes nothing. Slots go by themselves when they are over.
 2. From `start_ms - guard_ms` on the slot is a lock, until a session of its own ends, `noshow_ms`
    have passed without one, or it ends. It begins by the latest it can be now and ends by the
    earliest, so that no clock error lets anybody in.
 3. Its tokens, and their group where a token has a group_id, may start from `start_ms - early_ms`
    on, but not while another's slot locks; over OCPI only where it says `remote`. Who has come in
    time and waits for a reading is no no-show.
 4. Who charges without a booking, or beyond its end and `late_ms`, has to be away when the guard
    time of the next slot begins. The start tells when (`until_ms`).
 5. With the time unknown, `hold` takes every slot for running that is not surely over: nobody
    knows how long the power was away. `release` waits for the time. The tokens of all these slots
    open then: who comes is believed to have looked at a clock.

Limits: at most SLOTS a board's EVSE, TOKENS a slot; the gateway keeps the rest and sends them as
room gets free. Times are unix ms.
"""

SLOTS = 8
TOKENS = 3

# causes in `unbooked`
NO_SHOW = "no_show"
OVER = "over"

_TIMES = ("guard_ms", "early_ms", "late_ms", "noshow_ms")


class Slots:
    """The list of one EVSE. Durable."""

    def __init__(self):
        self.version = 0
        self.rows = {}  # booking_id -> slot, as the gateway sent it
        self.used = None  # booking_id under which the open session runs

    def dump(self):
        """An object, of which the journal writes one member at a time."""
        kept = {"": [self.version, self.used]}
        kept.update(self.rows)
        return kept

    def load(self, kept):
        self.version, self.used = kept.pop("")
        self.rows = kept


def _is_id(value):
    return isinstance(value, str) and 0 < len(value) <= 36


def _whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _slot(data, clean):
    """The slot as it is kept, or None where it is none."""
    if not isinstance(data, dict) or not _is_id(data.get("booking_id")):
        return None
    start, end = data.get("start_ms"), data.get("end_ms")
    if not (_whole(start) and _whole(end) and start < end):
        return None
    slot = {"booking_id": data["booking_id"], "start_ms": start, "end_ms": end}
    for key in _TIMES:
        value = data.get(key)
        if value:
            if not _whole(value):
                return None
            slot[key] = value
    given = data.get("tokens")
    if not isinstance(given, list) or not 0 < len(given) <= TOKENS:
        return None
    slot["tokens"] = [clean(token) for token in given]
    if None in slot["tokens"]:
        return None
    if data.get("remote") is True:
        slot["remote"] = True
    if _is_id(data.get("authorization_reference")):
        slot["authorization_reference"] = data["authorization_reference"]
    return slot


def decide(slots, evse, data, clean):
    """The records of a SET_BOOKINGS, or None: it does not fit this list, or is none. `clean` makes
    a token of an object, or None."""
    base, version = data.get("base"), data.get("version")
    put, drop = data.get("put") or [], data.get("drop") or []
    if not (_whole(base) and _whole(version) and version):
        return None
    if base and base != slots.version or not isinstance(put, list) or not isinstance(drop, list):
        return None
    drop = [id for id in drop if id in slots.rows]
    record = {"t": "event", "what": "bookings", "evse": evse, "base": base, "version": version}
    if drop and base:
        record["drop"] = drop
    ids = [id for id in slots.rows if base and id not in drop]
    records = (record,)
    for one in put:
        slot = _slot(one, clean)
        if slot is None:
            return None
        if slot["booking_id"] not in ids:
            ids.append(slot["booking_id"])
        records += ({"t": "event", "what": "booked", "evse": evse, "slot": slot},)
    return records if len(ids) <= SLOTS else None


def unbooked(evse, id, cause):
    return {"t": "event", "what": "unbooked", "evse": evse, "booking_id": id, "cause": cause}


def evolve(slots, record):
    """Apply a record of this EVSE; the only mutation."""
    t = record["t"]
    rows = slots.rows
    if t == "start":
        slots.used = record.get("booking_id")
    elif t == "stop":
        rows.pop(slots.used, None)
        slots.used = None
    elif t == "event":
        what = record["what"]
        if what == "bookings":
            slots.version = record["version"]
            if not record["base"]:
                rows.clear()
            for id in record.get("drop", ()):
                rows.pop(id, None)
        elif what == "booked":
            rows[record["slot"]["booking_id"]] = record["slot"]
        elif what == "unbooked":
            rows.pop(record["booking_id"], None)


def _guarded(slot):
    """When nobody else may start any more."""
    return slot["start_ms"] - slot.get("guard_ms", 0)


def running(slots, least, most):
    """The slot that locks now, or None. It is at least `least` and, unless None, at most `most`;
    with `least` None nothing is known at all."""
    found = None
    for id in slots.rows:
        slot = slots.rows[id]
        begun = most is None or _guarded(slot) <= most
        if begun and (least or 0) < slot["end_ms"] and id != slots.used:
            if found is None or slot["start_ms"] < found["start_ms"]:
                found = slot
    return found


def opened(slots, least, most, remote, is_it):
    """(slot, token) where a token for which `is_it(token)` holds may start now, or None."""
    lock = None if most is None else running(slots, least, most)
    for id in slots.rows:
        slot = slots.rows[id]
        first = slot["start_ms"] - slot.get("early_ms", 0)
        if lock is not None and slot is not lock:
            continue
        if (most is None or first <= most) and (least or 0) < slot["end_ms"]:
            for token in slot["tokens"]:
                if is_it(token) and ("remote" in slot or not remote):
                    return slot, token
    return None


def until(slots, own, least):
    """When the session that runs under the booking `own` (None: without one) has to end, or None:
    the end of its own slot, and the guard time of the next."""
    found = None
    for id in slots.rows:
        slot = slots.rows[id]
        end = slot["end_ms"] + slot.get("late_ms", 0) if id == own else _guarded(slot)
        if (id == own or (least or 0) < slot["end_ms"]) and (found is None or end < found):
            found = end
    return found


def overlaps(slots, least, expiry_ms):
    """Would a reservation until `expiry_ms` reach into a slot?"""
    for id in slots.rows:
        slot = slots.rows[id]
        if (least or 0) < slot["end_ms"] and _guarded(slot) < expiry_ms:
            return True
    return False


def lapsed(slots, least):
    """(booking_id, cause) of a slot to let go, or None: nobody came, or it is over."""
    if least is None:
        return None
    for id in slots.rows:
        slot = slots.rows[id]
        if id == slots.used:
            continue
        if "noshow_ms" in slot and least >= slot["start_ms"] + slot["noshow_ms"]:
            return id, NO_SHOW
        if least >= slot["end_ms"]:
            return id, OVER
    return None
