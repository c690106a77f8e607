"""The embedded broker: MQTT 3.1.1 as umqtt.simple and the gateway need it."""

from __future__ import annotations

import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from host_tests.gateway_kit import process, until


class Client:
    """QoS 0, MQTT 3.1.1, clean session."""

    def __init__(self, port: int, name: str, *topics: str, will: str | None = None) -> None:
        self.got: list[tuple[str, bytes, bool]] = []
        self.ready = threading.Event()
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv311, clean_session=True
        )
        if will is not None:
            self.paho.will_set(will, b"0", retain=True)
        self.paho.on_message = self._message
        self.paho.on_subscribe = lambda *_: self.ready.set()
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        self.paho.subscribe([(topic, 0) for topic in topics])
        assert self.ready.wait(10)

    def _message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.got.append((message.topic, bytes(message.payload), message.retain))

    def vanish(self) -> None:
        sock = self.paho.socket()
        self.paho.loop_stop()
        assert sock is not None
        sock.close()

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


def test_will_retained_and_large_messages() -> None:
    with process("tools.broker", "--port", "0") as (_, ready):
        board = Client(ready["port"], "board", "b/down", will="b/online")
        board.paho.publish("b/online", b"1", retain=True)
        gateway = Client(ready["port"], "gateway", "+/online", "+/up")
        until(lambda: ("b/online", b"1", True) in gateway.got)
        board.paho.publish("b/up", b"x" * 4096)
        until(lambda: ("b/up", b"x" * 4096, False) in gateway.got)
        gateway.paho.publish("b/down", b"y")
        until(lambda: board.got == [("b/down", b"y", False)])
        board.vanish()
        until(lambda: ("b/online", b"0", False) in gateway.got)

        again = Client(ready["port"], "board", "b/down", will="b/online")
        gateway.paho.publish("b/down", b"z")
        until(lambda: ("b/down", b"z", False) in again.got)
        assert again.got == [("b/down", b"z", False)]  # nothing of others' subscriptions
        again.close()
        gateway.close()
