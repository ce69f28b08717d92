"""Trials as rows of Optuna's tables, where its storage takes a query for each parameter.

Part of record.py, the only module that imports this one. It speaks of the tables in Optuna's own
classes for them.
"""

import json
from collections.abc import Mapping
from datetime import UTC

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

_STUDIES, _TRIALS = models.StudyModel.__table__, models.TrialModel.__table__
# Numbers and ids of a study rise together. One look-up in an index; to count them takes longer.
_LAST = _TRIALS.select().with_only_columns(_TRIALS.c.number)
_LAST = _LAST.order_by(_TRIALS.c.trial_id.desc()).limit(1)
_LOOK = _TRIALS.select().with_only_columns(_TRIALS.c.trial_id, _TRIALS.c.state)


def insert(storage: RDBStorage, study_id: int, template: FrozenTrial, number: int) -> int | None:
    """Store a new trial with its parameters and attributes, in one transaction.

    Args:
        storage: of the study.
        study_id: in the storage.
        template: a trial that has not ended.
        number: that it must get; nothing is stored if another process has come in before.

    Returns:
        Its id; None: the next number is another one.
    """
    begun = template.datetime_start
    values = {
        "study_id": study_id,
        "number": number,
        "state": template.state,
        "datetime_start": begun and begun.astimezone(UTC).replace(tzinfo=None),
    }
    with _create_scoped_session(storage.scoped_session) as session:
        # The same lock as Optuna's own, for programs that know no other.
        session.execute(_STUDIES.select().where(_STUDIES.c.study_id == study_id).with_for_update())
        last = session.execute(_LAST.where(_TRIALS.c.study_id == study_id)).scalar()
        if number != (0 if last is None else last + 1):
            return None
        trial_id = session.execute(_TRIALS.insert(), values).inserted_primary_key[0]
        for table, rows in _parts(template).items():
            if rows:
                session.execute(table.insert(), [{"trial_id": trial_id} | row for row in rows])
    return trial_id


def _parts(template: FrozenTrial) -> dict:
    """Return table -> rows, of what belongs to a trial."""
    params = [
        {
            "param_name": name,
            "param_value": distribution.to_internal_repr(template.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in template.distributions.items()
    ]
    own, systems = (
        [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
        for attributes in (template.user_attrs, template.system_attrs)
    )
    return {
        models.TrialParamModel.__table__: params,
        models.TrialUserAttributeModel.__table__: own,
        models.TrialSystemAttributeModel.__table__: systems,
    }


def moved(
    storage: RDBStorage, study_id: int, last: int, unfinished: Mapping[int, TrialState]
) -> list[FrozenTrial]:
    """Return the trials of a study that are new or in another state, by number.

    Two look-ups by primary key, however many trials there are; read whole is only what changed.

    Args:
        storage: of the study.
        study_id: in the storage.
        last: the highest known id of its trials; later ones have higher ids.
        unfinished: id -> the state in which it is known, of those that may change.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        newer = (_TRIALS.c.study_id == study_id) & (_TRIALS.c.trial_id > last)
        news = session.execute(_LOOK.where(newer).limit(1)).all()
        known = _TRIALS.c.trial_id.in_(list(unfinished))
        now = session.execute(_LOOK.where(known)).all() if unfinished else []
    other = {trial_id for trial_id, state in now if state != unfinished[trial_id]}
    if not news and not other:
        return []
    return sorted(storage._get_trials(study_id, None, other, last), key=lambda one: one.number)
