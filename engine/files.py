"""Writing a file so that it is whole or absent, and reading JSON lines."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.command import UserError

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character beyond U+FFFF: no UTF-8 file can hold it


def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: it is either absent or whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def as_jsonl(rows: Iterable[dict], ascii_only: bool = True) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


# ------------------------------------------------------------------------------------------------ JSON lines
def number(text: str) -> int | float:
    """A number of a user's line. Raises ValueError for NaN, infinity and one that is too long or too large."""
    if len(text) > 300 or not math.isfinite(float(text)):
        raise ValueError(f"{text[:20]} is no value that can be used; correct it, or leave the line out")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def unique_fields(pairs: list[tuple]) -> dict:
    """A JSON object of a user's line. Raises ValueError where a field stands twice."""
    names = [name for name, _ in pairs]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"field {doubled[0]!r} stands twice; leave one of them out")
    return dict(pairs)


STRICT = dict(parse_constant=number, parse_float=number, parse_int=number, object_pairs_hook=unique_fields)


def parse_line(line: str, strict: bool = False) -> dict:
    """The object on one line, whose undecodable bytes are surrogates (errors="surrogateescape").

    strict: NaN, infinity and doubled fields are wrong too. Raises ValueError that says what is wrong.
    """
    if "\0" in line or (not line.isascii() and SURROGATE.search(line)):
        raise ValueError("not UTF-8 text; save the file as UTF-8")
    if line.lstrip().startswith("["):
        raise ValueError("not a JSON object but an array; one object a line (jq -c '.[]' FILE writes them so)")
    try:
        row = json.loads(line, **(STRICT if strict else {}))
        if re.search(r"\\u[dD][89a-fA-F]", line):  # as escapes: pairs are one character, halves are none
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}); one object a line") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply); one object a line") from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{half} is half of a character (a lone surrogate); write the whole one or none") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object; one object a line")
    return row


def text_field(row: dict, name: str) -> str:
    """A field as text without blanks around it; a number as text, 7.0 as 7. Raises ValueError for anything else."""
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # NaN is no text
        value = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} is empty or not text; give it a text")
    return value.strip()


def read_jsonl(
    path: str | Path, required: Iterable[str] = (), torn: list | None = None, check: Callable | None = None
) -> list[tuple[str, dict]]:
    """[(place, object)] of a JSON-lines file; a place is "file:line".

    A user's file: raises UserError for a bad line, a missing field, an empty file. A log of ours, which a kill may have
    torn, is read with a list as `torn`: bad lines, and a last one without its newline, are left out and their places
    added to the list; a log that does not exist has no lines. check(row) may change a row; its ValueError makes it bad.
    """
    path, rows = Path(path), []
    if not path.is_file():
        if torn is not None:
            return []
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give a file of JSON lines (docs/data.md)")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for place, line in ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()):
            try:
                row = parse_line(line, strict=torn is None)
                if missing := [name for name in required if name not in row]:
                    raise ValueError(f"field {missing[0]!r} is missing; needed are {', '.join(required)}")
                if check:
                    check(row)
            except ValueError as error:
                if torn is None:
                    raise UserError(f"{place}: {error}") from None
                row = None
            if row is None or (torn is not None and not line.endswith("\n")):
                torn.append(place)
            else:
                rows.append((place, row))
    if not rows and torn is None:
        raise UserError(f"{path}: the file is empty; one JSON object a line is needed")
    return rows
