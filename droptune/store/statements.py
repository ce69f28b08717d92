"""The SQL of the listings, as every database understands it; queries.py runs it."""

STUDIES = """
    SELECT d.id, d.name, d.definition, d.environment, d.created_at
    FROM droptune_study d
"""
OPTUNA_STUDIES = """
    SELECT s.study_name AS name, s.study_id, lower(CAST(d.direction AS VARCHAR)) AS direction
    FROM studies s JOIN study_directions d ON d.study_id = s.study_id AND d.objective = 0
"""
COUNTS = "SELECT study_id, state, count(*) AS n FROM trials {of} GROUP BY study_id, state"
# Of one objective the latest counts.
VERDICTS = """
    SELECT * FROM droptune_verdict
    WHERE id IN (SELECT max(id) FROM droptune_verdict GROUP BY study_id, objective)
"""
SITES = """
    SELECT position, name, role, layout, reach, shape, kind, rate
    FROM droptune_site WHERE study_id = :study ORDER BY position
"""
# A trial that was interrupted and done again has two runs; the latest says how it went. A
# fixed plan that still waits has none; search keeps its name and plan as user attributes.
TRIALS = """
    SELECT t.trial_id, t.number, t.state, v.value, r.id AS run_id, r.arm, r.plan, r.epochs,
           r.seconds, r.message, r.seed, r.clock, r.trainer, r.device,
           n.value_json AS fixed_name, p.value_json AS fixed_plan
    FROM trials t
    LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = :objective
    LEFT JOIN droptune_run r ON r.id = (
        SELECT max(id) FROM droptune_run
        WHERE study_id = :study AND phase = 'search' AND trial_number = t.number)
    LEFT JOIN trial_user_attributes n ON n.trial_id = t.trial_id AND n.key = 'name'
    LEFT JOIN trial_user_attributes p ON p.trial_id = t.trial_id AND p.key = 'plan'
    WHERE t.study_id = :optuna
"""
# Chosen before the joins, which for each of 100,000 trials take seconds.
LATEST = """ AND t.trial_id IN (
        SELECT trial_id FROM trials WHERE study_id = :optuna ORDER BY number DESC LIMIT {limit})
"""
BEST = """ AND t.trial_id IN (
        SELECT s.trial_id FROM trials s
        JOIN trial_values w ON w.trial_id = s.trial_id AND w.objective = :objective
        WHERE s.study_id = :optuna AND s.state = 'COMPLETE' AND w.value_type = 'FINITE'
        ORDER BY w.value {order}, s.number LIMIT 1)
"""
CONTROL = """ AND (
        t.number IN (
            SELECT trial_number FROM droptune_run
            WHERE study_id = :study AND phase = 'search' AND arm = 'no dropout')
        OR t.trial_id IN (
            SELECT trial_id FROM trial_user_attributes
            WHERE key = 'name' AND value_json = '"no dropout"'))
    AND (r.arm = 'no dropout' OR n.value_json = '"no dropout"')"""
VALUES = """
    SELECT v.trial_id, v.objective, v.value
    FROM trial_values v JOIN trials t ON t.trial_id = v.trial_id
    WHERE t.study_id = :optuna
"""
LIVE_EPOCHS = """
    SELECT r.id AS run_id, count(*) AS epochs
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id
    WHERE r.study_id = :study AND r.state = 'running' GROUP BY r.id
"""
PARAMS = """
    SELECT param_name, param_value, distribution_json
    FROM trial_params WHERE trial_id = :trial ORDER BY param_id
"""
CURVE = "SELECT epoch, train_loss, metrics FROM droptune_curve WHERE run_id = :run ORDER BY epoch"
CONFIRM_RUNS = """
    SELECT r.id, r.arm, r.block, r.seed, r.state, r.plan, r.test, r.epochs, r.seconds,
           r.message, c.metrics
    FROM droptune_run r
    LEFT JOIN droptune_curve c ON c.run_id = r.id AND c.epoch = (
        SELECT max(epoch) FROM droptune_curve WHERE run_id = r.id)
    WHERE r.study_id = :study AND r.phase = 'confirm' AND r.state IN ('complete', 'failed')
    ORDER BY r.block, r.id
"""
CONTROL_METRICS = """
    SELECT c.metrics
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id AND c.epoch = r.epochs
    WHERE r.study_id = :study AND r.phase = 'search' AND r.arm = 'no dropout'
      AND r.state = 'complete'
    ORDER BY r.id
"""
SEARCH_CURVES = """
    SELECT r.trial_number, c.metrics
    FROM droptune_run r JOIN droptune_curve c ON c.run_id = r.id
    WHERE r.study_id = :study AND r.phase = 'search'
        AND r.state IN ('complete', 'pruned') {of}
    ORDER BY r.id, c.epoch
"""
SEARCH_SECONDS = """
    SELECT sum(seconds) AS seconds FROM droptune_run WHERE study_id = :study AND phase = 'search'
"""
DESIGNS = """
    SELECT design FROM droptune_confirmation WHERE study_id = :study ORDER BY round
"""
