"""The package as a whole: imports without extras, light at the door, and the wheel carries what the demo needs."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import diffpo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

IMPORT_ALL_WITHOUT = """
import importlib, pkgutil, sys

sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: cannot be imported, and find_spec does not see it
import diffpo

names = [module.name for module in pkgutil.walk_packages(diffpo.__path__, "diffpo.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def python(*arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a fresh interpreter and return what it printed."""
    line = [sys.executable, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.strip()


def test_the_version_is_one():
    assert str(Version(diffpo.__version__)) == diffpo.__version__


def test_every_module_imports_without_the_extras():
    extras = ["open_clip", "xformers", "bitsandbytes", "wandb", "trackio", "tensorboard", "deepspeed"]
    assert {"scorers", "xformers", "bnb", "wandb", "trackio", "tensorboard", "dev"} == set(
        PROJECT["project"]["optional-dependencies"]
    ), "an extra came or went: block its module here too"
    modules = [path for path in (ROOT / "diffpo").rglob("*.py") if path != ROOT / "diffpo" / "__init__.py"]
    assert int(python("-c", IMPORT_ALL_WITHOUT, *extras).splitlines()[-1]) == len(modules)


@pytest.mark.parametrize(
    "module", ["diffpo", "diffpo.errors", "diffpo.compat", "diffpo.commands.app", "diffpo.__main__"]
)
def test_the_door_is_light(module):
    """Every `--help` answers in half a second: what it imports must not draw in torch and its friends."""
    heavy = "torch diffusers transformers datasets accelerate peft open_clip scipy matplotlib jinja2 pandas pyarrow"
    code = f"import sys, {module}; print([name for name in {heavy.split()} if name in sys.modules])"
    assert python("-c", code) == "[]"


def test_the_pins_cover_the_dependencies_and_satisfy_them():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in "#"]
    version = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    project = PROJECT["project"]
    needed = project["dependencies"] + [r for name in ("dev", "bnb", "tensorboard") for r in extras(name)]
    for requirement in map(Requirement, needed):
        pinned = version.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"constraints.txt has no pin for {requirement.name}"
        assert requirement.specifier.contains(pinned), f"{requirement} does not admit the pinned {pinned}"


def extras(name: str) -> list[str]:
    """List the requirements of one extra."""
    return PROJECT["project"]["optional-dependencies"][name]


@pytest.mark.parametrize("profile", ["ddp", "fsdp2", "zero2"])
def test_accelerate_reads_the_profiles(profile):
    """accelerate's own reader refuses unknown keys; these must not name a precision, which is the run's to choose."""
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / "configs" / "accelerate" / f"{profile}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}[profile]
    assert config.num_processes > 1
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["mixed_precision"] == "no"


@pytest.mark.slow
def test_the_wheel_carries_the_world_and_the_configs(tmp_path):
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    in_tree = {
        f"diffpo/{path.relative_to(ROOT)}"
        for folder in ("configs", "assets/shapes", "assets/moving", "assets/users", "assets/subject")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "diffpo").rglob("*.py")}
    assert "diffpo/configs/shapes-dpo.yaml" in names
    assert any(name.startswith("diffpo/assets/shapes/") and name.endswith(".safetensors") for name in names)
    assert not (in_tree | sources) - names
    assert not {name for name in names if name.startswith(("tests/", "scripts/", "runs/"))}
    site = tmp_path / "site"
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    loading = (
        "import diffpo, torch\n"
        f"assert diffpo.__file__.startswith({str(site)!r})\n"
        "from diffpo.config.run import load_config\n"
        "from diffpo.data.splits import load_splits\n"
        "from diffpo.models.load import load\n"
        "config = load_config('configs/shapes-dpo.yaml')\n"
        "assert len(load_splits(config.data).train) >= 2000\n"
        "policy, reference = load(config.model, torch.float32, needs_reference=True)\n"
        "assert policy.process.prediction == 'eps' and reference is not None\n"
    )
    python("-c", loading, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)})
