"""An SRNN beside its rivals where the backbone is trained too: whole images at two sizes, and a level that zooms in.

EfficientNet-Lite0 with ImageNet weights on the Grocery Store data set's official splits. The stem and the first six of
seven blocks stay as they are, so that two cores can do it: their maps of every image, and of each training image in
four augmented versions, are computed once and kept. The last block, the last convolution, cell and classifier are
trained: a third of the parameters. Every way has the same recipe and the same seeds. Both crops are in the table.

Everything is kept in --runs: the same command goes on after an interruption, and with more seeds or ways it trains what
is new.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from _common import RESULTS, Row, report
from _finetuned_nets import (
    CROP,
    LARGE,
    SHOWN,
    SMALL,
    ZOOM,
    Maps,
    Net,
    answered_shown,
    answers_file,
    create,
    opened,
    targets,
    trained,
)
from _shown import report_shift
from torch import Tensor
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.comparison.picture import plot_comparison
from srnn_zoo.comparison.result import Comparison, advice, difference, lines_of
from srnn_zoo.comparison.views import View
from srnn_zoo.comparison.ways import Answers, Operating, Way
from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.inference.cascade import all_answer, last_answer
from srnn_zoo.weights.files import read_weights

SINGLES = [
    Net("single160", (SMALL,)),
    Net("single160-zoom1.6", (ZOOM,)),
    Net("single160-zoom1.25", (CROP,)),
    Net("single240", (LARGE,)),
    Net("fixres240", (LARGE,), start="single160"),
    Net("gem160", (SMALL,), exponent=3.0),
    Net("gem240", (LARGE,), exponent=3.0),
]
PAIRS = {"160 + 240": (SMALL, LARGE), "160 + zoom": (SMALL, ZOOM), "zoom + 160": (ZOOM, SMALL)}
JOINT = [
    Net(f"{variant} {title}", views, variant, "per_level")
    for title, views in PAIRS.items()
    for variant in ("vanilla_scalar", "half_gru_diag", "mean_logit")
]
FIRST = Net("vanilla_scalar 160 + zoom", PAIRS["160 + zoom"], norm="per_level")
GATED = FIRST._replace(name="half_gru_diag 160 + zoom", variant="half_gru_diag")
ABLATIONS = [
    FIRST._replace(name="vanilla, norm shared", norm="shared"),
    FIRST._replace(name="vanilla, loss after the last level", settings=(("loss", "last"),)),
    FIRST._replace(name="vanilla, U = I", settings=(("recurrence", 1.0),)),
    FIRST._replace(name="vanilla, distillation 0.5", settings=(("distillation", 0.5),)),
    FIRST._replace(name="vanilla, cell as fast as the classifier", settings=(("lr_cell", 1.0),)),
    GATED._replace(name="half_gru, gates from 4 I", gates=4.0),
    GATED._replace(name="half_gru, cell as fast as the classifier", settings=(("lr_cell", 1.0),)),
]
NETS = {net.name: net for net in [*SINGLES, *JOINT]}
SWEPT = (
    "single160-zoom1.6",
    *(f"{variant} 160 + zoom" for variant in ("vanilla_scalar", "half_gru_diag", "mean_logit")),
)
TRIED = ((0.003, 10), (0.001, 10), (0.01, 10), (0.003, 20))  # learning rates and epochs; first the other networks'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/finetuned"), help="folder of everything that is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nets", nargs="+", help="these only, by their names in the table")
    parser.add_argument(
        "--ablation", action="store_true", help="train and compare other settings on 160 + zoom instead"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="train at other rates and lengths instead, each method by itself"
    )
    parser.add_argument(
        "--shift", action="store_true", help="measure what is trained on smaller and larger objects, and train nothing"
    )
    parser.add_argument("--table", action="store_true", help="write the table of what is trained, and train nothing")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    srnn_zoo.keep_freed_memory()
    args.runs.mkdir(parents=True, exist_ok=True)
    nets = [FIRST, GATED, *ABLATIONS] if args.ablation else list(NETS.values())
    nets = [tried(name, *how) for name in SWEPT for how in TRIED] if args.sweep else nets
    every = {net.name: net for net in nets}
    if unknown := sorted({*(args.nets or ())} - {*every}):
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(every)}")
    chosen = [every[name] for name in args.nets or every]
    if args.shift:
        found = shifted(args.runs, args.seeds, chosen)
        for half, file in (("half", "scale_shift_finetuned.csv"), ("plain half", "scale_shift_finetuned_plain.csv")):
            report_shift({1.0: found["test"], 0.5: found[half], 2.0: found["twice"]}, RESULTS / file)
        return
    if not args.table:
        maps = Maps(args.runs)
        for seed, net in itertools.product(args.seeds, chosen):
            trained(args.runs, maps, net, seed)
    if args.ablation:
        report(list(ablation(args.runs, args.seeds, chosen)), RESULTS / "finetuned_ablation.csv")
    elif args.sweep:
        report(list(sweep(args.runs, args.seeds)), RESULTS / "finetuned_sweep.csv")
    elif args.table or not args.nets:
        write_table(args.runs, args.seeds, [net.name for net in chosen])


def tried(name: str, lr: float, epochs: int) -> Net:
    """A network, trained at this rate for so long."""
    net = NETS[name]
    if (lr, epochs) == TRIED[0]:
        return net
    return net._replace(name=f"{name}, lr {lr:g}, {epochs} epochs", settings=(("lr", lr), ("epochs", epochs)))


def sweep(runs: Path, seeds: Sequence[int]) -> Iterator[Row]:
    """A row for each method, rate and length, with its difference to the recipe's own."""
    table = Table(runs, seeds, [])
    for name in SWEPT:
        ways = [table.way(tried(name, *how)).whole() for how in TRIED]
        for (lr, epochs), found in zip(TRIED, ways, strict=True):
            gap = difference(found, ways[0])
            yield {
                "method": name,
                "lr": lr,
                "epochs": epochs,
                "val_top1": round(found.val_accuracy, 2),
                "test_top1": round(found.accuracy, 2),
                "over_recipe": f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})",
            }


def ablation(runs: Path, seeds: Sequence[int], nets: Sequence[Net]) -> Iterator[Row]:
    """A row for each setting, with its difference to the first of its variant."""
    table = Table(runs, seeds, [])
    beside: dict[str, Operating] = {}
    for net in nets:
        way = table.way(net)
        found, early = way.whole(), way.at(1.5 * table.gmacs(SMALL))
        gap = difference(found, beside.setdefault(net.variant, found))
        assert early is not None
        yield {
            "setting": net.name,
            "val_top1": round(found.val_accuracy, 2),
            "test_top1": round(found.accuracy, 2),
            "over_first_row": f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})",
            "early_exit_gmacs": round(early.gmacs, 3),
            "early_exit_test_top1": round(early.accuracy, 2),
        }


def shifted(runs: Path, seeds: Sequence[int], nets: Sequence[Net]) -> dict[str, dict[str, Way]]:
    """All ways by name, for the test images as they are and for each split that shows them at another size."""
    there = [net for net in nets if all(answers_file(runs, net, seed).exists() for seed in seeds)]
    maps = Maps(runs, list(SHOWN))
    for seed, net in tqdm([*itertools.product(seeds, there)], desc="networks", unit="network", disable=None):
        answered_shown(runs, maps, net, seed)
    names = [net.name for net in there]
    return {split: {way.name: way for way in Table(runs, seeds, names, split).ways()} for split in ("test", *SHOWN)}


def write_table(runs: Path, seeds: Sequence[int], nets: Sequence[str]) -> None:
    """The table, the curves and the sentence of `srnn-zoo compare`, of these networks."""
    found = list(Table(runs, seeds, nets).ways())
    count = len(found[0].answers[0].test.targets)
    caption = (
        f"Grocery Store: trained on {len(opened('train'))} images, {len(seeds)} seed(s), "
        f"measured on {count}. GMACs: of the whole backbone."
    )
    comparison = Comparison(tuple(found), tuple(lines_of(found)), advice(found), caption)
    comparison.save(runs)
    plot_comparison(comparison, runs / "plot.png")
    for name in ("table", "curves", "pairs"):
        (RESULTS / f"finetuned_{name}.csv").write_text((runs / f"{name}.csv").read_text(encoding="utf-8"))
    print(comparison.to_markdown())


class Table:
    """The ways of the table, from what the networks answer.

    Args:
        runs: where these answers are.
        seeds: of the networks.
        nets: the names of those that are there; of SRNNs and trained means some may be missing.
        measured: the split that measures, `test` or one of `SHOWN`.
    """

    def __init__(self, runs: Path, seeds: Sequence[int], nets: Sequence[str], measured: str = "test") -> None:
        self._runs, self._seeds, self._nets, self._measured = runs, seeds, nets, measured
        self._targets = targets("val"), targets("test")
        model = create(Net("", (SMALL,)))
        self._gmacs = {size: model.level_gmacs((size, size)) for size in (SMALL.size, LARGE.size)}

    def gmacs(self, view: View) -> float:
        """What the backbone costs on a view."""
        return self._gmacs[view.size]

    def way(self, net: Net) -> Way:
        """A network as a way to answer."""
        return Way(net.name, "SRNN", "", self._of(net))

    def ways(self) -> Iterator[Way]:
        """Rivals first."""
        for name, title in (
            ("single160", "single scale 160"),
            ("single240", "single scale 240"),
            ("fixres240", "FixRes 240"),
            ("single160-zoom1.25", "tight crop 160, zoom 1.25"),
            ("single160-zoom1.6", "tight crop 160, zoom 1.6"),
            ("gem160", "GeM 160"),
            ("gem240", "GeM 240"),
        ):
            yield Way(title, "single scale", "", self._of(NETS[name]))
        for title, views in PAIRS.items():
            alone = [self._of(next(net for net in SINGLES if net.views == (view,))) for view in views]
            asked = [self._together(each, views, both=False) for each in zip(*alone, strict=True)]
            everyone = [self._together(each, views, both=True) for each in zip(*alone, strict=True)]
            yield Way(
                f"ensemble {title}",
                "ensemble",
                "",
                [Answers(*map(last_answer, each)) for each in everyone],
                reads=title,
            )
            yield Way(f"cascade {title}, last answers", "cascade", "", asked, reads=title)
            yield Way(f"cascade {title}, all answer", "cascade", "", everyone, reads=title)
            for variant in ("mean_logit", "vanilla_scalar", "half_gru_diag"):
                if (name := f"{variant} {title}") in self._nets:
                    mean = variant == "mean_logit"
                    group = "trained mean" if mean else "SRNN"
                    yield Way(f"trained mean {title}" if mean else name, group, "", self._of(NETS[name]), reads=title)

    def _of(self, net: Net) -> list[Answers]:
        found: list[Answers] = []
        for seed in self._seeds:
            of_val = of_measured = read_weights(answers_file(self._runs, net, seed))[0]
            if self._measured != "test":
                of_measured = read_weights(answers_file(self._runs, net, seed, self._measured))[0]
            found.append(self._answers(of_val["val"], of_measured[self._measured], net.views))
        return found

    def _together(self, alone: Sequence[Answers], views: Sequence[View], both: bool) -> Answers:
        """Networks of one view each, as levels: the last that was asked answers, or the mean of all asked so far."""
        val, measured = (torch.cat([answers.logits for answers in of_split]) for of_split in zip(*alone, strict=True))
        if both:
            val, measured = all_answer(val), all_answer(measured)
        return self._answers(val, measured, views)

    def _answers(self, val: Tensor, measured: Tensor, views: Sequence[View]) -> Answers:
        gmacs = torch.tensor([self._gmacs[view.size] for view in views], dtype=torch.float64).cumsum(0)
        known, wanted = self._targets
        return Answers(CollectedAnswers(val, known, gmacs), CollectedAnswers(measured, wanted, gmacs))


if __name__ == "__main__":
    main()
