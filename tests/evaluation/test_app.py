"""The page about one image: what stands on it, where the image stops, and in a real browser what visitors do."""

import copy
import shutil

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo.datasets.images import ImageError
from srnn_zoo.evaluation import app
from srnn_zoo.evaluation.app import create_app, launch, look, render
from srnn_zoo.inference.early_exit import Anytime
from srnn_zoo.inference.exits import ScoreRule, exit_rule, stored_rule

from .conftest import FRUIT, pyramids


@pytest.fixture(scope="module")
def paths(fruit):
    return sorted(fruit.glob("*/*.png"))


@torch.no_grad()
def test_a_look_is_what_the_model_says_of_every_level_and_stops_where_anytime_stops(model, fruit, paths):
    levels, looks = pyramids(model, fruit), {path: look(model, path) for path in paths[:6]}
    for path, found in looks.items():
        wanted = torch.cat([step.logits for step in model.steps(levels[path])])
        torch.testing.assert_close(found.logits, wanted, rtol=1e-4, atol=1e-3)
        assert found.titles == ("32 × 32", "64 × 64")
        assert found.stops_at(None) == 1
    sure = sorted(found.probabilities[0].max().item() for found in looks.values())
    for rule in (f"confidence:{(sure[2] + sure[3]) / 2}", "margin:0.3", "entropy:0.4"):
        stops = [found.stops_at(rule) for found in looks.values()]
        assert stops == [Anytime(model, rule)(levels[path]).stopped_at.item() for path in looks]
        assert sum(stops) == 3 or not rule.startswith("confidence")
    found = looks[paths[0]]
    assert found.gmacs == pytest.approx((model.level_gmacs((32, 32)), sum(srnn_zoo.count_gmacs(model).levels)))


def calibrated(model):
    found = copy.copy(model)
    found.metadata = {"exit": {"rule": "margin", "thresholds": [0.25], "temperatures": [9.0, 2.0], "sizes": [32, 64]}}
    return found


@torch.no_grad()
def test_a_calibrated_model_stops_as_it_does_elsewhere_whatever_probabilities_are_shown(model, fruit, paths):
    net, levels = calibrated(model), pyramids(model, fruit)
    looks = [look(net, path) for path in paths[:8]]
    assert looks[0].temperatures == (1, 1)
    stops = [found.stops_at("margin:0.25") for found in looks]
    assert stops == [Anytime(net)(levels[path]).stopped_at.item() for path in paths[:8]]
    assert stops != [look(model, path).stops_at("margin:0.25") for path in paths[:8]]


def test_until_a_control_is_moved_a_calibrated_model_stops_by_its_own_thresholds(model):
    net = calibrated(model)
    for thresholds in ([0.2468], [0.2468, 0.9], [2.0, 0.1]):
        net.metadata["exit"]["thresholds"] = thresholds
        rule, value = app._start(net)
        found = exit_rule(app._rule_text(net, rule, value))
        wanted = stored_rule(net)
        assert isinstance(found, ScoreRule)
        assert (type(found), found.thresholds) == (type(wanted), wanted.thresholds if len(thresholds) > 1 else 0.2468)
        assert app._rule_text(net, rule, 0.5) == "margin:0.5"
        assert app._rule_text(net, "entropy", value) == f"entropy:{value}"
    assert app._rule_text(model, "confidence", 0.8) == "confidence:0.8"


def test_the_page_names_the_answer_where_it_stops_and_what_that_saves(model, paths, monkeypatch):
    maps = [torch.ones(1, 2, 2), torch.ones(1, 4, 4)]  # the features of this model speak against its answers
    monkeypatch.setattr("srnn_zoo.evaluation.app.activation_maps", lambda *_: maps)
    found = look(model, paths[0], name="<b>.png")
    page = render(found, "confidence:0")
    first, last = (FRUIT[int(answer)] for answer in found.logits.argmax(dim=1))
    saved = 100 * (1 - found.gmacs[0] / found.gmacs[1])
    assert f'<div class="srnn-answer">{first}, ' in page
    assert f"Stops after 32 × 32: {found.gmacs[0]:.3f} of {found.gmacs[1]:.3f} GMACs, {saved:.0f} % saved." in page
    assert page.count("not needed") == 1
    assert "<b>.png" not in page
    whole = render(found)
    assert f'<div class="srnn-answer">{last}, ' in whole
    assert "All levels are read" in whole
    assert all(picture in whole for picture in found.warm)
    assert all(picture in render(found, maps=False) for picture in found.pictures)
    assert set(found.warm).isdisjoint(found.pictures)


def test_an_image_in_memory_and_a_cell_that_answers_once_have_a_page(make, paths):
    once = look(make("concat"), Image.open(paths[0]))
    assert (once.first, len(once.logits), once.stops_at("confidence:0")) == (1, 1, 1)
    assert "This model answers after the last level only." in render(once, "confidence:0")


def test_what_is_no_image_or_far_too_large_is_refused_in_one_sentence(model, tmp_path):
    (tmp_path / "note.jpg").write_text("no image")
    Image.new("1", (20000, 10000)).save(tmp_path / "huge.png")  # 200 megapixels in 25 kB
    for name, reason in (("note.jpg", "not an image that Pillow can read"), ("huge.png", "decompression bomb")):
        with pytest.raises(ImageError, match=f"^{name}: .*{reason}"):
            look(model, tmp_path / name)
    with pytest.raises(ImageError, match="no such file"):
        look(model, tmp_path / "none.png")


def test_models_that_it_is_not_for_and_a_missing_package_are_named(model, monkeypatch):
    for change, reason in (
        (lambda net: net.train(), r"call model.eval\(\) first"),
        (lambda net: net.reset_classifier(0), "no classifier"),
        (lambda net: net.metadata.update(task="regression"), "the app is about one class an image"),
    ):
        changed = copy.deepcopy(model)
        change(changed)
        with pytest.raises(ValueError, match=reason):
            look(changed, "a.png")
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ImportError, match=r'the app needs gradio: pip install "srnn-zoo\[app\]"'):
        create_app(model)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def address(model):
    pytest.importorskip("gradio", reason='the app needs gradio: pip install "srnn-zoo[app]"')
    _, address, _ = launch(calibrated(model), prevent_thread_lock=True, quiet=True)
    yield address
    __import__("gradio").close_all()


@pytest.mark.slow
def test_visitors_in_a_browser_see_their_own_images_and_what_was_wrong_with_a_file(address, browser, paths, tmp_path):
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "note.jpg").write_text("no image")
    visitors = [browser.new_context(viewport={"width": width, "height": 800}).new_page() for width in (1280, 390)]
    outside = []
    for page in visitors:
        page.on("request", lambda request: outside.append(request.url))
        page.goto(address)
        page.wait_for_selector("input[type=file]", state="attached")
        assert page.locator("input[type=number]").input_value() == "0.25"  # as the model was calibrated
    visitors[0].set_input_files("input[type=file]", tmp_path / "note.txt")
    visitors[0].get_by_text("Only image/* allowed").first.wait_for()
    visitors[0].set_input_files("input[type=file]", tmp_path / "note.jpg")
    visitors[0].get_by_text("note.jpg: not an image that Pillow can read").wait_for()
    visitors[0].get_by_label("Remove Image").last.click()
    visitors[0].get_by_text("Drop an image, and see").wait_for()
    for page, path in zip(visitors, (paths[0], paths[-1]), strict=True):  # both at once
        page.set_input_files("input[type=file]", path)
    for page, path in zip(visitors, (paths[0], paths[-1]), strict=True):
        page.wait_for_selector(".srnn-level")
        assert page.locator(".srnn-level img").first.get_attribute("alt") == f"{path.name} at 32 × 32"
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    field = visitors[0].locator("input[type=number]")
    for value, words in (("0", "Stops after 32 × 32"), ("1", "All levels are read")):
        field.fill(value)
        field.press("Enter")
        visitors[0].get_by_text(words).wait_for()
    assert all(url.startswith((address, "data:", "blob:")) for url in outside)
