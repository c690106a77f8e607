"""The MQTT link: up messages in, down messages out, reconnecting for ever.

Purpose: one subscription for all stations. Theory: QoS 0 both ways; what gets lost here is sent
again by its owner (records until acknowledged, commands until their result). Retained up messages
are ignored: they are nobody's words of now.
Limits: the broker is trusted with delivery only; who speaks is decided by the MAC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl

import aiomqtt

from tools.gateway.config import Mqtt
from tools.gateway.southbound import Southbound

log = logging.getLogger("gateway.mqtt")

PREFIX = "wattlock/1"
RECONNECT_FIRST_S = 0.5
RECONNECT_MAX_S = 30.0


class MqttLink:
    def __init__(self, config: Mqtt, southbound: Southbound) -> None:
        self._config = config
        self._southbound = southbound
        self._out: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(maxsize=1000)
        self.connected = False
        southbound.publish = self.publish

    def publish(self, station_id: str, raw: bytes) -> bool:
        """Queue a down message for the connection of now; False if there is none."""
        if not self.connected:
            return False
        with contextlib.suppress(asyncio.QueueFull):
            self._out.put_nowait((station_id, raw))
            return True
        return False

    async def run(self) -> None:
        pause_s = RECONNECT_FIRST_S
        while True:
            try:
                async with self._client() as client:
                    await client.subscribe([(f"{PREFIX}/+/up", 0), (f"{PREFIX}/+/online", 0)])
                    log.info("connected to %s:%d", self._config.host, self._config.port)
                    pause_s = RECONNECT_FIRST_S
                    await self._talk(client)
            except (aiomqtt.MqttError, OSError, TimeoutError) as error:
                log.warning("%s; next try in %.1f s", error, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(RECONNECT_MAX_S, pause_s * 2)

    async def _talk(self, client: aiomqtt.Client) -> None:
        while not self._out.empty():
            self._out.get_nowait()  # for a connection that is gone
        self.connected = True
        sender = asyncio.create_task(self._send(client))
        try:
            async for message in client.messages:
                try:
                    self._take(message)
                except Exception:  # one board's message must not silence the others
                    log.exception("%s", message.topic)
        finally:
            self.connected = False
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    def _take(self, message: aiomqtt.Message) -> None:
        parts = message.topic.value.split("/")
        payload = message.payload
        if len(parts) != 4 or not isinstance(payload, bytes):
            return
        station_id, kind = parts[2], parts[3]
        if kind == "online":
            if payload == b"0":
                self._southbound.offline_hint(station_id)
        elif kind == "up" and not message.retain:
            reply = self._southbound.handle(station_id, payload, "mqtt")
            if reply:
                self.publish(station_id, reply)

    async def _send(self, client: aiomqtt.Client) -> None:
        while True:
            station_id, raw = await self._out.get()
            await client.publish(f"{PREFIX}/{station_id}/down", raw, qos=0, retain=False)

    def _client(self) -> aiomqtt.Client:
        config = self._config
        context = None
        if config.tls:
            context = ssl.create_default_context(cafile=config.ca_file)
            if config.client_cert is not None:
                context.load_cert_chain(config.client_cert, config.client_key)
        return aiomqtt.Client(
            config.host,
            config.port,
            username=config.username,
            password=config.password,
            tls_context=context,
            keepalive=config.keepalive_s,
            clean_session=True,
        )
