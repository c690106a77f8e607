"""The firmware's own masters on a laptop: a serial port or a socket where the board has a UART."""

import socket
import sys
import time
from collections.abc import Callable

import serial

from tools import paths

sys.path.insert(0, str(paths.FIRMWARE))

from hal.bus import Bus
from hal.rs485 import Rs485
from hal.tcp import Tcp
from wattlock import modbus, registers

__all__ = ["Bus", "modbus", "now_ms", "poll", "registers", "serial_bus", "tcp_bus"]

TURN_S = 0.005


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _diff(a: int, b: int) -> int:
    return a - b


class _Uart:
    """pyserial with the methods of machine.UART that a master uses."""

    def __init__(self, port: serial.Serial) -> None:
        self._port = port
        self.write = port.write
        self.flush = port.flush

    def any(self) -> int:
        return self._port.in_waiting

    def readinto(self, data: bytearray) -> int:
        read = self._port.read(min(len(data), self._port.in_waiting))
        data[: len(read)] = read
        return len(read)


def serial_bus(port: str, baud: int, parity: str, stop: int) -> Rs485:
    line = serial.Serial(port, baud, parity=parity, stopbits=stop, timeout=0)
    bits = 9 + stop + (parity != "N")
    return Rs485(_Uart(line), None, modbus, _diff, -(-bits * 1_000_000 // baud))


class _Connection:
    """A socket with the methods that hal.tcp uses."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), 3)
        self._socket.setblocking(False)
        self.close = self._socket.close

    def connected(self) -> bool:
        return True

    def write(self, frame: bytes) -> None:
        self._socket.sendall(frame)

    def readinto(self, data: bytearray) -> int | None:
        try:
            return self._socket.recv_into(data)
        except BlockingIOError:
            return None


def tcp_bus(host: str, port: int) -> Tcp:
    return Tcp(lambda: _Connection(host, port), modbus, _diff)


def poll(bus: Bus, until: Callable[[], bool], timeout_s: float) -> bool:
    """Turn the bus until the condition holds; False at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not until():
        if time.monotonic() > deadline:
            return False
        bus.turn(now_ms())
        time.sleep(TURN_S)
    return True
