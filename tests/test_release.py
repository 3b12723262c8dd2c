"""What publishes a version: one version everywhere, a README that works on PyPI, workflows that run what make has."""

import re
import runpy
import shutil

import pytest
import yaml

import srnn_zoo

from .conftest import ROOT

RELEASE = runpy.run_path(str(ROOT / ".github" / "prepare_release.py"))
FILES = ("srnn_zoo/__init__.py", "CITATION.cff", "CHANGELOG.md", "setup.cfg", "README.md")


@pytest.fixture
def checkout(tmp_path):
    """The files that a release reads, with a date in the CHANGELOG."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    dated = changelog.read_text().replace(f"## [{srnn_zoo.__version__}] - unreleased", "## [0.1.0] - 2027-01-31")
    changelog.write_text(dated)
    return tmp_path


def test_the_package_its_citation_and_its_changelog_have_one_version():
    found = RELEASE["versions"](ROOT)
    assert found["CITATION.cff"] == found["srnn_zoo/__init__.py"] == srnn_zoo.__version__
    newest = re.search(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest[1] in (srnn_zoo.__version__, "Unreleased")


def test_a_release_names_the_repository_and_leaves_no_relative_link(checkout):
    RELEASE["main"](f"v{srnn_zoo.__version__}", "ada/srnn-zoo", checkout)
    readme, config = (checkout / "README.md").read_text(), (checkout / "setup.cfg").read_text()
    assert "owner/srnn-zoo" not in readme + config
    assert "Source = https://github.com/ada/srnn-zoo\n" in config
    links = re.findall(r"\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)", readme)
    assert links
    assert all(re.match(r"https?://|#|mailto:", one or other) for one, other in links)
    assert f"](https://github.com/ada/srnn-zoo/raw/v{srnn_zoo.__version__}/docs/demo.jpg)" in readme
    assert f"](https://github.com/ada/srnn-zoo/blob/v{srnn_zoo.__version__}/LICENSE)" in readme


def test_a_tag_of_another_version_is_refused(checkout):
    with pytest.raises(
        SystemExit, match=r"the tag is v9.9.9, but srnn_zoo/__init__.py has 0.1.0, CITATION.cff has 0.1.0"
    ):
        RELEASE["main"]("v9.9.9", "ada/srnn-zoo", checkout)
    shutil.copy(ROOT / "CHANGELOG.md", checkout)
    with pytest.raises(SystemExit, match=r"the tag is v0.1.0, but CHANGELOG.md has no dated heading"):
        RELEASE["main"]("v0.1.0", "ada/srnn-zoo", checkout)


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = {entry["step"] for entry in workflow["jobs"]["make"]["strategy"]["matrix"]["include"]}
    own = re.search(r"for step in (.+); do", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert set(own[1].split()) <= steps
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert steps <= set(targets[1].split())
