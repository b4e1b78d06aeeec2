"""Large hashes are read page by page: small pages from a Redis nearby, larger ones from one far away."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from servers import RedisServer

from peerlane.tasks.redis import hash_pages as paging
from peerlane.tasks.redis.hash_pages import LARGE_PAGE, MEASURED, PAGE, PageSize, hash_pages, some_fields

FIELDS = 4_000
KEY = "test-hash-pages"
SECONDS = st.floats(min_value=1e-6, max_value=100)


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    client = Redis.from_url(redis_server.url)
    client.hset(KEY, mapping={f"field-{number}": number for number in range(FIELDS)})
    yield client
    client.delete(KEY)
    client.close()


class TestAPage:
    @pytest.mark.parametrize("near", [1e-9, 1e9], ids=["far away", "nearby"])
    @pytest.mark.parametrize("count", [None, 7, LARGE_PAGE])
    def test_together_they_hold_every_field_with_its_value(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch, near: float, count: int | None
    ) -> None:
        monkeypatch.setattr(paging, "NEAR", near)
        read = [entry for page in hash_pages(redis, KEY, count=count) for entry in page]
        assert dict(read) == {f"field-{number}".encode(): str(number).encode() for number in range(FIELDS)}

    def test_is_small_from_a_redis_nearby(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paging, "NEAR", 1e9)
        # Redis gives a page somewhat more than it was asked for.
        assert all(len(page) < 2 * PAGE for page in hash_pages(redis, KEY))

    def test_is_large_from_one_far_away_as_soon_as_the_way_is_known(
        self, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(paging, "NEAR", 1e-9)
        sizes = [len(page) for page in hash_pages(redis, KEY)]
        assert sizes[0] < 2 * PAGE
        assert len(sizes) <= MEASURED + FIELDS / LARGE_PAGE + 1

    def test_is_of_the_size_that_is_asked_for(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(paging, "NEAR", 1e-9)
        assert all(len(page) < 20 for page in hash_pages(redis, KEY, count=10))

    def test_of_chosen_fields_is_sized_alike(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        names = [f"field-{number}" for number in range(-10, FIELDS)]
        monkeypatch.setattr(paging, "NEAR", 1e9)
        near = [len(page) for page in some_fields(redis, KEY, names)]
        monkeypatch.setattr(paging, "NEAR", 1e-9)
        far = [len(page) for page in some_fields(redis, KEY, names)]
        assert near[0] == PAGE - 10, "ten of its fields are not there"
        assert set(near[1:-1]) == {PAGE}
        assert far[1] == LARGE_PAGE
        assert sum(near) == sum(far) == FIELDS

    def test_that_nobody_reads_does_not_answer_another_command(self, redis: Redis) -> None:
        for read in range(1, MEASURED + 3):
            pages = hash_pages(redis, KEY)
            assert len(list(islice(pages, read))) == read
            pages.close()
            assert redis.ping() is True
            assert redis.hget(KEY, "field-7") == b"7"


class TestThePagesSize:
    @given(st.lists(SECONDS, max_size=8), st.integers(1, 500))
    def test_is_never_below_that_of_a_redis_nearby_nor_above_the_largest(self, trips: list[float], near: int) -> None:
        size = PageSize(near)
        assert size.fields == near
        for seconds in trips:
            size.took(seconds)
            assert near <= size.fields <= LARGE_PAGE

    @given(st.lists(SECONDS, min_size=1, max_size=8), SECONDS)
    def test_is_not_raised_by_a_round_trip_that_waited(self, trips: list[float], waited: float) -> None:
        size = PageSize()
        for seconds in trips:
            size.took(seconds)
        before = size.fields
        size.took(min(trips) + waited)
        assert size.fields == before
