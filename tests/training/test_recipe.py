"""Recipes: their presets, their schedules, TOML there and back, and what they refuse."""

import itertools

import pytest
import torch
from torch import nn

from srnn_zoo.training import PRESETS, Recipe, recipe
from srnn_zoo.training.optimizer import (
    create_optimizer,
    create_schedule,
    decay_to_identity,
    learning_rate,
    parameter_groups,
    scale_recurrence,
)

from .trainings import tiny


def learning_rates(chosen, updates_per_epoch):
    """The base learning rate of every update."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.5}], lr=chosen.lr)
    schedule = create_schedule(optimizer, chosen, updates_per_epoch)
    rates = []
    for update in range(1, chosen.epochs * updates_per_epoch + 1):
        rates.append(learning_rate(optimizer))
        schedule.step_update(update)
    return rates


def test_the_paper_is_sgd_with_nesterovs_momentum_and_a_tenth_of_the_learning_rate_after_every_30_epochs(model):
    chosen = recipe("paper")
    rates = [1e-3] * 30 * 7 + [1e-4] * 30 * 7 + [1e-5] * 5 * 7
    assert learning_rates(chosen, updates_per_epoch=7) == pytest.approx(rates, rel=1e-12)
    optimizer = create_optimizer(model, chosen)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert (group["nesterov"], group["momentum"], group["lr"], group["weight_decay"]) == (True, 0.9, 1e-3, 1e-4)
    assert len(group["params"]) == len(list(model.parameters()))
    assert (chosen.epochs, chosen.batch_size, chosen.interpolation, chosen.loss) == (65, 256, "bicubic", "last")
    assert (chosen.color_jitter > 0, chosen.hflip, chosen.label_smoothing) == (True, 0.5, 0)


def test_a_cosine_warms_up_update_by_update_and_ends_at_its_floor():
    chosen = Recipe(schedule="cosine", lr=1.0, warmup_epochs=2, epochs=10, min_lr=0.1)
    rates = learning_rates(chosen, updates_per_epoch=5)
    assert rates[:10] == pytest.approx([0.1 * step for step in range(10)])
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def groups(model, chosen):
    """The factor of the learning rate, and the weight decay, of every parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = parameter_groups(model, chosen)
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in found for p in group["params"]}


def test_parts_and_layers_have_learning_rates_of_their_own(model):
    rates = {"lr_backbone": 0.1, "lr_cell": 0.2, "lr_classifier": 3.0}
    found = groups(model, Recipe(**rates, weight_decay=0.5, identity_decay=0.1))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert found["backbone.layer1.0.conv1.weight"] == (0.1, 0.5)
    assert found["backbone.layer1.0.bn1.weight"] == (0.1, 0.0)
    assert found["cell.gate_input.weight"] == (0.2, 0.5)
    assert found["cell.recurrent.weight"] == (0.2, 0.0)  # which decays to the identity instead
    assert found["fc.weight"] == (3.0, 0.5)
    assert found["fc.bias"] == (3.0, 0.0)
    scale = {name: scale for name, (scale, _) in groups(model, Recipe(layer_decay=0.5)).items()}
    first, second, last = (scale[f"backbone.{name}.weight"] for name in ("conv1.0", "layer1.0.conv1", "layer4.0.conv1"))
    assert first < second < last
    assert scale["fc.weight"] == scale["cell.recurrent.weight"] == 1.0


@pytest.mark.parametrize("variant", ["half_gru", "half_gru_diag", "vanilla_scalar"])
def test_u_starts_as_a_part_of_the_identity_unless_it_was_trained_and_decays_to_that_part(variant):
    model = tiny(variant=variant)
    chosen = Recipe(lr=0.5, lr_cell=0.5, weight_decay=0.1, recurrence=0.25, identity_decay=0.2)
    weight = model.cell.get_parameter("recurrent.weight")
    target = 0.25 * (torch.eye(len(weight)) if variant == "half_gru" else torch.ones_like(weight))
    for _ in range(2):  # at the second time it is no identity any more
        scale_recurrence(model, chosen)
        assert torch.equal(weight.detach(), target)
    optimizer = create_optimizer(model, chosen)
    create_schedule(optimizer, chosen, updates_per_epoch=1)
    before = torch.randn_like(weight)
    weight.data.copy_(before)
    decay_to_identity(model, optimizer, chosen)
    torch.testing.assert_close(weight.detach(), before + 0.25 * 0.2 * (target - before))


def test_settings_come_back_from_toml_and_as_texts(tmp_path):
    for name in PRESETS:
        chosen = recipe(name, loss="anytime", anytime_weights=(0.25, 1), auto_augment='rand-"m9"', min_lr=1e-7)
        chosen.to_toml(tmp_path / "recipe.toml")
        assert Recipe.from_toml(tmp_path / "recipe.toml") == chosen
    texts = ["lr=1e-2", "epochs = 3", "crop_scale=[0.5, 1]", "nesterov=false", "optimizer=adamw", 'schedule="cosine"']
    expected = {"lr": 0.01, "epochs": 3, "crop_scale": (0.5, 1.0), "nesterov": False}
    assert recipe("paper").with_settings(texts) == recipe("paper", optimizer="adamw", schedule="cosine", **expected)


def test_what_no_recipe_can_have_is_refused_in_one_sentence():
    for settings, reason in (
        (["lrr=1"], "unknown setting of a recipe 'lrr'; did you mean 'lr'"),
        (["lr"], "a setting is name=value, such as lr=0.01; got 'lr'"),
        (["lr=0"], "lr must be more than 0; got 0"),
        (["lr=nan"], "lr must be a number; got nan"),
        (["epochs=1.5"], "epochs must be a whole number; got 1.5"),
        (["epochs=0"], "epochs must be 1 or more; got 0"),
        (["nesterov=1"], "nesterov must be true or false; got 1"),
        (["schedule=cosin"], "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (["optimizer=adamww"], "unknown optimizer 'adamww'; did you mean 'adamw'"),
        (["label_smoothing=1"], "label_smoothing must be less than 1; got 1"),
        (["hflip=2"], "hflip must be 1 at the most; got 2"),
        (["crop_scale=[0.5, 0.1]"], "crop_scale must be two shares that grow, in (0, 1]; got [0.5, 0.1]"),
        (["crop_scale=0.5"], "crop_scale must be a list of numbers; got 0.5"),
        (["batch_size=10", "grad_accum_steps=3"], "batch_size must be a multiple of grad_accum_steps; got 10 and 3"),
        (["warmup_epochs=99"], "warmup_epochs must be no more than epochs; got 99 and 20"),
        (
            ["loss=last", "distillation=0.5"],
            'anytime_weights and distillation belong to loss="anytime"; got loss="last"',
        ),
        (["loss=anytime", "anytime_weights=[0, 0]"], "anytime_weights must be 0 or more, one of them positive"),
        (
            ["loss=anytime", "anytime_weights=[0, 1]", "random_heights=true"],
            "anytime_weights must begin with a positive weight where random_heights",
        ),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            recipe("finetune").with_settings(settings)
        assert reason in str(error.value)
        assert "\n" not in str(error.value)


def test_files_that_are_no_recipes_are_refused(tmp_path):
    file = tmp_path / "recipe.toml"
    with pytest.raises(FileNotFoundError, match=r"no recipe .*recipe\.toml"):
        Recipe.from_toml(file)
    for text, reason in (("lr = ", "is no recipe"), ("lrr = 1", "did you mean 'lr'"), ("lr = 'a'", "must be a number")):
        file.write_text(text)
        with pytest.raises((TypeError, ValueError), match=rf"recipe\.toml.*{reason}"):
            Recipe.from_toml(file)
