"""Records -> Sessions and CDRs: exact, repeatable, dated as well as can be."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete

from host_tests.gateway_kit import board_token, config_of
from host_tests.test_gateway_southbound import Bare
from host_tests.uplink_peer import Board
from tools.emsp import models
from tools.gateway import ocpi
from tools.gateway.config import ConfigError, parse_config
from tools.gateway.dating import Timeline
from tools.gateway.projection import Teller, cost_of
from tools.gateway.store import Alarm, CdrRow, Record, SessionRow

T0 = 1_790_000_000_000


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


def session(bare: Bare, session_id: str = "S1") -> dict[str, Any]:
    with bare.store() as db:
        row = db.get_one(SessionRow, session_id)
        assert row.object is not None, "the session is not told yet"
        shown: dict[str, Any] = json.loads(row.object, parse_float=Decimal)
    models.Session.model_validate(shown)
    return shown


def cdrs(bare: Bare) -> list[dict[str, Any]]:
    with bare.store() as db:
        texts = [row.object for row in db.query(CdrRow).order_by(CdrRow.number)]
    found = [json.loads(text, parse_float=Decimal) for text in texts]
    for cdr in found:
        models.Cdr.model_validate(cdr)
    return found


def charging(board: Board) -> None:
    """One session with each kind of period: 7,001 Wh in 1,800 s + 900 s + 60 s."""
    board.start("S1", board_token(), auth_method="WHITELIST", source="card")
    board.period("S1", 6_999, 1_800_000, max_w=14_000)
    board.period("S1", 2, 900_000, "not_requesting")
    board.period("S1", 0, 60_000, "not_offered")
    board.stop("S1", "unplugged")


# --- numbers


@given(st.integers(0, 10**11))
def test_kwh_is_exact_on_the_wire(wh: int) -> None:
    """Whatever the Wh, the JSON text is the decimal fraction: no float residue."""
    text = ocpi.dumps({"kwh": ocpi.kwh(wh)})
    assert Decimal(text.split(":")[1].rstrip("}")) * 1000 == wh
    fraction = text.split(":")[1].rstrip("}").partition(".")[2]
    assert len(fraction) <= 3 and "e" not in text.split(":")[1]


@pytest.mark.parametrize(
    ("wh", "text"), [(12345, "12.345"), (0, "0"), (1, "0.001"), (100, "0.1"), (7000, "7")]
)
def test_kwh_examples(wh: int, text: str) -> None:
    assert ocpi.dumps(ocpi.kwh(wh)) == text


@pytest.mark.parametrize(
    ("ms", "hours"),
    [(3_600_000, "1"), (1_000, "0.0003"), (900_000, "0.25"), (7_103_000, "1.9731"), (0, "0")],
)
def test_hours_have_four_decimals(ms: int, hours: str) -> None:
    """types, number: 4 decimals. The CDR example of the standard: 21:39:09 to 23:37:32."""
    assert ocpi.hours(ms) == Decimal(hours)


@pytest.mark.parametrize(
    ("text", "unix_ms"),
    [
        ("2015-06-29T20:39:09Z", 1435610349000),
        ("2015-06-29T20:39:09", 1435610349000),
        ("2016-12-29T17:45:09.2Z", 1483033509200),
        ("2018-01-01T01:08:01.123", 1514768881123),
    ],
)
def test_datetimes_of_the_standard(text: str, unix_ms: int) -> None:
    assert ocpi.parse_datetime(text) == unix_ms
    assert ocpi.parse_datetime(ocpi.format_datetime(unix_ms)) == unix_ms


@pytest.mark.parametrize(
    "text",
    [
        "2015-06-29T20:39:09+00:00",
        "2015-06-29",
        "2015-06-29 20:39:09Z",
        "",
        "now",
        "2015-13-29T20:39:09Z",
        "2015-06-29T20:39:09.123456Z",
    ],
)
def test_what_is_no_datetime(text: str) -> None:
    with pytest.raises(ValueError, match=r"DateTime|month"):
        ocpi.parse_datetime(text)


# --- Session and CDR


def test_a_card_session(bare: Bare) -> None:
    board = Board()
    board.hello()
    start_ms = board.unix_ms
    charging(board)
    bare.all(board)
    told = session(bare)
    assert told["status"] == "COMPLETED" and told["kwh"] == Decimal("7.001")
    assert told["start_date_time"] == ocpi.format_datetime(start_ms)
    assert told["end_date_time"] == ocpi.format_datetime(start_ms + 2_760_000)
    assert (told["auth_method"], told["evse_uid"], told["connector_id"]) == (
        "WHITELIST",
        "E1",
        "1",
    )
    (cdr,) = cdrs(bare)
    assert (
        cdr["charging_periods"]
        == told["charging_periods"]
        == [
            {
                "start_date_time": ocpi.format_datetime(start_ms),
                "dimensions": [
                    {"type": "ENERGY", "volume": Decimal("6.999")},
                    {"type": "TIME", "volume": Decimal("0.5")},
                    {"type": "MAX_POWER", "volume": 14},
                ],
            },
            {
                "start_date_time": ocpi.format_datetime(start_ms + 1_800_000),
                "dimensions": [
                    {"type": "ENERGY", "volume": Decimal("0.002")},
                    {"type": "PARKING_TIME", "volume": Decimal("0.25")},
                ],
            },
            {
                "start_date_time": ocpi.format_datetime(start_ms + 2_700_000),
                "dimensions": [{"type": "ENERGY", "volume": 0}],
            },
        ]
    )
    assert cdr["total_energy"] == Decimal("7.001")
    assert cdr["total_time"] == Decimal("0.7667")  # 2,760 s
    assert cdr["total_parking_time"] == Decimal("0.2667")  # 960 s without energy
    assert cdr["total_cost"] == {"excl_vat": 0} and cdr["currency"] == "EUR"
    assert cdr["remark"] == "ended by: unplugged"
    assert cdr["meter_id"] == "SN-1"
    assert cdr["cdr_token"]["contract_id"] == "#NA"  # nobody told it


def test_a_reservation_that_is_used(bare: Bare) -> None:
    board = Board()
    board.hello()
    reserve = {
        "id": "0" * 32,
        "type": "RESERVE_NOW",
        "data": {
            "evse": 1,
            "reservation_id": "G1",
            "token": board_token(),
            "expiry_ms": T0 + 900_000,
            "authorization_reference": "REF-1",
        },
    }
    board.reserve(reserve, "S1")
    bare.all(board)
    reserved_ms = board.unix_ms
    told = session(bare)
    assert (told["status"], told["kwh"], told["auth_method"]) == ("RESERVATION", 0, "COMMAND")
    created = told["start_date_time"]
    board.sleep(360_000)
    start_ms = board.unix_ms
    board.start("S1", board_token("04GROUP"), auth_method="WHITELIST", reservation_id="G1")
    board.write("release", evse=1, reservation_id="G1", session_id="S1", cause="used")
    bare.all(board)
    told = session(bare)
    assert (told["status"], told["kwh"]) == ("ACTIVE", 0)
    assert told["start_date_time"] == ocpi.format_datetime(start_ms)
    assert told["cdr_token"]["uid"] == "04GROUP"  # the one that started
    assert told["auth_method"] == "WHITELIST"  # the last that authorised
    assert told["authorization_reference"] == "REF-1"  # absence does not erase
    (waiting,) = told["charging_periods"]
    assert waiting["dimensions"][0]["type"] == "RESERVATION_TIME"
    assert abs(waiting["dimensions"][0]["volume"] - Decimal("0.1")) <= Decimal("0.0001")
    board.period("S1", 100, 60_000)
    board.stop("S1")
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert cdr["start_date_time"] == created and reserved_ms >= T0  # the reservation's start
    assert cdr["total_time"] == Decimal("0.0167")  # of the charging


def test_a_board_speaks_of_its_own_sessions_only(bare: Bare) -> None:
    board, other = Board(), Board("DEMO-2", "ab" * 32)
    board.hello()
    board.start("S1", board_token())
    bare.all(board)
    other.hello()
    other.start("S1", board_token("04STRANGER"))
    other.period("S1", 50_000, 1000)
    other.stop("S1")
    other.live["1"] = {"status": "CHARGING", "session": "S1", "wh": 99_000}
    bare.all(other)
    told = session(bare)
    assert (told["status"], told["kwh"], told["evse_uid"]) == ("ACTIVE", 0, "E1")
    assert cdrs(bare) == []


@pytest.mark.parametrize("cause", ["expired", "cancelled_by_emsp", "cancelled_by_cpo"])
def test_a_reservation_that_is_not_used(bare: Bare, cause: str) -> None:
    """COMPLETED, never INVALID; a CDR from the reservation's start, with at least one period, that
    says how it ended."""
    board = Board()
    board.hello()
    data = {"evse": 1, "reservation_id": "G1", "token": board_token(), "expiry_ms": T0 + 900_000}
    board.reserve({"id": "0" * 32, "type": "RESERVE_NOW", "data": data}, "S1")
    reserved_ms = board.unix_ms
    board.sleep(900_000)
    board.write("release", evse=1, reservation_id="G1", session_id="S1", cause=cause)
    bare.all(board)
    told = session(bare)
    assert (told["status"], told["kwh"]) == ("COMPLETED", 0)
    assert told["charging_periods"][0]["dimensions"] == [
        {"type": "RESERVATION_TIME", "volume": Decimal("0.25")}
    ]
    assert bare.rows(SessionRow)[0].end_cause == cause
    (cdr,) = cdrs(bare)
    models.Cdr.model_validate(cdr)
    assert cdr["charging_periods"] == told["charging_periods"]
    assert cdr["start_date_time"] == ocpi.format_datetime(reserved_ms)
    assert cdr["end_date_time"] == ocpi.format_datetime(reserved_ms + 900_000)
    assert (cdr["total_energy"], cdr["total_time"], cdr["total_parking_time"]) == (0, 0, 0)
    assert cdr["total_cost"] == {"excl_vat": 0} and cdr["session_id"] == "S1"
    assert cdr["remark"] == f"ended by: {cause}"


@pytest.mark.parametrize("new_one_first", [True, False])
def test_a_replaced_reservation_keeps_its_session(bare: Bare, new_one_first: bool) -> None:
    """In whichever order a board writes the two records of a move."""
    board = Board()
    board.hello()
    data = {"evse": 1, "reservation_id": "G1", "token": board_token(), "expiry_ms": T0 + 900_000}
    board.reserve({"id": "0" * 32, "type": "RESERVE_NOW", "data": data}, "S1")
    if new_one_first:
        board.reserve({"id": "1" * 32, "type": "RESERVE_NOW", "data": data}, "S1")
    board.write("release", evse=1, reservation_id="G1", session_id="S1", cause="replaced")
    if not new_one_first:
        board.reserve({"id": "1" * 32, "type": "RESERVE_NOW", "data": data}, "S1")
    bare.all(board)
    assert session(bare)["status"] == "RESERVATION"


def test_free_vend_makes_no_ocpi_session(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.start("S1", None, source="free_vend")
    board.period("S1", 100, 1000)
    board.stop("S1")
    bare.all(board)
    assert [row.object for row in bare.rows(SessionRow)] == [None] and cdrs(bare) == []


def test_a_session_without_periods_still_has_one_in_its_cdr(bare: Bare) -> None:
    board = Board()
    board.hello()
    board.start("S1", board_token())
    board.stop("S1")
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert [d["type"] for d in cdr["charging_periods"][0]["dimensions"]] == ["ENERGY"]


def test_a_session_whose_meter_never_spoke_is_told(bare: Bare) -> None:
    """A board that requires no meter: no register, no serial, no energy, and still a CDR."""
    board = Board()
    board.hello()
    none = {"register_wh": None, "serial": None}
    start = {"session_id": "S1", "token": board_token(), "auth_method": "COMMAND",
             "source": "remote", "epoch": 0, "outside_wh": 0, "stale": True}  # fmt: skip
    stop = {"session_id": "S1", "cause": "local", "total_wh": 0, "unobserved_wh": 0}
    for t, fields in (("start", start), ("stop", stop | {"at": board.now()})):
        body = {"t": t, "boot": board.boot, "up_ms": board.up_ms, "evse": 1}
        board.write_raw(json.dumps(body | fields | none).encode())
    bare.all(board)
    assert session(bare)["status"] == "COMPLETED" and session(bare)["kwh"] == 0
    (cdr,) = cdrs(bare)
    assert cdr["total_energy"] == 0 and "meter_id" not in cdr
    assert bare.rows(Alarm) == []


def test_what_flowed_back_is_stored_and_not_billed(bare: Bare) -> None:
    """7.000 kWh in, 2.345 kWh back in the session and 1 kWh outside it: the CDR is of the 7.000,
    and says in words what it leaves out."""
    board = Board()
    board.hello()
    board.start("S1", board_token())
    board.period("S1", 7_000, 1_800_000)
    known: dict[str, Any] = {"evse": 1, "serial": "SN-1", "unobserved_wh": 0, "what": "counted"}
    back = known | {"session_id": "S1"}
    board.write("export", **back, before_wh=0, after_wh=2_000, wh=2_000)
    board.write("export", **back, before_wh=2_000, after_wh=2_345, wh=345)
    board.stop("S1")
    outside = {"t": "export", "boot": board.boot, "up_ms": board.up_ms, "session_id": None}
    outside |= {"before_wh": 2_345, "after_wh": 3_345, "wh": 1_000}
    board.write_raw(json.dumps(outside | known).encode())
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert cdr["total_energy"] == 7 == session(bare)["kwh"]
    assert "fed back: 2.345 kWh" in cdr["remark"]
    with bare.store() as db:
        stored = [json.loads(row.body)["wh"] for row in db.query(Record).filter_by(t="export")]
    assert stored == [2_000, 345, 1_000]
    assert bare.rows(Alarm) == []


def test_completed_is_never_touched_again(bare: Bare) -> None:
    board = Board()
    board.hello()
    charging(board)
    bare.all(board)
    before = session(bare), cdrs(bare)
    board.period("S1", 500, 1000)
    board.stop("S1")
    board.live["1"] = {"status": "CHARGING", "session": "S1", "wh": 99_999}
    board.anchor(step=True)
    bare.all(board)
    assert (session(bare), cdrs(bare)) == before


def test_a_replay_of_the_records_gives_the_same(bare: Bare) -> None:
    """The record table is the truth: projected again from nothing, all reads the same."""
    board = Board()
    board.hello()
    charging(board)
    bare.all(board)
    told, bill = session(bare), cdrs(bare)
    with bare.store.begin() as db:
        db.execute(delete(SessionRow))
        db.execute(delete(CdrRow))
    with bare.store.begin() as db:
        Teller(bare.catalog).tell(db, "S1", bare.clock())
        Teller(bare.catalog).tell(db, "S1", bare.clock() + 5)
    again = session(bare)
    assert again | {"last_updated": 0} == told | {"last_updated": 0}
    assert [cdr | {"last_updated": 0} for cdr in cdrs(bare)] == [
        cdr | {"last_updated": 0} for cdr in bill
    ]


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_cut_into_messages_does_not_matter(tmp_path: Path, limit: int) -> None:
    bills = []
    for size in (4, limit):
        bare = Bare(tmp_path / str(size) / str(limit))
        board = Board(journal="5f1c09aa")
        board.hello()
        charging(board)
        while board.acked < len(board.records):
            bare.up(board, board.message(limit=size))
        bills.append([cdr | {"last_updated": 0} for cdr in cdrs(bare)])
    assert bills[0] == bills[1]


# --- dates


def test_nothing_is_told_before_the_start_has_a_date(bare: Bare) -> None:
    board = Board()
    start_ms = board.unix_ms
    board.start("S1", board_token())
    board.period("S1", 10, 60_000)
    bare.all(board)
    assert bare.rows(SessionRow)[0].object is None
    board.sleep(5_000)
    board.anchor()  # the clock is learnt late
    bare.all(board)
    told = session(bare)
    assert told["start_date_time"] == ocpi.format_datetime(start_ms)
    assert told["status"] == "ACTIVE" and told["kwh"] == Decimal("0.01")


def test_a_step_corrects_what_is_not_finished(bare: Bare) -> None:
    board = Board()
    truth_ms = board.unix_ms
    board.unix_ms -= 7_200_000  # the clock kept over the reset was two hours late
    board.anchor()
    board.start("S1", board_token())
    bare.all(board)
    assert session(bare)["start_date_time"] == ocpi.format_datetime(truth_ms - 7_200_000)
    board.unix_ms += 7_200_000
    board.anchor(step=True)
    bare.all(board)
    assert session(bare)["start_date_time"] == ocpi.format_datetime(truth_ms)


def test_the_end_lies_in_an_earlier_boot(bare: Bare) -> None:
    """Power loss, no resume: `stop` is written in boot 2, its `at` is a moment of boot 1."""
    board = Board()
    board.hello()
    board.start("S1", board_token())
    board.period("S1", 50, 60_000)
    end, end_ms = board.now(), board.unix_ms
    board.unix_ms += 3_600_000
    board.power_up()
    board.write(
        "stop",
        evse=1,
        session_id="S1",
        cause="power_loss",
        at=end,
        total_wh=50,
        register_wh=1_000_050,
        unobserved_wh=0,
    )
    bare.all(board)
    assert session(bare)["end_date_time"] == ocpi.format_datetime(end_ms)
    assert cdrs(bare)[0]["total_time"] == Decimal("0.0167")


def test_a_boot_without_time_lies_between_its_neighbours(bare: Bare) -> None:
    """Boot 2 learns no time: the session in it is dated once boot 3 does."""
    board = Board()
    board.hello()
    board.sleep(60_000)
    board.write("event", what="supervisor", task="last of boot 1")
    before_ms = board.unix_ms
    board.unix_ms += 100_000
    board.power_up()
    board.unix_ms += 1_000
    true_ms = board.unix_ms
    board.start("S1", board_token())
    board.period("S1", 10, 60_000)
    bare.all(board)
    assert bare.rows(SessionRow)[0].object is None
    board.unix_ms += 200_000
    after_ms = board.unix_ms
    board.power_up()
    board.hello()
    board.begin = [2, 61_000]
    bare.all(board)
    start_ms = ocpi.parse_datetime(session(bare)["start_date_time"])
    assert before_ms <= start_ms <= after_ms
    assert abs(start_ms - true_ms) <= 150_000  # half of the 300 s nobody can know


def test_timeline_uses_the_anchor_before(bare: Bare) -> None:
    """What is dated once stays so: a later anchor does not move an earlier moment."""
    board = Board()
    board.hello()
    moment = board.up_ms + 10_000
    board.sleep(20_000)
    board.unix_ms += 3  # drift
    board.anchor()
    bare.all(board)
    with bare.store() as db:
        assert Timeline(db, "DEMO-1").date(board.journal, 1, moment) == T0 + 10_000
        assert Timeline(db, "DEMO-1").date(board.journal, 1, 0) == T0 - 1000
        assert Timeline(db, "DEMO-1").date(board.journal, 9, 0) is None


# --- cost


def tariff(price: Any, step_size: int = 1, vat: Any = None) -> dict[str, Any]:
    component = {"type": "ENERGY", "price": price, "step_size": step_size}
    if vat is not None:
        component["vat"] = vat
    return {"id": "12", "currency": "EUR", "elements": [{"price_components": [component]}]}


@pytest.mark.parametrize(
    ("shown", "wh", "excl", "incl"),
    [
        (tariff(Decimal("0.25")), 20_000, "5", None),  # by hand: 20 kWh x 0.25
        (tariff(Decimal("0.1"), 1, 20), 30_000, "3", "3.6"),
        (tariff(Decimal("0.3"), 500), 5_400, "1.65", None),  # 5.4 rounds up to 5.5 kWh
        (tariff(Decimal("0.2"), 1000), 0, "0", None),
        (tariff(Decimal("0.1")), 3, "0.0003", None),
        (tariff(Decimal("0.1"), 1, 0), 1000, "0.1", "0.1"),  # 0 % is not "no VAT"
    ],
)
def test_cost(shown: dict[str, Any], wh: int, excl: str, incl: str | None) -> None:
    cost = cost_of(shown, wh)
    assert cost is not None and cost["excl_vat"] == Decimal(excl)
    assert cost.get("incl_vat") == (None if incl is None else Decimal(incl))


def test_the_tariff_of_the_start_is_billed(tmp_path: Path) -> None:
    """CDR: tariffs and location "as they were at the start of the charging session"."""
    config = config_of(tmp_path, tariffs=[tariff(0.25)])
    connector = config["locations"][0]["evses"][0]["connectors"][0]
    connector["tariff_ids"] = ["12"]
    board = Board()
    board.hello()
    bare = Bare(tmp_path, tariffs=config["tariffs"], locations=config["locations"])
    board.start("S1", board_token())
    bare.all(board)
    config["locations"][0]["address"] = "Renamed 1"
    bare = Bare(tmp_path, bare.clock, tariffs=[tariff(99)], locations=config["locations"])
    board.period("S1", 10_000, 60_000)
    board.stop("S1")
    bare.all(board)
    (cdr,) = cdrs(bare)
    assert cdr["total_cost"] == {"excl_vat": Decimal("2.5")}
    assert cdr["tariffs"][0]["elements"][0]["price_components"][0]["price"] == Decimal("0.25")
    assert cdr["cdr_location"]["address"] == "F.Rooseveltlaan 3A"
    assert {p.get("tariff_id") for p in cdr["charging_periods"]} == {"12"}


# --- configuration


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        (
            {"party": {"country_code": "BEL", "party_id": "BEC", "name": "x"}},
            "party.country_code",
            "2",
        ),
        ({"stations": {"DEMO 1": {"key": "00" * 32}}}, "DEMO 1", "A-Z"),
        ({"stations": {"DEMO-1": {"key": "xyz"}}}, "stations.DEMO-1.key", "match"),
        ({"stations": {"DEMO-1": {"key": "00" * 32}}}, "DEMO-2", "add its key"),
        ({"locations": []}, "locations", "at least 1"),
        ({"tariffs": [{**tariff(1), "max_price": {"excl_vat": 5}}]}, "tariffs: 12", "remove"),
        (
            {
                "tariffs": [
                    {
                        "id": "12",
                        "currency": "EUR",
                        "elements": [
                            {"price_components": [{"type": "TIME", "price": 2, "step_size": 300}]}
                        ],
                    }
                ]
            },
            "tariffs: 12",
            "simplify",
        ),
        ({"command_timeout_s": "soon"}, "command_timeout_s", "integer"),
        ({"colour": "red"}, "colour", "not permitted"),
        ({"registration_tokens": ["has blank in it"]}, "registration_tokens", "match"),
    ],
)
def test_a_wrong_configuration_names_field_and_remedy(
    tmp_path: Path, change: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(config_of(tmp_path, **change))
    assert field in str(error.value) and remedy in str(error.value)


def test_configuration_errors_keep_secrets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(config_of(tmp_path, stations={"DEMO-1": {"key": "secret-but-no-hex"}}))
    assert "secret-but" not in str(error.value)


def test_one_board_evse_is_one_ocpi_evse(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    evses = config["locations"][0]["evses"]
    evses[1]["board"] = evses[0]["board"]
    with pytest.raises(ConfigError, match="mapped twice"):
        parse_config(config)
    config = config_of(tmp_path)
    config["locations"][0]["evses"][1]["uid"] = "e1"
    with pytest.raises(ConfigError, match="uid is used twice"):
        parse_config(config)
    config = config_of(tmp_path)
    config["locations"][0]["evses"][0]["connectors"][0]["tariff_ids"] = ["none"]
    with pytest.raises(ConfigError, match="define it"):
        parse_config(config)
