"""A variant of one's own: the state keeps, feature by feature, the strongest answer of any level."""

from __future__ import annotations

import torch
from torch import Tensor

import srnn_zoo


@srnn_zoo.register_cell("maximum")
class Maximum(srnn_zoo.Cell):
    """h_s = max(C(x_s), h_{s-1})."""

    def initial_state(self, features: Tensor) -> Tensor:
        return torch.full_like(features, -torch.inf)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        return torch.maximum(features, state)


def main() -> None:
    model = srnn_zoo.srnn_tf_efficientnet_lite0(variant="maximum", pretrained=True).eval()
    images = torch.rand(1, 3, 224, 224)
    for step in model.steps(images):
        print(step.size, step.logits.softmax(1).max().item())


if __name__ == "__main__":
    main()
