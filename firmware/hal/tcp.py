"""Modbus TCP master: the bus of meters behind one host and port.

Theory: a connection is kept and a request carries a transaction number, so an answer to an earlier
request is told from the right one and skipped. Connecting is part of a request, within
CONNECT_MS, and as little waited for as an answer. Whatever else is wrong with a reply leaves the
stream out of step: the connection is closed and built again, at the earliest RECONNECT_MS later.
A unit that does not answer is no such fault where there are others behind the same host: they go
on over the connection. It is closed when the next one does not answer either.

A unit that does not answer takes no heap. A host that is gone takes about 530 bytes for each
attempt (socket, address, exception), until the collector comes: three attempts each 30 s.

Limits: the host is an address (IPv4; config.py sees to it), since `getaddrinfo` waits for a name.
"""

from .bus import PENDING, Bus

CONNECT_MS = 3000
RECONNECT_MS = 1000


class Tcp(Bus):
    """The master of one TCP connection.

    `connect()` begins a connection and returns it at once: `connected()` -> bool, `write(frame)`,
    `readinto(data)` -> bytes read, None for none yet, 0 at the end; `close()`. All raise OSError.
    `modbus` is the framing (wattlock.modbus).
    """

    def __init__(self, connect, modbus, ticks_diff):
        super().__init__(ticks_diff)
        self._connect = connect
        self._modbus = modbus
        self._data = bytearray(264)
        self._at = modbus.TCP_DATA
        self._stream = None
        self._sent = False
        self._transaction = 0
        self._size = 0
        self._asked_at = 0

    def _exchanges(self):
        now = yield
        modbus = self._modbus
        silent = None  # the only one that has not answered since somebody did
        while True:
            poll = self._poll
            block = poll.meter.block
            if block.frame is None:
                if block.function == 16:
                    block.frame = block.tcp(poll.unit)
                else:
                    block.frame = modbus.tcp_read(
                        poll.unit, block.function, block.address, block.count
                    )
            self._transaction = (self._transaction + 1) & 0xFFFF
            modbus.tcp_stamp(block.frame, self._transaction)
            self._asked_at = now
            self._size = 0
            self._sent = False
            outcome = PENDING
            while outcome == PENDING:
                now = yield PENDING
                try:
                    outcome = self._exchange(poll, now)
                except OSError:
                    outcome = modbus.OFFLINE
            self._rest_ms = 0
            if not outcome or outcome & modbus.EXCEPTION:
                silent = None
            elif (
                outcome == modbus.TIMEOUT
                and len(self._polls) > 1
                and (silent is None or silent is poll)
            ):
                silent = poll
            else:
                silent = None
                self._close()
                self._rest_ms = RECONNECT_MS
            now = yield outcome

    def _exchange(self, poll, now):
        modbus = self._modbus
        frame = poll.meter.block.frame
        if not self._sent:
            if self._stream is None:
                self._stream = self._connect()
            if not self._stream.connected():
                late = self._diff(now, self._asked_at) >= CONNECT_MS
                return modbus.OFFLINE if late else PENDING
            self._stream.write(frame)
            self._sent = True
            self._asked_at = now
            return PENDING
        data = self._data
        if self._size:
            read = self._stream.readinto(memoryview(data)[self._size :])
        else:
            read = self._stream.readinto(data)
        if read == 0:
            return modbus.OFFLINE
        if read:
            self._size += read
        while self._size > modbus.TCP_HEADER:
            size = modbus.tcp_frame_size(data)
            if self._size < size <= len(data):
                break
            outcome = modbus.tcp_check(data, min(size, self._size), frame)
            if outcome != modbus.TRANSACTION:
                return outcome if self._size == size or outcome else modbus.LONG
            poll.meter.counts[outcome] += 1
            self._size -= size
            for i in range(self._size):
                data[i] = data[size + i]
        if self._diff(now, self._asked_at) >= poll.meter.timeout_ms:
            return modbus.SHORT if self._size else modbus.TIMEOUT
        return PENDING

    def _close(self):
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class Connection:
    """A TCP connection of MicroPython's, never waited for."""

    def __init__(self, host, port):
        import errno
        import select
        import socket

        address = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)[0][-1]
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLOUT)
        self._up = False
        self._bad = select.POLLERR | select.POLLHUP
        try:
            self._socket.connect(address)
        except OSError as e:
            if e.errno != errno.EINPROGRESS:
                self._socket.close()
                raise
        self.write = self._socket.write
        self.readinto = self._socket.readinto
        self.close = self._socket.close

    def connected(self):
        if not self._up:
            for _, event in self._poll.ipoll(0):
                if event & self._bad:
                    raise OSError("refused")
                self._up = True
        return self._up


def open_tcp(config, modbus):
    """The bus that config names: "host", "port" (default 502)."""
    from time import ticks_diff

    def connect():
        return Connection(config["host"], config.get("port", 502))

    return Tcp(connect, modbus, ticks_diff)
