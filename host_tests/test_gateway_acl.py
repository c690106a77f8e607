"""The access rules that `python -m tools.gateway acl` writes, kept by a real mosquitto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from host_tests.gateway_kit import config_of
from host_tests.mosquitto_kit import OBSERVER, Client, Mosquitto
from tools.gateway import acl


def test_mosquitto_lets_a_station_speak_for_itself_only(
    mosquitto: Path, tmp_path: Path
) -> None:
    """Neither anonymous nor with a wrong password; another station's topics neither way, nor its
    own `down` as a speaker, its own `up` as a listener, or the broker's own topics."""
    with Mosquitto(mosquitto, tmp_path, "DEMO-1", "DEMO-2") as broker:
        ear = Client(broker, OBSERVER, "wattlock/1/+/#")
        one = Client(broker, "DEMO-1", "wattlock/1/+/#", "#", "$SYS/#")
        gateway = Client(broker, "gateway")
        try:
            one.publish("wattlock/1/DEMO-2/up", b"not mine")
            one.publish("wattlock/1/DEMO-2/online", b"0")
            one.publish("wattlock/1/DEMO-1/down", b"not mine")
            one.publish("wattlock/1/DEMO-1/up", b"mine")
            assert [m.payload for m in ear.wait_for(1)] == [b"mine"]
            gateway.publish("wattlock/1/DEMO-2/down", b"for another")
            gateway.publish("wattlock/1/DEMO-1/down", b"for me")
            gateway.publish("wattlock/1/DEMO-1/up", b"not the gateway's to say")
            one.publish("wattlock/1/DEMO-1/online", b"1")
            assert [m.payload for m in ear.wait_for(4)][1:] == [b"for another", b"for me", b"1"]
            assert {m.payload for m in one.wait_for(1)} == {b"for me"}
            broker.passwords["DEMO-2"] = "wrong"
            with pytest.raises(AssertionError, match="no connection"):
                Client(broker, "DEMO-2", timeout_s=2)
        finally:
            for client in (ear, one, gateway):
                client.close()


def test_the_rules_name_every_station_and_nobody_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the file says, by mosquitto.conf(5): a `user` line, then what it may do."""

    def written(**changes: Any) -> tuple[int, str, str]:
        mqtt = {"host": "127.0.0.1", "tls": False} | changes
        (tmp_path / "gateway.json").write_text(json.dumps(config_of(tmp_path, mqtt=mqtt)))
        code = acl.main(["--config", str(tmp_path / "gateway.json")])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, text, _ = written(username="gw")
    assert code == 0
    allowed: dict[str, set[str]] = {}
    user = None
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            user = rest
        elif word:
            assert word == "topic" and user is not None
            allowed.setdefault(user, set()).add(rest)
    assert set(allowed) == {"gw", "DEMO-1", "DEMO-2"}
    assert allowed["DEMO-1"] == {
        "write wattlock/1/DEMO-1/up", "write wattlock/1/DEMO-1/online",
        "read wattlock/1/DEMO-1/down",
    }  # fmt: skip
    assert allowed["gw"] == {
        "read wattlock/1/+/up", "read wattlock/1/+/online", "write wattlock/1/+/down"
    }  # fmt: skip
    for changes, field in (({}, "mqtt.username"), ({"username": "DEMO-1"}, "station's")):
        code, text, error = written(**changes)
        assert code == 2 and text == "" and field in error
