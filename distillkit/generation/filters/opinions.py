"""What a judge said, kept on disk: nobody is asked twice, after a crash or after other filters were changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

NAME = "judged.jsonl"

Read = Callable[[str], float | None]


class Opinions:
    """Scores by the hash of the question, and a file that the opinions are added to.

    Args:
        folder: Of the file; None: what is said is not kept.
        read: Opinion → score.
    """

    def __init__(self, folder: Path | None, read: Read) -> None:
        self.path = None if folder is None else folder / NAME
        self.read = read
        self.scores: dict[int, float | None] = {}
        if self.path is not None and self.path.exists():
            _drop_half_a_line(self.path)
            with self.path.open(encoding="utf-8") as lines:
                for line in lines:
                    said = json.loads(line)
                    self.scores[int(said["question"], 16)] = read(said["opinion"])

    def add(self, opinions: Iterable[tuple[int, str]]) -> None:
        """Keep what was said, safe from a crash.

        Args:
            opinions: Hash of the question, opinion.
        """
        lines = []
        for key, opinion in opinions:
            self.scores[key] = self.read(opinion)
            lines.append(json.dumps({"question": f"{key:016x}", "opinion": opinion}, ensure_ascii=False) + "\n")
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())


def _drop_half_a_line(path: Path) -> None:
    """Cut off what a killed process did not finish writing."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
