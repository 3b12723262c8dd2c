"""Classifiers and batch norms of each level: which one reads what, and that they train, save and convert."""

import copy

import pytest
import timm
import torch
from torch import nn

from srnn_zoo import SRNN, Anytime, Pyramid, create_model, init_from_base_cnn, to_base_cnn
from srnn_zoo.models.norms import LevelNorm
from tests.conftest import same_weights
from tests.models.harness import POOLED, SRNNTests, cut, trained

KINDS = [{"exits": "separate"}, {"norm": "per_level"}, {"norm": "frozen"}, {"exits": "separate", "norm": "per_level"}]
ALL_KINDS = pytest.mark.parametrize("options", [{}, *KINDS])  # with the one whose levels share everything


def own(variant="half_gru", **options):
    return trained(variant=variant, scales=(0.25, 0.5, 1.0), img_size=64, **options)


@pytest.fixture(params=KINDS, ids=lambda options: "-".join(options.values()))
def options(request):
    return request.param


@pytest.fixture
def model(options):
    return own(**options)


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64)


class TestKinds(SRNNTests):
    """Models whose levels have all parts of their own, and norms that never change."""

    @pytest.fixture(params=[KINDS[3], KINDS[2]], ids=lambda options: "-".join(options.values()))
    def options(self, request):
        return request.param


def by_hand(model, levels):
    """The logits after every level, each read by a backbone with that level's batch norms alone."""
    answers, state = [], None
    for s, level in enumerate(levels):
        backbone = copy.deepcopy(model.backbone)
        for name, module in list(backbone.named_modules()):
            if isinstance(module, LevelNorm):
                backbone.set_submodule(name, module[min(s, 2)])
        features = backbone(level)
        state = model.cell(features, model.cell.initial_state(features) if state is None else state)
        classifier = model.exit_classifiers[s] if model.exits == "separate" and s < 2 else model.fc
        merged = model.cell.feature_map(state).flatten(2).transpose(1, 2).flatten(0, 1)
        answers.append(model.cell.merge_logits(classifier(merged), model.cell.feature_map(state)))
    return answers


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        *((variant, KINDS[3]) for variant in POOLED if variant != "concat"),
        *(("half_gru", kind) for kind in [{}, *KINDS[:3]]),
    ],
)
@torch.no_grad()
def test_every_level_is_read_by_its_own_parts_and_a_state_alone_does_not_know_its_level(variant, options, images):
    model = own(variant, **options).double()
    levels = [*model.levels(images.double()), torch.randn(4, 3, 96, 96, dtype=torch.float64)]  # more than scales
    expected = by_hand(model, levels)
    for height, (step, answer) in enumerate(zip(model.steps(levels), expected, strict=True), start=1):
        for logits in (step.logits, model(levels[:height]), Anytime(model, f"level:{height - 1}")(levels).logits):
            assert torch.allclose(logits, answer, atol=1e-12)
    assert torch.equal(model(levels), model.forward_head(model.forward_features(levels)))
    heights = (2, 3, 1, 3)
    rows = [expected[height - 1][i] for i, height in enumerate(heights)]
    assert torch.allclose(model(Pyramid.pack(cut(levels, heights))), torch.stack(rows), atol=1e-12)
    later = model.steps(levels[1:], state=next(model.steps(levels)).state)
    if options in ({}, {"norm": "frozen"}):
        assert torch.allclose(next(later).logits, expected[1], atol=1e-12)
    else:
        with pytest.raises(ValueError, match="give the earlier step as state, not its tensor"):
            next(later)


@pytest.mark.parametrize("norm", ["per_level", "frozen"])
def test_a_level_updates_its_own_statistics_alone_and_frozen_ones_stay(norm, images):
    model = own(norm=norm).train()
    before = {key: value.clone() for key, value in model.backbone.named_buffers()}
    model(model.levels(images)[:2]).sum().backward()
    assert before
    for key, value in model.backbone.named_buffers():
        assert torch.equal(value, before[key]) == (norm == "frozen" or key.split(".")[-2] == "2"), key
    assert torch.equal(model(images), model.eval()(images)) == (norm == "frozen")


@ALL_KINDS
def test_gradients_are_those_of_the_levels_read_by_hand_with_checkpoints_or_without(model, images):
    model = model.double()
    levels = model.levels(images.double())
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    ours, again = (
        torch.autograd.grad(torch.stack([s.logits for s in m.steps(levels)]).square().sum(), list(m.parameters()))
        for m in (model, checkpointed)
    )
    for a, b in zip(ours, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    index, probe = next((i, p) for i, (name, p) in enumerate(model.named_parameters()) if name.endswith("conv1.weight"))
    values = []
    with torch.no_grad():
        for change in (1e-6, -2e-6):
            probe[0, 0, 1, 1] += change
            values.append(torch.stack(by_hand(model, levels)).square().sum().item())
    assert ours[index][0, 0, 1, 1].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@torch.no_grad()
def test_they_come_back_from_a_folder_and_a_file_and_what_levels_share_there_is_copied(
    options, model, images, tmp_path
):
    model.save_pretrained(tmp_path / "own")
    for again in (
        *(create(f"local-dir:{tmp_path / 'own'}", pretrained=True) for create in (timm.create_model, create_model)),
        create_model("srnn_test_resnet", weights=tmp_path / "own" / "model.safetensors"),
    ):
        assert (again.exits, again.norm) == (model.exits, model.norm)
        assert same_weights(model, again)
    fewer = SRNN.from_pretrained(tmp_path / "own", num_classes=2)
    assert {classifier.out_features for classifier in (*fewer.exit_classifiers, fewer.fc)} == {2}
    shared = own()
    shared.save_pretrained(tmp_path / "shared")
    spread = create_model(f"local-dir:{tmp_path / 'shared'}", pretrained=True, **options).eval()
    assert {name: getattr(spread, name) for name in options} == options
    for before, after in zip(shared.steps(images), spread.steps(images), strict=True):
        assert torch.allclose(before.logits, after.logits, atol=1e-5)


@torch.no_grad()
def test_the_papers_initialisation_gives_every_level_the_base_cnns_parts(options, images):
    base_cnn = timm.create_model("test_resnet", num_classes=5).eval()
    plain, ours = (create_model("srnn_test_resnet", variant="vanilla", num_classes=5, **o) for o in ({}, options))
    for model in (plain, ours):
        init_from_base_cnn(model.eval(), base_cnn)
        assert model.zero_shot
    for step, expected in zip(ours.steps(images), plain.steps(images), strict=True):
        assert torch.allclose(step.logits, expected.logits, atol=1e-5)
    assert torch.allclose(to_base_cnn(ours)(images), base_cnn(images), atol=1e-5)


def test_a_new_classifier_is_one_for_every_level():
    model = own(exits="separate")
    assert list(model.state_dict())[-2:] == ["fc.weight", "fc.bias"]
    model.reset_classifier(7)
    assert [classifier.out_features for classifier in (*model.exit_classifiers, model.fc)] == [7, 7, 7]
    model.reset_classifier(0)
    assert len(model.exit_classifiers) == 0
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "resnet18", "regnetx_002", "mobilenetv3_small_050"])
@torch.no_grad()
def test_every_batch_norm_of_a_backbone_is_found(architecture):
    model, shared = (create_model(f"srnn_{architecture}", norm=norm).eval() for norm in ("per_level", "shared"))
    kinds = (nn.modules.batchnorm._BatchNorm, LevelNorm)
    norms, places = (sum(isinstance(module, kind) for module in model.backbone.modules()) for kind in kinds)
    assert norms == 2 * places > 0
    for one in (model, shared):
        init_from_base_cnn(one, copy.deepcopy(shared.backbone), classifier=False)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.forward_features(images), shared.forward_features(images))
