"""The documents speak of what is there: their links lead somewhere, their settings and keys exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peerlane.config import names
from peerlane.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.is_file()
)
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_documents_links_lead_to_files_that_are_there(document: str) -> None:
    page = ROOT / document
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_setting_the_readme_names_exists() -> None:
    named = set(re.findall(r"^\| `PEERLANE_([A-Z_]+)`", README, flags=re.MULTILINE))
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


@pytest.mark.parametrize("document", ["README.md", "docs/runbooks.md"])
def test_where_the_key_of_a_device_is_kept_is_told(document: str) -> None:
    told = (ROOT / document).read_text()
    assert f"`{Settings.model_construct(interface='wg0').key_file}`" in told
    assert "`PEERLANE_PRIVATE_KEY_FILE`" in told


def test_every_make_target_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    pages = "\n".join((ROOT / document).read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", pages, flags=re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets


@pytest.mark.parametrize(
    "key",
    [
        names.GATEWAYS_KEY,
        names.peers_key("NAME"),
        names.addresses_key("NAME"),
        names.epoch_key("NAME"),
        names.gateway_key("NAME"),
        names.unacked_key("NAME"),
        names.result_key(names.request_id("NAME", "TOKEN")),
        names.lane_queue("NAME"),
        names.bulk_queue("NAME"),
        names.observer_queue("NAME"),
        names.seen_key("NAME"),
        names.alarms_key("NAME"),
        names.observer_key("NAME"),
        names.share_key("NAME", "DIGEST"),
        names.poison_key("NAME"),
        names.deliveries_key("NAME", "REQUEST"),
        names.wake_key("NAME", "TOKEN"),
        names.snapshot_key("NAME", "TOKEN", "PART"),
    ],
)
def test_the_architectures_table_tells_of_every_redis_key(key: str) -> None:
    assert f"| `{key}`" in ARCHITECTURE


def test_a_decision_record_is_numbered_without_gaps_and_short() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert len(text.splitlines()) <= 40, record.name
        assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == ["Context", "Decision", "Consequences"], (
            record.name
        )


def test_every_file_of_the_repository_that_a_document_names_exists() -> None:
    pages = {document: (ROOT / document).read_text() for document in DOCUMENTS}
    pattern = r"`((?:config|tasks|workers|tests|deploy|examples|docs|peerlane)/[\w./-]+)`"
    named = {(document, path) for document, page in pages.items() for path in re.findall(pattern, page)}
    assert named
    assert sorted((document, path) for document, path in named if not (ROOT / path).exists()) == []
