"""All settings, read once from defaults, a TOML file and ``PEERLANE_*`` variables. No other module reads them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from peerlane.config import links, names, settings_file, validators
from peerlane.config.bad_settings import BadSettings
from peerlane.config.hosts import parse_dns, parse_endpoint
from peerlane.config.redis.url import shown_url

#: What the variables of all settings begin with.
PREFIX = "PEERLANE_"
#: The TOML file that is read if it is there and ``settings_file.VARIABLE`` names no other.
DEFAULT_SETTINGS_FILE = "/etc/peerlane/peerlane.toml"


def _split(value: object) -> object:
    """``"a, b"`` from a variable, a list from TOML."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _named(value: object) -> object:
    """Refuse an empty path, which would be the working directory."""
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("expected a path; leave the setting out for its default")
    return value


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Named = Annotated[Path, BeforeValidator(_named)]
#: The data planes there are (peerlane.workers.dataplane.factory).
DataPlaneKind = Literal["kernel", "memory"]
#: A span of time that a limit may have, in seconds: 0 to ten years.
Span = Annotated[int, Field(ge=0, le=10 * 366 * 86_400)]


class Settings(BaseSettings):
    """All settings. Durations are in seconds. Frozen: a process keeps what it has read at its start."""

    model_config = SettingsConfigDict(
        env_prefix="PEERLANE_", extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True
    )

    # Redis: broker, results and peers.
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="redis://, rediss://, unix:///path or redis+sentinel://; may hold passwords",
    )
    redis_ca: Named | None = Field(None, description="CA certificates for rediss:// (PEM); default: the system's")
    redis_client_cert: Named | None = Field(None, description="certificate that Redis asks clients for (PEM)")
    redis_client_key: Named | None = Field(None, description="its private key (PEM), if it is in a file of its own")
    require_durable: bool = Field(
        default=False, description="a writer refuses to start on a Redis that could lose what it confirms"
    )
    redis_appendfsync: Literal["always", "everysec", "no"] | None = Field(
        None, description="what appendfsync is, stated for a Redis user that may not read it; what Redis tells wins"
    )
    psk_key_file: Named | None = Field(
        None, description="seals preshared keys before they reach Redis; 32 bytes in base64 a line, the newest first"
    )
    result_ttl: int = Field(600, ge=60, le=86_400, description="how long a result, and so a commit record, is kept")
    request_deadline: float = Field(
        60.0, gt=0, le=600, description="deadline of a request whose caller gave neither expires nor timeout"
    )
    timeout: float = Field(5.0, gt=0, le=600, description="how long a client waits unless told otherwise")

    # What processes log.
    log_format: Literal["text", "json"] = Field("text", description="json: one document a line, for collectors of logs")
    log_level: Literal["debug", "info", "warning", "error"] | None = Field(
        None, description="lines below it are left out; default: info, or what Celery's --loglevel says"
    )

    # The gateway this process serves (writer, observer).
    gateway: str | None = Field(None, description="name of the gateway this host serves")
    interface: str = Field("wg0", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$", description="WireGuard device")
    dataplane: DataPlaneKind = Field("kernel", description="kernel, or memory: keeps no tunnel, for tests and the demo")
    private_key_file: Named | None = Field(None, description="default: /etc/peerlane/INTERFACE.key; made if absent")
    state_dir: Named | None = Field(
        None, description="where a gateway keeps its last commits; default: the key's place"
    )
    accept_new_key: bool = Field(
        default=False, description="start with another key than the one that clients were given, for one start"
    )
    user: str | None = Field(None, min_length=1, description="who the gateway's processes become when root starts them")
    listen_port: int = Field(51820, ge=1, le=65535, description="UDP port of the device")
    endpoint: str | None = Field(None, description="host:port that clients dial; default: this host's name")
    pools: Listed = Field(
        ("10.8.0.0/16", "fd00:8::/64"), description="peers get one address per family, from these; smallest first"
    )
    serves: Listed = Field((), description="prefixes beyond the pools that a peer may ask for; each gets a route")
    dns: Listed = Field((), description="DNS servers written into client configurations")
    client_allowed_ips: Listed = Field((), description="what clients route into the tunnel; default: the pools")
    mtu: int | None = Field(None, ge=1280, le=9000, description="MTU of the device; default: the kernel's choice")
    max_peers: int = Field(100_000, ge=1, le=1_048_576, description="a gateway refuses creates beyond this")
    lane_cap: int = Field(
        20_000, ge=1, le=10_000_000, description="requests waiting in a lane beyond which clients are refused"
    )
    fair_label: str | None = Field(
        None, pattern=r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$", description="label whose values share the lane fairly"
    )
    fair_share: float = Field(0.5, gt=0, le=1, description="largest part of the lane for one value of fair_label")
    unknown_peers: Literal["remove", "keep", "adopt"] = Field(
        "remove", description="what becomes of peers in the kernel that Redis does not know"
    )
    region: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="for clients that name a region")
    labels: Listed = Field((), description="key=value, for clients that choose a gateway by labels")

    # What the observer and the sweeps do on this gateway. 0 switches a limit off.
    observe_every: float = Field(30.0, ge=1, le=3600, description="seconds between two readings of the counters")
    sweep_every: float = Field(60.0, ge=1, le=86_400, description="seconds between two sweeps (beat, and gateways)")
    beat_file: Named | None = Field(None, description="touched by beat whenever it has looked at what is due")
    reconcile_every: float = Field(300.0, ge=5, le=86_400, description="seconds between two reconciliations")
    sweep_never_after: Span = Field(86_400, description="a peer that never handshaked is stale after this")
    sweep_idle_after: Span = Field(30 * 86_400, description="a peer not seen for this long is stale")
    sweep_start_grace: Span = Field(600, description="after a start, only expired peers are stale for so long")
    sweep_share: float = Field(0.5, gt=0, le=1, description="a sweep of a larger share of the peers needs --force")
    sweep_floor: int = Field(50, ge=0, le=1_048_576, description="a sweep of at most so many peers never needs --force")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and info.field_name not in ("require_durable", "accept_new_key"):
            raise ValueError("expected a value, not true or false")
        return value

    @field_validator("gateway")
    @classmethod
    def _gateway_name(cls, value: str | None) -> str | None:
        if value is not None and not names.GATEWAY_NAME.fullmatch(value):
            raise ValueError("a gateway's name is a-z, 0-9 and -, at most 63 characters, and starts with no -")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        validators.check_redis_url(value.get_secret_value())
        return value

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        return None if value is None else parse_endpoint(value)

    @field_validator("pools")
    @classmethod
    def _pools(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        validators.check_pools(value)
        return value

    @field_validator("serves")
    @classmethod
    def _serves(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # Malformed pools have an error of their own.
        validators.check_areas(value, info.data.get("pools", ()))
        return value

    @field_validator("client_allowed_ips", "dns")
    @classmethod
    def _each(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(parse_dns(text) if info.field_name == "dns" else str(validators.network(text)) for text in value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        validators.check_labels(value)
        return value

    @field_validator("redis_ca", "redis_client_cert", "redis_client_key")
    @classmethod
    def _for_tls(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        url = info.data.get("redis_url")
        if isinstance(url, SecretStr) and not url.get_secret_value().startswith(("rediss://", "rediss+sentinel://")):
            raise ValueError("it is for TLS, and PEERLANE_REDIS_URL does not begin with rediss://")
        if not validators.is_file(value):
            raise ValueError(f"{validators.quoted(str(value))} is not a file")
        if info.field_name == "redis_client_key" and info.data.get("redis_client_cert") is None:
            raise ValueError("a key without PEERLANE_REDIS_CLIENT_CERT")
        return value

    @property
    def key_file(self) -> Path:
        """Where the device's private key is."""
        return self.private_key_file or Path(f"/etc/peerlane/{self.interface}.key")

    @property
    def state_directory(self) -> Path:
        """Where a gateway keeps what has to outlive its process."""
        return self.state_dir or self.key_file.parent

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings  # neither is one of our sources
        if isinstance(env_settings, EnvSettingsSource):
            foreign = {name.lower() for name in os.environ if links.of_an_engine(name, os.environ, PREFIX)}
            env_settings.env_vars = {k: v for k, v in env_settings.env_vars.items() if k not in foreign}
        named = os.environ.get(settings_file.VARIABLE)
        return (
            init_settings,
            env_settings,
            *settings_file.from_file(settings_cls, Path(named or DEFAULT_SETTINGS_FILE), named),
        )


def read(**overrides: Any) -> Settings:
    """Read the settings now; ``overrides`` win.

    Raises:
        BadSettings: names each bad setting and what it should be.
    """
    known = {*Settings.model_fields, settings_file.VARIABLE.removeprefix("PEERLANE_").lower()}
    # Test and kernel variables belong to the test suite and share the prefix.
    stray = sorted(
        name
        for name in os.environ
        if (lowered := name.lower()).startswith("peerlane_")
        and lowered.removeprefix("peerlane_") not in known
        and not lowered.startswith("peerlane_test_")
        and not links.of_an_engine(name, os.environ, PREFIX)
    )
    if stray:
        raise BadSettings(
            "; ".join(
                f"no such setting: {validators.quoted(n)}{validators.nearest(n, known, variable=True)}" for n in stray
            )
        )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)
        raise BadSettings(
            "; ".join(_sentence(str(problem["loc"][0]), problem["type"], problem["msg"]) for problem in wrong)
        ) from None
    except UnicodeEncodeError:  # bytes that are no text, of which pydantic cannot tell
        raise BadSettings("a setting holds what is not UTF-8") from None


#: What the settings with a pattern are, in words.
_FORMS = {
    "interface": "a device's name: at most 15 letters, digits, _ . and -, the first a letter or digit",
    "fair_label": "a label's name: a-z, 0-9, and . _ / - inside, at most 63 characters",
    "region": "a name of a-z, 0-9 and -, at most 63 characters",
}


def _sentence(name: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":  # variables were looked at before: it is the file's
        nearest = validators.nearest(name, Settings.model_fields)
        return f"the settings file has no such setting: {validators.quoted(name)}{nearest}"
    if kind == "string_pattern_mismatch":
        message = f"expected {_FORMS[name]}"
    return f"PEERLANE_{name.upper()}: {message.removeprefix('Value error, ')}"


@lru_cache(maxsize=1)
def current() -> Settings:
    """This process's settings, read at the first call and kept."""
    return read()


def shown(settings: Settings) -> dict[str, Any]:
    """All settings for people, secrets hidden."""
    values = settings.model_dump(mode="json")
    values["redis_url"] = shown_url(settings.redis_url.get_secret_value())
    return values
