"""Who somebody is: OCPI Tokens 2.2.1, 12.3.2 (uid and group_id are CiString(36)) and our notes."""

from wattlock import tokens


def token(**changes):
    one = {"country_code": "NL", "party_id": "EMS", "type": "RFID", "uid": "04A1B2C3"}
    one.update(changes)
    return one


def test_clean_keeps_what_identifies():
    full = token(group_id="G1", contract_id="NL-EMS-1", valid=True, issuer="x")
    assert tokens.clean(full) == token(group_id="G1")
    assert tokens.clean(token()) == token()


def test_clean_refuses_what_is_no_token():
    for key in ("country_code", "party_id", "type", "uid"):
        for value in (None, 1, "", "x" * 37, [], "a\nb", "ü"):
            assert tokens.clean(token(**{key: value})) is None, (key, value)
        less = token()
        del less[key]
        assert tokens.clean(less) is None
    for value in (None, "text", 3, [], {}):
        assert tokens.clean(value) is None


def test_a_group_that_is_none_opens_nothing():
    for value in (None, 1, "", "x" * 37, {}):
        assert tokens.clean(token(group_id=value)) == token()


def test_same_is_all_four_and_ignores_case():
    assert tokens.same(token(), token(uid="04a1b2c3", country_code="nl", party_id="ems"))
    for key, value in (
        ("country_code", "DE"),
        ("party_id", "OTH"),
        ("type", "APP_USER"),
        ("uid", "04A1B2C4"),
    ):
        assert not tokens.same(token(), token(**{key: value}))


def test_group_counts_within_one_emsp():
    mine = token(group_id="G1")
    assert tokens.same_group(mine, token(uid="04FF", group_id="G1"))
    assert not tokens.same_group(mine, token(uid="04FF", group_id="G1", party_id="OTH"))
    assert not tokens.same_group(mine, token(uid="04FF", group_id="G1", country_code="DE"))
    assert not tokens.same_group(mine, token(uid="04FF", group_id="G2"))
    assert tokens.same_group(mine, token(uid="04FF", group_id="g1"))  # a CiString, too
    assert not tokens.same_group(token(), token(uid="04FF"))


def test_a_card_is_type_and_uid():
    assert tokens.is_card(token(), "RFID", "04a1b2c3")
    assert not tokens.is_card(token(), "RFID", "04A1B2C4")
    # an RFID card never opens an APP_USER's reservation of equal uid
    assert not tokens.is_card(token(type="APP_USER"), "RFID", "04A1B2C3")
