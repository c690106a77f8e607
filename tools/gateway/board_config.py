"""The board's ``config.json`` as a model, for its published schema.

Purpose: one description for tools that check a config before it reaches a board. The board has
its own, smaller check; it trusts no tool.
Limits: which meters and boards exist is known where they are described, not here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,36}$")]
_BYTE = "0*(25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
Port = Annotated[int, Field(ge=1, le=65535)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Network(Strict):
    kind: Literal["wifi", "lan"]


class MqttLink(Strict):
    kind: Literal["mqtt"]
    host: Annotated[str, Field(min_length=1)]
    port: Port = 8883
    insecure: bool = False
    sntp: str = "pool.ntp.org"


class HttpLink(Strict):
    kind: Literal["http"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s?#@/]+(/[^\s?#@]*)?$")]
    insecure: bool = False
    sntp: str = "pool.ntp.org"


class RtuBus(Strict):
    kind: Literal["rtu"]
    uart: Annotated[int, Field(ge=0, le=9)]
    baud: Annotated[int, Field(ge=1200, le=115200)] = 9600
    parity: Literal["N", "E", "O"] = "N"
    stop: Literal[1, 2] = 1


class TcpBus(Strict):
    kind: Literal["tcp"]
    host: Annotated[str, Field(pattern=rf"^{_BYTE}(\.{_BYTE}){{3}}$")]
    port: Port = 502


class PulseBus(Strict):
    kind: Literal["pulse"]
    pin: Annotated[int, Field(ge=0, le=99)]
    imp_per_kwh: Annotated[int, Field(ge=100, le=10000)]


class EvseConfig(Strict):
    n: Annotated[int, Field(ge=1, le=99)]
    meter: Name
    bus: Name
    unit: Annotated[int, Field(ge=1, le=247)] | None = None
    max_a: Annotated[int, Field(ge=1, le=500)]
    phases: Literal[1, 2, 3]
    require_meter: bool = True
    on_power_return: Literal["resume", "stop"] = "resume"
    clock_lost: Literal["hold", "release"] = "hold"
    free_vend: bool = False
    plug_first: bool = False
    overstay: Literal["stop", "charge"] = "stop"


class BoardConfig(Strict):
    """``config.json``; secrets live in ``secrets.json``."""

    station_id: Name
    board: Name
    network: Annotated[
        Network | None, Field(description="what the board has by default; lan where it has it")
    ] = None
    link: Annotated[MqttLink | HttpLink, Field(discriminator="kind")]
    buses: dict[Name, Annotated[RtuBus | TcpBus | PulseBus, Field(discriminator="kind")]]
    evses: Annotated[list[EvseConfig], Field(min_length=1)]
    live_s: Annotated[int, Field(ge=1, le=3600, description="over HTTP 10 by default")] = 60
    bookings: bool = False
    offline_cards: Literal["refuse", "whitelist"] = "refuse"
