"""The ComfyUI nodes by their interface: what ComfyUI reads of a class, and what it calls."""

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lvdm.errors import ConfigError
from tests.aicl.test_pipeline import PROMPT, pixels, tiny_pipeline

FOLDER = Path(__file__).resolve().parent.parent / "integrations" / "comfyui"
KNOWN = {"STRING", "INT", "FLOAT", "BOOLEAN", "IMAGE", "AICL_MODEL", "AICL_REFERENCES"}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The folder, imported as ComfyUI imports what lies in custom_nodes."""
    where = {"submodule_search_locations": [str(FOLDER)]}
    spec = importlib.util.spec_from_file_location("custom_node_aicl", FOLDER / "__init__.py", **where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_class_is_a_node(package):
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in package.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        names = [name for part in inputs.values() for name in part]
        method = inspect.signature(getattr(node, node.FUNCTION))
        assert set(names) == set(method.parameters) - {"self"} and node.CATEGORY == "AICL"
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) and set(node.RETURN_TYPES) <= KNOWN
        for kind, *options in (entry for part in inputs.values() for entry in part.values()):
            assert isinstance(kind, list) or kind in KNOWN  # a list is a choice
            assert all(isinstance(each, dict) for each in options)
        optional = inputs.get("optional", {})
        assert all(method.parameters[name].default is not inspect.Parameter.empty for name in optional)


def test_a_graph_of_nodes_gives_the_pipeline_s_video(package, tmp_path):
    nodes = {name: node() for name, node in package.NODE_CLASS_MAPPINGS.items()}
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    (model,) = nodes["LoadAICL"].load(str(tmp_path / "model"), "float32", False)
    (references,) = nodes["AICLReference"].add(1.0, images=pixels(0).float() / 255)
    pipe.encode_references(pixels(1), PROMPT).save(tmp_path / "r.safetensors")
    path = str(tmp_path / "r.safetensors")
    (references,) = nodes["AICLReference"].add(0.5, path=path, caption=" ", references=references)
    images, fps = nodes["AICLSample"].sample(model, PROMPT, 3, 2, 0.0, 1.0, 0, 0, 0, references=references)
    expected = pipe(PROMPT, references=[pixels(0), f"{path}@0.5"], seed=3, num_inference_steps=2, progress=False)
    assert images.dtype == torch.float32 and fps == pipe.defaults.save_fps
    assert torch.equal((images * 255).round().to(torch.uint8), expected[0])
    plain, _ = nodes["AICLSample"].sample(model, PROMPT, 3, 2, 0.0, 1.0, 0, 0, 0)
    assert not torch.equal(plain, images)
    for wrong in ({}, {"images": pixels(0), "path": path}):
        with pytest.raises(ConfigError, match="either images or a path"):
            nodes["AICLReference"].add(1.0, **wrong)


def test_importing_the_nodes_loads_no_network_library():
    code = "import sys; sys.path.insert(0, '.'); import comfyui; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, check=True, timeout=60)
