"""The conformance tool: our own ends pass it, and each of many wrong ones fails the right check.

The wrong ones are our own with one thing changed: the gateway behind a function that garbles, or
the firmware with one of its rules taken out.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from portable.bench import KEY, STATION, World
from wattlock import app, commands, uplink
from wattlock.journal import Journal

from host_tests.gateway_kit import Bare, Gateway, process
from host_tests.mosquitto_kit import GATEWAY, Client, Mosquitto
from host_tests.test_mqtt_brokers import Anybody
from tools.broker import free_port
from tools.gateway import conformance
from tools.gateway.conformance import BoardChecks, Deaf, GatewayChecks, Verdict
from tools.gateway.uplink import derive_key, links

Json = dict[str, Any]


def failed(found: list[Verdict]) -> dict[str, str]:
    return {verdict.check: verdict.why for verdict in found if not verdict.ok}


# --- gateways


def gateway_of(folder: Path, fork: bool = True) -> tuple[Bare, GatewayChecks]:
    import time

    bare = Bare(folder, stations={STATION: {"kid": 1, "key": KEY.hex()},
                                  "DEMO-2": {"kid": 1, "key": "ab" * 32}})  # fmt: skip
    bare.south._now_ms = lambda: time.time_ns() // 1_000_000

    def ask(raw: bytes) -> bytes | None:
        return bare.south.handle(STATION, raw, "http") or None

    return bare, GatewayChecks(ask, STATION, 1, KEY, fork)


def test_our_gateway_passes(tmp_path: Path) -> None:
    _, checks = gateway_of(tmp_path)
    found = list(checks.run())
    assert failed(found) == {} and len(found) == 17


def resealed(raw: bytes, change: Callable[[Json], Json]) -> bytes:
    import hmac

    text = json.dumps(change(json.loads(raw[65:]))).encode()
    key = derive_key(KEY, "down", STATION)
    return hmac.digest(key, text, "sha256").hex().encode() + b"\n" + text


def without(field: str) -> Callable[[Json], Json]:
    return lambda head: {name: value for name, value in head.items() if name != field}


ANSWERS: dict[str, tuple[Callable[[Json], Json], str]] = {
    "no re": (without("re"), "Answers an honest message"),
    "another sid": (lambda h: h | {"sid": "0" * 32}, "Answers an honest message"),
    "seconds": (lambda h: h | {"unix_ms": h["unix_ms"] // 1000}, "Answers an honest message"),
    "n stands": (lambda h: h | {"n": 7}, "Acknowledges up to"),
    "no ack": (without("ack"), "Acknowledges up to"),
    "acks too much": (lambda h: h | {"ack": h.get("ack", 0) + 1}, "Acknowledges up to"),
    "null commands": (lambda h: h | {"commands": None}, "Answers an honest message"),
    "kid as text": (lambda h: h | {"kid": "1"}, "Answers an honest message"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_gateway_that_answers_wrongly_is_caught(tmp_path: Path, name: str) -> None:
    change, check = ANSWERS[name]
    _, checks = gateway_of(tmp_path)
    honest = checks._ask

    def ask(raw: bytes) -> bytes | None:
        reply = honest(raw)
        return reply and resealed(reply, change)

    checks._ask = ask
    assert any(c.startswith(check) for c in failed(list(checks.run())))


def _trusts(field: str) -> Callable[[pytest.MonkeyPatch, Bare], None]:
    """A gateway that takes what is refused for this reason, and answers it as the last one."""

    def mutate(patch: pytest.MonkeyPatch, bare: Bare) -> None:
        handle = bare.south.handle
        last: list[bytes] = []

        def careless(station_id: str, raw: bytes, link: str) -> bytes | None:
            before = bare.refused().get(field, 0)
            reply = handle(station_id, raw, link)
            if reply is not None:
                last[:] = [reply]
            elif bare.refused().get(field, 0) > before and last:
                return last[0]
            return reply

        patch.setattr(bare.south, "handle", careless)

    return mutate


def _drops_novelties(patch: pytest.MonkeyPatch, bare: Bare) -> None:
    handle = bare.south.handle

    def strict(station_id: str, raw: bytes, link: str) -> bytes | None:
        return None if b"novelty" in raw else handle(station_id, raw, link)

    patch.setattr(bare.south, "handle", strict)


def _never_asks_for_cards(patch: pytest.MonkeyPatch, bare: Bare) -> None:
    patch.setattr(bare.south, "_authorize", lambda *args: [])


def _sees_no_fork(patch: pytest.MonkeyPatch, bare: Bare) -> None:
    patch.setattr(bare.south, "_compare", lambda *args: None)


def _follows_any_brief(patch: pytest.MonkeyPatch, bare: Bare) -> None:
    take = bare.south._take_brief
    patch.setattr(bare.south, "_take_brief", lambda *args: b"" if take(*args) else None)


def _answers_every_brief(patch: pytest.MonkeyPatch, bare: Bare) -> None:
    patch.setattr(bare.desk, "pending", lambda *args: [])
    take = bare.south._take_brief

    def chatty(db: Any, station_id: str, header: Any, link: str) -> bytes | None:
        return take(db, station_id, header.model_copy(update={"seq": 1}), link)

    patch.setattr(bare.south, "_take_brief", chatty)


@pytest.mark.parametrize(
    ("mutate", "check"),
    [
        (_follows_any_brief, "Takes brief pictures"),
        (_answers_every_brief, "Takes brief pictures"),
        (_trusts("mac"), "Does nothing with a message whose MAC is wrong"),
        (_trusts("mac"), "Does nothing with its own words"),
        (_trusts("kid"), "Does nothing with a kid"),
        (_trusts("repeated"), "Does not answer a message that came before"),
        (_trusts("repeated"), "Follows the board into its next boot"),
        (_trusts("header"), "Does nothing with what is no message"),
        (_trusts("size"), "Does nothing with what is no message"),
        (_trusts("chain"), "Does nothing where head does not follow"),
        (_drops_novelties, "Takes record types"),
        (_never_asks_for_cards, "Answers authorize"),
        (_sees_no_fork, "Acknowledges neither of two histories"),
    ],
)
def test_a_gateway_without_one_of_its_rules_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Any, check: str
) -> None:
    bare, checks = gateway_of(tmp_path)
    mutate(monkeypatch, bare)
    assert any(c.startswith(check) for c in failed(list(checks.run()))), check


def test_a_gateway_that_knows_another_key_is_no_gateway_of_ours(tmp_path: Path) -> None:
    _, checks = gateway_of(tmp_path)
    wrong = GatewayChecks(checks._ask, STATION, 1, bytes(32), False)
    found = list(wrong.run())
    assert len(found) == 1 and "with this key" in found[0].why


def test_our_gateway_over_http_and_mqtt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The tool as a person runs it."""
    import time

    secrets = tmp_path / "secrets.json"
    port = free_port()
    stations = {"DEMO-1": {"kid": 1, "key": "cd" * 32}, "DEMO-2": {"kid": 3, "key": "ab" * 32}}
    mqtt = {"host": "127.0.0.1", "port": port, "tls": False}
    with (
        process("tools.broker", "--port", str(port)),
        Gateway(tmp_path, mqtt=mqtt, stations=stations) as gateway,
    ):
        gateway.clock.unix_ms = time.time_ns() // 1_000_000
        while not gateway.admin("stations")["mqtt"]:
            time.sleep(0.05)
        for station, way in (("DEMO-1", ["--url", gateway.url]),
                             ("DEMO-2", ["--broker", f"127.0.0.1:{port}"])):  # fmt: skip
            secrets.write_text(json.dumps(stations[station]))
            words = ["gateway", "--station", station, "--secrets", str(secrets), *way]
            code = conformance.main([*words, "--patience-s", "0.4", "--json"])
            found = json.loads(capsys.readouterr().out)
            rules = 16 if way[0] == "--url" else 17
            assert code == 0 and len(found) == rules and all(v["ok"] for v in found), found
        assert gateway.station("DEMO-1")["link"] == "http"
        # a gateway that retains what it says, and one that has stopped to
        mouth = Client(Anybody(port), GATEWAY)  # type: ignore[arg-type]
        for payload, wrong in ((b"of yesterday", {"Retains nothing on `down`"}), (b"", set())):
            mouth.publish("wattlock/1/DEMO-2/down", payload, retain=True)
            conformance.main([*words, "--patience-s", "0.4", "--json"])
            found = json.loads(capsys.readouterr().out)
            assert {v["check"] for v in found if not v["ok"]} == wrong, found
        mouth.close()
        # the wrong key: said, and the exit code tells
        secrets.write_text(json.dumps({"kid": 1, "key": "00" * 32}))
        words = ["gateway", "--station", "DEMO-1", "--secrets", str(secrets)]
        assert conformance.main([*words, "--url", gateway.url]) == 1
        assert "FAIL" in capsys.readouterr().out
    assert conformance.main([*words, "--url", gateway.url]) == 2  # nobody there


# --- boards


class Bench:
    """The firmware in virtual time as the board: it runs until it says something."""

    def __init__(self) -> None:
        self.world = World()
        self.world.gateway = self  # type: ignore[assignment]  # World.run hands messages to it
        self.ups: list[bytes] = []
        self.world.boot()

    def take(self, message: bytes) -> None:
        self.ups.append(message)

    def hear(self) -> bytes:
        for _ in range(3000):
            if self.ups:
                return self.ups.pop(0)
            self.world.run(100)
        raise Deaf("the firmware says nothing")

    def reply(self, raw: bytes) -> None:
        self.world.board.link.down.append((raw, False))


def checked(bench: Bench) -> list[Verdict]:
    return list(BoardChecks(bench, STATION, 1, KEY, bench.world.unix_ms).run())


def test_our_firmware_passes() -> None:
    bench = Bench()
    found = checked(bench)
    assert failed(found) == {} and len(found) == 17
    assert not bench.world.troubles


def _opens(patch: pytest.MonkeyPatch, *forgiven: str) -> None:
    """An inbox that takes what is refused for these reasons."""
    honest = commands.Inbox.open

    def careless(self: commands.Inbox, message: bytes, retained: bool = False) -> Any:
        head, why = honest(self, message, retained)
        if why in forgiven:
            head = json.loads(bytes(message[65:]))
            return (head, None) if isinstance(head, dict) else (None, why)
        return head, why

    patch.setattr(commands.Inbox, "open", careless)


def _never_again(patch: pytest.MonkeyPatch) -> None:
    """What was sent is over, whatever the gateway says."""
    message = uplink.Uplink.message
    acknowledge = Journal.acknowledge

    def once(self: uplink.Uplink, *args: Any) -> Any:
        parts = message(self, *args)
        acknowledge(self.journal, self.journal.seq)
        return parts

    patch.setattr(uplink.Uplink, "message", once)
    patch.setattr(Journal, "acknowledge", lambda self, seq: None)


def _believes_any_ack(patch: pytest.MonkeyPatch) -> None:
    answer = uplink.Uplink.answer

    def gullible(self: uplink.Uplink, head: Json, up: int) -> None:
        if head.get("ack", 0) > self.journal.seq:
            self.journal.acknowledge(self.journal.seq + 1)
        answer(self, head, up)

    patch.setattr(uplink.Uplink, "answer", gullible)


def _of_any_journal(patch: pytest.MonkeyPatch) -> None:
    answer = uplink.Uplink.answer

    def gullible(self: uplink.Uplink, head: Json, up: int) -> None:
        answer(self, head | {"journal": self.journal.id}, up)

    patch.setattr(uplink.Uplink, "answer", gullible)


def _forgets_acks(patch: pytest.MonkeyPatch) -> None:
    answer = uplink.Uplink.answer

    def deaf(self: uplink.Uplink, head: Json, up: int) -> None:
        answer(self, {k: v for k, v in head.items() if k != "ack"}, up)

    patch.setattr(uplink.Uplink, "answer", deaf)


def _same_up_ms(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(app.App, "up_ms", lambda self: 5, raising=False)
    message = uplink.Uplink.message

    def stuck(self: uplink.Uplink, boot: int, up: int, *args: Any) -> Any:
        self._last_up = -1
        return message(self, boot, 5, *args)

    patch.setattr(uplink.Uplink, "message", stuck)


def _alters_records(patch: pytest.MonkeyPatch) -> None:
    """Its history is made anew, with a chain that is right in itself."""
    unsent = Journal.unsent
    chain = derive_key(KEY, "chain", STATION)
    told = [0]

    def altered(self: Journal, room: int) -> Any:
        seq, prev, head, bodies = unsent(self, room)
        if bodies and seq == 1:
            told[0] += 1
            if told[0] > 1:
                bodies = [bytes(b).replace(b'"fw":"', b'"fw":"x') for b in bodies]
                head = links(chain, bytes(prev), seq, bodies)[-1]
        return seq, prev, head, bodies

    patch.setattr(Journal, "unsent", altered)


def _obeys_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "known", lambda results, command: None)


def _obeys_other_bodies(patch: pytest.MonkeyPatch) -> None:
    known = commands.known
    patch.setattr(commands, "known", lambda r, c: None if known(r, c) is False else known(r, c))


def _never_stale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commands, "stale", lambda *args: None)


def _no_picture(patch: pytest.MonkeyPatch) -> None:
    from wattlock import evse

    patch.setattr(evse.Post, "live", lambda self, brief=False: {"status": "FREE"})


def _no_health(patch: pytest.MonkeyPatch) -> None:
    message = app.App._message

    def silent(self: app.App) -> Any:
        self.health_wanted = False
        return message(self)

    patch.setattr(app.App, "_message", silent)


def _brief_unasked(patch: pytest.MonkeyPatch) -> None:
    answer = uplink.Uplink.answer

    def eager(self: uplink.Uplink, head: Json, up: int) -> None:
        answer(self, {"brief_s": 900} | head, up)

    patch.setattr(uplink.Uplink, "answer", eager)


def _deaf_to_what_answers_nothing(patch: pytest.MonkeyPatch) -> None:
    receive = app.App.receive

    def deaf(self: app.App, message: bytes, retained: bool = False) -> None:
        if b'"re":' in bytes(message):
            receive(self, message, retained)

    patch.setattr(app.App, "receive", deaf)


def _brief_of_nobody(patch: pytest.MonkeyPatch) -> None:
    message = uplink.Uplink.message

    def strange(self: uplink.Uplink, boot: int, up: int, ticks: int, clock: Any, live: Json,
                *more: Any) -> Any:  # fmt: skip
        live = {"9": {"wh": 1}} if self.brief() else live
        return message(self, boot, up, ticks, clock, live, *more)

    patch.setattr(uplink.Uplink, "message", strange)


BOARDS: list[tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = [
    (lambda p: _opens(p, commands.FORGED), "Does nothing with a message whose MAC is wrong",
     "another key"),
    (lambda p: _opens(p, commands.OTHER_BOOT), "Does nothing with a sid", "another sid"),
    (lambda p: _opens(p, commands.REPEATED), "Does nothing where n is not above", "after"),
    (lambda p: _opens(p, commands.MALFORMED), "Does nothing with more than 4,096 bytes", "bytes"),
    (_never_again, "Sends records again", "is not acked"),
    (_believes_any_ack, "Ignores an ack", "believed {'ack'"),
    (_of_any_journal, "Ignores an ack", "believed {'journal'"),
    (_forgets_acks, "Goes on behind what is acknowledged", "is acknowledged"),
    (_same_up_ms, "Sends records again", "up_ms 5 used twice"),
    (_alters_records, "Sends records again", "1 changed"),
    (_obeys_again, "Obeys a command once", "results of one command"),
    (_obeys_other_bodies, "REJECTED for an id", "NOT_SUPPORTED"),
    (_never_stale, "Does nothing with a command that expired", "exp -60 s"),
    (_no_picture, "Speaks", "live/1/status"),
    (_no_health, "Answers GET_HEALTH", "no health"),
    (_brief_unasked, "Goes on behind what is acknowledged", "no answer had brief_s"),
    (_deaf_to_what_answers_nothing, "Hears what it is told between", "results of an unknown type"),
    (_brief_of_nobody, "Hears what it is told between", "no whole message told"),
]  # fmt: skip


@pytest.mark.parametrize(("mutate", "check", "said"), BOARDS)
def test_a_board_without_one_of_its_rules_is_caught(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], check: str,
    said: str,
) -> None:  # fmt: skip
    """The check that fails is the one of its rule, and says what is wrong."""
    mutate(monkeypatch)
    whys = [why for c, why in failed(checked(Bench())).items() if c.startswith(check)]
    assert whys and said in whys[0], whys


def test_our_firmware_over_http_and_mqtt(
    mosquitto: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The tool as a person runs it; between its links and the firmware a bridge of the test's."""
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"kid": 1, "key": KEY.hex()}))
    password = tmp_path / "password"
    words = ["board", "--station", STATION, "--secrets", str(secrets), "--patience-s", "20"]

    def bridge(say: Callable[[bytes], list[bytes]], over: threading.Event) -> None:
        bench = Bench()
        bench.world.unix_ms = conformance.now_ms
        while not over.is_set():
            bench.world.app.uplink.live_ms = 100  # the wall does not wait for virtual time
            for raw in say(bench.hear()):
                bench.reply(raw)

    port = free_port()
    url = f"http://127.0.0.1:{port}/wattlock/1/{STATION}"

    def by_http(raw: bytes) -> list[bytes]:
        try:
            reply = httpx.post(url, content=raw, timeout=10)
        except httpx.HTTPError:
            return []
        return [reply.content] if reply.status_code == 200 else []

    with Mosquitto(mosquitto, tmp_path / "broker", STATION) as broker:
        password.write_text(broker.passwords[GATEWAY] + "\n")
        station = Client(broker, STATION, f"wattlock/1/{STATION}/down")

        def by_mqtt(raw: bytes) -> list[bytes]:
            seen = len(station.messages)
            station.publish(f"wattlock/1/{STATION}/up", raw)
            try:
                came = station.wait_for(seen + 1, 0.3)[seen:]
            except AssertionError:
                return []
            return [m.payload for m in came]

        account = ["--user", GATEWAY, "--password-file", str(password)]
        for say, way in (
            (by_http, ["--listen", f"127.0.0.1:{port}"]),
            (by_mqtt, ["--broker", f"127.0.0.1:{broker.port}", *account]),
        ):
            over = threading.Event()
            board = threading.Thread(target=bridge, args=(say, over), daemon=True)
            board.start()
            code = conformance.main([*words, *way, "--json"])
            over.set()
            found = json.loads(capsys.readouterr().out)
            assert code == 0 and all(v["ok"] for v in found), found
            board.join(15)
        station.close()
