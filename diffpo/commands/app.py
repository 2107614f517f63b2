"""The command line: which command is which function.

Each one is thin: read options, call one function, say what was written and what to run next. Nothing heavy is imported
before a command runs, so that every `--help` answers at once.
"""

from typing import Annotated

import typer

from diffpo import __version__
from diffpo.commands import encode, lists, media, pairs, plan, subject, train, users, verdicts, video

COMMANDS = {
    "train": train.train,
    "plan": plan.plan,
    "demo": train.demo,
    "evaluate": verdicts.evaluate,
    "generate": media.generate,
    "score": media.score,
    "geneval": media.geneval,
    "set-metrics": media.set_metrics,
    "personal": users.personal,
    "compare": verdicts.compare,
    "grid": verdicts.grid,
    "report": verdicts.report,
    "methods": lists.methods,
    "models": lists.models,
    "scorers": lists.scorers,
    "env": lists.env,
}
DATA = {
    "inspect": pairs.inspect_table,
    "show": pairs.show_table,
    "import": pairs.import_pairs,
    "build": pairs.build_table,
    "score": pairs.score_table,
    "agreement": pairs.agreement_of_scorers,
    "caption": pairs.caption_table,
    "perturb": pairs.perturb_table,
    "weight": pairs.weigh_table,
    "encode": encode.encode_pairs,
    "video-pairs": video.video_pairs,
    "segments": video.label_segments,
    "users": users.embed_users,
    "subject": subject.subject_pairs,
}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"diffpo {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Align diffusion models with preferences."""


app = typer.Typer(
    name="diffpo",
    callback=_main,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich doubles the time that --help takes
    epilog="Any command takes --debug, which shows the traceback of an error.",
)
_data = typer.Typer(help="Look at pair tables, make them, label them.", no_args_is_help=True, rich_markup_mode=None)
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)
for _name, _function in DATA.items():
    _data.command(_name)(_function)
app.add_typer(_data, name="data")
