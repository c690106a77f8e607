"""Configuration and key changed from afar: whatever happens on the way, the board is still heard.

The agent of the bench, with real files (hal/setup.py and hal/trial.py in a folder) and the real
gateway's southbound side. What main.py does at a boot is done by `Site.boot` here; main.py itself
is in test_hal_door.py and, with the virtual board, in test_scenarios.py and test_heap.py.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hal import setup, trial
from portable import bench
from portable.bench import KEY, STATION

from host_tests.gateway_kit import Bare
from host_tests.site_kit import CONFIG, SECRETS, Site
from tools.gateway.keys import main as keys_main
from tools.gateway.store import Command, Record, StationKey

MINUTE = 60_000
class PowerLost(BaseException):
    pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(tmp_path, monkeypatch)
    site.boot()
    site.run(3000)
    return site


def changed(**fields: Any) -> dict[str, Any]:
    return {"config": bench.site() | fields}


NOWHERE = {"kind": "mqtt", "host": "nowhere.example", "port": 1883, "insecure": True}

# --- SET_CONFIG


def test_a_configuration_is_kept_once_the_gateway_has_answered_under_it(site: Site) -> None:
    id = site.command("SET_CONFIG", changed(live_s=33))
    site.run(1000)
    assert site.app.trial is not None and site.word(id) is None
    site.run(10_000)
    assert site.running["live_s"] == 33 and site.read("config")["live_s"] == 33
    assert site.word(id) == "ACCEPTED"
    assert [e["outcome"] for e in site.told("event", what="config")] == ["kept"]
    assert len(site.told("result", command_id=id)) == 1
    site.whole()
    site.cut(1000)
    site.run(3000)
    assert site.running["live_s"] == 33


def test_a_running_session_is_not_cut_for_it(site: Site) -> None:
    site.pins[1].car = "C"
    site.command("START_SESSION", {"evse": 1, "token": bench.ANNA})
    site.run(5000)
    assert site.pins[1].contactor_out
    id = site.command("SET_CONFIG", changed(live_s=33))
    site.run(5 * MINUTE)
    assert site.app.boot == 1 and site.pins[1].contactor_out
    site.app.card(bench.ANNA["uid"])
    site.run(30_000)
    assert site.app.boot == 3 and site.word(id) == "ACCEPTED"
    site.whole()


def test_a_bad_configuration_is_refused_with_its_cause(site: Site) -> None:
    """The gateway would not send it; a board trusts no gateway's check."""
    wrong = bench.site()
    wrong["evses"][0]["meter"] = "sdm9000"
    id = site.command("SET_CONFIG", {"config": wrong})
    site.run(10_000)
    assert site.word(id) == "REJECTED" and site.app.boot == 2
    (event,) = site.told("event", what="config")
    assert event["outcome"] == "refused" and "config.evses[0].meter" in event["why"]
    assert site.read("config") == CONFIG
    site.whole()


@pytest.mark.parametrize("cuts", [0, 1, 2, 5])
def test_one_that_reaches_no_gateway_is_rolled_back(site: Site, cuts: int) -> None:
    """After ten minutes of uptime, or after three boots; the deadline outlives resets."""
    before = (site.root / "config.json").read_bytes()
    id = site.command("SET_CONFIG", changed(link=NOWHERE))
    site.run(5000)
    for _ in range(cuts):
        site.run(3 * MINUTE, 1000)
        site.cut(1000)
    site.run(11 * MINUTE, 1000)
    assert (site.root / "config.json").read_bytes() == before
    assert site.running["link"]["host"] == "127.0.0.1"
    assert site.word(id) == "FAILED"
    (event,) = site.told("event", what="config")
    assert event["outcome"] == "rolled_back"
    assert ("3 boots" if cuts > 2 else "in time") in event["why"]
    site.whole()


def test_secrets_are_changed_and_never_told(site: Site, capsys: pytest.CaptureFixture) -> None:
    new = {"wifi": {"password": "PASS-new"}, "tls": {"ca": "MIIBca=="}}
    id = site.command("SET_CONFIG", {"secrets": new})
    with site.bare.store() as db:
        assert "PASS-new" in db.get_one(Command, id).data
    site.run(20_000)
    assert site.word(id) == "ACCEPTED"
    wifi = {"ssid": "old", "password": "PASS-new"}
    assert site.read("secrets") == SECRETS | {"wifi": wifi, "tls": new["tls"]}
    site.whole()
    said = "".join([row.body.decode() for row in site.bare.rows(Record)] + site.board.told)
    said += "".join(capsys.readouterr())
    for secret in ("PASS-new", "old-secret", "Q0EtREVS", KEY.hex()):
        assert secret not in said
    assert "PASS-new" not in (site.bare.rows(Command)[0].data), "kept by the gateway"


def test_only_one_is_tried_at_a_time(site: Site) -> None:
    site.pins[1].car = "C"
    site.command("START_SESSION", {"evse": 1, "token": bench.ANNA})
    site.run(5000)
    first = site.command("SET_CONFIG", changed(live_s=33))
    site.run(2000)
    second = site.command("SET_CONFIG", changed(live_s=44))
    site.run(2000)
    assert (site.word(first), site.word(second)) == (None, "REJECTED")
    site.app.card(bench.ANNA["uid"])
    site.run(30_000)
    assert site.word(first) == "ACCEPTED" and site.read("config")["live_s"] == 33


def test_the_gateway_sends_no_other_station_s_and_nothing_empty(site: Site) -> None:
    for data, why in (
        (changed(station_id="DEMO-2"), "station_id"),
        ({}, "empty"),
        ({"secrets": {"key": "00" * 32}}, "key"),
        ({"secrets": {"tls": {"key": "PEM"}}}, "key"),
        ({"secrets": {"tls": {"ca": "A" * 1200}}}, "P-256"),
        ({"config": bench.site() | {"live_s": "60"}}, "live_s"),
    ):
        with pytest.raises(ValueError, match=why):
            site.bare.queue("SET_CONFIG", data)
    with pytest.raises(ValueError, match="password") as error:
        site.bare.queue("SET_CONFIG", {"secrets": {"wifi": {"ssid": "x", "password": 12345678}}})
    assert "12345678" not in str(error.value)


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Arrange that the power goes before the nth file operation of hal/setup.py and
    hal/trial.py from now."""
    left = [10**9]

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise PowerLost
            return real(*args)

        return call

    port = SimpleNamespace(**{n: watched(getattr(os, n)) for n in ("rename", "remove", "stat")})
    monkeypatch.setattr(setup, "os", port)
    monkeypatch.setattr(trial, "os", port)
    return lambda n: left.__setitem__(0, n)


def through_cuts(site: Site, ms: int, step: int = 100, deaf: bool = False) -> bool:
    """Run; was there a cut? `deaf`: nobody answers from then on."""
    end, cut = site.ms + ms, False
    while site.ms < end:
        try:
            site.run(1000, step)
        except PowerLost:
            cut = True
            site.deaf = deaf
            while True:
                try:
                    site.cut(1000)
                    break
                except PowerLost:
                    pass
    return cut


def running(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cut_at: Callable[[int], None]
) -> Site:
    """A new site in its first boot, with no cut to come yet."""
    folder.mkdir()
    site = Site(folder, monkeypatch)
    cut_at(10**9)
    site.boot()
    site.run(3000)
    return site


@pytest.mark.parametrize("where", ["kept", "refused", "rolled_back"])
def test_a_cut_at_any_file_operation_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: Callable[[int], None], where: str
) -> None:
    wrong = bench.site()
    wrong["evses"][0]["meter"] = "sdm9000"
    data = {"kept": changed(live_s=33), "refused": {"config": wrong},
            "rolled_back": changed(link=NOWHERE)}[where]  # fmt: skip
    for n in range(1, 30):
        site = running(tmp_path / str(n), monkeypatch, cut_at)
        id = site.command("SET_CONFIG", data)
        cut_at(n)
        slow = where == "rolled_back"
        was_cut = through_cuts(site, 25 * MINUTE, 500) if slow else through_cuts(site, 30_000)
        results = {r["result"] for r in site.told("result", command_id=id)}
        wanted = {"kept": "ACCEPTED", "refused": "REJECTED", "rolled_back": "FAILED"}[where]
        assert results == {wanted}, (n, results)
        assert site.read("config") == (data["config"] if where == "kept" else CONFIG)
        site.whole()
        if not was_cut:
            assert n > 3
            return
    raise AssertionError("never ran through")


def test_what_was_told_holds_when_nobody_answers_after_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: Callable[[int], None]
) -> None:
    """A cut at any file operation, and then no gateway for longer than a trial lasts."""
    words = set()
    for n in range(1, 30):
        site = running(tmp_path / str(n), monkeypatch, cut_at)
        new = {"wifi": {"password": "PASS-new"}}
        id = site.command("SET_CONFIG", changed(live_s=33) | {"secrets": new})
        cut_at(n)
        was_cut = through_cuts(site, 25 * MINUTE, deaf=True)
        site.deaf = False
        site.whole()
        word = site.word(id)
        words.add(word)
        live_s, password = site.read("config")["live_s"], site.read("secrets")["wifi"]["password"]
        kept = (33, "PASS-new") if word == "ACCEPTED" else (CONFIG["live_s"], "old-secret")
        assert (live_s, password) == kept, (n, word)
        assert len(site.told("result", command_id=id)) == 1
        if not was_cut:
            assert words == {"ACCEPTED", "FAILED"}
            return
    raise AssertionError("never ran through")


def test_a_key_that_changes_during_a_trial_stays(site: Site) -> None:
    new = {"wifi": {"password": "PASS-new"}}
    id = site.command("SET_CONFIG", {"secrets": new})
    site.run(1000)
    assert site.word(id) is None, "it is being tried"
    other = site.command("ROTATE_KEY")
    site.run(20_000)
    assert site.word(id) == site.word(other) == "ACCEPTED"
    kept = site.read("secrets")
    assert kept["kid"] == 2 and kept["wifi"] == {"ssid": "old", "password": "PASS-new"}
    site.whole()


def test_a_heap_that_is_full_is_tried_again_and_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [MemoryError()] * 2

    def keep() -> None:
        if failures:
            raise failures.pop()
        real()

    real = setup.keep
    monkeypatch.setattr(setup, "keep", keep)
    id = site.command("SET_CONFIG", changed(live_s=33))
    site.run(20_000)
    assert not failures and not site.troubles
    assert site.word(id) == "ACCEPTED" and site.read("config")["live_s"] == 33
    assert [e["task"] for e in site.told("event", what="supervisor")] == ["remote"]
    site.whole()


def test_a_full_file_system_keeps_the_old_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = SimpleNamespace(rename=os.rename, remove=os.remove, stat=lambda path: [0] * 7)
    monkeypatch.setattr(setup, "os", port)
    id = site.command("SET_CONFIG", changed(live_s=33))
    site.run(10_000)
    assert site.word(id) == "FAILED" and site.read("config") == CONFIG


# --- ROTATE_KEY


def _hmac(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def test_a_key_is_followed_by_one_that_never_travelled(site: Site) -> None:
    wire: list[bytes] = []
    take = site.take
    site.take = lambda m: (wire.append(m), take(m))[1]  # type: ignore[method-assign]
    site.lose = lambda raw: wire.append(raw) or False  # type: ignore[func-returns-value]
    id = site.command("ROTATE_KEY")
    site.run(10_000)
    assert site.word(id) == "ACCEPTED"
    (asked,) = [c for d in site.downs for c in d.get("commands", []) if c["id"] == id][:1]
    (told,) = site.told("result", command_id=id)
    key = _hmac(
        KEY, b"wattlock/1/rotate/DEMO-1/2", bytes.fromhex(asked["data"]["nonce"]),
        bytes.fromhex(told["nonce"]),
    )  # fmt: skip
    kept = site.read("secrets")
    assert (kept["kid"], kept["key"]) == (2, key.hex()) and "next" not in kept
    assert site.app.boot == 2  # the copy of the secrets outside the file system follows
    assert bytes.fromhex(kept["chain"]) == _hmac(KEY, b"wattlock/1/chain/DEMO-1")
    assert site.app.uplink.kid == site.downs[-1]["kid"] == 2
    # the last message is signed with it, by HMAC as it is defined
    mac, _, text = wire[-1].partition(b"\n")
    assert mac == _hmac(_hmac(key, b"wattlock/1/down/DEMO-1"), text).hex().encode()
    assert key.hex() not in b"".join(wire).decode() and KEY.hex() not in b"".join(wire).decode()
    site.whole()
    # again, after a reset, with records on the way
    site.cut(1000)
    site.run(3000)
    site.command("ROTATE_KEY")
    site.run(10_000)
    assert site.read("secrets")["kid"] == 3
    site.whole()
    assert [(row.kid, row.confirmed) for row in site.bare.rows(StationKey)] == [(3, True)]


def test_the_old_key_is_worth_nothing_afterwards(site: Site) -> None:
    old_up, old_down = site.app.uplink.mac, site.app.inbox.mac
    site.command("ROTATE_KEY")
    site.run(10_000)
    site.whole()
    text = json.dumps({"v": 1, "kid": 1, "sid": site.app.inbox.sid, "n": 2**52}).encode()
    head, why = site.app.inbox.open(old_down(text).hex().encode() + b"\n" + text)
    assert (head, why) == (None, "forged")
    raw = b"".join(site.app._message())
    body = raw[65:].replace(b'"kid":2', b'"kid":1')
    before = dict(site.bare.refused())
    assert site.bare.south.handle(STATION, old_up(body).hex().encode() + b"\n" + body, "x") is None
    assert site.bare.refused().get("mac", 0) == before.get("mac", 0) + 1


@pytest.mark.parametrize("lost", range(8))
def test_an_answer_lost_at_any_moment_of_a_rotation(site: Site, lost: int) -> None:
    count = [0]

    def lose(raw: bytes) -> bool:
        count[0] += 1
        return lost <= count[0] <= lost + 2

    site.lose = lose
    site.command("ROTATE_KEY")
    site.run(2 * MINUTE)
    assert site.read("secrets")["kid"] == 2
    site.lose = lambda raw: False
    site.whole()


def test_a_cut_at_any_file_operation_of_a_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: Callable[[int], None]
) -> None:
    for n in range(1, 12):
        site = running(tmp_path / str(n), monkeypatch, cut_at)
        site.command("ROTATE_KEY")
        cut_at(n)
        was_cut = through_cuts(site, MINUTE)
        assert site.read("secrets")["kid"] == 2
        site.whole()
        if not was_cut:
            assert n > 3
            return


def test_a_board_that_lost_its_next_key_still_hears_every_second_answer(site: Site) -> None:
    site.lose = lambda raw: raw[65:].startswith(b'{"v":1,"kid":2')
    site.command("ROTATE_KEY")
    site.run(5000)
    assert site.read("secrets")["next"]["kid"] == 2
    kept = site.read("secrets")
    del kept["next"]
    (site.root / "secrets.json").write_text(json.dumps(kept))
    site.lose = lambda raw: False
    site.cut(1000)
    site.run(MINUTE)
    assert site.app.uplink.kid == 1
    site.whole()
    site.command("ROTATE_KEY")  # and the next rotation is a rotation
    site.run(10_000)
    assert site.read("secrets")["kid"] == 2
    site.whole()


def test_the_keys_of_now_go_into_the_configuration(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a database from before the rotation deafens nobody."""
    site.command("ROTATE_KEY")
    site.run(10_000)
    site.whole()
    text = site.bare.config.model_dump_json(exclude_none=True, by_alias=True)
    (tmp_path / "gateway.json").write_text(text)
    assert keys_main(["--config", str(tmp_path / "gateway.json")]) == 0
    stations = json.loads(capsys.readouterr().out)["stations"]
    assert stations[STATION] == {k: site.read("secrets")[k] for k in ("kid", "key", "chain")}
    assert stations["DEMO-2"] == {"kid": 1, "key": "ab" * 32}
    (tmp_path / "fresh").mkdir()
    site.bare = Bare(tmp_path / "fresh", stations=stations)
    site.app.uplink.hurry = True
    site.run(5000)
    assert site.bare.rows(Record)[0].seq == 1, "the chain is whole from its first record"
    site.whole()
