"""A list of wishes as one request: each wish is checked, carried out and answered by itself, in order.

The result of a list is ``{"outcome": "listed", "gateway": …, "answers": […]}``, one answer for each wish: the fields
that the wish does not contain, or ``{"error": {"code": …, "message": …}}``. The list has one commit: if it is
cancelled, late or fenced, none of its wishes takes effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError

from peerlane.tasks.errors import Invalid, PeerlaneError, WriterError
from peerlane.tasks.wire.bulk import SLICE
from peerlane.tasks.wire.commit_record import error_from_dict
from peerlane.tasks.wire.model import (
    CreatePeer,
    Deadline,
    DeletePeer,
    GatewayName,
    PeerResult,
    Wire,
    parse,
    read_result,
)

_Wish = TypeVar("_Wish", CreatePeer, DeletePeer)

#: Bytes of a list's wishes as JSON, after which no more are put into one message; a single wish may have more.
SLICE_BYTES = 32 * 1024
#: Bytes of a list's answers, roughly, after which the rest of its wishes is refused: Redis keeps each result.
ANSWER_BYTES = 128 * 1024


class CreatePeers(Wire):
    """Wishes for peers. Each has the fields of CreatePeer except gateway and deadline, which the list has."""

    gateway: GatewayName
    wishes: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=SLICE, repr=False)]
    deadline: Deadline | None = None


class DeletePeers(Wire):
    """The wish that peers be gone."""

    gateway: GatewayName
    public_keys: Annotated[list[str], Field(min_length=1, max_length=SLICE)]
    deadline: Deadline | None = None


def wish_of(gateway: str, fields: Mapping[str, Any]) -> CreatePeer:
    """One wish of a list.

    Raises:
        Invalid: says what is wrong with it.
    """
    for name in ("gateway", "deadline"):
        if name in fields:
            raise Invalid(f"{name}: that of a list is the same for all of its wishes")
    return parse(CreatePeer, {**fields, "gateway": gateway})


def delete_of(gateway: str, public_key: str) -> DeletePeer:
    """One wish of a list of deletes. Raises as ``wish_of`` does."""
    return parse(DeletePeer, {"gateway": gateway, "public_key": public_key})


def wishes_in(request: BaseModel) -> Sequence[CreatePeer | DeletePeer]:
    """The checked wishes of a list; empty for a request that is no list.

    Raises:
        Invalid: names the first that is bad by its index.
    """
    if isinstance(request, CreatePeers):
        return [_numbered(index, wish_of, request.gateway, fields) for index, fields in enumerate(request.wishes)]
    if isinstance(request, DeletePeers):
        return [_numbered(index, delete_of, request.gateway, key) for index, key in enumerate(request.public_keys)]
    return []


def _numbered(index: int, read: Callable[[str, Any], _Wish], gateway: str, wish: object) -> _Wish:
    try:
        return read(gateway, wish)
    except Invalid as error:
        raise Invalid(f"wish {index} of the list: {error}") from None


def error_answer(error: PeerlaneError) -> dict[str, Any]:
    """The answer to a wish that is refused."""
    answer: dict[str, Any] = {"code": error.code, "message": error.message}
    return {"error": answer if error.retry_after is None else {**answer, "retry_after": error.retry_after}}


def read_answers(
    result: Mapping[str, Any], wishes: Sequence[CreatePeer | DeletePeer]
) -> list[PeerResult | PeerlaneError]:
    """The answer to each wish of a list, in order, as if each had been asked for alone.

    Raises:
        WriterError: the result is not that of a list of so many wishes.
    """
    answers = result.get("answers")
    if not isinstance(answers, list) or len(cast("list[object]", answers)) != len(wishes):
        raise WriterError("what is stored under the list's request id is no answer to it")
    about = {name: result.get(name) for name in ("gateway", "gateway_public_key", "endpoint")}
    return [_read(answer, wish, about) for answer, wish in zip(cast("list[object]", answers), wishes, strict=True)]


def _read(answer: object, wish: CreatePeer | DeletePeer, about: Mapping[str, Any]) -> PeerResult | PeerlaneError:
    fields = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
    if "error" in fields:
        return error_from_dict(fields["error"])
    granted: dict[str, Any] = {**about, "public_key": wish.public_key}
    if isinstance(wish, CreatePeer):
        granted |= {
            "allowed_ips": [str(prefix) for prefix in wish.allowed_ips or ()],
            "has_preshared_key": wish.preshared_key is not None,
            "keepalive": wish.keepalive,
            "ttl": wish.ttl,
            "labels": wish.labels,
            "pinned": wish.pinned,
        }
    try:
        return read_result(granted | fields)
    except ValidationError:
        return WriterError("the answer to this wish of the list does not parse")
