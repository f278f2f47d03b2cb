"""
Command lines: a dataclass becomes flags, bad input becomes one line and exit code 2.

`transformers.HfArgumentParser` does the first part too, but importing it costs seconds, and `--help` must answer at once.
"""

import argparse
import dataclasses
import json
import os
import select
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar


T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    """argparse prints the whole usage before the one line that matters."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


class InputError(Exception):
    """What the user gave cannot be used. The message says what was expected, what was seen and what to do."""


def _element_type(annotation: Any) -> tuple[type, bool]:
    """The type to parse one value with, and whether the flag takes several: `list[str] | None` -> `(str, True)`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True
    return annotation, False


def _add_fields(parser: argparse.ArgumentParser, arguments: type) -> None:
    hints = typing.get_type_hints(arguments)
    for field in dataclasses.fields(arguments):
        kind, several = _element_type(hints[field.name])
        required = field.default is dataclasses.MISSING
        options: dict[str, Any] = {"help": field.metadata.get("help", "").replace("%", "%%"), "required": required}
        if not required and field.default not in (None, False):
            options["help"] += f" (default: {field.default})"
        if "choices" in field.metadata:
            options["choices"] = field.metadata["choices"]
        if kind is bool:
            options.pop("required")
            parser.add_argument(f"--{field.name}", action="store_true", **options)
        else:
            if several:  # `--flag a b` and `--flag a --flag b` are the same; argparse would extend a default in place
                options |= {"nargs": "+", "action": "extend", "default": argparse.SUPPRESS}
            elif not required:
                options["default"] = field.default
            parser.add_argument(f"--{field.name}", type=kind, **options)


def _check_minimums(parser: argparse.ArgumentParser, arguments: type, parsed: argparse.Namespace) -> None:
    for field in dataclasses.fields(arguments):
        value, minimum = getattr(parsed, field.name, None), field.metadata.get("minimum")
        if value is not None and minimum is not None and value < minimum:
            parser.error(f"argument --{field.name}: expected at least {minimum}, found {value}")


def parse_arguments(arguments: type[T], description: str | None, argv: list[str] | None = None) -> T:
    """
    Parse `--field value` flags into a dataclass.

    Args:
        arguments (`type`): A dataclass; `help`, `choices` and `minimum` are read from each field's metadata.
        description (`str`): Shown above the flags by `--help`; scripts pass their `__doc__`.
        argv (`list[str]`, *optional*): Defaults to `sys.argv[1:]`.
    """
    # An abbreviation that is clear today is another flag's once there is one more.
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    _add_fields(parser, arguments)
    parsed = parser.parse_args(argv)
    _check_minimums(parser, arguments, parsed)
    return arguments(**vars(parsed))


def show_help_and_exit(description: str | None, *arguments: type, inherited: str) -> None:
    """
    Answer `--help` before the heavy imports of a TRL recipe; does nothing when help was not asked for.

    Args:
        description (`str`): The script's `__doc__`.
        arguments (`type`): The dataclasses that the script itself defines.
        inherited (`str`): One line naming the TRL dataclasses whose fields are accepted as well.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    parser = _Parser(description=description, epilog=inherited, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="YAML", help="file with any of the fields; flags override it")
    for each in arguments:
        _add_fields(parser, each)
    parser.parse_args()


def _reader_has_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told unasked
    return bool(poll.poll(0))


def run(main: Callable[[], None]) -> None:
    """
    Run a script's `main`: 0 when done, 2 and one line on stderr for an `InputError`, a traceback and 1 otherwise.

    Who reads what is printed may leave, as `head` does: the script ends too, without a word.
    """
    try:
        try:
            main()
        except SystemExit:  # of `--help`
            print(end="", flush=True)
            raise
        print(end="", flush=True)
    except BrokenPipeError:
        if not _reader_has_left():  # it was another pipe, or a connection
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends
        sys.exit(1)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def read_json(path: str) -> Any:
    """Parse a JSON file that a user named; an `InputError` says what is wrong with it."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors put a byte order mark first
            return json.load(file)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the path of an existing JSON file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits, endless nesting
        raise InputError(f"{path} is not JSON that can be read ({error}); was the download cut short?") from error
