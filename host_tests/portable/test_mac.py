"""HMAC-SHA256 against the vectors of RFC 4231 whose key fits a block; keys by purpose; equal."""

from binascii import unhexlify

from wattlock import mac

VECTORS = (  # RFC 4231 4.2 to 4.6: key, data, HMAC-SHA-256
    (
        b"\x0b" * 20,
        b"Hi There",
        "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
    ),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (
        b"\xaa" * 20,
        b"\xdd" * 50,
        "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
    ),
    (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
)


def test_rfc_4231():
    for key, data, want in VECTORS:
        assert mac.Mac(key)(data) == unhexlify(want)


def test_truncated_vector():
    # 4.6 shows 128 bits only
    got = mac.Mac(b"\x0c" * 20)(b"Test With Truncation")
    assert got[:16] == unhexlify("a3b6167473100ee06e0c796c2955552b")


def test_parts_are_one_text():
    for cut in range(29):
        text = VECTORS[1][1]
        assert mac.Mac(b"Jefe")(text[:cut], memoryview(text)[cut:]) == unhexlify(VECTORS[1][2])


def test_a_key_of_a_whole_block():
    # computed with OpenSSL: openssl dgst -sha256 -mac HMAC -macopt hexkey:... of 64 bytes 00..3f
    want = "45a8903a664d62ca4053fade78982cb1681b0551a449d37bb97d2304d3ec457f"
    assert mac.Mac(bytes(range(64)))(b"Wattlock") == unhexlify(want)


def test_purposes_have_keys_of_their_own():
    said = [mac.purpose(bytes(32), what, "DEMO-1")(b"x") for what in ("up", "down", "chain")]
    said.append(mac.purpose(bytes(32), "up", "DEMO-2")(b"x"))
    assert len(set(said)) == 4


def test_equal():
    cases = ((b"", b""), (b"a", b"a"), (b"ab", b"ab"), (b"\0" * 64, b"\0" * 64))
    for a, b in cases:
        assert mac.equal(a, b) and mac.equal(bytearray(a), b)
    for a, b in ((b"a", b"b"), (b"a", b""), (b"", b"a"), (b"ab", b"a"), (b"ab", b"b")):
        assert not mac.equal(a, b)
    one = bytes(range(64))
    for i in range(64):
        for bit in range(8):
            other = bytearray(one)
            other[i] ^= 1 << bit
            assert not mac.equal(one, other)


class Counted:
    def __init__(self, data):
        self.data = data
        self.looks = 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        self.looks += 1
        return self.data[i]


def test_equal_looks_at_every_byte_wherever_the_first_difference_is():
    one = bytes(64)
    for other in (one, b"\1" + one[1:], one[:-1] + b"\1", b"\xff" * 64):
        counted = Counted(other)
        assert mac.equal(one, counted) is (other == one)
        assert counted.looks == 64
