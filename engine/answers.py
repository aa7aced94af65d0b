"""A cache that survives a kill: every answer is appended to a JSON-lines file as it arrives.

Verdicts of a judge, responses of a teacher, scores of questions and answers to benchmarks are kept this way.
"""

import contextlib
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path

from engine.files import as_jsonl, read_jsonl


def cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line, which a killed process left behind."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)


class AnswerLog(dict):
    """{key: row} of a JSON-lines file; rows that are added are appended to it. Without a path: in memory only.

    names: the fields that make a row's key (several: a tuple). writes: whether this rank appends added rows. Several
    ranks may append to one file, because a row is a single write at its end. check: as in read_jsonl; a bad line is as
    if it were not there.
    """

    def __init__(self, path: Path | None, *names: str, writes: bool = True, check: Callable | None = None):
        super().__init__()
        self.path, self.key_of = path if writes else None, itemgetter(*names)
        if self.path:
            cut_torn_line(self.path)
        if path:
            self.update((self.key_of(row), row) for _, row in read_jsonl(path, names, [], check))

    def add(self, rows: Iterable[dict]) -> None:
        """Store rows; each is written to the file before the next one is taken from the iterable."""
        with self.path.open("ab") if self.path else contextlib.nullcontext() as file:
            for row in rows:
                self[self.key_of(row)] = row
                if file:
                    file.write(as_jsonl([row]).encode())
                    file.flush()
