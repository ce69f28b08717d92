"""`droptune db`: upgrade or check a database."""

import shlex
import sys
from functools import partial
from typing import Any

import click

from droptune.cli.group import json_option, main, store_option
from droptune.cli.output import print_json


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


@db.command(short_help="Look a database over, and mend it if asked to.")
@click.option("--repair", is_flag=True, help="Mend what is found, and say what was done.")
@store_option
@json_option
def check(store: str, repair: bool, as_json: bool) -> None:
    """\b
        droptune db check --store sqlite:///droptune.db --repair

    Look a database over: its schema and files, and whether all that its studies hold fits
    together; exit code 1 when something is wrong. Nothing is changed without --repair, and a
    SQLite file is copied aside first. A study on which somebody works is passed over.

    An interrupted study needs no repair: `droptune optimize` goes on with it.

    \b
    --json prints
      url, schema, newest   the database, its schema, and that of this droptune
      problems  of the schema and of the file, as lines
      found     what is wrong, each with study, kind, items, line, wrong and repair
      busy      studies that were passed over
      repaired  with --repair what was mended, as in found; else null
      copy      with --repair where a SQLite file was copied to, or null
      ok        whether all is well now
    """
    found = _look_over(store, repair)
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            click.echo(line)
    if not found["ok"]:
        sys.exit(1)


def _look_over(store: str, mend: bool) -> dict[str, Any]:
    """Return what `db check --json` prints."""
    from droptune.store.migrate import check as check_url

    report = check_url(store)
    about = {"url": report.url, "schema": report.revision, "newest": report.head}
    about |= {"problems": list(report.problems), "found": [], "busy": []}
    about |= {"repaired": [] if mend else None, "copy": None}
    if report.ok:
        about |= _studies(store, mend)
    return about | {"ok": report.ok and not about["found"]}


def _studies(url: str, mend: bool) -> dict[str, Any]:
    """Look the studies over; with `mend`, what is found is what is left."""
    from droptune.store import Store
    from droptune.store.consistency import findings

    done: dict[str, Any] = {}
    with Store(url, create=False) as store:
        if mend:
            from droptune.retelling import retell
            from droptune.store.repair import repair

            mended, copy = repair(store, partial(retell, url))
            done["repaired"] = [finding.to_json() for finding in mended]
            done["copy"] = None if copy is None else str(copy)
        found, busy = findings(store)
    return done | {"found": [finding.to_json() for finding in found], "busy": busy}


def _lines(found: dict[str, Any]) -> list[str]:
    """Return the same for people to read."""
    from droptune.report.text import one_line

    state = "ok" if found["ok"] else "not ok"
    schema = found["schema"] or "none"
    lines = [f"{found['url']}: schema {schema}, this droptune has {found['newest']}: {state}"]
    lines += found["problems"]
    lines += [f"{one['line']}: {one['wrong']}" for one in found["found"]]
    if found["copy"]:
        lines.append(f"the database as it was is in {found['copy']}")
    lines += [f"{one['line']}: {one['repair']}" for one in found["repaired"] or ()]
    lines += [f"study {name!r} was passed over: somebody works on it" for name in found["busy"]]
    if found["found"] and found["repaired"] is None:
        lines.append(f"to mend it: droptune db check --store {shlex.quote(found['url'])} --repair")
    return [one_line(line) for line in lines]
