"""Foveated models: where levels look, what they then are, and what cannot be looked at."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from srnn_zoo import SRNN, Anytime, ScalePyramid, create_model, create_transform, register_view
from srnn_zoo.models.views import VIEWS
from tests.conftest import same_weights
from tests.models.harness import SRNNTests, trained

ATTENTION = {"zooms": (1.0, 1.6), "views": "attention"}


class TestFoveated(SRNNTests):
    """Views in the middle, and views that follow from the level before."""

    size = 80

    @pytest.fixture(params=["center", "attention"])
    def model(self, request):
        return trained(zooms=(1.0, 1.6), views=request.param, img_size=self.size)

    @pytest.mark.parametrize(
        "how", ["trace", *(pytest.param(how, marks=pytest.mark.slow) for how in ("export", "compile"))]
    )
    def test_other_representations_compute_the_same_at_other_sizes_too(self, model, how):
        super().test_other_representations_compute_the_same_at_other_sizes_too(model, how)


class Brightness(nn.Module):
    """A map of like features: the mean of every 8 x 8 pixels, if positive."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8).clamp(min=0).expand(-1, 4, -1, -1)


def looking(zooms=(1.0, 2.0), views="attention", **options):
    """A model that knows bright from dark, and so looks at what is bright."""
    model = SRNN.wrap(Brightness(), num_classes=2, in_chans=3, img_size=64, zooms=zooms, views=views, **options)
    nn.init.constant_(model.fc.weight, 0.0)
    nn.init.constant_(model.fc.weight[1], 1.0)
    nn.init.zeros_(model.fc.bias)
    return model.eval()


def spots(*points, size=64, side=16):
    """Dark images, each with a bright square around a point."""
    images = torch.zeros(len(points), 3, size, size)
    for image, (y, x) in zip(images, points, strict=True):
        image[:, y - side // 2 : y + side // 2, x - side // 2 : x + side // 2] = 1.0
    return images


POINTS = [(24, 40), (40, 24), (8, 56), (56, 24)]  # centres of the map's positions
SEEN = [(24, 40), (40, 24), (16, 48), (48, 24)]  # moved into the image


@torch.no_grad()
def test_attention_looks_at_what_speaks_for_the_answer_of_every_image_by_itself():
    model, images = looking(), spots(*POINTS)
    small, zoomed = model.levels(images)
    for image, view, (y, x) in zip(images, zoomed, SEEN, strict=True):
        assert torch.equal(view, image[:, y - 16 : y + 16, x - 16 : x + 16])
    assert small.shape == zoomed.shape == (4, 3, 32, 32)
    lazy = model.lazy_levels(images)
    *_, last = model.steps(lazy)
    top_left = torch.tensor(SEEN) / 64 - 0.25
    torch.testing.assert_close(lazy.views(1), torch.cat([top_left, top_left + 0.5], dim=1))
    assert torch.equal(last.logits, model(images))


@torch.no_grad()
def test_the_third_level_looks_within_what_the_second_saw():
    model = looking(zooms=(1.0, 2.0, 4.0))
    lazy = model.lazy_levels(spots((24, 40)))
    list(model.steps(lazy))
    assert (lazy.views(1)[0] * 64).tolist() == [0, 32, 32, 64]  # around (16, 48), the position of the first map
    assert (lazy.views(2)[0] * 64).tolist() == [16, 32, 32, 48]
    assert lazy.sizes == [(16, 16)] * 3


@torch.no_grad()
def test_what_is_not_read_is_not_cut_out(monkeypatch):
    cuts = []
    cut = __import__("srnn_zoo.transforms.levels", fromlist=["cut"]).cut

    def counted(images, share, centers=None):
        cuts.append((len(images), share))
        return cut(images, share, centers)

    monkeypatch.setattr("srnn_zoo.transforms.levels.cut", counted)
    bright_first = torch.cat([spots((32, 32), side=48), spots(*POINTS[:2], side=4)])
    found = Anytime(looking(), "confidence:0.51")(bright_first)
    assert found.stopped_at.tolist() == [0, 1, 1]
    assert cuts == [(3, (1, 1)), (2, (1, 2))]


@torch.no_grad()
def test_the_host_waits_for_the_device_once_a_level_where_images_stop_and_else_never(monkeypatch):
    model = trained(zooms=(1.0, 1.6, 2.0), views="attention", img_size=80)
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # its tensors have no values to wait for
    images = fake.from_tensor(torch.randn(3, 3, 80, 80))
    with fake:
        assert model(images).shape == (3, 5)
        assert len(list(model.steps(images))) == 3
    waits, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(self.shape) or tolist(self))
    Anytime(model, "confidence:1.0")(torch.randn(3, 3, 80, 80))
    assert waits == [(3,), (3,)]


@torch.no_grad()
def test_a_function_of_the_users_decides_and_has_a_name_where_it_is_saved(tmp_path):
    seen = []

    @register_view("corner of the test")
    def corner(glance):
        seen.append((glance.level, glance.share, tuple(glance.activation_map.shape), tuple(glance.logits.shape)))
        return glance.features.new_tensor([0.25, 0.75]).expand(len(glance.images), 2)

    try:
        images = torch.randn(2, 3, 64, 64)
        assert torch.equal(looking(views=corner).levels(images)[1], images[:, :, :32, 32:])
        assert seen == [(1, 0.5, (2, 4, 4), (2, 2))]
        model = trained(zooms=(1.0, 2.0), views="corner of the test", img_size=64)
        model.save_pretrained(tmp_path / "named")
        again = SRNN.from_pretrained(tmp_path / "named").eval()
        assert (again.zooms, again.views) == ((1.0, 2.0), "corner of the test")
        assert torch.equal(again(images), model(images))
        with pytest.raises(ValueError, match="there are views named"):
            register_view("corner of the test")(corner)
        with pytest.raises(ValueError, match=r"views.* cannot be saved"):
            trained(zooms=(1.0, 2.0), views=lambda glance: None, img_size=64).save_pretrained(tmp_path / "unnamed")
    finally:
        del VIEWS["corner of the test"]
    with pytest.raises(ValueError, match="unknown views 'corner of the test'"):
        SRNN.from_pretrained(tmp_path / "named")


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (
            lambda n: [[0.5, 0.5]] * n,
            TypeError,
            r"views of level 1 must be a float tensor of centres \(2, 2\); got list",
        ),
        (lambda n: torch.ones(n, 2, dtype=torch.long), TypeError, "got torch.int64"),
        (lambda n: torch.full((2,), 0.5), ValueError, r"centres \(y, x\) of 2 images, \(2, 2\); got .*\(2,\)"),
        (
            lambda n: torch.full((n, 2), float("nan")),
            ValueError,
            r"that of image 0 around \(nan, nan\) leaves the image",
        ),
        (
            lambda n: torch.tensor([[0.5, 0.5], [0.5, 0.9]]),
            ValueError,
            r"image 1 around \(0.5, 0.9\) leaves the image; both must be 0.25 to 0.75",
        ),
    ],
)
def test_nonsense_of_a_function_is_one_sentence(points, error, message):
    model = looking(views=lambda glance: points(len(glance.images)))
    with torch.no_grad(), pytest.raises(error, match=message):
        model(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: create_model("srnn_test_resnet", zooms=(1.0, 1.6), views="atention"),
            ValueError,
            "did you mean 'attention'",
        ),
        (
            lambda: create_model("srnn_test_resnet", zooms=(1.0, 1.6), views=3),
            TypeError,
            "views must be a name or a function",
        ),
        (lambda: create_model("srnn_test_resnet", views="attention"), ValueError, "give zooms such as"),
        (
            lambda: create_model("srnn_test_resnet", zooms=(1.6, 1.0), views="attention"),
            ValueError,
            "give zooms such as",
        ),
        (
            lambda: create_model("srnn_test_resnet", scales=(0.5, 0.9), zooms=(1.0, 2.0)),
            ValueError,
            "the largest is 1.0",
        ),
        (
            lambda: create_model("srnn_test_resnet", num_classes=0, **ATTENTION).eval()(torch.randn(1, 3, 256, 256)),
            ValueError,
            "the model has no classifier",
        ),
        (
            lambda: create_model("srnn_crossvit_tiny_240", **ATTENTION).eval()(torch.randn(1, 3, 384, 384)),
            ValueError,
            "gives no map of a level|has no map of it|no map",
        ),
        (
            lambda: create_model("srnn_mixer_s32_224", zooms=(1.0, 1.6), scales=(0.5, 1.0), views="attention").eval()(
                torch.randn(1, 3, 700, 700)
            ),
            ValueError,
            "reads a level of .* in tiles",
        ),
    ],
)
def test_a_model_that_cannot_look_says_why(make, error, message):
    with torch.no_grad(), pytest.raises(error, match=message):
        make()


@torch.no_grad()
def test_zooms_of_one_are_the_plain_model_bit_for_bit():
    plain, images = trained(), torch.randn(2, 3, 64, 64)
    zoomed = create_model("srnn_test_resnet", num_classes=5, scales=(0.5, 1.0), zooms=(1.0, 1.0)).eval()
    zoomed.load_state_dict(plain.state_dict())
    assert torch.equal(zoomed(images), plain(images))
    assert zoomed.level_sizes() == plain.level_sizes()


@torch.no_grad()
def test_one_level_is_the_base_cnn_on_a_tight_crop():
    model, images = trained(variant="vanilla", zooms=(2.0,), img_size=128), torch.randn(2, 3, 128, 128)
    assert torch.equal(model(images), model.fc(model.backbone(images[..., 32:96, 32:96])))
    assert pickle.loads(pickle.dumps(model)).zooms == (2.0,)


def test_positions_do_not_change_the_statistics_of_a_head_with_batch_norm():
    model = create_model("srnn_mobilenetv4_conv_small_035", num_classes=5, img_size=64, scales=(1.0,)).train()
    other, images = copy.deepcopy(model), torch.randn(4, 3, 64, 64)
    model.level_features(images)
    other.position_features(images)
    assert model.backbone.norm_head.running_mean.abs().sum() > 0
    assert same_weights(model, other)


@pytest.mark.parametrize("views", ["center", "attention"])
@torch.no_grad()
def test_maps_of_a_level_are_of_what_it_shows(views):
    model, images = trained(zooms=(1.0, 1.6), views=views, img_size=80), torch.randn(2, 3, 80, 80)
    for level, shown in enumerate(model.levels(images)):
        wanted = model.backbone.forward_intermediates(shown, intermediates_only=True)
        given = model.forward_intermediates(images, intermediates_only=True, level=level)
        assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))
        assert torch.equal(model.level_maps(images)[level], model.backbone.forward_features(shown))
    with pytest.raises(ValueError, match="variable height shows whole images"):
        create_transform(model, sizes=ScalePyramid.variable(32))


@pytest.mark.parametrize("name", ["srnn_test_vit", "srnn_test_convnext", "srnn_test_resnet", "srnn_test_efficientnet"])
@torch.no_grad()
def test_activation_maps_are_of_any_backbone_and_their_mean_is_the_logit_where_the_head_takes_the_mean(name):
    model, level = trained(name), torch.randn(3, 3, 96, 64)
    classes = torch.tensor([0, 4, 2])
    heat = model.activation_map(level, classes)
    assert heat.shape[1] / heat.shape[2] == 1.5
    features, positions = model.position_features(level)
    torch.testing.assert_close(features, model.level_features(level))
    assert positions.shape == (3, model.num_features, *heat.shape[1:])
    if name in ("srnn_test_resnet", "srnn_test_efficientnet"):
        logits = model.level_logits(features)[torch.arange(3), classes] - model.fc.bias[classes]
        torch.testing.assert_close(heat.mean(dim=(1, 2)), logits, rtol=1e-4, atol=1e-4)
