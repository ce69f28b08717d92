"""The studies where dropout helped, read at once however many there are."""

from droptune.store import Queries, Store
from droptune.store.reader import open_reader


class Counting:
    """A reader that counts what it is asked."""

    def __init__(self, url: str) -> None:
        self._reader, self.asked = open_reader(url), 0

    def rows(self, sql, **values):
        self.asked += 1
        return self._reader.rows(sql, **values)

    def has_table(self, name):
        return self._reader.has_table(name)

    def close(self):
        self._reader.close()


def judged(store: Store, examples, name: str, *verdicts: str, objective: str = "val_loss") -> None:
    study = examples.new_study(store, name)
    for rate, verdict in enumerate(verdicts, 1):
        row = dict.fromkeys(("best", "control", "difference", "low", "high", "p_value", "test"))
        row |= {
            "verdict": verdict,
            "text": verdict,
            "plan": examples.plan(rate / 10),
            "details": {},
        }
        row |= {"objective": objective, "direction": "minimize", "blocks": 3, "level": 0.95}
        store.save_verdict(study, row)


def test_the_latest_verdict_says_whether_dropout_helped(url, examples):
    with Store(url) as store:
        for name, verdicts in {
            "first": ["undecided", "helps"],
            "took back": ["helps", "undecided"],
            "none": ["no benefit"],
            "open": [],
            "last": ["helps"],
        }.items():
            judged(store, examples, name, *verdicts)
    with Queries(url) as queries:
        found = queries.helped()
        assert [row["name"] for row in found] == ["first", "last"]
        assert [row["plan"] for row in found] == [examples.plan(0.2), examples.plan(0.1)]
        for row in found:
            whole = queries.study(row["name"])
            assert row["sites"] == whole["sites"] and row["sites"]
            assert row["definition"] == whole["definition"]


def test_many_studies_take_no_more_statements_than_one(url, examples):
    with Store(url) as store:
        for i in range(30):
            judged(store, examples, str(i), "helps")
    counting = Counting(url)
    with Queries(url, counting) as queries:
        assert len(queries.helped()) == 30
        assert counting.asked == 2


def test_what_helps_another_objective_than_the_first_is_left_out(url, examples):
    with Store(url) as store:
        judged(store, examples, "other", "helps", objective="val_accuracy")
        judged(store, examples, "first", "helps")
    with Queries(url) as queries:
        assert [row["name"] for row in queries.helped()] == ["first"]
