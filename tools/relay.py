"""A relay on loopback that passes bytes on, counts them, and can be pointed elsewhere.

What a link costs is counted here, where nobody who sends or receives can be mistaken: every byte
of TCP's payload, TLS and MQTT or HTTP included, both ways.
"""

from __future__ import annotations

import contextlib
import socket
import threading

FIRST = 8192
# MQTT's ping and its answer are the only packets of two bytes: plain, or in a record of TLS 1.2
PINGS = (b"\xc0\0", b"\xd0\0")
PING_RECORD = b"\x17\3\3\0\x1a"


def handshake(first: bytes | bytearray) -> int:
    """Bytes of TLS records (RFC 5246, 6.2.1) before the first one with data in it."""
    at = 0
    while at < len(first) and first[at] != 23:
        at += 5 + int.from_bytes(first[at + 3 : at + 5], "big")
    return at


class Relay:
    """Listens on `port`; `target` is the port that the next connections go to. The newest
    connection's first bytes are in `first_up` and `first_down`; `pings` have had no answer yet."""

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self.bytes_up = self.bytes_down = self.connections = 0
        self.pings = 0
        self.cut_behind = 0  # so many bytes down the next connection is cut, once; 0: it is not
        self.first_up, self.first_down = bytearray(), bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def bytes(self) -> int:
        return self.bytes_up + self.bytes_down

    def point(self, target: int) -> None:
        """Cut what goes through; the next connection goes to `target`."""
        self.target = target
        self.cut()

    def cut(self) -> None:
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self.first_up, self.first_down = bytearray(), bytearray()
            self.pings = 0
            try:
                far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for one, other, up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass, args=(one, other, up), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                with self._lock:
                    if up:
                        self.bytes_up += len(data)
                    else:
                        self.bytes_down += len(data)
                    if data.startswith(PINGS) or data.endswith(PINGS) or PING_RECORD in data:
                        self.pings = max(0, self.pings + (1 if up else -1))
                    first = self.first_up if up else self.first_down
                    first += data[: FIRST - len(first)]
                    ends = not up and 0 < self.cut_behind <= len(first)
                if ends:
                    self.cut_behind = 0
                    break
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)
        with self._lock:
            self._open.discard(one)
        one.close()
