"""OCPI 2.2.1, CPO side: registration, pages, tokens, commands, and the standard's answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_tests.gateway_kit import (
    TOKEN_A,
    Client,
    Clock,
    FakeEmsp,
    Gateway,
    board_token,
    config_of,
    token,
    until,
)
from host_tests.uplink_peer import Board
from tools.emsp import models

ENDPOINTS = {
    ("credentials", "SENDER"),
    ("locations", "SENDER"),
    ("sessions", "SENDER"),
    ("cdrs", "SENDER"),
    ("tariffs", "SENDER"),
    ("tokens", "RECEIVER"),
    ("commands", "RECEIVER"),
}


class Site:
    """A gateway, a registered eMSP, and a board that is online."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.gateway = Gateway(folder, Clock(), **changes)
        self.emsp = FakeEmsp()
        self.client: Client = self.emsp.register(self.gateway)
        self.board = Board()
        self.board.hello()
        self.board.status("AVAILABLE")
        self.talk()

    def talk(self) -> None:
        self.gateway.talk(self.board)

    def url(self, number: int = 1) -> str:
        return f"{self.emsp.url}/results/{number}"

    def date(self, ahead_s: int) -> str:
        moment = datetime.fromtimestamp(self.gateway.clock() / 1000, UTC)
        return f"{moment + timedelta(seconds=ahead_s):%Y-%m-%dT%H:%M:%SZ}"

    def reserve_body(self, **changes: Any) -> dict[str, Any]:
        return {
            "response_url": self.url(),
            "token": token(),
            "expiry_date": self.date(900),
            "reservation_id": "R1",
            "location_id": "LOC1",
            "evse_uid": "E1",
        } | changes

    def command(self, kind: str, body: dict[str, Any], client: Client | None = None) -> str:
        """The CommandResponse's result; HTTP and status code must be a success."""
        http, code, data = (client or self.client).ask("POST", f"commands/{kind}", body)
        assert (http, code) == (200, 1000)
        models.CommandResponse.model_validate(data)
        result: str = data["result"]
        return result

    def results(self, number: int = 1) -> list[str]:
        return [body["result"] for body in self.emsp.pushes("POST", f"results/{number}")]

    def charge(self, session_id: str = "S1") -> None:
        self.board.start(session_id, board_token())
        self.talk()

    def close(self) -> None:
        self.gateway.stop()
        self.emsp.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


# --- transport


def test_versions_and_details(site: Site) -> None:
    _, code, versions = site.client.ask("GET", site.gateway.versions_url)
    assert code == 1000 and [entry["version"] for entry in versions] == ["2.2.1"]
    _, _, details = site.client.ask("GET", versions[0]["url"])
    models.VersionDetails.model_validate(details)
    assert {(e["identifier"], e["role"]) for e in details["endpoints"]} == ENDPOINTS
    for entry in details["endpoints"]:
        if entry["role"] == "SENDER":
            http, code, _ = site.client.ask("GET", entry["url"])
            assert (http, code) == (200, 1000), entry


def test_slashes_are_up_to_the_client(site: Site) -> None:
    """`{commands_endpoint_url}{command}`, but `{locations_endpoint_url}/{location_id}`."""
    _, _, details = site.client.ask("GET", f"{site.gateway.url}/ocpi/2.2.1/")
    urls = {entry["identifier"]: entry["url"] for entry in details["endpoints"]}
    for url in (urls["locations"] + "/", urls["locations"] + "/?limit=1", urls["locations"]):
        reply = site.client.raw("GET", url)
        assert reply.status_code == 200 and len(reply.json()["data"]) == 1
    cancel = {"response_url": site.url(), "reservation_id": "NONE"}
    for url in (urls["commands"] + "CANCEL_RESERVATION", urls["commands"] + "/CANCEL_RESERVATION"):
        assert site.client.ask("POST", url, cancel)[2]["result"] == "ACCEPTED"


@pytest.mark.parametrize(
    "header",
    [None, "", "Token", "Token nonsense", "Bearer x", "Token " + "x" * 5000, "Token =="],
)
def test_a_bad_token_is_401_in_an_envelope(site: Site, header: str | None) -> None:
    for path in ("versions", "2.2.1/locations", "2.2.1/commands/START_SESSION", "2.2.1/nothing"):
        headers = {} if header is None else {"Authorization": header}
        method = "POST" if "commands" in path else "GET"
        reply = httpx.request(
            method, f"{site.gateway.url}/ocpi/{path}", headers=headers, content=b"{broken"
        )
        assert reply.status_code == 401
        models.Envelope.model_validate(reply.json())
        assert reply.json()["status_code"] == 2001


def test_a_token_is_taken_raw_and_in_base64(site: Site) -> None:
    """2.2 implementations send it raw; the standard's example even encodes a newline."""
    shown = site.client.token
    for value in (
        shown,
        base64.b64encode(shown.encode()).decode(),
        base64.b64encode(shown.encode() + b"\n").decode(),
    ):
        reply = httpx.get(
            f"{site.gateway.url}/ocpi/2.2.1/locations", headers={"Authorization": f"Token {value}"}
        )
        assert reply.status_code == 200


def test_broken_json_is_400_and_wrong_json_is_200(site: Site) -> None:
    path = "commands/RESERVE_NOW"
    for content in (b"", b"{", b'{"a":NaN}', b"\xff\xfe"):
        reply = site.client.raw("POST", path, content=content)
        assert reply.status_code == 400 and reply.json()["status_code"] == 2001
    for body in ({}, [], "text", 1, None, site.reserve_body(expiry_date="tomorrow")):
        reply = site.client.raw("POST", path, content=b"null" if body is None else None, body=body)
        assert reply.status_code == 200 and reply.json()["status_code"] == 2001
    assert "expiry_date" in reply.json()["status_message"]
    assert site.emsp.pushes("POST", "results") == []


def test_unknown_paths_and_methods_are_in_an_envelope(site: Site) -> None:
    assert site.client.ask("GET", "nothing")[0] == 404
    assert site.client.ask("POST", "commands/EXPLODE", {})[0] == 404
    assert site.client.ask("DELETE", "locations")[0] == 405
    assert site.client.ask("POST", "cdrs", {})[0] == 405


def test_message_ids_are_echoed_and_routing_headers_swapped(site: Site) -> None:
    sent = {
        "X-Request-ID": "r-1",
        "X-Correlation-ID": "c-1",
        "OCPI-from-country-code": "NL",
        "OCPI-from-party-id": "EMS",
        "OCPI-to-country-code": "BE",
        "OCPI-to-party-id": "BEC",
    }
    reply = site.client.raw("GET", "locations", headers=sent)
    back = {name: reply.headers[name] for name in sent}
    assert back == {
        "X-Request-ID": "r-1",
        "X-Correlation-ID": "c-1",
        "OCPI-from-country-code": "BE",
        "OCPI-from-party-id": "BEC",
        "OCPI-to-country-code": "NL",
        "OCPI-to-party-id": "EMS",
    }
    for path in (site.gateway.versions_url, "credentials"):
        reply = site.client.raw("GET", path, headers=sent)
        assert reply.headers["X-Request-ID"] == "r-1"
        assert "OCPI-from-party-id" not in reply.headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"OCPI-to-party-id": "XXX", "OCPI-to-country-code": "BE"},
        {"OCPI-from-party-id": "XXX", "OCPI-from-country-code": "NL"},
    ],
)
def test_routing_to_or_from_others_is_refused(site: Site, wrong: dict[str, str]) -> None:
    assert site.client.ask("GET", "sessions", headers=wrong)[:2] == (200, 2001)


# --- credentials


def test_registration_asks_back_before_it_answers(site: Site) -> None:
    """Token A is dead, B is what we show them, C what they show us."""
    dead = Client(site.gateway.url, TOKEN_A)
    assert dead.ask("GET", site.gateway.versions_url)[0] == 401
    assert dead.ask("POST", "credentials", site.emsp.credentials())[0] == 401
    http, code, mine = site.client.ask("GET", "credentials")
    models.Credentials.model_validate(mine)
    assert (http, code, mine["token"]) == (200, 1000, site.client.token)
    assert mine["roles"][0]["role"] == "CPO"
    assert site.client.ask("POST", "credentials", site.emsp.credentials())[0] == 405


def test_token_a_opens_versions_and_credentials_only(site: Site) -> None:
    client = Client(site.gateway.url, "registration-token-2")
    assert client.ask("GET", site.gateway.versions_url)[:2] == (200, 1000)
    assert client.ask("GET", "locations")[0] == 401
    assert client.ask("PUT", "credentials", site.emsp.credentials())[0] == 405
    assert client.ask("DELETE", "credentials")[0] == 405


def test_a_dead_token_stays_dead_over_a_restart(site: Site, tmp_path: Path) -> None:
    site.gateway.stop()
    site.gateway = Gateway(tmp_path, Clock())
    dead = Client(site.gateway.url, TOKEN_A)
    assert dead.ask("POST", "credentials", site.emsp.credentials())[0] == 401
    assert Client(site.gateway.url, site.client.token).ask("GET", "locations")[:2] == (200, 1000)


def test_registration_failures(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway, FakeEmsp() as emsp:
        client = Client(gateway.url, TOKEN_A)

        def post(**changes: Any) -> int:
            body = emsp.credentials() | changes
            http, code, _ = client.ask("POST", "credentials", body)
            assert http == 200
            return code

        assert post(url="http://127.0.0.1:9/versions") == 3001  # nobody there
        assert post(token="wrong") == 3001  # their versions refuse it
        assert post(url=f"{emsp.url}/elsewhere") == 3001
        emsp.versions = [{"version": "2.1.1", "url": f"{emsp.url}/2.1.1"}]
        assert post() == 3002
        emsp.versions = None
        emsp.modules = ["hubclientinfo"]
        assert post() == 3003
        emsp.modules = ["sessions"]
        assert post(token="has blank") == 2001
        assert post(roles=[]) == 2001
        assert post() == 1000  # token A lives until it succeeds


def test_credentials_are_renewed_and_revoked(site: Site) -> None:
    old = site.client
    site.emsp.token_b = "token-b-new"
    http, code, data = old.ask("PUT", "credentials", site.emsp.credentials())
    assert (http, code) == (200, 1000) and data["token"] != old.token
    assert old.ask("GET", "locations")[0] == 401
    new = Client(site.gateway.url, data["token"])
    site.charge()
    until(lambda: site.emsp.pushes("PUT", "sessions"))  # with the new token B
    assert new.ask("DELETE", "credentials")[:2] == (200, 1000)
    assert new.ask("GET", "locations")[0] == 401


def test_a_role_belongs_to_one_platform(site: Site) -> None:
    """Who registers another's country and party would receive its sessions."""
    thief = FakeEmsp(party_id="ems", country_code="nl")
    try:
        client = Client(site.gateway.url, "registration-token-2")
        assert client.ask("POST", "credentials", thief.credentials())[:2] == (200, 2001)
    finally:
        thief.stop()


# --- senders


def test_locations(site: Site) -> None:
    _, _, items = site.client.ask("GET", "locations")
    models.Location.model_validate(items[0])
    assert "board" not in items[0]["evses"][0]
    _, _, location = site.client.ask("GET", "locations/loc1")  # CiString
    assert location == items[0]
    _, _, evse = site.client.ask("GET", "locations/LOC1/E1")
    assert evse == items[0]["evses"][0] and evse["status"] == "AVAILABLE"
    _, _, connector = site.client.ask("GET", "locations/LOC1/E1/1")
    models.Connector.model_validate(connector)
    for path in ("locations/NONE", "locations/LOC1/NONE", "locations/LOC1/E1/9"):
        assert site.client.ask("GET", path)[:2] == (404, 2003)


def test_pages(site: Site) -> None:
    for number in range(7):
        site.board.start(f"S{number}", board_token())
        site.board.stop(f"S{number}")
        site.board.sleep(1000)
        site.talk()
    reply = site.client.raw("GET", "sessions?date_from=2020-01-01T00:00:00Z&limit=3")
    seen: list[str] = []
    while True:
        assert reply.headers["X-Total-Count"] == "7" and reply.headers["X-Limit"] == "100"
        seen += [session["id"] for session in reply.json()["data"]]
        link = reply.headers.get("Link")
        if link is None:
            break
        url = link.split(">")[0].lstrip("<")
        assert link.endswith('>; rel="next"') and "date_from=2020-01-01T00:00:00Z" in url
        reply = site.client.raw("GET", url)
    assert seen == [f"S{number}" for number in range(7)]
    _, _, cdrs = site.client.ask("GET", "cdrs?offset=5")
    assert [cdr["id"] for cdr in cdrs] == ["S5", "S6"]


def test_dates_window_last_updated(site: Site) -> None:
    """date_from is inclusive, date_to exclusive."""
    site.charge("S1")
    _, _, (session,) = site.client.ask("GET", "sessions")
    stamp = session["last_updated"]

    def count(query: str) -> int:
        return len(site.client.ask("GET", f"sessions?{query}")[2] or [])

    assert count(f"date_from={stamp}") == 1
    assert count(f"date_from=2020-01-01T00:00:00Z&date_to={stamp}") == 0
    assert count("date_from=2050-01-01T00:00:00") == 0
    for query in ("date_from=yesterday", "offset=-1", "limit=0", "limit=x", "offset=1.5"):
        assert site.client.ask("GET", f"sessions?{query}")[:2] == (200, 2001)


def test_a_party_sees_its_own_only(site: Site) -> None:
    other = FakeEmsp(party_id="OTH")
    try:
        client = other.register(site.gateway, "registration-token-2")
        site.charge("S1")
        site.board.stop("S1")
        site.talk()
        for module in ("sessions", "cdrs"):
            assert len(site.client.ask("GET", module)[2]) == 1
            reply = client.raw("GET", module)
            assert reply.json()["data"] == [] and reply.headers["X-Total-Count"] == "0"
        path = "tokens/NL/EMS/04A1B2C3D4E580"
        assert client.ask("PUT", path, token())[0] == 404
    finally:
        other.stop()


def test_tariffs(tmp_path: Path) -> None:
    tariff = {
        "id": "12",
        "currency": "EUR",
        "elements": [{"price_components": [{"type": "ENERGY", "price": 0.25, "step_size": 1}]}],
    }
    made = Site(tmp_path, tariffs=[tariff])
    try:
        http, code, items = made.client.ask("GET", "tariffs")
        assert (http, code) == (200, 1000)
        assert items[0]["elements"] == tariff["elements"] and items[0]["party_id"] == "BEC"
    finally:
        made.close()


def test_a_changed_configuration_is_news(tmp_path: Path) -> None:
    clock = Clock()
    with Gateway(tmp_path, clock) as gateway, FakeEmsp() as emsp:
        shown = emsp.register(gateway).token
    clock.advance(60_000)
    config = config_of(tmp_path)
    config["locations"][0]["name"] = "New name"
    with Gateway(tmp_path, clock, locations=config["locations"]) as gateway:
        client = Client(gateway.url, shown)
        _, _, (location,) = client.ask("GET", "locations")
        assert location["name"] == "New name"
        stamp = datetime.fromisoformat(location["last_updated"]).timestamp() * 1000
        assert stamp == clock()


# --- tokens


def test_tokens_are_kept(site: Site) -> None:
    path = "tokens/NL/EMS/04A1B2C3D4E580"
    assert site.client.ask("GET", path)[:2] == (404, 2004)
    assert site.client.ask("PUT", path, token())[:2] == (201, 1000)
    assert site.client.ask("PUT", path, token())[:2] == (200, 1000)
    _, _, held = site.client.ask("GET", path.lower().replace("tokens/nl/ems", "tokens/nl/ems"))
    assert held == token()
    assert site.client.ask("GET", path + "?type=APP_USER")[0] == 404
    change = {"valid": False, "last_updated": "2026-02-01T00:00:00Z"}
    assert site.client.ask("PATCH", path, change)[:2] == (200, 1000)
    assert site.client.ask("GET", path)[2]["valid"] is False
    assert site.client.ask("PATCH", path, {"valid": True})[:2] == (200, 2001)  # no last_updated
    assert site.client.ask("PATCH", "tokens/NL/EMS/NONE", change)[:2] == (404, 2004)


@pytest.mark.parametrize(
    ("path", "body", "http", "code"),
    [
        ("tokens/NL/EMS/OTHER", token(), 200, 2001),  # URL and body disagree
        ("tokens/NL/EMS/04A1B2C3D4E580?type=APP_USER", token(), 200, 2001),
        ("tokens/NL/EMS/04A1B2C3D4E580?type=MAGIC", token(), 200, 2001),
        ("tokens/NL/XXX/04A1B2C3D4E580", token(party_id="XXX"), 404, 2000),
        ("tokens/NL/EMS/04A1B2C3D4E580", token(whitelist="SOMETIMES"), 200, 2001),
        ("tokens/NL/EMS/04A1B2C3D4E580", token(contract_id="x" * 37), 200, 2001),
        (
            "tokens/NL/EMS/04A1B2C3D4E580",
            token(last_updated="2026-01-01T00:00:00+00:00"),
            200,
            2001,
        ),
    ],
)
def test_wrong_tokens(site: Site, path: str, body: Any, http: int, code: int) -> None:
    assert site.client.ask("PUT", path, body)[:2] == (http, code)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"whitelist": "ALWAYS"}, "ALLOWED"),
        ({"whitelist": "ALLOWED"}, "ALLOWED"),
        ({"whitelist": "ALLOWED_OFFLINE"}, "ALLOWED"),  # the eMSP cannot be asked
        ({"whitelist": "NEVER"}, "NOT_ALLOWED"),
        ({"whitelist": "ALLOWED", "valid": False}, "BLOCKED"),
        ({"whitelist": "NEVER", "valid": False}, "NOT_ALLOWED"),
        ({"type": "APP_USER"}, "NOT_ALLOWED"),  # a card never opens an app user's right
    ],
)
def test_authorize_by_the_tokens_received(
    site: Site, changes: dict[str, Any], allowed: str
) -> None:
    kind = changes.get("type", "RFID")
    site.client.ask("PUT", f"tokens/NL/EMS/04a1b2c3d4e580?type={kind}", token(**changes))
    site.board.authorize = {"evse": 1, "type": "RFID", "uid": "04A1B2C3D4E580"}
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    data = site.board.take("AUTHORIZE")["data"]
    assert data["allowed"] == allowed and data["evse"] == 1
    if allowed == "ALLOWED":
        assert data["token"] == board_token() and data["auth_method"] == "WHITELIST"
    else:
        assert "token" not in data


# --- commands


def test_reserve_now(site: Site) -> None:
    body = site.reserve_body(authorization_reference="REF-1")
    assert site.command("RESERVE_NOW", body) == "ACCEPTED"
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("RESERVE_NOW")
    data = command["data"]
    assert data["reservation_id"] != "R1" and len(data["reservation_id"]) <= 36
    assert data["token"] == board_token() and data["authorization_reference"] == "REF-1"
    wanted_ms = datetime.fromisoformat(body["expiry_date"]).timestamp() * 1000
    assert data["expiry_ms"] == wanted_ms
    assert site.results() == []
    site.board.reserve(command, "S1")
    site.talk()
    until(site.results)
    assert site.results() == ["ACCEPTED"]
    _, _, (session,) = site.client.ask("GET", "sessions")
    assert session["status"] == "RESERVATION"
    assert session["cdr_token"]["contract_id"] == "NL-EMS-C00000001-A"


def test_reservation_ids_are_per_sender_and_case_insensitive(tmp_path: Path) -> None:
    site = Site(tmp_path)
    other = FakeEmsp(party_id="OTH")
    try:
        client = other.register(site.gateway, "registration-token-2")
        assert site.command("RESERVE_NOW", site.reserve_body()) == "ACCEPTED"
        assert site.command("RESERVE_NOW", site.reserve_body(reservation_id="r1")) == "ACCEPTED"
        theirs = site.reserve_body(token=token(party_id="OTH"))
        assert site.command("RESERVE_NOW", theirs, client) == "ACCEPTED"
        site.board.write("event", what="supervisor", task="x")
        site.talk()
        ids = [command["data"]["reservation_id"] for command in site.board.commands]
        assert ids[0] == ids[1] != ids[2]
    finally:
        other.stop()
        site.close()


@pytest.mark.parametrize(
    ("kind", "changes", "code"),
    [
        ("RESERVE_NOW", {"location_id": "NONE"}, 2003),
        ("RESERVE_NOW", {"evse_uid": "NONE"}, 2001),
        ("START_SESSION", {"location_id": "NONE"}, 2003),
        ("START_SESSION", {"evse_uid": "NONE"}, 2001),
        ("START_SESSION", {"connector_id": "9"}, 2001),
        ("START_SESSION", {"connector_id": "1", "evse_uid": None}, 2001),
        ("UNLOCK_CONNECTOR", {"location_id": "NONE", "connector_id": "1"}, 2003),
        ("UNLOCK_CONNECTOR", {"evse_uid": "NONE", "connector_id": "1"}, 2001),
        ("UNLOCK_CONNECTOR", {"connector_id": "9"}, 2001),
    ],
)
def test_unknown_places(site: Site, kind: str, changes: dict[str, Any], code: int) -> None:
    body = {k: v for k, v in site.reserve_body(**changes).items() if v is not None}
    http, status, data = site.client.ask("POST", f"commands/{kind}", body)
    assert (http, status) == (200, code) and data["result"] == "REJECTED"
    models.CommandResponse.model_validate(data)


@pytest.mark.parametrize("kind", ["RESERVE_NOW", "START_SESSION"])
def test_a_token_of_another_is_rejected(site: Site, kind: str) -> None:
    body = site.reserve_body(token=token(party_id="OTH"))
    assert site.command(kind, body) == "REJECTED"


def test_a_past_expiry_is_rejected(site: Site) -> None:
    assert site.command("RESERVE_NOW", site.reserve_body(expiry_date=site.date(-1))) == "REJECTED"


def test_offline_is_rejected_at_once(site: Site) -> None:
    site.charge("S1")
    site.gateway.context.southbound.offline_hint("DEMO-1")
    stop = {"response_url": site.url(), "session_id": "S1"}
    unlock = {
        "response_url": site.url(),
        "location_id": "LOC1",
        "evse_uid": "E1",
        "connector_id": "1",
    }
    for kind, body in (
        ("RESERVE_NOW", site.reserve_body()),
        ("STOP_SESSION", stop),
        ("START_SESSION", site.reserve_body()),
        ("UNLOCK_CONNECTOR", unlock),
    ):
        assert site.command(kind, body) == "REJECTED"
    until(site.gateway.idle)
    assert site.results() == []  # no result without ACCEPTED


def test_timeout_then_a_late_success_is_undone(site: Site) -> None:
    assert site.command("RESERVE_NOW", site.reserve_body()) == "ACCEPTED"
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("RESERVE_NOW")
    site.gateway.clock.advance(20_000)
    until(site.results)
    assert site.results() == ["TIMEOUT"]
    site.board.reserve(command, "S1")
    site.talk()
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    undo = site.board.take("CANCEL_RESERVATION")
    assert undo["data"] == {"reservation_id": command["data"]["reservation_id"], "by": "cpo"}
    site.board.write(
        "release",
        evse=1,
        reservation_id=command["data"]["reservation_id"],
        session_id="S1",
        cause="cancelled_by_cpo",
    )
    site.board.result(undo, "ACCEPTED")
    site.talk()
    until(site.gateway.idle)
    assert site.results() == ["TIMEOUT"]  # the eMSP was never told that it had one


def test_a_late_start_is_stopped(site: Site) -> None:
    assert site.command("START_SESSION", site.reserve_body()) == "ACCEPTED"
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("START_SESSION")
    site.gateway.clock.advance(20_000)
    until(site.results)
    site.board.start("S1", board_token())
    site.board.result(command, "ACCEPTED", session_id="S1")
    site.talk()
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    assert site.board.take("STOP_SESSION")["data"] == {"session_id": "S1"}


def test_cancel_reservation(site: Site) -> None:
    site.command("RESERVE_NOW", site.reserve_body())
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("RESERVE_NOW")
    site.board.reserve(command, "S1")
    site.talk()
    cancel = {"response_url": site.url(2), "reservation_id": "r1"}
    assert site.command("CANCEL_RESERVATION", cancel) == "ACCEPTED"
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    order = site.board.take("CANCEL_RESERVATION")
    gateway_id = command["data"]["reservation_id"]
    assert order["data"] == {"reservation_id": gateway_id, "by": "emsp"}
    site.board.write(
        "release", evse=1, reservation_id=gateway_id, session_id="S1", cause="cancelled_by_emsp"
    )
    site.board.result(order, "ACCEPTED")
    site.talk()
    until(lambda: site.results(2))
    assert site.results(2) == ["ACCEPTED"] and site.results(1) == ["ACCEPTED"]


def test_cancel_of_an_unknown_reservation(site: Site) -> None:
    """UNKNOWN_RESERVATION exists only as a result, not as a response."""
    cancel = {"response_url": site.url(), "reservation_id": "NONE"}
    assert site.command("CANCEL_RESERVATION", cancel) == "ACCEPTED"
    until(site.results)
    assert site.results() == ["UNKNOWN_RESERVATION"]


def test_a_reservation_given_back_by_the_cpo(site: Site) -> None:
    """CANCELED_RESERVATION to the response_url of the RESERVE_NOW."""
    site.command("RESERVE_NOW", site.reserve_body())
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("RESERVE_NOW")
    site.board.reserve(command, "S1")
    site.talk()
    until(site.results)
    site.board.write("event", what="fault", evse=1, fault="estop")
    site.board.write(
        "release",
        evse=1,
        reservation_id=command["data"]["reservation_id"],
        session_id="S1",
        cause="cancelled_by_cpo",
    )
    site.talk()
    until(lambda: len(site.results()) == 2)
    assert site.results() == ["ACCEPTED", "CANCELED_RESERVATION"]


def test_without_evse_uid_the_gateway_chooses(site: Site) -> None:
    second = Board("DEMO-2", "ab" * 32)
    second.hello()
    second.status("AVAILABLE")
    site.gateway.talk(second)
    site.charge("S1")  # E1 is taken
    body = site.reserve_body()
    del body["evse_uid"]
    assert site.command("RESERVE_NOW", body) == "ACCEPTED"
    second.write("event", what="supervisor", task="x")
    site.gateway.talk(second)
    second.reserve(second.take("RESERVE_NOW"), "S2")
    site.gateway.talk(second)
    _, _, sessions = site.client.ask("GET", "sessions")
    assert [s["evse_uid"] for s in sessions] == ["E1", "E2"]
    start = {name: body[name] for name in ("response_url", "token", "location_id")}
    assert site.command("START_SESSION", start) == "ACCEPTED"
    second.write("event", what="supervisor", task="x")
    site.gateway.talk(second)
    assert second.take("START_SESSION")["data"]["token"] == board_token()  # where it reserved


def test_stop_session(site: Site) -> None:
    site.charge("S1")
    stop = {"response_url": site.url(), "session_id": "s1"}
    assert site.command("STOP_SESSION", stop | {"session_id": "NONE"}) == "UNKNOWN_SESSION"
    assert site.command("STOP_SESSION", stop) == "ACCEPTED"
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    order = site.board.take("STOP_SESSION")
    assert order["data"] == {"session_id": "S1"}
    site.board.stop("S1")
    site.board.result(order, "ACCEPTED", session_id="S1")
    site.talk()
    until(site.results)
    assert site.results() == ["ACCEPTED"]
    assert site.command("STOP_SESSION", stop) == "REJECTED"


def test_unlock_connector_says_what_the_lock_says(site: Site) -> None:
    site.charge("S1")
    site.board.stop("S1")
    site.talk()
    unlock = {
        "response_url": site.url(),
        "location_id": "LOC1",
        "evse_uid": "E1",
        "connector_id": "1",
    }
    assert site.command("UNLOCK_CONNECTOR", unlock) == "ACCEPTED"
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    site.board.result(site.board.take("UNLOCK_CONNECTOR"), "FAILED")
    site.talk()
    until(site.results)
    assert site.results() == ["FAILED"]


def test_unlock_by_who_never_charged_there(site: Site) -> None:
    unlock = {
        "response_url": site.url(),
        "location_id": "LOC1",
        "evse_uid": "E1",
        "connector_id": "1",
    }
    assert site.command("UNLOCK_CONNECTOR", unlock) == "REJECTED"


def test_a_command_is_told_its_end_once(site: Site) -> None:
    """The board repeats its result (a resend, a reset): one CommandResult."""
    site.command("START_SESSION", site.reserve_body())
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("START_SESSION")
    site.board.result(command, "EVSE_OCCUPIED")
    site.board.result(command, "ACCEPTED")
    site.talk()
    site.gateway.clock.advance(30_000)
    until(site.gateway.idle)
    assert site.results() == ["EVSE_OCCUPIED"]


def test_a_result_from_another_board_does_not_count(site: Site) -> None:
    site.command("START_SESSION", site.reserve_body())
    site.board.write("event", what="supervisor", task="x")
    site.talk()
    command = site.board.take("START_SESSION")
    second = Board("DEMO-2", "ab" * 32)
    second.hello()
    second.result(command, "ACCEPTED")
    site.gateway.talk(second)
    until(site.gateway.idle)
    assert site.results() == []
