"""The agent: parts wired together, the gateway's commands, cards, and supervision.

The agent is one loop without threads or asyncio. A turn gives every part a moment, in a fixed
order, and no part ever waits: each is a small machine that looks whether something has come. So
the same loop runs on the board, in a VM and under a simulated clock, one turn is one step, and a
stack costs nothing. Parts that fail are counted and recorded, and the turn goes on; the watchdog
is fed only by a turn in which every part has had its moment.
"""

import json
import sys
from binascii import hexlify

from . import clock, commands, evse, gate, mac, ocpi, session, tokens
from .errors import LinkError, StorageError
from .journal import Journal, body
from .station import Station
from .uplink import Uplink

_ASK_MS = 15000  # an unknown card waits this long for the gateway's word
_AGAIN_MS = 3000  # and is asked for again as often
_READER_MS = 300000  # a reader that comes and goes is told at most as often
_FRESH_MS = 900000  # after RESERVE_NOW its card is not asked for (mod_commands, ReserveNow)
_OWN = 4  # worth of the EVSE that is reserved for the card
_RETRY_MS = 1000  # after a failed write
_SLOW_MS = 150  # a write that takes longer than the loop should stall is told
_COALESCE_MS = 900000  # refusals of one cause: at most one record in this time
_ALIVE_MS = 600000  # while something is reserved, a moment is on record at least this often
_QUIET_MS = 25200000  # ... and while something is booked: with a gateway, anchors are
_NOTE_MS = 10000  # ... and in RTC memory, which a cut takes away
_STALLED_MS = 300000  # connected, but nothing acknowledged for so long: rebuild the link
_TRIAL_MS = 600000  # a configuration on trial has so long to reach the gateway
_DAY_MS = 86400000
_MAX_FAILURES = 50  # turns in a row in which one part failed

def build(config, secrets, board):
    """The agent for a checked `config`, its `secrets` and a `board` (see `hal/board.py`)."""
    return App(config, secrets, board)


def _forget(thing, names, old, since):
    for name in names:
        ticks = getattr(thing, name)
        if ticks is not None and since(ticks) > since(old):
            setattr(thing, name, old)


class App:
    def __init__(self, config, secrets, board):
        self.config = config
        self.board = board
        self.since = board.since
        self.up_ms = board.up_ms
        self.ticks = board.ticks()
        name = config["station_id"]
        key = secrets["key"]
        kid = secrets["kid"]
        sid = self.new_id()
        chain = secrets.get("chain")  # of the key that the journal began with
        chain = mac.Mac(chain) if chain else mac.purpose(key, "chain", name)
        self.journal = Journal(board.store, chain)
        booking = None
        if config["bookings"]:
            from . import booked, booking
        self.station = Station([e["n"] for e in config["evses"]], booking)
        following = secrets.get("next")
        if following:
            following = mac.purpose(following["key"], "down", name), following["kid"]
        self.inbox = commands.Inbox(mac.purpose(key, "down", name), kid, sid, following)
        self.trial = board.trial
        self.uplink = Uplink(
            self.journal, mac.purpose(key, "up", name), kid, sid, config["live_s"] * 1000
        )
        self.boot = 0
        self.booted = False  # the boot record is durable
        self.booted_up = 0  # up_ms when it became so
        self.failed_at = None  # ticks of the last failed write
        self.flash_ms = 0  # the longest write of this boot
        self._slow_ms = _SLOW_MS  # ... that is told when it is longer than this
        self.wrote = None  # has this turn? None outside of turns
        self._card = None  # uid of a card, for the next turn
        self._again = False  # ask the gateway again for what could not be done or written
        self.refusals = {}  # (what, why, evse) -> [count, ticks of the last record or None]
        self.asking = None  # (evse, uid, ticks): a card that waits for the gateway
        self.reader_lost = False  # as it was told last
        self.reader_up = _READER_MS // 30  # up_ms, when it may be told again
        self.whitelist = None
        if config["offline_cards"] == "whitelist":
            from .whitelist import Whitelist

            self.whitelist = Whitelist(board.shelf("/tokens"), mac.Mac(chain(b"tokens")))
        self.health_wanted = False
        self.reset_wanted = False
        self.progress = 0
        self.progress_at = self.ticks
        self.alive_at = self.noted_at = self.ticks
        self.yesterday = self.ticks
        self.failures = {}
        self.wrong = self.journal.open(
            self.station.restore, self.station.evolve, board.random, board.reached
        )
        self.station.clock.state = clock.UNSET  # what replay left is another boot's
        if self.trial is not None and self.trial["result"]["command_id"] in self.station.results:
            self.trial["why"] = ""  # it was told what became of it, and the power went
        self.outage_from = None
        self.posts = {}
        for e in config["evses"]:
            n = e["n"]
            self.posts[n] = evse.Post(
                self, self.station.evses[n], board.pins[n], board.meters[n], e
            )
            if booking is not None:
                self.posts[n].booked = booked.Booked(self.posts[n])
        self._rota = [(n, self.posts[n].turn) for n in self.posts]
        for part in ("cards", self._cards), ("link", self._link), ("chores", self._chores):
            self._rota.append(part)

    # -- time ----------------------------------------------------------------------------------

    def now(self):
        """Unix ms, or None."""
        return self.station.clock.now(self.up_ms())

    def least(self):
        """The least unix ms it can be, or None."""
        return self.station.clock.least(self.up_ms())

    def most(self):
        """The most unix ms it can be, or None."""
        now = self.now()
        return None if now is None else now + self.station.clock.err(self.up_ms())

    def moment(self):
        return [self.boot, self.up_ms()]

    def outage_ms(self):
        """The longest that the power can have been away before this boot, or None."""
        now = self.now()
        if now is None or self.outage_from is None:
            return None
        away = now - self.outage_from - self.up_ms()
        return away if away >= 0 else None  # less than nothing: the clock was wrong then

    # -- records -------------------------------------------------------------------------------

    def commit(self, records, spare=False):
        """Make the records of one transition durable as one group, then let the state evolve.
        False: nothing has changed, try again later; in the next turn, if this one has written."""
        if not records or not self.booted:
            return False
        return self.write(records, spare)

    def may_write(self):
        """Once a turn, and not for a second after it has failed."""
        return not self.wrote and (
            self.failed_at is None or self.since(self.failed_at) >= _RETRY_MS
        )

    def _written(self):
        if self.wrote is False:
            self.wrote = True

    def write(self, records, spare):
        if not self.may_write():
            return False
        up = self.up_ms()
        lost = self.journal.lost()
        if lost is not None and not spare:
            records = tuple(records) + (lost,)
        try:
            bodies = [body(self.boot, up, r) for r in records]
            began = self.board.ticks()
            alone = self.wrote is False
            done = self.journal.append(bodies, self.station.checkpoint, spare, alone)
            self.flash_ms = max(self.flash_ms, self.since(began))
            if not done:
                if done is None:  # another write had to be first
                    self.wrote = True
                return False
        except StorageError:
            self.failed_at = self.ticks
            return False
        self.failed_at = None
        self._written()
        if lost is not None and not spare:
            self.journal.told(lost)
        for r in records:
            r["boot"] = self.boot
            r["up_ms"] = up
            self.station.evolve(r)
        self.uplink.hurry = True
        self._alive()
        return True

    def _alive(self):
        """In RTC memory: what a boot after the loss of the whole journal can still know."""
        self.board.alive(self.boot, self.up_ms(), self.journal.id, self.journal.seq)

    def _start(self, ticks):
        if self.may_write():
            self.once("opening", "begin", self)

    def accepted(self, command, n, session_id=None):
        return commands.result(command, ocpi.ACCEPTED, n, session_id)

    def failed(self, command, n):
        """Record that a command that was waiting came to nothing."""
        return self.commit((commands.result(command, ocpi.FAILED, n),))

    def note(self, record):
        """Commit a record that may be left out where room is short. Is it on record, or counted
        among those that were left out?"""
        spared = self.journal.spared
        return self.commit((record,), True) or self.journal.spared != spared

    def refuse(self, what, why, n=None):
        """Count a refusal; at most one record a cause in 15 minutes, so that nobody can wear out
        the flash."""
        key = (what, why, n)
        entry = self.refusals.get(key)
        if entry is None:
            if len(self.refusals) >= 24:
                return
            entry = self.refusals[key] = [0, None]
        entry[0] += 1
        self._tell_refusal(key, entry)

    def _tell_refusal(self, key, entry):
        if entry[1] is not None and self.since(entry[1]) < _COALESCE_MS:
            return
        if not entry[0]:
            del self.refusals[key]
            return
        if self.wrote:
            return
        if key[0] == "part":
            record = {"t": "event", "what": "supervisor", "task": key[1]}
        else:
            record = {"t": "refused", "what": key[0], "why": key[1], "count": entry[0]}
            if key[2] is not None:
                record["evse"] = key[2]
        if self.note(record):
            entry[0] = 0
            entry[1] = self.ticks

    def tell(self, picture):
        """A line for people and tools at the console; nothing depends on it."""
        self.board.say(json.dumps(picture))

    def new_id(self):
        return hexlify(self.board.random(16)).decode()

    def estop(self):
        return self.board.estop()

    def once(self, module, name, *args):
        """Call a function of a module that is needed seldom, and so is loaded for one call and
        forgotten. False where it cannot be loaded: a flash that cannot be read, a full heap."""
        try:
            if module == "orders":
                from . import orders as found
            elif module == "facts":
                from . import facts as found
            elif module == "opening":
                from . import opening as found
            elif module == "remote":
                from . import remote as found
            else:
                from . import rotation as found
        except (ImportError, OSError, ValueError, MemoryError):
            self.refuse("part", module)
            return False
        del sys.modules["wattlock." + module]
        delattr(sys.modules["wattlock"], module)
        return getattr(found, name)(*args)

    # -- the loop ------------------------------------------------------------------------------

    def run(self):
        """For ever. An exception that escapes is the door's business: safe outputs and a reset."""
        while True:
            self.turn()
            self.board.idle()

    def turn(self):
        """One step of everything. One part writes to the flash in it, once: who has goes last from
        then on, and who could not is in time to do so in one of the next."""
        board = self.board
        self.ticks = board.ticks()
        self.wrote = False
        if not self.booted:
            self._part("start", self._start, self.ticks)
        for bus in board.buses:
            self._part("bus", bus.turn, self.ticks)
        writer = None
        for i in range(len(self._rota)):
            name, step = self._rota[i]
            self._part(name, step, self.ticks)
            if self.wrote and writer is None:
                writer = i
        if writer is not None:
            self._rota.append(self._rota.pop(writer))
        self.wrote = None
        board.feed()

    def _part(self, name, step, ticks):
        try:
            step(ticks)
        except Exception as e:
            count = self.failures.get(name, 0) + 1
            self.failures[name] = count
            if count == 1:
                self.board.trouble(name, e)
                self.refuse("part", str(name))
            if count > _MAX_FAILURES:
                raise
        else:
            if name in self.failures:
                del self.failures[name]

    def _age(self, ticks):
        """Ticks wrap and tell spans of some days only: what is older than a day stays so old."""
        old = self.yesterday
        self.yesterday = ticks
        _forget(self, ("failed_at",), old, self.since)
        _forget(self.uplink, ("sent_at",), old, self.since)
        for n in self.posts:
            post = self.posts[n]
            _forget(
                post,
                ("accepted_at", "open_since", "load_since", "out_since", "glitch_at"),
                old,
                self.since,
            )
            _forget(post.contactor, ("since",), old, self.since)
            _forget(post.lock, ("since",), old, self.since)

    def _chores(self, ticks):
        if self.since(self.yesterday) > _DAY_MS:
            self._age(ticks)
        for key in list(self.refusals):
            self._tell_refusal(key, self.refusals[key])
        if self.booted and self.since(self.noted_at) > _NOTE_MS:
            self.noted_at = ticks
            self._alive()
        if self.wrote:
            return
        if self.flash_ms > self._slow_ms:
            record = {"t": "event", "what": "flash_slow", "ms": self.flash_ms}
            if self.note(record):
                self._slow_ms = 2 * self.flash_ms  # some records a boot: they are slow as well
        elif self.since(self.alive_at) > _ALIVE_MS:
            keeps = False
            quiet = self.up_ms() - self.station.last[1] > _QUIET_MS
            for n in self.posts:
                slots = self.station.evses[n].slots
                locks = self.posts[n].occupancy() in (gate.HELD, gate.SLOT)
                keeps = keeps or locks or (quiet and slots and slots.rows)
            if not keeps or self.note({"t": "event", "what": "alive"}):
                self.alive_at = ticks
        trial = self.trial
        if self.wrote:
            return
        if trial is not None and (trial["why"] is not None or trial["running"]):
            late = self.up_ms() > _TRIAL_MS
            if trial["why"] is not None or late or self.uplink.greeted:
                self.once("remote", "turn", self)
        if self.reset_wanted:
            for n in self.posts:
                if self.station.evses[n].session is not None:
                    return
            self.board.reset()

    # -- cards ---------------------------------------------------------------------------------

    def waits(self, n):
        """Does a card wait for the gateway's word at this EVSE?"""
        return self.asking is not None and self.asking[0] == n

    def _cards(self, ticks):
        reader = self.board.rfid
        if reader is not None:
            reader.turn(ticks)
            uid = self._card or reader.read()
            if uid is not None:
                self._card = None
                self.card(uid)
            if reader.ok is self.reader_lost and self.up_ms() >= self.reader_up:
                what = "reader_back" if reader.ok else "reader_lost"
                if self.note({"t": "event", "what": what}):
                    self.reader_lost = not reader.ok
                    self.reader_up = self.up_ms() + _READER_MS
        if self.whitelist is not None and self.whitelist.work is not None and not self.wrote:
            self._sync()
        if self.asking is not None:
            n, uid, since = self.asking
            post = self.posts[n]
            if self.since(since) > _ASK_MS or (self._silent() and post.kept_for(uid)):
                self.asking = None
                if not self._known(post, uid, True):
                    post.refuse("no_answer")
            elif self.uplink.sent_up is None and self.since(self.uplink.sent_at) > _AGAIN_MS:
                self.uplink.hurry = True  # the word may have been lost

    def _sync(self, data=None):
        """A part of the whitelist has come, or a moment to write the list anew."""
        self._written()
        try:
            if self.whitelist.turn() if data is None else self.whitelist.take(data):
                self.uplink.hurry = True
        except StorageError:
            self.refuse("part", "whitelist")

    def card(self, uid):
        """A card was shown: it stops its own session, opens its reservation, or asks to start."""
        post = grouped = None
        best = -1
        for n in self.posts:
            here = self.posts[n]
            here.lapse()
            s = here.state.session
            if s is not None:
                if s.token is None:
                    continue
                if tokens.is_card(s.token, ocpi.RFID, uid):
                    here.stop(session.LOCAL, s.token)
                    return
                if "group_id" in s.token:
                    grouped = here
                continue
            # rather its own, rather where nothing is reserved, rather where a plug waits
            worth = (2 if here.occupancy() == gate.FREE else 0) + (1 if here.plugged else 0)
            if here.kept_for(uid) is not None:
                worth = _OWN
            if worth > best:
                best = worth
                post = here
        if self.wrote:  # what is over may still have to be let go of
            self._card = uid
            return
        post = post or grouped
        if post is None:
            self.posts[min(self.posts)].refuse(gate.OCCUPIED)
            return
        held = post.state.reservation
        connected = self.board.link.connected
        strange = best < _OWN and grouped is None
        if strange and held is not None and "group_id" not in held.token:
            post.refuse(gate.RESERVED)
        elif strange and held is None and post.booked is not None and post.booked.for_others():
            post.refuse(gate.BOOKED)
        elif self._known(post, uid, not connected):
            return
        elif connected:
            self.asking = (post.state.n, uid, self.ticks)
            self.uplink.hurry = True
        else:
            post.refuse("offline")

    def _silent(self):
        """Is there no gateway to ask: no answer in this boot, or none to what was said last?"""
        return not self.uplink.greeted or self.since(self.progress_at) > _AGAIN_MS

    def _known(self, post, uid, offline):
        """Needs the gateway not be asked, or can it not be? Then this card's wish is done."""
        kept = post.kept_for(uid)
        if kept is not None:
            sure = offline or self._silent() or self.up_ms() - post.reserved_up < _FRESH_MS
            if sure or post.state.reservation is None:
                self._welcome(post, kept[0], ocpi.COMMAND, kept[1])
                return True
        token = self.whitelist and self.whitelist.find(uid, offline)
        if token:
            self._welcome(post, token, ocpi.WHITELIST, None)
        return token

    def _welcome(self, post, token, auth_method, reference):
        """An authorised token starts; it stops a session of its group if no plug waits for it."""
        right = post.right_of(token)
        stops = right == gate.TOKEN and not (post.plugged and post.state.session is None)
        for n in self.posts:
            other = self.posts[n]
            s = other.state.session
            if stops and s is not None and s.token and tokens.same_group(s.token, token):
                other.stop(session.LOCAL, token)
                return
            grant = other.grant  # whoever shows the card again leaves no right behind elsewhere
            if (
                grant is not None
                and grant.accepted is None
                and grant.source == gate.CARD
                and tokens.same(grant.token, token)
            ):
                other.grant = None
        why = post.ask(right, gate.CARD, token, auth_method, reference)
        if why is not None:
            post.refuse(why)

    def _authorized(self, data):
        """The gateway's word on the card that waits."""
        if self.asking is None or (data.get("evse"), data.get("uid")) != self.asking[:2]:
            return
        post = self.posts[self.asking[0]]
        self.asking = None
        token = tokens.clean(data.get("token"))
        if data.get("allowed") != ocpi.ALLOWED or token is None:
            post.refuse(gate.UNAUTHORISED)
            return
        method = data.get("auth_method")
        if not tokens.is_word(method):
            method = ocpi.WHITELIST
        self._welcome(post, token, method, data.get("authorization_reference"))

    # -- the gateway ---------------------------------------------------------------------------

    def _link(self, ticks):
        link = self.board.link
        try:
            link.turn(ticks, self._calm())
            while not self.wrote:
                came = link.receive()
                if came is None:
                    break
                self.receive(came[0], came[1])
            if self._again and self.may_write():
                self._again = False
                self.uplink.hurry = True
            if self.uplink.due(self.since, link.connected and not link.busy):
                link.send(*self._message())
        except (LinkError, StorageError) as e:
            self.board.trouble("link", e)
            if len(e.args) > 1:
                self.refuse("link", e.args[1])
            self.uplink.lost()
            link.rebuild()
        waits = link.connected and self.uplink.sent_up is not None
        if self.uplink.progress != self.progress or not waits:
            self.progress = self.uplink.progress
            self.progress_at = ticks
        elif self.since(self.progress_at) > _STALLED_MS:
            self.progress_at = ticks
            self.refuse("part", "link_stalled")
            self.uplink.lost()
            link.rebuild()

    def _calm(self):
        """May a connection be made now? Not while an EVSE stops or unlocks."""
        for n in self.posts:
            if self.posts[n].is_stopping():
                return False
        return True

    def _message(self):
        live = {}
        brief = self.uplink.brief()
        for n in self.posts:
            picture = self.posts[n].live(brief)
            if picture:
                live[str(n)] = picture
        asked = {}
        if self.asking is not None:
            asked["authorize"] = {
                "evse": self.asking[0],
                "type": ocpi.RFID,
                "uid": self.asking[1],
            }
        if self.whitelist is not None:
            asked["tokens"] = self.whitelist.report()
        if self.health_wanted:
            self.health_wanted = False
            asked["health"] = health = self.board.health()
            health["flash_ms"] = self.flash_ms
        return self.uplink.message(
            self.boot,
            self.up_ms(),
            self.ticks,
            self.station.clock,
            live,
            asked,
            self.board.random(1)[0],
        )

    def receive(self, message, retained=False):
        """A down message from the link, whoever sent it."""
        head, why = self.inbox.open(message, retained)
        if head is None:
            self.refuse("message", why)
            return
        up = self.up_ms()
        is_answer = commands.answers(head, up)
        if is_answer and isinstance(head.get("unix_ms"), int):
            self._time(head["unix_ms"], head["re"], up)
        self.uplink.answer(head, up)
        if head["kid"] != self.inbox.kid and not self.wrote:
            self.once("rotation", "promote", self)
        for command in head.get("commands") or ():
            self._command(command, is_answer)

    def _command(self, command, is_answer):
        """One of a message, unless this turn has written: the gateway repeats what it has no
        result of. What is over is let go of before anybody is refused on its account."""
        if not commands.well_formed(command):
            self.refuse("command", commands.MALFORMED)
            return
        known = commands.known(self.station.results, command)
        if known or self._pending(command["id"]):
            return  # its result is in the journal already, or will be
        kind = command["type"]
        if kind != ocpi.CANCEL_RESERVATION:  # which finds what is over, too
            for n in self.posts:
                self.posts[n].lapse()
        if self.wrote:
            self.uplink.hurry = True
            return
        seq = self.journal.seq
        why = commands.stale(command["exp"], is_answer, self.station.clock, self.up_ms())
        if why is not None:
            self.refuse("command", why)
            if not is_answer:
                self.uplink.hurry = True  # it may come again in an answer, which is fresh
        elif known is False:
            self.commit((commands.result(command, ocpi.REJECTED),))
        else:
            self._obey(command, command.get("data") or {})
        if self.journal.seq == seq and not self.may_write() and kind != ocpi.SYNC_TOKENS:
            self._again = True

    def _pending(self, id):
        """Does a command of this id wait for its result?"""
        if self.trial is not None and self.trial["result"]["command_id"] == id:
            return True
        for n in self.posts:
            post = self.posts[n]
            if post.unlocking is not None and post.unlocking["id"] == id:
                return True
            grant = post.grant
            if grant is not None and grant.command is not None and grant.command["id"] == id:
                return True
        return False

    def _time(self, unix_ms, sent_up, up):
        time = self.station.clock
        agreed = time.odd is None
        record = clock.decide(time, up, sent_up, unix_ms)
        if agreed and time.odd is not None:
            self.uplink.hurry = True  # brief pictures have no answer, and it takes another one
        if record is not None and self.commit((record,)):
            self.board.keep_time(record["unix_ms"])

    def _obey(self, command, data):
        kind = command["type"]
        if kind == ocpi.AUTHORIZE:
            self._authorized(data)
        elif kind == ocpi.SYNC_TOKENS and self.whitelist is not None:
            self._sync(data)
        elif kind == ocpi.GET_HEALTH:
            self.health_wanted = self.uplink.hurry = True
        elif kind == ocpi.STOP_SESSION:
            self._stop(command, data)
        elif kind == ocpi.RESET:
            self.reset_wanted = self.say(command, ocpi.ACCEPTED)
        elif kind in (
            ocpi.CANCEL_RESERVATION,
            ocpi.RESERVE_NOW,
            ocpi.START_SESSION,
            ocpi.SET_AVAILABILITY,
            ocpi.SET_BOOKINGS,
        ):
            self.once("orders", "obey", self, command, data)
        elif kind == ocpi.UNLOCK_CONNECTOR:
            n = data.get("evse")
            post = self.posts.get(n) if isinstance(n, int) else None
            if post is None:
                self.say(command, ocpi.REJECTED)
                return
            self._unlock(command, post)
        elif kind == ocpi.SET_CONFIG:
            self.once("remote", "obey", self, command, data)
        elif kind == ocpi.ROTATE_KEY:
            self.once("rotation", "obey", self, command, data)
        else:
            self.say(command, ocpi.NOT_SUPPORTED)

    def say(self, command, word, n=None):
        return self.commit((commands.result(command, word, n),))

    def _stop(self, command, data):
        """Stop a session, or take back the right to begin it."""
        id = data.get("session_id")
        for n in self.posts:
            post = self.posts[n]
            s = post.state.session
            if s is not None and s.id == id:
                post.stop(session.REMOTE)
                return self.commit(
                    session.stopping(s, n, session.REMOTE) + (self.accepted(command, n, s.id),)
                )
            if id is not None and post.coming() == id:
                records = (self.accepted(command, n, id),)
                start = post.grant.command
                if start is not None:
                    records += (commands.result(start, ocpi.FAILED, n),)
                if self.commit(records):
                    post.grant = None
                return None
        return self.say(command, ocpi.REJECTED)

    def _unlock(self, command, post):
        if not post.pins.has_lock:
            return self.say(command, ocpi.NOT_SUPPORTED, post.state.n)
        if post.unlocking is not None or post.grant is not None:
            return self.say(command, ocpi.REJECTED, post.state.n)
        if post.state.session is not None:
            post.stop(session.REMOTE)
        post.unlock(command)
        return True
