"""The notebooks in JupyterLab, in a real browser: run, moved, interrupted, closed and come back to."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import small

from dcopy import results
from dcopy.workflow.plan import ROOT

pytestmark = pytest.mark.system
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 400  # for a notebook, on a busy machine
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # so that every cell is in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The library and the reference, and the notebooks in small."""
    root = tmp_path_factory.mktemp("lab") / "checkout"
    (root / "results").mkdir(parents=True)
    for name in ("dcopy", "pyproject.toml", "results/reference"):
        (root / name).symlink_to(ROOT / name)
    (root / "notebooks").mkdir()
    for name in small.NOTEBOOKS:
        small.write(name, root / "notebooks")
    return root


@pytest.fixture(scope="module")
def lab(checkout) -> str:
    """The address of a JupyterLab that works there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = checkout.parent
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        results.write_json(path, values)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "DCOPY"))}
    clean |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "PYTHONPATH": str(ROOT), "HOME": str(home)}
    words = ["--no-browser", "--allow-root", f"--ServerApp.port={port}", "--IdentityProvider.token="]
    words += [f"--ServerApp.root_dir={checkout}", f"--LabApp.workspaces_dir={home / 'workspaces'}"]
    with open(home / "lab.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words], stdout=log, stderr=log, env=clean, cwd=checkout
        )
        wait_for(lambda: "is running at" in (home / "lab.log").read_text(encoding="utf-8"))
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks"
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install '.[browser]'")
    if BROWSER is None:
        pytest.skip("no Chromium: apt install chromium")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * SECONDS)
    yield page
    page.close()


def wait_for(condition, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)


def open_notebook(page, lab: str, name: str) -> None:
    page.goto(f"{lab}/{name}.ipynb?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator("text=| Idle").first.wait_for()  # a kernel is there


def menu(page, first: str, second: str) -> None:
    page.locator(f".lm-MenuBar-item:has-text('{first}')").click()
    page.locator(f".lm-Menu-item:has-text('{second}')").first.click()


def run_all(page) -> None:
    menu(page, "Run", "Run All Cells")
    page.wait_for_function("""() => {
        const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')];
        const texts = prompts.map(prompt => prompt.textContent);
        return texts.length && texts.every(text => /\\[\\d+\\]/.test(text) || text.includes('[ ]'))
            && /\\[\\d+\\]/.test(texts.join('')) && !texts.some(text => text.includes('*'))
            && document.body.textContent.includes('| Idle');
    }""")


def saved(page, path: Path) -> list[dict]:
    """The code cells of the notebook as the page has them."""
    before = path.stat().st_mtime_ns
    menu(page, "File", "Save Notebook")
    wait_for(lambda: path.stat().st_mtime_ns != before and path.read_text(encoding="utf-8").endswith("}\n"))
    return [cell for cell in results.read_json(path)["cells"] if cell["cell_type"] == "code"]


def errors(cells: list[dict]) -> list[str]:
    found = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    return [f"{output['ename']}: {output['evalue']}" for output in found]


@pytest.mark.parametrize("name", small.NOTEBOOKS)
def test_run_all_ends_without_an_error(lab, page, checkout, name):
    """In reading order, so that the next one probes what one trains; in 01 the sliders move the picture."""
    open_notebook(page, lab, name)
    run_all(page)
    cells = saved(page, checkout / "notebooks" / f"{name}.ipynb")
    assert errors(cells) == [] and all(cell["execution_count"] for cell in cells if cell["source"])
    if name == "01_linear_theory":
        move_a_slider(page)
    menu(page, "Kernel", "Shut Down Kernel")


def move_a_slider(page) -> None:
    box = page.locator(".widget-hbox:has(img):has(.widget-slider)").first
    box.scroll_into_view_if_needed()
    slider, picture = box.locator(".widget-slider").first, box.locator("img").first
    before = picture.get_attribute("src"), slider.locator(".widget-readout").text_content()
    slider.locator(".noUi-handle").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("([image, old]) => image.src !== old", arg=[picture.element_handle(), before[0]])
    assert slider.locator(".widget-readout").text_content() != before[1]


def test_training_is_interrupted_continued_and_outlives_the_tab(lab, browser, page, checkout):
    path = small.write("03_pretrain", checkout / "notebooks", epochs=150, seeds=[7])
    path = path.rename(path.with_name("long.ipynb"))
    open_notebook(page, lab, "long")
    menu(page, "Run", "Run All Cells")
    runs = checkout / "results/quick/runs"

    def epochs() -> int:
        logs = list(runs.glob("*seed7*/metrics.jsonl"))
        return len(results.read_jsonl(logs[0])) if logs else 0

    wait_for(lambda: epochs() > 3)
    menu(page, "Kernel", "Interrupt Kernel")
    page.locator("text=the same command continues").first.wait_for()
    stopped = epochs()
    assert 3 < stopped < 150 and not list(runs.glob("*seed7*/result.json"))
    (log,) = runs.glob("*seed7*/metrics.jsonl")
    begun = log.read_text(encoding="utf-8")

    menu(page, "Run", "Run All Cells")
    wait_for(lambda: epochs() > stopped)
    page.close()  # and the kernel goes on
    wait_for(lambda: list(runs.glob("*seed7*/result.json")))
    assert log.read_text(encoding="utf-8").startswith(begun) and epochs() == 150

    again = browser.new_page()
    again.set_default_timeout(1000 * SECONDS)
    open_notebook(again, lab, "long")
    run_all(again)
    cells = saved(again, path)
    assert errors(cells) == [] and re.search("150 epochs in ", json.dumps(cells))
    again.close()
