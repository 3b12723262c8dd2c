"""Mixed heights: a packed batch against the one-by-one loop, its order, its levels in sequence, and what it refuses."""

import copy
import itertools
import os
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from srnn_zoo import LazyLevels, PackedPyramid, Pyramid, ScalePyramid, create_model, create_transform
from tests.models.harness import ANYTIME, in_sequence, one_by_one, trained

BASES = st.sampled_from([(16, 16), (16, 24), (24, 16), (16, 32)])
FEW = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=ANYTIME)
def model(request):
    """A model in float64 of every variant that reads any height. Do not change it."""
    torch.manual_seed(1)
    return trained(variant=request.param, std=0.05).double()


def images_of(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in sizes] for sizes in shapes]


def squares(heights, seed=0):
    return images_of([[(16 * 2**s, 16 * 2**s) for s in range(height)] for height in heights], seed)


def assert_as(model, pyramid, images):
    """Answers and gradients of a packed batch are those of the images read alone, to 1e-10 (of the largest)."""
    found = []
    for logits in (model(pyramid), one_by_one(model, images)):
        loss = nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 5, reduction="sum")
        found.append((logits, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)))
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-10
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).abs().max() <= 1e-10 * max(1, expected.abs().max().item())


@FEW
@given(shapes=st.lists(st.tuples(st.integers(1, 4), BASES), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_answers_and_gradients_of_mixed_heights_and_shapes_are_the_loops(model, shapes, seed):
    images = images_of([[(h * 2**s, w * 2**s) for s in range(height)] for height, (h, w) in shapes], seed)
    for batch in (images, in_sequence(images)):
        assert_as(model, Pyramid.pack(batch), images)


@pytest.mark.parametrize("model", ["half_gru", "mean_prob"], indirect=True)
def test_images_of_60_to_4000_pixels_give_the_loops_answers_and_gradients(model):
    sizes = [(60, 60), (375, 500), (257, 130), (3000, 4000), (768, 1024), (90, 60), (600, 333)]
    square, wide = (ScalePyramid.variable(60, max_height=3, keep_aspect=aspect) for aspect in (False, True))
    images = images_of([(wide if i % 2 else square).level_sizes(*size) for i, size in enumerate(sizes)])
    assert [len(levels) for levels in images] == [1, 3, 2, 3, 3, 1, 3]
    assert_as(model, Pyramid.pack(images), images)


def test_features_and_steps_are_those_of_every_image_and_ended_ones_keep_their_answer(model):
    images = squares([1, 3, 2, 1])
    pyramid = Pyramid.pack(images)
    batches_of_one = [[level[None] for level in levels] for levels in images]
    features, maps = model.forward_features(pyramid), copy.deepcopy(model)
    assert features.shape == (4, model.num_features, 6 if model.variant == "mean_prob" else 1, 1)
    assert torch.allclose(model.forward_head(features), model(pyramid), atol=1e-12)
    means = [model.forward_head(model.forward_features(levels), pre_logits=True) for levels in batches_of_one]
    assert torch.allclose(model.forward_head(features, pre_logits=True), torch.cat(means), atol=1e-12)
    maps.reset_classifier(0, "")
    assert torch.equal(maps(pyramid), features)
    steps, alone = list(model.steps(pyramid)), [list(model.steps(levels)) for levels in batches_of_one]
    assert [(step.level, step.size) for step in steps] == [(0, (16, 16)), (1, (32, 32)), (2, (64, 64))]
    for step in steps:
        until_here = [levels[: step.level + 1] for levels in images]
        assert torch.allclose(step.logits, one_by_one(model, until_here), atol=1e-12)
        alive = [steps_of_one[step.level].state for steps_of_one in alone if len(steps_of_one) > step.level]
        assert torch.allclose(step.state, torch.cat(alive), atol=1e-12)
    assert torch.allclose(steps[-1].logits, model(pyramid), atol=1e-12)


def test_concat_reads_shapes_of_its_own_height_and_refuses_others():
    model = trained(variant="concat", std=0.05).double()
    shapes = [[(16, 16), (32, 32)], [(16, 24), (32, 48)], [(16, 16), (32, 32)]]
    assert_as(model, Pyramid.pack(images_of(shapes)), images_of(shapes))
    (step,) = model.steps(Pyramid.pack(images_of(shapes)))
    assert (step.level, step.size) == (1, (32, 48))
    for read in (model, model.forward_features, lambda x: list(model.steps(x))):
        with pytest.raises(ValueError, match="fuses exactly 2 levels; got 1"):
            read(Pyramid.pack(squares([2, 1])))


def unbuilt(sizes):
    """A batch of images of these sizes, none of whose levels is ever built."""
    return PackedPyramid([LazyLevels(None, of_one, None) for of_one in sizes])


@given(heights=st.lists(st.integers(1, 5), min_size=1, max_size=9))
def test_packing_puts_the_greatest_height_first_and_loses_nobody(heights):
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


def test_a_packed_pyramid_moves_pickles_slices_and_unpacks():
    images = squares([1, 3, 2])
    pyramid = Pyramid.pack(images)
    assert (len(pyramid), pyramid.height, pyramid.heights, pyramid.batch_size) == (3, 3, [1, 3, 2], 3)
    assert [tuple(level.shape) for level in pyramid] == [(3, 3, 16, 16), (2, 3, 32, 32), (1, 3, 64, 64)]
    assert torch.equal(pyramid[-1][0], images[1][2])
    assert repr(pyramid).startswith("PackedPyramid(heights=[1, 3, 2], sizes=[(16, 16), (32, 32), (64, 64)], batch_")
    assert repr(pyramid).endswith("batch_sizes=[3, 2, 1])")
    lazy = Pyramid.pack(in_sequence(images))
    assert lazy.levels_in_sequence
    for other in (pyramid, pickle.loads(pickle.dumps(pyramid)), pyramid.to("cpu", torch.float64), lazy):
        for ours, given_levels in zip(other.unpack(), images, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, given_levels, strict=True))
    assert pyramid.to(torch.float32)[0].dtype == torch.float32
    assert pyramid[:2].heights == [1, 2, 2]
    with pytest.raises(IndexError):
        pyramid[3]
    with pytest.raises(ValueError, match="image 0: a pyramid needs at least one level"):
        pyramid[1:]


def test_a_level_of_several_shapes_is_a_list_and_one_height_and_size_make_an_ordinary_pyramid():
    pyramid = Pyramid.pack(images_of([[(16, 24)], [(16, 16), (32, 32)], [(16, 24), (32, 48)], [(24, 16)]]))
    assert [tuple(x.shape) for x in pyramid[0]] == [(1, 3, 16, 16), (2, 3, 16, 24), (1, 3, 24, 16)]
    assert pyramid.sizes == [(24, 24), (32, 48)]  # a size holds all shapes of its level
    images = squares([2, 2, 2])
    assert Pyramid.pack(in_sequence(images)).levels_in_sequence
    pyramid = Pyramid.pack(images)
    assert type(pyramid) is Pyramid
    assert (pyramid.heights, pyramid.sizes) == ([2, 2, 2], [(16, 16), (32, 32)])
    assert torch.equal(pyramid[1][2], images[2][1])


def test_levels_in_sequence_are_built_when_they_are_read_in_chunks_of_the_largest_level():
    built, read = [], []
    model = create_model("srnn_test_resnet").eval()
    model.backbone.register_forward_hook(lambda module, args, output: read.append(tuple(args[0].shape[::2])))
    images = [[level.float() for level in levels] for levels in squares([1, 3, 1, 2, 2])]
    steps = model.steps(Pyramid.pack(in_sequence(images, built)).pin_memory().to(torch.float32))
    assert built == []
    next(steps)
    assert (built, read) == ([(16, 16)] * 5, [(5, 16)])
    assert [step.level for step in steps] == [1, 2]
    assert (built[5:], read) == ([(32, 32)] * 3 + [(64, 64)], [(5, 16), (3, 32), (1, 64)])
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
variable = [ScalePyramid.variable(224, max_height=4, levels_in_sequence=lazy) for lazy in (True, False)]
in_sequence, at_once = (create_transform(model, sizes=sizes, exact=True) for sizes in variable)  # one image for all
in_sequence(image.resize((900, 700)))[0]
with torch.inference_mode():
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    before = peak()
    for transform, count in ((in_sequence, 1), (in_sequence, 4), (at_once, 2)):
        assert model(Pyramid.pack([transform(image) for _ in range(count)])).isfinite().all()
        print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_memory_in_sequence_is_that_of_the_largest_level_not_of_the_batch():
    """MiB that one process grew by, at its peak so far, once it has read images of 4000 x 3000: 1, 4, 2 at once.

    The backbone is narrow, so that the levels themselves (36.75 MiB the largest) are most of what there is to see.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    output = subprocess.check_output([sys.executable, "-c", PEAKS], text=True, env=environment)
    one, four, two_at_once = map(float, output.split())
    assert one >= 36.75, one
    assert four <= 1.1 * one + 8, (one, four)
    assert four <= 160, four  # all their levels together are 195 MiB; docs/pyramids.md has a larger model's figures
    assert two_at_once >= 1.7 * four, (four, two_at_once)


def test_images_that_make_no_batch_or_that_a_model_cannot_read_are_refused_in_one_sentence():
    small, *colour = (torch.zeros(3, size, size) for size in (8, 16, 32))
    for images, error, message in (
        ([small], ValueError, r"image 0: a level must be \(C, H, W\); got \[\(8, 8\)"),
        ([[small[None]]], ValueError, r"must be \(C, H, W\); got \[\(1, 3, 8, 8\)\]"),
        ([["photo.jpg"]], TypeError, "image 0: the levels of a pyramid must be tensors; got str"),
        ([colour[::-1]], ValueError, "image 0: levels must grow"),
        ([[small], [small[:1]]], ValueError, "must share C, device and dtype"),
        ([[small], [small.double()]], ValueError, "must share C, device and dtype"),
        ([[small], *in_sequence([[small]])], TypeError, "have LazyLevels; got 1 of 2"),
    ):
        with pytest.raises(error, match=message):
            Pyramid.pack(images)
    model, variable = create_model("srnn_test_resnet").eval(), ScalePyramid.variable(32, levels_in_sequence=True)
    image = Image.new("RGB", (40, 40))
    assert model(Pyramid.pack([create_transform(model, sizes=variable)(image)])).shape == (1, 1000)
    gray = [torch.zeros(1, 16, 16)]
    for images, error, message in (
        ([variable(image)], TypeError, r"must be a tensor \(C, H, W\) once it is built; got Image"),
        (in_sequence([gray, colour]), ValueError, r"must share C; got levels of shapes \[\(1, 16, 16\), \(3, "),
        (in_sequence([gray]), ValueError, "reads 3 channels; got 1"),
        ([[level.byte() for level in colour], [colour[1].byte()]], TypeError, "must be float and normalised"),
    ):
        packed = Pyramid.pack(images)
        with pytest.raises(error, match=message):
            model(packed)
    for call in (model.forward_intermediates, model.level_maps, model.levels):
        with pytest.raises(TypeError, match=r"PackedPyramid|packed pyramid"):
            call(Pyramid.pack(squares([1, 2])))
