"""An exit rule is one registered class: from its text, in Anytime, and, where it has a score, in calibrate."""

import pytest
import torch

from srnn_zoo import Anytime, budget_rule, calibrate, create_model, list_exits, register_exit
from srnn_zoo.inference import exits
from srnn_zoo.inference.exits import ScoreRule, exit_rule, score_rule

from .synthetic_answers import synthetic_answers

BUILT_IN = ["confidence", "margin", "entropy", "patience", "level", "deadline"]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(exits, "_EXITS", {**exits._EXITS})


def first():
    """A rule of one's own: how probable the first class is."""

    @register_exit("first", example=0.9)
    class First(ScoreRule):
        def score(self, probabilities):
            return probabilities[:, 0]

    return First


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_rule_of_ones_own_is_used_wherever_the_others_are():
    First = first()
    assert list_exits() == [*BUILT_IN, "first"]
    assert list_exits(scored=True) == ["confidence", "margin", "entropy", "first"]
    net = create_model("srnn_test_resnet", scales=(0.25, 0.5, 1.0), num_classes=10, img_size=64).eval()
    images = torch.randn(6, 3, 64, 64)
    with torch.no_grad():
        sure = next(iter(net.steps(images))).logits.softmax(1)[:, 0]
    fast = Anytime(net, f"first:{sure.median().item()},2")
    assert type(fast.exit) is First
    assert ((fast(images)[1] == 0) == (sure >= sure.median())).all()
    calibrated = calibrate(net, synthetic_answers(), budget_gmacs=4.0, rule="first").exit
    assert type(calibrated) is First
    assert calibrated.name == net.metadata["exit"]["rule"] == "first"
    assert vars(Anytime(net).exit) == vars(calibrated)
    assert type(budget_rule(net, 1e3)) is First
    del exits._EXITS["first"]
    for use in (lambda: Anytime(net), lambda: budget_rule(net, 1e3)):
        with pytest.raises(ValueError, match=f"rule 'first' of module {__name__}: import it first"):
            use()


def test_a_rule_without_a_score_takes_one_number_whole_where_its_example_is():
    @register_exit("third", example=3)
    class Third:
        def __init__(self, count):
            self.count = count

        def __call__(self, decision):
            return decision.level >= self.count

    rule = exit_rule("third:2")
    assert (type(rule), rule.count, type(rule.count)) == (Third, 2, int)
    with pytest.raises(ValueError, match=r"third takes a whole number, such as third:3; got '2\.5'"):
        exit_rule("third:2.5")
    with pytest.raises(ValueError, match="third takes one number, such as third:3; got '1,2'"):
        exit_rule("third:1,2")
    with pytest.raises(ValueError, match="unknown rule 'third'; choose one of confidence, entropy, margin"):
        score_rule("third")


def test_a_name_belongs_to_one_class_which_may_be_defined_again():
    again = first(), first()
    assert score_rule("first") is again[1]
    with pytest.raises(ValueError, match=r"'margin' is already registered by srnn_zoo\.inference\.exits\.Margin"):
        register_exit("margin")(again[0])
