"""Both links in the VM, over TLS, against real servers: mosquitto, and the gateway's HTTPS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_tests.link_kit import CLIENT, PLAIN, Certificates, Land


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


def test_every_wrong_server_is_refused_and_named_in_a_record(land: Land) -> None:
    land.point("good")
    land.provision(land.certificates.secrets())
    land.board.power_on()
    land.hurrying(land.told)
    boot = land.board.boot()
    for name in (*WRONG, PLAIN):
        word = "tls_plain" if name == PLAIN else name
        land.point(name)
        land.hurrying(lambda word=word: word in land.console())
        assert land.board.boot() == boot
    land.point("good")
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
