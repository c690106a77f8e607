"""``python -m tools.gateway --config FILE``: listen, say so in a JSON line, serve.

The other words, each with its own ``--help``: ``acl`` writes the broker's access rules, ``keys``
the stations' keys of now, ``conformance`` says what is wrong with another gateway or board.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from pathlib import Path

import uvicorn

from tools.announcing import Announcing
from tools.gateway import acl, conformance, keys
from tools.gateway.app import KEEP_ALIVE_S, create_app
from tools.gateway.config import ConfigError, load_config

WORDS = {"acl": acl.main, "conformance": conformance.main, "keys": keys.main}


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in WORDS:
        return WORDS[sys.argv[1]](sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="tools.gateway",
        description="the Wattlock gateway",
        epilog=f"other words: {', '.join(sorted(WORDS))}; each has its own --help",
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON, see README.md")
    args = parser.parse_args()
    try:
        config = load_config(args.config)
    except ConfigError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel("WARNING")
    listener = socket.create_server((config.host, config.port))
    host, port = listener.getsockname()[:2]
    base_url = (config.base_url or f"http://{host}:{port}").rstrip("/")
    app = create_app(config, base_url)
    settings = uvicorn.Config(
        app, log_level=config.log_level, access_log=False, timeout_graceful_shutdown=3,
        timeout_keep_alive=KEEP_ALIVE_S,
    )  # fmt: skip
    server = Announcing(settings)
    server.ready = {
        "ready": True,
        "host": host,
        "port": port,
        "versions_url": f"{base_url}/ocpi/versions",
    }
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
