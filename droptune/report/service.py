"""The tables of `droptune status`: studies in line or at work, and workers."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from droptune.progress import duration
from droptune.report.cells import number_cell, table_of, text_cell
from droptune.report.text import NOTHING, one_line, short

Row = Mapping[str, Any]

STYLES = {"queued": "cyan", "done": "green", "failed": "red", "alive": "green", "dead": "red"}
"""The colour of the state of a submission or worker; none for the rest."""


def status(row: Mapping[str, Sequence[Row]]) -> list[RenderableType]:
    """Return the tables of what `store.service.Service.status` returns."""
    studies, workers = row["studies"], row["workers"]
    if not studies and not workers:
        return [Text("nothing is queued and nobody works; run `droptune submit` or `optimize`")]
    parts: list[RenderableType] = [_studies(studies)] if studies else []
    said = [one for one in studies if one["message"]]
    parts += [Text(f"\n{one_line(one['name'])}: {one_line(one['message'])}") for one in said]
    parts += [Text(), _workers(workers)] if workers else [Text("\nno worker was seen lately")]
    return parts


def _studies(rows: Sequence[Row]) -> RenderableType:
    table = table_of(
        "study", "state", ">workers", "progress", ">best", ">trials/h", ">since start", ">left"
    )
    for row in rows:
        left = row["seconds_left"]
        ended = sum(row["trials"][state] for state in ("complete", "pruned", "failed"))
        far = f"{ended} trials"
        if row["phase"]:
            far = f"{row['phase']} {short(row['done'])}"
            far += f"/{short(row['total'])}" if row["total"] is not None else ""
        state = row["state"] or "running"
        table.add_row(
            text_cell(row["name"]),
            text_cell(state, STYLES.get(state, "")),
            text_cell(row["workers"]),
            text_cell(far),
            number_cell(row["best"]),
            text_cell(row["per_hour"]),
            text_cell(NOTHING if row["per_hour_ever"] is None else round(row["per_hour_ever"])),
            text_cell(NOTHING if left is None else duration(left)),
        )
    return table


def _workers(rows: Sequence[Row]) -> RenderableType:
    table = table_of("worker", ">pid", "device", "", "study", "does", ">seen")
    for row in rows:
        state = "alive" if row["alive"] else "dead"
        table.add_row(
            text_cell(row["host"]),
            text_cell(row["pid"]),
            text_cell(row["device"]),
            text_cell(state, STYLES.get(state, "")),
            text_cell(row["study"] or NOTHING),
            text_cell(_doing(row)),
            text_cell(f"{duration(row['seen'])} ago"),
        )
    return table


def _doing(row: Row) -> str:
    """Return what a worker does: how many it trains of which phase, and how fast."""
    doing = row["doing"]
    if not row["alive"] or not doing:
        return "begins" if row["alive"] else NOTHING
    if "processes" in doing:
        count = doing["processes"]
        return f"has {short(count)} at work" if count else "waits for studies"
    parts = [f"{short(doing.get('phase'))}: {short(doing.get('running'))} running"]
    speed = doing.get("epochs_per_second")
    parts += [f"{short(speed)} epochs/s"] if speed else []
    return ", ".join(parts)
