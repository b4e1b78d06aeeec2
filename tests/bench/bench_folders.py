"""A bench that is run by its path finds what it imports from the other folders of tests. Imported first of all."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path += [str(ROOT / "tests" / folder) for folder in ("support", "faults")]
