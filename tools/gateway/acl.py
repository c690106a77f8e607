"""``python -m tools.gateway acl --config FILE``: mosquitto's access rules for these stations.

Purpose: a board can say and hear what is its own, and nothing else; the broker enforces it, so
that a stolen board's login is worth one station. Theory: an account for each station, named as
the station (with client certificates: `use_identity_as_username true`, the certificate's CN), and
the gateway's own account, `mqtt.username`. What is not allowed by a line is forbidden; nobody may
write `down` but the gateway, nobody may read `up` but the gateway.
Limits: mosquitto reads the file at its start and at SIGHUP; it acknowledges a forbidden publish
and drops it. Whoever runs the broker stands above its rules: see docs/threats.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.gateway.config import ConfigError, load_config
from tools.gateway.mqtt import PREFIX


def rules(gateway: str, stations: list[str]) -> str:
    """The text of mosquitto's `acl_file`."""
    lines = [f"user {gateway}"]
    lines += [f"topic {way}" for way in (f"read {PREFIX}/+/up", f"read {PREFIX}/+/online")]
    lines.append(f"topic write {PREFIX}/+/down")
    for station_id in sorted(stations):
        topic = f"{PREFIX}/{station_id}"
        lines += ["", f"user {station_id}", f"topic write {topic}/up"]
        lines += [f"topic write {topic}/online", f"topic read {topic}/down"]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.gateway acl", description="mosquitto's acl_file, on standard output"
    )
    parser.add_argument("--config", type=Path, required=True, help="the gateway's configuration")
    args = parser.parse_args(arguments)
    try:
        config = load_config(args.config)
    except ConfigError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 2
    gateway = config.mqtt and config.mqtt.username
    if not gateway:
        print("mqtt.username: is missing; without an account there is nothing to allow; add it",
              file=sys.stderr)  # fmt: skip
        return 2
    if gateway in config.stations:
        print(f"mqtt.username: {gateway!r} is a station's; give the gateway another account",
              file=sys.stderr)  # fmt: skip
        return 2
    print(rules(gateway, list(config.stations)), end="")
    return 0
