"""Lists of wishes: whatever a file holds, each line is a wish or has its own error, and no default is lost."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import some_key

from peerlane.tasks.cli.peer.batch_file import FIELDS, read_lines
from peerlane.tasks.errors import Invalid

HEADER = "public_key,allowed_ips,ttl\n"


def wishes(text: str, **defaults: Any) -> list[Any]:
    return [line.wish for line in read_lines(text, defaults)]


@given(st.text(max_size=300))
def test_no_text_makes_reading_fail_but_by_a_refusal(text: str) -> None:
    for whole in (text, "{" + text, HEADER + text):
        try:
            lines = read_lines(whole, {"ttl": 60})
        except Invalid:
            continue
        for line in lines:
            assert line.number >= 1
            assert isinstance(line.wish, Invalid) or line.wish["public_key"]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"public_key": st.text("abc+/=", min_size=1)},
            optional={
                "ttl": st.integers(1, 9),
                "keepalive": st.integers(1, 9),
                "allowed_ips": st.just(["10.8.0.9/32"]),
            },
        ),
        min_size=1,
    )
)
def test_a_list_reads_the_same_as_csv_and_as_json_lines(found: list[dict[str, Any]]) -> None:
    as_json = "\n".join(json.dumps(one) for one in found)
    page = io.StringIO()
    rows = [{**one, "allowed_ips": ";".join(one.get("allowed_ips", []))} for one in found]
    csv.writer(page).writerows([FIELDS, *([row.get(name, "") for name in FIELDS] for row in rows)])
    assert wishes(as_json) == wishes(page.getvalue()) == found


def test_a_line_number_is_what_an_editor_shows() -> None:
    assert [line.number for line in read_lines(HEADER + "\na,,\n\nb,,\n", {})] == [3, 5]
    assert [line.number for line in read_lines('{"public_key":"a"}\n\n{"public_key":"b"}', {})] == [1, 3]


def test_a_line_wins_over_the_defaults_and_labels_are_put_together() -> None:
    line = json.dumps({"public_key": "a", "ttl": "2h", "labels": {"user": "ada"}})
    (wish,) = wishes(line, ttl=60, keepalive=5, labels={"batch": "7", "user": "nobody"})
    assert wish == {"public_key": "a", "ttl": 7200, "keepalive": 5, "labels": {"batch": "7", "user": "ada"}}


@pytest.mark.parametrize(
    ("line", "default", "rest"),
    [
        ({"pinned": True}, {"ttl": 60}, {"pinned": True}),
        ({"ttl": 60}, {"pinned": True}, {"ttl": 60}),
        ({"pinned": False}, {"ttl": 60}, {"pinned": False, "ttl": 60}),
    ],
)
def test_a_pinned_line_is_not_given_a_time_to_live(
    line: dict[str, Any], default: dict[str, Any], rest: dict[str, Any]
) -> None:
    assert wishes(json.dumps({"public_key": "a", **line}), **default) == [{"public_key": "a", **rest}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ('{"public_key": ' + "[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"public_key": "a", "gateway": "fra"}', "gateway: no such field"),
        ('{"public_key": "a", "ttl": "soon"}', "ttl: 'soon' is no duration"),
        ('{"ttl": 60}', "public_key is missing"),
    ],
)
def test_a_bad_json_line_says_what_is_wrong_with_it(line: str, reason: str) -> None:
    good = json.dumps({"public_key": some_key()})
    found = wishes(f"{good}\n{line}\n{good}")
    assert isinstance(found[1], Invalid)
    assert reason in found[1].message
    assert not any(isinstance(other, Invalid) for other in (found[0], found[2]))


def test_a_secret_in_a_list_does_not_show_in_its_error() -> None:
    secret = some_key()
    (wish,) = wishes(f"public_key,preshared_key\nshort,{secret},too,many\n")
    assert isinstance(wish, Invalid)
    assert secret not in wish.message
