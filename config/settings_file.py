"""The TOML file of settings, as a settings source for pydantic."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

from peerlane.config import validators
from peerlane.config.bad_settings import BadSettings

#: Variable that names the file; without it, the default path is read if it is there.
VARIABLE = "PEERLANE_SETTINGS"


def from_file(settings: type[BaseSettings], path: Path, named: str | None) -> tuple[PydanticBaseSettingsSource, ...]:
    """The file as a source; empty if there is none. ``named`` is the value of the variable.

    Raises:
        BadSettings: it was named and is not there, or cannot be read.
    """
    # The default file is optional: in a directory that is closed to this user it counts as absent.
    if not named and not validators.is_file(path):
        return ()
    try:
        if path.is_file():
            return (TomlConfigSettingsSource(settings, path),)
        if named:
            raise BadSettings(f"{VARIABLE} names {named}, which is not a file")
        return ()
    except OSError as error:
        way_out = "" if named else f"; {VARIABLE} names another"
        raise BadSettings(f"the settings file {path} cannot be read: {error.strerror}{way_out}") from None
    except UnicodeDecodeError:  # not chained: it quotes what is in the file
        raise BadSettings(f"the settings file {path} is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadSettings(f"the settings file {path} is not TOML: {error}") from None
