"""The test eMSP notices what OCPI does not allow: else its silence would prove nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_tests.gateway_kit import TOKEN_A, Gateway, Server, board_token, until
from host_tests.uplink_peer import Board
from tools.emsp.__main__ import DEMO
from tools.emsp.app import Emsp, create_app
from tools.emsp.book import Book

PATH = "sessions/BE/BEC/S1"


class Pair:
    """A gateway and the eMSP in this process, registered with each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway = Gateway(folder)
        self.start()

    def start(self, port: int = 0) -> None:
        def make(url: str) -> Any:
            book = Book(self.folder / "emsp")
            self.emsp = Emsp(book, url, DEMO, self.gateway.versions_url, TOKEN_A)
            return create_app(self.emsp)

        self.server = Server(make, port)
        until(lambda: self.state()["ready"])

    def close(self) -> None:
        self.server.stop()
        self.gateway.stop()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.server.url}/admin/state").json()
        return found

    def violations(self) -> list[str]:
        return [entry["what"] for entry in self.state()["violations"]]

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: bytes | None = None,
        **headers: str,
    ) -> httpx.Response:
        """A request as the CPO would send it, except for `headers`."""
        token = base64.b64encode(str(self.emsp.state.token_b).encode()).decode()
        sent = {
            "Authorization": f"Token {token}",
            "X-Request-ID": "1",
            "X-Correlation-ID": "2",
            "OCPI-from-country-code": "BE",
            "OCPI-from-party-id": "BEC",
            "OCPI-to-country-code": "NL",
            "OCPI-to-party-id": "EMS",
            "Content-Type": "application/json",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in sent.items() if value}
        if body is not None:
            content = json.dumps(body).encode()
        url = f"{self.server.url}/ocpi/emsp/2.2.1/{path}"
        return httpx.request(method, url, content=content, headers=sent)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def session(**changes: Any) -> dict[str, Any]:
    return {
        "country_code": "BE",
        "party_id": "BEC",
        "id": "S1",
        "start_date_time": "2026-01-01T12:00:00Z",
        "kwh": 1.5,
        "cdr_token": board_token() | {"contract_id": "C1"},
        "auth_method": "COMMAND",
        "location_id": "LOC1",
        "evse_uid": "E1",
        "connector_id": "1",
        "currency": "EUR",
        "status": "ACTIVE",
        "last_updated": "2026-01-01T12:00:00.500Z",
    } | changes


def cdr(**changes: Any) -> dict[str, Any]:
    return {
        "country_code": "BE",
        "party_id": "BEC",
        "id": "S1",
        "start_date_time": "2026-01-01T12:00:00Z",
        "end_date_time": "2026-01-01T13:00:00Z",
        "session_id": "S1",
        "cdr_token": board_token() | {"contract_id": "C1"},
        "auth_method": "COMMAND",
        "cdr_location": {
            "id": "LOC1",
            "address": "A 1",
            "city": "Gent",
            "country": "BEL",
            "coordinates": {"latitude": "51.047599", "longitude": "3.729944"},
            "evse_uid": "E1",
            "evse_id": "BE*BEC*E1",
            "connector_id": "1",
            "connector_standard": "IEC_62196_T2",
            "connector_format": "SOCKET",
            "connector_power_type": "AC_3_PHASE",
        },
        "currency": "EUR",
        "charging_periods": [
            {
                "start_date_time": "2026-01-01T12:00:00Z",
                "dimensions": [{"type": "ENERGY", "volume": 12.345}],
            }
        ],
        "total_cost": {"excl_vat": 0},
        "total_energy": 12.345,
        "total_time": 1,
        "last_updated": "2026-01-01T13:00:00Z",
    } | changes


def test_it_is_registered_and_in_sync(pair: Pair) -> None:
    state = pair.state()
    assert set(state["evses"]) == {"E1", "E2"} and state["violations"] == []
    assert "token_b" not in state and set(state["tokens"]) == {"alice", "bob"}
    board = Board()
    board.hello()
    board.authorize = {"evse": 1, "type": "RFID", "uid": state["tokens"]["alice"]["uid"]}
    pair.gateway.talk(board)
    assert board.take("AUTHORIZE")["data"]["allowed"] == "ALLOWED"


def test_a_restarted_emsp_is_still_registered(pair: Pair) -> None:
    """On another port: it renews its credentials (PUT), the gateway pushes there."""
    pair.send("PUT", PATH, session())
    pair.server.stop()
    pair.start()
    assert pair.state()["sessions"]["S1"]["kwh"] == 1.5
    board = Board()
    board.hello()
    board.status("AVAILABLE")
    pair.gateway.talk(board)
    until(lambda: pair.state()["evses"]["E1"]["status"] == "AVAILABLE")
    assert pair.violations() == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kwh": "1.5"}, "kwh"),
        ({"kwh": 12.344999999999999}, "kwh"),  # what a float leaves behind
        ({"status": "RESERVED"}, "status"),  # the standard's prose; the enum says RESERVATION
        ({"start_date_time": "2026-01-01T12:00:00+00:00"}, "start_date_time"),
        ({"start_date_time": "2026-01-01T12:00:00.123456Z"}, "start_date_time"),
        ({"cdr_token": board_token()}, "contract_id"),
        ({"auth_method": "CARD"}, "auth_method"),
        ({"evse_uid": "x" * 37}, "evse_uid"),
        ({"currency": "EURO"}, "currency"),
        ({"status": "COMPLETED"}, "end_date_time"),
        (
            {"charging_periods": [{"start_date_time": "2026-01-01T12:00:00Z", "dimensions": []}]},
            "dimensions",
        ),
        ({"energy": 1}, "energy"),
    ],
)
def test_wrong_sessions(pair: Pair, changes: dict[str, Any], named: str) -> None:
    reply = pair.send("PUT", PATH, session(**changes))
    assert reply.status_code == 200 and reply.json()["status_code"] == 2001
    assert any(named in what for what in pair.violations())
    assert pair.state()["sessions"] == {}


@pytest.mark.parametrize(
    ("first", "then", "what"),
    [
        ({}, {"kwh": 1.4}, "kwh falls"),
        ({}, {"last_updated": "2026-01-01T11:59:59Z"}, "last_updated goes back"),
        ({"status": "COMPLETED", "end_date_time": "2026-01-01T13:00:00Z"}, {"kwh": 2}, "changes"),
        ({}, {"status": "RESERVATION"}, "becomes"),
    ],
)
def test_a_story_that_goes_back(
    pair: Pair, first: dict[str, Any], then: dict[str, Any], what: str
) -> None:
    assert pair.send("PUT", PATH, session(**first)).status_code == 201
    change = {"last_updated": "2026-01-01T12:00:01Z"} | then
    pair.send("PATCH", PATH, change)
    assert any(what in entry for entry in pair.violations())


def test_patch_adds_periods_and_wants_last_updated(pair: Pair) -> None:
    period = {
        "start_date_time": "2026-01-01T12:00:00Z",
        "dimensions": [{"type": "ENERGY", "volume": 1}],
    }
    pair.send("PUT", PATH, session(charging_periods=[period]))
    later = period | {"start_date_time": "2026-01-01T12:15:00Z"}
    change = {"charging_periods": [later], "last_updated": "2026-01-01T12:15:00Z"}
    assert pair.send("PATCH", PATH, change).json()["status_code"] == 1000
    assert len(pair.send("GET", PATH).json()["data"]["charging_periods"]) == 2
    assert pair.send("PATCH", PATH, {"kwh": 3}).json()["status_code"] == 2001
    assert pair.send("PATCH", "sessions/BE/BEC/NONE", change).status_code == 404
    assert pair.send("GET", "sessions/BE/BEC/NONE").status_code == 404
    assert pair.send("PUT", "sessions/BE/XXX/S1", session()).status_code == 404
    assert pair.send("PUT", "sessions/BE/BEC/S2", session()).json()["status_code"] == 2001


def test_cdrs_come_once(pair: Pair) -> None:
    reply = pair.send("POST", "cdrs", cdr())
    assert reply.status_code == 201
    assert pair.send("GET", reply.headers["Location"].split("2.2.1/")[1]).json()["data"] == cdr()
    assert pair.send("POST", "cdrs", cdr()).status_code == 200  # the same bytes: a retry
    assert pair.violations() == []
    assert pair.send("POST", "cdrs", cdr(remark="other")).json()["status_code"] == 2001
    assert pair.send("PUT", "cdrs", cdr()).status_code == 405
    assert any("other bytes" in what for what in pair.violations())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"total_energy": 12.346}, "periods sum to"),
        ({"charging_periods": []}, "charging_periods"),
        ({"end_date_time": "2026-01-01T11:00:00Z"}, "end_date_time"),
        ({"id": "x" * 37}, "credit"),
        ({"total_cost": 5}, "total_cost"),
        (
            {
                "charging_periods": [
                    {
                        "start_date_time": "2026-01-01T12:00:00Z",
                        "dimensions": [{"type": "CURRENT", "volume": 16}],
                    }
                ]
            },
            "dimensions",
        ),
    ],
)
def test_wrong_cdrs(pair: Pair, changes: dict[str, Any], named: str) -> None:
    assert pair.send("POST", "cdrs", cdr(**changes)).json()["status_code"] == 2001
    assert any(named in what for what in pair.violations())
    assert pair.state()["cdrs"] == {}


def test_command_results(pair: Pair) -> None:
    board = Board()
    board.hello()
    pair.gateway.talk(board)
    body = {"type": "START_SESSION", "driver": "alice", "location_id": "LOC1", "evse_uid": "E1"}
    asked = httpx.post(f"{pair.server.url}/admin/commands", json=body).json()
    assert asked["response"]["result"] == "ACCEPTED"
    path = f"commands/START_SESSION/{asked['id']}"
    assert pair.send("POST", path, {"result": "OK"}).json()["status_code"] == 2001
    assert pair.send("POST", path, {"result": "ACCEPTED"}).json()["status_code"] == 1000
    pair.send("POST", path, {"result": "FAILED"})
    assert (
        pair.send("POST", "commands/START_SESSION/none", {"result": "FAILED"}).json()[
            "status_code"
        ]
        == 2001
    )
    what = pair.violations()
    assert len(what) == 3 and "second result FAILED" in what[1] and "unknown command" in what[2]


def test_transport(pair: Pair) -> None:
    assert pair.send("GET", PATH, Authorization="Token nonsense").status_code == 401
    raw = str(pair.emsp.state.token_b)
    assert pair.send("GET", PATH, Authorization=f"Token {raw}").status_code == 401  # not base64
    assert pair.violations() == []
    pair.send("PUT", PATH, session(), X_Request_ID="")
    pair.send("PUT", PATH, session(), OCPI_from_party_id="XXX")
    pair.send("PUT", PATH, session(), Content_Type="text/plain")
    assert pair.send("PUT", PATH, content=b"{").status_code == 400
    what = pair.violations()
    assert [
        part in entry
        for part, entry in zip(
            ("X-Request-ID", "routing headers", "Content-Type", "no JSON"), what, strict=True
        )
    ] == [True] * 4


def test_everything_is_in_the_log(pair: Pair) -> None:
    pair.send("PUT", PATH, session())
    lines = (pair.folder / "emsp" / "log.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert all(event["at_ms"] > 0 for event in events)
    mine = [e for e in events if e["event"] == "request" and e.get("path", "").endswith("S1")]
    assert [(e["method"], e["http"], e["violations"]) for e in mine] == [("PUT", 201, 0)]
    assert json.loads(mine[0]["body"])["id"] == "S1"


def test_pull(pair: Pair) -> None:
    board = Board()
    board.hello()
    uid = pair.state()["tokens"]["alice"]["uid"]
    board.start("S1", board_token(uid))
    board.period("S1", 12_345, 60_000)
    board.stop("S1")
    pair.gateway.talk(board)
    url = f"{pair.server.url}/admin/pull"
    assert [s["id"] for s in httpx.post(f"{url}/sessions").json()] == ["S1"]
    assert [c["total_energy"] for c in httpx.post(f"{url}/cdrs").json()] == [12.345]
    until(lambda: pair.state()["cdrs"])
    assert pair.violations() == []


def test_an_invalidated_token_is_blocked(pair: Pair) -> None:
    httpx.post(f"{pair.server.url}/admin/tokens/bob", json={"valid": False})
    board = Board()
    board.hello()
    board.authorize = {"evse": 1, "type": "RFID", "uid": pair.state()["tokens"]["bob"]["uid"]}
    pair.gateway.talk(board)
    assert board.take("AUTHORIZE")["data"]["allowed"] == "BLOCKED"
