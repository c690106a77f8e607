"""Run in the MicroPython VM by power_cuts.py: the agent's life on real LittleFS, cut everywhere.

One life is recorded, every program and erase of the flash with the moment it came at: `STEPS` says
what happens in it. Then, for each operation, the image as it was before it (clean) or in its
middle (torn) is mounted, and the firmware's own `start.py` builds the agent from what is on it.
The plant (car, contactor, lock, meter) and the gateway are as they were at that moment. The
agent then lives on: strangers try, what runs is stopped, what is held is used or expires, and
all of it is told to the gateway. `promises.Witness` knows what was durable, acted on and reported
before, and says what is broken.

A part that comes to the firmware adds a function to STEPS, and its kinds of torn writes are
tested. Geometry: 4096-byte blocks, 512 of them as in an ESP32's `vfs` of 2 MiB, 32-byte units.
Limits: torn means the first half, or scattered bits (`bits`); time stands still within a turn.
"""

import gc
import json
import os
import sys
from binascii import hexlify

import ffi  # pyright: ignore[reportMissingImports]
import uctypes  # pyright: ignore[reportMissingImports]
import vfs  # pyright: ignore[reportMissingImports]

vfs.mount(vfs.VfsPosix("/"), "/_host")  # "/" will be the flash, which holds no code
sys.path[:] = ["/_host" + path for path in sys.path if path.startswith("/")]

from hal.flash import Flash  # noqa: E402
from portable import bench, test_whitelist  # noqa: E402
from promises import Witness, stop_of  # noqa: E402

BLOCK = 4096
BLOCKS = 512
SIZE = BLOCK * BLOCKS
BASE_WH = 5000  # of bench.RealMeter
MINUTE = 60000
FINE = 250  # ms a turn, after a cut
CARL = dict(bench.ANNA, uid="04CA51CA51")

_mmap = ffi.open(None).func("p", "mmap", "pLiiil")


def memory():
    """An image outside of the heap, which the collector would search for pointers."""
    return uctypes.bytearray_at(_mmap(None, SIZE, 3, 0x22, -1, 0), SIZE)


def copy(target, source):
    memoryview(target)[:] = memoryview(source)


def erase(image):
    """As the factory delivers it."""
    for at in range(0, SIZE, BLOCK):
        image[at : at + BLOCK] = _BLANK


class Chip:
    """A NOR flash over `image`. `log` takes what is done to it; `wear` counts erases by block."""

    def __init__(self, image):
        self.image = memoryview(image)
        self.ops = 0
        self.log = None
        self.now = None  # what the log notes with each operation
        self.wear = None
        self.failing = ()  # kinds of operations that give errors: "read", "program", "erase"

    def readblocks(self, block, buffer, offset=0):
        if "read" in self.failing:
            return -5
        at = block * BLOCK + offset
        buffer[:] = self.image[at : at + len(buffer)]

    def writeblocks(self, block, buffer, offset=0):
        if "program" in self.failing:
            return -5
        at = block * BLOCK + offset
        self.ops += 1
        if self.log is not None:
            self.log.append((at, bytes(buffer), self.now()))
        self.image[at : at + len(buffer)] = buffer

    def ioctl(self, op, arg):
        if op == 4:
            return BLOCKS
        if op == 5:
            return BLOCK
        if op == 6:
            if "erase" in self.failing:
                return -5
            self.ops += 1
            if self.log is not None:
                self.log.append((arg * BLOCK, None, self.now()))
            if self.wear is not None:
                self.wear[arg] += 1
            self.image[arg * BLOCK : arg * BLOCK + BLOCK] = _BLANK
        return 0


_BLANK = b"\xff" * BLOCK


def change(image, op, torn=None, rng=0):
    """Do an operation of the log to an image, or the part of it that a cut leaves."""
    at, data, _ = op
    n = BLOCK if data is None else len(data)
    if torn == "half":
        n //= 2
    for i in range(at, at + n) if torn == "bits" else ():
        rng = (rng * 1103515245 + 12345) & 0x3FFFFFFF
        mask = rng >> 16 & 0xFF
        image[i] = image[i] | mask if data is None else image[i] & (data[i - at] | mask)
    if torn == "bits":
        return
    if data is None:
        memoryview(image)[at : at + n] = _BLANK[:n]
    else:
        memoryview(image)[at : at + n] = data[:n]


class Tap:
    """The board's store, and who listens to what is written to it."""

    def __init__(self, site):
        flash = Flash()
        for name in (
            "names", "size", "read", "create", "remove", "reserve", "release", "set_aside",
        ):
            setattr(self, name, getattr(flash, name))
        self._append = flash.append
        self._site = site

    def append(self, name, *parts):
        data = b"".join(parts)
        if data[:1] != b"R":
            return self._append(name, *parts)
        # u8 kind, u24 length, u32 sequence, 8 bytes of link, lines, CRC: firmware/JOURNAL.md
        seq = int.from_bytes(data[4:8], "little")
        lines = data[16:-4].split(b"\n")
        begun = self._site.chip.ops
        self._site.witness.asked(seq, lines)
        self._append(name, *parts)
        self._site.witness.written(seq, lines, begun, self._site.chip.ops)


class Pins(bench.Pins):
    witness = None

    def contactor(self, close):
        if close and not self.is_closed():
            self.witness.closes()
        bench.Pins.contactor(self, close)


class Gateway(bench.Gateway):
    """Keeps the lines, and sends a command until it has its result."""

    def __init__(self, world):
        bench.Gateway.__init__(self, world)
        self.lines = []
        self.first = 1  # sequence of lines[0]
        self.said = []  # down messages

    def take(self, message):
        before = self.acked
        if b'"authorize":' in message:
            card = json.loads(message.split(b"\n")[1])["authorize"]
            (token,) = [t for t in (bench.ANNA, bench.BERT, CARL) if t["uid"] == card["uid"]]
            data = {"evse": card["evse"], "uid": card["uid"], "allowed": "ALLOWED"}
            self.command("AUTHORIZE", dict(data, token=token))
        bench.Gateway.take(self, message)
        lines = message.split(b"\n")[2:]
        if self.acked > before:
            new = lines[len(lines) - (self.acked - before) :]
            self.lines += new
            for line in new:
                record = json.loads(line)
                if record["t"] == "result":
                    self.world.pending.pop(record["command_id"], None)

    def command(self, kind, data, exp=None, id=None):
        id = bench.Gateway.command(self, kind, data, exp, id)
        command = self.commands.pop()
        if kind in bench.ONCE:
            self.commands.append(command)
        else:
            self.world.pending[id] = command
        return id

    def header(self, head, commands=()):
        return bench.Gateway.header(
            self, head, list(commands) + list(self.world.pending.values())[:3]
        )

    def send(self, head, retained=False):
        self.said.append(self.seal(head))
        if len(self.said) > 4:
            self.said.pop(0)
        if self.world.board is not None:  # else the power is gone
            self.world.board.link.down.append((self.said[-1], retained))


class Restart(BaseException):
    """The agent asks for a reset. No `except Exception` of its own holds it."""


class Port(bench.Board):
    """The board as main.py makes it, over the plant of the site."""

    def __init__(self, config, secrets, spec, slot, meter, modbus):
        bench.Board.__init__(self, SITE, config["evses"])
        self.slot = slot
        self.store = Tap(SITE)
        for e in config["evses"]:
            meter(e["meter"])  # its description is whole

    def shelf(self, path):
        from hal.shelf import Shelf

        return Shelf(path)

    def join(self, config, secrets):
        pass  # the link is the bench's, and there already

    def setup(self):
        from hal import setup

        return setup

    def reset(self, *why):
        raise Restart


class Site(bench.World):
    """A station whose files are on a chip."""

    def __init__(self, chip):
        bench.World.__init__(self)
        global SITE
        SITE = self
        self.chip = chip
        self.pending = {}
        self.gateway = Gateway(self)
        self.pins[1] = Pins()
        self.step = "installation"
        self.witness = Witness(self)
        self.pins[1].witness = self.witness

    def mount(self):
        vfs.umount("/")
        vfs.mount(vfs.VfsLfs2(self.chip), "/")

    def boot(self, mounted=False):
        """As after a reset of the chip: mount, and what main.py does."""
        if not mounted:
            self.mount()
        self.chip.now = self.snapshot
        self.witness.boots()
        self.board, self.app = DOOR["build"](DOOR["read"]("/slot").strip())
        return self.app

    def snapshot(self):
        """What a cut at this moment finds: (step, plant and gateway)."""
        pins, real, gateway = self.pins[1], self.real[1], self.gateway
        return (
            self.step, self.ms, real.mwh, pins.lock_out, pins.car, self.drawn, gateway.journal,
            gateway.acked, gateway.link, gateway.n, len(gateway.lines),
            tuple(self.board.link.up) if self.board else (),
            tuple(self.pending.values()), gateway.said[0] if gateway.said else None,
        )  # fmt: skip

    def restore(self, kept, life):
        """Be as at that moment of the recorded life, its power just gone."""
        pins, real, gateway = self.pins[1], self.real[1], self.gateway
        (
            self.step, self.ms, real.mwh, pins.lock_out, pins.car, self.drawn, gateway.journal,
            gateway.acked, gateway.link, gateway.n, count, up, pending, self.old,
        ) = kept  # fmt: skip
        gateway.first = life.gateway.first
        gateway.lines = life.gateway.lines[:count]
        for command in pending:
            self.pending[command["id"]] = command
        self.sent = up

    def run(self, ms, step=100):
        end = self.ms + ms
        while self.ms < end:
            try:
                bench.World.run(self, end - self.ms, step)
            except Restart:
                self.cut(300)

    def ticking(self, ms):
        self.run(ms, FINE)

    def show(self, token):
        self.witness.shown(token["uid"])
        self.app.card(token["uid"])

    def press(self, on):
        self.estop = on


# -- the recorded life ----------------------------------------------------------------------------


def first_boot(site):
    site.boot()
    assert site.until(lambda: site.app.now() is not None)
    assert site.until(lambda: site.evse().ledger.register is not None)
    told(site)


def told(site):
    """The gateway has everything, and the board knows."""
    assert site.until(lambda: site.app.journal.acked == site.app.journal.seq, 120000)


def reservation(site):
    reserve(site, bench.ANNA, "R1", 20)
    site.show(bench.BERT)
    site.run(1000)
    reserve(site, bench.ANNA, "R1", 40)  # the same id: replaced
    told(site)


def reserve(site, token, id, minutes):
    data = {"evse": 1, "reservation_id": id, "token": token}
    data["expiry_ms"] = site.unix_ms() + minutes * MINUTE
    command = site.ask("RESERVE_NOW", data)
    assert site.until(lambda: command not in site.pending), site.pending
    return command


def start(site):
    site.pins[1].car = "C"
    site.run(2000)
    site.show(bench.ANNA)
    assert site.until(lambda: site.pins[1].is_closed())
    site.run(3000)


def samples(site):
    site.run(20 * MINUTE, 1000)
    site.pins[1].car = "B"  # the vehicle pauses
    site.run(10000)
    site.pins[1].car = "C"
    site.run(20 * MINUTE, 1000)


def power_cut(site):
    """A cut within the life, and the session goes on."""
    site.cut(30000)
    assert site.until(lambda: site.pins[1].is_closed())
    site.run(MINUTE)


def stop(site):
    site.show(bench.ANNA)
    assert site.until(lambda: site.evse().session is None)
    site.pins[1].car = "A"
    site.run(2000)
    told(site)


def remote_session(site):
    """By commands alone, the reservation given up for a second one that is used."""
    reserve(site, bench.BERT, "R2", 30)
    site.ask("CANCEL_RESERVATION", {"reservation_id": "R2"})
    assert site.until(lambda: not site.pending)
    reserve(site, bench.BERT, "R3", 30)
    site.pins[1].car = "C"
    site.run(1000)
    site.ask("START_SESSION", {"evse": 1, "token": bench.BERT})
    assert site.until(lambda: site.pins[1].is_closed())
    site.run(2 * MINUTE, 1000)
    site.ask("STOP_SESSION", {"session_id": site.evse().session.id})
    assert site.until(lambda: site.evse().session is None and not site.pending)
    site.pins[1].car = "A"
    told(site)


def recycling(site):
    """An acknowledged segment goes to make room."""
    for operative in (False, True):
        site.ask("SET_AVAILABILITY", {"evse": 1, "operative": operative})
        assert site.until(lambda: not site.pending)
    fill_a_segment(site)


def in_a_turn(site, records):
    """A turn with one part more, which commits these, unless something else has to be written
    first."""
    rota = site.app._rota
    part = ("test", lambda ticks: site.app.commit(records))
    rota.insert(0, part)
    site.run(100)
    rota.remove(part)


def fill_a_segment(site):
    oldest = site.app.journal.first
    while site.app.journal.first == oldest:
        in_a_turn(site, [{"t": "event", "what": "alive"} for _ in range(40)])
        told(site)


def config_change(site):
    """As `make deploy` does it, and the reset after it."""
    config = dict(bench.site(), live_s=90, offline_cards="whitelist", bookings=True)
    with open("/config.json.tmp", "w") as f:
        f.write(json.dumps(config))
    exec(DEPLOY["rename"])
    site.cut(1000)
    told(site)
    assert site.app.uplink.live_ms == 90000


def token_sync(site):
    """A whitelist of 60 cards in two parts."""
    for data in tokens(60):
        before = site.app.whitelist.report()
        for _ in range(3):  # a message in vain where another write had to be first
            if site.app.whitelist.report() == before:
                site.ask("SYNC_TOKENS", data)
                site.run(3000)
    assert site.app.whitelist.report() == {"v": 5, "n": 60}, site.app.whitelist.report()
    told(site)


def tokens(count):
    """SYNC_TOKENS as UPLINK.md has it; rows by test_whitelist.py, sorted."""
    rows = [test_whitelist.row("%08X" % (i * 7919), "A") for i in range(count)]
    return test_whitelist.parts(rows, 0, 5)


def config_by_command(site):
    """SET_CONFIG: stored, tried in the boot after, kept."""
    config = dict(bench.site(), live_s=75, offline_cards="whitelist", bookings=True)
    id = site.ask("SET_CONFIG", {"config": config}, exp=site.unix_ms() + 600000)
    assert site.until(lambda: site.result_of(id), 60000)
    assert site.result_of(id) == ["ACCEPTED"] and site.app.uplink.live_ms == 75000
    told(site)


def booking(site):
    """A slot that a stranger cannot start in; its own card can, and goes on after a cut."""
    start_ms = site.unix_ms() + MINUTE
    row = {"booking_id": "B1", "start_ms": start_ms, "end_ms": start_ms + 60 * MINUTE,
           "guard_ms": 30000, "tokens": [bench.BERT]}  # fmt: skip
    site.ask("SET_BOOKINGS", {"evse": 1, "base": 0, "version": 1, "put": [row]})
    assert site.until(lambda: not site.pending)
    told(site)
    site.run(MINUTE, 1000)
    site.pins[1].car = "C"
    site.show(bench.ANNA)
    site.run(3000)
    assert not site.pins[1].is_closed()
    site.show(bench.BERT)
    assert site.until(site.pins[1].is_closed)
    site.run(3000)
    site.cut(30000)
    assert site.until(site.pins[1].is_closed)
    site.run(MINUTE)
    site.show(bench.BERT)
    assert site.until(lambda: site.evse().session is None)
    site.pins[1].car = "A"
    site.run(2000)
    told(site)
    assert not site.evse().slots.rows and site.witness.slot is None


def slot_switch(site):
    exec(DEPLOY["slot"])
    site.cut(1000)
    told(site)
    assert site.board.slot == "b"


STEPS = [  # what happens in the life, in this order
    first_boot,
    reservation,
    start,
    samples,
    power_cut,
    stop,
    remote_session,
    recycling,
    config_change,
    token_sync,
    config_by_command,
    booking,
    slot_switch,
]


def install(chip, host):
    """A file system with both slots, as `make deploy` leaves it; the code itself is elsewhere."""
    vfs.VfsLfs2.mkfs(chip)
    vfs.umount("/")
    vfs.mount(vfs.VfsLfs2(chip), "/")
    for slot in "ab":
        os.mkdir("/" + slot)
        os.mkdir("/%s/meters" % slot)
        for key in bench.METERS:
            write("/%s/meters/%s.json" % (slot, key), host["meters"][key])
    write("/board.json", json.dumps(bench.SPEC))
    write("/config.json", json.dumps(bench.site()))
    write("/secrets.json", json.dumps({"kid": 1, "key": hexlify(bench.KEY).decode()}))
    write("/slot", "a")


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def age(site):
    """Months of life: a journal as large as it gets, all of it acknowledged."""
    first_boot(site)
    fill_a_segment(site)
    site.run(2000)
    told(site)


def record(steps, host):
    """(image before, log, site) of a life. The station is an old one, its journal full of what
    was acknowledged, or with `fresh` in the host's words one that was just installed. The life
    begins with a power-on."""
    image = memory()
    chip = Chip(image)
    erase(image)
    install(chip, host)
    site = Site(chip)
    if not host.get("fresh"):
        age(site)
    before = memory()
    copy(before, image)
    gateway = site.gateway
    gateway.lines = []
    gateway.first = gateway.acked + 1
    gateway.records = []
    site.witness.begin(gateway.first, chip)
    chip.log = []
    chip.ops = 0
    for step in steps:
        site.step = step.__name__
        if step is first_boot:
            site.pass_ms(60000)
        try:
            step(site)
        except AssertionError:
            site.witness.fail("P7", site.step + " did not come to its end")
            break
    else:
        site.witness.finish(gateway.lines, gateway.first)
    return before, chip.log, site


# -- after a cut ----------------------------------------------------------------------------------


def survive(image, k, log, life, tally):
    """Boot on the image of the first `k` operations; returns what is broken, or None."""
    chip = Chip(image)
    site = Site(chip)
    kept = log[k][2] if k < len(log) else life.snapshot()
    site.restore(kept, life)
    site.witness.inherit(life.witness, k, site)
    for message in site.sent:
        site.gateway.take(message)  # it had left the board
    site.pass_ms(7000)
    try:
        site.mount()
    except OSError as e:
        tally["mounts failed"] += 1
        return "P8: mount: %r" % e
    try:
        site.boot(True)
        aftermath(site, k, tally)
    except AssertionError as e:
        return "%s" % e
    except Exception as e:
        sys.print_exception(e, sys.stderr)
        return "P8: %r" % e
    if site.troubles:
        return "P8: %r" % site.troubles[:2]
    site.witness.finish(site.gateway.lines, site.gateway.first)
    tally["records"] += len(site.gateway.lines)
    tally["torn tails"] += len([n for n in site.gateway.lines if b'"torn_tail"' in n])
    return site.witness.broken


def aftermath(site, k, tally):
    witness, pins = site.witness, site.pins[1]
    site.online = k % 3 != 0
    site.ticking(1000)
    if not site.until(lambda: site.app.booted, 1000):  # a trial may just have restarted it
        raise AssertionError("P8: no boot record")
    if site.old is not None:  # what an earlier boot was told, once more
        site.board.link.down.append((site.old, False))
    if witness.reservation is not None:
        tally["held"] += 1
    stranger = CARL if k % 2 else bench.BERT
    if witness.reservation is None or witness.reservation["token"]["uid"] != stranger["uid"]:
        site.show(stranger)
    site.ticking(1000)
    site.online = True
    site.ticking(2000)  # the time comes
    if site.pending:  # what the gateway asked before the cut, it asks again
        site.until(lambda: not site.pending, 10000)
        site.ticking(2000)
    if witness.session is not None:
        site.until(lambda: pins.is_closed() or witness.session is None, 15000)
        if pins.is_closed():
            tally["resumed"] += 1
            site.ticking(4000)
            if k % 2:
                site.press(True)
            else:
                site.show(witness.session["token"])
            site.run(FINE, FINE)
            if pins.is_closed():
                raise AssertionError("P7: closed a turn after %s" % stop_of(k))
    elif witness.reservation is not None:
        held = witness.reservation
        if k % 4 == 0:
            while held["expiry_ms"] - site.unix_ms() > 22000:
                site.run(20000, 20000)
            site.ticking(24000)
            if witness.reservation is not None:
                raise AssertionError("P5: held beyond its expiry")
            tally["expired"] += 1
        else:
            if pins.car == "A":
                pins.car = "C"
                site.ticking(1000)
            site.show(held["token"])
            if not site.until(pins.is_closed, 15000):
                raise AssertionError("P4: the holder cannot start")
            site.ticking(3000)
            tally["used"] += 1
            site.show(held["token"])
    else:
        pins.car = "A"
        site.ticking(500)
        reserve(site, bench.ANNA, "R%d" % k, 5)
    site.until(lambda: witness.session is None, 20000)
    site.press(False)
    for _ in range(40):
        if site.app.journal.acked == site.app.journal.seq and not site.pending:
            break
        site.ticking(1000)
    else:
        raise AssertionError("P2: not all is told: %r" % site.pending)
    whole(site)


def whole(site):
    """What is not the journal's is the old one or the new one, and what the gateway was told."""
    config = json.loads(DOOR["read"]("/config.json"))
    kept = [r for r in site.records("result") if r["type"] == "SET_CONFIG"]
    left = [name for name in os.listdir("/") if name in ("trial.json", "kept.json")]
    if config["live_s"] not in (60, 75, 90) or left:
        raise AssertionError("P8: half a configuration: %r" % config)
    if kept and (kept[0]["result"] != "ACCEPTED" or config["live_s"] != 75):
        raise AssertionError("P6: %r, and live_s is %d" % (kept[0], config["live_s"]))
    cards = site.app.whitelist
    if cards is not None:  # the old list is in force until the new one is complete
        report = cards.report()
        if (report["v"], report["n"]) not in ((0, 0), (5, 60)):
            raise AssertionError("P2: half a whitelist: %r" % report)


def cuts(steps, host, stride, offset, torn):
    """Cut the life at every operation, or of `stride` ones the one at `offset`."""
    before, log, life = record(steps, host)
    if life.witness.broken:
        print(json.dumps({"broken": life.witness.broken}))
    work, scratch = memory(), memory()
    copy(work, before)
    tally = {"mounts failed": 0, "torn tails": 0, "records": 0}
    tally.update({"held": 0, "resumed": 0, "expired": 0, "used": 0})
    by_step = {}
    count = 0
    for k in range(len(log) + 1):
        if k % stride == offset:
            for how in [None] + torn:
                if how is not None and k == len(log):
                    continue
                copy(scratch, work)
                if how is not None:
                    change(scratch, log[k], how, k)
                broken = survive(scratch, k, log, life, tally)
                count += 1
                step = log[min(k, len(log) - 1)][2][0]
                by_step[step] = by_step.get(step, 0) + 1
                if broken is not None:
                    told = {"broken": broken, "k": k, "torn": how, "step": step}
                    print(json.dumps(told))
                gc.collect()
        if k < len(log):
            change(work, log[k])
    tally["operations"] = len(log)
    tally["cuts"] = count
    tally["steps"] = by_step
    tally["durable"] = life.witness.durable
    print(json.dumps({"tally": tally}))


# -- an agent that is wrong in one place ----------------------------------------------------------


def old_segment_first():
    """What was there goes before the new segment is complete."""
    from wattlock import journal

    begin = journal.Journal._begin

    def bare(self, checkpoint):
        while self.sizes:
            self.store.remove("%08x.j" % self.sizes.pop(0)[0])
        self._cursor = self._sent = None
        begin(self, checkpoint)

    journal.Journal._begin = bare


def slot_in_place():
    DEPLOY["slot"] = "with open('/slot', 'w') as f:\n    f.flush()\n    f.write('b')"


def reservations_forgotten():
    from wattlock import station

    evolve = station.Station.evolve

    def forget(self, record):
        if record["t"] == "boot":
            self.evses[1].reservation = None
        evolve(self, record)

    station.Station.evolve = forget


def slots_forgotten():
    from wattlock import station

    evolve = station.Station.evolve

    def forget(self, record):
        if record["t"] == "boot" and self.evses[1].slots is not None:
            self.evses[1].slots.rows.clear()
        evolve(self, record)

    station.Station.evolve = forget


def any_card_opens():
    from wattlock import tokens

    tokens.is_card = lambda *args: True


def energy_of_the_cut_lost():
    from wattlock import session

    resumed, end = session.resumed, session.stop
    session.resumed = lambda s, n, at, register, wh: resumed(s, n, at, register - wh, 0)
    session.stop = lambda s, n, at, register, wh: end(s, n, at, register - wh, 0)


def dark_session_resumed():
    """One that was never seen energised is, after the reset."""
    from wattlock import session

    evolve = session.evolve

    def revive(state, record, last):
        fresh = state is not None and state.phase == session.STARTED
        state = evolve(state, record, last)
        if fresh and record["t"] == "boot":
            state.phase = session.INTERRUPTED
        return state

    session.evolve = revive


def never_expires():
    from wattlock import reservation

    reservation.is_over = lambda *args: False


def obeys_again():
    from wattlock import commands

    commands.known = lambda results, command: None


def opens_late():
    from wattlock import evse

    outputs = evse.Post._outputs
    turns = [0]

    def slow(self, ticks):
        s = self.state.session
        if s is not None and (self.ending is not None or s.cause is not None):
            turns[0] += 1
            if turns[0] % 20:
                return
        outputs(self, ticks)

    evse.Post._outputs = slow


DEPLOY = {}
DOOR = {"__name__": "door"}
SITE = None


class _Module:
    Board = Port


def open_door(source):
    """start.py. What it forgets after the start is needed again."""
    sys.modules["hal.board"] = _Module
    exec(source, DOOR)
    DOOR["_forget"] = lambda *names: None


def main():
    host = json.loads(sys.stdin.read())
    DEPLOY.update(host["deploy"])
    open_door(host["door"])
    gc.threshold(-1)
    if host.get("mutation"):
        globals()[host["mutation"]]()
    steps = [s for s in STEPS if s.__name__ in host.get("steps", ()) or not host.get("steps")]
    cuts(steps, host, host["stride"], host["offset"], host["torn"])


if __name__ == "__main__":
    main()
