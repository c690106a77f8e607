"""What a session owes its driver where the meter signs: a signed start, a signed end.

Loaded only for an EVSE whose meter signs (`signing.py`).

Rules
 1. A `start` that says `signs` owes a record; it is owed until the end's last piece, or its
    failure, is durable: also over resets (`station.Evse.signing`).
 2. The contactor waits for the meter's signed start, at most _START_MS; then the session charges
    without, and a `signed` record says why.
 3. The end is asked for once the session is over and the contactor is seen open. The stop waits
    for nothing of this. What fails is tried again until _END_MS have passed; then a `signed`
    record says why there is none.
 4. The record's bytes go as they came, in numbered pieces in base64, each durable before the next
    is taken; a new attempt counts from 1 again. The last piece says how many there are.
 5. The next session starts when the last one's record is no longer owed.
"""

from binascii import b2a_base64

from . import ocpi, session

_START_MS = 20000
_END_MS = 60000
_AGAIN_MS = 2000
_PIECE = 480  # bytes: a body has room for 640 of base64, the key and the rest


class Seal:
    """The signing of one EVSE's sessions. `open`: nothing of this holds the contactor. From `uid`
    to `at_s` it is what the meter is told, see `signing.Meter.sign`."""

    def __init__(self, post):
        self.post = post
        self.meter = post.meter
        self.open = True
        self._nature = None  # what is under way: "start", "end" or nothing
        self._since = 0
        self._tried = None  # ticks of the last failure
        self._why = None  # what it was
        self._pieces = 0

    def owes(self):
        return self.post.state.signing is not None

    def begin(self):
        """The start is durable: let the meter sign it."""
        self.open = False
        self._begin("start")

    def _begin(self, nature):
        app = self.post.app
        self.session, token = self.post.state.signing
        self.uid = token["uid"] if token else ""
        self.card = token is not None and token["type"] == ocpi.RFID
        self.place = app.config["station_id"] + " " + str(self.post.state.n)
        self.asked = False
        self._nature = nature
        self._since = app.ticks
        self._tried = self._why = None
        self._ask()

    def at_s(self):
        now = self.post.app.now()
        return None if now is None else now // 1000

    def _ask(self):
        self._pieces = 0
        self.meter.sign(self._nature, self)

    def turn(self):
        post = self.post
        owed = post.state.signing
        if owed is None:
            return
        s = post.state.session
        over = s is None or s.id != owed[0]
        over = over or (s.phase == session.ENDING and post.dead(post.pins.closed()))
        if over and self._nature != "end" and post.app.booted:
            self.open = True
            self._begin("end")
        if self._nature:
            self._follow(post.app, owed[0])

    def _follow(self, app, id):
        meter = self.meter
        if meter.ready:
            self.open = True
        if meter.why is not None:
            if self._tried is None:
                self._tried = app.ticks
                self._why = meter.why
            elif app.since(self._tried) >= _AGAIN_MS:
                self._tried = None
                self._ask()
        if len(meter.text) >= _PIECE or meter.settled:
            self._piece(app, id)
        elif app.since(self._since) >= (_START_MS if self._nature == "start" else _END_MS):
            self._done(app, self._record(id, "failed", self._why or "late"))

    def _record(self, id, name, value):
        record = {"t": "signed", "evse": self.post.state.n, "session_id": id}
        record["nature"] = self._nature
        record[name] = value
        return record

    def _piece(self, app, id):
        meter = self.meter
        last = meter.settled and len(meter.text) <= _PIECE
        if last and not meter.text:  # this maker's record comes at the end
            self._nature = None
            return
        data = b2a_base64(bytes(meter.text[:_PIECE])).decode().strip()
        record = self._record(id, "data", data)
        record["piece"] = self._pieces + 1
        if last:
            record["of"] = self._pieces + 1
            record["public_key"] = b2a_base64(meter.key).decode().strip()
        spared = app.journal.spared
        if app.commit((record,), True):
            self._pieces += 1
            meter.take(_PIECE)
            if last:
                self._nature = None
        elif app.journal.spared != spared:
            self._done(app, self._record(id, "failed", "no room in the journal"))

    def _done(self, app, record):
        if app.commit((record,)):
            self.meter.forget()
            self.open = True
            self._nature = None
