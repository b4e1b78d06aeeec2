"""Turns what a command raises into an exit status and one sentence or JSON document.

0 done · 1 refused or failed · 2 usage or settings · 3 timed out, unavailable or unknown · 130 interrupted
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, cast

import click

from peerlane.config.bad_settings import BadSettings
from peerlane.tasks.cli.output import Output, as_document
from peerlane.tasks.cli.session import Session
from peerlane.tasks.cli.stdio import abandon_output, prepare, without_surrogates
from peerlane.tasks.errors import OutcomeUnknown, PeerlaneError, SettingsError

INTERRUPTED = 130
#: What writing to a standard stream fails with, besides a closed pipe.
_LOST = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG, errno.EBADF)


class Exit(Exception):
    """All output is written; carries the exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _json_option() -> click.Option:
    # Read from the arguments before they are parsed: an error in parsing them is a document too.
    return click.Option(["--json"], is_flag=True, expose_value=False, help="One JSON document on standard output.")


class Command(click.Command):
    """A command that takes ``--json``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(_json_option())

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, if all its arguments are text; file names may be any bytes."""
        _refuse_what_is_no_text(ctx)
        return super().invoke(ctx)


class Group(click.Group):
    """A group that takes ``--json``, as its commands do; some are loaded at their first use."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, on_use: Mapping[str, tuple[str, str]] | None = None, **options: Any) -> None:
        """``on_use``: name of a command → where it is, ``module:attribute``, and its line in the help."""
        super().__init__(*args, **options)
        self.on_use = dict(on_use or {})
        self.params.append(_json_option())

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted({*self.commands, *self.on_use})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name, loaded now if it was not."""
        if cmd_name not in self.commands and cmd_name in self.on_use:
            module, _, attribute = self.on_use[cmd_name][0].partition(":")
            self.commands[cmd_name] = getattr(import_module(module), attribute)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the help; loads none."""
        limit = formatter.width - 6 - max(map(len, self.list_commands(ctx)), default=0)
        rows = [
            (name, self.on_use[name][1] if name in self.on_use else self.commands[name].get_short_help_str(limit))
            for name in self.list_commands(ctx)
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, if all its arguments are text."""
        _refuse_what_is_no_text(ctx)
        return super().invoke(ctx)


def _refuse_what_is_no_text(ctx: click.Context) -> None:
    for parameter in ctx.command.params:
        if any(text != without_surrogates(text) for text in _texts(ctx.params.get(str(parameter.name)))):
            raise click.BadParameter("it is not UTF-8", ctx, parameter)


def _texts(value: object) -> Iterator[str]:
    """Every text in an option's value, which may be given several times, or be name=value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(tuple(cast("dict[object, object]", value).items()))
    elif isinstance(value, tuple):
        for item in cast("tuple[object, ...]", value):
            yield from _texts(item)


class Program(Group):
    """The root command: turns an exception of a command into a status and a sentence."""

    group_class: ClassVar[type[click.Group]] = Group  # pyright: ignore[reportIncompatibleVariableOverride] - its groups are no programs

    def main(  # type: ignore[override] - click overloads it by standalone_mode
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        **extra: Any,
    ) -> Any:
        """Run and exit; with ``standalone_mode=False`` return the status instead."""
        prepare()
        arguments = list(sys.argv[1:] if args is None else args)
        session = Session(Output(json=asks_for_json(arguments)))
        try:
            status = self._run(session, arguments, prog_name or "peerlane", complete_var, extra)
            sys.stdout.flush()
        except BrokenPipeError:
            # The program that read the output (head, less) has ended.
            abandon_output()
            status = 1
        except OSError as error:
            abandon_output()
            print(f"error: standard output cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201 - no console is sound now
            status = 1
        finally:
            session.close()
        if standalone_mode:
            sys.exit(status)
        return status

    def _run(
        self, session: Session, arguments: list[str], prog_name: str, complete_var: str | None, extra: dict[str, Any]
    ) -> int:
        output = session.output
        try:
            status = super().main(arguments, prog_name, complete_var, standalone_mode=False, obj=session, **extra)
            return status if isinstance(status, int) else 0
        except Exit as end:
            return end.status
        except BadSettings as error:
            refusal = SettingsError(str(error))
            output.error(as_document(refusal))
            return refusal.exit_code
        except click.ClickException as error:
            _show_usage_error(output, error)
            return error.exit_code
        except PeerlaneError as error:
            return _show_error(session, error)
        except (click.Abort, KeyboardInterrupt):
            output.error({"code": "interrupted", "message": "interrupted", "retryable": True})
            return INTERRUPTED
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.filename is None and error.errno in _LOST:
                raise
            output.error(_unforeseen(error))
            return 1
        except Exception as error:  # noqa: BLE001 - the last door: people get a sentence, whatever it was
            output.error(_unforeseen(error))
            return 1


def _show_error(session: Session, error: PeerlaneError) -> int:
    session.output.error(as_document(error))
    if isinstance(error, OutcomeUnknown):
        session.name_redis()
    return error.exit_code


def _unforeseen(error: Exception) -> dict[str, Any]:
    sentence = f"{type(error).__name__}: {str(error)[:300]}" if str(error) else type(error).__name__
    message = f"peerlane failed in a way that nobody foresaw ({sentence}); this is a fault worth reporting"
    return {"code": "unforeseen", "message": message, "retryable": False}


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` stands among the options."""
    options = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    return "--json" in options


def _show_usage_error(output: Output, error: click.ClickException) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not output.json:
        error.show()
        return
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"`{context.command_path} --help` tells how it is used" if context is not None else ""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = "a command is missing"
    message = message.rstrip(".").replace("\n", " ")
    if output.json:
        output.error({"code": "usage", "message": f"{message}; {hint}" if hint else message, "retryable": False})
    else:
        output.error({"message": message})
        if hint:
            output.note(hint)
