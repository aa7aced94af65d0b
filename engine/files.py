"""Writing a file so that it is whole or absent, and reading JSON lines."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from engine.command import UserError


def write(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, then rename it: it is either absent or whole."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def as_jsonl(rows: Iterable[dict], ascii_only: bool = True) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


def read_jsonl(path: str | Path, required: Iterable[str] = (), torn: list | None = None) -> list[tuple[str, dict]]:
    """[(place, object)] of a JSON-lines file; a place is "file:line".

    A user's file: raises UserError for a bad line, a missing field, an empty file. A log of ours, which a kill may have
    torn, is read with a list as `torn`: bad lines, and a last one without its newline, are left out and their places
    added to the list; a log that does not exist has no lines.
    """
    path, rows = Path(path), []
    if not path.is_file():
        if torn is not None:
            return []
        raise UserError(
            f"{path}: no such file; give a file of JSON lines (README, 'Bring your own data, teacher and judge')"
        )
    with path.open(encoding="utf-8", errors="replace") as lines:
        for place, line in ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()):
            row, wrong = {}, ""
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                wrong = f"not JSON ({error.msg} at column {error.colno}); one object a line"
            if not isinstance(row, dict):
                wrong = "not a JSON object; one object a line"
            elif not wrong and (missing := [name for name in required if name not in row]):
                wrong = f"field {missing[0]!r} is missing; needed are {', '.join(required)}"
            if torn is None and wrong:
                raise UserError(f"{place}: {wrong}")
            if torn is not None and (wrong or not line.endswith("\n")):
                torn.append(place)
            else:
                rows.append((place, row))
    if not rows and torn is None:
        raise UserError(f"{path}: the file is empty; one JSON object a line is needed")
    return rows
