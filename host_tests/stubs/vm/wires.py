"""The wires between the stubs and the virtual board, as seen inside the VM.

`host_tests/stubs` runs twice: in pytest over `host_tests/stubs/wires.py` (plain memory, scripted)
and in the VM over this module. Here the wires are a page of memory that the VM and its parent
(`tools/virtual_board`) map from the file `wires` in the board's state directory, and a pipe that
carries what must stay in order: output pins, flash syncs, erases. The page outlives the VM
process, as pins, RTC memory and the clock outlive a reset.

This file is the only home of the page's layout: the parent reads the constants below from here.
Word `n` is a 32-bit integer at byte 4 n; areas are byte offsets.

How long the loop stands still is counted, not timed: a turn, from feeding to feeding of the
watchdog, costs what it waits on purpose, 10 s for each call of a socket that could wait for ever,
45 ms an erase and 0.8 ms for 256 bytes programmed (a NOR flash's usual figures). Computing is
free, and so is a UART's flush.

Limits: input interrupts and `fill` run while the VM sleeps or polls (every 20 ms), so they are as
soft as on the chip but later. Blocking socket calls really block.
"""

import sys

_path = sys.path[:]
sys.path[:] = []  # what follows are the VM's own modules, not the stubs of the same name
import gc  # noqa: E402
import os  # noqa: E402
import select  # noqa: E402, F401
import socket  # noqa: E402, F401
import time  # noqa: E402

import ffi  # noqa: E402
import tls  # noqa: E402, F401
import uctypes  # noqa: E402
import vfs  # noqa: E402
from micropython import const, kbd_intr  # noqa: E402

sys.path[:] = _path

_TICKS = const(0)  # added to the VM's ticks_ms: they start at 0 with the chip, and jump on request
_RTC_S = const(1)  # added to this machine's Unix time: what the board's RTC shows
_RTC_MS = const(2)
_WDT_MS = const(3)  # watchdog period, 0: not started
_WDT_FED = const(4)  # feedings
_CUT_OPS = const(5)  # power fails instead of this program or erase, counted from now; 0: never
_CUT_HALF = const(6)  # ... after half of it
_CUT_CLOSE = const(7)  # power fails at this closing of a contactor; 0: never
_PROGRAMS = const(8)
_ERASES = const(9)
_PROGRAM_BYTES = const(10)
_READS = const(11)
_SYNCS = const(12)
_FAIL_PROGRAM = const(13)  # this program returns EIO, counted from now; 0: none
_FAIL_ERASE = const(14)
_FAIL_READ = const(15)
_WIFI = const(16)  # 0 ok, 1 down, 2 another password, 3 no addresses
_DNS = const(17)  # 0 ok, 1 fail, 2 slow, 3 silent
_LINK = const(18)  # 0 off, 1 radio on, 2 told to connect, 3 Ethernet
_CAUSE = const(19)  # machine.reset_cause()
_HEAP_USED = const(20)  # bytes, at the last watchdog feeding or REPL prompt
_HEAP_FREE = const(21)
_RUNNING = const(22)  # 1: code runs and byte 3 on the console interrupts it; 0: the REPL reads
_RAW = const(23)  # the VM starts in the raw REPL: main.py is not run
_FILL = const(24)  # 1: fill the file system, 2: free it again; set to 0 when done
_SNTP = const(29)  # port of the time server that the board's network has, 0: none
_COLLECT = const(28)  # 1: collect garbage and weigh the heap; set to 0 when done
_LAN = const(30)  # 0 ok, 1 no cable, 2 no addresses, 3 no PHY
_RTC_LEN = const(25)  # bytes used of RTC memory
_BLOCKS = const(26)  # erase blocks of the flash
_BOOT = const(27)  # starts of the firmware, ever
_PULSES = const(32)  # 64 words: pulses ever, by pin
_WAITED = const(96)  # us of the loop's turn that is under way: spent in calls that wait,
_FLASHED = const(97)  # ... and what its flash operations would take
_STALL = const(98)  # us of the longest turn without a flash operation,
_STALL_SYNC = const(99)  # ... and with one
_INTERRUPT = const(100)  # 1: byte 3 came, and interrupts what runs as soon as it waits
_WORDS = const(101)
_INPUTS = const(512)  # levels outside, by pin
_OUTPUTS = const(576)  # levels of the output register, by pin
_MODES = const(640)  # 0 high impedance, 1 input, 3 output
_CONTACTOR = const(704)  # 1 + active level for a contactor's pin, by pin
_UID = const(768)
_RTC = const(1024)
_SIZE = const(4096)

# Kinds of the 4-byte events on the pipe: kind, index, value, 0
_EV_PIN = const(1)  # value 0 or 1 is driven, 2 floats
_EV_SYNC = const(2)
_EV_ERASE = const(3)

# Exit codes of the VM
_HARD_RESET = const(64)
_SOFT_RESET = const(65)
_SOFT_RESET_RAW = const(66)
_POWER_CUT = const(75)

_SLICE_MS = const(20)
_EIO = const(5)

_libc = ffi.open(None)
_exit = _libc.func("v", "_exit", "i")
_ioctl = _libc.func("i", "ioctl", "iLp")
_FIONREAD = 0x541B if sys.platform == "linux" else 0x4004667F

if sys.platform == "linux":
    _libc.func("i", "prctl", "iLLLL")(1, 9, 0, 0, 0)  # die with the parent

posix = vfs.VfsPosix(os.getenv("WIRES_STATE"))
_file = posix.open("wires", "r+b")
_address = _libc.func("p", "mmap", "pLiiil")(None, _SIZE, 3, 1, _file.fileno(), 0)
words = uctypes.struct(_address, {"w": (uctypes.ARRAY, _WORDS | uctypes.INT32)}).w
page = uctypes.bytearray_at(_address, _SIZE)
_events = open(int(os.getenv("WIRES_EVENTS")), "wb")
_event = bytearray(4)
_watched = []  # Pin objects with an interrupt
file_system = None


def _send(kind, index, value):
    _event[0] = kind
    _event[1] = index
    _event[2] = value
    _events.write(_event)


def stop(code):
    """The VM is gone, now: open files are lost as at a reset of the chip."""
    _exit(code)


def hard_reset():
    stop(_HARD_RESET)


# --- time

if sys.maxsize > 0x7FFFFFFF:  # a 64-bit VM has wider ticks than the chip

    def ticks_add(ticks, delta):
        return (ticks + delta) & 0x3FFFFFFF

    def ticks_diff(a, b):
        return ((a - b + 0x20000000) & 0x3FFFFFFF) - 0x20000000

else:
    ticks_add = time.ticks_add
    ticks_diff = time.ticks_diff


def ticks_ms():
    return time.ticks_add(time.ticks_ms(), words[_TICKS]) & 0x3FFFFFFF


def waited(ms):
    words[_WAITED] += ms * 1000


def sleep_ms(ms):
    if ms > 0:
        waited(ms)
    end = ticks_add(ticks_ms(), ms)
    while True:
        turn()
        ms = ticks_diff(end, ticks_ms())
        if ms <= 0:
            return
        time.sleep_ms(ms if ms < _SLICE_MS else _SLICE_MS)


def unix_ms():
    """What the RTC shows, as Unix time."""
    return time.time_ns() // 1000000 + words[_RTC_S] * 1000 + words[_RTC_MS]


def set_unix_ms(unix_ms):
    offset = unix_ms - time.time_ns() // 1000000
    words[_RTC_S] = offset // 1000
    words[_RTC_MS] = offset % 1000


def turn():
    """Whatever the outside wants from a VM that has a moment."""
    if words[_INTERRUPT]:
        words[_INTERRUPT] = 0
        if words[_RUNNING]:
            raise KeyboardInterrupt
    for pin in _watched:
        pin.look()
    if words[_FILL]:
        _fill(words[_FILL])
        words[_FILL] = 0
    if words[_COLLECT]:
        gc.collect()
        weigh()
        words[_COLLECT] = 0


def _fill(what):
    try:
        file_system.remove("fill.bin")
    except OSError:
        pass
    if what == 1:
        try:
            with file_system.open("fill.bin", "wb") as file:
                some = bytes(256)
                while True:
                    for _ in range(16):
                        file.write(some)
                    file.flush()
        except OSError:
            pass  # full, which was the wish


# --- pins


def level(pin):
    return page[(_OUTPUTS if page[_MODES + pin] == 3 else _INPUTS) + pin]


def drive(pin, level):
    if page[_OUTPUTS + pin] != level:
        page[_OUTPUTS + pin] = level
        if page[_MODES + pin] == 3:
            _drive(pin, level)


def direct(pin, mode):
    """`mode` 1 input, 3 output, 7 open drain (seen as an output)."""
    if mode == 7:
        mode = 3
    if page[_MODES + pin] != mode:
        page[_MODES + pin] = mode
        if mode == 3:
            _drive(pin, page[_OUTPUTS + pin])
        else:
            _send(_EV_PIN, pin, 2)


def _drive(pin, level):
    _send(_EV_PIN, pin, level)
    if page[_CONTACTOR + pin] == 1 + level and words[_CUT_CLOSE]:
        words[_CUT_CLOSE] -= 1
        if not words[_CUT_CLOSE]:
            stop(_POWER_CUT)


def pulses(pin):
    return words[_PULSES + pin]


def watch(pin):
    """Call `pin.look()` whenever the VM has a moment."""
    if pin not in _watched:
        _watched.append(pin)


# --- UART: `uart<n>` in the state directory is a link to a serial device, if anything is wired


class Port:
    def __init__(self, id):
        import termios

        try:
            self._file = posix.open("uart%d" % id, "r+b")
        except OSError:
            self._file = None  # nothing wired: what is written is lost, nothing comes
            return
        fd = self.fd = self._file.fileno()
        termios.setraw(fd)
        attr = termios.tcgetattr(fd)
        attr[6][6] = attr[6][5] = 0 if isinstance(attr[6][6], int) else b"\0"  # VMIN, VTIME
        termios.tcsetattr(fd, termios.TCSANOW, attr)
        self._count = bytearray(4)

    def any(self):
        if self._file is None or _ioctl(self.fd, _FIONREAD, self._count) < 0:
            return 0
        return self._count[0] | self._count[1] << 8

    def readinto(self, buf):
        return self._file.readinto(buf) if self._file else 0

    def read(self, n):
        return self._file.read(n) if self._file else b""

    def write(self, buf):
        return self._file.write(buf) if self._file else len(buf)

    def close(self):
        if self._file:
            self._file.close()
            self._file = None

    def ioctl(self, request, arg):
        if request == 10 and self._file:  # MP_STREAM_GET_FILENO
            return self.fd
        if request == 3:  # MP_STREAM_POLL
            return arg & 5 if self.any() else arg & 4
        return -22 if request == 10 else 0


def port(id, settings):
    return Port(id)


# --- chip


def watchdog(timeout_ms):
    words[_WDT_MS] = timeout_ms
    words[_WAITED] = words[_FLASHED] = 0  # what came before was the start
    feed()


def feed():
    flashed = words[_FLASHED]
    us = words[_WAITED] + flashed
    which = _STALL_SYNC if flashed else _STALL
    if us > words[which]:
        words[which] = us
    words[_WAITED] = words[_FLASHED] = 0
    words[_WDT_FED] = (words[_WDT_FED] + 1) & 0xFFFFFFF
    weigh()


def weigh():
    words[_HEAP_USED] = gc.mem_alloc()
    words[_HEAP_FREE] = gc.mem_free()


def cause():
    return words[_CAUSE]


def unique_id():
    return bytes(page[_UID : _UID + 6])


def memory():
    return bytes(page[_RTC : _RTC + words[_RTC_LEN]])


def set_memory(data):
    n = len(data)
    page[_RTC : _RTC + n] = data
    words[_RTC_LEN] = n


def kept(name):
    """What NVS has under this name."""
    with posix.open(name, "rb") as file:
        return file.read()


def keep(name, data):
    if data is None:
        posix.remove(name)
        return
    with posix.open(name, "wb") as file:
        file.write(data)


# --- network


def link(state):
    words[_LINK] = state


def link_state():
    return words[_LINK]


def wifi():
    return words[_WIFI]


def lan():
    return words[_LAN]


def online():
    return not words[_WIFI] if words[_LINK] == 2 else words[_LINK] == 3 and not words[_LAN]


def dns():
    return words[_DNS]


def sntp_port():
    return words[_SNTP]


# --- flash


class Flash:
    """The `vfs` partition: a NOR flash of 4096-byte blocks, as `esp32.Partition` gives it."""

    def __init__(self):
        self._file = posix.open("flash.bin", "r+b")

    def readblocks(self, block, buf, offset=0):
        words[_READS] += 1
        if _fails(_FAIL_READ):
            return -_EIO
        self._file.seek(block * 4096 + offset)
        self._file.readinto(buf)

    def writeblocks(self, block, buf, offset):
        file = self._file
        file.seek(block * 4096 + offset)
        n = len(buf)
        if self._cut():
            if words[_CUT_HALF]:
                file.write(memoryview(buf)[: n // 2])
            stop(_POWER_CUT)
        words[_PROGRAMS] += 1
        if _fails(_FAIL_PROGRAM):
            return -_EIO
        words[_PROGRAM_BYTES] += n
        words[_FLASHED] += n * 25 >> 3
        file.write(buf)

    def ioctl(self, request, arg):
        if request == 4:
            return words[_BLOCKS]
        if request == 5:
            return 4096
        if request == 3:
            words[_SYNCS] += 1
            _send(_EV_SYNC, 0, 0)
        elif request == 6:
            if self._cut():
                if words[_CUT_HALF]:
                    self._blank(arg, 8)
                stop(_POWER_CUT)
            words[_ERASES] += 1
            words[_FLASHED] += 45000
            _send(_EV_ERASE, arg >> 8, arg & 255)
            if _fails(_FAIL_ERASE):
                return -_EIO
            self._blank(arg, 16)
        return 0

    def _blank(self, block, n):
        self._file.seek(block * 4096)
        for _ in range(n):
            self._file.write(_BLANK)

    def _cut(self):
        n = words[_CUT_OPS]
        if n:
            words[_CUT_OPS] = n - 1
        return n == 1


_BLANK = b"\xff" * 256


def _fails(which):
    n = words[which]
    if n:
        words[which] = n - 1
    return n == 1


# --- console


def running(yes):
    if yes:
        words[_INTERRUPT] = 0
        kbd_intr(3)
    words[_RUNNING] = yes


def starts_raw():
    return words[_RAW]


def soft_reset(raw):
    stop(_SOFT_RESET_RAW if raw else _SOFT_RESET)
