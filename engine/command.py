"""How a command of ours ends: a user's mistake is one line, and every exit has its code."""

import argparse
import dataclasses
import os
import re
import sys
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake. The message is one line that names the thing and the fix; the exit code is 2."""


def one_line(error: BaseException, line: int = 0) -> str:
    """One line of what an error of a library says, in at most 200 characters."""
    return (str(error).strip() or repr(error)).splitlines()[line][:200]


def some(names: Iterable) -> str:
    """At most five different ones of many names, quoted, for a message."""
    different = list(dict.fromkeys(names))
    return ", ".join(map(repr, different[:5])) + ", ..." * (len(different) > 5)


class Flags(argparse.ArgumentParser):
    """A command line whose mistakes are one line: no abbreviations, no usage block."""

    def __init__(self, text: str):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def add_settings(self, settings: type, groups: dict[str, str]) -> "Flags":
        """A flag for each field that `groups` names (title -> names) of a dataclass made by `config.setting`."""
        fields = {f.name: f for f in dataclasses.fields(settings)}
        for title, names in groups.items():
            group = self.add_argument_group(title)
            for f in (fields[name] for name in names.split()):
                flag, more = "--" + f.name.replace("_", "-"), dict(default=None, help=f.metadata["help"])
                if isinstance(f.default, bool):
                    group.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
                elif f.metadata["values"]:
                    group.add_argument(flag, choices=tuple(f.metadata["values"]), metavar="WHAT", **more)
                else:
                    kind = type(f.default)
                    group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **more)
        return self

    def error(self, message: str):
        """Called by argparse on a wrong flag."""
        raise UserError(f"{message}; see --help")


def run_command(main) -> None:
    """Run a command line's main(); a UserError becomes one line on standard error and exit code 2.

    One of several processes that fails leaves at once: saying goodbye to the others (NCCL does) would wait for them,
    and they wait for this one. torchrun ends them when it is gone.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a letter shows its number (Windows)
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
        return
    except BrokenPipeError:  # the reader, such as `| head`, has enough: end in silence
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = 141
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":
            again = "the same command" + " without --no-resume" * ("--no-resume" in sys.argv)
            print(f"{str(error) or 'stopped'}; {again} goes on from here", file=sys.stderr)
        code = getattr(error, "code", 130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Exception as error:
        full = re.search(r"No space left on device|Disk quota exceeded|File too large", str(error))
        if full:
            print(
                f"error: {full[0]}: make room and give the same command again; what was whole is kept", file=sys.stderr
            )
        elif int(os.environ.get("WORLD_SIZE", 1)) < 2:
            raise
        else:
            traceback.print_exc()
        code = 2 if full else 1
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
