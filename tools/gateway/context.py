"""What the parts of a running gateway share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx
from sqlalchemy.orm import Session as Db
from sqlalchemy.orm import sessionmaker

from tools.gateway.bookings import Bookings
from tools.gateway.catalog import Catalog
from tools.gateway.config import Config
from tools.gateway.desk import Desk
from tools.gateway.southbound import Southbound


@dataclass
class Context:
    config: Config
    base_url: str  # without a trailing slash
    store: sessionmaker[Db]
    catalog: Catalog
    desk: Desk
    bookings: Bookings
    southbound: Southbound
    client: httpx.AsyncClient
    now_ms: Callable[[], int]
    wake: Callable[[], None]  # there is something new in the outbox
