"""Sliders over the flow of two features, moved by a live kernel, or by JavaScript where there is none."""

from __future__ import annotations

import base64
import io
import json
from importlib.resources import files

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..report.plotting import COLORS
from . import closed_forms as theory
from .flow import feature

SLIDERS = {  # name: label, first, last, step, value
    "eta": ("η", 0.0, 0.3, 0.005, 0.2),
    "variance": ("σ²", 0.0, 4.0, 0.05, 1.0),
    "alpha": ("α", 0.25, 3.0, 0.25, 1.0),
    "eps": ("ε", 0.0, 1.0, 0.01, 0.0),
    "delta": ("δ", 0.01, 1.2, 0.01, 0.8),
}
CONVENTION = ("predictor of", {"views (algorithm)": "views", "data (paper)": "data"})
LONGEST = 100  # time units on the axis
LINEAR = 0.3  # of them, the first, on a linear scale; then it is logarithmic
PAIR = (COLORS["directcopy"], COLORS["none"])  # the feature without noise, and the noisy one


def decimals(step: float) -> int:
    """How many of them a slider shows: those of its step."""
    return len(f"{step:g}".partition(".")[2])


def as_shown(name: str, value: float | str) -> float | str:
    """The value of a slider as its label shows it: a sum of steps is off by rounding.

    >>> as_shown("eta", 0.2 + 10 * 0.005), as_shown("eta", 0.25000000000000006)
    (0.25, 0.25)
    """
    return round(value, decimals(SLIDERS[name][3])) if name in SLIDERS else value


def fate(delta: float, eta: float, variance: float, *args) -> str:
    """What becomes of one feature, and why, in a word or two.

    Args:
        delta, eta, variance: see `closed_forms`.
        *args: alpha, eps and convention.

    Returns:
        "kept"; "threshold" or "saddle", kept on an edge; "eta", "eps" or "basin", lost for that reason.

    >>> [fate(0.8, eta, 1.0, 1.0, 0.0, "views") for eta in (0.1, 0.125, 0.15)]
    ['kept', 'threshold', 'eta']
    """
    alpha, eps, convention = args
    options = {"alpha": alpha, "eps": eps, "convention": convention}
    q_minus, q_plus = theory.fixed_points(eta, variance)
    top = theory.weight(q_plus, variance, **options)
    end = theory.final_weight(delta, eta, variance, **options)
    if end > 0:
        return "threshold" if q_minus == q_plus else "kept" if end == top else "saddle"
    return "eta" if q_plus.isnan() else "eps" if top == 0 else "basin"


def verdict(
    eta: float, variance: float, alpha: float, eps: float, delta: float, convention: str = "views"
) -> str:
    """What becomes of a feature without noise (S) and of one with `variance`, in one line.

    >>> verdict(eta=0.2, variance=1.0, alpha=1.0, eps=0.0, delta=0.8)
    'as Theorem 1†: S is kept, the noisy feature is discarded'
    """
    stable, noisy = (fate(delta, eta, v, alpha, eps, convention) for v in (0.0, variance))
    lost = {
        "eta": "eta is above 1/4, and no feature survives that",
        "eps": "eps is not below q+",
        "basin": "delta is in the basin of 0",
    }
    why = {"eta": "", "eps": ": eps is not below its q+", "basin": ": delta is in its basin of 0"}
    if stable == "threshold":
        return "on the edge: eta is 1/4, and S rests where its q- and q+ meet"
    if stable == "saddle":
        return "on the edge: S starts at its q-, and rests there unstably"
    alone = "; S is lost" if stable in lost else ""
    if noisy == "threshold":
        return f"on the edge: eta is the noisy feature's threshold, where its q- and q+ meet{alone}"
    if noisy == "saddle":
        return f"on the edge: the noisy feature starts at its q-, and rests there unstably{alone}"
    if stable in lost:
        only = "only the noisy feature is kept: S starts in its basin of 0"
        return only if noisy == "kept" else f"collapse: {lost[stable]}"
    if noisy in why:
        theorem = "as Theorem 1†: " if noisy == "eta" and eps == 0 else ""
        return f"{theorem}S is kept, the noisy feature is discarded{why[noisy]}"
    if variance == 0:
        return "both are kept: neither has noise"
    return "both are kept: the weight decay is below the noisy feature's threshold"


def path(delta: float, ends: Tensor, variances: Tensor, *args) -> tuple[Tensor, Tensor]:
    """Times and weights of features on their way from delta to their ends, without an integrator.

    A feature moves one way only, so the time to reach λ is the integral of dλ over its velocity; a
    slider can wait for that sum, not for small steps. The points lie close where a feature is slow:
    at its start, its end, its q- and, above its threshold, where q- and q+ used to be.

    Args:
        delta: start of all features.
        ends: (m,), where each feature comes to rest.
        variances: (m,).
        *args: eta, alpha, eps and convention.

    Returns:
        times and weights, each (points, m).

    >>> times, weights = path(0.5, torch.zeros(1), torch.zeros(1), 0.3, 1.0, 0.0, "views")
    >>> bool((times.diff(dim=0) >= 0).all() and (weights.diff(dim=0) <= 0).all())
    True
    """
    eta, alpha, eps, convention = args
    options = {"alpha": alpha, "eps": eps, "convention": convention}
    saddle = theory.weight(theory.fixed_points(eta, variances)[0], variances, **options)
    waist = theory.weight(1 / (2 * (1 + variances)), variances, **options)
    way = delta - ends  # (m,)
    rests = way.abs() < 1e-12
    way = torch.where(rests, 1.0, way)
    slow = torch.stack([torch.full_like(ends, delta), ends, saddle.nan_to_num(nan=delta), waist])
    offsets = torch.logspace(0, -9, 800, dtype=torch.float64)
    offsets = torch.cat([offsets, -offsets]).view(1, -1, 1)
    shares = ((slow - ends) / way).unsqueeze(1) + offsets  # of the way that is left, (4, 1600, m)
    shares = shares.flatten(0, 1).clamp(1e-9, 1).sort(dim=0, descending=True).values
    weights = ends + way * shares
    speed = feature(weights, variances, eta, alpha, eps, convention=convention).abs()
    speed = speed.clamp(min=1e-300)  # rounding may put a point where a feature rests
    times = torch.cumulative_trapezoid(1 / speed, -shares, dim=0) * way.abs()
    times = torch.where(rests, 0.0, torch.cat([torch.zeros_like(times[:1]), times]))
    weights = torch.where(rests, ends, weights)
    return torch.cat([times, times[-1:] + 1e3]), torch.cat([weights, ends.unsqueeze(0)])  # then it rests


def still_moving(times: Tensor, weights: Tensor, variances: list[float]) -> str:
    """A line for each feature that the axis is too short for: when it is within 1 % of its way's end."""
    left = (weights - weights[-1]).abs() > 0.01 * (weights[0] - weights[-1]).abs()  # (points, m)
    lines = []
    for variance, time in zip(variances, (times * left).amax(0).tolist(), strict=True):
        if time > LONGEST:
            when = f"≈ {time:,.0f}" if time < 1e6 else "> 1,000,000"
            lines.append(f"σ² = {variance:g} is still on its way: 99 % of it take t {when}")
    return "\n".join(lines)


class Explorer:
    """Trajectories of two features that follow sliders; displays itself in a notebook.

    The axes are drawn once; a slider moves the lines, which takes tens of milliseconds. Needs
    ipywidgets and nothing else in JupyterLab and in Colab. Without a live kernel (a page, a stored
    copy) `html` is shown, whose sliders move as well; a preview that runs no scripts shows its picture.

    >>> len(Explorer().update(eta=0.1)) > 1000
    True
    """

    def __init__(self):
        self.figure = Figure(figsize=(7.2, 3.4), dpi=90, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        ax = self.figure.add_subplot()
        ax.set_xscale("symlog", linthresh=LINEAR, linscale=0.4)
        ax.set(xlim=(0, LONGEST), ylim=(-0.03, 1.25), xlabel="time t", ylabel="weight λ")
        ax.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        self.lines = [ax.plot([], [], color=color)[0] for color in PAIR]
        self.limits = [ax.axhline(0, color=color, ls="--", lw=1.2) for color in PAIR]
        self.legend = ax.legend(
            self.lines,
            ["σ² = 0.00"] * 2,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            title="dashed: predicted",
        )
        self.title = ax.set_title(" ", fontsize=11)
        self.note = ax.text(0.98, 0.96, "", transform=ax.transAxes, ha="right", va="top", fontsize=9)
        self.moving = [*self.limits, *self.lines, self.legend, self.title, self.note]
        for artist in self.moving:
            artist.set_animated(True)  # left out of the background, drawn again by every update
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.values = {name: value for name, (*_, value) in SLIDERS.items()} | {"convention": "views"}
        self.update()

    def update(self, **values: float | str) -> bytes:
        """Redraw for new values of some sliders (names of SLIDERS) or the convention; the picture as PNG."""
        self.values |= {name: as_shown(name, value) for name, value in values.items()}
        v = self.values
        variances = torch.tensor([0.0, v["variance"]], dtype=torch.float64)
        args = {name: v[name] for name in ("alpha", "eps", "convention")}
        ends = theory.final_weight(v["delta"], v["eta"], variances, **args)
        times, weights = path(v["delta"], ends, variances, v["eta"], *args.values())
        for line, limit, t, y, end in zip(
            self.lines, self.limits, times.mT, weights.mT, ends.tolist(), strict=True
        ):
            line.set_data(t, y)
            limit.set_ydata([end, end])
        self.note.set_text(still_moving(times, weights, variances.tolist()))
        for text, variance in zip(self.legend.get_texts(), variances.tolist(), strict=True):
            text.set_text(f"σ² = {variance:g}")
        self.title.set_text(verdict(**v))
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        png = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB").save(
            png, "PNG", compress_level=1
        )
        self.png = png.getvalue()
        return self.png

    def widget(self):
        """The sliders above the picture, as one ipywidgets box."""
        import ipywidgets

        image = ipywidgets.Image(value=self.png, format="png")
        controls = {}
        for name, (label, low, high, step, _) in SLIDERS.items():
            shown = {"step": step, "readout_format": f".{decimals(step)}f", "description": label}
            controls[name] = ipywidgets.FloatSlider(self.values[name], min=low, max=high, **shown)
        label, options = CONVENTION
        controls["convention"] = ipywidgets.Dropdown(
            value=self.values["convention"], options=options, description=label
        )
        for name, control in controls.items():
            control.observe(
                lambda change, name=name: setattr(image, "value", self.update(**{name: change.new})), "value"
            )
        return ipywidgets.HBox([ipywidgets.VBox(list(controls.values())), image])

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = self.widget()._repr_mimebundle_(include=include, exclude=exclude)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.html()}, metadata

    def html(self) -> str:
        """The sliders as a part of a page that needs nothing else: its style, its script, and the picture."""
        style, script = (
            files(__package__).joinpath(f"explorer.{kind}").read_text(encoding="utf-8")
            for kind in ("css", "js")
        )
        names = ("sliders", "convention", "longest", "colors", "linear")
        settings = dict(zip(names, (SLIDERS, CONVENTION, LONGEST, PAIR, LINEAR), strict=True))
        small = io.BytesIO()
        Image.open(io.BytesIO(self.png)).quantize(64).save(small, "PNG", optimize=True)
        picture = base64.b64encode(small.getvalue()).decode()
        image = f'<img alt="weights of two features against time" src="data:image/png;base64,{picture}">'
        start = f"forEach((root) => explorer(root, {json.dumps(settings)}));"
        return (
            f"<style>\n{style}</style>\n"
            f'<div class="dcopy-explorer">{image}</div>\n'
            f'<script>(() => {{\n{script}\ndocument.querySelectorAll(".dcopy-explorer").{start}\n'
            "})();</script>"
        )
