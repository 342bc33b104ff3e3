"""Scores of answers that are right or wrong, and what rejects the wrong ones."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from distillkit.errors import UserError
from distillkit.generation.filters.base import ANSWERS, SOURCE, Filter, Given, Row, answer_of
from distillkit.generation.filters.scores import Score

_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?")
_BEFORE, _AFTER = " \t\n$€£*`", " \t\n$€£%.*`"  # what may stand around a number


class Verifier(Score):
    """A `check` node: tells right answers from wrong ones. As a score, a right answer has 1 and a wrong one 0.

    For a check of your own, derive from it in a package that DISTILLKIT_TRUST names, and write `verify`.
    """

    def begin(self, given: Given) -> None:
        """Take the dataset."""
        self.given = given

    def __call__(self, rows: list[Row]) -> list[float | None]:
        """Return 1 for each right answer and 0 for each wrong one."""
        return [float(self.verify(row, self.given.source(row))) for row in rows]

    def verify(self, row: Row, source: Row | None) -> bool:
        """Tell whether an answer is right.

        Args:
            row: With the answer.
            source: The row of the dataset that was asked about, with its own answer; None if the row does not say.
        """
        raise NotImplementedError


class Verified(Filter):
    """Reject wrong answers.

    Args:
        check: What tells them apart.
    """

    hint = "look at rejected.jsonl: is the answer found where its check looks for it?"

    def __init__(self, check: Verifier) -> None:
        self.verifier = check

    def check(self, given: Given) -> None:
        """Refuse a dataset that lacks what the check needs."""
        self.verifier.check(given)

    def begin(self, given: Given) -> None:
        """Get the check ready."""
        self.verifier.begin(given)

    def judge(self, rows: list[Row]) -> list[str | None]:
        """Reject answers that are not right."""
        return [None if right else "wrong" for right in self.verifier(rows)]


class ExactAnswer(Verifier):
    """Compare the final answer with that of the source row, such as what follows "####" in GSM8K.

    Numbers are compared by value ("1,000", "$1000" and "1000.0" are equal), other answers without case and white space.

    Args:
        extract: Regular expression of the final answer; the last match counts, of it the first group if there is one.
            None: the whole answer.
        column: Of the source row: where the right answer stands. It is looked for in the same way, or else is the
            whole column. None: the column that the teacher's answer has.
    """

    def __init__(self, extract: str | None = r"####\s*(.+)", column: str | None = None) -> None:
        self.extract = pattern(extract, "extract")
        self.column = column

    def check(self, given: Given) -> None:
        """Refuse a dataset without right answers."""
        there = given.rows.split(given.split).column_names
        wanted = tuple(ANSWERS) if self.column is None else (self.column,)
        if not any(name in there for name in wanted):
            raise UserError(
                f"the dataset has no column '{wanted[0]}' with the right answers",
                where="column",
                fix=f"it has: {', '.join(there)}",
            )

    def verify(self, row: Row, source: Row | None) -> bool:
        """Compare both answers; an answer in which none is found is wrong."""
        if source is None:
            raise UserError(f"the rows do not say what they were made of ({SOURCE})", fix="use generate=text")
        column = self.column or next(name for name in ANSWERS if name in row)
        if source.get(column) is None:
            return False
        right = found(self.extract, str(source[column])) or str(source[column])
        own = found(self.extract, answer_of(row))
        return own is not None and same_form(own) == same_form(right)


class Matches(Verifier):
    """Call an answer right in which a regular expression is found, or in which it is not.

    Args:
        expression: Of Python; `(?s)^…$` for the whole answer.
        wanted: Whether it shall be found.
    """

    def __init__(self, expression: str, wanted: bool = True) -> None:
        compiled = pattern(expression, "expression")
        assert compiled is not None
        self.expression = compiled
        self.wanted = wanted

    def verify(self, row: Row, source: Row | None) -> bool:  # noqa: ARG002
        """Look for the expression."""
        return (self.expression.search(answer_of(row)) is not None) == self.wanted


def pattern(expression: str | None, where: str) -> re.Pattern[str] | None:
    """Compile a regular expression."""
    try:
        return None if expression is None else re.compile(expression)
    except re.error as error:
        raise UserError(f"'{expression}' is no regular expression ({error})", where=where) from error


def found(expression: re.Pattern[str] | None, text: str) -> str | None:
    """Return the last match in a text, of it the first group; the whole text if there is no expression."""
    if expression is None:
        return text
    matches = list(expression.finditer(text))
    return matches[-1][1 if expression.groups else 0] if matches else None


def same_form(answer: str) -> str:
    """Write equal answers alike: numbers by value, all else without case, white space and a final stop."""
    bare = answer.lstrip(_BEFORE).rstrip(_AFTER)
    if bare and _NUMBER.fullmatch(bare):
        try:
            return str(Decimal(bare.replace(",", "")).normalize() + 0)  # + 0: no minus zero
        except InvalidOperation:
            pass
    return " ".join(bare.casefold().split())
