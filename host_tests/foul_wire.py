"""A proxy on loopback that does to a connection what networks do, from a seed.

Purpose: stand between board and broker, broker and gateway, gateway and eMSP. Theory: it knows
where a packet of MQTT or a request of HTTP ends, so that it can lose, repeat and reorder whole
ones as a network with retries above it does, and cut or truncate in the middle of one. `foul`
switches it on and off; `mute` swallows one direction. What it did is counted in `done`.

Limits: publishes are QoS 0, as all of uplink v1; anything else that MQTT says is only delayed,
stalled and cut. HTTP bodies have a Content-Length.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

_PUBLISH = 0x30
_MQTT = ("pass",) * 8 + ("lose", "repeat", "reorder", "delay", "stall", "cut", "truncate")
_HTTP = ("pass",) * 4 + ("refuse", "swallow", "truncate", "repeat", "delay")


class _Cut(Exception):
    pass


class Wire:
    """Listens on `port` and passes on to `target`; `kind` is ``mqtt`` or ``http``."""

    def __init__(self, kind: str, target: int) -> None:
        self.target = target
        self.foul = False
        self.mute = ""  # "up": what the client says is swallowed; "down": what it hears
        self.done: Counter[str] = Counter()
        self._random = Random(0)
        self._pump: Callable[..., None] = self._mqtt if kind == "mqtt" else self._http
        self._kind = kind
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def begin(self, seed: int) -> None:
        """Another story."""
        with self._lock:
            self._random.seed(f"{self._kind} {seed}")
            self.done.clear()

    def cut(self) -> None:
        """Every connection, now."""
        with self._lock:
            for one in list(self._open):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        if self._kind == "http":
            threads = [threading.Thread(target=self._end, args=(client, server), daemon=True)]
        else:
            threads = [
                threading.Thread(target=self._end, args=ends, daemon=True)
                for ends in ((client, server, "up"), (server, client, "down"))
            ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _end(self, source: socket.socket, sink: socket.socket, *way: str) -> None:
        with contextlib.suppress(OSError, _Cut):
            self._pump(source, sink, *way)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _choose(self, choices: tuple[str, ...]) -> str:
        with self._lock:
            what = self._random.choice(choices) if self.foul else "pass"
            self.done[what] += 1
        return what

    def _span(self, least: float, most: float) -> float:
        with self._lock:
            return self._random.uniform(least, most)

    # --- MQTT

    def _mqtt(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        held: list[bytes] = []
        for packet in _packets(source):
            if packet[0] & 0xF0 != _PUBLISH:
                sink.sendall(packet)
                continue
            if self.mute == way:
                self.done["muted"] += 1
                continue
            what = self._choose(_MQTT)
            if what == "delay":
                time.sleep(self._span(0.05, 0.8))
            elif what == "stall":
                time.sleep(self._span(1, 3))
            elif what == "cut":
                raise _Cut
            elif what == "truncate":
                sink.sendall(packet[: len(packet) // 2])
                raise _Cut
            if what == "reorder" and not held:
                held.append(packet)  # it goes behind the next one
                continue
            if what != "lose":
                sink.sendall(packet)
            if what == "repeat":
                sink.sendall(packet)
            while held:
                sink.sendall(held.pop())

    # --- HTTP

    def _http(self, client: socket.socket, server: socket.socket) -> None:
        while request := _request(client):
            what = self._choose(_HTTP)
            if what == "refuse":
                raise _Cut
            if what == "delay":
                time.sleep(self._span(0.05, 1))
            server.sendall(request)
            reply = _request(server)
            if what == "repeat":
                server.sendall(request)
                _request(server)
            if what == "swallow":
                raise _Cut
            if what == "truncate":
                client.sendall(reply[: len(reply) // 2])
                raise _Cut
            client.sendall(reply)


def _packets(source: socket.socket) -> Any:
    """Whole MQTT packets; what is left of one when the connection ends is lost with it."""
    data = b""
    while chunk := source.recv(65536):
        data += chunk
        while len(data) >= 2:
            size, end = 0, 1
            while end < len(data):
                size |= (data[end] & 0x7F) << 7 * (end - 1)
                end += 1
                if not data[end - 1] & 0x80:
                    break
            else:
                break  # its length has not come whole
            if len(data) < end + size:
                break
            yield data[: end + size]
            data = data[end + size :]


def _request(source: socket.socket) -> bytes:
    """A whole request or reply; empty where there is none any more."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = source.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)^content-length:\s*(\d+)", head, re.M)
    length = int(found[1]) if found else 0
    while len(body) < length:
        chunk = source.recv(65536)
        if not chunk:
            raise _Cut
        body += chunk
    return head + b"\r\n\r\n" + body
