"""What is written for each request is JSON that every reader understands, whatever a hostile message has quoted."""

from __future__ import annotations

import json

import pytest

from peerlane.tasks.errors import Invalid
from peerlane.tasks.wire import commit_record
from peerlane.tasks.wire.commit_record import compact_json


@pytest.mark.parametrize(
    "value",
    [
        {
            "outcome": "created",
            "allowed_ips": ["10.8.0.7/32"],
            "ttl": None,
            "pinned": False,
            "created_at": 1_700_000_000,
        },
        {"labels": {"who": "Zoë", "quoted": '"\\\n\x00'}, "parts": (1, 2.5, -3, 2**53)},
        {"half of a pair": "\ud800", "\udfff": []},
        [],
    ],
    ids=["a-result", "any-text", "no-text-at-all", "nothing"],
)
def test_it_is_read_as_what_the_json_module_writes(value: object) -> None:
    text = compact_json(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert text.encode()  # UTF-8 can hold it
    assert ": " not in text


def test_a_refusal_that_quotes_no_text_is_recorded() -> None:
    record = commit_record.encode("iad.x", Invalid("labels: \ud800 is no name"))
    with pytest.raises(Invalid, match="is no name"):
        commit_record.decode(record.encode())
