"""Where to reserve or start: an EVSE that is named, or the best one of a Location.

Theory: a board that cannot be reached is no place, and neither is an EVSE that the configuration
calls planned or removed. Where an eMSP names none, a free one comes first; one that is taken or
broken is still asked when there is no other, for the board's word is the truth and the picture
here may be old.
"""

from __future__ import annotations

from collections.abc import Container

from sqlalchemy.orm import Session as Db

from tools.gateway.catalog import FIXED, Catalog, Place
from tools.gateway.config import EvseConfig, LocationConfig
from tools.gateway.store import Evse, Station

_RANK = {"AVAILABLE": 0, "CHARGING": 1, "RESERVED": 2}
OUT_OF_SERVICE = ("INOPERATIVE", "OUTOFORDER")
Spot = tuple[str, int]  # station, EVSE of the board


def reachable(db: Db, station_id: str) -> bool:
    station = db.get_one(Station, station_id)
    return station.online and station.quarantine is None


def able(evse: EvseConfig, capability: str) -> bool:
    return capability in (evse.capabilities or [])


def spot(place: Place) -> Spot:
    return place.evse.board.station_id, place.evse.board.evse


def choose(db: Db, location: LocationConfig, capability: str) -> Place | None:
    """The best EVSE of the Location that has the capability and can be asked."""
    places = [
        place
        for place in _places(location, capability)
        if reachable(db, place.evse.board.station_id)
    ]
    return min(places, key=lambda place: _RANK.get(_status(db, place), 3), default=None)


def free(db: Db, catalog: Catalog, location_id: str, tried: Container[Spot]) -> Place | None:
    """An EVSE of the Location that can be reserved now and is none of `tried`."""
    location = catalog.location(location_id)
    if location is None:
        return None
    for place in _places(location, "RESERVABLE"):
        if spot(place) not in tried and _status(db, place) == "AVAILABLE":
            return place
    return None


def _places(location: LocationConfig, capability: str) -> list[Place]:
    return [
        Place(location, evse)
        for evse in location.evses
        if evse.status not in FIXED and able(evse, capability)
    ]


def _status(db: Db, place: Place) -> str:
    return db.get_one(Evse, place.evse.uid).status
