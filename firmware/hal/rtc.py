"""RTC memory: what outlives every reset but a loss of power, and the breadcrumb in it.

Rows of 16 bytes, found by their magic wherever they stand. This is the only list of them:

    row       := magic, 4 bytes | value, u64 | CRC-32 of these, u32             little-endian

    WLt1         unix ms to which the gateway set the RTC, 0: it did not        wallclock
    WLr1         how the run ends, as ASCII; 0 while it does not know           here
    WLa1         boot << 40 | up_ms: the last moment known alive                here
    WLj1         journal << 32 | sequence: the last record known durable        here
    WLp + pin    pulses ever                                                    pulse

The chip tells apart power (a brownout reads as power-on), watchdog and soft reset; a panic reads
as hard reset, and so does `machine.reset()`. So whoever resets on purpose says why before: `soft`
(asked for), `error` (an exception escaped), `update` (another slot is in force: `make deploy`),
`hard` (a person at the console). A hard reset of an agent that ran and said nothing is a panic.

Limits: seen with stubs only. A reset from outside that the chip reports as hard passes for a panic
too. What is torn while it is written fails its CRC and was never there.
"""

from binascii import crc32

import machine

_CRUMB = b"WLr1"
_ALIVE = b"WLa1"
_REACHED = b"WLj1"
_MOST = 1024  # bytes of rows; the chip has 2,048


def row(magic, value):
    """The 16 bytes that keep `value` (0 to 2^64 - 1) under `magic`."""
    data = magic + value.to_bytes(8, "little")
    return data + crc32(data).to_bytes(4, "little")


def value(data, magic):
    """The value of a row, or None where `data` is not a whole row of this magic."""
    if data[:4] != magic or len(data) != 16:
        return None
    kept = int.from_bytes(data[4:12], "little")
    return kept if row(magic, kept) == data else None


def _place(memory, magic):
    at = 0
    while at < len(memory) and memory[at : at + 4] != magic:
        at += 16
    return at


def read(magic):
    """The value kept under `magic`, or None."""
    memory = machine.RTC().memory()
    at = _place(memory, magic)
    return value(memory[at : at + 16], magic)


def write(magic, value):
    """Keep `value` under `magic`; the other rows stay as they are."""
    memory = machine.RTC().memory()
    at = _place(memory, magic)
    if len(memory) & 15 or at >= _MOST:  # another firmware's
        memory = b""
        at = 0
    machine.RTC().memory(memory[:at] + row(magic, value) + memory[at + 16 :])


def leave(end):
    """The breadcrumb: a reset follows on purpose. `end` is b"soft", b"error", b"update" or
    b"hard"."""
    write(_CRUMB, int.from_bytes(end, "little"))


def alive(boot, up_ms, journal, seq):
    """This boot was alive at this moment, and its journal (8 hex digits) reached record `seq`."""
    write(_ALIVE, boot << 40 | up_ms)
    write(_REACHED, int(journal, 16) << 32 | seq)


# -- at the start of a boot --------------------------------------------------------------------


def cause():
    """Why the chip started: `power`, `watchdog`, `soft`, `hard`, `panic`, `error`, `update` or
    `unknown`. To be asked once: from now on, an end without a word is a panic."""
    crumb = read(_CRUMB)
    write(_CRUMB, 0)
    told = machine.reset_cause()
    if told == machine.HARD_RESET:
        end = (crumb or 0).to_bytes(8, "little").rstrip(b"\0").decode()
        return end or ("panic" if crumb == 0 else "hard")
    for name, word in (("PWRON", "power"), ("WDT", "watchdog"), ("SOFT", "soft")):
        if told == getattr(machine, name + "_RESET", None):
            return word
    return "unknown"


def last_alive():
    """(boot, up_ms) of the last `alive`, or None."""
    kept = read(_ALIVE)
    return None if kept is None else (kept >> 40, kept & 0xFFFFFFFFFF)


def last_reached():
    """(journal, sequence) of the last `alive`, or None."""
    kept = read(_REACHED)
    return None if kept is None else ("%08x" % (kept >> 32), kept & 0xFFFFFFFF)
