"""Models beside one another: alone, together, and in turn."""

import pytest
import torch

from srnn_zoo import cascade, pareto, rivals
from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.inference.thresholds import fit_rule, stops

from .conftest import synthetic_answers


def of_models(images=500, seed=0):
    """Three models of one level each on the same images, the next better and dearer than the one before."""
    answers = synthetic_answers(images=images, seed=seed)
    costs = torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
    return {
        name: CollectedAnswers(answers.logits[[level]], answers.targets, costs[[level]])
        for level, name in enumerate(("small", "middle", "large"))
    }


@pytest.mark.parametrize("all_together", [False, True])
def test_a_cascade_answers_and_costs_as_a_plain_loop_over_images(all_together):
    models = list(of_models().values())
    found = cascade(models, all_together)
    points = [
        point for point in rivals(of_models()) if point.name.endswith("all answer" if all_together else "last answers")
    ]
    for point in points[:: max(1, len(points) // 7)]:
        right, cost = 0, 0.0
        for image, target in enumerate(found.targets.tolist()):
            spent = 0.0
            for level, model in enumerate(models):
                spent += model.gmacs[-1].item()
                logits = [each.logits[-1, image].double() for each in models[: level + 1]]
                means = torch.stack([one.softmax(0) for one in logits]).mean(0)
                answer = means if all_together else logits[-1].softmax(0)
                assert torch.allclose(found.logits[level, image].double().softmax(0), answer, atol=1e-6)
                if level == point_level(found, point, image):
                    break
            right += int(answer.argmax()) == target
            cost += spent
        assert point.accuracy == pytest.approx(100 * right / len(found.targets))
        assert point.gmacs == pytest.approx(cost / len(found.targets))


def point_level(answers, point, image):
    """Where an image stops, by the thresholds of a point."""
    return stops(answers, fit_rule(answers, "confidence"), point.thresholds)[image].item()


def test_each_model_alone_the_ensemble_and_both_cascades():
    models = of_models()
    points = rivals(models, of_models(seed=1))
    assert [(p.name, p.kind, p.gmacs) for p in points[:4]] == [
        ("small", "model", 1.0),
        ("middle", "model", 2.5),
        ("large", "model", 7.0),
        ("ensemble of small, middle, large", "ensemble", 10.5),
    ]
    means = torch.stack([each.logits[-1].double().softmax(1) for each in models.values()]).mean(0)
    targets = models["small"].targets
    assert points[3].accuracy == pytest.approx(100 * (means.argmax(1) == targets).double().mean().item())
    curves = {p.name for p in points[4:]}
    assert curves == {"cascade small, middle, large: last answers", "cascade small, middle, large: all answer"}
    assert not any(p.optimistic for p in points)
    assert {p.optimistic for p in rivals(models)[4:]} == {True}
    assert rivals({"small": models["small"]}) == [points[0]]


def test_a_cascade_is_measured_as_any_model_by_thresholds_from_other_images():
    models, others = of_models(), of_models(seed=1)
    curve = [p for p in rivals(models, others) if p.name.endswith("last answers")]
    same = pareto(cascade(list(models.values())), thresholds_from=cascade(list(others.values())))
    assert [(p.gmacs, p.accuracy) for p in curve] == [(p.gmacs, p.accuracy) for p in same if p.kind == "curve"]


def test_held_out_answers_are_found_by_the_names_of_the_models():
    models, others = of_models(), of_models(seed=1)
    assert rivals(models, dict(reversed(others.items()))) == rivals(models, others)
    with pytest.raises(ValueError, match="of the same models; got small rather than small, middle, large"):
        rivals(models, {"small": others["small"]})
    others["huge"] = others.pop("large")
    with pytest.raises(ValueError, match="of the same models; got small, middle, huge"):
        rivals(models, others)


def test_what_does_not_belong_together_is_refused():
    small, _, large = of_models().values()
    fewer = CollectedAnswers(large.logits[..., :5], large.targets % 5, large.gmacs)
    for answers, reason in (
        ([], "at least one model"),
        ([small, large.select(slice(9))], "on the same images"),
        ([CollectedAnswers(small.logits, small.targets % 5, small.gmacs), fewer], "the same classes; got 10 and 5"),
    ):
        with pytest.raises(ValueError, match=reason):
            cascade(answers)
