"""What every test stands on: no network, its own caches, few threads, torchvision made safe before it is imported."""

import functools
import gc
import os
import tempfile

SCRATCH = tempfile.TemporaryDirectory(prefix="diffpo-tests-")  # removed when the process ends

# Before any import that reads them; processes that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = os.path.join(SCRATCH.name, "huggingface")
os.environ["DIFFPO_CACHE"] = os.path.join(SCRATCH.name, "cache")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(SCRATCH.name, "inductor")
os.environ.setdefault("TRITON_CACHE_DIR", os.path.join(SCRATCH.name, "triton"))
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # beside other test processes one thread is faster than many
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

from diffpo.compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: kernels run on a CPU, in numpy
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none; files with slow tests come first, so that no process ends alone."""
    if not torch.cuda.is_available() and not os.environ.get("DIFFPO_REHEARSE_GPU"):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Let the garbage collector pass over what was imported and collected, which stays until the process ends."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Folders of the tiny pipelines: `pipelines("sdxl")` saves one on its first call."""
    import tiny

    root = tmp_path_factory.mktemp("pipelines")

    @functools.cache
    def folder(name):
        return tiny.save_pipeline(name, root / name)

    return folder
