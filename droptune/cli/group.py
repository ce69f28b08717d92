"""The group of all commands, how errors come out of it, and the options they share."""

import contextlib
import os
import sys
from typing import Any

import click

from droptune.errors import DroptuneError

STORE = "sqlite:///droptune.db"  # where no other is given
TRACEBACK = "DROPTUNE_TRACEBACK"  # the environment variable that asks for tracebacks


class Commands(click.Group):
    """A group in which errors come out as one line, behind the traceback of a user's model."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = "what has finished is kept; the same command goes on from there"
            said = f"Interrupted: {kept}" if ctx.invoked_subcommand == "optimize" else "Interrupted"
            click.echo(said, err=True)
            ctx.exit(130)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            from droptune.target import traceback_of

            shown = traceback_of(error, whole=bool(os.environ.get(TRACEBACK)))
            click.echo(shown, err=True, nl=False)
            raise click.ClickException(_explained(error)) from error


def _explained(error: Exception) -> str:
    """Return an error as one line; one that is not ours with its place in the user's code."""
    from droptune.report.text import one_line

    if isinstance(error, DroptuneError):
        return one_line(error)
    from droptune.target import user_line

    place = user_line(error)
    said = f"{type(error).__name__}: {one_line(error)}" + (f", at {place}" if place else "")
    return f"{said}; set {TRACEBACK}=1 to see the traceback"


# The options that several commands share.
store_option = click.option(
    "--store",
    metavar="URL",
    envvar="DROPTUNE_STORE",
    default=STORE,
    show_default=True,
    show_envvar=True,
    help="The database.",
)
study_option = click.option(
    "--study", "name", metavar="NAME", required=True, help="The study; `studies` lists them."
)
objective_option = click.option(
    "--objective", metavar="NAME", help="Of several objectives the one to answer for: the first."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


def _show_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from droptune import __version__  # takes as long as all other imports

        click.echo(f"droptune, version {__version__}")
        context.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """\b
        droptune optimize model.py --trials 64
        droptune best --study mine

    Does dropout help this PyTorch model, and if so which kind, where and how much?
    """
    with contextlib.suppress(AttributeError, ValueError):  # not every stream can
        sys.stdout.reconfigure(errors="backslashreplace")
