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
        self._request_ms = 8 * char_us // 1000 + 1
        self._char_us = char_us
        self._quiet_ms = QUIET_MS + 4 * char_us // 1000
        self._gap_ms = max(GAP_MS, 4 * char_us // 1000)
        self._sending = False
        self._asked_at = 0
        self._ended_at = 0
        self._rest_ms = self._gap_ms
        self._unit = -1
        self._seen = 0
        self._seen_at = 0
        self._deadline_ms = 0
        self._want = 0
        if de is not None:
            de.value(0)

    def _ready(self, poll, now):
        rest_ms = self._rest_ms
        if self._unit != poll.unit and self._unit >= 0 and poll.meter.switch_ms > rest_ms:
            rest_ms = poll.meter.switch_ms
        return self._diff(now, self._ended_at) >= rest_ms

    def _send(self, poll, now):
        block = poll.block
        frame = block.frame
        if frame is None:
            frame = self._modbus.rtu_read(poll.unit, block.function, block.address, block.count)
            block.frame = frame
        if self._discard() and self._last >= 0:
            self._polls[self._last].meter.counts[self._modbus.LATE] += 1
        self._want = self._modbus.rtu_reply_size(frame)
        self._deadline_ms = (
            self._request_ms + poll.meter.timeout_ms + self._want * self._char_us // 1000
        )
        self._unit = poll.unit
        self._asked_at = now
        self._seen = 0
        self._seen_at = now
        uart = self._uart
        if self._de is None:
            uart.write(frame)
            return
        self._de.value(1)
        uart.write(frame)
        self._sending = True
        if self._request_ms <= SPIN_MS:
            self._sent()

    def _sent(self):
        self._uart.flush()
        self._de.value(0)
        self._sending = False

    def _discard(self):
        """Empty the input; True if there was anything."""
        uart = self._uart
        any_bytes = False
        for _ in range(8):  # a babbling line must not hold the loop
            if not uart.any():
                break
            uart.readinto(self._data)
            any_bytes = True
        return any_bytes

    def _receive(self, poll, now):
        if self._sending:
            if self._diff(now, self._asked_at) < self._request_ms - SPIN_MS:
                return PENDING
            self._sent()
        size = self._uart.any()
        if size < self._want and self._diff(now, self._asked_at) < self._deadline_ms:
            if size != self._seen:
                self._seen = size
                self._seen_at = now
                return PENDING
            if size < 5 or self._diff(now, self._seen_at) < self._quiet_ms:
                return PENDING
        if size:
            size = self._uart.readinto(self._data) or 0
        self._ended_at = now
        outcome = self._modbus.rtu_check(self._data, size, poll.block.frame)
        modbus = self._modbus
        if not outcome or outcome & modbus.EXCEPTION:
            self._rest_ms = self._gap_ms
        elif outcome == modbus.CRC or outcome == modbus.SHORT or outcome == modbus.LONG:
            self._rest_ms = self._quiet_ms
        else:
            self._rest_ms = poll.meter.timeout_ms
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
