"""
Command lines: a dataclass becomes flags; bad input ends with one line and exit code 2.

`transformers.HfArgumentParser` makes flags too, but its import takes seconds, and `--help` must answer at once.
"""

import argparse
import dataclasses
import difflib
import errno
import json
import os
import select
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sightsound.launchers import repeat_below_traceback


T = TypeVar("T")
INTERRUPTED = 130  # the exit code that shells report after Ctrl-C


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that most resembles a mistyped one, or None. Case does not count, nor `-` for `_`."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "_")

    by_form: dict[str, str] = {}
    for each in known:  # TRL has two spellings of each flag: the first is the field's name
        by_form.setdefault(plain(each), each)
    found = difflib.get_close_matches(plain(word), by_form, n=1, cutoff=0.7)
    return by_form[found[0]] if found else None


class InputError(Exception):
    """The user's input cannot be used. The message says what was expected, what was seen and what to do."""


def unknown_flags(argv: Iterable[str], known: Iterable[str]) -> str:
    """The end of a parser's message: a suggestion for every unknown flag that resembles a known one."""
    flags = [flag for flag in known if flag.startswith("--")]
    unknown = dict.fromkeys(part.split("=")[0] for part in argv if part.startswith("--") and part != "--")
    suggestions = {flag: nearest(flag, flags) for flag in unknown if flag not in flags}
    return "".join(f"; {flag}: did you mean {found}?" for flag, found in suggestions.items() if found)


class _Parser(argparse.ArgumentParser):
    """argparse prints the whole usage above its error; this prints the error alone."""

    argv: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.argv = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}{unknown_flags(self.argv, self._option_string_actions)}; see --help\n")


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
        default: Any = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        required = default is dataclasses.MISSING
        options: dict[str, Any] = {"help": field.metadata.get("help", "").replace("%", "%%"), "required": required}
        if not required and default not in (None, False):
            options["help"] += f" (default: {' '.join(default) if several else default})"
        if "choices" in field.metadata:
            options["choices"] = field.metadata["choices"]
        if kind is bool:
            options.pop("required")
            parser.add_argument(f"--{field.name}", action="store_true", **options)
        else:
            if several:  # `--flag a b` and `--flag a --flag b` are the same; argparse would extend a default in place
                options |= {"nargs": "+", "action": "extend", "default": argparse.SUPPRESS}
            elif not required:
                options["default"] = default
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
    # No abbreviations: a new flag could make one ambiguous.
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    _add_fields(parser, arguments)
    parsed = parser.parse_args(argv)
    _check_minimums(parser, arguments, parsed)
    return arguments(**vars(parsed))


def show_help_and_exit(description: str | None, *arguments: type, inherited: str) -> None:
    """
    Answer `--help` before the heavy imports of a TRL recipe. Does nothing without that flag.

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
    """Whether stdout is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are reported without asking for them
    return bool(poll.poll(0))


def _end_with(message: str) -> typing.NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    repeat_below_traceback(f"\nerror: {message}\n")
    sys.exit(2)


def run(main: Callable[[], None]) -> None:
    """
    Run a script's `main` and set the exit code.

    0 when done; 2 and one line on stderr for an `InputError` or a full disk; 130 and one line after Ctrl-C; else 1 and a
    traceback. When the reader of stdout closes it, as `head` does, the script ends with 1 and prints nothing.
    """
    try:
        try:
            main()
        except SystemExit:  # raised by `--help`
            print(end="", flush=True)
            raise
        print(end="", flush=True)
    except BrokenPipeError:
        if not _reader_has_left():  # another pipe or a connection broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more when it ends
        sys.exit(1)
    except InputError as error:
        _end_with(str(error))
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" for {error.filename}" if error.filename else ""
        _end_with(f"the disk is full{where} ({error.strerror}); free space and run the same command again")


def read_json(path: str) -> Any:
    """Parse a JSON file that a user named. An `InputError` says what is wrong with it."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors put a byte order mark first
            return json.load(file)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; give the path of an existing JSON file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); give the path of a JSON file") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number of thousands of digits, endless nesting
        raise InputError(f"{path} is not JSON that can be read ({error}); {_likely_cause(path, error)}") from error


def _likely_cause(path: str, error: Exception) -> str:
    """The likely reason why a file is not JSON, and the remedy."""
    with open(path, "rb") as file:
        begin = file.read(4096)
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in begin[:4]:
        return "it is UTF-16: save it as UTF-8"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8, perhaps Latin-1: save it as UTF-8"
    first = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    if first[:1] not in (b"[", b"{") and any(sign in first.split(b"\n")[0] for sign in (b",", b";", b"\t")):
        return "it looks like a CSV table: give the JSON file"
    return "was the download cut short?"
