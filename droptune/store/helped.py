"""The studies of a database where dropout helped: what a new study may start from.

Read with each new study, so two statements read what is needed of all of them, however many.
"""

from typing import Any

from droptune.store.plain import plain
from droptune.store.reader import Reader

_HELPED = """
    FROM droptune_study d JOIN droptune_verdict v ON v.study_id = d.id
    WHERE v.verdict = 'helps'
      AND v.id IN (SELECT max(id) FROM droptune_verdict GROUP BY study_id, objective)
"""
_STUDIES = "SELECT d.id, d.name, d.definition, v.plan, v.objective" + _HELPED + "ORDER BY d.id"
_SITES = f"""
    SELECT study_id, position, name, role, layout, reach, shape, kind, rate
    FROM droptune_site WHERE study_id IN (SELECT d.id {_HELPED}) ORDER BY study_id, position
"""


def helped(reader: Reader) -> list[dict[str, Any]]:
    """Return the studies whose latest verdict on their first objective is "helps", oldest first.

    Returns:
        name, definition, plan (that helped) and sites (in call order) of each.
    """
    found = [row for row in plain(reader.rows(_STUDIES)) if row["objective"] == _first(row)]
    studies = {row["id"]: row | {"sites": []} for row in found}
    for site in plain(reader.rows(_SITES)):
        study = studies.get(site.pop("study_id"))
        if study is not None:  # else it helps another objective, or only since the first statement
            study["sites"].append(site)
    keys = ("name", "definition", "plan", "sites")
    return [{key: study[key] for key in keys} for study in studies.values()]


def _first(row: dict[str, Any]) -> Any:
    """Return the objective that leads a study."""
    objective = row["definition"].get("objective")
    return objective[0] if isinstance(objective, list) and objective else objective
