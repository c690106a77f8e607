"""``python -m tools.emsp --cpo-versions-url URL --token-a TOKEN --state DIR [--port 0]``

Listens, prints one JSON ready line, registers at the CPO, pulls its locations, pushes its tokens.
``GET /admin/state`` shows everything it knows, ``POST /admin/commands`` sends a command:
``{"type": "RESERVE_NOW", "driver": "alice", "location_id": "LOC1", "evse_uid": "E1",
"reservation_id": "R1", "expiry_s": 900}``.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from pathlib import Path

import uvicorn

from tools.announcing import Announcing
from tools.emsp.app import Emsp, create_app
from tools.emsp.book import Book

HOST = "127.0.0.1"
DEMO = {
    "country_code": "NL",
    "party_id": "EMS",
    "name": "Demo eMSP",
    "tokens": {
        "alice": {"uid": "04A1B2C3D4E580", "type": "RFID", "contract_id": "NL-EMS-C00000001-A"},
        "bob": {"uid": "04B0B0B0B0B080", "type": "RFID", "contract_id": "NL-EMS-C00000002-B"},
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.emsp", description="a small test eMSP")
    parser.add_argument("--port", type=int, default=8030, help="0 chooses a free port")
    parser.add_argument("--base-url", help="by which others reach it; default: where it listens")
    parser.add_argument("--cpo-versions-url", required=True)
    parser.add_argument("--token-a", required=True, help="the CPO's registration token")
    parser.add_argument("--state", type=Path, required=True, help="folder for log and state")
    parser.add_argument("--config", type=Path, help="JSON: country_code, party_id, name, tokens")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = json.loads(args.config.read_text()) if args.config else DEMO
    listener = socket.create_server((HOST, args.port))
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    base_url = args.base_url or url
    emsp = Emsp(Book(args.state), base_url, config, args.cpo_versions_url, args.token_a)
    server = Announcing(
        uvicorn.Config(
            create_app(emsp), log_level="warning", access_log=False, timeout_graceful_shutdown=3
        )
    )
    server.ready = {"ready": True, "url": url, "port": listener.getsockname()[1]}
    server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
