"""Classifiers and batch norms of each level: which one reads what, and that they train, save and convert."""

import copy

import pytest
import timm
import torch
from torch import nn

from srnn_zoo import SRNN, Anytime, Pyramid, create_model, init_from_base_cnn, to_base_cnn
from srnn_zoo.models.norms import LevelNorm
from tests.conftest import same_weights
from tests.models.harness import ANYTIME, SRNNTests, trained

KINDS = [{"exits": "separate"}, {"norm": "per_level"}, {"norm": "frozen"}, {"exits": "separate", "norm": "per_level"}]


each_kind = pytest.mark.parametrize("options", KINDS, ids=lambda options: "-".join(options.values()))


def own(variant="half_gru", **options):
    return trained(variant=variant, scales=(0.25, 0.5, 1.0), img_size=64, **options)


class TestKinds(SRNNTests):
    """Every kind of model whose levels have parts of their own."""

    @pytest.fixture(params=KINDS, ids=lambda options: "-".join(options.values()))
    def model(self, request):
        return own(**request.param)


def by_hand(model, levels):
    """The logits after every level, each read by a backbone with that level's batch norms alone."""
    answers = []
    state = None
    for s, level in enumerate(levels):
        backbone = copy.deepcopy(model.backbone)
        for name, module in list(backbone.named_modules()):
            if isinstance(module, LevelNorm):
                parent, _, child = name.rpartition(".")
                setattr(backbone.get_submodule(parent), child, module[min(s, 2)])
        features = backbone(level)
        state = model.cell(features, model.cell.initial_state(features) if state is None else state)
        separate = model.exits == "separate" and s < 2
        classifier = model.exit_fc[s] if separate else model.fc
        merged = model.cell.feature_map(state).flatten(2).transpose(1, 2).flatten(0, 1)
        answers.append(model.cell.merge_logits(classifier(merged), model.cell.feature_map(state)))
    return answers


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64)


@each_kind
@pytest.mark.parametrize("variant", ANYTIME)
@torch.no_grad()
def test_every_level_is_read_by_its_own_parts(variant, options, images):
    model = own(variant, **options).double()
    levels = model.levels(images.double())
    expected = by_hand(model, levels)
    for step, answer in zip(model.steps(levels), expected, strict=True):
        assert torch.allclose(step.logits, answer, atol=1e-12)
    for height in (1, 2, 3):
        assert torch.allclose(model(levels[:height]), expected[height - 1], atol=1e-12)
    assert torch.equal(model(levels), model.forward_head(model.forward_features(levels)))
    mixed = [[level[i] for level in levels[:height]] for i, height in enumerate((2, 3, 1, 3))]
    rows = [expected[height - 1][i] for i, height in enumerate((2, 3, 1, 3))]
    assert torch.allclose(model(Pyramid.pack(mixed)), torch.stack(rows), atol=1e-12)
    for level in range(3):
        stopped = Anytime(model, f"level:{level}")(levels)
        assert torch.allclose(stopped.logits, expected[level], atol=1e-12)


@each_kind
@torch.no_grad()
def test_a_state_alone_does_not_know_its_level(options, images):
    model = own(**options)
    levels = model.levels(images)
    first = next(model.steps(levels))
    if options == {"norm": "frozen"}:
        assert next(model.steps(levels[1:], state=first.state)).logits.shape == (4, 5)
    else:
        with pytest.raises(ValueError, match="give the earlier step as state, not its tensor"):
            next(model.steps(levels[1:], state=first.state))


def test_a_level_updates_its_own_statistics_alone(images):
    model = own(norm="per_level").train()
    before = {key: value.clone() for key, value in model.backbone.named_buffers()}
    model(model.levels(images)[:2])
    for key, value in model.backbone.named_buffers():
        level = key.split(".")[-2]
        assert torch.equal(value, before[key]) == (level == "2"), key


def test_frozen_statistics_stay_and_have_no_gradient(images):
    model = own(norm="frozen").train()
    before = {key: value.clone() for key, value in model.backbone.named_buffers()}
    model(images).sum().backward()
    assert before
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.named_buffers())
    assert torch.equal(model(images), model.eval()(images))


@each_kind
def test_gradients_are_those_of_the_levels_read_by_hand(options, images):
    model = own(**options).double()
    levels = model.levels(images.double())
    weights = list(model.parameters())
    ours = torch.autograd.grad(torch.stack([s.logits for s in model.steps(levels)]).square().sum(), weights)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    loss = torch.stack([s.logits for s in checkpointed.steps(levels)]).square().sum()
    again = torch.autograd.grad(loss, list(checkpointed.parameters()))
    for a, b in zip(ours, again, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    (probe,) = [p for name, p in model.named_parameters() if name.endswith("conv1.weight")][:1]
    index, epsilon = (0, 0, 1, 1), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            probe[index] += sign * epsilon
            values.append(torch.stack(by_hand(model, levels)).square().sum().item())
            probe[index] -= sign * epsilon
    gradient = ours[next(i for i, w in enumerate(weights) if w is probe)][index].item()
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * epsilon), rel=1e-4)


@each_kind
@torch.no_grad()
def test_what_levels_share_in_a_saved_model_is_copied_to_each(options, images, tmp_path):
    shared = own()
    shared.save_pretrained(tmp_path)
    spread = create_model(f"local-dir:{tmp_path}", pretrained=True, **options).eval()
    assert {name: getattr(spread, name) for name in options} == options
    for before, after in zip(shared.steps(images), spread.steps(images), strict=True):
        assert torch.allclose(before.logits, after.logits, atol=1e-5)
    spread.save_pretrained(tmp_path / "own")
    again = create_model(f"local-dir:{tmp_path / 'own'}", pretrained=True).eval()
    assert same_weights(spread, again)


@each_kind
@torch.no_grad()
def test_they_come_back_in_timm_and_from_a_weights_file(options, tmp_path):
    model = own(**options)
    model.save_pretrained(tmp_path)
    for again in (
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        create_model("srnn_test_resnet", weights=tmp_path / "model.safetensors"),
    ):
        assert isinstance(again, SRNN)
        assert (again.exits, again.norm) == (model.exits, model.norm)
        assert same_weights(model, again)
    fewer = SRNN.from_pretrained(tmp_path, num_classes=2)
    assert [classifier.out_features for classifier in (*fewer.exit_fc, fewer.fc)] == [2] * (len(model.exit_fc) + 1)


@each_kind
@torch.no_grad()
def test_the_papers_initialisation_gives_every_level_the_base_cnns_parts(options, images, tmp_path):
    base_cnn = timm.create_model("test_resnet", num_classes=5).eval()
    plain, ours = (
        create_model("srnn_test_resnet", variant="vanilla", num_classes=5, **o).eval() for o in ({}, options)
    )
    for model in (plain, ours):
        init_from_base_cnn(model, base_cnn)
        assert model.zero_shot
    levels = plain.levels(images)
    for step, expected in zip(ours.steps(levels), plain.steps(levels), strict=True):
        assert torch.allclose(step.logits, expected.logits, atol=1e-5)
    back = to_base_cnn(ours)
    assert torch.allclose(back(images), base_cnn(images), atol=1e-5)
    ours.save_pretrained(tmp_path)
    assert SRNN.from_pretrained(tmp_path).zero_shot


def test_a_new_classifier_is_one_for_every_level():
    model = own(exits="separate")
    assert list(model.state_dict())[-2:] == ["fc.weight", "fc.bias"]
    model.reset_classifier(7)
    assert [classifier.out_features for classifier in (*model.exit_fc, model.fc)] == [7, 7, 7]
    model.reset_classifier(0)
    assert len(model.exit_fc) == 0
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "resnet18", "regnetx_002", "mobilenetv3_small_050"])
@torch.no_grad()
def test_every_batch_norm_of_a_backbone_is_found(architecture):
    model = create_model(f"srnn_{architecture}", norm="per_level").eval()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    places = [m for m in model.backbone.modules() if isinstance(m, LevelNorm)]
    assert len(norms) == 2 * len(places) > 0
    images = torch.randn(1, 3, 64, 64)
    shared = create_model(f"srnn_{architecture}").eval()
    init_from_base_cnn(model, shared.backbone, classifier=False)
    init_from_base_cnn(shared, copy.deepcopy(shared.backbone), classifier=False)
    assert torch.equal(model.forward_features(images), shared.forward_features(images))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("srnn_test_resnet", {"norm": "per_levle"}, "unknown norm 'per_levle'; did you mean 'per_level'"),
        ("srnn_test_resnet", {"exits": "seperate"}, "unknown kind of exits 'seperate'; did you mean 'separate'"),
        ("srnn_levit_128s", {"norm": "frozen", "scales": (1.0,)}, "is for batch norm of maps; .* are not"),
        ("srnn_test_vit", {"norm": "per_level"}, 'this backbone has none: leave norm="shared"'),
        ("srnn_test_resnet", {"exits": "separate", "variant": "concat"}, "answers after the last level only"),
    ],
)
def test_what_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)
