"""Weights and optimiser state as named tensors: written whole or in shards, read by any number of processes.

The file of an optimiser calls what it keeps of a weight `<weight>.<what>`. Shards are written and read by
torch.distributed.checkpoint, as safetensors too: every process writes its share, and reads what it needs of all.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from distillkit.training.sharding import is_sharded

WEIGHTS, OPTIMIZER, SHARDS = "weights.safetensors", "optimizer.safetensors", "shards"


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a module by name; what is tied has one name."""
    own = dict(module.named_parameters())
    every = dict(module.named_parameters(remove_duplicate=False))
    return {name: tensor for name, tensor in module.state_dict().items() if name in own or name not in every}


def optimizer_tensors(module: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Return what an optimiser keeps of a module's weights by `<weight>.<what>`."""
    return {
        f"{name}.{what}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def host_copies(tensors: dict[str, Tensor], own: bool) -> dict[str, Tensor]:
    """Bring tensors to the CPU, contiguous.

    Args:
        tensors: By name.
        own: Copy those too that are there already, since they will change before they are written.
    """
    memory: set[int] = set()  # a file may hold no two tensors of the same
    copies = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = local.untyped_storage().data_ptr()
        copies[name] = tensor.detach().to("cpu", copy=own or place in memory).contiguous()
        memory.add(place)
    return copies


def write_whole(folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> list[str]:
    """Write what `host_copies` made of a module and its optimiser in one process; return the files' names."""
    save_file(weights, folder / WEIGHTS)
    save_file(optimizer, folder / OPTIMIZER)
    return [WEIGHTS, OPTIMIZER]


def write_shards(folder: Path, tensors: dict[str, Tensor], group: Any = None) -> None:
    """Write the shares of all processes; each has to call it with its own.

    Args:
        folder: Of the checkpoint.
        tensors: What `host_copies` made of this process's shares.
        group: The processes' own way to talk while they train; None: the usual one.
    """
    writer = HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True)
    dcp.save(tensors, storage_writer=writer, process_group=group)


def restore(folder: Path, module: nn.Module, optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Read weights and optimiser state, whole or sharded, into a module and an optimiser that are either.

    Args:
        folder: Of a checkpoint.
        module: What is trained.
        optimizer: Of it.
        groups: Its settings.
    """
    if is_sharded(module) or (folder / SHARDS).is_dir():
        kept = _read_shares(folder, module)
    else:
        state = module.state_dict()
        with torch.no_grad():
            for name, tensor in load_file(folder / WEIGHTS).items():
                state[name].copy_(tensor)
        kept = load_file(folder / OPTIMIZER)
    indices = {name: index for index, name in _names(module, optimizer).items()}
    found: dict[int, dict[str, Any]] = {}
    for key, tensor in kept.items():
        name, _, what = key.rpartition(".")
        number = tensor.ndim == 0 and not tensor.is_floating_point()
        found.setdefault(indices[name], {})[what] = tensor.item() if number else tensor
    optimizer.load_state_dict({"state": found, "param_groups": groups})


def _read_shares(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    """Read weights in place, as far as this process has them; return its share of the optimiser's tensors."""
    shards = folder / SHARDS
    reader = HuggingFaceStorageReader(str(shards if shards.is_dir() else folder))
    state, wanted, kept = module.state_dict(), {}, {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)  # no file holds anything else
        owner = state.get(key.rpartition(".")[0])
        if key in state:
            wanted[key] = state[key]
        elif owner is not None:
            like = owner if stored.size == owner.shape else torch.empty(stored.size, device=owner.device)
            kept[key] = wanted[key] = torch.zeros_like(like, dtype=stored.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(wanted, storage_reader=reader, no_dist=not is_sharded(module))
    return kept


def _names(module: nn.Module, optimizer: Any) -> dict[int, str]:
    """Return the name of each weight by its index in an optimiser's state."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: names[parameter] for index, parameter in enumerate(order)}
