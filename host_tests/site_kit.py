"""The firmware's agent in virtual time, with real files and the real gateway's southbound side.

A `Site` is a world of `portable.bench` whose messages go to `gateway_kit.Bare`, and whose
config.json and secrets.json are files in a folder. What main.py does at a boot is done by `boot`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hal import setup
from hal import trial as trials
from portable import bench
from portable.bench import KEY, METERS, SPEC, STATION
from wattlock import app, config
from wattlock.errors import ConfigError

from host_tests.gateway_kit import Bare
from tools.gateway.store import Alarm, Command, Record

MINUTE = 60_000
CONFIG = bench.site()
SECRETS: dict[str, Any] = {
    "kid": 1, "key": KEY.hex(), "wifi": {"ssid": "old", "password": "old-secret"}
}  # fmt: skip


class Site(bench.World):
    """A bench with a file system for config.json and secrets.json, and a gateway to talk to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.root = folder / "board"
        self.root.mkdir()
        monkeypatch.setattr(setup, "DIR", f"{self.root}/")
        for name, value in (("config", CONFIG), ("secrets", SECRETS)):
            (self.root / f"{name}.json").write_text(json.dumps(value))
        self.bare = Bare(folder, stations={STATION: {"kid": 1, "key": KEY.hex()},
                                           "DEMO-2": {"kid": 1, "key": "ab" * 32}})  # fmt: skip
        self.deaf = False
        self.lose: Callable[[bytes], bool] = lambda raw: False
        self.downs: list[dict[str, Any]] = []
        self.hear = {"host": "127.0.0.1", "port": 1883}  # where the gateway can be reached
        self.running: dict[str, Any] = {}
        self.gateway = self  # type: ignore[assignment]  # bench.World.run hands messages to it

    def read(self, name: str) -> Any:
        return json.loads((self.root / f"{name}.json").read_text())

    def left(self) -> list[str]:
        """Files of a trial that are there."""
        return [path.name for path in self.root.iterdir() if path.stem in ("trial", "kept", "new")]

    def boot(self) -> Any:
        """As main.py does it."""
        texts = [(self.root / f"{name}.json").read_text() for name in ("config", "secrets")]
        site = trial = None
        if (self.root / "kept.json").exists():
            texts = trials.apply(*texts)
        if (self.root / "trial.json").exists():
            trial = trials.begin()
        if trial is not None and trial["running"]:
            try:
                tried = trials.texts(*texts)
                site = config.load(tried[0], SPEC, METERS)
                secrets = config.load_secrets(tried[1], site)
            except ConfigError as e:
                site = None
                trial.update(why=str(e), refused=True, running=False)
        if site is None:
            site = config.load(texts[0], SPEC, METERS)
            secrets = config.load_secrets(texts[1], site)
        self.running = site
        self.board = bench.Board(self, site["evses"])
        self.board.trial = trial
        self.board.setup = lambda: setup  # type: ignore[attr-defined]
        self.app = app.build(site, secrets, self.board)
        return self.app

    def run(self, ms: int, step: int = 100) -> None:
        """Turns; a reset that is asked for happens."""
        end = self.ms + ms
        while self.ms < end:
            if self.resets:
                self.resets = 0
                self.cut(2000)
            super().run(step, step)

    def take(self, message: bytes) -> None:
        self.bare.clock.unix_ms = self.unix_ms()
        link = self.running["link"]
        if self.deaf or (link["host"], link["port"]) != tuple(self.hear.values()):
            return
        reply = self.bare.south.handle(STATION, message, "mqtt")
        if reply and not self.lose(reply):
            self.downs.append(json.loads(reply.split(b"\n")[1]))
            self.board.link.down.append((reply, False))

    def command(self, type: str, data: dict[str, Any] | None = None) -> str:
        self.bare.clock.unix_ms = self.unix_ms()
        id: str = self.bare.queue(type, data or {}).id
        self.app.uplink.hurry = True
        return id

    def word(self, id: str) -> str | None:
        with self.bare.store() as db:
            return db.get_one(Command, id).result

    def told(self, t: str, **fields: Any) -> list[dict[str, Any]]:
        bodies = [json.loads(row.body) for row in self.bare.rows(Record)]
        return [b for b in bodies if b["t"] == t and fields.items() <= b.items()]

    def whole(self) -> None:
        """Everything arrived once, nobody was alarmed, the board is heard."""
        self.run(3 * MINUTE)
        assert self.app.journal.acked == self.app.journal.seq
        assert self.bare.rows(Alarm) == [] and not self.troubles, self.troubles
        assert self.app.trial is None and not self.left()
        heard = len(self.downs)
        self.app.uplink.hurry = True
        self.run(3000)
        assert len(self.downs) > heard
