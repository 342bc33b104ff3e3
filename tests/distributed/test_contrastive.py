"""InfoNCE in two processes comes to what one process with all rows comes to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from distillkit.losses.contrastive import InfoNCE
from distillkit.signals import Signal
from tests.captured import batch, shape

SIZES = (3, 2)


def rows(width: int, seed: int) -> Tensor:
    return torch.randn(sum(SIZES), 2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(loss: InfoNCE, start: int, stop: int, real: bool = True) -> dict[str, Tensor]:
    """The loss of some rows and its gradients."""
    student = rows(6, 0)[start:stop].requires_grad_()
    said = Signal(features={"layers.0.hidden": student})
    taught = Signal(features={"layers.0.hidden": rows(10, 1)[start:stop]})
    loss.zero_grad()
    value = loss(said, taught, replace(batch((2,) * (stop - start)), real=real))
    value.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in loss.named_parameters()}
    return {"value": value.detach(), "student": student.grad, **gradients}


def made() -> InfoNCE:
    torch.manual_seed(0)
    loss = InfoNCE()
    loss.bind(shape(1), shape(1, head_width=5))
    return loss.double()


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    start = sum(SIZES[:rank])
    everything = results(made(), start, start + SIZES[rank])
    idle = results(made(), start, start + SIZES[rank], real=rank == 0)
    torch.save([everything, idle], Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_rows_of_both_processes_are_candidates(two):
    whole = results(made(), 0, sum(SIZES))
    (first, _), (second, _) = two
    torch.testing.assert_close(torch.cat([first["student"], second["student"]]), whole["student"])
    for name in whole.keys() - {"student"}:
        torch.testing.assert_close(first[name] + second[name], whole[name])


def test_rows_that_are_not_real_are_nobodys_candidates(two):
    (_, first), (_, second) = two
    torch.testing.assert_close(first, results(made(), 0, SIZES[0]))
    assert all(value.isfinite().all() for value in second.values())
    assert second.keys() == first.keys()  # every process has gradients to exchange
