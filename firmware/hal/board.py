"""The board: every adapter, made from board.json, config.json and secrets.json.

This is the whole port of the agent: `ticks since up_ms idle feed random reset cause slot store
shelf pins meters buses rfid link estop say trouble health keep_time recall_time alive alive_at
reached trial setup`. A simulation gives another object with the same names.
"""

import gc
import os
import sys
import time

import machine

from . import rtc, wallclock
from .flash import Flash
from .outputs import Line, Outputs
from .watchdog import Watchdog

_IDLE_MS = 5


class Board:
    def __init__(self, config, secrets, spec, slot, meter, modbus):
        """`config`, `secrets` checked; `spec` is board.json; `meter(key)` makes the reading
        interface of a meter; `modbus` is the framing."""
        self._outcome = modbus.name
        self.slot = slot
        self.trial = None  # of `hal/setup.py`, where one is under way
        self.ticks = time.ticks_ms
        self.since = wallclock.since
        self.up_ms = wallclock.Uptime().ms
        self.random = os.urandom
        self.keep_time = wallclock.keep
        self.recall_time = wallclock.recall
        self.alive = rtc.alive
        self.alive_at = rtc.last_alive()
        self.reached = rtc.last_reached()
        self.cause = rtc.cause()
        self.store = Flash()
        self.pins = {}
        self.meters = {}
        self._estop = Line(spec["estop"]) if "estop" in spec else None
        buses = {}
        for name in config["buses"]:
            if config["buses"][name]["kind"] != "pulse":
                buses[name] = self._bus(config["buses"][name], spec, modbus)
        self.buses = list(buses.values())
        for e in config["evses"]:
            n = e["n"]
            row = spec["evses"][str(n)]
            self.pins[n] = Outputs(row)
            if e["bus"] in buses:
                self.meters[n] = meter(e["meter"])
                buses[e["bus"]].add(self.meters[n], e["unit"])
            else:
                self.meters[n] = self._pulses(config["buses"][e["bus"]], row["pulse"], e)
                self.buses.append(self.meters[n])
        self.rfid = self._reader(spec["rfid"], spec) if "rfid" in spec else None
        self._lan = spec["lan"] if config["network"]["kind"] == "lan" else None
        self._watchdog = None
        self._watchdog_ms = spec.get("watchdog_ms", 10000)

    def join(self, config, secrets):
        """Make network and link: last of all, so that the journal is read while there is room."""
        if self._lan is None:
            from .wifi import Wifi

            wifi = secrets.get("wifi", {})
            net = Wifi(wifi.get("ssid", ""), wifi.get("password", ""), self.since)
        else:
            from .wired import Wired

            net = Wired(self._lan, self.since, self.ticks())
        if config["link"]["kind"] == "http":
            from .http import Http as Kind
        else:
            from .mqtt import Mqtt as Kind
        self.link = Kind(
            config["link"], secrets, config["station_id"], net, self.since, self.random
        )
        self._net = net

    def _bus(self, bus, spec, modbus):
        if bus["kind"] == "tcp":
            from .tcp import open_tcp

            return open_tcp(bus, modbus)
        from .rs485 import open_rs485

        return open_rs485(bus, spec["uarts"][str(bus["uart"])], modbus)

    def _pulses(self, bus, pin, evse):
        from .pulse import open_pulse

        rating_w = evse["max_a"] * evse["phases"] * 230
        return open_pulse(bus, pin, rating_w, evse["n"] - 1)

    def _reader(self, reader, spec):
        """`kind` names the module in hal/: only its code is loaded."""
        from wattlock.errors import ConfigError

        try:
            module = __import__("hal." + reader["kind"], None, None, ("open_reader",))
        except ImportError:
            raise ConfigError("board.json.rfid.kind: there is no hal/%s.py" % reader["kind"])
        return module.open_reader(reader, spec["uarts"])

    def shelf(self, path):
        """A folder of files of its own."""
        from .shelf import Shelf

        return Shelf(path)

    def feed(self):
        """Feed the watchdog; it starts with the first feeding."""
        if self._watchdog is None:
            self._watchdog = Watchdog(self._watchdog_ms)
        self._watchdog.feed()

    def idle(self):
        time.sleep_ms(_IDLE_MS)

    def reset(self, why=b"soft"):
        """Restart; `why` is for the next boot (`rtc.leave`)."""
        self.safe()
        try:
            rtc.leave(why)
        finally:
            machine.reset()

    def safe(self):
        """Every contactor open."""
        for n in self.pins:
            self.pins[n].safe()

    def setup(self):
        """What changes config.json and secrets.json, loaded for this once."""
        from . import setup

        del sys.modules["hal.setup"]
        delattr(sys.modules["hal"], "setup")
        return setup

    def estop(self):
        return self._estop is not None and self._estop.get()

    def say(self, text):
        print(text)

    def trouble(self, part, e):
        """A part failed; told on the console, recorded by the caller."""
        print("trouble in", part)
        sys.print_exception(e)

    def health(self):
        """Integers and short strings about the board itself."""
        gc.collect()
        picture = {
            "heap_free": gc.mem_free(),
            "heap_used": gc.mem_alloc(),
            "net": self._net.why or "up",
            "losses": self.link.losses,
            "lost": self.link.why or "never",
            "bytes_out": self.link.bytes_out,
            "bytes_in": self.link.bytes_in,
        }
        if self.rfid is not None:
            picture["reader"] = "ok" if self.rfid.ok else "lost"
        for n in self.meters:
            meter = self.meters[n]
            picture["meter%d_failed" % n] = meter.failed
            for outcome, count in enumerate(getattr(meter, "counts", ())):
                if count:
                    picture["meter%d_%s" % (n, self._outcome(outcome))] = count
        return picture
