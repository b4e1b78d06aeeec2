"""The faults that ``mutants.py`` plants: each replaces a text, which its file has once, and names who is to notice."""

from __future__ import annotations

from mutant import Mutant
from planted_in_lane import IN_LANE
from planted_in_plans import IN_PLANS
from planted_in_writer import IN_WRITER

MUTANTS: tuple[Mutant, ...] = (*IN_WRITER, *IN_PLANS, *IN_LANE)
