"""Let torchvision be imported where its build does not fit torch's: torchdistill imports it, for images only.

PyPI has torchvision for CUDA; beside a CPU build of torch its operators do not load, and its import fails.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
