"""Steps: a level is built and read when it is asked for, says what it has cost, and a state can be continued later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from srnn_zoo import SRNN, Pyramid, count_gmacs, create_model, list_cells
from srnn_zoo.transforms import pyramid

ANYTIME = [cell for cell in list_cells() if cell != "concat"]


def trained(variant: str = "half_gru") -> SRNN:
    model = create_model("srnn_test_resnet", variant=variant, scales=(0.25, 0.5, 1.0), num_classes=5, img_size=128)
    for parameter in model.cell.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 128, 128)


def test_a_larger_copy_is_resized_only_when_it_is_needed(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    resize = pyramid.resize

    def watch(source: Tensor, size: list[int], interpolation: str) -> Tensor:
        built.append(size[0])
        return resize(source, size, interpolation)

    monkeypatch.setattr(pyramid, "resize", watch)
    for count, _ in enumerate(trained().steps(images), start=1):
        assert built == [32, 64][:count]  # the last level is the image itself


@pytest.mark.parametrize("variant", list_cells())
@torch.no_grad()
def test_the_last_step_is_the_model_bit_for_bit(variant: str, images: Tensor) -> None:
    model = trained(variant)
    *_, last = model.steps(images)
    assert torch.equal(last.logits, model(images))


@torch.no_grad()
def test_a_step_says_what_it_has_cost(images: Tensor) -> None:
    model = trained()
    costs = count_gmacs(model).levels
    found = [step.gmacs for step in model.steps(images)]
    assert found == pytest.approx([sum(costs[: level + 1]) for level in range(3)])


@pytest.mark.parametrize("variant", ANYTIME)
@torch.no_grad()
def test_a_state_goes_on_when_the_larger_copy_arrives(variant: str, images: Tensor) -> None:
    model = trained(variant)
    levels = model.levels(images)
    *_, thumbnail = model.steps(levels[:1])
    *_, last = model.steps(levels[1:], state=thumbnail.state)
    assert torch.equal(last.logits, model(images))


def test_a_state_of_other_images_is_refused(images: Tensor) -> None:
    model = trained()
    *_, last = model.steps(images[:2])
    with pytest.raises(ValueError, match="the state is of 2 images; got a level of 3"):
        list(model.steps(images, state=last.state))
    with pytest.raises(ValueError, match="the state is of 2 images; got a level of 1"):
        list(model.steps(images[:1], state=last.state))
    packed = Pyramid.pack([[image] for image in images[:, :, :32, :32]] + [[images[0, :, :32, :32], images[0]]])
    with pytest.raises(ValueError, match="a packed pyramid starts anew"):
        list(model.steps(packed, state=last.state))
