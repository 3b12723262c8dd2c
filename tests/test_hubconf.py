"""torch.hub loads an SRNN from a repository that is not installed."""

import functools
import inspect
import json
import os
import runpy
import subprocess
import sys

import pytest
import torch

import srnn_zoo
from srnn_zoo.models import factories

from .conftest import ROOT

ENTRY_POINTS = sorted(["srnn", *(name for name in vars(factories) if name.startswith("srnn_"))])
load = functools.partial(torch.hub.load, str(ROOT), source="local")
HUBCONF = runpy.run_path(str(ROOT / "hubconf.py"))


@pytest.mark.slow
def test_torch_hub_lists_helps_and_loads_without_the_package_installed(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "owner_srnn-zoo_main").symlink_to(ROOT)  # as torch.hub leaves a repository it has downloaded
    # this process can import everything that is installed but the package, whichever way that is installed
    code = f"""import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in f"{{finder!r}}"]
sys.path[:] = [path for path in sys.path if path not in ("", {str(ROOT)!r})]
sys.path_importer_cache.clear()
import importlib.util, json, torch
facts = {{"installed": importlib.util.find_spec("srnn_zoo") is not None}}
repo, options = "owner/srnn-zoo:main", dict(skip_validation=True, trust_repo=True)
facts["list"] = torch.hub.list(repo, **options)
facts["help"] = torch.hub.help(repo, "srnn", **options)
model = torch.hub.load(repo, "srnn", "test_resnet", variant="vanilla", num_classes=3, **options)
facts["model"] = [type(model).__module__, model.variant, list(model(torch.rand(2, 3, 96, 96)).shape)]
facts["file"] = sys.modules["srnn_zoo"].__file__
facts["loaded"] = sorted(sys.modules)
print(json.dumps(facts))
"""
    environment = {**os.environ, "TORCH_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert sorted(facts["list"]) == ENTRY_POINTS  # which are documented, and nothing else leaks
    assert all("pretrained:" in (inspect.getdoc(HUBCONF[name]) or "") for name in ENTRY_POINTS)
    assert facts["help"].startswith("SRNN over any timm backbone.")
    if facts.pop("installed"):
        pytest.skip("srnn_zoo is installed in site-packages itself")
    assert facts["model"] == ["srnn_zoo.models.srnn", "vanilla", [2, 3]]
    assert set(HUBCONF["dependencies"]) <= set(facts["loaded"])
    assert facts["file"] == str(tmp_path / "hub" / "owner_srnn-zoo_main" / "srnn_zoo" / "__init__.py")


@pytest.mark.parametrize("name", ["srnn_resnet18", "srnn resnet18", "srnn srnn_resnet18", "srnn resnet18.a1_in1k"])
def test_an_entry_point_is_the_factory_of_its_name_and_any_backbone_has_one(name):
    model = load(*name.split(), variant="vanilla", scales=(0.25, 1.0), num_classes=3)
    assert isinstance(model, srnn_zoo.SRNN)
    assert model.pretrained_cfg["architecture"] == "srnn_resnet18"
    assert (model.variant, model.scales, model.num_classes) == ("vanilla", (0.25, 1.0), 3)


def test_pretrained_weights_come_with_it_and_unknown_names_raise_torch_hubs_error_or_ours_with_the_closest(lite0):
    assert torch.equal(load("srnn", "tf_efficientnet_lite0", pretrained=True).fc.weight, lite0.fc.weight)
    with pytest.raises(RuntimeError, match="Cannot find callable srnn_resnet19 in hubconf"):
        load("srnn_resnet19")
    with pytest.raises(ValueError, match="unknown model 'srnn_resnet19'; did you mean"):
        load("srnn", "resnet19")
