"""Settings of every test: no network, few threads, a cache of its own."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import torch
import transformers

torch.set_num_threads(1)  # tiny models gain nothing from more
datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DISTILLKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
