"""What every SRNN must do, whatever its variant, its backbone and the parts of its levels: test files inherit it."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from srnn_zoo import SRNN, LazyLevels, Pyramid, count_gmacs, create_model, list_cells
from tests.conftest import same_weights

ANY_SIZE = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)


def full(variant):
    """The variant that has whole matrices and reads pooled features, as which others start."""
    return re.sub("(_map)?(_diag|_scalar|_low_rank)?$", "", variant)


# one for all light cells and one for those with maps, whose equations have tests of their own
POOLED = [*(cell for cell in list_cells() if cell == full(cell)), "half_gru_diag"]
CELLS = [*POOLED, "half_gru_map"]
ANYTIME = [cell for cell in CELLS if cell != "concat"]


def trained(name="srnn_test_resnet", std=0.3, **options):
    """A small model in evaluation mode with random weights: gates that differ, and no two levels' parts alike."""
    model = create_model(name, **{"num_classes": 5, **options})
    for parameter in (*model.cell.parameters(), *model.exit_classifiers.parameters(), *model.fc.parameters()):
        nn.init.normal_(parameter, std=std)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.1)
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
    return model.eval()


def cut(levels, heights):
    """The levels of every image of a batch up to a height of its own."""
    return [[level[i] for level in levels[:height]] for i, height in enumerate(heights)]


def one_by_one(model, images):
    """The answers for images with levels `(C, H_s, W_s)` of their own, each read alone."""
    return torch.cat([model([level[None] for level in levels]) for levels in images])


def in_sequence(images, built=None):
    """The same levels of every image, built when they are read, and their sizes noted in `built`."""

    def build(levels, size):
        if built is not None:
            built.append(size)
        return next(level for level in levels if tuple(level.shape[-2:]) == size)

    return [LazyLevels(levels, [(x.shape[-2], x.shape[-1]) for x in levels], build) for levels in images]


class SRNNTests:
    """A subclass has the fixture `model`, in evaluation mode, with random weights everywhere."""

    size = 64  # of the largest level

    @pytest.fixture
    def images(self, model):
        return torch.randn(2, model.in_chans, self.size, self.size)

    def test_forward_is_forward_head_of_forward_features_for_a_tensor_its_levels_and_a_pyramid(self, model, images):
        features, logits, levels = model.forward_features(images), model(images), model.levels(images)
        height = len(model.scales) if model.variant == "mean_prob" else 1
        assert features.shape == (2, model.num_features, height, 1)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (2, model.head_hidden_size)
        if model.variant != "mean_prob":
            assert torch.allclose(model.fc(pre_logits), logits, atol=1e-5)
        for same in (model.forward_head(features), *map(model, (levels, tuple(levels), Pyramid(levels, model.zooms)))):
            assert torch.equal(same, logits)

    @torch.no_grad()
    def test_steps_are_the_pyramid_cut_at_each_level_and_go_on_when_larger_levels_arrive(self, model, images):
        levels = model.levels(images)
        steps, costs = list(model.steps(images)), count_gmacs(model, images.shape[-2:]).levels
        assert [step.level for step in steps] == list(range(len(levels)))[0 if model.cell.anytime else -1 :]
        for step in steps:
            assert step.size == tuple(levels[step.level].shape[-2:])
            assert step.gmacs == pytest.approx(sum(costs[: step.level + 1]))
            assert torch.equal(step.logits, model(levels[: step.level + 1]))
        if model.cell.anytime:
            first, *whole = model.steps(levels)
            for later, expected in zip(model.steps(levels[1:], state=first), whole, strict=True):
                assert later.level == expected.level
                assert torch.equal(later.logits, expected.logits)
                assert later.gmacs == pytest.approx(expected.gmacs)

    @torch.no_grad()
    def test_packed_images_are_answered_as_one_by_one(self, model, images):
        model = copy.deepcopy(model).double()
        levels = model.levels(torch.cat([images, images]).double())
        mixed = cut(levels, (1, len(levels), len(levels), 1) if model.cell.anytime else (len(levels),) * 4)
        mixed[1] = [level.repeat(1, 1, 2) for level in mixed[1]]
        assert torch.allclose(model(Pyramid.pack(mixed, model.zooms)), one_by_one(model, mixed), atol=1e-10)

    def test_every_parameter_gets_a_gradient(self, model, images):
        levels = model.train().levels(torch.cat([images, images]))
        answers = [model(levels), torch.stack([step.logits for step in model.steps(levels)])]
        if model.cell.anytime:  # from fewer levels too, or distributed training would wait for it
            answers += [
                model(levels[:1]),
                model(levels[-1:]),
                model(Pyramid.pack(cut(levels, (1, 1, 2, 2)), model.zooms)),
            ]
        for answer in answers:
            model.zero_grad()
            answer.square().mean().backward()
            assert [name for name, p in model.named_parameters() if p.grad is None] == []

    def test_it_is_copied_pickled_and_saved_whole(self, model, images, tmp_path):
        model.save_pretrained(tmp_path)
        new = create_model(f"local-dir:{tmp_path}").eval()
        new.load_state_dict(model.state_dict())
        loaded = SRNN.from_pretrained(tmp_path).eval()
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), new, loaded):
            assert same_weights(model, other)
            assert torch.equal(other(images), model(images))

    @pytest.mark.filterwarnings("error::torch.jit.TracerWarning", "ignore::FutureWarning")
    @pytest.mark.parametrize(
        "how", ["trace", "fx", *(pytest.param(how, marks=pytest.mark.slow) for how in ("export", "compile"))]
    )
    @torch.no_grad()
    def test_other_representations_compute_the_same_at_other_sizes_too(self, model, how):
        first, *others = (
            torch.randn(b, model.in_chans, h, w) for b, h, w in [(2, 160, 192), (1, 163, 150), (3, 176, 224)]
        )
        make = {
            "trace": lambda: torch.jit.trace(model, first, check_trace=False),  # which traces it twice more
            "fx": lambda: torch.fx.symbolic_trace(model),
            "export": lambda: torch.export.export(model, (first,), dynamic_shapes=(ANY_SIZE,)).module(),
            "compile": lambda: torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True),
        }
        if how == "fx" and model.cell.reads == "maps":
            with pytest.raises(TypeError, match=r"torch.fx cannot trace a model that reads maps"):
                make[how]()
            return
        torch._dynamo.reset()
        with torch._dynamo.config.patch(error_on_recompile=True):
            other = make[how]()
            for images in (first, *others[how == "compile" :]):  # a batch of one is another graph of torch.compile's
                assert torch.allclose(other(images), model(images), atol=1e-4)
