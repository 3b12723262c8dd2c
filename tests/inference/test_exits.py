"""An exit rule is one registered class: from its text, in Anytime, and, where it has a score, in calibrate."""

import pytest
import torch

from srnn_zoo import Anytime, budget_rule, calibrate, list_exits, register_exit
from srnn_zoo.inference import exits
from srnn_zoo.inference.exits import ScoreRule, exit_rule, score_rule


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


def test_a_rule_that_makes_no_sense_is_refused(net):
    for text, message in (
        ("confidense:0.9", "unknown exit rule 'confidense'; did you mean 'confidence'"),
        ("confidence", r"takes a number after a colon, such as confidence:0\.9"),
        ("confidence:-1", "thresholds must be 0 or more"),
        ("confidence:nan", "thresholds must be 0 or more"),
        ("confidence:0.9,0.8,0.7", "3 levels need 2 thresholds, one for every level but the last, .* got 3"),
        ("patience:1", "patience compares 2 levels or more; got 1"),
        ("patience:2.7", "takes a whole number, such as patience:2; got '2.7'"),
        ("patience:2,3", "takes one number, such as patience:2; got '2,3'"),
        ("level:-1", "levels count from 0"),
        ("deadline:0", "a deadline is a positive number of milliseconds; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Anytime(net, text)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_rule_of_ones_own_is_used_wherever_the_others_are(net, answers):
    First = first()
    assert list_exits() == ["confidence", "margin", "entropy", "patience", "level", "deadline", "learned", "first"]
    assert list_exits(scored=True) == ["confidence", "margin", "entropy", "learned", "first"]
    images = torch.randn(6, 3, 64, 64)
    with torch.no_grad():
        sure = next(iter(net.steps(images))).logits.softmax(1)[:, 0]
    fast = Anytime(net, f"first:{sure.median().item()},2")
    assert type(fast.exit) is First
    assert ((fast(images)[1] == 0) == (sure >= sure.median())).all()
    calibrated = calibrate(net, answers, budget_gmacs=4.0, rule="first").exit
    assert type(calibrated) is First
    assert calibrated.name == net.metadata["exit"]["rule"] == "first"
    assert vars(Anytime(net).exit) == vars(calibrated)
    assert type(budget_rule(net, 1e3)) is First
    del exits._EXITS["first"]
    for use in (Anytime, lambda net: budget_rule(net, 1e3)):
        with pytest.raises(ValueError, match=f"rule 'first' of module {__name__}: import it first"):
            use(net)


def test_a_rule_without_a_score_takes_a_number_whole_where_its_example_is_and_a_name_belongs_to_one_class():
    @register_exit("third", example=3)
    class Third:
        def __init__(self, count):
            self.count = count

    assert type(exit_rule("third:2")) is Third
    assert type(exit_rule("third:2").count) is int
    with pytest.raises(ValueError, match="unknown rule 'third'; choose one of confidence, entropy, learned, margin"):
        score_rule("third")
    again = first(), first()  # a class may be defined again
    assert score_rule("first") is again[1]
    with pytest.raises(ValueError, match=r"'margin' is already registered by srnn_zoo\.inference\.exits\.Margin"):
        register_exit("margin")(again[0])
