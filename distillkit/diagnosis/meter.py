"""What a computation on fake tensors would cost: arithmetic, memory traffic, calls, and what backward keeps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Cost:
    """What some computation costs.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention.
        bytes: Read and written by all other operations.
        calls: Of operations.
    """

    flops: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes, self.calls + other.calls)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times, self.calls * times)


class Meter(TorchDispatchMode):
    """Add up the cost of every operation inside, and follow the memory of what they make.

    Attributes:
        cost: So far.
        live: Bytes that were made inside and are still held.
        peak: The most of them at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        if func.is_view or not made:  # no work: another look at a tensor, or a question about it
            return result
        flops = _flops(func.overloadpacket, args, kwargs, result)
        moved = 0 if flops is not None else sum(tensor.numel() * tensor.element_size() for tensor in given + made)
        self.cost += Cost(flops or 0, moved, 1)
        there = {_storage(tensor) for tensor in given}
        for tensor in made:
            if _storage(tensor) not in there:
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _flops(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> float | None:
    """Return the floating-point operations of what multiplies matrices; None for all else."""
    if operation is ATTENTION:  # which torch does not count
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if operation is ATTENTION_BACKWARD:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    count: Callable[..., float] | None = flop_registry.get(operation)
    return None if count is None else count(*args, **kwargs, out_val=result)


class Kept(saved_tensors_hooks):
    """Collect what autograd keeps for the backward pass, the modules' own weights and some inputs left out.

    Args:
        modules: Whose parameters and buffers are there anyway.
        inputs: Likewise.
    """

    def __init__(self, modules: Iterable[nn.Module], inputs: Iterable[Tensor]) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        there = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._there = {_storage(tensor) for tensor in [*there, *inputs]}
        self._kept: dict[int, torch.UntypedStorage] = {}

    @property
    def bytes(self) -> int:
        """Their size; what shares memory is counted once."""
        return sum(storage.nbytes() for storage in self._kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._there:
            self._kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
