"""The commands that list what there is: methods, models, scorers, and the environment."""


def methods() -> None:
    """List the methods, their settings and what columns they need."""
    from diffpo.methods import METHODS

    for name, method in METHODS.items():
        _show(name, method, f"needs {', '.join(sorted(method.requires)) or 'prompt, chosen, rejected'}")


def models() -> None:
    """List the families of models and how they can be tuned."""
    from diffpo.models import FAMILIES
    from diffpo.models.tunings import MODELS

    for name, family in FAMILIES.items():
        print(f"{name}: {', '.join(family.pipelines)} ({', '.join(family.components)})")
    for name, tuning in MODELS.items():
        _show(f"model.name={name}", tuning)


def scorers() -> None:
    """List the scorers, their options and where their weights come from."""
    from diffpo.scorers import SCORERS

    for name, scorer in SCORERS.items():
        _show(name, scorer, f"weights: {scorer.origin}")


def env() -> None:
    """Print versions and devices: what to put into a bug report."""
    from diffpo.compat import describe_environment

    for key, value in describe_environment().items():
        print(f"{key:20} {value}")


def _show(title: str, block: type, *more: str) -> None:
    from diffpo.config.options import describe_fields

    print(f"{title}: {(block.__doc__ or '').strip().splitlines()[0]}")
    for line in (*more, *describe_fields(block)):
        print(f"  {line}")
