"""Models of requests and results: checked once when they arrive, then frozen."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeGuard, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from peerlane.config import names
from peerlane.tasks.errors import Invalid, WriterError
from peerlane.tasks.values.prefix import Prefix

MAX_PREFIXES = 1024
MAX_LABELS = 32
#: Characters of a label's value.
MAX_LABEL = 256
MAX_TTL = 10 * 365 * 24 * 3600

_KEY = re.compile(r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,61}[a-z0-9])?")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:/]+")
#: A preshared key as peerlane.tasks.wire.psk_cipher seals it. Whoever cannot open it can still carry it.
SEALED = re.compile(r"enc:1:[0-9a-f]{8}:[A-Za-z0-9+/]{80}")
_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_ZERO_KEY = base64.b64encode(bytes(32)).decode()


def _key(value: object, noun: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {noun} is text: 44 characters of base64")  # noqa: TRY004 - pydantic wants ValueError
    if not _KEY.fullmatch(value):
        try:
            size = len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            raise ValueError(f"not a {noun}: expected 44 characters of base64, as `wg pubkey` prints") from None
        if size != 32:
            raise ValueError(f"not a {noun}: {size} bytes instead of 32") from None
        raise ValueError(f"not a canonical {noun}: the last characters hold stray bits; encode the key anew")
    if value == _ZERO_KEY:
        raise ValueError(f"the all-zero {noun} is nobody's key")
    return value


def is_key(value: object) -> TypeGuard[str]:
    """Whether it is a canonical, nonzero key in base64."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None and value != _ZERO_KEY


def is_preshared_key(value: object) -> bool:
    """Whether it is a preshared key, sealed or in clear."""
    return is_key(value) or (isinstance(value, str) and SEALED.fullmatch(value) is not None)


def are_labels(value: object) -> bool:
    """Whether they are labels that a peer may have."""
    if not isinstance(value, dict) or len(cast("dict[object, object]", value)) > MAX_LABELS:
        return False
    return all(
        isinstance(name, str)
        and isinstance(text, str)
        and _LABEL.fullmatch(name) is not None
        and len(text) <= MAX_LABEL
        and text.isprintable()
        for name, text in cast("dict[object, object]", value).items()
    )


def check_public_key(value: object) -> str:
    """A canonical, nonzero public key in base64.

    Raises:
        ValueError: with a sentence for a person.
    """
    return _key(value, "public key")


def _check_preshared_key(value: object) -> str:
    if isinstance(value, str) and SEALED.fullmatch(value):
        return value
    try:
        return _key(value, "preshared key")
    except ValueError as error:
        # The value itself is secret: only the reason may travel.
        raise ValueError(str(error).replace("as `wg pubkey` prints", "as `wg genpsk` prints")) from None


def _check_gateway(value: str) -> str:
    if not names.GATEWAY_NAME.fullmatch(value):
        raise ValueError("a gateway's name is a-z, 0-9 and -, at most 63 characters, and starts with no -")
    return value


def _check_prefix(value: object) -> Prefix:
    if isinstance(value, Prefix):
        return value
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError("a prefix is text such as 10.8.0.7/32")
    try:
        return Prefix.parse(value)
    except ValueError as error:
        # Show only what can be an address: a key pasted into the wrong field stays out of the error.
        shown = value if _ADDRESS.fullmatch(value) else "a prefix given"
        raise ValueError(f"{shown} {error}") from None


def _check_prefixes(value: object) -> object:
    if not isinstance(value, (list, tuple, frozenset, set)):
        raise ValueError('this is a list of prefixes, such as ["10.8.0.7/32"]')  # noqa: TRY004 - pydantic wants ValueError
    if not value:
        raise ValueError("allowed_ips is empty; leave it out to have addresses allocated")
    if len(cast("list[object]", value)) > MAX_PREFIXES:
        raise ValueError(f"more than {MAX_PREFIXES} prefixes")
    prefixes = sorted({_check_prefix(item) for item in cast("list[object]", value)})
    for prefix, other in pairwise(prefixes):
        if prefix.overlaps(other):
            raise ValueError(f"{prefix} and {other} overlap")
    return tuple(prefixes)


def _check_labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"more than {MAX_LABELS} labels")
    for name, text in value.items():
        if not _LABEL.fullmatch(name):
            raise ValueError("a label's name is a-z, 0-9, and . _ / - inside, at most 63 characters")
        if len(text) > MAX_LABEL or not text.isprintable():
            raise ValueError(f"the label {name} is longer than 256 characters or not printable")
    return dict(sorted(value.items()))


def _seconds(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _whole(value: object) -> object:
    """Turn 60.0 into 60, as JSON of other languages writes it; nothing else is coerced."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


GatewayName = Annotated[str, AfterValidator(_check_gateway)]
PublicKey = Annotated[str, BeforeValidator(check_public_key)]
PresharedKey = Annotated[str, BeforeValidator(_check_preshared_key)]
Prefixes = Annotated[tuple[Prefix, ...], BeforeValidator(_check_prefixes)]
Labels = Annotated[dict[str, str], AfterValidator(_check_labels)]
Keepalive = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65535)]
Ttl = Annotated[int, BeforeValidator(_whole), BeforeValidator(_seconds), Field(ge=1, le=MAX_TTL)]
#: Milliseconds since 1970 on Redis' clock.
Deadline = Annotated[int, Field(ge=0, le=2**53)]

Outcome = Literal["created", "existing", "deleted", "absent"]


class Wire(BaseModel):
    """Base of all models: frozen, strict, without unknown fields, without input in errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class CreatePeer(Wire):
    """The wish for a peer."""

    gateway: GatewayName
    public_key: PublicKey
    #: None: one address per family is allocated from the gateway's pools.
    allowed_ips: Prefixes | None = None
    preshared_key: PresharedKey | None = Field(default=None, repr=False)
    #: Seconds between keepalives that the gateway sends; 0 for none.
    keepalive: Keepalive = 0
    #: Seconds until the peer expires; None for never.
    ttl: Ttl | None = None
    labels: Labels = Field(default_factory=dict)
    #: A pinned peer is never removed by a sweep.
    pinned: bool = False
    deadline: Deadline | None = None

    @model_validator(mode="after")
    def _pinned_or_expiring(self) -> Self:
        if self.pinned and self.ttl is not None:
            raise ValueError("a pinned peer never expires: give ttl or pinned, not both")
        return self


class DeletePeer(Wire):
    """The wish to delete a peer."""

    gateway: GatewayName
    public_key: PublicKey
    deadline: Deadline | None = None


class PeerResult(BaseModel):
    """The result of a create or delete: the outcome and, except for ``absent``, the peer. Without secrets."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    outcome: Outcome
    gateway: str
    public_key: str
    allowed_ips: tuple[str, ...] = ()
    has_preshared_key: bool = False
    keepalive: int = 0
    ttl: int | None = None
    expires_at: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    pinned: bool = False
    created_at: int | None = None
    #: The gateway's own key and where clients dial it: with them the result is a whole client configuration.
    gateway_public_key: str | None = None
    endpoint: str | None = None


#: The sets of fields that results were made with. Their own would be nearly half the memory of a large list's.
_FIELD_SETS: dict[frozenset[str], set[str]] = {}


def read_result(fields: Mapping[str, Any]) -> PeerResult:
    """The result with these fields. Raises pydantic.ValidationError."""
    result = PeerResult.model_validate(fields)
    own = result.model_fields_set
    # A frozen result never changes its set, and a copy of it gets another.
    object.__setattr__(result, "__pydantic_fields_set__", _FIELD_SETS.setdefault(frozenset(own), own))
    return result


def peer_result(result: Mapping[str, Any]) -> PeerResult:
    """The result of a create or delete.

    Raises:
        WriterError: it is the result of something else.
    """
    try:
        return read_result(result)
    except ValidationError:
        raise WriterError("what is stored under the request's id is no result of a create or delete") from None


_Model = TypeVar("_Model", bound=BaseModel)


def sentence(error: ValidationError) -> str:
    """What is wrong, for a person; never a value that may be secret."""
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False)[:5]:
        path = [str(part)[:64] for part in problem["loc"] if not str(part).startswith("function-")]
        complaint = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            complaint = "no such argument"
            if not _ARGUMENT.fullmatch(path[-1]):
                path[-1] = "(hidden)"  # an unknown name may be a value in the wrong place
        where = ".".join(path)
        parts.append(f"{where}: {complaint}" if where else complaint)
    return "; ".join(parts)


def parse(model: type[_Model], arguments: Mapping[str, Any]) -> _Model:
    """Check arguments from outside.

    Raises:
        Invalid: names each bad argument and says what it should be; never shows a preshared key.
    """
    try:
        return model(**{str(name): value for name, value in arguments.items()})
    except ValidationError as error:
        raise Invalid(sentence(error)) from None
    except TypeError as error:
        raise Invalid(f"the arguments do not fit: {error}") from None
