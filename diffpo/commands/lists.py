"""The commands that list what there is: methods, models, scorers, and the environment."""

from __future__ import annotations


def methods() -> None:
    """List the methods, their settings and what columns they need."""
    from diffpo.config.options import describe_fields
    from diffpo.methods import METHODS

    for name, method in METHODS.items():
        print(f"{name}: {(method.__doc__ or '').strip().splitlines()[0]}")
        print(f"  needs {', '.join(sorted(method.requires)) or 'prompt, chosen, rejected'}")
        for line in describe_fields(method):
            print(f"  {line}")


def models() -> None:
    """List the families of models and how they can be tuned."""
    from diffpo.config.options import describe_fields
    from diffpo.models import FAMILIES
    from diffpo.models.tuning import MODELS

    for name, family in FAMILIES.items():
        print(f"{name}: {', '.join(family.pipelines)} ({', '.join(family.components)})")
    for name, tuning in MODELS.items():
        print(f"model.name={name}: {(tuning.__doc__ or '').strip().splitlines()[0]}")
        for line in describe_fields(tuning):
            print(f"  {line}")


def scorers() -> None:
    """List the scorers, their options and where their weights come from."""
    from diffpo.config.options import describe_fields
    from diffpo.scorers import SCORERS

    for name, scorer in SCORERS.items():
        print(f"{name}: {(scorer.__doc__ or '').strip().splitlines()[0]}")
        print(f"  weights: {scorer.origin}")
        for line in describe_fields(scorer):
            print(f"  {line}")


def env() -> None:
    """Print versions and devices: what to put into a bug report."""
    from diffpo.compat import describe_environment

    for key, value in describe_environment().items():
        print(f"{key:20} {value}")
