"""What every filter of generated rows is, and how it finds the prompt, the answer and the source row in a row.

Beside the columns of the data, a generated row may say how it came to be:

- `source_row`: index, in the split that was asked about, of the row that it was made of. Rows of one source row lie
  next to each other: they are the samples of one prompt.
- `finished`: whether the answer ended by itself; `finish_reason`: why it ended, as the backend says it.
- `log_prob`: natural log-probability of the whole answer given the prompt; `answer_tokens`: how many tokens it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distillkit.data.rows import Rows

Row = dict[str, Any]
Of = Literal["row", "answer", "prompt"]  # which of its texts

SOURCE, LOG_PROB, ANSWER_TOKENS, FINISHED = "source_row", "log_prob", "answer_tokens", "finished"
# Columns, the first that is there, with what belongs to it.
ANSWERS = {"completion": (), "target": (), "text": ("text_pair",)}
PROMPTS = {"prompt": (), "source": (), "instruction": ("input",)}


@dataclass(frozen=True)
class Given:
    """What a filter may look at beside the rows.

    Attributes:
        rows: The dataset that the teacher was asked about.
        split: Which of its splits.
        tokenizer: Of the teacher; None where a server has it.
        folder: Of the run, for what is to be remembered; None: nothing is.
    """

    rows: Rows
    split: str = "train"
    tokenizer: Any = None
    folder: Path | None = None

    def source(self, row: Row) -> Row | None:
        """Return the row of the dataset that a generated row was made of; None if it does not say."""
        index = row.get(SOURCE)
        return None if index is None else self.rows.split(self.split)[index]


class Filter:
    """A node of `generate.filters`: a cheap constructor with the YAML arguments, and a verdict for each row.

    Attributes:
        hint: What to do when it rejects every row.
    """

    hint = "loosen it"

    def check(self, given: Given) -> None:
        """Refuse a dataset that lacks what the filter needs, before any row is generated."""

    def begin(self, given: Given) -> None:
        """Get ready for one pass over the rows, and forget an earlier one."""

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Return for each row why it is rejected, or None to keep it.

        Args:
            rows: Some of the rows that earlier filters kept, in order; all samples of a prompt come in one call.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what the report says of its work beside the rejects, such as what a judge cost."""
        return {}


def answer_of(row: Row) -> str:
    """Return what the teacher wrote; of a conversation its last turn, of a row that it labelled the row's text."""
    messages = row.get("messages")
    return _first(row, ANSWERS) or (str(messages[-1]["content"] or "") if messages else "")


def prompt_of(row: Row) -> str:
    """Return what the teacher answered; of a conversation all turns but the last. Empty for a continued text."""
    turns = [str(turn["content"] or "") for turn in (row.get("messages") or [])[:-1]]
    return _first(row, PROMPTS) or "\n".join(turns)


def _first(row: Row, columns: Mapping[str, tuple[str, ...]]) -> str:
    for name, others in columns.items():
        if row.get(name) is not None:
            return "\n".join(str(row[each]) for each in (name, *others) if row.get(each))
    return ""


def text_of(row: Row, of: Of) -> str:
    """Return one of a row's texts; of the whole row prompt and answer."""
    if of == "row":
        return f"{prompt_of(row)}\n{answer_of(row)}"
    return answer_of(row) if of == "answer" else prompt_of(row)


def samples(rows: list[Row]) -> Iterator[list[int]]:
    """Yield the indices of the rows of each prompt, which are neighbours."""
    group: list[int] = []
    for index, row in enumerate(rows):
        if group and not same_prompt(rows[group[-1]], row):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def same_prompt(first: Row, second: Row) -> bool:
    """Tell whether two neighbours are samples of one prompt: by their source row, or else by their prompts."""
    if SOURCE in first or SOURCE in second:
        return first.get(SOURCE) == second.get(SOURCE)
    return prompt_of(first) == prompt_of(second) != ""
