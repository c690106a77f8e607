"""A real mosquitto on loopback: accounts, access control, a violent end and a return.

Theory: the rules are those that `python -m tools.gateway acl` writes; beside them, an observer
reads everything and writes nothing. MQTT acknowledges a forbidden publish, so only a subscriber
shows what the rules let through.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from tools import paths
from tools.gateway import acl

GATEWAY = "gateway"
OBSERVER = "observer"
OBSERVES = f"\nuser {OBSERVER}\ntopic read wattlock/1/+/#\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """`stations` get an account each, named as they are. It keeps its ports through `kill`.
    `listen` opens more listeners, by name: lines of its configuration for each."""

    def __init__(
        self, program: Path, folder: Path, *stations: str,
        listen: dict[str, list[str]] | None = None,
    ) -> None:
        self._program = program
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._listen = listen or {}
        self.ports = {name: free_port() for name in self._listen}
        self.passwords = {name: secrets.token_hex(8) for name in (*stations, GATEWAY, OBSERVER)}
        self._configure()
        self._process: subprocess.Popen[bytes] | None = None

    def _configure(self) -> None:
        folder = self._folder
        (folder / "passwords").touch(mode=0o600)
        for name, password in self.passwords.items():
            subprocess.run(
                [paths.MOSQUITTO_PASSWD, "-b", folder / "passwords", name, password],
                check=True,
                capture_output=True,
            )
        stations = [name for name in self.passwords if name not in (GATEWAY, OBSERVER)]
        (folder / "rules").write_text(acl.rules(GATEWAY, stations) + OBSERVES)
        (folder / "rules").chmod(0o600)
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous false",
            f"password_file {folder}/passwords",
            f"acl_file {folder}/rules",
            "persistence false",
            "log_dest stderr",
        ]
        if os.geteuid() == 0:
            lines.append("user root")
        for name, more in self._listen.items():
            lines += [f"listener {self.ports[name]} 127.0.0.1", *more]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    @property
    def log(self) -> Path:
        return self._folder / "mosquitto.log"

    def login(self, name: str) -> dict[str, str]:
        """As `secrets.json` has it."""
        return {"user": name, "password": self.passwords[name]}

    def start(self) -> Self:
        assert self._process is None or self._process.poll() is not None, "it runs"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", self._folder / "mosquitto.conf"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return self
            except OSError:
                code = self._process.poll()
                if code is not None or time.monotonic() > end:
                    self.stop()
                    text = self.log.read_text(errors="replace")
                    raise AssertionError(f"mosquitto did not start ({code}): {text}") from None
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: no goodbye to anybody, and what it held in memory is gone."""
        assert self._process and self._process.poll() is None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Heard(NamedTuple):
    topic: str
    payload: bytes
    retain: bool


class Client:
    """A connection under one account; it comes back by itself when the broker does."""

    def __init__(
        self, broker: Mosquitto, account: str, *topics: str, timeout_s: float = 15
    ) -> None:
        self.messages: list[Heard] = []
        self._changed = threading.Condition()
        self._topics = topics
        self._subscribed = threading.Event()
        self._paho = paho.Client(CallbackAPIVersion.VERSION2)
        self._paho.username_pw_set(account, broker.passwords[account])
        self._paho.reconnect_delay_set(1, 1)
        self._paho.on_connect = self._connected
        self._paho.on_disconnect = lambda *_: self._subscribed.clear()
        self._paho.on_subscribe = lambda *_: self._subscribed.set()
        self._paho.on_message = self._arrived
        self._paho.connect("127.0.0.1", broker.port)
        self._paho.loop_start()
        try:
            self.ready(timeout_s)
        except AssertionError:
            self.close()
            raise

    def _connected(self, _client: object, _data: object, _flags: object, reason: ReasonCode,
                   _properties: object) -> None:
        if reason.is_failure:
            return
        if self._topics:
            self._paho.subscribe([(topic, 0) for topic in self._topics])
        else:
            self._subscribed.set()

    def _arrived(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.messages.append(Heard(message.topic, bytes(message.payload), message.retain))
            self._changed.notify_all()

    def ready(self, timeout_s: float = 15) -> None:
        """Wait until it hears what is said (after a broker's return, too)."""
        assert self._subscribed.wait(timeout_s), "no connection to mosquitto"

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Returns when the broker has it."""
        self._paho.publish(topic, payload, qos=1, retain=retain).wait_for_publish(15)

    def wait_for(self, count: int, timeout_s: float = 15) -> list[Heard]:
        """The messages, once there are `count`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, timeout_s), (
                f"{len(self.messages)} messages, {count} expected"
            )
            return list(self.messages)

    def close(self) -> None:
        self._paho.disconnect()
        self._paho.loop_stop()
