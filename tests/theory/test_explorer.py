"""The explorer's sliders in JavaScript do what the closed forms in Python say."""

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dcopy.theory import closed_forms
from dcopy.theory.explorer import SLIDERS, Explorer, as_shown, path, still_moving, verdict

SCRIPT = Path(closed_forms.__file__).with_name("explorer.js")
ASK = """
const { finalWeight, fixedPoints, path, stillMoving, verdict } = require(process.argv[1]);
const points = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const interpolated = (way, t) => {
  const i = way.findIndex(([time]) => time > t), [[t0, w0], [t1, w1]] = [way[i - 1], way[i]];
  return t1 > t0 ? w0 + ((w1 - w0) * (t - t0)) / (t1 - t0) : w1;
};
console.log(JSON.stringify(points.map(({ eta, variance, delta, ...options }) => ({
  verdict: verdict({ eta, variance, delta, ...options }),
  end: finalWeight(delta, eta, variance, options),
  roots: fixedPoints(eta, variance).map((q) => (Number.isNaN(q) ? null : q)),
  moving: stillMoving(path(delta, eta, variance, options), variance, 100),
  way: [0.5, 5, 50].map((t) => interpolated(path(delta, eta, variance, options), t)),
}))));
"""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def points(number: int) -> list[dict]:
    """Positions of all sliders, every fifth on an edge where verdicts change."""
    chance = random.Random(0)
    found = []
    for i in range(number):
        values = {}
        for name, (_, low, high, step, _) in SLIDERS.items():
            values[name] = as_shown(name, low + step * chance.randint(0, round((high - low) / step)))
        values["convention"] = chance.choice(["views", "data"])
        if i % 5 == 0:
            values |= {"eta": 0.25 if i % 2 else 1 / (4 * (1 + values["variance"]))}
        found.append(values)
    return found


@pytest.mark.system
def test_javascript_agrees_with_python_on_500_points():
    if not shutil.which("node"):
        pytest.skip("no Node: apt install nodejs")
    asked = points(500)
    command = ["node", "-e", ASK, str(SCRIPT)]
    answer = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    for values, found in zip(asked, json.loads(answer.stdout), strict=True):
        eta, variance, delta = (values[name] for name in ("eta", "variance", "delta"))
        options = {name: values[name] for name in ("alpha", "eps", "convention")}
        assert found["verdict"] == verdict(**values), values
        end = closed_forms.final_weight(delta, eta, variance, **options)
        assert found["end"] == pytest.approx(end.item(), rel=1e-12), values
        for root, expected in zip(found["roots"], closed_forms.fixed_points(eta, variance), strict=True):
            assert (root is None and expected.isnan()) or root == pytest.approx(expected.item(), rel=1e-12)
        times, weights = path(delta, end[None], torch.tensor([variance]).double(), eta, *options.values())
        slow = still_moving(times, weights, [variance])
        assert bool(found["moving"]) == bool(slow), values  # its time, on an edge, is one of rounding
        expected = np.interp([0.5, 5, 50], times[:, 0], weights[:, 0])
        assert found["way"] == pytest.approx(expected.tolist(), abs=1e-6), values


@pytest.mark.system
def test_a_slider_in_the_page_moves_curve_and_verdict(tmp_path):
    driver = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install '.[browser]'")
    if BROWSER is None:
        pytest.skip("no Chromium: apt install chromium")
    page_file = tmp_path / "explorer.html"
    page_file.write_text(f'<!doctype html><meta charset="utf-8">{Explorer().html()}', encoding="utf-8")
    with driver.sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]).new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(page_file.as_uri())

        def shown():
            ways = page.eval_on_selector_all(".way", "ways => ways.map((way) => way.getAttribute('d'))")
            return page.text_content(".verdict"), *ways

        values = {name: value for name, (*_, value) in SLIDERS.items()}
        before = shown()
        assert before[0] == verdict(**values)
        page.locator("input[name=eta]").fill("0.1")
        after = shown()
        assert after[0] == verdict(**(values | {"eta": 0.1})) != before[0]
        assert after[1] != before[1] and after[2] != before[2] and "NaN" not in "".join(after)
        page.locator("select").select_option("data")
        assert shown()[2] != after[2]
        assert not wrong and not page.locator(".dcopy-explorer img").count()


def test_the_page_is_whole_in_itself_and_knows_the_sliders():
    text = Explorer().html()
    assert json.dumps(SLIDERS["eta"])[1:-1] in text and not re.search("https?://|url[(]|@import", text)
    assert len(text) < 40_000
