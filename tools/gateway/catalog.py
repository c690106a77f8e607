"""Places and prices: the configured Locations and Tariffs with their living parts.

Purpose: find the EVSE of a board and the board of an EVSE; show a Location as OCPI wants it.
Theory: what never moves comes from the configuration, `status` and `last_updated` from the store.
A change of an EVSE is a change of its Location; a changed configuration is news too, found by
its digest at the start. Ids are case-insensitive (CiString).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tools.gateway import ocpi
from tools.gateway.config import Config, EvseConfig, LocationConfig
from tools.gateway.store import Evse, LocationRow, Station, TariffRow

FIXED = ("PLANNED", "REMOVED")  # said by the configuration, whatever a board says


@dataclass(frozen=True)
class Place:
    location: LocationConfig
    evse: EvseConfig


class Catalog:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.locations = {location.id.lower(): location for location in config.locations}
        places = [Place(loc, evse) for loc in config.locations for evse in loc.evses]
        self._by_uid = {place.evse.uid.lower(): place for place in places}
        self._by_board = {
            (place.evse.board.station_id, place.evse.board.evse): place for place in places
        }
        self.tariffs = {tariff.id.lower(): tariff for tariff in config.tariffs}

    def location(self, location_id: str) -> LocationConfig | None:
        return self.locations.get(location_id.lower())

    def place(self, uid: str) -> Place | None:
        return self._by_uid.get(uid.lower())

    def at_board(self, station_id: str, evse: int) -> Place | None:
        return self._by_board.get((station_id, evse))

    def show_tariff(self, db: Session, tariff_id: str) -> dict[str, Any] | None:
        tariff = self.tariffs.get(tariff_id.lower())
        if tariff is None:
            return None
        stamp_ms = db.get_one(TariffRow, tariff.id).last_updated_ms
        return tariff.dump() | {"last_updated": ocpi.format_datetime(stamp_ms)}

    # --- the living part

    def install(self, db: Session, now_ms: int) -> None:
        """Rows for what is configured; news for what changed since the last start."""
        for station_id in self.config.stations:
            if db.get(Station, station_id) is None:
                db.add(Station(id=station_id))
        db.flush()
        for location in self.config.locations:
            changed = _install(db, LocationRow, location.id, location.model_dump_json(), now_ms)
            for evse in location.evses:
                row = db.get(Evse, evse.uid)
                fixed = evse.status if evse.status in FIXED else None
                if row is None:
                    row = Evse(uid=evse.uid, status=fixed or "UNKNOWN", last_updated_ms=now_ms)
                    db.add(row)
                elif changed:
                    row.last_updated_ms = max(now_ms, row.last_updated_ms + 1)
                row.location_id = location.id
                row.station_id = evse.board.station_id
                row.evse = evse.board.evse
        for tariff in self.config.tariffs:
            _install(db, TariffRow, tariff.id, tariff.model_dump_json(), now_ms)

    def show_evse(self, db: Session, place: Place) -> dict[str, Any]:
        row = db.get_one(Evse, place.evse.uid)
        stamp = ocpi.format_datetime(row.last_updated_ms)
        shown = place.evse.model_dump(exclude_none=True, exclude={"board"})
        shown |= {"status": row.status, "last_updated": stamp}
        for connector in shown["connectors"]:
            connector["last_updated"] = stamp
        return shown

    def show_location(self, db: Session, location: LocationConfig) -> dict[str, Any]:
        row = db.get_one(LocationRow, location.id)
        shown = location.model_dump(exclude_none=True, exclude={"evses"})
        shown["evses"] = [self.show_evse(db, Place(location, evse)) for evse in location.evses]
        shown["last_updated"] = ocpi.format_datetime(row.last_updated_ms)
        return shown

    def location_rows(self, db: Session) -> list[LocationRow]:
        return [row for row in db.scalars(select(LocationRow)) if self.location(row.id)]


def _install(
    db: Session, table: type[LocationRow] | type[TariffRow], key: str, text: str, now_ms: int
) -> bool:
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = db.get(table, key)
    if row is None:
        db.add(table(id=key, digest=digest, last_updated_ms=now_ms))
    elif row.digest != digest:
        row.digest = digest
        row.last_updated_ms = max(now_ms, row.last_updated_ms + 1)
        return True
    return False
