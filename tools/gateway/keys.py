"""The stations' keys: where they come from, how one follows another.

Purpose: a station's key can be replaced from afar, without travelling and without an hour in
which either side is deaf.
Theory
1. The first key stands in the configuration, as provisioned. Of two, the one with the higher `kid`
   counts: a rotated key is in the database, or, once an operator has written it there, in the
   configuration (``python -m tools.gateway keys`` prints them so).
2. A rotation is the command ROTATE_KEY with our nonce; its result brings the board's. Both derive
   key(kid + 1) = HMAC(key(kid), purpose + our nonce + its nonce).
3. From then on both keys are good for what comes up, and every second answer is signed with the
   new one: a board that does not have it, whatever befell it, still hears the others. The first
   message under the new key confirms it; the old one is good for nothing then.
4. The chain keeps the key that the journal began with.
Limits: whoever has the old key and has heard both nonces can do the same sum. A rotation makes
backups and discarded boards worthless; after a compromise the board is provisioned again.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session as Db

from tools.gateway import uplink
from tools.gateway.config import Config, ConfigError, load_config
from tools.gateway.store import StationKey, open_store


@dataclass(frozen=True)
class Key:
    kid: int
    secret: bytes


def rotated(key: bytes, station_id: str, kid: int, ours: bytes, theirs: bytes) -> bytes:
    """The key `kid`, which follows `key`; the nonces of gateway and board have 32 bytes each."""
    purpose = f"wattlock/1/rotate/{station_id}/{kid}".encode()
    return hmac.new(key, purpose + ours + theirs, hashlib.sha256).digest()


class Keyring:
    def __init__(self, config: Config) -> None:
        self._config = config

    def current(self, db: Db, station_id: str) -> Key:
        """The key that the board has for sure."""
        first = self._config.stations[station_id]
        row = db.scalar(
            select(StationKey)
            .where(StationKey.station_id == station_id, StationKey.confirmed)
            .order_by(StationKey.kid.desc())
            .limit(1)
        )
        if row is None or row.kid <= first.kid:
            return Key(first.kid, first.key_bytes)
        return Key(row.kid, bytes.fromhex(row.key))

    def following(self, db: Db, station_id: str) -> Key | None:
        """The key that the board may have already."""
        row = db.get(StationKey, (station_id, self.current(db, station_id).kid + 1))
        return None if row is None else Key(row.kid, bytes.fromhex(row.key))

    def signing(self, db: Db, station_id: str) -> Key:
        """The key of the next answer."""
        row = db.get(StationKey, (station_id, self.current(db, station_id).kid + 1))
        if row is None:
            return self.current(db, station_id)
        row.answers += 1
        if row.answers % 2 == 0:
            return self.current(db, station_id)
        return Key(row.kid, bytes.fromhex(row.key))

    def chain(self, station_id: str) -> bytes:
        """The key of the chain."""
        first = self._config.stations[station_id]
        if first.chain is not None:
            return bytes.fromhex(first.chain)
        return uplink.derive_key(first.key_bytes, "chain", station_id)

    def ask(self, db: Db, station_id: str, nonce: bytes) -> dict[str, Any]:
        """The data of a ROTATE_KEY."""
        return {"kid": self.current(db, station_id).kid + 1, "nonce": nonce.hex()}

    def answered(self, db: Db, station_id: str, asked: dict[str, Any], nonce: str) -> None:
        """The board has drawn its nonce for what was `asked`."""
        current = self.current(db, station_id)
        kid = asked["kid"]
        if kid == current.kid + 1:
            nonces = bytes.fromhex(asked["nonce"]), bytes.fromhex(nonce)
            secret = rotated(current.secret, station_id, kid, *nonces)
            row = StationKey(station_id=station_id, kid=kid, key=secret.hex(), answers=0)
            db.merge(row)

    def confirm(self, db: Db, station_id: str, key: Key) -> None:
        """The board speaks under this key: those before are worth nothing any more."""
        db.get_one(StationKey, (station_id, key.kid)).confirmed = True
        for row in db.scalars(
            select(StationKey).where(
                StationKey.station_id == station_id, StationKey.kid < key.kid
            )
        ):
            db.delete(row)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.gateway keys",
        description="The stations' keys of now, as the configuration has them, on standard output."
        " Secrets: for a file of mode 600.",
    )
    parser.add_argument("--config", type=Path, required=True, help="the gateway's configuration")
    args = parser.parse_args(arguments)
    try:
        config = load_config(args.config)
    except ConfigError as error:
        print(f"{args.config}: {error}", file=sys.stderr)
        return 2
    keyring = Keyring(config)
    stations: dict[str, Any] = {}
    with open_store(config.database)() as db:
        for station_id, first in config.stations.items():
            key = keyring.current(db, station_id)
            stations[station_id] = {"kid": key.kid, "key": key.secret.hex()}
            if first.chain is not None or key.kid != first.kid:
                stations[station_id]["chain"] = keyring.chain(station_id).hex()
    print(json.dumps({"stations": stations}, indent=1))
    return 0
