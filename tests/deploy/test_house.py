"""The product's files are short and its folders few: at most 300 lines in a file, a dozen modules in a folder."""

from __future__ import annotations

import pytest

LINES, MODULES = 300, 12


@pytest.mark.parametrize("folder", ["config", "tasks", "workers"])
def test_no_file_is_long_and_no_folder_is_full(folder: str, pytestconfig: pytest.Config) -> None:
    root = pytestconfig.rootpath / folder
    code = [path for path in root.rglob("*") if path.suffix in (".py", ".lua")]
    assert code
    long = {str(path.relative_to(root)): count for path in code if (count := _lines(path.read_text())) > LINES}
    assert long == {}
    modules = [path for path in code if path.suffix == ".py" and path.stem != "__init__"]
    full = {
        each for each in {path.parent for path in modules} if sum(path.parent == each for path in modules) > MODULES
    }
    assert full == set()


def _lines(text: str) -> int:
    return len(text.splitlines())
