"""Settings of every test: no network, few threads, a cache of its own; and what all tests share."""

import gc
import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.nursery import Nursery

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Spare the garbage collector all that is imported: it will stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """Set up the libraries; the process that hands out the tests to others never imports them."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)  # tiny models gain nothing from more
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DISTILLKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> None:
    """Spare Hydra a first pass over every config, in which it only looks for a `hydra.mode` that none of them sets."""
    from hydra._internal.hydra import Hydra

    Hydra.get_mode = lambda *_, **__: None


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Command lines in processes of their own, without an import for each."""
    with Nursery() as made:
        yield made
