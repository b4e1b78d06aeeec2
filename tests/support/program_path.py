"""PYTHONPATH of the test programs that run as processes of their own; pytest reads the same from pyproject.toml."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: The folders whose modules are imported by name.
FOLDERS = tuple(str(ROOT / "tests" / name) for name in ("support", "faults", "bench"))

#: As a value of PYTHONPATH.
PROGRAM_PATH = os.pathsep.join(FOLDERS)
