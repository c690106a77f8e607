"""Modbus RTU master over a UART, with or without a driver-enable (DE) pin.

Theory: the ESP32's UART has no RS-485 mode and cannot measure 3.5 characters of silence. So a
reply is framed by its predicted length, by its CRC and by a deadline; requests keep GAP_MS apart.
After silence, or the answer to something else, the line is left alone for the meter's answer time
once more, so that a late answer is thrown away and not taken for the next one; whatever lies in
the input is discarded before a request.

DE is high from before the first bit until the last stop bit has left (`flush`), and low again
before a meter may answer. Waiting for the last bit is the only wait here. Where a request takes
longer than SPIN_MS (below 4800 baud), turns pass while it is sent and only its end is waited for.

Limits: an answer that is late by more than the answer time again passes for the next one, if that
asks for the same; a reply of more than 255 bytes does not fit; a turn that comes late at low baud
rates lowers DE late, at the cost of a retry. DE timing and baud pacing: shown with stubs only.
"""

from .bus import PENDING, Bus

GAP_MS = 10
SPIN_MS = 20
QUIET_MS = 50  # a reply that stops this long before its predicted end is over


class Rs485(Bus):
    """The master of one RS-485 line.

    `uart`: a non-blocking machine.UART; `de`: its driver-enable Pin or None; `modbus`: the framing
    (wattlock.modbus); `char_us`: time of one character on the wire.
    """

    def __init__(self, uart, de, modbus, ticks_diff, char_us=1042):
        super().__init__(ticks_diff)
        self._uart = uart
        self._de = de
        self._modbus = modbus
        self._data = bytearray(260)
        self._at = modbus.RTU_DATA
        self._char_us = char_us
        self._quiet_ms = QUIET_MS + 4 * char_us // 1000
        self._gap_ms = max(GAP_MS, 4 * char_us // 1000)
        self._rest_ms = self._gap_ms
        if de is not None:
            de.value(0)

    def _exchanges(self):
        now = yield
        diff = self._diff
        data = self._data
        uart = self._uart
        waiting = uart.any
        de = self._de
        is_answer = self._modbus.is_answer
        char_us = self._char_us
        meter = None
        while True:
            if waiting():
                self._discard(meter)
            meter = self._poll.meter
            block = meter.block
            if block.frame is None:
                self._prepare(block)
            asked_at = seen_at = now
            seen = 0
            if de is None:
                uart.write(block.frame)
            else:
                de.value(1)
                uart.write(block.frame)
                spin_at = len(block.frame) * char_us // 1000 - SPIN_MS  # pyright: ignore
                while diff(now, asked_at) < spin_at:
                    now = yield PENDING
                uart.flush()
                de.value(0)
            size = -1
            while size < block.want:
                now = yield PENDING
                size = waiting()
                if size != seen:
                    seen = size
                    seen_at = now
                elif seen > 4 and diff(now, seen_at) >= self._quiet_ms:
                    break
                if diff(now, asked_at) >= block.deadline_ms:
                    break
            if size:
                size = uart.readinto(data) or 0
            if is_answer(data, size, block.frame):
                self._rest_ms = self._gap_ms
                now = yield 0
            else:
                now = yield self._wrong(size, block.frame)

    def _prepare(self, block):
        modbus = self._modbus
        poll = self._poll
        if block.function == 16:
            block.frame = block.rtu(poll.unit, modbus)
        else:
            block.frame = modbus.rtu_read(poll.unit, block.function, block.address, block.count)
        block.want = modbus.rtu_reply_size(block.frame)
        chars = len(block.frame) + block.want
        block.deadline_ms = poll.meter.timeout_ms + chars * self._char_us // 1000 + 1

    def _discard(self, meter):
        """Empty the input: what came late from the last meter, or of itself."""
        if meter is not None:
            meter.counts[self._modbus.LATE] += 1
        for _ in range(8):  # a babbling line must not hold the loop
            self._uart.readinto(self._data)
            if not self._uart.any():
                break

    def _wrong(self, size, frame):
        """The outcome for a reply that is not the answer, and the rest that it takes."""
        modbus = self._modbus
        outcome = modbus.rtu_check(self._data, size, frame)
        if not outcome or outcome & modbus.EXCEPTION:  # a write is answered, too
            self._rest_ms = self._gap_ms
        elif outcome == modbus.CRC or outcome == modbus.SHORT or outcome == modbus.LONG:
            self._rest_ms = self._quiet_ms
        else:
            self._rest_ms = self._poll.meter.timeout_ms
        return outcome


def open_rs485(config, pins, modbus):
    """The line that config ("baud", "parity" N/E/O, "stop") and board ("tx", "rx", "de") name."""
    from time import ticks_diff

    from machine import UART, Pin

    parity = {"N": None, "E": 0, "O": 1}[config.get("parity", "N")]
    stop = config.get("stop", 1)
    uart = UART(
        config["uart"], baudrate=config["baud"], bits=8, parity=parity, stop=stop,
        tx=pins["tx"], rx=pins["rx"], timeout=0, rxbuf=512,
    )
    de = Pin(pins["de"], Pin.OUT, value=0) if "de" in pins else None
    bits = 9 + stop + (parity is not None)
    return Rs485(uart, de, modbus, ticks_diff, -(-bits * 1_000_000 // config["baud"]))
