"""The wires under pytest: plain memory that a test scripts and reads.

The VM has a `wires` of its own (`vm/wires.py`) with the same functions. Here a test sets `inputs`,
reads `outputs` and the ordered `log`, gives each UART a `Script`, and moves the virtual clock with
`advance`. Nothing waits: `sleep_ms` moves the clock. What was not scripted fails loudly.

`clear()` makes everything new; call it before each test. `time_functions()` are what CPython's
`time` lacks (`ticks_ms` and friends) for code written for MicroPython.
"""

inputs = {}
outputs = {}
modes = {}
log = []  # ("pin", pin, level), ("feed",), ("watchdog", ms), ("hard_reset",), in order
uarts = {}  # id -> Script
pulse_counts = {}
state = {}
_watched = []


class HardReset(BaseException):
    """The chip would be gone now."""


class Script:
    """A UART whose other end answers as written down.

    `exchanges` is a list of (expected bytes, reply); a reply is bytes, None for silence, or a list
    of (delay_ms, bytes). Written bytes that no expectation matches raise AssertionError at once.
    """

    def __init__(self, exchanges=()):
        self.exchanges = list(exchanges)
        self.written = bytearray()
        self.settings = None
        self._pending = bytearray()
        self._arriving = []

    def say(self, data, after_ms=0):
        """Bytes that come by themselves."""
        self._arriving.append((state["ticks"] + after_ms, bytes(data)))
        self._arriving.sort(key=lambda item: item[0])

    def done(self):
        """Fail when something expected was never written."""
        assert not self.exchanges, f"never written: {self.exchanges[0][0].hex(' ')}"

    def any(self):
        while self._arriving and self._arriving[0][0] <= state["ticks"]:
            self._pending += self._arriving.pop(0)[1]
        return len(self._pending)

    def read(self, n):
        self.any()
        data = bytes(self._pending[:n])
        del self._pending[: len(data)]
        return data

    def readinto(self, buf):
        data = self.read(len(buf))
        buf[: len(data)] = data
        return len(data)

    def write(self, buf):
        self.written += buf
        assert self.exchanges, f"unscripted write: {bytes(self.written).hex(' ')}"
        expected, reply = self.exchanges[0]
        assert expected.startswith(self.written) or self.written == expected, (
            f"wrote {bytes(self.written).hex(' ')}, the script expects {expected.hex(' ')}"
        )
        if self.written == expected:
            self.exchanges.pop(0)
            self.written = bytearray()
            if isinstance(reply, (bytes, bytearray)):
                reply = [(0, reply)]
            for delay_ms, data in reply or ():
                self.say(data, delay_ms)
        return len(buf)

    def close(self):
        pass

    def ioctl(self, request, arg):
        return arg & (5 if self.any() else 4) if request == 3 else 0


def clear():
    for container in (inputs, outputs, modes, log, uarts, pulse_counts, state, _watched):
        container.clear()
    state.update(
        ticks=0, unix_ms=946684800000, cause=1, memory=b"", link=0, wifi=0, lan=0, dns=0,
        unique_id=b"\x24\x0a\xc4\x00\x00\x01", nvs={},
    )


def advance(ms):
    """Let `ms` milliseconds pass; interrupts are served at the end."""
    state["ticks"] += ms
    state["unix_ms"] += ms
    turn()


def turn():
    for pin in list(_watched):
        pin.look()


# --- what the stubs call, the same names as in vm/wires.py


def ticks_ms():
    return state["ticks"] & 0x3FFFFFFF


def ticks_add(ticks, delta):
    return (ticks + delta) & 0x3FFFFFFF


def ticks_diff(a, b):
    return ((a - b + 0x20000000) & 0x3FFFFFFF) - 0x20000000


def sleep_ms(ms):
    advance(max(ms, 0))


def unix_ms():
    return state["unix_ms"]


def set_unix_ms(unix_ms):
    state["unix_ms"] = unix_ms


def level(pin):
    if modes.get(pin) == 3:
        return outputs.get(pin, 0)
    return inputs.get(pin, 0)


def drive(pin, level):
    if outputs.get(pin, 0) != level:
        outputs[pin] = level
        if modes.get(pin) == 3:
            log.append(("pin", pin, level))


def direct(pin, mode):
    mode = 3 if mode == 7 else mode
    if modes.get(pin, 0) != mode:
        modes[pin] = mode
        if mode == 3:
            log.append(("pin", pin, outputs.setdefault(pin, 0)))


def pulses(pin):
    return pulse_counts.get(pin, 0)


def watch(pin):
    if pin not in _watched:
        _watched.append(pin)


def port(id, settings):
    assert id in uarts, f"UART {id} is opened without a script: set wires.uarts[{id}] = Script()"
    uarts[id].settings = settings
    return uarts[id]


def watchdog(timeout_ms):
    log.append(("watchdog", timeout_ms))


def feed():
    log.append(("feed",))


def cause():
    return state["cause"]


def unique_id():
    return state["unique_id"]


def memory():
    return state["memory"]


def set_memory(data):
    state["memory"] = bytes(data)


def hard_reset():
    log.append(("hard_reset",))
    raise HardReset


def link(value):
    state["link"] = value


def link_state():
    return state["link"]


def wifi():
    return state["wifi"]


def lan():
    return state["lan"]


def online():
    return not state["wifi"] if state["link"] == 2 else state["link"] == 3 and not state["lan"]


def dns():
    return state["dns"]


def kept(name):
    if name not in state["nvs"]:
        raise OSError(-4354, "ESP_ERR_NVS_NOT_FOUND")
    return state["nvs"][name]


def keep(name, data):
    if data is None:
        del state["nvs"][name]
    else:
        state["nvs"][name] = bytes(data)


def time_functions():
    """What MicroPython's `time` has and CPython's has not, on the virtual clock."""
    return {
        "ticks_ms": ticks_ms,
        "ticks_us": lambda: ticks_ms() * 1000 & 0x3FFFFFFF,
        "ticks_add": ticks_add,
        "ticks_diff": ticks_diff,
        "sleep_ms": sleep_ms,
        "sleep_us": lambda us: sleep_ms(us // 1000),
    }


clear()
