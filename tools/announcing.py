"""A web server that says in one JSON line on standard output when it is ready."""

from __future__ import annotations

import json
import socket

import uvicorn


class Announcing(uvicorn.Server):
    """Prints the ready line once requests are answered."""

    ready: dict[str, object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            print(json.dumps(self.ready), flush=True)
