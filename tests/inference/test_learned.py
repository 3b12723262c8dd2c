"""The learned exit is a logistic regression that finds what confidence cannot, and a promised loss is kept."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from srnn_zoo import Anytime, budget_rule, calibrate
from srnn_zoo.inference.exits import Confidence, exit_rule
from srnn_zoo.inference.guarantee import certify
from srnn_zoo.inference.learned import Learned, _features, _logistic_regression
from srnn_zoo.inference.thresholds import family, measure, search

from .conftest import synthetic_answers


def hopeless(images, seed=0):
    """Answers of which every third is unsure at the first level, and stays wrong at all of them."""
    answers = synthetic_answers(2, images, seed)
    logits = answers.logits.clone()
    other = torch.nn.functional.one_hot((answers.targets + 1) % 10, 10)
    second = torch.nn.functional.one_hot((answers.targets + 2) % 10, 10)
    logits[:, ::3] = 4.0 * (1.1 * other + second)[::3]  # two wrong classes, one a little before the other
    return dataclasses.replace(answers, logits=logits)


def test_the_weights_are_those_of_the_smallest_penalised_loss():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(400, 6, generator=generator).mul(2).softmax(dim=1)
    labels = torch.rand(400, generator=generator) < 1.2 - probabilities.amax(1)
    features = _features(probabilities).double()
    top = probabilities.sort(descending=True).values.numpy()
    entropy = -(top * np.log(top)).sum(1) / np.log(6)
    assert np.allclose(features.numpy(), np.column_stack([np.log(top[:, :3]), entropy]), atol=1e-5)
    x, y = features.numpy(), labels.numpy()
    spread = x.std(0)

    def loss(found):
        log_odds = x @ found[:-1] + found[-1]
        bias = found[-1] + found[:-1] @ x.mean(0)
        penalty = 1e-2 * ((found[:-1] * spread) ** 2).sum() + 1e-4 * bias**2
        return np.logaddexp(0, np.where(y, -log_odds, log_odds)).mean() + penalty / 2

    ours = _logistic_regression(features, labels)
    best = minimize(loss, np.zeros(5), tol=1e-12)
    assert loss(np.array(ours)) <= best.fun + 1e-9
    assert np.allclose(ours, best.x, atol=1e-2)


@pytest.mark.parametrize("labels", [torch.zeros(20, dtype=torch.bool), torch.ones(20, dtype=torch.bool)])
def test_images_that_are_all_alike_give_finite_weights(labels):
    assert np.isfinite(_logistic_regression(torch.ones(20, 4), labels)).all()


def test_it_saves_what_confidence_spends_on_images_that_nothing_mends():
    held_out, test = hopeless(1500), hopeless(6000, seed=1)
    budgets, means = np.linspace(1.2, 2.4, 50), []
    for kind in (Learned, Confidence):
        rule = kind.fit(held_out.logits, held_out.targets)
        found = measure(test, rule, [outcome.thresholds for outcome in search(held_out, rule)])
        gmacs, accuracy = zip(*sorted((o.gmacs, o.accuracy) for o in found), strict=True)
        means.append(np.interp(budgets, gmacs, accuracy).mean())
    assert means[0] > means[1] + 1


def test_what_was_learnt_comes_back_with_the_model(net, answers):
    fast = calibrate(net, answers, budget_gmacs=4.0, rule="learned")
    net.metadata = json.loads(json.dumps(net.metadata))
    assert vars(Anytime(net).exit) == vars(fast.exit)
    assert len(fast.exit.weights) == 2
    assert isinstance(budget_rule(net, 1e3), Learned)
    images = torch.randn(4, 3, 64, 64)
    *_, last = steps = list(net.steps(images))
    logits, stopped_at, _ = fast(images)
    for image, level in enumerate(stopped_at.tolist()):
        assert torch.allclose(logits[image], steps[level].logits[image], atol=1e-5)
    assert last.level == 2
    with pytest.raises(ValueError, match=r"learned has to be fitted: use calibrate\(model, images, rule=\"learned\"\)"):
        exit_rule("learned:0.9")


def test_lost_images_are_those_that_all_levels_answer_rightly():
    answers = synthetic_answers(3, 300)
    rule = Confidence.fit(answers.logits, answers.targets)
    for outcome in measure(answers, rule, family(answers, rule)[::40]):
        lost = 0
        for image in range(300):
            for level in range(3):
                probabilities = (answers.logits[level, image] / rule.temperatures[level]).softmax(0)
                if level == 2 or probabilities.max() >= outcome.thresholds[level]:
                    break
            lost += bool(answers.right[2, image] and not answers.right[level, image])
        assert outcome.lost == lost


@pytest.mark.parametrize("rule", ["confidence", pytest.param("learned", marks=pytest.mark.slow)])
def test_a_promised_loss_is_kept_as_often_as_was_promised(rule):
    everybody = synthetic_answers(2, 20_000, seed=9)
    broken, shares, draws = 0, [], 30
    for seed in range(draws):
        fitted, outcome = certify(synthetic_answers(2, 600, seed=1000 + seed), rule, max_loss=3.0, probability=0.8)
        [true] = measure(everybody, fitted, [outcome.thresholds])
        broken += true.lost / 20_000 > 0.03
        shares.append(true.stop_shares[0])
    assert broken <= 10  # of 6 that are allowed on average, in 97 of 100 runs
    assert np.mean(shares) > 0.1  # so it is no empty promise


def test_a_promise_is_stored_and_one_that_cannot_be_given_is_refused(net, answers):
    stored = calibrate(net, answers, max_loss=2.0, probability=0.9) and net.metadata["exit"]["held_out"]
    assert (stored["max_loss"], stored["probability"], stored["images"]) == (2.0, 0.9, 1000)
    assert stored["lost"] < 20
    for loss, probability, message in (
        (0.1, 0.95, "1000 images, half of those given, cannot promise .* give 5990 or more"),
        (0, 0.95, "above 0 and below 100, and a probability between 0 and 1; got 0 and 0.95"),
        (1, 1.0, "got 1 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(net, answers, max_loss=loss, probability=probability)
    with pytest.raises(ValueError, match="a model of one level cannot stop earlier"):
        certify(synthetic_answers(1, 600), "confidence", max_loss=3.0, probability=0.8)
