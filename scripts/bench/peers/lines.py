"""Count what a user writes."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def count_lines(path: Path) -> int:
    """Count lines of Python without blank ones, comments, docstrings and imports; of a .txt, arguments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        return sum(bool(line.strip()) and not line.startswith("#") for line in text.splitlines())
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        only_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if only_text or isinstance(node, ast.Import | ast.ImportFrom):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)
