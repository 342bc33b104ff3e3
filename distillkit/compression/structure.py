"""Make linear maps narrower, and let stock transformers build what comes out."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distillkit.errors import UserError


def keep_outputs(module: nn.Module, chosen: Tensor) -> None:
    """Keep some outputs of a linear map, in place; GPT-2's keep their weights transposed."""
    if isinstance(module, Conv1D):
        _replace(module, module.weight[:, chosen])
        module.nf = len(chosen)
    else:
        assert isinstance(module, nn.Linear)
        _replace(module, module.weight[chosen])
        module.out_features = len(chosen)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[chosen].clone())


def keep_inputs(module: nn.Module, chosen: Tensor) -> None:
    """Keep some inputs of a linear map, in place."""
    if isinstance(module, Conv1D):
        _replace(module, module.weight[chosen])
        module.nx = len(chosen)
    else:
        assert isinstance(module, nn.Linear)
        _replace(module, module.weight[:, chosen])
        module.in_features = len(chosen)


def matrix_of(module: nn.Module) -> Tensor:
    """Return the weights of a linear map as `[outputs, inputs]`: a view."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()


def rebuilt(model: Any) -> Any:
    """Make the model anew of its config, as stock transformers does, with the weights that it has now.

    Raises:
        UserError: If they do not fit, so that the model could not be loaded again.
    """
    fresh = type(model)._from_config(copy.deepcopy(model.config), dtype=model.dtype)
    expected = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    state = model.state_dict()
    for name, tensor in state.items():
        if expected.get(name) != tensor.shape:
            fix = "transformers could not load the model"
            raise UserError(f"the config of {model.config.model_type} cannot express the shape of {name}", fix=fix)
    fresh.load_state_dict(state)
    fresh.tie_weights()
    if model.can_generate():
        fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh.to(model.device).eval()


def _replace(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.detach().clone().contiguous())
