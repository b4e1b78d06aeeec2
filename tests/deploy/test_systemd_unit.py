"""The systemd unit in deploy/, as systemd itself reads it: no line is misspelled, and it exposes little."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "deploy" / "peerlane-gateway@.service"
#: Where the unit expects Peerlane; a host of tests has it elsewhere.
INSTALLED = "/opt/peerlane/bin/peerlane"

#: In tenths, as systemd-analyze takes it. What is left is the network, netlink and CAP_NET_ADMIN: a gateway's work.
MOST_EXPOSED = 18

if not (systemd_analyze := shutil.which("systemd-analyze")) and os.environ.get("CI") != "true":
    pytest.skip("systemd-analyze is not installed", allow_module_level=True)


def analyzed(unit: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of a unit file. It asks no systemd: none need run here."""
    command = [str(systemd_analyze), *words, str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def verified(text: str, here: Path) -> str:
    """The complaints about a unit of this text."""
    unit = here / UNIT.name
    unit.write_text(text.replace(INSTALLED, "/bin/true"))
    ran = analyzed(unit, "verify", "--man=no")
    return (ran.stdout + ran.stderr).strip() or ("" if ran.returncode == 0 else f"status {ran.returncode}")


def test_systemd_has_nothing_to_complain_of(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert INSTALLED in text
    assert verified(text, tmp_path) == ""


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
