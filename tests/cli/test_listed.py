"""Lists of wishes: whatever a file holds, each line is a wish or has its own error, and no default is lost."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number, some_key

from peerlane.tasks.cli.peer.batch_file import FIELDS, read_keys, read_lines
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
def test_a_list_reads_the_same_as_csv_and_as_json_lines(listed: list[dict[str, Any]]) -> None:
    as_json = "\n".join(json.dumps(wish) for wish in listed)
    page = io.StringIO()
    rows = [{**wish, "allowed_ips": ";".join(wish.get("allowed_ips", []))} for wish in listed]
    csv.writer(page).writerows([FIELDS, *([row.get(name, "") for name in FIELDS] for row in rows)])
    assert wishes(as_json) == wishes(page.getvalue()) == listed


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
    lines = wishes(f"{good}\n{line}\n{good}")
    assert isinstance(lines[1], Invalid)
    assert reason in lines[1].message
    assert not any(isinstance(other, Invalid) for other in (lines[0], lines[2]))


def test_a_secret_in_a_list_does_not_show_in_its_error() -> None:
    secret = some_key()
    (wish,) = wishes(f"public_key,preshared_key\nshort,{secret},too,many\n")
    assert isinstance(wish, Invalid)
    assert secret not in wish.message


WISH = {"public_key": "a", "allowed_ips": ["10.8.0.9/32", "10.8.0.10/32"], "ttl": 60}


@pytest.mark.parametrize(
    "text",
    [
        "public_key;allowed_ips;ttl\na;10.8.0.9/32 10.8.0.10/32;60\n",
        'public_key;allowed_ips;ttl\r\na;"10.8.0.9/32;10.8.0.10/32";60\r\n',
        "public_key\tallowed_ips\tttl\na\t10.8.0.9/32, 10.8.0.10/32\t60\n",
        'public_key,allowed_ips,ttl\na,"10.8.0.9/32, 10.8.0.10/32",60\n',
        '"public_key","allowed_ips","ttl"\n"a","10.8.0.9/32,10.8.0.10/32","60"\n',
        "public_key,allowed_ips,ttl,\na,10.8.0.9/32;10.8.0.10/32,60,\n",
        "Public_Key, Allowed_IPs, TTL ,,\na, 10.8.0.9/32 10.8.0.10/32 , 60,,\n",
        json.dumps([WISH]),
        " [\n" + json.dumps(WISH, indent=2) + "\n]\n",
    ],
    ids=[
        *("semicolons", "quoted in semicolons", "tabs", "quoted prefixes", "all quoted", "a comma at the end"),
        *("spaces", "an array", "an array over lines"),
    ],
)
def test_a_list_is_read_as_programs_write_it(text: str) -> None:
    (wish,) = wishes(text)
    assert wish | {"ttl": int(wish["ttl"])} == WISH


def test_the_items_of_an_array_have_the_lines_on_which_they_start() -> None:
    text = '[\n {"public_key": "a"},\n\n {"public_key":\n "b"}, "c", 7, {}\n]'
    assert [(line.number, line.public_key) for line in read_lines(text, {})] == [
        (2, "a"),
        (4, "b"),
        (5, "c"),
        (5, None),
        (5, None),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("public_key|ttl\na|60\n", "separated by commas, semicolons or tabs"),
        ('[{"public_key": "a"} {"public_key": "b"}]', "line 1: a JSON array has a comma or ]"),
        ('[\n{"public_key": "a"},\n{"public_key": }]', "line 3: not JSON"),
        ('[{"public_key": "a"}', "a JSON array has a comma or ]"),
        ("[", "not JSON"),
        ('[{"public_key": "a"}] x', "something else"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=["another separator", "no comma", "no item", "no end", "nothing", "more behind", "deep"],
)
def test_what_is_no_list_is_refused_in_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=re.escape(reason)):
        read_lines(text, {})


def test_keys_are_read_a_line_each_or_from_any_list() -> None:
    first, second = key_number(1), key_number(2)
    for text in (
        f"{first}\n\n{second}\n",
        f"{first}\r\n\r\n{second}",
        f"public_key,ttl\n{first},60\n\n{second},\n",
    ):
        assert [line.public_key for line in read_keys(text)] == [first, second]
    assert [line.number for line in read_keys(f"{first}\n\n{second}\n")] == [1, 3]
    assert [line.public_key for line in read_keys(json.dumps([first, {"public_key": second}]))] == [first, second]


@given(st.text(max_size=200))
def test_no_text_makes_reading_keys_or_an_array_fail_but_by_a_refusal(text: str) -> None:
    for whole in (text, "[" + text, key_number(1) + "\n" + text):
        try:
            read_keys(whole)
            read_lines(whole, {})
        except Invalid:
            continue


def test_a_label_that_is_given_twice_is_a_lines_own_error() -> None:
    (line,) = read_lines(f"public_key,labels\n{some_key()},a=1;b=2;a=3\n", {})
    assert isinstance(line.wish, Invalid)
    assert "labels: one is given twice" in str(line.wish)
