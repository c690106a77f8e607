"""The main job between a board and an eMSP, each a process of its own, over MQTT and HTTP."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_tests.gateway_kit import ADMIN, TOKEN_A, config_of, process, until
from host_tests.uplink_peer import Board, MqttBoard
from tools.gateway.schema import validate_down, validate_up


def emsp_state(url: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(
        httpx.get(f"{url}/admin/state").content, parse_float=Decimal
    )
    return state


def order(url: str, **body: Any) -> dict[str, Any]:
    reply = httpx.post(f"{url}/admin/commands", json=body, timeout=15)
    assert reply.status_code == 200, reply.text
    entry: dict[str, Any] = reply.json()
    return entry


def test_reservation_charge_power_cut_cdr(tmp_path: Path) -> None:
    """RESERVE_NOW to CDR with a power cut in the charge: one id, every Wh, no violation."""
    with process("tools.broker", "--port", "0") as (_, broker):
        config = config_of(
            tmp_path,
            mqtt={"host": "127.0.0.1", "port": broker["port"], "tls": False},
            tariffs=[
                {
                    "id": "12",
                    "currency": "EUR",
                    "elements": [
                        {"price_components": [{"type": "ENERGY", "price": 0.25, "step_size": 1}]}
                    ],
                }
            ],
        )
        config["locations"][0]["evses"][0]["connectors"][0]["tariff_ids"] = ["12"]
        file = tmp_path / "gateway.json"
        file.write_text(json.dumps(config))
        with process("tools.gateway", "--config", str(file)) as (_, gateway):
            emsp_args = ("--cpo-versions-url", gateway["versions_url"], "--token-a", TOKEN_A)
            with process(
                "tools.emsp", "--port", "0", *emsp_args, "--state", str(tmp_path / "emsp")
            ) as (_, emsp):
                _story(broker["port"], f"http://127.0.0.1:{gateway['port']}", emsp["url"])


def _story(broker_port: int, gateway_url: str, emsp_url: str) -> None:
    until(lambda: emsp_state(emsp_url)["ready"])
    assert emsp_state(emsp_url)["evses"]["E1"]["status"] == "UNKNOWN"
    admin = {"Authorization": f"Bearer {ADMIN}"}
    until(lambda: httpx.get(f"{gateway_url}/admin/stations", headers=admin).json()["mqtt"])

    board = Board()
    board.hello()
    board.status("AVAILABLE")
    mqtt = MqttBoard(board, broker_port)
    try:
        mqtt.until(lambda: board.acked == len(board.records))
        until(lambda: emsp_state(emsp_url)["evses"]["E1"]["status"] == "AVAILABLE")

        asked = order(
            emsp_url,
            type="RESERVE_NOW",
            driver="alice",
            location_id="LOC1",
            evse_uid="E1",
            reservation_id="R1",
            expiry_s=900,
            authorization_reference="AUTH-1",
        )
        assert asked["response"]["result"] == "ACCEPTED"
        mqtt.until(lambda: bool(board.commands))
        command = board.take("RESERVE_NOW")
        assert command["data"]["reservation_id"] != "R1"
        with mqtt.news:
            board.reserve(command, "S1")
        mqtt.until(lambda: board.acked == len(board.records))
        until(lambda: emsp_state(emsp_url)["commands"][asked["id"]]["results"])
        results = emsp_state(emsp_url)["commands"][asked["id"]]["results"]
        assert [result["result"] for result in results] == ["ACCEPTED"]
        until(lambda: emsp_state(emsp_url)["evses"]["E1"]["status"] == "RESERVED")
        until(lambda: "S1" in emsp_state(emsp_url)["sessions"])
        assert emsp_state(emsp_url)["sessions"]["S1"]["status"] == "RESERVATION"

        with mqtt.news:
            board.sleep(60_000)
            board.start("S1", command["data"]["token"], source="card", auth_method="COMMAND")
            board.live["1"] |= {"session": "S1", "wh": 1200, "w": 11000}
        mqtt.until(lambda: board.acked == len(board.records))
        until(lambda: emsp_state(emsp_url)["sessions"]["S1"]["kwh"] == Decimal("1.2"))

        with mqtt.news:
            board.period("S1", 2345, 900_000, max_w=11_040)
            cut = board.now()
        mqtt.vanish()
        until(lambda: emsp_state(emsp_url)["evses"]["E1"]["status"] == "UNKNOWN")
        assert emsp_state(emsp_url)["sessions"]["S1"]["status"] == "ACTIVE"

        board.unix_ms += 30_000
        board.power_up()
        board.live = {}
        board.hello()
        board.period("S1", 5, 2_000, "not_offered", begin=cut)
        board.write("event", what="resumed", evse=1, session_id="S1", resumes=1)
        board.status("CHARGING", plugged=True, session_id="S1")
        mqtt = MqttBoard(board, broker_port)
        mqtt.until(lambda: board.acked == len(board.records))
        with mqtt.news:
            board.period("S1", 9995, 600_000)
        mqtt.until(lambda: board.acked == len(board.records))
        until(lambda: emsp_state(emsp_url)["sessions"]["S1"]["kwh"] == Decimal("12.345"))

        asked = order(emsp_url, type="STOP_SESSION", session_id="S1")
        assert asked["response"]["result"] == "ACCEPTED"
        mqtt.until(lambda: bool(board.commands))
        command = board.take("STOP_SESSION")
        with mqtt.news:
            board.stop("S1")
            board.result(command, "ACCEPTED", session_id="S1")
        mqtt.until(lambda: board.acked == len(board.records))
        cdr = until(lambda: emsp_state(emsp_url)["cdrs"].get("S1"))
        until(lambda: emsp_state(emsp_url)["sessions"]["S1"]["status"] == "COMPLETED")
        validate_up(board.last_up)
    finally:
        mqtt.close()

    final = emsp_state(emsp_url)
    assert cdr["total_energy"] == Decimal("12.345")
    # 12.345 kWh at 0.25 EUR, to OCPI's four decimals
    assert cdr["total_cost"] == {"excl_vat": Decimal("3.0863")}
    assert cdr["authorization_reference"] == "AUTH-1"
    assert cdr["cdr_token"]["contract_id"] == "NL-EMS-C00000001-A"
    kinds = [
        [dimension["type"] for dimension in period["dimensions"]]
        for period in cdr["charging_periods"]
    ]
    assert kinds == [
        ["RESERVATION_TIME"],
        ["ENERGY", "TIME", "MAX_POWER"],
        ["ENERGY"],
        ["ENERGY", "TIME"],
    ]
    assert list(final["sessions"]) == ["S1"]
    assert final["sessions"]["S1"]["kwh"] == Decimal("12.345")
    assert final["violations"] == []


def test_down_messages_satisfy_the_schemas() -> None:
    """The schema check itself notices a wrong message."""
    with pytest.raises(Exception, match="64 lower-case hex"):
        validate_down(b"zz\n{}")
