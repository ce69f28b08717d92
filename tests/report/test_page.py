"""The page as text: what it says, what it escapes, and that it says something in any state."""

import re
import sys
from html import escape

import pytest

from droptune.errors import StudyError
from droptune.importance import Importance
from droptune.report.facts import gather
from droptune.report.page import _drawn, page
from droptune.store import Store
from droptune.store.drawn import Drawn
from tests.report.storing import EVIL, add_block, add_trial, begin, plan, verdict, whole

plotly = pytest.importorskip("plotly")
go = pytest.importorskip("plotly.graph_objects")
SHARES = Importance({"rate.hidden": 0.75, "rate.head": 0.25}, {"hidden": 0.75, "head": 0.25}, 23)
NONE = Importance({}, {}, 3, "no importance: 3 complete trials, 20 are needed")


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'droptune.db'}"


def written(url: str, name: str = "mine", shares: Importance = SHARES) -> str:
    """Return the page of a study without plotly's own script."""
    with Drawn(url) as queries:
        text = page(gather(queries, name), shares.to_json())
    return text.replace(plotly.offline.get_plotlyjs(), "")


def cells(text: str, table: str) -> list[list[str]]:
    """Return the cells of a table's rows."""
    body = re.search(rf'id="{table}">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)[1]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]


def test_the_page_opens_with_the_verdict_and_the_plan(url):
    whole(url)
    text = written(url)
    row = verdict(4)
    assert f'class="verdict helps" id="verdict">{escape(row["text"])}<' in text
    assert cells(text, "plan") == [
        ["1", "standard", "0.2", '<div><i style="width:20.0%"></i></div>', "constant"]
    ]
    numbers = cells(text, "numbers")
    assert [r[0] for r in numbers] == ["finalist 1, to use", "no dropout"]
    assert [float(r[1]) for r in numbers] == pytest.approx(
        [row["best"]["value"], row["control"]["value"]], abs=1e-3
    )
    assert "-0.05 from no dropout" in text  # 0.99 - 1.04


def test_all_runs_and_trials_are_in_the_tables(url):
    whole(url, trials=24, blocks=4)
    text = written(url)
    assert len(cells(text, "runs")) == 12 and len(cells(text, "trials")) == 24
    assert cells(text, "trials")[2][1] == "failed"


def test_names_and_messages_are_escaped(url):
    whole(url, EVIL)
    text = written(url, EVIL)
    assert "<img" not in text and "\x1b" not in text and "<b>" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert text.count("</script>") == text.count("<script")


def test_no_figure_can_end_its_script(url):
    section = _drawn("title", go.Figure(layout={"title": {"text": "</script><b>"}}), "note")
    assert section.count("</script>") == 1 and "<b>" not in section


def test_a_failed_run_of_the_confirmation_says_why(url):
    whole(url)
    with Store(url) as store:
        run = store.start_run(
            1,
            phase="confirm",
            arm="finalist 1",
            plan=plan(0.2),
            block=9,
            seed=1,
            clock=0,
            slot=0,
            trainer="fused",
            device="cpu",
        )
        store.end_run(run, "failed", seconds=1.0, epochs=1, message="diverged: val_loss is nan")
    row = cells(written(url), "runs")[-1]
    assert row[:3] == ["9", "finalist 1", "failed"] and "val_loss is nan" in row[-1]


def test_importance_that_cannot_be_had_is_a_line(url):
    whole(url)
    assert "no importance: 3 complete trials, 20 are needed" in written(url, shares=NONE)


def test_a_study_without_a_trial_has_a_page(url):
    with Store(url) as store:
        begin(store, "mine")
    text = written(url, shares=NONE)
    assert "undecided: nothing is confirmed yet" in text
    assert "No plan yet: no trial has finished." in text and 'class="plot"' not in text


@pytest.mark.parametrize("bad", [False, True])
def test_a_study_of_one_trial_has_a_page(url, bad):
    with Store(url) as store:
        study_id, study = begin(store, "mine")
        add_trial(store, study_id, study, (0.1, 0.0), bad=bad)
    text = written(url, shares=NONE)
    assert ("Best so far, not confirmed" in text) and (bad or cells(text, "plan"))
    assert len(cells(text, "trials")) == 1


def test_a_confirmation_under_way_has_a_page(url):
    with Store(url) as store:
        study_id, study = begin(store, "mine")
        add_trial(store, study_id, study, (0.0, 0.0), name="no dropout")
        add_block(store, study_id, 1, {"no dropout": (0.0, 0.0)})
    text = written(url, shares=NONE)
    assert len(cells(text, "runs")) == 1 and "undecided" in text


def test_a_long_table_says_that_it_is_cut(url, monkeypatch):
    whole(url)
    monkeypatch.setattr("droptune.report.page.MOST_ROWS", 5)
    text = written(url)
    assert len(cells(text, "trials")) == 5 and "The first 5 of 24" in text


def test_without_plotly_the_error_says_what_to_install(url, monkeypatch):
    whole(url)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(StudyError, match=r"pip install 'droptune\[report\]'"):
        written(url)
