"""Whether models and datasets may be fetched from the hub."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import constants


@dataclass(frozen=True)
class Hub:
    """How the hub is set.

    Attributes:
        offline: Nothing is fetched: only what the cache holds is found.
        endpoint: Address.
        cache: Folder of what was fetched.
    """

    offline: bool
    endpoint: str
    cache: str


def find_hub() -> Hub:
    """Read what the environment says."""
    return Hub(constants.HF_HUB_OFFLINE, constants.ENDPOINT, constants.HF_HUB_CACHE)
