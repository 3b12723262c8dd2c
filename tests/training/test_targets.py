"""What a data set gives: every target is a class of the model, or the run ends with the image that has another."""

import gc

import pytest
import torch

from srnn_zoo.training import Recipe, fit, recipe

from .trainings import images, tiny

SMALL = recipe("finetune", epochs=1, batch_size=4)


def given(target):
    """Eight images with the targets that a function gives."""
    return [(image, target(index)) for index, (image, _) in enumerate(images())]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chosen", [SMALL, recipe("probe", epochs=1)], ids=["trained", "probed"])
def test_targets_that_are_no_classes_are_refused_in_one_sentence_with_their_image(chosen, workers):
    targets = {
        r"0\.5": lambda index: 0.5,
        r"tensor\(0\.5": lambda index: torch.tensor(0.5),
        "4": lambda index: 1 + index % 4,
        "-100": lambda index: -100,
        r"tensor\(\[1\., 0\., 1\.": lambda index: torch.tensor([1.0, 0, 1, 0]),
        "'cat'": lambda index: "cat",
    }
    for got, target in targets.items() if workers == 0 else [*targets.items()][2:3]:
        reason = rf"^image \d: the target must be the index of one of the model's 4 classes, from 0; got {got}"
        for train, val in ((given(target), images()), (images(), given(target))):
            with pytest.raises(ValueError, match=reason) as error:
                fit(tiny(), train, val, chosen, workers=workers, progress=False, cpu=True)
            assert "\n" not in str(error.value)
    del error
    gc.collect()  # the workers of loaders that were given up


def test_targets_of_torchs_and_numpys_whole_numbers_are_classes_and_a_file_is_named():
    for target in (torch.tensor, lambda index: torch.tensor(index).numpy()[()], bool):
        fit(tiny(num_classes=8), given(target), images(2), SMALL, workers=0, cpu=True)
    named = images()
    named.samples = [(f"photos/{index}.jpg", index % 4) for index in range(8)]
    with pytest.raises(ValueError, match=r"^photos/3.jpg: the target must be the index .* from 0; got tensor\(3\)"):
        fit(tiny(num_classes=3), given(lambda index: 0), named, SMALL, workers=0, cpu=True)


def test_few_images_make_smaller_batches_and_one_line_says_so(caplog):
    for settings, size in (({}, 10), ({"grad_accum_steps": 4}, 8), ({"mixup": 0.2, "grad_accum_steps": 2}, 8)):
        caplog.clear()
        chosen = Recipe(**{"epochs": 1, "batch_size": 64, "lr": 1e-3, **settings})
        assert len(fit(tiny(), images(10), images(2), chosen, workers=0, cpu=True).history) == 1
        assert caplog.text.count(f"there are only 10 training images: batches of {size} instead of 64") == 1
    with pytest.raises(ValueError, match="batch_size must be no more than the 3 training images; got 64"):
        fit(tiny(), images(3), images(2), Recipe(batch_size=64, grad_accum_steps=4), workers=0, cpu=True)
