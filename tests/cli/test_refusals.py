"""Every command refuses a mistake before the work: it exits with 2, says what was expected, and writes nothing."""

import os
import shlex
import subprocess

import pytest

from tests.conftest import ROOT

from .command import COMMAND, refused

IMAGE = "data/test/red/0.png"
PLOT_LISTED = "cannot write 'plot.xyz': give it one of the suffixes"
REFUSED = {
    f"predict {IMAGE}": {
        "--sizes one,two": "--sizes takes whole numbers with commas between, such as 224,448; got 'one,two'",
        "--sizes 448,224": "--sizes: sizes must grow, smallest first; got (448, 224)",
        "--sizes=-224,448": "--sizes: sizes must be positive",
        "--sizes 1,4000000": "scales below 1/1000",
        "--model resnet18": "unknown model 'resnet18'; did you mean 'srnn_resnet18'",
        "--model ''": "unknown model ''",
        "--model local-dir:/nowhere": "/nowhere",
        "--variant half_gur": "unknown variant 'half_gur'; did you mean 'half_gru' or",
        "--topk 0": "Invalid value for '--topk'",
        "--batch-size -1": "Invalid value for '--batch-size'",
        "--device nope": "--device nope is not available here",
        "--device meta": "--device meta is not available here",
        "--device cuda:99": "--device cuda:99 is not available here",
        "--plot plot.xyz": f"--plot: {PLOT_LISTED}",
        f"--plot {'long' * 100}.png": "--plot: ",
        "''": "a path is empty",
        "empty": "empty: no images in this folder",
        "--nonsense": "No such option",
        "--import no_such_module": "--import: cannot import 'no_such_module' (ModuleNotFoundError: No module",
        "-m once --exit level:0": "variant 'concat' answers after the last level only; it cannot stop early",
        "-m b --exit confidenc:0.9": "--exit: unknown exit rule 'confidenc'; did you mean 'confidence'?",
        "-m b --exit calibrate": "or calibrated, for what `srnn-zoo calibrate` has stored",
        "-m b --exit calibrated": "--exit: the model was never calibrated",
        "-m b --exit level:0 --budget 1": "give --exit or --budget, not both",
        "-m b --budget nan": "--budget: the first level alone costs",
    },
    "calibrate data/test -m b --workers 0": {
        "": "give one of --budget, --target-accuracy and --max-loss",
        "--budget 1 --target-accuracy 50": "give one of --budget, --target-accuracy and --max-loss",
        "--target-accuracy 50 --spend": "--spend is about a budget: give --budget",
        "--budget 1 --sizes 32,64": "change the model: give --output FOLDER",
        "--budget 1 --variant vanilla": "change the model: give --output FOLDER",
        "--budget 1 --rule margins": "unknown rule 'margins'; did you mean 'margin'?",
        "--budget much": "Invalid value for '--budget'",
        "--target-accuracy 0.5": "is in per cent, above 1 and up to 100",
        "--target-accuracy 100": "no thresholds reach 100 %: the most on these images is",
        "--budget 1 --workers -1": "Invalid value for '--workers'",
        f"--budget 1 --output {IMAGE}/new": "0.png is a file",
        "--budget 1 --output new --sizes 64": "one level cannot stop early; give --sizes of two or",
        "--budget 1 -m srnn_test_resnet": "is no folder of a saved model: give --output FOLDER",
        "--budget 1 -m owner/name": "is no folder of a saved model: give --output FOLDER",
        "--budget 1 -m ''": "is no folder of a saved model: give --output FOLDER",
    },
    "pareto data/test -m b": {
        "--output no/where.csv": "--output: no folder no to write to",
        "--output data": "--output: cannot write data: it is a folder",
        "--plot no/where.png": "--plot: no folder no to write to",
        "--rule margins": "unknown rule 'margins'; did you mean 'margin'?",
    },
    "evaluate": {
        "nowhere a": "no folder 'nowhere'; give a folder of class folders",
        "data a": "data holds the splits test: choose one (--split test)",
        "data/test srnn_resnet_18": "unknown model 'srnn_resnet_18'; did you mean 'srnn_resnet18'",
        "data/test 'nowhere/at all'": "nowhere/at all",
        "data/test a a": "model 'a' is named twice",
        "data/test a --variants vanilla,vanilla": "variant 'vanilla' is named twice",
        "data/test a --variants half_gru": "are of variant 'vanilla'; asked for 'half_gru'",
        "data/test a --base srnn_resnet_18": "unknown model 'srnn_resnet_18'",
        "data/test a --data-dir x": "data_dir goes with the name of a data set",
        "data/test a --output a/config.json": "--output: cannot write results to a/config.json: it is a f",
    },
    "curves": {
        "name=nowhere": "no folder 'nowhere'; give the folder of a training run",
        ". --output plot.xyz": f"--output: {PLOT_LISTED}",
        ". --line 28.26": "--line takes a name and an error in per cent, such as 'logit ensemble=28.26'",
        ". --line a=high": "got 'a=high'",
        ". --line a=101": "got 'a=101'",
        ". --line a=nan": "got 'a=nan'",
    },
    "list": {
        "resnet1800": "no model matches 'resnet1800'; `srnn-zoo list` gives all names",
        "--pretrained zzz": "no weights match 'zzz'; `srnn-zoo list --pretrained`",
        "--variants half": "--variants takes no pattern",
    },
    "info": {
        "srnn_resnet_18": "did you mean 'srnn_resnet18'",
        "srnn_inception_v3 --sizes 32,64": "cannot read a level of 32 x 32; it was made for 299 x 299",
    },
    "classify": {IMAGE: "No such command"},
}
REFUSED |= {command: {"": "Missing argument"} for command in ("predict ", "evaluate data/test", "curves ")}
CASES = [(f"{start} {rest}", reason) for start, rows in REFUSED.items() for rest, reason in rows.items()]


@pytest.mark.parametrize(("command", "reason"), CASES)
def test_a_mistake_is_refused_in_one_sentence(command, reason, place, monkeypatch):
    monkeypatch.chdir(place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert reason in refused(*shlex.split(command))
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_ctrl_c_while_modules_load_is_one_line(tmp_path):
    """Loaders of compiled modules answer it with an error of their own, as this timm does."""
    interrupted = "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise ImportError"
    (tmp_path / "timm.py").write_text(f"import os, signal\n{interrupted}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([*COMMAND, "info", "srnn_resnet18"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "srnn-zoo: interrupted\n")
