"""Hidden states, embeddings, pooled outputs: the student's vectors are drawn to the teacher's."""

from __future__ import annotations

from torch import Tensor

from distillkit.losses.projectors import Projector
from distillkit.losses.vectors import Pooling, ProjectedLoss, unit
from distillkit.signals import Batch


class HiddenMSE(ProjectedLoss):
    """(1/d) ‖P h_s − h_t‖²   (FitNets, Romero et al. 2015; TinyBERT, Jiao et al. 2020, equations 8 and 9).

    h `[vectors, d]`; per item (a token, or a row where one pools) in squared units of the features, the mean over
    the mapped layers. TinyBERT adds the layers up: a weight of as many layers gives its sum.

    Args:
        layers: "uniform" (also None), "last", "first", "skip", pairs [[student's, teacher's], …], or "embeddings".
        modules: Pairs [[student's path, teacher's path], …] of modules in place of layers, with outputs of one width.
        pooling: One vector a row: "first" or "last" token, or the "mean"; "pooled" if the modules give one vector a
            row already. None: every token is an item.
        normalise: ‖P h_s/‖P h_s‖ − h_t/‖h_t‖‖² in place of the above: PKD (Sun et al. 2019), which sums
            over the dimensions where plain MSE takes their mean. It is in [0, 4]; PKD adds the layers up.
        projector: P where the widths differ: "linear", "orthogonal", or None to refuse.
    """

    def __init__(
        self,
        layers: str | list[list[int]] | None = None,
        modules: list[list[str]] | None = None,
        pooling: Pooling | None = None,
        normalise: bool = False,
        projector: Projector | None = "linear",
    ) -> None:
        super().__init__(layers, modules, pooling, projector)
        self.normalise = normalise

    def per_vector(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002
        """Return squared distances `[vectors]`."""
        if self.normalise:
            return (unit(student) - unit(teacher)).square().sum(dim=-1)
        return (student - teacher).square().mean(dim=-1)


class HiddenCosine(ProjectedLoss):
    """1 − cos(P h_s, h_t)   (DistilBERT, Sanh et al. 2019).

    Per item, in [0, 2], the mean over the mapped layers. Computed as ½ ‖P h_s/‖P h_s‖ − h_t/‖h_t‖‖², which loses no
    digits where the vectors agree: half of `HiddenMSE` with `normalise`.

    Args:
        layers: As `HiddenMSE`; DistilBERT compares the last layers.
        modules: As `HiddenMSE`.
        pooling: As `HiddenMSE`.
        projector: As `HiddenMSE`.
    """

    def __init__(
        self,
        layers: str | list[list[int]] | None = None,
        modules: list[list[str]] | None = None,
        pooling: Pooling | None = None,
        projector: Projector | None = "linear",
    ) -> None:
        super().__init__(layers, modules, pooling, projector)

    def per_vector(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002
        """Return 1 − cos `[vectors]`."""
        return (unit(student) - unit(teacher)).square().sum(dim=-1) / 2
