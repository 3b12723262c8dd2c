"""Mixed heights: a packed batch against the one-by-one loop, its order, its levels in sequence, and what it refuses."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from srnn_zoo import SRNN, LazyLevels, PackedPyramid, Pyramid, ScalePyramid, create_model
from srnn_zoo.transforms.presets import NormalizeLevels
from tests.models.harness import ANYTIME, one_by_one, trained

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Images = Sequence[Sequence[Tensor]]


@pytest.fixture(scope="module", params=ANYTIME)
def model(request: pytest.FixtureRequest) -> SRNN:
    """A model in float64 of every variant that reads any height. Do not change it."""
    torch.manual_seed(1)
    return trained(variant=request.param, std=0.05).double()


def images_of(shapes: Sequence[Sequence[tuple[int, int]]], seed: int = 0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes] for sizes in shapes]


def squares(heights: Sequence[int], seed: int = 0) -> list[list[Tensor]]:
    return images_of([[(16 * 2**s, 16 * 2**s) for s in range(height)] for height in heights], seed)


def gradients(model: SRNN, logits: Tensor) -> list[Tensor]:
    targets = torch.arange(len(logits)) % 5
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_as_one_by_one(model: SRNN, images: Images) -> None:
    """Answers and gradients of the packed batch are the loop's: relative to the largest, to 1e-10."""
    packed, loop = model(Pyramid.pack(images)), one_by_one(model, images)
    assert torch.allclose(packed, loop, rtol=0, atol=1e-10)
    for ours, expected in zip(gradients(model, packed), gradients(model, loop), strict=True):
        assert (ours - expected).abs().max() <= 1e-10 * max(1, expected.abs().max().item())


SHAPES = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([(16, 16), (16, 24), (24, 16), (16, 32)])), min_size=1, max_size=6
)


@FEW
@given(shapes=SHAPES, seed=st.integers(0, 99))
def test_answers_and_gradients_of_mixed_heights_and_shapes_are_the_loops(
    model: SRNN, shapes: list[tuple[int, tuple[int, int]]], seed: int
) -> None:
    images = images_of([[(h * 2**s, w * 2**s) for s in range(height)] for height, (h, w) in shapes], seed)
    assert_as_one_by_one(model, images)


@pytest.fixture(scope="module")
def sample(imagenet_sample: list[Path]) -> Images:
    """Levels of images of 60 to 4000 pixels."""
    sizes = [(60, 60), (500, 375), (130, 257), (4000, 3000), (1024, 768), (60, 90), (333, 600)]
    transforms = [ScalePyramid.variable(60, max_height=3, keep_aspect=keep_aspect) for keep_aspect in (False, True)]
    normalize = NormalizeLevels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = []
    for path, size, transform in zip(imagenet_sample, sizes, itertools.cycle(transforms)):
        with Image.open(path) as image:
            levels = normalize(transform(image.convert("RGB").resize(size)))
        images.append([level.double() for level in levels])
    assert [len(levels) for levels in images] == [1, 3, 2, 3, 3, 1, 3]
    return images


def test_images_of_60_to_4000_pixels_give_the_loops_answers_and_gradients(model: SRNN, sample: Images) -> None:
    assert_as_one_by_one(model, sample)


def test_forward_is_forward_head_of_forward_features(model: SRNN) -> None:
    pyramid = Pyramid.pack(squares([2, 1, 3]))
    features = model.forward_features(pyramid)
    assert features.shape == (3, model.num_features, 6 if model.variant == "mean_prob" else 1, 1)
    assert torch.allclose(model.forward_head(features), model(pyramid), atol=1e-12)
    loop = [model.forward_features([x[None] for x in levels]) for levels in pyramid.unpack()]  # pyright: ignore
    means = torch.cat([model.forward_head(x, pre_logits=True) for x in loop])
    assert torch.allclose(model.forward_head(features, pre_logits=True), means, atol=1e-12)
    maps = copy.deepcopy(model)
    maps.reset_classifier(0, "")
    assert torch.equal(maps(pyramid), features)


def test_steps_are_those_of_every_image_and_ended_ones_keep_their_answer(model: SRNN) -> None:
    images = squares([1, 3, 2, 1])
    pyramid = Pyramid.pack(images)
    steps = list(model.steps(pyramid))
    assert [(step.level, step.size) for step in steps] == [(0, (16, 16)), (1, (32, 32)), (2, (64, 64))]
    for step in steps:
        cut = [levels[: step.level + 1] for levels in images]
        assert torch.allclose(step.logits, one_by_one(model, cut), atol=1e-12)
        alone = [list(model.steps([level[None] for level in levels])) for levels in images]
        alive = [steps_of_one[step.level].state for steps_of_one in alone if len(steps_of_one) > step.level]
        assert torch.allclose(step.state, torch.cat(alive), atol=1e-12)
    assert torch.allclose(steps[-1].logits, model(pyramid), atol=1e-12)


def test_concat_reads_shapes_of_its_own_height_and_refuses_others() -> None:
    model = trained(variant="concat", std=0.05).double()
    shapes = [[(16, 16), (32, 32)], [(16, 24), (32, 48)], [(16, 16), (32, 32)]]
    assert_as_one_by_one(model, images_of(shapes))
    (step,) = model.steps(Pyramid.pack(images_of(shapes)))
    assert (step.level, step.size) == (1, (32, 48))
    mixed = Pyramid.pack(squares([2, 1]))
    for read in (model, model.forward_features, lambda x: list(model.steps(x))):
        with pytest.raises(ValueError, match="fuses exactly 2 levels; got 1"):
            read(mixed)


def unbuilt(sizes: Sequence[Sequence[tuple[int, int]]]) -> PackedPyramid:
    """A batch of images of these sizes, none of whose levels is ever built."""
    return PackedPyramid([LazyLevels(None, of_one, find_level) for of_one in sizes])


@given(heights=st.lists(st.integers(1, 5), min_size=1, max_size=9))
def test_packing_puts_the_greatest_height_first_and_loses_nobody(heights: list[int]) -> None:
    packing = unbuilt([[(2**s, 2**s) for s in range(height)] for height in heights])
    assert sorted(packing.order) == list(range(len(heights)))
    assert [heights[image] for image in packing.order] == sorted(heights, reverse=True)
    assert packing.batch_sizes == [sum(h > s for h in heights) for s in range(max(heights))]
    for level, images in enumerate(packing.batch_sizes):
        assert sorted(itertools.chain(*packing.places(level))) == list(range(images))
        assert sorted(itertools.chain(*packing.chunks(level))) == list(range(images))
        assert all(len(chunk) * 4**level <= 4 ** (max(heights) - 1) for chunk in packing.chunks(level))
    kept = torch.arange(len(heights))[list(packing.order)]
    assert packing.restore(kept.split(2)).tolist() == list(range(len(heights)))


def test_a_packed_pyramid_moves_pickles_slices_and_unpacks() -> None:
    images = squares([1, 3, 2])
    pyramid = Pyramid.pack(images)
    assert isinstance(pyramid, PackedPyramid)
    assert (len(pyramid), pyramid.height, pyramid.heights, pyramid.batch_size) == (3, 3, [1, 3, 2], 3)
    assert [tuple(level.shape) for level in pyramid] == [(3, 3, 16, 16), (2, 3, 32, 32), (1, 3, 64, 64)]
    assert torch.equal(pyramid[-1][0], images[1][2])
    text = "PackedPyramid(heights=[1, 3, 2], sizes=[(16, 16), (32, 32), (64, 64)], batch_sizes=[3, 2, 1])"
    assert repr(pyramid) == text
    for other in (pyramid, pickle.loads(pickle.dumps(pyramid)), pyramid.to("cpu", torch.float64)):
        for ours, given_levels in zip(other.unpack(), images, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, given_levels, strict=True))
    assert pyramid.to(torch.float32)[0].dtype == torch.float32
    assert pyramid[:2].heights == [1, 2, 2]
    with pytest.raises(IndexError):
        pyramid[3]
    with pytest.raises(ValueError, match="image 0: a pyramid needs at least one level"):
        pyramid[1:]


def test_a_level_of_several_shapes_is_a_list_and_its_size_holds_them_all() -> None:
    pyramid = Pyramid.pack(images_of([[(16, 24)], [(16, 16), (32, 32)], [(16, 24), (32, 48)], [(24, 16)]]))
    assert [tuple(x.shape) for x in pyramid[0]] == [(1, 3, 16, 16), (2, 3, 16, 24), (1, 3, 24, 16)]
    assert pyramid.sizes == [(24, 24), (32, 48)]


def test_images_of_one_height_and_size_make_an_ordinary_pyramid() -> None:
    images = squares([2, 2, 2])
    pyramid = Pyramid.pack(images)
    assert type(pyramid) is Pyramid
    assert (pyramid.heights, pyramid.sizes) == ([2, 2, 2], [(16, 16), (32, 32)])
    assert torch.equal(pyramid[1][2], images[2][1])


def lazy(images: Images) -> list[LazyLevels]:
    return [LazyLevels(levels, [(x.shape[-2], x.shape[-1]) for x in levels], find_level) for levels in images]


def find_level(levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    return next(x for x in levels if tuple(x.shape[-2:]) == size)


def test_levels_in_sequence_give_the_same_answers_and_gradients(model: SRNN) -> None:
    for images in (squares([2, 1, 3, 1]), squares([2, 2])):
        pyramid = Pyramid.pack(lazy(images))
        assert isinstance(pyramid, PackedPyramid)
        assert pyramid.levels_in_sequence
        assert torch.allclose(model(pyramid), one_by_one(model, images), atol=1e-12)
        eager = Pyramid.pack(images)
        assert all(torch.equal(a, b) for a, b in zip(pyramid, eager, strict=True))
        for ours, expected in zip(gradients(model, model(pyramid)), gradients(model, model(eager)), strict=True):
            assert (ours - expected).abs().max() <= 1e-10 * max(1, expected.abs().max().item())


def test_levels_in_sequence_are_built_when_they_are_read_in_chunks_of_the_largest_level() -> None:
    built: list[int] = []
    read: list[tuple[int, ...]] = []

    def build(image: Tensor, size: tuple[int, int]) -> Tensor:
        built.append(size[0])
        return torch.zeros(3, *size)

    model = create_model("srnn_test_resnet").eval()
    model.backbone.register_forward_hook(lambda module, args, output: read.append(tuple(args[0].shape[::2])))
    sizes = [(16, 16), (32, 32), (64, 64)]
    pyramid = Pyramid.pack([LazyLevels(None, sizes[:height], build) for height in (1, 3, 1, 2, 2)]).pin_memory()
    steps = model.steps(pyramid.to(torch.float32))
    assert built == []
    next(steps)
    assert (built, read) == ([16] * 5, [(5, 16)])
    assert [step.level for step in steps] == [1, 2]
    assert (built, read) == ([16] * 5 + [32] * 3 + [64], [(5, 16), (3, 32), (1, 64)])
    twelve = unbuilt([[(16, 16)]] * 11 + [[(16, 16), (32, 32)]])
    assert [len(chunk) for chunk in twelve.chunks(0)] == [4, 4, 4]


PEAKS = """
import pathlib, re, resource, sys, torch
from PIL import Image
from srnn_zoo import Pyramid, ScalePyramid, create_model, create_transform

def peak():
    if sys.platform == "linux":  # where ru_maxrss begins with the peak of the process that started this one
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2

torch.set_num_threads(1)
model = create_model("srnn_test_resnet", stem_width=4, channels=(8, 8, 8, 8)).eval()
image = Image.effect_noise((4000, 3000), 60).convert("RGB")
in_sequence, at_once = (
    create_transform(model, sizes=ScalePyramid.variable(224, max_height=4, levels_in_sequence=lazy))
    for lazy in (True, False)
)
in_sequence(image.resize((900, 700)))[0]
with torch.inference_mode():
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    before = peak()
    for transform, count in ((in_sequence, 1), (in_sequence, 4), (at_once, 2)):
        assert model(Pyramid.pack([transform(image) for _ in range(count)])).isfinite().all()
        print(peak() - before)
"""


def peak_memory() -> list[float]:
    """MiB that a process grew by, at its peak so far, once it has read images of 4000 x 3000: 1, 4, 2 at once.

    All in one process, as its start takes longer than an image; and by a narrow backbone, beside which the levels
    themselves (36.75 MiB the largest) are most of what there is to see.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    command = [sys.executable, "-c", PEAKS]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [float(line) for line in output.split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_memory_in_sequence_is_that_of_the_largest_level_not_of_the_batch() -> None:
    one, four, two_at_once = peak_memory()
    assert one >= 36.75, one
    assert four <= 1.1 * one + 8, (one, four)
    assert four <= 160, four  # all their levels together are 195 MiB; docs/pyramids.md has a larger model's figures
    assert two_at_once >= 1.7 * four, (four, two_at_once)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "a batch needs at least one image; got none"),
        ([[torch.zeros(3, 8, 8)], []], ValueError, "image 1: a pyramid needs at least one level"),
        ([torch.zeros(3, 8, 8)], ValueError, r"image 0: a level must be \(C, H, W\); got \[\(8, 8\)"),
        ([[torch.zeros(1, 3, 8, 8)]], ValueError, r"must be \(C, H, W\); got \[\(1, 3, 8, 8\)\]"),
        ([["photo.jpg"]], TypeError, "image 0: the levels of a pyramid must be tensors; got str"),
        ([[torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)]], ValueError, "image 0: levels must grow"),
        ([[torch.zeros(3, 8, 8)], [torch.zeros(1, 8, 8)]], ValueError, "must share C, device and dtype"),
        ([[torch.zeros(3, 8, 8)], [torch.zeros(3, 8, 8).double()]], ValueError, "must share C, device and dtype"),
        ([[torch.zeros(3, 8, 8)], *lazy([[torch.zeros(3, 8, 8)]])], TypeError, "must have LazyLevels; got 1 of 2"),
    ],
)
def test_images_that_make_no_batch_are_refused_in_one_sentence(
    images: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Pyramid.pack(images)


def test_levels_a_model_cannot_read_are_refused_when_they_are_read() -> None:
    model = create_model("srnn_test_resnet").eval()
    image = Image.new("RGB", (40, 40))
    transform = ScalePyramid.variable(32, levels_in_sequence=True)
    normal = NormalizeLevels((0.5,) * 3, (0.5,) * 3)(transform(image))
    gray = LazyLevels(None, [(16, 16)], lambda image, size: torch.zeros(1, *size))
    colour = LazyLevels(None, [(16, 16), (32, 32)], lambda image, size: torch.zeros(3, *size))
    bytes_ = torch.zeros(3, 32, 32, dtype=torch.uint8)
    cases: list[tuple[Any, type[Exception], str]] = [
        (Pyramid.pack([transform(image)]), TypeError, r"must be a tensor \(C, H, W\) once it is built; got Image"),
        (Pyramid.pack([gray, colour]), ValueError, r"must share C; got levels of shapes \[\(1, 16, 16\), \(3, "),
        (Pyramid.pack([gray]), ValueError, r"reads 3 channels; got 1"),
        (Pyramid.pack([[bytes_[:, :16, :16], bytes_], [bytes_]]), TypeError, r"must be float and normalised"),
    ]
    assert model(Pyramid.pack([normal])).shape == (1, 1000)
    for pyramid, error, message in cases:
        with pytest.raises(error, match=message):
            model(pyramid)
    mixed = Pyramid.pack(squares([1, 2]))
    for call in (model.forward_intermediates, model.levels):
        with pytest.raises(TypeError, match=r"PackedPyramid|packed pyramid"):
            call(mixed)
