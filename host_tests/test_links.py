"""Both links in the VM, over TLS, against real servers: mosquitto, and the gateway's HTTPS."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_tests.link_kit import CLIENT, KEY, PLAIN, RENEWED, Certificates, Land
from tools.gateway import conformance
from tools.stage import STATION


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(params=["mqtt", "http"])
def land(
    request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates, mosquitto: Path
) -> Iterator[Land]:
    with Land(request.param, tmp_path, certificates, mosquitto) as land:
        yield land


WRONG = ("tls_untrusted", "tls_host", "tls_expired", "tls_not_yet_valid")


def refused(land: Land) -> dict[str, Any]:
    return {r["why"]: r for r in land.records(t="refused", what="link")}


def talking(land: Land, step_ms: int = 1000) -> None:
    """Until two messages more have come: the first was answered, the connection is up."""
    for _ in range(2):
        seen = land.station().up_ms
        land.hurrying(lambda seen=seen: land.station().up_ms > seen, step_ms)


def test_every_wrong_server_is_refused_and_named_in_a_record(land: Land) -> None:
    land.point("good")
    land.provision(land.certificates.secrets())
    land.board.power_on()
    land.hurrying(land.told)
    talking(land)
    land.relay.cut()
    boot = land.board.boot()
    for name in (*WRONG, PLAIN):
        word = "tls_plain" if name == PLAIN else name
        land.aim(name)
        land.hurrying(lambda word=word: word in land.console())
        assert land.board.boot() == boot
    land.aim("good")
    land.hurrying(lambda: set(refused(land)) >= {*WRONG, "tls_plain"})
    assert set(refused(land)) == {*WRONG, "tls_plain"}
    # a client's certificate: none, a stranger's, the right one
    land.point(CLIENT)
    land.hurrying(lambda: "tls_client_missing" in land.console())
    land.provision(land.certificates.secrets(land.certificates.wrong_client))
    land.board.power_on()
    land.hurrying(lambda: "tls_client_refused" in land.console())
    land.provision(land.certificates.secrets(land.certificates.client))
    land.board.power_on()
    land.hurrying(land.told)
    land.hurrying(lambda: {"tls_client_missing", "tls_client_refused"} <= set(refused(land)))


def test_a_network_that_cuts_a_handshake_is_not_taken_for_a_server(land: Land) -> None:
    """Once: two in a row look like one that hangs up, and are told as such."""
    land.point("good")
    land.provision(land.certificates.secrets())
    land.board.power_on()
    land.hurrying(land.told)
    step_ms = 200  # hurried on slowly: a machine that is busy cuts no handshake besides
    for cut_behind in (1, 400):  # before the server's certificate, and behind it
        talking(land, step_ms)
        land.relay.cut_behind = cut_behind
        land.relay.cut()
        land.hurrying(lambda: not land.relay.cut_behind, step_ms)
    talking(land, step_ms)
    assert "tls_" not in land.console() and not refused(land)


def test_a_server_that_never_speaks_is_given_up(land: Land) -> None:
    """It takes the connection, and nothing of TLS comes; the board goes on, and comes back."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        land.ports["silent"] = silent.getsockname()[1]
        land.point("silent")
        land.provision(land.certificates.secrets())
        land.board.power_on()
        for tries in (1, 2):
            land.hurrying(lambda tries=tries: land.console().count("no answer") >= tries)
        land.point("good")
        land.hurrying(land.told)
        assert land.board.stall()["ms"] <= 50 and land.board.boot() == 1 + land.starts


class TimeServer:
    """SNTP (RFC 4330) on loopback; `off_s` makes it wrong."""

    def __init__(self) -> None:
        self.off_s = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            asked, who = self._socket.recvfrom(512)
            s = int(time.time()) + self.off_s + 2208988800
            answer = b"\x24\x02" + bytes(22) + asked[40:48] + bytes(8) + s.to_bytes(4, "big")
            self._socket.sendto(answer + bytes(4), who)


def test_a_first_connection_without_a_clock(
    tmp_path: Path, certificates: Certificates, mosquitto: Path
) -> None:
    """The bound (provisioning) is too early for the certificate; a time server that lies keeps
    the board offline, an honest one lets it connect, and neither is the board's time."""
    server = TimeServer()
    with Land("mqtt", tmp_path, certificates, mosquitto) as land:
        land.point("good")
        long_ago_s = int(time.time()) - 100 * 86400
        land.provision(certificates.secrets(at_s=long_ago_s), sntp="127.0.0.1")
        land.board.power_on()
        land.hurrying(lambda: "tls_not_yet_valid" in land.console())
        server.off_s = 8 * 365 * 86400
        land.board.net(sntp=server.port)
        land.hurrying(lambda: "tls_expired" in land.console())
        assert not land.told()
        server.off_s = 0
        land.hurrying(land.told)
        ours_ms = [r["unix_ms"] for r in land.records(t="time")]
        assert ours_ms and abs(ours_ms[0] - time.time() * 1000) < 600_000


def queue(land: Land, kind: str, data: dict[str, Any]) -> str:
    """A command for the board; its id."""
    context = land.web.context
    with context.store.begin() as db:
        return context.desk.queue(db, STATION, kind, data, int(time.time() * 1000)).id


def test_the_plain_http_link_end_to_end(tmp_path: Path, certificates: Certificates) -> None:
    """Records up, a command down and its result up, over one connection that stays."""
    with Land("http", tmp_path, certificates) as land:
        land.point(PLAIN)
        land.provision(None)
        land.board.power_on()
        land.hurrying(land.told)
        connections, boot = land.relay.connections, land.board.boot()
        id = queue(land, "SET_AVAILABILITY", {"evse": 1, "operative": False})
        land.hurrying(lambda: land.records(t="result", command_id=id))
        assert land.records(t="result", command_id=id)[0]["result"] == "ACCEPTED"
        seen = land.station().up_ms
        land.hurrying(lambda: land.station().up_ms > seen + 5000)  # pictures, brief ones
        assert land.station().link == "http" and land.station().online
        assert (land.relay.connections, land.board.boot()) == (connections, boot)
        assert not land.records(t="refused")


def test_another_ca_by_set_config_over_tls(
    tmp_path: Path, certificates: Certificates, mosquitto: Path
) -> None:
    """The CA is renewed without a visit: tried against the server that it has issued, and kept;
    before, that server was refused."""
    with Land("mqtt", tmp_path, certificates, mosquitto) as land:
        land.point("good")
        land.provision(certificates.secrets())
        land.board.power_on()
        land.hurrying(land.told)
        land.point("tls_untrusted")
        land.hurrying(lambda: "tls_untrusted" in land.console())
        land.point("good")
        seen = land.station().up_ms
        land.hurrying(lambda: land.station().up_ms > seen)
        ca = {"ca": certificates.stranger.issued.der}
        id = queue(land, "SET_CONFIG", {"secrets": {"tls": ca}})
        boot = land.board.boot()
        land.hurrying(lambda: land.board.boot() > boot)
        land.point("tls_untrusted")  # from now on it is the right one
        land.hurrying(lambda: land.records(t="result", command_id=id), timeout_s=80)
        assert land.records(t="result", command_id=id)[0]["result"] == "ACCEPTED"
        (event,) = land.records(t="event", what="config")
        assert event["outcome"] == "kept"
        land.hurrying(lambda: len(land.records(t="boot")) >= 3, timeout_s=80)


def test_the_board_s_own_certificate_by_set_config(land: Land) -> None:
    """Another one for the key that the board has, which does not travel. A server that knows the
    first one as revoked refuses it, and takes the board with the other: it sees which it is."""
    known = land.certificates
    land.point(CLIENT)
    land.provision(known.secrets(known.client))
    land.board.power_on()
    land.hurrying(land.told)
    land.point(RENEWED)
    land.hurrying(lambda: "tls_client_refused" in land.console())
    land.point(CLIENT)
    land.hurrying(lambda: "tls_client_refused" in refused(land))
    id = queue(land, "SET_CONFIG", {"secrets": {"tls": {"cert": known.renewed.der}}})
    boot = land.board.boot()
    land.hurrying(lambda: land.board.boot() > boot)
    land.point(RENEWED)
    land.hurrying(lambda: land.records(t="result", command_id=id), timeout_s=80)
    assert land.records(t="result", command_id=id)[0]["result"] == "ACCEPTED"
    assert [e["outcome"] for e in land.records(t="event", what="config")] == ["kept"]
    land.hurrying(lambda: len(land.records(t="boot")) >= 3, timeout_s=80)
    talking(land)


@pytest.mark.parametrize("whose", ["another key's", "another CA's", "nobody's"])
def test_a_certificate_that_no_server_takes_is_rolled_back(land: Land, whose: str) -> None:
    """Tried, on record with its cause, and the board is heard again, with the one it had."""
    known = land.certificates
    cert, why = {
        "another key's": (known.ca.issue().der, "tls_client_refused"),
        "another CA's": (known.stranger.issue(key=known.client.key).der, "tls_client_refused"),
        "nobody's": ("bm90aGluZw==", "tls_cert"),
    }[whose]
    land.point(CLIENT)
    land.provision(known.secrets(known.client))
    land.board.power_on()
    land.hurrying(land.told)
    id = queue(land, "SET_CONFIG", {"secrets": {"tls": {"cert": cert}}})
    land.hurrying(lambda: why in land.console())
    assert not land.records(t="result", command_id=id)
    tried = land.board.boot()
    land.hurrying(lambda: land.board.boot() > tried, 5000, 80)
    land.hurrying(lambda: land.records(t="result", command_id=id))
    assert land.records(t="result", command_id=id)[0]["result"] == "FAILED"
    (event,) = land.records(t="event", what="config")
    assert event["outcome"] == "rolled_back" and "in time" in event["why"]
    assert set(refused(land)) == {why}
    again = queue(land, "SET_AVAILABILITY", {"evse": 1, "operative": True})
    land.hurrying(lambda: land.records(t="result", command_id=again))
    boots = land.records(t="boot")
    assert [b["cause"] for b in boots[1:]] == ["soft", "soft"], "the trial, and what was before"


def test_the_conformance_tool_over_tls(land: Land, capsys: pytest.CaptureFixture) -> None:
    """Our gateway passes; a server that somebody else certified is not spoken to."""
    folder = land.board.state
    ca, _ = land.certificates.ca.issued.write(folder, "ca")
    secrets = folder / "identity.json"
    secrets.write_text(json.dumps({"kid": 1, "key": KEY}))
    words = ["gateway", "--station", STATION, "--secrets", str(secrets), "--ca", str(ca)]
    words += ["--patience-s", "0.4", "--json"]

    def way(name: str) -> list[str]:
        place = f"localhost:{land.ports[name]}"
        if land.kind == "http":
            return ["--url", f"https://{place}"]
        password = folder / "password"
        password.write_text(land.login["password"])
        return ["--broker", place, "--user", STATION, "--password-file", str(password)]

    code = conformance.main([*words, *way("good")])
    found = json.loads(capsys.readouterr().out)
    rules = 16 if land.kind == "http" else 17
    assert code == 0 and len(found) == rules and all(v["ok"] for v in found), found
    assert conformance.main([*words, *way("tls_untrusted")]) == 2
    assert "certificate" in capsys.readouterr().err.lower()
