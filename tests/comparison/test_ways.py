"""Ways at budgets, and what the table and the advice say of them, against plain loops over the images."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import ttest_rel

from srnn_zoo.comparison.result import Comparison, advice, difference, lines_of
from srnn_zoo.comparison.ways import Answers, Way
from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.inference.thresholds import fit_rule, search, stops, use_up

COSTS = (1.0, 3.0)


def collected(strength, targets, generator, costs):
    """Answers that are right the more often, the stronger each level is."""
    logits = torch.randn(len(costs), len(targets), 4, generator=generator)
    logits += torch.nn.functional.one_hot(targets, 4) * torch.tensor(strength).view(-1, 1, 1)
    return CollectedAnswers(logits, targets, torch.tensor(costs, dtype=torch.float64))


def way(name, group, strength, costs, seeds=2):
    generator = torch.Generator().manual_seed(len(name))
    targets = [torch.arange(n) % 4 for n in (160, 200)]
    answers = [Answers(*(collected(strength, each, generator, costs) for each in targets)) for _ in range(seeds)]
    return Way(name, group, "as it is", answers)


@pytest.fixture
def ways():
    return [
        way("single scale", "single scale", (1.2,), (1.0,)),
        way("large single scale", "single scale", (2.4,), (2.0,)),
        way("cascade", "cascade", (1.2, 2.4), COSTS),
        way("ours", "SRNN", (1.2, 5.0), COSTS),
    ]


@pytest.mark.parametrize("levels", [2, 3])
def test_where_images_stop_is_the_first_level_that_reaches_its_threshold(levels):
    targets = torch.arange(50) % 4
    answers = collected((1.0, 2.0, 3.0)[:levels], targets, torch.Generator().manual_seed(0), (1.0, 2.0, 3.0)[:levels])
    rule = fit_rule(answers, "margin")
    for outcome in search(answers, rule)[::7]:
        expected = []
        for image in range(50):
            for level in range(levels):
                first, second = (
                    (answers.logits[level, image] / rule.temperatures[level]).softmax(0).sort().values[-2:].flip(0)
                )
                if level + 1 == levels or first - second >= torch.tensor(outcome.thresholds[level]):
                    expected.append(level)
                    break
        found = stops(answers, rule, outcome.thresholds)
        assert found.tolist() == expected
        assert answers.gmacs[found].mean().item() == pytest.approx(outcome.gmacs)


def test_a_way_keeps_a_budget_on_the_images_that_choose_and_is_measured_on_the_others(ways):
    *_, cascade, ours = ways
    assert ours.at(0.9) is None
    assert ways[0].at(0.9) is None
    assert ways[0].at(1.0).accuracy == ways[0].whole().accuracy
    costs = [ours.at(budget).gmacs for budget in (1.0, 1.5, 2.0, 3.0)]
    assert costs == pytest.approx([1.0, 1.5, 2.0, 3.0], abs=0.2)  # on other images than those that chose
    assert (costs[0], costs[-1]) == (1.0, 3.0)
    for seed, (val, test) in enumerate(ours.answers):
        rule = fit_rule(val, "confidence")
        levels = stops(test, rule, use_up(val, rule, 1.5).thresholds)
        right = [test.logits[level, i].argmax() == test.targets[i] for i, level in enumerate(levels)]
        assert ours.at(1.5).right[seed].tolist() == right
    assert cascade.whole().accuracy == pytest.approx(
        100 * sum(test.right[-1].double().mean().item() for _, test in cascade.answers) / 2
    )


def test_a_difference_is_the_paired_t_test_of_the_seeds_means(ways):
    a, b = ways[3].whole(), ways[0].whole()
    found, (x, y) = difference(a, b), (each.right.double().mean(0).numpy() for each in (a, b))
    expected = ttest_rel(100 * x, 100 * y)
    assert found.mean == pytest.approx(a.accuracy - b.accuracy)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert difference(a, a) == (0.0, 0.0, 0.0, 1.0)


def test_every_rival_has_the_srnn_of_its_cost_beside_it(ways):
    lines = {line.name: line for line in lines_of(ways)}
    within = [f"cascade, within {budget}" for budget in ("1.25", "1.5", "2")]
    ours = [name.replace("cascade", "ours") for name in within]
    assert list(lines) == ["single scale", "large single scale", *within, "cascade", *ours, "ours"]
    assert lines["ours"].srnn == ""
    assert lines["ours"].difference is None
    budgets = {"single scale": 1.0, "large single scale": 2.0, "cascade, within 1.5": 1.5, "cascade": 3.0}
    for name, budget in budgets.items():
        line, ours = lines[name], ways[3].at(budget)
        assert (line.srnn, line.srnn_gmacs) == ("ours", ours.gmacs)
        assert line.difference.mean == pytest.approx(ours.accuracy - line.accuracy)
    assert lines["cascade"].accuracy == ways[2].whole().accuracy
    same = [way("as ours", "cascade", (1.2, 5.0), COSTS), way("as ours", "SRNN", (1.2, 5.0), COSTS)]
    assert {line.difference.mean for line in lines_of(same) if line.group == "cascade"} == {0.0}


def test_a_difference_of_one_image_or_of_all_alike_is_no_sure_one(ways):
    right = ways[0].whole().right
    ones, zeros = torch.ones_like(right), torch.zeros_like(right)
    for images, p_value in ((1, 1.0), (5, 0.0625)):
        a, b = (ways[0].whole()._replace(right=each[:, :images]) for each in (ones, zeros))
        assert difference(a, b) == (100.0, -100.0, 100.0, p_value)


def test_the_advice_names_what_is_best_on_the_images_that_choose(ways):
    said = advice(ways)
    assert "For up to 3 GMACs an image use ours" in said
    assert "points more than the best rival" in said
    hopeless = [*ways[:2], way("ours", "SRNN", (0.0, 0.1), COSTS)]
    said = advice(hopeless)
    assert "For up to 2 GMACs an image use large single scale" in said
    assert "points more than the best SRNN" in said
    assert "use ours" not in said


def test_the_advice_says_so_where_the_images_that_measure_disagree_with_those_that_choose(ways):
    *rivals, ours = ways
    worse = replace(
        ours,
        answers=[
            Answers(each.val, CollectedAnswers(-each.test.logits, each.test.targets, each.test.gmacs))
            for each in ours.answers
        ],
    )
    said = advice([*rivals, worse])
    assert "was best on the images that choose, but on those that measure" in said
    assert "Give more images that choose" in said


def test_pairs_are_every_srnn_beside_every_rival_within_the_same_cost(ways):
    found = list(Comparison(tuple(ways), (), "", "").pairs())
    ours, rivals = ways[-1], {way.name: way for way in ways[:-1]}
    assert {pair.srnn for pair in found} == {"ours"}
    assert {pair.budget for pair in found} == {1.25, 1.5, 2.0, 3.0}
    for pair in found:
        beside = rivals[pair.rival].at(pair.budget)
        assert pair[7:] == tuple(difference(ours.at(pair.budget), beside))
        assert max(pair.srnn_gmacs, pair.rival_gmacs) <= pair.budget * 1.2
    assert sum(pair.rival == "large single scale" for pair in found) == 2  # it costs 2
