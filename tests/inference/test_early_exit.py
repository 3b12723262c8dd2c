"""Anytime inference stops where it is told to, and gives what the whole model would have given there."""

import math
import time

import pytest
import torch
from torch import Tensor

from srnn_zoo import Pyramid, count_gmacs
from srnn_zoo.inference.early_exit import Anytime, stopping_levels
from srnn_zoo.inference.exits import Confidence, Deadline, Decision, Entropy, Margin, exit_rule
from tests.models.harness import ANYTIME, in_sequence

from .conftest import small_model


@pytest.fixture
def images():
    return torch.randn(9, 3, 64, 64) * torch.logspace(-1, 0.5, 9).view(-1, 1, 1, 1)


def mixed_images():
    """Images of heights 1 to 3 and of two shapes, square and wide."""
    images = ((2, 16), (3, 16), (1, 24), (3, 24), (3, 16), (2, 24), (1, 16), (3, 24), (2, 16))
    return [[torch.randn(3, 16 * 2**s, width * 2**s).double() for s in range(height)] for height, width in images]


def watch(model, monkeypatch, seconds=0.0):
    """The shapes that its backbone reads from now on, each in these seconds at least."""
    read, features = [], model.level_features

    def level_features(level, index):
        read.append(tuple(level.shape))
        time.sleep(seconds)
        return features(level, index)

    monkeypatch.setattr(model, "level_features", level_features)
    return read


@pytest.mark.parametrize("variant", ANYTIME)
@torch.no_grad()
def test_where_nothing_or_all_stop_the_answers_are_the_models_bit_for_bit(variant, images, monkeypatch):
    model = small_model(variant=variant)
    whole, first = model(images), next(model.steps(images)).logits
    cost = sum(count_gmacs(model).levels)
    read = watch(model, monkeypatch)
    for rule in ("confidence:1.1", "margin:2", "entropy:1.5", "level:2", "deadline:1e9"):
        logits, stopped_at, gmacs = Anytime(model, rule)(images)
        assert torch.equal(logits, whole)
        assert stopped_at.tolist() == [2] * 9
        assert gmacs.tolist() == pytest.approx([cost] * 9)
    for rule in ("confidence:0", "margin:0", "level:0", "deadline:1e-6"):
        read.clear()
        logits, stopped_at, _ = Anytime(model, rule)(images)
        assert read == [(9, 3, 16, 16)]  # nothing but the first level
        assert stopped_at.tolist() == [0] * 9
        assert torch.equal(logits, first)


@pytest.mark.parametrize("variant", ANYTIME)
@torch.no_grad()
def test_an_image_that_stops_has_the_logits_of_a_pyramid_cut_there(variant, images):
    model = small_model(variant=variant)
    every = [step.logits for step in model.steps(images)]
    alone = [list(model.steps(image[None])) for image in images]
    for rule_type, given in ((Confidence, images), (Margin, images), (Entropy, images), (Margin, model.levels(images))):
        scores = [rule_type(0).score(logits.softmax(1)) for logits in every]
        rule = rule_type([score.sort().values[4:6].mean().item() for score in scores[:2]])  # no image is on the edge
        logits, stopped_at, _ = Anytime(model, rule)(given)
        assert len(stopped_at.unique()) > 1
        for index, level in enumerate(stopped_at.tolist()):
            sure = [bool(scores[s][index] >= rule.threshold(s)) for s in range(2)]
            assert level == (sure.index(True) if True in sure else 2)
            assert torch.allclose(logits[index], alone[index][level].logits[0], rtol=1e-4, atol=1e-4)


def test_a_level_is_built_and_read_only_for_images_that_are_unsure_and_have_it(net, images, monkeypatch):
    read = watch(net, monkeypatch)
    _, levels, gmacs = Anytime(net, lambda decision: torch.arange(len(decision.logits)) % 3 == 0)(images)
    assert [shape[0] for shape in read] == [9, 6, 4]
    assert levels.tolist() == [0, 1, 2, 0, 2, 1, 0, 2, 2]
    costs = torch.tensor(count_gmacs(net).levels, dtype=torch.float64).cumsum(0)
    assert torch.equal(gmacs, costs[levels].float())

    built, seen = [], []

    def rule(decision):
        seen.append(decision)
        return torch.arange(len(decision.logits)) % 2 == 0

    _, levels, gmacs = Anytime(net.double(), rule)(Pyramid.pack(in_sequence(mixed_images(), built)))
    assert levels.tolist() == [0, 0, 0, 0, 1, 0, 0, 2, 1]  # a rule sees the tallest images first
    assert [(d.level, len(d.logits), d.answers.shape[1]) for d in seen] == [(0, 7, 1), (1, 2, 2)]
    assert len(built) == 9 + 3 + 1
    assert seen[1].gmacs + net.level_gmacs((64, 96)) == pytest.approx(gmacs.sum().item(), rel=1e-5)


def test_logits_that_are_no_numbers_are_never_sure(net, images):
    images[3], images[5] = math.nan, math.inf
    for rule in ("confidence:0", "margin:0", "entropy:0", "patience:2"):
        _, levels, _ = Anytime(net, rule)(images)
        assert levels[3] == levels[5] == 2
    net.fc.bias.data[0] = math.inf
    assert Anytime(net, "confidence:0")(images).stopped_at.tolist() == [2] * 9


@pytest.mark.parametrize("rule", ["confidence:0.3,0.4", "margin:0.1", "patience:2", "level:1", "confidence:1.1"])
@torch.no_grad()
def test_where_known_answers_would_have_stopped_is_where_images_stop(net, images, rule):
    steps = list(net.steps(images))
    logits, costs = torch.stack([step.logits for step in steps]), [step.gmacs for step in steps]
    logits[:, 3] = torch.nan  # such an image never stops, unless by the level
    found = stopping_levels(exit_rule(rule), logits, costs, [net.temperature(level) for level in range(3)])
    others = [row for row in range(9) if row != 3]
    assert found[others].tolist() == Anytime(net, rule)(images[others]).stopped_at.tolist()
    assert found[3] == (1 if rule == "level:1" else 2)


def test_a_rule_that_looks_at_the_clock_says_nothing_about_known_answers():
    with pytest.raises(ValueError, match="looks at the clock"):
        stopping_levels(Deadline(50), torch.zeros(2, 1, 3), [1, 2])


def test_temperatures_and_thresholds_are_of_their_level_and_patience_waits_for_the_same_answer_twice(net, images):
    cold = Anytime(net, Confidence((1.0, 0.0), temperatures=(1e-3, 1.0, 1.0)))(images).stopped_at
    warm = Anytime(net, Confidence((0.9999, 0.0), temperatures=(1e3, 1.0, 1.0)))(images).stopped_at
    assert warm.tolist() == [1] * 9
    assert cold.tolist().count(0) > 4
    first, second, _ = (step.logits.argmax(1) for step in net.steps(images))
    assert Anytime(net, "patience:2")(images).stopped_at.tolist() == torch.where(first == second, 1, 2).tolist()


def test_a_deadline_stops_the_batch_before_a_level_that_would_end_too_late(net, monkeypatch):
    for seconds in (0.0, 10.0):
        decision = Decision(0, torch.zeros(2, 3), torch.zeros(2, 1).long(), 1.0, 4.0, lambda seconds=seconds: seconds)
        for milliseconds, late in ((1000, seconds > 1), (50_001, False), (49_999, seconds > 1)):
            assert Deadline(milliseconds)(decision) is late
    images = torch.randn(2, 3, 128, 128)
    Anytime(net, "level:0")(images)  # counts the GMACs, once
    watch(net, monkeypatch, seconds=0.05)
    start = time.perf_counter()
    assert Anytime(net, "deadline:100")(images).stopped_at.tolist() == [0, 0]  # the next level is four times as much
    assert time.perf_counter() - start < 0.2


def test_models_batches_and_rules_that_cannot_stop_early_are_refused(net, images):
    for options, rule, message in (
        ({"variant": "concat"}, "confidence:0.9", "variant 'concat' answers after the last level only"),
        ({"num_classes": 0}, "confidence:0.9", "has no classifier"),
        ({}, None, "was never calibrated: give exit="),
        ({}, Confidence(0.9, (1.0, 2.0)), "3 levels need as many temperatures; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            Anytime(small_model(**options), rule)
    four = Pyramid.pack([[torch.randn(3, 16 * 2**s, 16 * 2**s) for s in range(height)] for height in (4, 1)])
    two_thresholds = "confidence:0.9,0.9"
    one_bool = r"one bool, or a bool tensor \(9,\) for 9 images; got "
    for rule, batch, error, message in (
        (two_thresholds, [images[:, :, ::2, ::2], images], ValueError, "2 levels need 1 thresholds"),
        (two_thresholds, four, ValueError, r"4 levels need 3 thresholds, .* got 2"),
        (two_thresholds, images[:0], ValueError, "a batch needs at least one image; got none"),
        (two_thresholds, images[0], ValueError, r"must be \(B, C, H, W\)"),
        (lambda decision: torch.ones(1, dtype=torch.bool), images, TypeError, one_bool + r"torch.bool \(1,\)"),
        (lambda decision: torch.rand(9), images, TypeError, one_bool + r"torch.float32 \(9,\)"),
        (lambda decision: [True] * 9, images, TypeError, one_bool + "list"),
        (lambda decision: None, images, TypeError, one_bool + "NoneType"),
    ):
        fast = Anytime(net, rule)
        with pytest.raises(error, match=message):
            fast(batch)
    with pytest.raises(ValueError, match=r"in training mode; call model\.eval\(\) first"):
        fast.train()(images)


@pytest.mark.parametrize(
    ("variant", "lazy", "rules"),
    [
        *((variant, False, ("patience:2", "confidence:0.6,0.8,0.9")) for variant in ANYTIME),
        ("half_gru", True, ("confidence:0.7", "level:1", "margin:0", "confidence:0.6,0.8,0.9")),
    ],
)
@torch.no_grad()
def test_images_of_mixed_heights_stop_as_they_would_alone(variant, lazy, rules):
    model = small_model(variant=variant, exits="separate", norm="per_level").double()
    images = mixed_images()
    pyramid = Pyramid.pack(in_sequence(images) if lazy else images)
    whole = Anytime(model, "confidence:1.1")(pyramid)
    assert torch.allclose(whole.logits, model(pyramid), atol=1e-10)
    assert (whole.stopped_at + 1).tolist() == pyramid.heights
    fast, alone = Anytime(model, "level:9"), Anytime(model, "level:9")
    for text in rules:
        fast.exit = alone.exit = exit_rule(text)
        logits, stopped_at, gmacs = fast(pyramid)
        for index, levels in enumerate(images):
            if "," in text:
                alone.exit = Confidence(fast.exit.thresholds[: len(levels) - 1] or 0.5)
            expected = alone([level[None] for level in levels])
            assert stopped_at[index] == expected.stopped_at[0]
            assert torch.allclose(logits[index], expected.logits[0], atol=1e-10)
            assert gmacs[index] == pytest.approx(expected.gmacs[0].item())


def test_the_host_waits_for_the_device_once_a_level(net, images, monkeypatch):
    waits = []

    def noted(name, original):
        return lambda *args, **options: waits.append(name) or original(*args, **options)

    for name in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, noted(name, getattr(Tensor, name)))
    monkeypatch.setattr("srnn_zoo.models.cells._is_seen_to_be_zero", lambda state: False)  # it looks on a CPU alone
    net.double()
    for x in (images.double(), Pyramid.pack(mixed_images())):
        Anytime(net, "level:9")(x)  # counts the GMACs, once
        for rule, expected in (("confidence:0.7", ["tolist", "tolist"]), ("level:1", [])):
            waits.clear()
            Anytime(net, rule)(x)
            assert waits == expected
