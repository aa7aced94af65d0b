"""Answers that survive a kill: each is appended to a JSON-lines file as it arrives, and known when it is asked again.

Verdicts of a judge, responses of a teacher, scores of questions and answers to benchmarks are kept this way.
"""

import contextlib
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from engine.files import as_jsonl, read_jsonl


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last newline of a file: a kill tore it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)


class AnswerLog(dict):
    """{key: row} of a JSON-lines file, which grows with it. Without a path it lives in memory alone.

    names: the fields that make a row's key (several: a tuple). writes: does this rank write what is added? Several
    ranks may write one file: a row is one write at its end.
    """

    def __init__(self, path: Path | None, *names: str, writes: bool = True):
        super().__init__()
        self.path, self.key_of = path if writes else None, itemgetter(*names)
        if self.path:
            cut_torn_line(self.path)
        if path:
            self.update((self.key_of(row), row) for _, row in read_jsonl(path, names, torn=[]))

    def add(self, rows: Iterable[dict]) -> None:
        """Keep rows, each on disk before the next one is asked for."""
        with self.path.open("ab") if self.path else contextlib.nullcontext() as file:
            for row in rows:
                self[self.key_of(row)] = row
                if file:
                    file.write(as_jsonl([row]).encode())
                    file.flush()
