"""Draw docs/report.png from the database that `make demo` leaves: `python docs/report.py`.

Takes the extra `report`, playwright, and a Chromium: the page is drawn as a browser shows it.
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from droptune.importance import importance_of
from droptune.report.facts import gather
from droptune.report.page import page
from droptune.store.drawn import Drawn

SIZE = {"width": 1400, "height": 1482}  # down to the rates over depth


def main() -> None:
    with Drawn("sqlite:///droptune.db") as queries:
        text = page(gather(queries, "digits"), importance_of(queries, "digits").to_json())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        written = Path(folder) / "report.html"
        written.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        shown = browser.new_page(viewport=SIZE)
        shown.goto(written.as_uri())
        shown.wait_for_timeout(2000)  # the figures take a moment
        shown.screenshot(path=str(Path(__file__).parent / "report.png"))
        browser.close()


if __name__ == "__main__":
    main()
