"""Setup: made once, remade when its inputs change, and honest about what is missing.

Its downloads are not repeated here: that this suite runs shows them.
"""

import re
from pathlib import Path

import pytest

from tools import paths, setup


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the project's."""
    root = paths.ROOT
    for name, path in list(vars(paths).items()):
        if isinstance(path, Path):
            monkeypatch.setattr(paths, name, tmp_path / path.relative_to(root))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    (tmp_path / ".cache").mkdir()
    return tmp_path / ".cache"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_part_is_made_once_and_again_when_its_inputs_change(cache: Path) -> None:
    product = cache / "thing"

    def make(inputs: str) -> bool:
        with setup.part("thing", product, inputs) as wanted:
            if wanted:
                product.touch()
        return wanted

    assert [make("1"), make("1"), make("2"), make("2")] == [True, False, True, False]
    product.unlink()
    assert make("2")


def test_a_part_that_failed_is_tried_again(cache: Path) -> None:
    product = cache / "thing"
    product.touch()
    with pytest.raises(setup.Missing), setup.part("thing", product, "1"):
        raise setup.Missing("no luck")
    with setup.part("thing", product, "1") as wanted:
        assert wanted


def test_a_launcher_starts_the_program_through_its_own_loader(cache: Path) -> None:
    root = cache / "vm" / "root"
    program(root / "usr/lib/i386-linux-gnu/ld-linux.so.2", 'echo "$@"')
    setup.launcher(paths.VM, root, "usr/bin/micropython")
    said = setup.output(paths.VM, "-c", "print(1)")
    library = root / "usr/lib/i386-linux-gnu"
    assert said == f"--library-path {library} {root}/usr/bin/micropython -c print(1)"


def test_the_vm_here_is_new_enough(micropython: Path) -> None:
    version, bits = setup.vm_facts(micropython)
    assert version >= (1, 25)
    assert bits in (32, 64)


def test_without_a_mirror_the_machines_own_program_is_taken_and_the_difference_said(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = program(cache.parent / "bin/micropython", "echo '(1, 26) 64'")
    setup.make_vm([setup.Apt(cache, "i386"), setup.Apt(cache, "amd64")])
    said = capsys.readouterr().out
    assert "no apt with a Debian mirror" in said
    assert f"taking {own}" in said
    assert "64-bit words, an ESP32 has 32" in said
    assert setup.vm_facts(paths.VM) == ((1, 26), 64)


def test_a_vm_that_is_too_old_is_not_taken(cache: Path) -> None:
    program(cache.parent / "bin/micropython", "echo '(1, 19) 64'")
    with pytest.raises(setup.Missing, match=re.escape("is 1.19, and 1.25 or newer is needed")):
        setup.make_vm([])
    assert not paths.VM.exists()


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_what_is_missing_is_named_and_fails_only_in_ci(
    ci: str,
    code: int,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("make_venv", "pip_install", "make_umqtt"):
        monkeypatch.setattr(setup, name, lambda *_: None)
    monkeypatch.setattr(setup, "requirements", lambda *_: [])
    monkeypatch.setenv("CI", ci)
    paths.SETUP_STAMP.touch()
    assert setup.set_up() == code
    said = capsys.readouterr().out
    assert "setup: no vm: there is no micropython on the PATH either: install it" in said
    assert "Not tested without it: the virtual board" in said
    if not Path("/usr/sbin/mosquitto").exists():
        assert "setup: no mosquitto: there is no mosquitto on the PATH either" in said
    assert not paths.SETUP_STAMP.exists()
