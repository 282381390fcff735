"""The page in a real browser: offline, quiet, and no wider than the window."""

import shutil

import pytest
import synthetic_runs

from lagjax import report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium executable on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
            ],
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("kind", ["clear", "awkward"])
def test_opens_offline_at_both_widths(browser, tmp_path, kind):
    names = ("x" * 80, '<b>&"x"', "plain") if kind == "awkward" else synthetic_runs.NAMES
    synthetic_runs.make(tmp_path, names=names)
    path = report.write(tmp_path)
    context = browser.new_context(offline=True)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for width, height in ((1280, 900), (360, 800)):
        page.set_viewport_size({"width": width, "height": height})
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        charts = page.locator("svg.chart")
        boxes = [charts.nth(i).bounding_box() for i in range(charts.count())]
        assert len(boxes) == 4
        # On a phone a picture keeps its size, and its figure scrolls.
        assert all(box["width"] >= 600 and box["height"] > 100 for box in boxes)
    assert said == []
    assert set(asked) == {path.as_uri()}
    context.close()
