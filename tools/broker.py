"""A small MQTT 3.1.1 broker on loopback, for the demo and the tests.

Purpose: the uplink needs a broker between board and gateway; nobody should have to install one to
try Wattlock. Theory: amqtt, pure Python, one TCP listener, anonymous, in memory.
Limits: loopback only, TLS on a second port for benches, no access control, nothing survives a
restart: a broker for a desk.
A real site runs a real broker with per-station accounts.

Run: ``python -m tools.broker --port 0``. It prints one JSON line when it listens:
``{"ready": true, "host": "127.0.0.1", "port": 40123}``, with ``--tls CERT KEY`` a "tls_port" too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

from amqtt.broker import Broker

HOST = "127.0.0.1"


class RetainingBroker(Broker):
    """amqtt 0.12 sends a new client the retained messages of everybody's subscriptions. Its TLS is
    1.2, which is what MicroPython's image for the ESP32 speaks."""

    @staticmethod
    def _create_ssl_context(listener: Any) -> ssl.SSLContext:
        context = Broker._create_ssl_context(listener)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Any
    ) -> None:
        holders = self._subscriptions.get(subscription[0], [])
        if any(holder.client_id == session.client_id for holder, _ in holders):
            await super()._publish_retained_messages_for_subscription(subscription, session)


def free_port() -> int:
    """A TCP port that was free a moment ago: amqtt does not tell which one it got for port 0."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def make_broker(port: int, tls: tuple[int, Path, Path] | None = None) -> Broker:
    """A broker for ``127.0.0.1:port``, to be started in the running event loop. `tls`: another
    port, with certificate and key."""
    listeners: dict[str, Any] = {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}}
    if tls is not None:
        listeners["tls"] = {
            "type": "tcp", "bind": f"{HOST}:{tls[0]}", "ssl": True,
            "certfile": str(tls[1]), "keyfile": str(tls[2]),
        }  # fmt: skip
    return RetainingBroker(
        {
            "listeners": listeners,
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )


async def serve(port: int, tls: list[Path] | None = None) -> None:
    """Listen until SIGINT or SIGTERM."""
    port = port or free_port()
    ready = {"ready": True, "host": HOST, "port": port}
    if tls is None:
        broker = make_broker(port)
    else:
        ready["tls_port"] = free_port()
        broker = make_broker(port, (ready["tls_port"], tls[0], tls[1]))
    await broker.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(json.dumps(ready), flush=True)
    await stop.wait()
    with contextlib.suppress(Exception):
        await broker.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="an MQTT 3.1.1 broker on loopback")
    parser.add_argument("--port", type=int, default=1883, help="0 chooses a free port")
    parser.add_argument("--tls", type=Path, nargs=2, metavar=("CERT", "KEY"), help="a port more")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(args.port, args.tls))


if __name__ == "__main__":
    main()
