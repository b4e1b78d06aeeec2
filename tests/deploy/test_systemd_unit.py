"""The systemd units in deploy/, as systemd itself reads them: no line is misspelled, and they expose little."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from gateways import clean_environment

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "peerlane-gateway@.service"
BEAT = ROOT / "deploy" / "peerlane-beat.service"
FLOWER = ROOT / "deploy" / "peerlane-flower.service"
EXPORTER = ROOT / "deploy" / "peerlane-exporter.service"
#: Where the units expect Peerlane; a host of tests has it elsewhere.
INSTALLED = re.compile(r"/opt/peerlane/bin/(peerlane|celery)")

#: In tenths, as systemd-analyze takes it. What is left is the network, netlink and CAP_NET_ADMIN: a gateway's work.
MOST_EXPOSED = 18
#: The others have the network alone.
MOST_EXPOSED_WITHOUT_RIGHTS = 13

every_unit = pytest.mark.parametrize("unit", [UNIT, BEAT, FLOWER, EXPORTER], ids=lambda unit: unit.stem)

pytestmark = pytest.mark.needs("systemd-analyze")


def analyzed(unit: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of a unit file. It asks no systemd: none need run here."""
    command = ["systemd-analyze", *words, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def verified(text: str, here: Path, name: str = UNIT.name) -> str:
    """The complaints about a unit of this text."""
    unit = here / name
    unit.write_text(INSTALLED.sub("/bin/true", text))
    ran = analyzed(unit, "verify", "--man=no")
    return (ran.stdout + ran.stderr).strip() or ("" if ran.returncode == 0 else f"status {ran.returncode}")


def started_by(unit: Path) -> list[str]:
    """The command of a unit, its program as this environment has it, its instance called iad."""
    (line,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit.read_text(), flags=re.MULTILINE)
    program, *words = line.replace("\\\n", " ").replace("%i", "iad").split()
    assert INSTALLED.fullmatch(program)
    return [str(Path(sys.executable).parent / Path(program).name), *words]


def test_these_are_all_units() -> None:
    assert {path.name for path in UNIT.parent.glob("*.service")} == {UNIT.name, BEAT.name, FLOWER.name, EXPORTER.name}


@every_unit
def test_systemd_has_nothing_to_complain_of(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    assert INSTALLED.search(text)
    assert verified(text, tmp_path, unit.name) == ""


@every_unit
def test_a_service_leaves_no_core_file_and_says_what_it_needs(unit: Path) -> None:
    assert "\nLimitCORE=1\n" in unit.read_text()
    assert "%d/" in unit.read_text(), "which older ones do not know"
    assert "# Needs systemd 250 or newer" in unit.read_text()


@every_unit
def test_a_service_whose_settings_are_refused_is_not_started_again(unit: Path, tmp_path: Path) -> None:
    refused = subprocess.run(
        started_by(unit),
        cwd=tmp_path,
        env=clean_environment() | {"PEERLANE_TIMEOUT": "soon"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "PEERLANE_TIMEOUT" in refused.stderr
    assert f"RestartPreventExitStatus={refused.returncode}\n" in unit.read_text()
    assert "Restart=always\n" in unit.read_text()


def test_what_is_no_gateway_is_started_as_compose_starts_it() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for unit, service in ((BEAT, "beat"), (FLOWER, "flower"), (EXPORTER, "exporter")):
        assert started_by(unit)[1:] == services[service]["command"][1:]


@pytest.mark.parametrize("unit", [BEAT, FLOWER, EXPORTER], ids=lambda unit: unit.stem)
def test_what_is_no_gateway_has_no_right_and_exposes_less(unit: Path) -> None:
    ran = analyzed(unit, "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED_WITHOUT_RIGHTS}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^✗ .*CAP_", ran.stdout, flags=re.MULTILINE) is None


@pytest.mark.parametrize("unit", [BEAT, FLOWER], ids=lambda unit: unit.stem)
def test_what_celery_imports_from_is_roots(unit: Path) -> None:
    assert "WorkingDirectory=/\n" in unit.read_text()


def test_flowers_state_is_where_its_unit_may_write() -> None:
    (database,) = [word.partition("=")[2] for word in started_by(FLOWER) if word.startswith("--db=")]
    assert "StateDirectory=peerlane/flower\n" in FLOWER.read_text()
    assert Path(database).parent == Path("/var/lib/peerlane/flower")


def test_no_password_stands_in_a_command_line_or_in_a_unit() -> None:
    assert "basic_auth" not in " ".join(started_by(FLOWER))
    assert re.search(r"^Environment=FLOWER", FLOWER.read_text(), flags=re.MULTILINE) is None


def test_with_its_optional_lines_as_well(tmp_path: Path) -> None:
    text, taken = re.subn(r"^# (LoadCredential|Environment)=", r"\1=", UNIT.read_text(), flags=re.MULTILINE)
    assert taken == 2
    assert verified(text, tmp_path) == ""


@pytest.mark.parametrize(("right", "wrong"), [("LockPersonality", "LockPersonalty"), ("strict", "strickt")])
def test_what_is_misspelled_is_complained_of(right: str, wrong: str, tmp_path: Path) -> None:
    assert wrong in verified(UNIT.read_text().replace(right, wrong), tmp_path)


def test_it_exposes_no_more_than_a_gateway_needs() -> None:
    ran = analyzed(UNIT, "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSED}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^✗ .*CAP_NET_ADMIN", ran.stdout, flags=re.MULTILINE), "it was the unit that was judged"
