"""`Service`: who works on which study, and how far the queue is; what `droptune status` shows.

Ages come from the database's clock, which every worker writes its signs of life by.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from droptune.processes import exists, place
from droptune.store.plain import decoded
from droptune.store.queries import STATES
from droptune.store.reader import Reader, open_reader

LEASE = 30.0
"""For how long the last sign of life of a worker counts, in seconds."""
RECENT = 24 * 3600.0
"""For how long a worker that has died is listed, in seconds."""
_HOUR = 3600.0
_LONG = timedelta(minutes=10)

_SUBMISSIONS = "SELECT * FROM droptune_submission ORDER BY id"
_WORKERS = """
    SELECT w.id, w.host, w.place, w.pid, w.device, w.seen_at, w.doing, d.name AS study
    FROM droptune_worker w LEFT JOIN droptune_study d ON d.id = w.study_id
    WHERE w.ended_at IS NULL AND w.seen_at > :since ORDER BY w.id
"""
_STUDIES = "SELECT id, name, created_at FROM droptune_study ORDER BY id"
_COUNTS = """
    SELECT s.study_name AS name, lower(CAST(t.state AS VARCHAR)) AS state, count(*) AS n
    FROM trials t JOIN studies s ON s.study_id = t.study_id GROUP BY s.study_name, t.state
"""
# A trial is counted where its run ended, and a run is stored with its start and its length. Those
# that may have ended in the last hour, of those that began before it: databases add seconds to
# times each in their own way, but few runs are so late or so long.
_RECENT = """
    SELECT count(*) AS n FROM droptune_run
    WHERE study_id = :study AND phase = 'search' AND state IN ('complete', 'pruned', 'failed')
      AND started_at > :hour
"""
_BEFORE = """
    SELECT started_at, seconds FROM droptune_run
    WHERE study_id = :study AND phase = 'search' AND state IN ('complete', 'pruned', 'failed')
      AND started_at > :day AND started_at <= :hour AND (started_at > :late OR seconds > :long)
"""
_SPAN = """
    SELECT count(*) AS n, min(started_at) AS first FROM droptune_run
    WHERE study_id = :study AND phase = 'search' AND state IN ('complete', 'pruned', 'failed')
"""

Row = dict[str, Any]


class Service:
    """What `droptune status` shows of one database.

    Args:
        url: of the database.
        reader: where to read instead of opening the URL.

    Raises:
        StoreError: the database cannot be read; a missing SQLite file is never created.
    """

    def __init__(self, url: str, reader: Reader | None = None) -> None:
        self._reader = reader or open_reader(url)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *exc: object) -> None:
        self._reader.close()

    def status(self) -> Row:
        """Return studies that are in the queue or are worked on, and workers; see the command."""
        now = _time(self._reader.rows("SELECT CURRENT_TIMESTAMP AS now")[0]["now"])
        workers = self._workers(now)
        submitted = {row["name"]: row for row in self._reader.rows(_SUBMISSIONS)}
        stored = {row["name"]: row for row in self._reader.rows(_STUDIES)}
        active = {row["study"] for row in workers if row["alive"] and row["study"] is not None}
        names = [*submitted, *(name for name in stored if name in active and name not in submitted)]
        counts = self._counts()
        studies = []
        for name in names:
            live = [row for row in workers if row["alive"] and row["study"] == name]
            row = _submission(submitted.get(name)) | {"name": name, "workers": len(live)}
            row["trials"] = counts.get(name, dict.fromkeys(STATES.values(), 0))
            row |= _progress([one["doing"] for one in live if one["doing"]])
            pace = self._pace(stored.get(name), now)
            if row["state"] == "done":  # the time since then says nothing
                pace["per_hour_ever"] = None
            studies.append(row | pace)
        return {"studies": studies, "workers": workers}

    def _workers(self, now: datetime) -> list[Row]:
        since = _sql(now - timedelta(seconds=RECENT))
        return [_worker(row, now) for row in self._reader.rows(_WORKERS, since=since)]

    def _counts(self) -> dict[str, Row]:
        found: dict[str, Row] = {}
        if not self._reader.has_table("trials"):
            return found
        for row in self._reader.rows(_COUNTS):
            counts = found.setdefault(row["name"], dict.fromkeys(STATES.values(), 0))
            counts[STATES[row["state"].upper()]] += row["n"]
        return found

    def _pace(self, study: Mapping[str, Any] | None, now: datetime) -> Row:
        """Return the trials an hour, of the last one and since the first trial."""
        if study is None:
            return {"per_hour": 0, "per_hour_ever": None}
        span = self._reader.rows(_SPAN, study=study["id"])[0]
        ever = None
        if span["n"]:
            busy = max((now - _time(span["first"])).total_seconds(), 1.0)
            ever = span["n"] / busy * _HOUR
        return {"per_hour": self._ended_since(now, study["id"]), "per_hour_ever": ever}

    def _ended_since(self, now: datetime, study: int) -> int:
        """Return how many trials ended in the hour before now."""
        hour = now - timedelta(hours=1)
        times = {"day": now - timedelta(days=1), "hour": hour, "late": hour - _LONG}
        shown = {name: _sql(time) for name, time in times.items()}
        begun = self._reader.rows(_RECENT, study=study, hour=shown["hour"])[0]["n"]
        before = self._reader.rows(_BEFORE, study=study, long=_LONG.total_seconds(), **shown)
        ends = (_time(run["started_at"]) + timedelta(seconds=run["seconds"] or 0) for run in before)
        return begun + sum(end > hour for end in ends)


def _worker(row: Row, now: datetime) -> Row:
    """Return a worker as the status shows it."""
    seen = (now - _time(row.pop("seen_at"))).total_seconds()
    gone = row.pop("place") == place() and not exists(row["pid"])
    doing = row.pop("doing")
    return {
        **row,
        "alive": not gone and abs(seen) <= LEASE,
        "seen": max(seen, 0.0),
        "doing": decoded("doing", doing) if isinstance(doing, str) else doing,
    }


def _submission(row: Mapping[str, Any] | None) -> Row:
    """Return the columns of a submission; of a study that was not submitted, none."""
    keys = ("state", "message", "target", "options")
    if row is None:
        return dict.fromkeys((*keys, "submitted_at"))
    found = {key: row[key] for key in keys}
    if isinstance(found["options"], str):
        found["options"] = decoded("options", found["options"])
    at = _time(row["submitted_at"])
    return found | {"submitted_at": at.isoformat(timespec="seconds") + "Z"}


def _progress(doing: Sequence[Mapping[str, Any]]) -> Row:
    """Return how far a study is, from what its workers say."""
    keys = ("phase", "done", "total", "best")
    if not doing:
        return dict.fromkeys((*keys, "seconds_left"))
    furthest = max(doing, key=lambda one: (one.get("phase") == "confirm", one.get("done") or 0))
    phase = furthest.get("phase")
    # Each expects to do alone what is left.
    alone = [one.get("seconds_left") for one in doing if one.get("phase") == phase]
    known = [s for s in alone if isinstance(s, int | float) and math.isfinite(s)]
    left = 1 / sum(1 / s for s in known) if known and min(known) > 0 else None
    return {key: furthest.get(key) for key in keys} | {"seconds_left": left}


def _time(value: Any) -> datetime:
    """Return a time of a database, in UTC without a zone."""
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def _sql(time: datetime) -> str:
    """Return a time as both databases compare it with their columns."""
    return time.isoformat(sep=" ", timespec="microseconds")
