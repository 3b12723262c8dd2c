"""What needs no model imports neither torch nor timm, so that it answers at once."""

import pytest

from .command import python

HEAVY = "torch torchvision timm numpy scipy matplotlib PIL huggingface_hub asyncio tqdm"
CODE = f"""import sys
from srnn_zoo.cli import main
try:
    main()
finally:
    print("imported:", *sorted(sys.modules.keys() & set("{HEAVY}".split())))
"""


def complete(shell, line):
    """What a shell sets when it asks how a line may go on."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_TYPER_COMPLETE_ARGS": line}
    return {"_SRNN_ZOO_COMPLETE": f"complete_{shell}", **words}


@pytest.mark.parametrize(
    ("line", "variables", "code", "said"),
    [
        ("--version", {}, 0, "srnn-zoo "),
        ("", {}, 0, "Usage: srnn-zoo [OPTIONS] COMMAND"),
        ("train --help", {}, 0, "Usage: srnn-zoo train"),
        ("trian", {}, 2, "srnn-zoo: No such command 'trian'. Did you mean 'train'? See `srnn-zoo --help`.\n"),
        ("train", {}, 2, " See `srnn-zoo train --help`.\n"),
        ("train data --nonsense", {}, 2, "srnn-zoo: No such option: --nonsense"),
        ("predict a.jpg --topk 0", {}, 2, "srnn-zoo: Invalid value for '--topk': "),
        ("--show-completion bash", {}, 0, "complete -o default -F _srnn_zoo_completion srnn-zoo"),
        ("", complete("bash", "srnn-zoo tr"), 0, "train"),
        ("", complete("zsh", "srnn-zoo predict --bat"), 0, "--batch-size"),
        ("", complete("bash", "srnn-zoo predict --import no_such_module --bat"), 0, "--batch-size"),
    ],
)
def test_what_needs_no_model_waits_for_no_library(monkeypatch, line, variables, code, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    done = python("-c", CODE, *line.split())
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert said in output
    assert "imported:\n" in done.stdout, output
    assert "Traceback" not in output
