"""The whitelists of boards, gateway and firmware together: whatever gets lost, is cut or restored,
the board ends with just the cards that OCPI lets it decide about."""

from __future__ import annotations

import random
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from portable.store import Store
from wattlock import mac
from wattlock.whitelist import Whitelist

from host_tests.gateway_kit import Bare, Client, Clock, FakeEmsp, Gateway, token
from host_tests.uplink_peer import KEY, Board
from tools.gateway import messages, ocpi, whitelist
from tools.gateway.authorize import keep

DAY_MS = 86_400_000


class Reader(Board):
    """A board with the firmware's own whitelist."""

    def __init__(self, store: Store | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self.files = store or Store()
        self.sizes: list[int] = []
        self.boot_list()

    def boot_list(self) -> None:
        chain = mac.purpose(bytes.fromhex(KEY), "chain", self.station_id)
        self.list = Whitelist(self.files, mac.Mac(chain(b"tokens")))

    def message(self, **more: Any) -> bytes:  # type: ignore[override]
        return super().message(tokens=self.list.report(), **more)

    def receive(self, raw: bytes, *, retained: bool = False) -> dict[str, Any] | None:
        head = super().receive(raw, retained=retained)
        self.sizes.append(len(raw))
        for command in self.commands:
            assert command["type"] == "SYNC_TOKENS"
            messages.SyncTokensData.model_validate(command["data"])
            self.list.take(command["data"])
        self.commands.clear()
        while self.list.work is not None:
            self.list.turn()
        return head

    def knows(self, uid: str) -> str:
        """"at once", "offline" or "no"."""
        if self.list.find(uid, False):
            return "at once"
        return "offline" if self.list.find(uid, True) else "no"


class Site(Bare):
    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        super().__init__(folder, clock, whitelist_every_s=300)
        self.truth: dict[str, dict[str, Any]] = {}

    def push(self, *uids: str, **changes: Any) -> None:
        with self.store.begin() as db:
            for uid in uids:
                sent = self.truth[uid] = token(uid, **changes)
                keep(db, ocpi.Token.model_validate(sent), self.clock(), pushed=True)

    def sync(self, board: Reader, tries: int = 200) -> int:
        """Messages until there is nothing more to do; how many parts that took."""
        self.clock.advance(300_000)
        board.unix_ms = self.clock()
        for parts in range(tries):
            head = self.up(board)
            assert head is not None
            if not head.get("commands"):
                return parts
        raise AssertionError("it comes to no end")

    def right(self, board: Reader) -> None:
        """The board has what mod_tokens says, and nothing else."""
        count = 0
        for uid, sent in self.truth.items():
            wanted = "no"
            if sent["valid"] and sent["type"] == "RFID" and sent["whitelist"] != "NEVER":
                wanted = "offline" if sent["whitelist"] == "ALLOWED_OFFLINE" else "at once"
                count += 1
            assert board.knows(uid) == wanted, sent
        assert board.list.count == count


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def hello(board: Reader, site: Site) -> Reader:
    board.hello()
    site.all(board)
    return board


KINDS = [
    {"whitelist": w, "valid": v}
    for w in ("ALWAYS", "ALLOWED", "ALLOWED_OFFLINE", "NEVER")
    for v in (True, False)
]


def test_two_thousand_tokens_and_what_changes_of_them(site: Site) -> None:
    uids = [f"04{i * 104729 % 2**32:08X}0080" for i in range(2300)]
    for i, kind in enumerate(KINDS):
        site.push(*uids[i:400:8], **kind)
    site.push(*uids[400:], whitelist="ALLOWED")
    board = hello(Reader(), site)
    parts = site.sync(board)
    site.right(board)
    assert board.list.count > 2000 and parts == -(-board.list.count // 47)
    assert max(board.sizes) <= 2048
    assert site.sync(board) == 0
    # a change makes one part with that row, and none where a board cannot see it
    later = "2026-02-01T00:00:00Z"
    site.push(uids[0], whitelist="ALLOWED", issuer="Somebody else", last_updated=later)
    assert site.sync(board) == 0
    site.push(uids[0], valid=False)
    site.push(uids[1], whitelist="ALLOWED", valid=True, group_id="G")
    site.push("04CAFE", whitelist="ALLOWED_OFFLINE")
    assert site.sync(board) == 1
    site.right(board)
    sent = [c for head in board.down for c in head.get("commands", [])][-1]["data"]
    assert len(b64decode(sent["rows"])) == 3 * 22


def test_app_users_are_on_no_list(site: Site) -> None:
    for kind in ("APP_USER", "AD_HOC_USER", "OTHER"):
        site.push(f"AA{kind[0]}{kind[1]}", type=kind, whitelist="ALLOWED")
    board = hello(Reader(), site)
    assert site.sync(board) == 0 and board.list.report() == {"v": 0, "n": 0}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_gets_lost(site: Site, tmp_path: Path, seed: int) -> None:
    """Messages lost both ways and out of order, resets, lists that are wiped, tokens that change
    while a sync is on its way, a gateway restored from yesterday: in the end it is right."""
    rng = random.Random(seed)
    uids = [f"04{i:06X}" for i in range(160)]
    board = hello(Reader(), site)
    backup: tuple[Path, dict[str, Any]] | None = None
    kept: list[bytes] = []
    for step in range(80):
        if rng.random() < 0.5:
            site.push(*rng.sample(uids, rng.choice((1, 2, 40))), **rng.choice(KINDS))
        site.clock.advance(rng.choice((10, 1000, 5000, 400_000)))
        board.unix_ms = site.clock()
        event = rng.random()
        if event < 0.05:
            board.power_up()
            board.boot_list()
            site.all(board)
        elif event < 0.07:
            board.files.files.clear()
            board.boot_list()
        elif event < 0.09 and backup is None and step > 20:
            with site.store.begin() as db:
                db.connection().exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copy(tmp_path / "gateway.sqlite3", tmp_path / "backup.sqlite3")
            backup = tmp_path / "backup.sqlite3", dict(site.truth)
        raw = site.south.handle(board.station_id, board.message(), "mqtt")
        if raw is None:
            continue
        kept.append(raw)
        if rng.random() < 0.7:
            board.receive(kept.pop(rng.randrange(len(kept))))
        if len(kept) > 3:
            kept.pop(0)
    if backup is not None:
        (tmp_path / "again").mkdir()
        shutil.copy(backup[0], tmp_path / "again" / "gateway.sqlite3")
        site = Site(tmp_path / "again", site.clock)
        site.truth = backup[1]
        for _ in range(5):
            site.push(rng.choice(uids), **rng.choice(KINDS))
    for _ in range(3):
        site.sync(board)
    site.right(board)


def test_a_list_with_other_rows_than_ours_is_made_anew(site: Site) -> None:
    for i in range(60):
        site.push(f"04{i:06X}")
    board = hello(Reader(), site)
    site.sync(board)
    board.list.count -= 1  # some of it is gone
    assert site.sync(board) == 0  # a version of its own, and a second of quiet
    assert site.sync(board) == 2
    site.right(board)


def test_another_key_s_list_is_made_anew(site: Site) -> None:
    site.push("04AABBCC")
    board = hello(Reader(), site)
    site.sync(board)
    other = mac.Mac(b"as it was before")
    board.list = Whitelist(board.files, other)
    assert board.list.report() == {"v": 0, "n": 0}


def test_syncs_are_apart_and_wait_for_quiet(site: Site) -> None:
    """Each costs the board some erases, and eMSPs push in storms."""
    board = hello(Reader(), site)
    site.push("04AAAAAA")

    def offered() -> bool:
        board.unix_ms = site.clock()
        head = site.up(board)
        assert head is not None
        return bool(head.get("commands"))

    assert not offered(), "a second of quiet first"
    site.clock.advance(1100)
    assert offered() and not offered()
    site.push("04BBBBBB")
    site.clock.advance(200_000)
    assert not offered()
    site.clock.advance(100_000)
    assert offered()
    site.clock.advance(DAY_MS)
    site.push("04BBBBBB", valid=False)  # after a long time a block goes at once
    site.clock.advance(1100)
    assert offered()
    site.right(board)


def test_a_change_is_pushed_to_who_can_be_reached(site: Site) -> None:
    board = hello(Reader(), site)
    site.up(board, link="mqtt")
    site.push("04AAAAAA")
    site.south.tick()
    assert not site.pushed
    site.clock.advance(1100)
    board.sleep(1100)
    site.south.tick()
    ((station_id, raw),) = site.pushed
    assert station_id == board.station_id
    board.receive(raw)
    site.right(board)
    site.south.tick()
    assert len(site.pushed) == 1
    site.up(board, link="mqtt")
    with site.store() as db:
        state = db.get(whitelist.StationList, board.station_id)
        assert state.version == state.target == whitelist.newest(db) == board.list.version


def test_a_first_part_that_got_lost_comes_again_with_the_next_message(site: Site) -> None:
    board = hello(Reader(), site)
    site.up(board, link="mqtt")
    site.push("04AAAAAA")
    site.clock.advance(1100)
    board.sleep(1100)
    site.south.tick()
    assert site.pushed  # and lost
    site.up(board, link="mqtt")
    site.right(board)


def test_more_cards_than_a_board_takes_are_told_to_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whitelist, "LIST_MAX", 3)
    for i in range(4):
        site.push(f"04AAAA{i}0")
    board = hello(Reader(), site)
    assert site.sync(board) == 0
    site.push("04AAAA00", whitelist="NEVER")
    assert site.sync(board) == 1
    site.right(board)


def test_nothing_beside_other_commands(site: Site) -> None:
    """A part fills a message that a board of 96 KiB can take."""
    board = hello(Reader(), site)
    site.push("04AAAAAA")
    site.queue("STOP_SESSION", {"session_id": "S1"})
    site.clock.advance(2000)
    with site.store() as db:
        assert site.desk.pending(db, "DEMO-1", site.clock())
    raw = site.south.handle("DEMO-1", board.message(), "http")
    assert raw is not None and raw.count(b'"type"') == 1 and b"STOP_SESSION" in raw


def test_a_board_without_a_list_is_told_nothing(site: Site) -> None:
    site.push("04AAAAAA")
    board = Board()
    board.hello()
    site.all(board)
    site.clock.advance(300_000)
    site.south.tick()
    head = site.up(board)
    assert head is not None and "commands" not in head and not site.pushed


def test_over_ocpi(tmp_path: Path) -> None:
    """PUT and PATCH reach the list; a platform that leaves takes its cards along."""
    gateway, emsp = Gateway(tmp_path, whitelist_every_s=0), FakeEmsp()
    try:
        client: Client = emsp.register(gateway)
        board = Reader()
        board.hello()

        def talk() -> None:
            gateway.clock.advance(2000)
            board.unix_ms = gateway.clock()
            send = gateway.link(board)
            for _ in range(4):
                raw = send(board.message())
                assert raw is not None
                board.receive(raw)

        def change(method: str, body: dict[str, Any]) -> None:
            assert client.ask(method, "tokens/NL/EMS/04a1b2c3d4e580", body)[1] == 1000
            talk()

        talk()
        change("PUT", token(whitelist="ALWAYS"))
        assert board.knows("04A1B2C3D4E580") == "at once"
        shown = gateway.station()["whitelist"]
        assert shown == {
            "version": board.list.version,
            "rows": 1,
            "wanted": {"rows": 1, "version": board.list.version},
        }
        stamp = {"last_updated": "2026-02-01T00:00:00Z"}
        change("PATCH", {"whitelist": "ALLOWED_OFFLINE"} | stamp)
        assert board.knows("04A1B2C3D4E580") == "offline"
        change("PATCH", {"valid": False} | stamp)
        assert board.knows("04A1B2C3D4E580") == "no"
        change("PATCH", {"valid": True} | stamp)
        assert board.knows("04A1B2C3D4E580") == "offline"
        assert client.ask("DELETE", "credentials")[1] == 1000
        talk()
        assert board.list.count == 0
    finally:
        gateway.stop()
        emsp.stop()


def test_tokens_of_an_older_database(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.push("04AAAAAA")
    with site.store.begin() as db:
        db.query(whitelist.ListedToken).delete()
    with site.store.begin() as db:
        whitelist.install(db, site.clock())
    board = hello(Reader(), site)
    site.sync(board)
    site.right(board)
