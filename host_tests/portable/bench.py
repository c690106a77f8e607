"""A bench for the agent: store, pins, meter, link, gateway and time, all plain memory.

One source for CPython and the MicroPython VM, so it knows only what both have. `World` is a site:
its time and its things outlive the agent, which `boot` starts and `cut` takes the power from. One
turn is one step of `World.run`; nothing waits, nothing is random.
"""

import hashlib
import json
from binascii import hexlify

from wattlock import app, commands, config, mac

from portable.store import Store

KEY = bytes(range(32))
STATION = "DEMO-1"
UNIX_MS = 1790000000000  # true time when a world begins: 2026-09-21
ANNA = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1B2C3"}
BERT = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04FFEEDD"}
SPEC = {
    "board": "virtual",
    "uarts": {"1": {"tx": 17, "rx": 16, "de": 4}},
    "evses": {str(n): {"contactor": {"pin": 17 + n}} for n in range(1, 5)},
}
ONCE = "AUTHORIZE", "SYNC_TOKENS"  # commands that are said once
METERS = ["eastron_sdm630_v2"]


def site(evses=1, offline_cards="refuse", **fields):
    """A config.json as an object; `fields` go into every EVSE."""
    rows = []
    for n in range(1, evses + 1):
        row = {"n": n, "meter": METERS[0], "bus": "rs485", "unit": n, "max_a": 32, "phases": 3}
        row.update(fields)
        rows.append(row)
    return {
        "station_id": STATION,
        "board": "virtual",
        "link": {"kind": "mqtt", "host": "127.0.0.1", "port": 1883, "insecure": True},
        "buses": {"rs485": {"kind": "rtu", "uart": 1, "baud": 9600, "parity": "N", "stop": 1}},
        "evses": rows,
        "live_s": 60,
        "offline_cards": offline_cards,
    }


class Pins:
    """What hangs on one EVSE's pins: contactor, lock, car. Feedback follows the drive at once
    unless `welded`, `stuck_open` or `lock_stuck`."""

    def __init__(self):
        self.contactor_out = self.lock_out = False
        self.welded = self.stuck_open = self.lock_stuck = False
        self.car = "A"
        self.fail = False
        self.feedback = True
        self.lamp = 0
        self.has_lock = True
        self.log = []  # ("contactor" or "lock", value) in order

    def contactor(self, close):
        self.contactor_out = close
        self.log.append(("contactor", close))

    def lock(self, hold):
        self.lock_out = hold
        self.log.append(("lock", hold))

    def led(self, colour):
        self.lamp = colour

    def plugged(self):
        return self.car != "A"

    def ready(self):
        return self.car == "C"

    def fault(self):
        return self.fail

    def is_closed(self):
        return self.welded or (self.contactor_out and not self.stuck_open)

    def closed(self):
        return self.is_closed() if self.feedback else None

    def locked(self):
        if not self.feedback:
            return None
        return self.lock_out and not self.lock_stuck


class Meter:
    """The reading interface over a register that a World moves."""

    def __init__(self, real):
        self.real = real
        self.serial = self.energy_wh = self.power_w = self.export_wh = self.current_ma = None
        self.step_wh, self.rolls_wh = real.step_wh, real.rolls_wh
        self.readings = self.failed = 0
        self.wanted = False

    def demand(self):
        self.wanted = True

    def poll(self):
        self.wanted = False
        if self.real.dead:
            self.failed += 1
            return
        self.failed = 0
        self.readings += 1
        if self.real.frozen == "all":
            return
        self.serial = self.real.serial
        self.power_w = self.real.power_w
        if self.real.frozen:
            return
        self.export_wh = self.real.export_wh
        self.energy_wh = self.real.glitch or self.real.shown_wh()
        self.real.glitch = None


class RealMeter:
    """The meter itself, which power cuts at the board do not touch. Its register moves in steps
    of `step_wh` and begins again at `rolls_wh`, where there is one."""

    def __init__(self, serial):
        self.serial = serial
        self.step_wh = 1
        self.rolls_wh = ()
        self.export_wh = None
        self.frozen = None  # "all": every register stands still; "energy": energy alone
        self.mwh = 5000000
        self.power_w = 0
        self.dead = False
        self.glitch = None

    def shown_wh(self):
        wh = self.mwh // 1000 // self.step_wh * self.step_wh
        return wh % self.rolls_wh[0] if self.rolls_wh else wh


class Link:
    def __init__(self):
        self.connected = True
        self.busy = False
        self.calm = None
        self.floor_ms = None
        self.up = []
        self.down = []
        self.rebuilt = 0

    def turn(self, ticks, calm):
        self.calm = calm

    def at_least(self, unix_ms):
        self.floor_ms = unix_ms

    def send(self, *parts):
        self.up.append(b"".join(parts))

    def receive(self):
        return self.down.pop(0) if self.down else None

    def rebuild(self):
        self.rebuilt += 1


class Board:
    """The port of the agent (see `hal/board.py`) in a World."""

    cause = "power"
    slot = "a"
    trial = None

    def __init__(self, world, evses):
        self.world = world
        self.store = world.store
        self.began = world.ms
        self.pins = world.pins
        self.meters = {}
        for n in world.real:
            self.meters[n] = Meter(world.real[n])
        self.buses = []
        self.link = Link()
        self.link.connected = world.online
        self.rfid = world.rfid
        self.feeds = 0
        self.kept = None
        self.alive_at = world.alive
        self.reached = world.reached
        self.told = []

    def ticks(self):
        return self.world.ms & 0x3FFFFFFF

    def since(self, ticks):
        # as ticks_diff of a 32-bit port: right for spans under 2^29 ms
        return ((self.world.ms - ticks + 0x20000000) & 0x3FFFFFFF) - 0x20000000

    def up_ms(self):
        up = self.world.ms - self.began
        return up + up * self.world.ppm // 1000000

    def random(self, n):
        return self.world.random(n)

    def shelf(self, path):
        return self.world.shelves.setdefault(path, Store())

    def feed(self):
        self.feeds += 1

    def estop(self):
        return self.world.estop

    def say(self, text):
        self.told.append(text)

    def trouble(self, part, e):
        self.world.troubles.append((part, e))

    def recall_time(self):
        return self.world.rtc

    def keep_time(self, unix_ms):
        self.kept = unix_ms

    def alive(self, boot, up_ms, journal, seq):
        self.world.alive = (boot, up_ms)
        self.world.reached = (journal, seq)

    def health(self):
        return {"heap_free": 1}

    def reset(self):
        self.world.resets += 1


class World:
    def __init__(self, evses=1, **fields):
        self.ms = 0
        self.ppm = 0  # how fast the board's crystal is
        self.store = Store()
        self.shelves = {}  # path -> Store
        self.rfid = None
        self.pins = {}
        self.real = {}
        for n in range(1, evses + 1):
            self.pins[n] = Pins()
            self.real[n] = RealMeter(f"S{n}")
        self.config = config.load(json.dumps(site(evses, **fields)), SPEC, METERS)
        self.estop = False
        self.online = True
        self.rtc = self.alive = self.reached = None
        self.troubles = []
        self.resets = 0
        self.drawn = 0
        self.board = self.app = None
        self.power_w = 11000
        self.gateway = Gateway(self)
        self.on_commit = None

    def random(self, n):
        self.drawn += 1
        return hashlib.sha256(b"bench" + self.drawn.to_bytes(4, "big")).digest()[:n]

    def unix_ms(self):
        return UNIX_MS + self.ms

    def boot(self):
        """Power is there: the agent starts."""
        self.board = Board(self, self.config["evses"])
        self.app = app.build(self.config, {"kid": 1, "key": KEY}, self.board)
        return self.app

    def cut(self, off_ms=0, keeps_lock=True, keeps_rtc=False):
        """Power goes for `off_ms` and comes back. Contactors fall open; the lock stays. With
        `keeps_rtc` it is a reset: RTC memory stays."""
        for n in self.pins:
            self.pins[n].contactor_out = False
            self.real[n].power_w = 0
            if not keeps_lock:
                self.pins[n].lock_out = False
        if not keeps_rtc:
            self.alive = self.reached = None
        self.board = self.app = None
        self.pass_ms(off_ms)
        return self.boot()

    def pass_ms(self, ms):
        """Time and energy pass."""
        for n in self.pins:
            real = self.real[n]
            flows = self.pins[n].is_closed() and self.pins[n].ready()
            real.power_w = self.power_w if flows else 0
            real.mwh += real.power_w * ms // 3600
        self.ms += ms

    def run(self, ms, step=100):
        """`ms` of turns; the gateway answers each message in the turn after."""
        end = self.ms + ms
        while self.ms < end:
            self.pass_ms(step)
            if self.ms % 1000 < step:
                for n in self.board.meters:
                    self.board.meters[n].poll()
            self.board.link.connected = self.online
            self.app.turn()
            while self.board.link.up:
                self.gateway.take(self.board.link.up.pop(0))

    def until(self, condition, ms=30000):
        """Turns until `condition()` holds; False when it does not within `ms`."""
        end = self.ms + ms
        while not condition():
            if self.ms >= end:
                return False
            self.run(100)
        return True

    # what a test asks for most

    def evse(self, n=1):
        return self.app.station.evses[n]

    def post(self, n=1):
        return self.app.posts[n]

    def records(self, t=None):
        """Records that the gateway holds, of one type or all."""
        return [r for r in self.gateway.records if t is None or r["t"] == t]

    def ask(self, kind, data=None, **more):
        """Queue a command and let the agent fetch it; returns its id."""
        id = self.gateway.command(kind, data or {}, **more)
        self.app.uplink.hurry = True
        return id

    def result_of(self, id):
        """The words of the result records of a command."""
        return [r["result"] for r in self.records("result") if r["command_id"] == id]


class Gateway:
    """The other end: checks MAC and chain of every message, keeps each record once, answers."""

    def __init__(self, world):
        self.world = world
        self.up = mac.purpose(KEY, "up", STATION)
        self.down = mac.purpose(KEY, "down", STATION)
        self.chain = mac.purpose(KEY, "chain", STATION)
        self.n = 0
        self.journal = None
        self.acked = 0
        self.link = None
        self.records = []
        self.headers = []
        self.commands = []  # to be sent with the next answer
        self.waiting = []  # (one that was sent, results of its id before)
        self.raw = []
        self.keep_raw = False
        self.deaf = False  # says nothing
        self.acks = True
        self.trip_ms = 0
        self.off_ms = 0  # how wrong its clock is
        self.brief_s = None  # says so in its answers

    def command(self, kind, data, exp=None, id=None):
        id = id or hexlify(self.world.random(16)).decode()
        exp = exp if exp is not None else self.world.unix_ms() + self.off_ms + 30000
        self.commands.append({"id": id, "type": kind, "exp": exp, "data": data})
        return id

    def due(self):
        """The commands to send now: new ones, and those again that have no result yet."""
        done = [r["command_id"] for r in self.records if r["t"] == "result"]
        if "health" in self.headers[-1]:
            done += [c["id"] for c, _ in self.waiting if c["type"] == "GET_HEALTH"]
        now = self.world.unix_ms() + self.off_ms
        self.waiting = [
            (c, n) for c, n in self.waiting if done.count(c["id"]) == n and c["exp"] > now
        ]
        due = [c for c, _ in self.waiting] + self.commands
        for c in self.commands:
            if commands.well_formed(c) and c["type"] not in ONCE:
                self.waiting.append((c, done.count(c["id"])))
        self.commands = []
        return due

    def take(self, message):
        mac_line, rest = message[:64], message[65:]
        assert hexlify(self.up(rest)) == mac_line and len(message) <= 4096
        lines = rest.split(b"\n")
        head = json.loads(lines[0])
        if self.keep_raw:
            self.raw.append(message)
        self.headers.append(head)
        if "journal" not in head:  # a brief picture: answered where there is something to say
            assert len(lines) == 1
            commands = self.due()
            if commands or head["seq"] != self.acked + 1:
                down = self.header(head, commands)
                del down["re"]
                if not self.deaf:
                    self.send(down)
            return
        if head["journal"] != self.journal:
            self.journal = head["journal"]
            self.acked = 0
            self.link = self.chain(self.journal.encode())
        seq = head["seq"]
        if seq == self.acked + 1:
            assert head["prev"] == hexlify(self.link).decode(), f"chain broken at {seq}"
        for line in lines[1:]:
            if seq == self.acked + 1:
                self.link = self.chain(self.link, seq.to_bytes(8, "big"), line)
                self.acked = seq
                self.records.append(json.loads(line))
            seq += 1
        if seq == self.acked + 1:
            assert head["head"] == hexlify(self.link).decode()
        if not self.deaf:
            self.send(self.header(head, self.due()))

    def header(self, head, commands=()):
        self.n += 1
        down = {
            "v": 1,
            "kid": 1,
            "sid": head["sid"],
            "n": self.n,
            "re": head["up_ms"],
            "unix_ms": self.world.unix_ms() + self.off_ms,
            "journal": self.journal,
            "ack": self.acked if self.acks else 0,
            "commands": list(commands),
        }
        if self.brief_s is not None:
            down["brief_s"] = self.brief_s
        return down

    def seal(self, text, key=None):
        """The bytes of a down message; `key`: a Mac to forge with."""
        if not isinstance(text, bytes):
            text = json.dumps(text).encode()
        return hexlify((key or self.down)(text)) + b"\n" + text

    def send(self, head, retained=False):
        self.world.board.link.down.append((self.seal(head), retained))
