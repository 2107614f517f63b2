"""Import what commands import late, so that forks of this process need not: it is most of a tiny run's time."""

import importlib

from diffpo.compat import quiet_libraries

LATE = (
    "datasets",
    "diffusers.loaders.peft",
    "diffusers.models.unets",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "matplotlib.pyplot",
    "pandas",
    "peft",
    "diffpo.commands.app",
    "diffpo.commands.demo",
    "diffpo.commands.evaluate",
    "diffpo.commands.geneval",
    "diffpo.curate.build",
    "diffpo.curate.imports.run",
    "diffpo.curate.inspect",
    "diffpo.training.train",
)


def preload() -> None:
    """Import the commands and their libraries, which start no thread that a fork would miss."""
    quiet_libraries()
    for name in LATE:
        importlib.import_module(name)
