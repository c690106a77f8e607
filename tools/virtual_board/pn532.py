"""A PN532 as its high-speed UART sees it: frames, wake-up, and one card in the field.

Source: NXP UM0701-02 rev. 02, section 6.2.1 (frames) and 7 (commands). Modelled: wake-up by a long
preamble, ACK and NACK, Diagnose (communication line), GetFirmwareVersion, GetGeneralStatus,
SetParameters, SAMConfiguration, PowerDown, RFConfiguration, InListPassiveTarget (106 kbps type
A), InRelease and the syntax error frame for everything else. The chip sends nothing after a
damaged frame, and with endless retries (the default) it answers InListPassiveTarget only when a
card comes; an ACK or a new command ends that wait.

Limits: no data exchange with the card, no bit rate changes, no extended frames.
"""

from collections.abc import Callable

ACK = bytes.fromhex("0000ff00ff00")
NACK = bytes.fromhex("0000ffff0000")
SYNTAX_ERROR = bytes.fromhex("0000ff01ff7f8100")
_WAKE_UP = 0x55
_HOST = 0xD4
_CHIP = 0xD5

DIAGNOSE = 0x00
GET_FIRMWARE_VERSION = 0x02
GET_GENERAL_STATUS = 0x04
SET_PARAMETERS = 0x12
SAM_CONFIGURATION = 0x14
POWER_DOWN = 0x16
RF_CONFIGURATION = 0x32
IN_LIST_PASSIVE_TARGET = 0x4A
IN_RELEASE = 0x52

_FIRMWARE = bytes((0x32, 0x01, 0x06, 0x07))  # IC PN532, version 1.6, all card types
_MAX_RETRIES_ITEM = 0x05
_ENDLESS = 0xFF


def frame(data: bytes) -> bytes:
    """A normal information frame around TFI and data."""
    return (
        bytes((0x00, 0x00, 0xFF, len(data), -len(data) & 0xFF))
        + data
        + bytes((-sum(data) & 0xFF, 0x00))
    )


class PN532:
    """`receive` what the host wrote; `send` is called with what the chip answers."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self.dead = False
        self.uid: bytes | None = None  # of the card in the field
        self.times_read = 0  # of that card
        self.power_up()

    def power_up(self) -> None:
        self._buffer = bytearray()
        self._awake = False
        self._normal_mode = False
        self._retries = _ENDLESS
        self._waiting = False
        self._last = b""

    def present(self, uid: bytes | None) -> None:
        """Put a card into the field, or take it away with None."""
        if uid is not None and len(uid) not in (4, 7, 10):
            raise ValueError(f"uid: {len(uid)} bytes; a card has 4, 7 or 10")
        self.uid, self.times_read = uid, 0
        if uid and self._waiting:
            self._list_target()

    def receive(self, data: bytes) -> None:
        if self.dead:
            return
        if not self._awake:
            if _WAKE_UP not in data:
                return
            self._awake = True
        self._buffer += data
        while self._take_frame():
            pass

    def _take_frame(self) -> bool:
        start = self._buffer.find(b"\x00\xff")
        if start < 0:
            del self._buffer[:-1]
            return False
        rest = self._buffer[start + 2 :]
        if len(rest) < 2:
            return False
        length, checksum = rest[0], rest[1]
        if (length, checksum) == (0x00, 0xFF):  # ACK: the host gives up the current command
            self._waiting = False
        elif (length, checksum) == (0xFF, 0x00):  # NACK: the host wants the answer again
            self._send(self._last)
        elif (length + checksum) & 0xFF == 0 and length:
            if len(rest) < length + 3:
                return False
            body = bytes(rest[2 : 2 + length])
            del self._buffer[: start + 2 + length + 3]
            if (sum(body) + rest[2 + length]) & 0xFF == 0 and body[0] == _HOST and length > 1:
                self._command(body[1], body[2:])
            return True
        del self._buffer[: start + 4]
        return True

    def _answer(self, command: int, data: bytes = b"") -> None:
        self._last = frame(bytes((_CHIP, command + 1)) + data)
        self._send(self._last)

    def _command(self, command: int, data: bytes) -> None:
        self._waiting = False
        self._send(ACK)
        if command == GET_FIRMWARE_VERSION:
            self._answer(command, _FIRMWARE)
        elif command == DIAGNOSE and data[:1] == b"\x00":
            self._answer(command, data)
        elif command == GET_GENERAL_STATUS:
            self._answer(command, bytes((0, 0, 0, 0)))
        elif command == SAM_CONFIGURATION and data[:1] in (b"\x01", b"\x02", b"\x03", b"\x04"):
            self._normal_mode = True
            self._answer(command)
        elif command == RF_CONFIGURATION and data:
            if data[0] == _MAX_RETRIES_ITEM and len(data) == 4:
                self._retries = data[3]
            self._answer(command)
        elif command in (SET_PARAMETERS, IN_RELEASE) and data:
            self._answer(command, b"\x00" if command == IN_RELEASE else b"")
        elif command == POWER_DOWN and data:
            self._answer(command, b"\x00")
            self._awake = False
        elif command == IN_LIST_PASSIVE_TARGET and len(data) >= 2 and data[1] == 0x00:
            self._list_target()
        else:
            self._last = SYNTAX_ERROR
            self._send(SYNTAX_ERROR)

    def _list_target(self) -> None:
        if self.uid is None or not self._normal_mode:
            self._waiting = self._retries == _ENDLESS
            if not self._waiting:
                self._answer(IN_LIST_PASSIVE_TARGET, b"\x00")
            return
        self._waiting = False
        self.times_read += 1
        size = {4: 0x04, 7: 0x44, 10: 0x84}[len(self.uid)]  # SENS_RES of ISO/IEC 14443-3
        sel_res = 0x08 if len(self.uid) == 4 else 0x00
        target = bytes((0x01, 0x00, size, sel_res, len(self.uid))) + self.uid
        self._answer(IN_LIST_PASSIVE_TARGET, b"\x01" + target)
