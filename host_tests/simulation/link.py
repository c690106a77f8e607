"""The link: an up path and a down path that lose, delay, repeat and reorder, and a tap.

`connected` is what the adapter would say: an outage may be seen at once, or only after a while
(half-open), as with a dead radio. Whoever stands on the path (`faults.Attacker`) reads `tape` and
puts messages into the board's ear with `whisper`.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING

from wattlock.errors import LinkError

if TYPE_CHECKING:
    from .world import World


class Link:
    """The network between board and gateway."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.up = True  # is there a path?
        self.noticed = True  # does the adapter know?
        self.deaf_up = self.deaf_down = False  # one way swallows everything
        self.loss = 0.0
        self.duplicate = 0.0
        self.delay_ms = (5, 80)
        self.tape: deque[tuple[str, bytes]] = deque(maxlen=120)
        self.held_back: deque[bytes] = deque(maxlen=100)
        self.retained: bytes | None = None
        self.port: Port | None = None

    def _copies(self, deaf: bool) -> list[int]:
        counts = self.world.counts
        if not self.up or deaf or self.rng.random() < self.loss:
            counts["messages lost"] += 1
            return []
        delays = [self.rng.randint(*self.delay_ms)]
        if self.rng.random() < self.duplicate:
            counts["messages repeated"] += 1
            delays.append(self.rng.randint(*self.delay_ms) + self.rng.randint(0, 3000))
        return delays

    def carry_up(self, message: bytes) -> None:
        self.tape.append(("up", message))
        for delay in self._copies(self.deaf_up):
            self.world.after(delay, lambda: self.world.gateway.receive(message))

    def carry_down(self, message: bytes) -> None:
        self.tape.append(("down", message))
        if self.deaf_down:
            self.held_back.append(message)
        for delay in self._copies(self.deaf_down):
            self.world.after(delay, lambda: self.whisper(message))

    def whisper(self, message: bytes, retained: bool = False) -> None:
        """Deliver to the board, whoever sent it."""
        if self.port is not None and self.up and self.port.connected:
            self.port.inbox.append((message, retained))
            self.world.touch(600)

    def go_down(self, noticed: bool) -> None:
        self.up = False
        self.noticed = noticed
        self.world.note("link: down%s", "" if noticed else ", unnoticed")

    def come_up(self) -> None:
        self.up = True
        self.world.note("link: up")
        self.world.touch()


class Port:
    """The board's end, with the face of `hal/mqtt.py`. One boot's."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.inbox: deque[tuple[bytes, bool]] = deque()
        self.connected = self.busy = False
        self._ready_at = link.world.now + link.rng.randint(200, 4000)
        self._wait_ms = 500
        self.bytes_out = self.bytes_in = 0

    def at_least(self, unix_ms: int) -> None:
        pass

    def turn(self, ticks: int, calm: bool) -> None:
        link = self._link
        if self.connected:
            if not link.up and link.noticed:
                raise LinkError("the network went away")
        elif link.world.now >= self._ready_at:
            if link.up:
                self.connected = True
                self._wait_ms = 500
                if link.retained is not None:
                    self.inbox.append((link.retained, True))
            else:
                self._ready_at = link.world.now + self._wait_ms
                self._wait_ms = min(self._wait_ms * 2, 120_000)

    def send(self, *parts: bytes) -> None:
        message = b"".join(parts)
        self.bytes_out += len(message)
        self._link.world.counts["messages"] += 1
        self._link.carry_up(message)

    def receive(self) -> tuple[bytes, bool] | None:
        return self.inbox.popleft() if self.inbox else None

    def rebuild(self) -> None:
        self.connected = False
        self.inbox.clear()
        self._ready_at = self._link.world.now + self._link.rng.randint(100, 2000)
