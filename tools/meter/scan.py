"""Find the slaves on a line, and say which meter each one looks like.

A slave is found by any sound answer to a read, a refusal included. A meter is recognised by the
identity register that its description names ("sure"), otherwise by a voltage and a frequency that
make sense at its addresses ("maybe": families share their maps).
"""

import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol

import serial

from . import catalog
from .decode import block_of, decode
from .wire import modbus, registers

PROBES = ((4, 0, 2), (3, 0, 2))
VOLTAGE_MV = range(80_000, 300_000)
FREQUENCY_MHZ = range(45_000, 65_000)


class Line(Protocol):
    tcp: bool

    def ask(self, unit: int, function: int, address: int, count: int) -> tuple[bytes, bytes]:
        """Request and reply; the reply is empty where none came."""
        ...


class SerialLine:
    tcp = False

    def __init__(self, port: str, baud: int, parity: str, stop: int, timeout_s: float) -> None:
        self._port = serial.Serial(port, baud, parity=parity, stopbits=stop, timeout=timeout_s)
        self._gap_s = max(0.01, 40 / baud)

    def ask(self, unit: int, function: int, address: int, count: int) -> tuple[bytes, bytes]:
        request = bytes(modbus.rtu_read(unit, function, address, count))
        time.sleep(self._gap_s)
        self._port.reset_input_buffer()
        self._port.write(request)
        reply = self._port.read(5)
        if len(reply) == 5 and not reply[1] & modbus.EXCEPTION:
            reply += self._port.read(modbus.rtu_reply_size(request) - 5)
        return request, reply

    def close(self) -> None:
        self._port.close()


class TcpLine:
    tcp = True

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._socket = socket.create_connection((host, port), 3)
        self._socket.settimeout(timeout_s)
        self._transaction = 0

    def ask(self, unit: int, function: int, address: int, count: int) -> tuple[bytes, bytes]:
        request = modbus.tcp_read(unit, function, address, count)
        self._transaction += 1
        modbus.tcp_stamp(request, self._transaction)
        self._socket.sendall(request)
        reply = b""
        try:
            while len(reply) < 6 or len(reply) < modbus.tcp_frame_size(reply):
                data = self._socket.recv(260)
                if not data:
                    break
                reply += data
                if len(reply) >= 6 and reply[:2] != request[:2]:  # an answer that came too late
                    reply = reply[modbus.tcp_frame_size(reply) :]
        except TimeoutError:
            pass
        return bytes(request), reply

    def close(self) -> None:
        self._socket.close()


def answers(line: Line, unit: int) -> bool:
    """Does a slave live at this address?"""
    for function, address, count in PROBES:
        request, reply = line.ask(unit, function, address, count)
        found = decode({"meter": "", "registers": {}}, request, reply, line.tcp)
        if "error" not in found:
            # a gateway says 10 or 11 for a slave that does not answer
            return found.get("exception") not in (10, 11)
    return False


def _read(line: Line, unit: int, description: dict, name: str) -> Any:
    block, _ = block_of(description, name)
    request, reply = line.ask(unit, block.function, block.address, block.count)
    return decode(description, request, reply, line.tcp).get(name)


def _converse(line: Line, unit: int, description: dict) -> str | None:
    """The serial number that a whole poll tells; None where the poll fails."""
    meter = registers.Meter(description)
    meter.begin(True)
    check = modbus.tcp_check if line.tcp else modbus.rtu_check
    for _ in range(40):
        block = meter.block
        if block is None:
            meter.complete(0)
            return meter.serial
        request, reply = line.ask(unit, block.function, block.address, block.count)
        outcome = check(reply, len(reply), request)
        if not outcome:
            outcome = meter.accept(reply, modbus.TCP_DATA if line.tcp else modbus.RTU_DATA)
        if outcome and not meter.reject(outcome):
            return None
    return None


def identify(line: Line, unit: int) -> Iterator[tuple[str, str, str | None]]:
    """(key, "sure" or "maybe", serial number) of the meters that this slave looks like."""
    sure, maybe = [], []
    for key in catalog.known():
        description = catalog.load(key)
        rows = description["registers"]
        if "sunspec" in description:
            number = _converse(line, unit, description)
            if number is not None:
                yield key, "sure", number
            continue
        if "identity" in description:
            at, kind, known = description["identity"]
            name = "serial" if ":" in kind else "identity"
            probe = description | {"registers": {name: [at, kind]}}
            value = _read(line, unit, probe, name)
            if value in known or any(str(value).startswith(k) for k in known if name == "serial"):
                sure.append(key)
            continue
        voltage = "voltage_l1_mv" if "voltage_l1_mv" in rows else "voltage_dc_mv"
        if voltage not in rows or _read(line, unit, description, voltage) not in VOLTAGE_MV:
            continue
        frequency = "frequency_mhz"
        if frequency not in rows or _read(line, unit, description, frequency) in FREQUENCY_MHZ:
            maybe.append(key)
    word = "sure" if sure else "maybe"
    for key in sure or maybe:
        description = catalog.load(key)
        number = None
        if "serial" in description["registers"]:
            number = _read(line, unit, description, "serial")
        yield key, word, number
