"""Files that tell when they were damaged: by their SHA-256, and JSON by a checksum among its own facts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts, as JSON has them, with their checksum."""
    plain = json.loads(json.dumps({name: value for name, value in facts.items() if name != CHECKSUM}))
    return {**plain, CHECKSUM: _digest(plain)}


def unsealed(data: bytes) -> dict[str, Any]:
    """Return the facts that `sealed` made of others and that were written as JSON.

    Raises:
        ValueError: If it is not JSON, or other facts.
    """
    found = json.loads(data)
    if not isinstance(found, dict) or found.pop(CHECKSUM, None) != _digest(found):
        raise ValueError("its checksum is another")
    return found


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
