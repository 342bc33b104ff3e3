"""Sharding (FSDP 2): every process keeps a share of each weight, and the whole of a layer only while it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from distillkit.models.levels import layer_stacks
from distillkit.models.live import LiveModel
from distillkit.models.teachers import FrozenModel

KEY = "launch"


def shard(root: nn.Module, live: LiveModel, accelerator: Accelerator, reshard: bool = True) -> None:
    """Shard a module over all processes, in place: each layer of the model in it, and what is left as a whole.

    In half precision whole layers are gathered in it, and their gradients added up in float32. What is outside of
    the layers stays as it is: embeddings, head and projectors.

    Args:
        root: What is called.
        live: The model in it.
        accelerator: Of the processes.
        reshard: Free a layer's weights after its forward pass and gather them again for the backward pass.

    Raises:
        UserError: If the layers of the model are not to be found.
    """
    kind = accelerator.device.type
    mesh = init_device_mesh(kind, (accelerator.num_processes,))
    with accelerator.autocast():
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for stack in layer_stacks(live.model, KEY):
        for layer in live.model.get_submodule(stack).children():
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(root, mesh=mesh)


def shard_teacher(teacher: FrozenModel, accelerator: Accelerator) -> None:
    """Shard a teacher over all processes, which then have to ask it together.

    One layer after the other is brought to the device, so that it never has to hold the whole.
    """
    shard(teacher.live, teacher.live, accelerator)
    teacher.sharded = True


def is_sharded(module: nn.Module) -> bool:
    """Tell whether the processes share a module's weights."""
    return isinstance(module, FSDPModule)


def move_out(live: LiveModel) -> LiveModel:
    """Return a copy of a model that takes its weights with it: the model itself keeps their shapes."""
    taken = {id(parameter): parameter for parameter in live.parameters()}
    shared = {id(part): part for part in (live.tokenizer, live.task)}
    copied = copy.deepcopy(live, taken | shared)
    hollow(live)
    return copied


def hollow(live: LiveModel) -> None:
    """Free a model's weights; their shapes stay."""
    _replace(live, lambda parameter: torch.empty_like(parameter, device="meta"))


def fill(live: LiveModel, sharded: LiveModel, keep: bool, device: torch.device) -> None:
    """Give a hollow model the weights of its sharded copy. Every process has to take part.

    Args:
        live: Whose weights are only shapes.
        sharded: What `move_out` made of it.
        keep: Whether this process wants them; else it only helps the others, one weight at a time.
        device: Where to.
    """
    shares = dict(zip(live.parameters(), sharded.parameters(), strict=True))

    def whole(parameter: nn.Parameter) -> Tensor:
        share = shares[parameter].detach()
        gathered = share.full_tensor() if isinstance(share, DTensor) else share.clone()
        return gathered.to(device) if keep else parameter.detach()

    _replace(live, whole)
    for ours, theirs in zip(live.buffers(), sharded.buffers(), strict=True):
        ours.copy_(theirs)


def own_bytes(parameter: Tensor) -> int:
    """Return the bytes of a weight, or of this process's share of it."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return local.numel() * local.element_size()


def _replace(live: LiveModel, make: Callable[[nn.Parameter], Tensor]) -> None:
    """Put another tensor in place of every weight; what was tied stays tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in live.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(make(parameter), requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
