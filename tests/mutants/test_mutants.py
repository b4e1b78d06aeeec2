"""The program that plants faults, on a small tree of its own: what is caught, what survives, what cannot be planted."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest
from mutant import Mutant
from mutants import Unplantable, copied, judged, main, planted
from planted_faults import MUTANTS
from rich.console import Console

SUM = "def add(one, other):\n    return one + other\n"
TEST = "from sums import add\n\n\ndef test_it():\n    assert add(2, 2) == 4\n\n\ndef test_nothing():\n    pass\n"


def fault(test: str, before: str = "one + other") -> Mutant:
    return Mutant(
        "minus", "it subtracts", "examples/sums.py", before, "one - other", (f"examples/test_sums.py::{test}",)
    )


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "sums.py").write_text(SUM)
    (tmp_path / "examples" / "test_sums.py").write_text(TEST)
    monkeypatch.setattr(mutants, "copied", lambda: copied(tmp_path))
    return tmp_path


def test_a_fault_is_planted_in_a_copy_caught_by_name_and_taken_back(tree: Path) -> None:
    (verdict,) = judged([fault("test_it")], Console(quiet=True))
    assert verdict.caught_by == "examples/test_sums.py::test_it"
    assert (tree / "examples" / "sums.py").read_text() == SUM
    with planted(tree, fault("test_it")):
        assert "one - other" in (tree / "examples" / "sums.py").read_text()
    assert (tree / "examples" / "sums.py").read_text() == SUM


def test_a_fault_that_no_test_notices_survives_and_the_status_says_so(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "MUTANTS", (fault("test_nothing"),))
    monkeypatch.setattr("sys.argv", ["mutants.py", "--json"])
    assert main() == 1
    assert '"survivors": ["minus"]' in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["mutants.py", "--only", "plus"])
    assert main() == 2
    assert tree.exists()


@pytest.mark.parametrize("before", ["one * other", "o"])
def test_a_text_that_is_not_there_once_cannot_be_planted(tree: Path, before: str) -> None:
    with pytest.raises(Unplantable, match=r"minus: examples/sums\.py has"), planted(tree, fault("test_it", before)):
        pass


def test_a_test_that_fails_without_any_fault_is_no_judge(tree: Path) -> None:
    (tree / "examples" / "test_sums.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(RuntimeError, match="fails without any fault"):
        judged([fault("test_it")], Console(quiet=True))


def test_every_fault_has_a_name_of_its_own_and_names_tests_that_are_there() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) > 30
    for mutant in MUTANTS:
        assert mutant.tests
        for test in mutant.tests:
            file, *names = test.split("::")
            text = (mutants.ROOT / file).read_text()
            assert all(f"def {name}(" in text or f"class {name}:" in text for name in names), test
