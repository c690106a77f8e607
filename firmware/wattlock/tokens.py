"""Tokens: who somebody is.

A token is (country_code, party_id, type, uid); uids compare without case. Two tokens share a
group only within one eMSP (same country_code and party_id). An RFID card shows a type and a uid
and nothing else: it is the holder's card when both agree with a known token.
"""

KEYS = ("country_code", "party_id", "type", "uid")


def clean(token):
    """The identifying fields of an OCPI Token, or None when one is missing or no string."""
    out = {}
    for key in KEYS:
        value = token.get(key) if isinstance(token, dict) else None
        if not is_word(value):
            return None
        out[key] = value
    if is_word(token.get("group_id")):
        out["group_id"] = token["group_id"]
    return out


def is_word(value):
    """Is it 1 to 36 printable ASCII characters, as OCPI's CiString(36) has them?"""
    if not isinstance(value, str) or not 0 < len(value) <= 36:
        return False
    try:
        data = value.encode()  # of a str, each character would become a name that stays
    except ValueError:
        return False
    return 32 <= min(data) and max(data) <= 126


def same(a, b):
    """Are these two the same token?"""
    for key in KEYS:
        if a[key].upper() != b[key].upper():
            return False
    return True


def same_group(a, b):
    """Do these two belong to one group of one eMSP?"""
    for key in ("group_id", "country_code", "party_id"):
        if a.get(key) is None or b.get(key) is None or a[key].upper() != b[key].upper():
            return False
    return True


def is_card(token, type_, uid):
    """Is the card that was shown (type, uid) this token?"""
    return token["type"] == type_ and token["uid"].upper() == uid.upper()
