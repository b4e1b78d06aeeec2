"""A call and what becomes of it on the gateway are one trace: spans of caller, queue, plan, device and commit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from gateways import GatewayProcess, MakeClient, MakeSettings, close
from grouped_lane import GroupedLane
from keys import some_key
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from peerlane import AsyncGateway, Conflict
from peerlane.config import names
from peerlane.config.celery.app import PeerlaneApp
from peerlane.tasks.lane.telemetry import trace_headers
from peerlane.workers.lane.strategy import parent_of
from peerlane.workers.request.request import Delivery

_EXPORTER = InMemorySpanExporter()
SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What is exported, by a provider of this test alone."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_EXPORTER))

    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    _EXPORTER.clear()
    yield _EXPORTER
    provider.shutdown()
    _EXPORTER._stopped = False  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the next test's provider has it too


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_carries_its_callers_span_and_its_stages_follow(
    lane: GroupedLane, spans: InMemorySpanExporter
) -> None:
    ids = [names.request_id(lane.name, name) for name in ("one", "two")]
    wishes = [{"gateway": lane.name, "public_key": some_key()}, {"gateway": lane.name, "public_key": "no key"}]
    for request, wish in zip(ids, wishes, strict=True):
        delivery = Delivery(request, sent_at=lane.writer.store.clock.now_ms() - 700, traceparent=SPAN)
        lane.writer.carry_out(names.CREATE_PEER, delivery, wish)
    finished = spans.get_finished_spans()
    created, refused = (span for span in finished if span.name == "peerlane.create")
    parent = created.parent
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == (SPAN[3:35], SPAN[36:52])
    assert attributes(created) == {"peerlane.request": ids[0], "peerlane.outcome": "created"}
    assert attributes(refused)["peerlane.code"] == "invalid"
    stages = [span for span in finished if span.parent is not None and span.parent.span_id == span_id(created)]
    assert [span.name for span in stages] == ["queue", "plan", "device", "commit"]
    assert stages[0].start_time == created.start_time
    assert stages[-1].end_time == created.end_time
    assert all(span.end_time == following.start_time for span, following in pairwise(stages))
    assert 0.6e9 < (stages[0].end_time or 0) - (stages[0].start_time or 0) < 20e9


def test_a_request_that_names_no_span_makes_none(lane: GroupedLane, spans: InMemorySpanExporter) -> None:
    wish = {"gateway": lane.name, "public_key": some_key()}
    lane.writer.carry_out(names.CREATE_PEER, Delivery(names.request_id(lane.name, "x")), wish)
    assert spans.get_finished_spans() == ()


def test_a_tracer_that_fails_changes_nothing(lane: GroupedLane, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> trace.Tracer:
        raise ZeroDivisionError(name)

    monkeypatch.setattr(trace, "get_tracer", broken)
    wish = {"gateway": lane.name, "public_key": some_key()}
    delivery = Delivery(names.request_id(lane.name, "x"), traceparent=SPAN)
    outcome = lane.writer.carry_out(names.CREATE_PEER, delivery, wish)
    assert not isinstance(outcome.result, Exception)
    assert outcome.result["outcome"] == "created"


def test_a_message_of_a_traced_call_names_its_span(
    shared_gateway: GatewayProcess,
    client: MakeClient,
    spans: InMemorySpanExporter,
    settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    carried: list[dict[str, str]] = []

    def kept() -> dict[str, str]:
        carried.append(trace_headers())
        return carried[-1]

    monkeypatch.setattr("peerlane.tasks.lane.request.trace_headers", kept)
    peers, key = client(shared_gateway), some_key()
    peers.create_peer(key)
    with pytest.raises(Conflict):
        peers.create_peer(key, keepalive=9)
    app = PeerlaneApp(settings())

    async def life() -> None:
        async with AsyncGateway(shared_gateway.name, app=app) as gateway:
            await gateway.delete_peer(key)

    asyncio.run(life())
    close(app)
    calls = spans.get_finished_spans()
    assert [span.name for span in calls] == ["peerlane.call"] * 3
    assert attributes(calls[1]) == {"peerlane.gateway": shared_gateway.name, "peerlane.code": "conflict"}
    named = [headers[names.TRACEPARENT].split("-")[2] for headers in carried]
    assert named == [f"{span_id(span):016x}" for span in calls]


@pytest.mark.usefixtures("redis_server")
def test_a_process_that_has_set_nothing_up_makes_no_span(
    shared_gateway: GatewayProcess, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py imports OpenTelemetry's API by itself, where it is installed."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a tracer was asked for")

    monkeypatch.setattr(trace, "get_tracer", never)
    assert client(shared_gateway).create_peer(some_key()).outcome == "created"


@pytest.mark.parametrize("said", [None, "", 1, [SPAN], SPAN.upper(), SPAN + "-00", "00-" + "0" * 70])
def test_what_is_no_span_is_none(said: object) -> None:
    assert parent_of({names.TRACEPARENT: said}) == ""
    assert parent_of({names.TRACEPARENT: SPAN}) == SPAN
    assert parent_of({}) == ""


def test_without_a_span_nothing_is_carried() -> None:
    assert propagate is not None
    assert trace_headers() == {}
