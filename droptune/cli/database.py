"""`droptune db`: upgrade or check a database."""

import sys

import click

from droptune.cli.group import main, store_option


@main.group(short_help="Upgrade or check a database.")
def db() -> None:
    """\b
        droptune db check

    Upgrade or check a database.
    """


@db.command(short_help="Bring a database to the schema of this droptune.")
@store_option
def upgrade(store: str) -> None:
    """\b
        droptune db upgrade --store sqlite:///droptune.db

    Bring a database to the schema of this droptune; a SQLite file is copied aside first.
    """
    from droptune.store.migrate import upgrade_url

    click.echo(upgrade_url(store))


@db.command(short_help="Look a database over without changing it.")
@store_option
def check(store: str) -> None:
    """\b
        droptune db check --store sqlite:///droptune.db

    Look a database over without changing it; exit code 1 when something is wrong.
    """
    from droptune.store.migrate import check as check_url

    report = check_url(store)
    click.echo(report)
    if not report.ok:
        sys.exit(1)
