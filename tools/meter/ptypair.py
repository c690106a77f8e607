"""A serial cable without hardware: two pseudo-terminals, raw, with a relay between them.

Each end is a device that can be opened, closed and opened again; what is written to one comes out
of the other. Bytes sent while nobody listens wait in the kernel, as in no real UART: an end that
opens late should flush its input.
"""

import os
import select
import threading
import tty
from pathlib import Path


class PtyPair:
    """`a` and `b` are the paths of the ends; `link` names end a by a symbolic link."""

    def __init__(self, link: Path | None = None) -> None:
        self._masters: list[int] = []
        self._slaves: list[int] = []  # kept open, else a master reads EIO while its end is closed
        for _ in range(2):
            master, slave = os.openpty()
            tty.setraw(slave)
            self._masters.append(master)
            self._slaves.append(slave)
        self.a, self.b = (os.ttyname(slave) for slave in self._slaves)
        self.link = link
        if link is not None:
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(self.a)
        self._wake, self._stop = os.pipe()
        self._relay = threading.Thread(target=self._run, name="pty relay", daemon=True)
        self._relay.start()

    def _run(self) -> None:
        one, other = self._masters
        while True:
            ready, _, _ = select.select([one, other, self._wake], [], [])
            if self._wake in ready:
                return
            for source in ready:
                data = os.read(source, 4096)
                target = other if source == one else one
                while data:
                    data = data[os.write(target, data) :]

    def close(self) -> None:
        os.write(self._stop, b"x")
        self._relay.join()
        for fd in (*self._masters, *self._slaves, self._wake, self._stop):
            os.close(fd)
        if self.link is not None and self.link.is_symlink():
            self.link.unlink()

    def __enter__(self) -> "PtyPair":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
