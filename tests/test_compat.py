"""The torchvision guard and the allocator, in fresh processes: what they do depends on what was done before."""

import platform
import subprocess
import sys

import pytest

GUARD = "from diffpo.compat import ensure_torchvision; status = ensure_torchvision()"


def run(*lines: str) -> str:
    """Run `lines` in a fresh interpreter and return the last line that they printed."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_torchvision_imports_after_the_guard_and_a_second_call_says_the_same():
    said = run(GUARD, "import torchvision, torchvision.transforms.v2", "print(status, ensure_torchvision())")
    assert said in {"native native", "mended mended"}


def test_transformers_and_diffusers_import_after_the_guard():
    said = run(
        GUARD, "from transformers import CLIPModel", "from diffusers import UNet2DConditionModel", "print('both')"
    )
    assert said == "both"


def test_a_mended_operator_has_no_kernel():
    """Where the binary could not load, its operators must refuse and not return something."""
    said = run(
        GUARD,
        "import torch, torchvision",
        "try:",
        "    torchvision.ops.nms(torch.tensor([[0., 0., 1., 1.]]), torch.ones(1), 0.5)",
        "    print(status, 'ran')",
        "except (RuntimeError, NotImplementedError):",
        "    print(status, 'refused')",
    )
    assert said in {"native ran", "mended refused"}


def test_somebody_came_first():
    stand_in = "import sys, types; sys.modules['torchvision'] = types.ModuleType('torchvision')"
    assert run(stand_in, GUARD, "print(status)") == "imported"


def test_without_torchvision_nothing_happens_and_torch_stays_out():
    """A spec finder that knows no torchvision stands for an environment without it."""
    hide = "import importlib.util as u; find = u.find_spec"
    hidden = "u.find_spec = lambda name, *rest: None if name == 'torchvision' else find(name, *rest)"
    assert run(hide, hidden, GUARD, "import sys; print(status, 'torch' in sys.modules)") == "absent False"


def test_importing_compat_does_not_import_torch():
    assert run("import sys, diffpo.compat", "print('torch' in sys.modules)") == "False"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_is_kept():
    """Each page that the system has to map in again is a fault: 6,144 of 4 KiB in a block of 24 MiB."""
    count = "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt"
    use = "use = lambda: [b'x' * (24 * 2**20) for _ in range(4)]"
    again = ("use()", "before = faults()", "use()", "print(faults() - before)")
    told = ("import resource", "from diffpo.compat import keep_freed_memory", "keep_freed_memory()")
    assert int(run(*told, count, use, *again)) < 100
