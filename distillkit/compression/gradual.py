"""Prune little by little while the model is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.compression.masks import (
    check_scope,
    check_sparsity,
    hold,
    joined,
    oriented,
    revived,
    share_masks,
    sparsity_notes,
)
from distillkit.compression.prune import CAUTION, magnitudes, prunable
from distillkit.compression.retrain import merge
from distillkit.compression.variant import Context, Kind, Masks, Step, Variant, torch_model
from distillkit.errors import UserError, did_you_mean
from distillkit.models.live import LiveModel
from distillkit.models.onnx import OnnxModel
from distillkit.schema import TrainSettings

SCORES = ("magnitude", "movement")


class GradualPrune(Step):
    """Train with the recipe's loss and teacher while more and more weights are set to zero, for good.

    Args:
        sparsity: Share of the weights that are zero in the end, met exactly.
        by: "magnitude": those of small |w| go; "movement": those that training moves towards zero, by
            −Σ ∂L/∂w · w over the steps so far (Sanh et al. 2020, eq. 3); a pruned weight does not come back.
        scope: "layer": the same share of every weight matrix; "row": of every output; "global": of all together.
        begin: Share of the steps before the first weights go.
        end: Share of the steps at which the target is reached; between them the sparsity follows a cubic curve,
            s (1 − (1 − t)³) (Zhu and Gupta 2017, eq. 1).
        every: Steps between two prunings.
        exclude: Modules to leave alone, by shell-style patterns such as "*.layer.0.*".
        train: What differs from the recipe's `train` settings. The last weights are kept, not the best ones, which
            would be those of a less sparse model.
    """

    accepts = frozenset({Kind.float32})
    trains = True
    masks = True

    def __init__(
        self,
        sparsity: float,
        by: str = "magnitude",
        scope: str = "layer",
        begin: float = 0.0,
        end: float = 0.7,
        every: int = 10,
        exclude: list[str] | None = None,
        train: dict[str, Any] | None = None,
    ) -> None:
        check_sparsity(sparsity)
        check_scope(scope)
        if by not in SCORES:
            raise UserError(f"unknown choice '{by}'", where="by", fix=did_you_mean(by, list(SCORES)))
        if not 0 <= begin < end <= 1:
            raise UserError(f"begin and end must ascend from 0 to 1, got {begin} and {end}", where="begin")
        if every < 1:
            raise UserError(f"must be at least 1, got {every}", where="every")
        self.sparsity = sparsity
        self.by = by
        self.scope = scope
        self.begin = begin
        self.end = end
        self.every = every
        self.exclude = exclude or []
        self.train = train or {}
        merge(TrainSettings(), self.train)

    def check(self, start: LiveModel | OnnxModel) -> None:
        """Refuse patterns that match nothing."""
        if isinstance(start, LiveModel):
            prunable(start.model, self.exclude)

    def __call__(self, variant: Variant, context: Context) -> Variant:
        """Train in place."""
        live = torch_model(variant)
        assert context.retrain is not None
        settings = replace(merge(context.settings, self.train), keep_best=False, patience=None)
        pruner = Pruner(self, live.model, variant.masks)
        context.retrain(live, variant.masks, settings, pruner)
        alive = revived(live.model, pruner.masks)
        if alive:
            raise RuntimeError(f"training revived {alive} pruned weights")
        return Variant(live, pruner.masks, {**sparsity_notes(live.model, pruner.masks), "caution": CAUTION})

    def target(self, done: int, steps: int) -> float:
        """Return the share of zeros after `done` of `steps` steps."""
        through = (done / steps - self.begin) / (self.end - self.begin)
        return self.sparsity * (1 - (1 - min(max(through, 0.0), 1.0)) ** 3)


class Pruner:
    """Watches a training, scores the weights and prunes more of them.

    Args:
        plan: The step.
        model: Of transformers, trained in place.
        earlier: Masks of an earlier step, which stay.
    """

    def __init__(self, plan: GradualPrune, model: Any, earlier: Masks) -> None:
        self.plan = plan
        self.model = model
        self.modules = prunable(model, plan.exclude)
        self.masks = dict(earlier)
        self.moved: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        """Add to the scores how far this step's gradient moves each weight away from zero."""
        if self.plan.by != "movement":
            return
        for name, module in self.modules.items():
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            if weight.grad is not None:
                moved = oriented(module, -weight.grad * weight).float()
                self.moved[name] = self.moved[name] + moved if name in self.moved else moved

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Prune more if it is time, and hold what is pruned."""
        due, last = step % self.plan.every == 0, step + 1 == steps
        target = self.plan.target(step + 1, steps)
        if target > 0 and (due or last):
            made = share_masks(self._scores(), target, self.plan.scope)
            turned = {name: oriented(self.modules[name], mask) for name, mask in made.items()}
            self.masks = joined(turned, self.masks)
        hold(self.model, self.masks)

    def _scores(self) -> dict[str, Tensor]:
        """Return scores in which what is pruned comes last."""
        if self.plan.by == "magnitude":
            return magnitudes(self.modules)
        scores = {}
        for name, size in magnitudes(self.modules).items():
            values = self.moved.get(name, torch.zeros_like(size)).to(size.device)
            mask = self.masks.get(name)
            gone = size == 0 if mask is None else ~oriented(self.modules[name], mask).to(size.device)
            scores[name] = values.masked_fill(gone, -torch.inf)
        return scores
