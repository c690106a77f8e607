"""The whitelist: what is found, how it is synced in parts, and that no cut leaves half of one.

The list that should be there is kept here as a plain dict; rows are made by the file format that
the module's docstring states.
"""

from binascii import a2b_base64, b2a_base64, hexlify

from wattlock.errors import StorageError
from wattlock.mac import Mac
from wattlock.whitelist import Whitelist

from portable.store import Store

MAC = Mac(b"cards")


def row(uid, kind, owner=("NL", "EMS"), group=""):
    key = MAC(uid.encode())[:8]
    country, party = owner
    while len(party) < 3:
        party += " "
    data = key + (country + party + kind + group).encode()
    return data + bytes(22 - len(data))


def uid_of(i):
    return "%08X" % (0x04000000 + i * 7919)


def parts(rows, since, to, after="", size=47):
    """SYNC_TOKENS of those of these rows that come behind `after`, in parts."""
    rows = [r for r in sorted(rows) if hexlify(r[:13]).decode() > after]
    told = []
    for i in range(0, max(len(rows), 1), size):
        some = rows[i : i + size]
        text = b2a_base64(b"".join(some)).decode().strip()
        data = {"from": since, "to": to, "after": after, "rows": text}
        if i + size >= len(rows):
            data["last"] = True
        told.append(data)
        if some:
            after = hexlify(some[-1][:13]).decode()
    return told


def feed(w, told):
    for data in told:
        w.take(data)
    while w.work is not None:
        w.turn()


def filled(rows, to=5, store=None):
    w = Whitelist(store or Store(), MAC)
    feed(w, parts(rows, 0, to))
    assert w.report() == {"v": to, "n": len(rows)}
    return w


def test_an_empty_list_knows_nobody():
    w = Whitelist(Store(), MAC)
    assert w.report() == {"v": 0, "n": 0}
    assert w.find("04A1B2C3", True) is None
    assert filled([]).find("04A1B2C3", True) is None


def test_each_card_is_found_and_no_other():
    for count in (1, 2, 15, 16, 17, 18, 31, 32, 33, 34, 200):
        w = filled([row(uid_of(i), "A") for i in range(count)])
        for i in range(count):
            token = w.find(uid_of(i), False)
            assert token == {
                "country_code": "NL",
                "party_id": "EMS",
                "type": "RFID",
                "uid": uid_of(i),
            }
        for i in range(count, count + 40):
            assert w.find(uid_of(i), True) is None


def test_uids_of_every_length_in_either_case():
    uids = ("04A1B2C3", "04A1B2C3D4E580", "04A1B2C3D4E5F60718AB")  # ISO 14443-3: 4, 7, 10 bytes
    w = filled([row(uid, "A") for uid in uids])
    for uid in uids:
        assert w.find(uid.lower(), False)["uid"] == uid
        assert w.find(uid[:-1], False) is None


def test_who_may_when():
    w = filled([row("AA", "A"), row("00", "O", ("DE", "X"), "G1234567")])
    assert w.find("AA", False) and w.find("AA", True)
    assert w.find("00", False) is None
    token = w.find("00", True)
    assert token["group_id"] == "G1234567"
    assert (token["country_code"], token["party_id"]) == ("DE", "X")


def test_one_uid_at_two_emsps():
    both = [row("AA", "O", ("DE", "AAA")), row("AA", "A", ("NL", "EMS"))]
    w = filled(both + [row(uid_of(i), "A") for i in range(40)])
    assert w.find("AA", False)["party_id"] == "EMS"
    assert w.find("AA", True)["party_id"] == "AAA"


def test_two_thousand_tokens_and_what_a_look_up_reads():
    store = Store()
    w = filled([row(uid_of(i), "A") for i in range(2000)], store=store)
    assert len(store.files["list"]) == 2001 * 22
    read = []
    inner = store.read

    def count(name, offset, n):
        data = inner(name, offset, n)
        read.append(len(data))
        return data

    store.read = count
    for i in range(0, 2000, 97):
        assert w.find(uid_of(i), False)
        assert len(read) <= 9 and sum(read) < 800, read
        del read[:]


def test_a_delta_adds_changes_and_removes():
    old = [row(uid_of(i), "A") for i in range(100)]
    w = filled(old)
    feed(
        w,
        parts(
            [row(uid_of(3), "-"), row(uid_of(4), "O"), row(uid_of(777), "A")]
            + [row(uid_of(888), "-")],  # never was there
            5,
            9,
        ),
    )
    assert w.report() == {"v": 9, "n": 100}
    assert w.find(uid_of(3), True) is None
    assert w.find(uid_of(4), False) is None and w.find(uid_of(4), True)
    assert w.find(uid_of(777), False)
    for i in range(5, 100):
        assert w.find(uid_of(i), False)
    again = Whitelist(w.shelf, MAC)  # after a reset
    assert again.report() == {"v": 9, "n": 100} and again.find(uid_of(777), False)


def test_a_full_sync_forgets_what_it_does_not_bring():
    w = filled([row(uid_of(i), "A") for i in range(100)])
    feed(w, parts([row(uid_of(500), "A")], 0, 7))
    assert w.report() == {"v": 7, "n": 1} and w.find(uid_of(1), True) is None


def test_parts_that_are_repeated_late_or_not_the_next_change_nothing():
    told = parts([row(uid_of(i), "A") for i in range(150)], 0, 5)
    assert len(told) == 4
    w = Whitelist(Store(), MAC)
    for data in (told[1], told[0], told[2], told[0], told[1], told[1], told[3], told[2]):
        w.take(data)
    assert w.work is None and w.report()["to"] == 5
    for data in (told[3], told[3]):
        w.take(data)
    feed(w, [])
    assert w.report() == {"v": 5, "n": 150}
    feed(w, told[3:])  # it is over
    feed(w, parts([row("AA", "-")], 4, 6))  # from a version that is not here
    assert w.report() == {"v": 5, "n": 150}


def test_a_sync_goes_on_after_a_reset_where_it_was():
    told = parts([row(uid_of(i), "A") for i in range(150)], 0, 5)
    store = Store()
    w = Whitelist(store, MAC)
    for data in told[:2]:
        w.take(data)
    at = w.report()
    assert at["after"] == told[2]["after"]
    w = Whitelist(store, MAC)
    assert w.report() == at
    feed(w, told[2:])
    assert w.report() == {"v": 5, "n": 150}


def test_what_is_no_part():
    (good,) = parts([row("AA", "A"), row("BB", "A")], 0, 5)
    rows = a2b_base64(good["rows"])
    turned = b2a_base64(rows[22:] + rows[:22]).decode()
    short = b2a_base64(rows[:-1]).decode()
    for key, value in (
        ("from", None), ("from", "0"), ("from", -1), ("to", 0), ("to", 1 << 60), ("to", [1]),
        ("after", None), ("after", 3), ("after", "00" * 13), ("rows", None), ("rows", "#"),
        ("rows", short), ("rows", turned), ("last", "yes"),
    ):  # fmt: skip
        data = dict(good)
        data[key] = value
        w = Whitelist(Store(), MAC)
        feed(w, [data])
        assert w.count == 0, (key, value)
    feed(w, [good])
    assert w.report() == {"v": 5, "n": 2}


def test_a_damaged_list_is_none():
    whole = filled([row(uid_of(i), "A") for i in range(40)]).shelf.files["list"]
    for i in list(range(0, len(whole), 61)) + list(range(len(whole) - 22, len(whole))):
        bad = bytearray(whole)
        bad[i] ^= 0x20
        w = Whitelist(Store({"list": bytes(bad)}), MAC)
        if 40 * 22 + 3 <= i < 40 * 22 + 11:
            assert w.version != 5  # the gateway does not know it and begins anew
        else:
            assert w.report() == {"v": 0, "n": 0}, i
    for bad in (b"", whole[:-1], whole[:-22], whole[22:], whole + b"x", whole[:10]):
        assert Whitelist(Store({"list": bad}), MAC).report() == {"v": 0, "n": 0}
    other = Whitelist(Store({"list": whole}), Mac(b"another station's"))
    assert other.report() == {"v": 0, "n": 0}


def test_power_cut_at_every_write_of_a_delta():
    """The old list or the new one, whole; and the sync goes on to its end."""
    old = {uid_of(i): "A" for i in range(70)}
    change = [row(uid_of(3), "-")] + [row(uid_of(100 + i), "A") for i in range(60)]
    for done in (0, 1, 2):
        at = 1
        while True:
            store = Store()
            w = filled([row(uid, kind) for uid, kind in old.items()], store=store)
            store.fail_at = at
            store.done = done
            cut = False
            try:
                feed(w, parts(change, 5, 6))
            except StorageError:
                cut = True
            store.fail_at = None
            w = Whitelist(store, MAC)  # the next boot
            now = w.report()
            assert (now["v"], now["n"]) in ((5, 70), (6, 129)), (at, done, now)
            assert (w.find(uid_of(3), False) is None) is (now["v"] == 6)
            if now["v"] == 5:
                feed(w, parts(change, 5, 6, now.get("after", "")))
            assert w.report() == {"v": 6, "n": 129}, (at, done, now)
            if not cut:
                break
            at += 1
        assert at > 4
