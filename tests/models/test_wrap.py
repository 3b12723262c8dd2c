"""SRNNs over networks that are not in timm: torchvision's, transformers' and a user's own."""

import copy
import json
import pickle
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import feature_extraction

import srnn_zoo
from srnn_zoo import SRNN, Anytime, count_gmacs, to_base_cnn
from srnn_zoo.models.dry_run import DryRun, first_conv
from tests.cli.command import run
from tests.conftest import same_weights

transformers = pytest.importorskip("transformers")


class Net(nn.Module):
    """A user's own: convolutions, and what is made of their maps."""

    def __init__(self, output=lambda maps: maps, in_chans=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2))
        self.output = output

    def forward(self, x):
        return self.output(self.body(x))


class Dropping(Net):
    def forward(self, x):
        return nn.functional.dropout(self.body(x), training=self.training)


def resnet18(num_classes=0):
    net = torchvision.models.resnet18(num_classes=max(1, num_classes))
    if num_classes == 0:
        net.fc = nn.Identity()
    return net


def vit_features():
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48)
    return feature_extraction.create_feature_extractor(vit, {"encoder": "tokens"})


def hf_resnet(kind=transformers.ResNetModel, **options):
    return kind(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], **options))


def hf_vit():
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))


def hf_backbone():
    return hf_resnet(transformers.AutoBackbone.from_config, out_features=["stage1", "stage2"])


NETS = {  # how it is made, how it is wrapped, D, what it reads
    "torchvision resnet18": (resnet18, {}, 512, "any size"),
    "torchvision maps": (lambda: torchvision.models.mobilenet_v3_small().features, {}, 576, "any size"),
    "torchvision tokens": (vit_features, {}, 24, "tiles of 32 x 32"),
    "transformers resnet": (hf_resnet, {}, 12, "any size"),
    "transformers vit": (hf_vit, {}, 24, "multiples of 8"),
    "transformers backbone": (hf_backbone, {}, 12, "any size"),
    "maps": (Net, {}, 12, "any size"),
    "features": (lambda: Net(lambda maps: maps.amax((2, 3)), in_chans=1), {}, 12, "any size"),
    "one size": (lambda: nn.Sequential(Net(), nn.Flatten(), nn.Linear(12 * 49, 5)), {}, 5, "tiles of 32 x 32"),
    "a dictionary of one": (lambda: Net(lambda maps: {"maps": maps}), {}, 12, "any size"),
    "a dictionary": (lambda: Net(lambda maps: {"a": maps, "b": maps[:, :7]}), {"output": "b"}, 7, "any size"),
    "a tuple": (lambda: Net(lambda maps: (maps, maps[:, :7])), {"output": -1}, 7, "any size"),
    "a function": (lambda: Net(lambda maps: [[maps]]), {"output": lambda out: out[0][0]}, 12, "any size"),
}


@pytest.fixture(params=NETS)
def case(request):
    return NETS[request.param]


def wrapped(make, options, **more):
    """A model of 5 classes at 32 and 64 pixels, in evaluation mode, with random weights everywhere."""
    model = SRNN.wrap(make(), num_classes=5, img_size=64, **options, **more).eval()
    for parameter in (*model.cell.parameters(), *model.exit_classifiers.parameters(), *model.fc.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return model


def test_a_network_becomes_an_srnn_that_steps_stops_learns_and_comes_back(case, tmp_path):
    make, options, width, reads = case
    net = make()
    before = copy.deepcopy(net.state_dict())
    rng = torch.get_rng_state()
    DryRun(net.train(), first_conv(net)[1], options.get("output"))((32, 32))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())

    model = wrapped(make, options)
    assert (model.num_features, str(model.reads)) == (width, reads)
    images = torch.randn(2, model.in_chans, 64, 64)
    with torch.no_grad():
        logits, steps = model(images), list(model.steps(images))
        assert torch.equal(steps[-1].logits, logits)
        assert steps[-1].gmacs == pytest.approx(count_gmacs(model).total - count_gmacs(model).head)
        assert torch.allclose(Anytime(model, exit="confidence:1.1")(images).logits, logits, atol=1e-5)
        assert torch.equal(model.backbone(images[:, :, :32, :32]), model.level_features(images[:, :, :32, :32]))
    model.save_pretrained(tmp_path)
    again = {key: value for key, value in options.items() if callable(value)}
    loaded = SRNN.from_pretrained(tmp_path, net=make(), **again).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), logits)
    assert loaded.backbone.arguments == model.backbone.arguments
    assert (loaded.reads, loaded.img_size) == (model.reads, model.img_size)
    model.train()(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_extractor_of_torchvisions_keeps_its_graph_of_the_mode_that_it_is_in():
    net = feature_extraction.create_feature_extractor(Dropping(), {"dropout": "maps"})
    for mode in (False, True):
        code = net.train(mode).code
        SRNN.wrap(net, num_classes=3, img_size=64)
        assert net.code == code
        assert ("training = True" in code) == mode


@pytest.mark.parametrize("name", ["torchvision resnet18", "transformers vit", "maps"])
def test_it_keeps_timms_protocol_and_what_levels_may_have_of_their_own(name, tmp_path):
    make, options, *_ = NETS[name]
    own = {"exits": "separate"} | ({} if "vit" in name else {"norm": "per_level"})
    model = wrapped(make, options, **own)
    images = torch.randn(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    assert torch.equal(SRNN.from_pretrained(tmp_path, net=make()).eval()(images), model(images))

    model = wrapped(make, options).train()
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert len(groups) >= 3
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    if "vit" in name:
        assert {key.rpartition(".")[2] for key in model.no_weight_decay()} == {"cls_token", "position_embeddings"}
    losses = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model.zero_grad()
        model(images).square().mean().backward()
        losses.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*losses, strict=True))
    if name != "transformers vit":
        assert model.feature_info == [] or model.feature_info[0]["module"] == "backbone.net"
    if name == "maps":
        (maps,) = model.forward_intermediates(images, intermediates_only=True)
        assert maps.shape == (2, 12, 15, 15)


@pytest.mark.parametrize("variant", ["vanilla", "half_gru"])
def test_a_trained_classifier_makes_it_zero_shot_and_one_level_is_the_base_cnn(variant):
    base_cnn = resnet18(7).eval()
    net = copy.deepcopy(base_cnn)
    classifier, net.fc = net.fc, nn.Identity()
    model = SRNN.wrap(net, classifier=classifier, variant=variant, exits="separate", img_size=128).eval()
    images = torch.randn(2, 3, 128, 128)
    assert model.zero_shot
    assert model.num_classes == 7
    one_level = 1.0 if variant == "vanilla" else 0.5  # half-GRU halves the features of its first level
    weight, bias = classifier.weight, classifier.bias
    with torch.no_grad():
        expected = base_cnn(images)
        assert torch.allclose(model([images]), one_level * (expected - bias) + bias, atol=1e-6)
        if variant == "vanilla":
            assert torch.equal(model([images]), expected)
        back = to_base_cnn(model)
        assert torch.allclose(back(images), model([images]), atol=1e-5)
        assert same_weights(back.backbone.net, net)
        assert torch.allclose(back.fc.weight, one_level * weight)


def test_the_base_cnn_of_levels_with_norms_of_their_own_has_those_of_the_smallest():
    model = wrapped(Net, {}, norm="per_level", variant="vanilla", activation="identity")
    nn.init.normal_(model.backbone.net.body[1][0].weight)
    levels = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(to_base_cnn(model)(levels[0]), next(model.steps(levels)).logits, atol=1e-5)


def test_the_network_is_made_by_its_import_path_only_if_the_user_has_imported_it(tmp_path, monkeypatch, class_folders):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\ndef make_net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = SRNN.wrap("own_nets:make_net", num_classes=3, img_size=32).eval()
    nn.init.normal_(model.fc.weight)
    saved, images = tmp_path / "saved", torch.randn(2, 3, 32, 32)
    model.save_pretrained(saved)
    for open_it in (
        SRNN.from_pretrained,
        lambda folder: srnn_zoo.create_model(f"local-dir:{folder}", pretrained=True),
        lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True),
    ):
        assert torch.equal(open_it(saved).eval()(images), model(images))
        with monkeypatch.context() as gone:
            gone.delitem(sys.modules, "own_nets")
            with pytest.raises(ValueError, match="made over own_nets:make_net: give net=, or import own_nets first"):
                open_it(saved)
    config = json.loads((saved / "config.json").read_text())
    for path in ("os:abort", "own_nets:nn", "torch:seed_all"):
        config["model_args"]["net"] = path
        (saved / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"made over|unknown callable"):
            SRNN.from_pretrained(saved)


def test_the_command_predicts_evaluates_trains_and_calibrates_with_import(tmp_path, class_folders):
    (tmp_path / "nets_of_mine.py").write_text(
        "from torch import nn\ndef make_net():\n    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8))\n"
    )
    sys.path.append(str(tmp_path))
    try:
        model = SRNN.wrap("nets_of_mine:make_net", num_classes=3, img_size=32)
        saved, over = tmp_path / "saved", ("--import", "nets_of_mine")
        model.save_pretrained(saved, label_names=["blue", "green", "red"])
        del sys.modules["nets_of_mine"]
        said = run("info", saved)
        assert said.code == 2
        assert "on the command line --import nets_of_mine" in said.err
        assert run("info", saved, *over).code == 0
        train = ("train", class_folders, "-o", tmp_path / "run", "--epochs", 1, "--cpu", "--workers", 0)
        for command in (
            ("predict", class_folders / "val" / "red", "--model", saved),
            ("evaluate", class_folders / "val", saved, "--workers", 0),
            ("calibrate", class_folders / "train", "--model", saved, "--budget", 1, "--workers", 0),
            (*train, "--model", saved, "--set", "batch_size=8"),
            (*train, "--model", saved, "--set", "batch_size=8", "--resume"),
            ("predict", class_folders / "val" / "red", "--model", tmp_path / "run" / "best"),
        ):
            said = run(*command, *over)
            assert said.code == 0, (command, said.err)
    finally:
        sys.path.remove(str(tmp_path))


def test_what_was_made_over_a_module_asks_for_it(tmp_path):
    model = wrapped(Net, {"output": lambda out: out})
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not in timm, a Net: give it as net="):
        SRNN.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a function as output=: give it again"):
        SRNN.from_pretrained(tmp_path, net=Net())
    with pytest.raises(ValueError, match=r"missing: backbone\.net\.weight.*unexpected: backbone\.net\.body"):
        SRNN.from_pretrained(tmp_path, net=nn.Conv2d(3, 12, 3), output=lambda out: out)
    text = (tmp_path / "README.md").read_text()
    assert "over `Net`" in text
    assert ", net=net)" in text
    assert "srnn_wrapped" not in srnn_zoo.list_models()
    with pytest.raises(ValueError, match="give net="):
        srnn_zoo.create_model("srnn_wrapped")


def fixed(size):
    def check(maps):
        if maps.shape[-1] != size:
            raise KeyError("the size")
        return maps

    return check


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: "resnet18", {}, ValueError, '"my_nets:make_net"; got'),
        (lambda: "no_such_nets:make", {}, ImportError, "no_such_nets"),
        (lambda: "torchvision.models:resnet81", {}, ValueError, "did you mean"),
        (lambda: "torchvision.models:list_models", {}, TypeError, r"must be a torch\.nn\.Module; got \["),
        (lambda: resnet18, {}, TypeError, r"must be a torch\.nn\.Module"),
        (nn.ReLU, {}, TypeError, "ReLU has no floating-point weights"),
        (Net, {"varaint": "gru"}, TypeError, "unknown option 'varaint'; did you mean 'variant'"),
        (Net, {"in_chans": 4}, ValueError, "Net cannot read an image of 4 x 224 x 224: give in_chans="),
        (lambda: Net(fixed(7)), {}, ValueError, "cannot read an image of 3 x 224 x 224.*It says: 'the size'"),
        (lambda: Net(lambda maps: (maps, maps)), {}, ValueError, r"tuple of 2: a tensor \(1, 12, 55, 55\).*output="),
        (lambda: Net(lambda maps: {"a": maps, "b": 1}), {}, ValueError, "dictionary of 'a', 'b': say which"),
        (lambda: Net(lambda maps: {"a": maps}), {"output": "b"}, ValueError, "without an entry 'b'"),
        (
            lambda: Net(lambda maps: maps.mean((2, 3)).squeeze()),
            {},
            ValueError,
            r"a tensor \(12,\) .* neither features",
        ),
        (lambda: Net(lambda maps: maps.permute(0, 2, 3, 1)), {}, ValueError, "as if channels came last"),
        (Net, {"classifier": nn.Conv2d(12, 3, 1)}, TypeError, r"must be the torch\.nn\.Linear"),
        (Net, {"classifier": nn.Linear(8, 3)}, ValueError, "reads 8 features, and Net gives 12"),
        (Net, {"classifier": nn.Linear(12, 3), "num_classes": 4}, ValueError, "has 3 classes; num_classes is 4"),
        (lambda: wrapped(Net, {}, norm="per_level").backbone.net, {}, ValueError, "give a new one"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_in_one_sentence(make, options, error, message):
    with pytest.raises(error, match=message):
        SRNN.wrap(make(), **options)


def test_sizes_are_found_or_given_and_a_level_that_cannot_be_read_is_named():
    assert wrapped(lambda: Net(fixed(7)), {}).reads.tile == (32, 32)
    assert SRNN.wrap(Net(fixed(7)), tile=32).img_size == (64, 64)
    model = SRNN.wrap(Net(), multiple=16, img_size=96)
    assert model.level_sizes((100, 150)) == [(48, 80), (96, 144)]
    assert SRNN.wrap(hf_vit()).level_sizes() == [(32, 32), (64, 64)]
    swin = transformers.SwinConfig(image_size=112, embed_dim=12, depths=[1, 1], num_heads=[1, 1], patch_size=2)
    assert str(SRNN.wrap(transformers.SwinModel(swin)).reads) == "multiples of 2"
    with pytest.raises(ValueError, match="backbone Net cannot read a level of 2 x 2; it was made for 48 x 48"):
        model([torch.randn(1, 3, 2, 2)])


def test_the_answers_of_a_classifier_are_features_with_a_warning():
    with pytest.warns(UserWarning, match="the 1000 features of ResNet look like the answers of its classifier"):
        assert SRNN.wrap(resnet18(1000), num_classes=5).num_features == 1000
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=4)
    with pytest.warns(UserWarning, match="the 4 features"):
        SRNN.wrap(transformers.ResNetForImageClassification(config))


def test_preprocessing_is_given_or_imagenets_and_comes_back(tmp_path):
    mean = [0.5, 0.4, 0.3]
    SRNN.wrap(Net(), img_size=64, mean=mean, crop_pct=1.0).save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path, net=Net())
    config = loaded.pretrained_cfg
    assert (list(config["mean"]), list(config["std"])) == (mean, [0.229, 0.224, 0.225])
    assert config["crop_pct"] == 1.0
    assert SRNN.from_pretrained(tmp_path, net=Net(), num_classes=7).num_classes == 7


def test_a_network_on_the_meta_device_lazy_or_in_half_precision_is_wrapped_as_it_is():
    for net, activation in ((Net(), "identity"), (Net(torch.relu), "relu")):
        model = SRNN.wrap(net.to("meta"), num_classes=3)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert model.cell.activation == activation
    assert SRNN.wrap(nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU())).num_features == 8
    assert SRNN.wrap(Net().bfloat16(), img_size=64).fc.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("how", ["export", "pickle", pytest.param("compile", marks=pytest.mark.slow)])
@torch.no_grad()
def test_it_is_traced_as_its_network_is(how):
    model = wrapped(lambda: resnet18(), {}) if how == "pickle" else wrapped(hf_vit, {})
    images = torch.randn(2, 3, 64, 64)
    make = {
        "export": lambda: torch.export.export(model, (images,)).module(),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "compile": lambda: torch.compile(model, backend="aot_eager", fullgraph=True),
    }
    assert torch.allclose(make[how]()(images), model(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision resnet18", "transformers vit", "maps"])
def test_it_is_trained_by_fit(name, class_folders, tmp_path):
    from srnn_zoo.training import fit, open_data, recipe

    make, options, *_ = NETS[name]
    splits = open_data(str(class_folders))
    model = SRNN.wrap(make(), num_classes=3, img_size=64, **options)
    chosen = recipe(
        "finetune", epochs=4, batch_size=8, layer_decay=0.8, ema_decay=0.0, lr=0.02 if name == "maps" else 0.003
    )
    result = fit(model, splits.train, splits.val, chosen, tmp_path / "run", workers=0, cpu=True)
    assert result.best["val_top1"] >= 60  # chance is 33
    loaded = SRNN.from_pretrained(tmp_path / "run" / "best", net=make())
    assert loaded.label_names == ("blue", "green", "red")
