"""The page in a headless Chromium: no error, no request, and the numbers of the store."""

import shutil

import pytest
from click.testing import CliRunner

from droptune import cli
from droptune.report.facts import gather
from droptune.store.drawn import Drawn
from tests.report.storing import EVIL, value, whole

pytest.importorskip("plotly")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed; on Debian: apt-get install chromium"
)


class Opened:
    """The page of a study whose name and messages are hostile, as a browser shows it."""

    def __init__(self, folder, browser) -> None:
        self.url = f"sqlite:///{folder / 'droptune.db'}"
        whole(self.url, EVIL)
        path, words = folder / "report.html", ["--study", EVIL, "--store", self.url]
        result = CliRunner().invoke(cli.main, ["report", *words, "-o", str(path)])
        assert result.exit_code == 0, result.output
        self.said, self.requests = [], []
        self.page = browser.new_page(viewport={"width": 390, "height": 800})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.path = path
        self.page.goto(path.as_uri())
        boxes = "[...document.querySelectorAll('.figure')]"
        self.until(f"{boxes}.length === 7 && {boxes}.every(b => b.layout?.font?.color)")

    def until(self, expression: str) -> None:
        """Wait for an expression to hold; the page's policy forbids Playwright's own way."""
        for _ in range(200):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"it never came: {expression}")

    def points(self, title: str, name: str) -> list[list[float]]:
        """Return x and y of a trace in the figure of a section, as the browser holds them."""
        return self.page.evaluate(
            """([title, name]) => {
                const heads = [...document.querySelectorAll('h2')];
                const box = heads.find(h => h.textContent === title)
                    .parentElement.querySelector('.figure');
                const trace = box.data.find(t => t.name === name);
                return [Array.from(trace.x), Array.from(trace.y)];
            }""",
            [title, name],
        )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """One browser and one page for all tests: to start one takes most of the time."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Opened(tmp_path_factory.mktemp("page"), browser)
        browser.close()


def test_nothing_is_said_on_the_console_and_nothing_asked_for(opened):
    assert opened.said == []
    assert opened.requests == [opened.path.as_uri()]


def test_the_page_could_not_load_anything_if_it_tried(opened):
    before = len(opened.said)
    opened.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert any("Content Security Policy" in line for line in opened.said[before:])
    del opened.said[before:]


def test_the_numbers_are_those_of_the_store(opened):
    with Drawn(opened.url) as queries:
        facts = gather(queries, EVIL)
    blocks, differences = opened.points("Paired differences", "finalist 1")
    assert dict(zip(blocks, differences, strict=True)) == facts.pairs["finalist 1"]
    assert differences[0] == value(0.2, 0.0, 1) - value(0.0, 0.0, 1)
    epochs, means = opened.points("val_loss over training", "finalist 1")
    assert epochs == [1, 2, 3]
    assert means[-1] == pytest.approx(facts.best["best"]["value"])
    _, values = opened.points("Search history", "sampled")
    sampled = [t for t in facts.trials if t["state"] == "complete" and not t["name"]]
    assert values == [t["value"] for t in sampled]
    assert opened.page.inner_text("#verdict") == facts.said
    shown = opened.page.locator("#trials tbody tr").count()
    assert shown == len(facts.trials)


def test_what_is_hostile_is_shown_as_text(opened):
    assert "onerror=alert(1)" in opened.page.inner_text("h1")
    assert opened.page.locator("img").count() == 0


def test_a_phone_need_not_scroll_sideways(opened):
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_dark_dress_has_light_letters_and_print_dark_ones(opened):
    ink = "document.querySelector('.figure').layout.font.color"
    opened.page.emulate_media(color_scheme="dark")
    opened.until(f"{ink} === '#e6e8eb'")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.until(f"{ink} === '#1b1f24'")
