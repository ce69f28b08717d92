"""What deaths, and people, leave in a database that no study makes by itself: found, not changed.

A study on which a living worker works is not looked at: what looks odd there may be on its way.
What each kind means, and how it is mended, stands in repair.py.
"""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from droptune.store.folder import default_folder
from droptune.store.store import Store
from droptune.store.workers import Workers

_ENDED = "('complete', 'pruned', 'failed')"
_TRIALS = """
    trials t JOIN studies s ON s.study_id = t.study_id
    JOIN droptune_study d ON d.name = s.study_name AND d.id = :study
"""
_RUN_OF_TRIAL = """
    SELECT 1 FROM droptune_run r
    WHERE r.study_id = :study AND r.phase = 'search' AND r.trial_number = t.number
"""
#: Kind -> what finds it; `item` is what it is shown by, `id` what is changed.
QUERIES = {
    "untold": f"""
        SELECT t.number AS item, max(r.id) AS id FROM {_TRIALS}
        JOIN droptune_run r ON r.study_id = d.id AND r.phase = 'search'
            AND r.trial_number = t.number AND r.state IN {_ENDED}
        WHERE t.state IN ('RUNNING', 'WAITING') GROUP BY t.number ORDER BY t.number
    """,
    "untrained": f"""
        SELECT t.number AS item, t.trial_id AS id FROM {_TRIALS}
        WHERE t.state IN ('COMPLETE', 'PRUNED', 'FAIL') AND NOT EXISTS ({_RUN_OF_TRIAL})
            AND NOT EXISTS (SELECT 1 FROM trial_user_attributes a
                            WHERE a.trial_id = t.trial_id AND a.key = 'message')
        ORDER BY t.number
    """,
    "nowhere": f"""
        SELECT r.id AS item, r.id AS id FROM droptune_run r
        WHERE r.study_id = :study AND r.phase = 'search' AND r.state <> 'stale'
            AND r.trial_number NOT IN (SELECT t.number FROM {_TRIALS})
        ORDER BY r.id
    """,
    "twice": f"""
        SELECT r.id AS item, r.id AS id FROM droptune_run r
        WHERE r.study_id = :study AND r.state IN {_ENDED} AND EXISTS (
            SELECT 1 FROM droptune_run b
            WHERE b.study_id = r.study_id AND b.phase = r.phase AND b.state IN {_ENDED}
                AND b.id < r.id AND (
                    (r.phase = 'search' AND b.trial_number = r.trial_number)
                    OR (r.phase = 'confirm' AND b.block = r.block AND b.arm = r.arm)))
        ORDER BY r.id
    """,
    "beyond": f"""
        SELECT r.id AS item, r.id AS id FROM droptune_run r
        WHERE r.study_id = :study AND r.state IN {_ENDED} AND EXISTS (
            SELECT 1 FROM droptune_curve c WHERE c.run_id = r.id AND c.epoch > r.epochs)
        ORDER BY r.id
    """,
}
#: Kind -> what it is shown by, what is wrong, and what a repair does.
SAID = {
    "lost": (
        "run",
        "said to be in training, but by a worker that is dead or unknown",
        "marked as stale; the next `droptune optimize` goes on with its trial or arm",
    ),
    "untold": ("trial", "still running, but its run has ended", "told as its run ended"),
    "untrained": (
        "trial",
        "ended without a run, so how it was trained is not known",
        "marked so by a message; its value still counts",
    ),
    "nowhere": ("run", "of a trial that is not there", "marked as stale, and no longer counted"),
    "twice": (
        "run",
        "of a trial, or an arm of a block, that had ended before",
        "marked as stale, so that the first one counts",
    ),
    "beyond": (
        "run",
        "with scores of epochs after its last one",
        "without them; those up to its end stay",
    ),
    "unused": ("checkpoint", "that no run goes on from", "removed"),
}
_MOST = 5  # of each kind that a line names


@dataclass(frozen=True)
class Finding:
    """What is wrong with a study in one way.

    Attributes:
        study: its name.
        kind: a key of `SAID`.
        items: numbers of trials, ids of runs, or names of checkpoints, as the kind says.
        ids: of the rows that a repair changes; empty for checkpoints.
    """

    study: str
    kind: str
    items: tuple[Any, ...]
    ids: tuple[int, ...] = ()

    @property
    def line(self) -> str:
        """Of what study, and of what in it, as people read it."""
        shown = ", ".join(map(str, self.items[:_MOST]))
        more = f" and {len(self.items) - _MOST} more" if len(self.items) > _MOST else ""
        plural = "s" if len(self.items) > 1 else ""
        return f"study {self.study!r}, {SAID[self.kind][0]}{plural} {shown}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return study, kind, items, its line, what is wrong and what a repair does."""
        _, wrong, repair = SAID[self.kind]
        about = {"study": self.study, "kind": self.kind, "items": list(self.items)}
        return {**about, "line": self.line, "wrong": wrong, "repair": repair}


def studies(store: Store) -> dict[str, int]:
    """Return name -> id of all studies, the first one first."""
    return {
        row["name"]: row["id"]
        for row in store.rows(text("SELECT id, name FROM droptune_study ORDER BY id"))
    }


def findings(store: Store) -> tuple[list[Finding], list[str]]:
    """Look all studies over.

    Returns:
        what is wrong; and the names of the studies that were not looked at, for somebody works
        on them.
    """
    workers, found, busy = Workers(store), [], []
    for name, study_id in studies(store).items():
        if workers.living(study_id):
            busy.append(name)
        else:
            found += look(store, name, study_id)
    return found, busy


def look(store: Store, name: str, study_id: int) -> list[Finding]:
    """Return what is wrong with a study that nobody works on, in the order of the repair."""
    lost = Workers(store).lost(study_id)
    found = [Finding(name, "lost", tuple(lost), tuple(lost))]
    for kind in ("twice", "beyond", "nowhere", "untrained", "untold") if _has_trials(store) else ():
        rows = store.rows(text(QUERIES[kind]).bindparams(study=study_id))
        items = tuple(row["item"] for row in rows)
        found.append(Finding(name, kind, items, tuple(row["id"] for row in rows)))
    found.append(Finding(name, "unused", tuple(_unused(store, study_id))))
    return [finding for finding in found if finding.items]


def remove_checkpoints(url: str, names: Iterable[str]) -> None:
    """Remove checkpoints that `look` found unused."""
    for name in names:
        shutil.rmtree(default_folder(url) / name, ignore_errors=True)


def _has_trials(store: Store) -> bool:
    from sqlalchemy import inspect

    return inspect(store.engine).has_table("trials")


def _unused(store: Store, study_id: int) -> list[str]:
    """Return the names of a study's checkpoints that no run will go on from, sorted."""
    there = default_folder(store.url)
    of_study = re.compile(rf"{study_id}-\d+-[0-9a-f]+")
    names = {path.name for path in _folders(there) if of_study.fullmatch(path.name)}
    if not names:
        return []
    query = "SELECT checkpoint FROM droptune_run WHERE study_id = :study AND checkpoint IS NOT NULL"
    query += f" AND state NOT IN {_ENDED}"
    rows = store.rows(text(query).bindparams(study=study_id))
    return sorted(names - {_name(row["checkpoint"]) for row in rows})


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _name(checkpoint: Any) -> str | None:
    value = json.loads(checkpoint) if isinstance(checkpoint, str) else checkpoint
    return value.get("name") if isinstance(value, dict) else None
