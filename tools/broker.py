"""A small MQTT 3.1.1 broker on loopback, for the demo and the tests.

Purpose: the uplink needs a broker between board and gateway; nobody should have to install one to
try Wattlock. Theory: amqtt, pure Python, one TCP listener, anonymous, in memory.
Limits: loopback only, no TLS, no access control, nothing survives a restart: a broker for a desk.
A real site runs a real broker with per-station accounts.

Run: ``python -m tools.broker --port 0``. It prints one JSON line when it listens:
``{"ready": true, "host": "127.0.0.1", "port": 40123}``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import socket
from typing import Any

from amqtt.broker import Broker

HOST = "127.0.0.1"


class RetainingBroker(Broker):
    """amqtt 0.12 sends a new client the retained messages of everybody's subscriptions."""

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


def make_broker(port: int) -> Broker:
    """A broker for ``127.0.0.1:port``, to be started in the running event loop."""
    return RetainingBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{HOST}:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )


async def serve(port: int) -> None:
    """Listen until SIGINT or SIGTERM."""
    port = port or free_port()
    broker = make_broker(port)
    await broker.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(json.dumps({"ready": True, "host": HOST, "port": port}), flush=True)
    await stop.wait()
    with contextlib.suppress(Exception):
        await broker.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="an MQTT 3.1.1 broker on loopback")
    parser.add_argument("--port", type=int, default=1883, help="0 chooses a free port")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(serve(args.port))


if __name__ == "__main__":
    main()
