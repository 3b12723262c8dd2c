"""Damaged and foreign files are refused by name, a killed save leaves the old model, and no pickle runs code."""

import json
import os
import pickle
import tempfile
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from srnn_zoo import SRNN, WeightsUnavailableError, create_model
from srnn_zoo.weights import hub as hub_module
from tests.conftest import files, same_weights

FILE = "model.safetensors"


def change(saved, edit):
    """Edit the config, or put the text in its place that `edit` returns."""
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(edit(config) or json.dumps(config))


def exit_codes(*functions):
    """Run them at once, each in a process of its own."""
    children = [get_context("fork").Process(target=function) for function in functions]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_flipped_bit_never_changes_what_is_loaded(saved, model):
    """Either it is found, or it has only spoilt the name under which the checksum is kept."""
    sound = (saved / FILE).read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    found = 0
    places = [*range(8, header, 97), *range(header, len(sound), len(sound) // 8), len(sound) - 1]
    for at in places:
        (saved / FILE).write_bytes(flipped(sound, at))
        for load in (SRNN.from_pretrained, lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True)):
            try:
                loaded = load(saved)
            except (WeightsUnavailableError, ValueError) as error:
                found += str(saved) in str(error)
            else:
                assert same_weights(loaded, model)
                assert at < header
    assert found >= 2 * (len(places) - 2)


def test_a_truncated_file_and_that_of_another_model_are_refused(saved, tmp_path):
    whole = (saved / FILE).read_bytes()
    for kept in (0, 5, 1000, 100_000):
        (saved / FILE).write_bytes(whole[:kept])
        with pytest.raises(WeightsUnavailableError, match=r"cannot read the weights in .*model\.safetensors"):
            SRNN.from_pretrained(saved)
    create_model("srnn_test_resnet", num_classes=3).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / FILE).replace(saved / FILE)
    with pytest.raises(WeightsUnavailableError, match="the config of one model and the weights of another: save it"):
        SRNN.from_pretrained(saved)


@pytest.mark.parametrize("rot", [lambda data: flipped(data, 200_000), lambda data: data[:100_000]])
def test_damage_on_the_way_is_found_and_mended_by_force_download(rot, published, cache, model):
    published.fault(FILE, rot=rot)
    with pytest.raises(WeightsUnavailableError, match=r"model\.safetensors"):
        SRNN.from_pretrained("ada/net", cache_dir=cache)
    published.faults.clear()
    assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache, force_download=True), model)


class Trap(str):
    """A path whose pickle makes a folder there when it is opened."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


@pytest.mark.parametrize("save", [pickle.dump, lambda trap, file: torch.save({"state_dict": trap}, file)])
def test_a_pickle_that_runs_code_is_refused_wherever_it_lies(save, saved, hub, cache, tmp_path):
    marker, file = tmp_path / "ran", saved / "pytorch_model.bin"
    with file.open("wb") as opened:
        save(Trap(marker), opened)
    (saved / FILE).unlink()
    hub.add_repo("ada/trap", files(saved))
    for load in (
        lambda: SRNN.from_pretrained(saved),
        lambda: SRNN.from_pretrained("ada/trap", cache_dir=cache),
        lambda: create_model("srnn_test_resnet", weights=file),
        lambda: create_model("srnn_test_resnet", pretrained=True, pretrained_backbone=file),
    ):
        with pytest.raises(WeightsUnavailableError, match=r"cannot (read|load) the weights .*pytorch_model\.bin"):
            load()
    assert not marker.exists()


# Weights and configs that do not fit


def test_all_missing_unexpected_and_wrongly_shaped_keys_are_listed(saved):
    state = load_file(saved / FILE)
    for name in ("backbone.conv1.0.weight", "cell.recurrent.weight"):
        del state[name]
    state |= {"cell.extra": torch.zeros(1), "more": torch.zeros(1), "fc.bias": torch.zeros(4)}
    save_file(state, saved / FILE)
    missing = r"missing: backbone\.conv1\.0\.weight, cell\.recurrent\.weight; unexpected: cell\.extra, more"
    for load in (
        lambda: SRNN.from_pretrained(saved),
        lambda: timm.create_model(f"local-dir:{saved}", pretrained=True),
        lambda: SRNN.from_pretrained(saved, num_classes=5),
    ):
        with pytest.raises(ValueError, match=f"do not fit this model; {missing}"):
            load()
    save_file(state | {f"more.{number}": torch.zeros(1) for number in range(23)}, saved / FILE)
    shapes = r"wrongly shaped: fc\.bias \(4,\) for \(3,\)"
    with pytest.raises(ValueError, match=rf"{missing}, more\.0, .*more\.\d+ and 5 more; {shapes}"):
        SRNN.from_pretrained(saved)


def test_what_another_program_leaves_out_is_understood(saved, model):
    state = load_file(saved / FILE)
    save_file(state, saved / FILE, metadata={"format": "pt"})  # without a checksum
    change(saved, lambda config: config.update(label_names=["old", "names"]))
    loaded = SRNN.from_pretrained(saved)
    assert same_weights(loaded, model)
    assert "label_names" not in loaded.pretrained_cfg
    save_file({key: value for key, value in state.items() if not key.startswith("fc.")}, saved / FILE)
    with pytest.raises(ValueError, match=r"they have no classifier: .*; missing: fc\.weight, fc\.bias"):
        SRNN.from_pretrained(saved)
    assert SRNN.from_pretrained(saved, num_classes=5).num_classes == 5


def test_other_options_than_the_saved_ones_are_refused_where_weights_do_not_fit(saved):
    for variant in ("vanilla", "mgu"):  # the second has the same keys and shapes
        with pytest.raises(ValueError, match=f"are of variant 'half_gru'; asked for '{variant}'"):
            SRNN.from_pretrained(saved, variant=variant)
        with pytest.raises(ValueError, match=f"are of variant 'half_gru'; asked for '{variant}'"):
            create_model("srnn_test_resnet", weights=saved / FILE, variant=variant)
    with pytest.raises(ValueError, match="are of srnn_test_resnet; asked for srnn_resnet18"):
        create_model("srnn_resnet18", weights=saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(srnn=None), "is damaged: srnn is None"),
        (lambda c: c["srnn"].update(format_version="2"), "is damaged: format_version is '2'"),
        (lambda c: c.update(model_args=None), "is damaged: model_args is None"),
        (lambda c: c.update(num_classes="3"), "is damaged: num_classes is '3'"),
        (lambda c: c["pretrained_cfg"].update(foo=1), r"that timm .* does not know: foo; pip install -U timm"),
        (lambda c: c["srnn"].update(format_version=2, srnn_zoo_version="9.0"), "srnn-zoo 9.0; .* pip install -U srnn-"),
        (lambda c: '{"num_classes": 3}', "is no timm config: it names no architecture"),
        (lambda c: '["a list"]', "is no timm config"),
        (lambda c: '{"architecture": "srnn_te', r"config\.json is damaged: "),
        (lambda c: c.update(architecture="resnet18"), r"holds timm's resnet18, no SRNN: .*pretrained_backbone=FILE"),
        (lambda c: c.update(architecture="srnn_resnet_of_2030"), "holds srnn_resnet_of_2030, which timm .* not know"),
        (lambda c: c["model_args"].update(variant="mine"), "unknown variant 'mine'"),
        (lambda c: c["model_args"].update(scales=[1.0, 0.5]), "scales must grow"),
        (lambda c: c["model_args"].update(depth_of_sea=3), "depth_of_sea"),
    ],
)
def test_a_config_of_something_else_says_what_it_is(edit, message, saved):
    change(saved, edit)
    with pytest.raises((ValueError, TypeError), match=message):
        SRNN.from_pretrained(saved)


def test_a_newer_config_is_refused_through_timm_too(saved, monkeypatch):
    change(saved, lambda config: config["srnn"].update(format_version=2))
    monkeypatch.setattr("srnn_zoo.weights.saved.DISTRIBUTION", "no-such-package")
    with pytest.raises(ValueError, match=r"has format 2, .* this is \(a checkout that is not installed\), which reads"):
        timm.create_model(f"local-dir:{saved}", pretrained=True)


def test_an_incomplete_folder_and_a_file_alone_are_named(saved):
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"saved is no saved model: it has no config\.json"):
        SRNN.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: give its folder, or use"):
        SRNN.from_pretrained(saved / FILE)


# Saving


def test_a_save_that_is_refused_leaves_the_old_model(saved, model):
    before = files(saved)
    for options, message in [
        ({"label_names": ["a", "b"]}, "label_names must name each of the 3 classes, all different; got 2 names"),
        ({"label_names": ["a", "a", "b"]}, "got 3 names, 2 of them different"),
        ({"label_names": "abc"}, "label_names must be a list of texts, one a class, in their order; got 'abc'"),
        ({"label_names": {0: "a", 1: "b", 2: "c"}}, "must be a list of texts"),
        ({"label_names": [1, 2, 3]}, "must be a list of texts"),
        ({"recipe": object()}, "recipe cannot be saved as JSON: <object object"),
        ({"recipe": {"lr": float("nan")}}, r"recipe\['lr'\] cannot be saved as JSON: nan"),
        ({"metrics": {"top1": 91.2}}, "metrics are numbers by data set"),
        ({"metrics": {"iris": {"top1": "high"}}}, "metrics are numbers by data set"),
        ({"dataset": {"name": "iris"}}, "dataset must be a name, or a list of names"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(saved, **options)
    assert files(saved) == before


@pytest.mark.parametrize("variant", ["half_gru", "gru"])
@pytest.mark.parametrize("moment", ["write_weights", "write_card", "README.md", "config.json", FILE])
def test_a_save_that_is_killed_leaves_a_whole_model(moment, variant, saved, model, monkeypatch):
    """Killed in a function, or before a file is put in its place: the old model is there, or the new; no mixture."""
    before = (saved / FILE).read_bytes()
    new = create_model("srnn_test_resnet", num_classes=3, variant=variant)

    def replace(source, target):
        if target.name == moment:
            os._exit(9)
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if hasattr(hub_module, moment):
            patch.setattr(hub_module, moment, lambda *args: os._exit(9))
        assert exit_codes(lambda: new.save_pretrained(saved, label_names=["c", "b", "a"])) == [9]
    assert (saved / FILE).read_bytes() == before
    has_new_config = moment == FILE
    for loaded in (SRNN.from_pretrained(saved), timm.create_model(f"local-dir:{saved}", pretrained=True)):
        assert same_weights(loaded, new if has_new_config else model)
        assert loaded.pretrained_cfg.get("label_names") == (["c", "b", "a"] if has_new_config else None)
    [leftover] = saved.glob(".*")
    os.utime(leftover, (0, 0))
    model.save_pretrained(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", FILE]
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1  # others may read them all, or none


def test_a_cache_that_cannot_be_written_serves_what_it_has(published, model, saved):
    published.add_repo("ada/other", files(saved))
    with tempfile.TemporaryDirectory() as name, ExitStack() as undo:  # pytest's own folders are closed to other users
        cache = Path(name)
        SRNN.from_pretrained("ada/net", cache_dir=cache)
        for path in [cache, *cache.rglob("*")]:
            if not path.is_symlink():
                undo.callback(path.chmod, path.stat().st_mode)
                path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:  # root may write everywhere
            os.seteuid(65534)
            undo.callback(os.seteuid, 0)
        assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache), model)
        with pytest.raises(WeightsUnavailableError, match=r"cannot write .* cache_dir= or HF_HOME sets another place"):
            SRNN.from_pretrained("ada/other", cache_dir=cache)
