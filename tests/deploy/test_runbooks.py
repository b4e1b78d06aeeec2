"""docs/runbooks.md: a section for each alarm and each alert, with what a person needs at night; links that resolve."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from peerlane.tasks.status.alarms import KINDS, RUNBOOKS, Alarm, parse_alarms

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / RUNBOOKS).read_text()
#: Heading → what stands below it, up to the next one.
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!#).*\n)*)", TEXT, flags=re.MULTILINE))
RULES = sorted((ROOT / "deploy" / "prometheus").glob("*.y*ml"))


def alerts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every alert of the rules that are shipped, and its rule."""
    for path in RULES:
        document: dict[str, Any] = yaml.safe_load(path.read_text())
        for group in document.get("groups", []):
            yield from ((rule["alert"], rule) for rule in group["rules"] if "alert" in rule)


def anchor(heading: str) -> str:
    """A heading's address within its page, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


ANCHORS = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", TEXT, flags=re.MULTILINE)}


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_says_what_it_means_how_to_be_sure_what_to_do_and_when_it_ends(heading: str) -> None:
    assert re.findall(r"^\*\*([\w ]+?)\.?\*\*", SECTIONS[heading], flags=re.MULTILINE) == [
        "Means",
        "Be sure",
        "Do",
        "Ends",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_alarm_has_its_section_and_names_it(kind: str) -> None:
    assert kind in SECTIONS
    alarm = Alarm(kind, "words", 0, {})
    assert alarm.runbook == f"{RUNBOOKS}#{kind}"
    assert alarm.as_dict()["runbook"] == alarm.runbook


def test_an_alarm_of_another_version_names_the_page() -> None:
    (alarm,) = parse_alarms({b"from_tomorrow": b"{}"})
    assert alarm.runbook == RUNBOOKS


def test_every_alert_has_its_section_and_links_to_it() -> None:
    rules = dict(alerts())
    assert set(rules) <= set(SECTIONS)
    for name, rule in rules.items():
        annotations = rule.get("annotations", {})
        links = [value for key, value in annotations.items() if key.startswith("runbook")]
        assert [link for link in links if link.partition("#")[2] not in ANCHORS] == [], name


def test_links_within_the_page_lead_to_a_heading() -> None:
    targets = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert targets
    assert targets - ANCHORS == set()


def test_the_kinds_are_all_that_the_code_raises() -> None:
    raised: set[str] = set()
    for path in [*(ROOT / "workers").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name) and isinstance(node.value.value, str)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            position = {"raise_alarm": 2, "Refusal": 0}.get(name)
            if position is None:
                continue
            match call.args[position]:
                case ast.Constant(value=str(kind)):
                    raised.add(kind)
                case ast.Name(id=variable) | ast.Attribute(attr=variable) if variable in constants:
                    raised.add(constants[variable])
                case ast.Attribute(attr="kind"):
                    pass  # of a Refusal, which names it where it is made
                case other:
                    pytest.fail(f"{path.name}:{other.lineno}: an alarm whose kind cannot be read off the source")
    assert raised == set(KINDS)
