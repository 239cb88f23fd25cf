"""Sliders over the flow of two features; a picture where no kernel is alive to move them."""

from __future__ import annotations

import base64
import io

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


def verdict(eta: float, variance: float, alpha: float, eps: float, delta: float) -> str:
    """What becomes of a feature without noise and of one with `variance`, in one line.

    >>> verdict(eta=0.2, variance=1.0, alpha=1.0, eps=0.0, delta=0.8)
    'as Theorem 1: S is kept, the noisy feature is discarded'
    """
    stable, noisy = theory.final_weight(delta, eta, torch.tensor([0.0, variance]), alpha, eps) > 0
    if stable and noisy:
        return "both are kept: the weight decay is below the noisy feature's threshold"
    if stable:
        within = eps == 0 and theory.threshold(variance) < eta
        return f"{'as Theorem 1: ' if within else ''}S is kept, the noisy feature is discarded"
    if eta >= 0.25:
        return "collapse: eta is above 1/4, and no feature survives that"
    if eps >= theory.fixed_points(eta, 0.0)[1]:
        return "collapse: eps is above q+"
    return "collapse: delta is in the basin of 0"


def path(delta: float, ends: Tensor, variances: Tensor, *args: float) -> tuple[Tensor, Tensor]:
    """Times and weights of features on their way from delta to their ends, without an integrator.

    A feature moves one way only, so the time to reach λ is the integral of dλ over its velocity; a
    slider can wait for that sum, not for small steps.

    Args:
        delta: start of all features.
        ends: (m,), where each feature comes to rest.
        variances: (m,).
        *args: further arguments of `feature`: eta, alpha, eps.

    Returns:
        times and weights, each (points, m); a feature that starts at rest has infinite times.

    >>> times, weights = path(0.5, torch.zeros(1), torch.zeros(1), 0.3)
    >>> bool((times.diff(dim=0) > 0).all() and (weights.diff(dim=0) < 0).all())
    True
    """
    left = torch.logspace(0, -8, 2000, dtype=torch.float64).unsqueeze(-1)  # share of the way, (points, 1)
    weights = ends + (delta - ends) * left
    slowness = 1 / feature(weights, variances, *args)
    times = torch.cumulative_trapezoid(slowness, weights, dim=0)
    times = torch.cat([torch.zeros_like(times[:1]), times, times[-1:] + 1e3])  # and then it rests
    return times, torch.cat([weights, ends.unsqueeze(0)])


class Explorer:
    """Trajectories of two features that follow five sliders; displays itself in a notebook.

    The axes are drawn once; a slider moves the lines, which takes tens of milliseconds. Needs
    ipywidgets and nothing else in JupyterLab and in Colab. Without a live kernel (papermill, a
    preview) the last picture is shown.

    >>> len(Explorer().update(eta=0.1)) > 1000
    True
    """

    def __init__(self):
        self.figure = Figure(figsize=(7.2, 3.4), dpi=90)
        self.canvas = FigureCanvasAgg(self.figure)
        ax = self.figure.add_subplot()
        ax.set_xscale("symlog", linthresh=0.3, linscale=0.4)
        ax.set(xlim=(0, 100), ylim=(-0.03, 1.25), xlabel="time t", ylabel="weight λ")
        ax.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        colors = (COLORS["directcopy"], COLORS["none"])
        self.lines = [ax.plot([], [], color=color)[0] for color in colors]
        self.limits = [ax.axhline(0, color=color, ls="--", lw=1.2) for color in colors]
        self.legend = ax.legend(
            self.lines,
            ["σ² = 0.00"] * 2,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            title="dashed: predicted",
        )
        self.title = ax.set_title(" ", fontsize=11)
        self.moving = [*self.limits, *self.lines, self.legend, self.title]
        for artist in self.moving:
            artist.set_animated(True)  # left out of the background, drawn again by every update
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.values = {name: value for name, (*_, value) in SLIDERS.items()}
        self.update()

    def update(self, **values: float) -> bytes:
        """Redraw for new values of some sliders (names of SLIDERS); returns the picture as PNG."""
        self.values |= values
        v = self.values
        variances = torch.tensor([0.0, v["variance"]], dtype=torch.float64)
        ends = theory.final_weight(v["delta"], v["eta"], variances, v["alpha"], v["eps"])
        times, weights = path(v["delta"], ends, variances, v["eta"], v["alpha"], v["eps"])
        for line, limit, t, y, end in zip(
            self.lines, self.limits, times.mT, weights.mT, ends.tolist(), strict=True
        ):
            line.set_data(t, y)
            limit.set_ydata([end, end])
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
        sliders = []
        for name, (label, low, high, step, _) in SLIDERS.items():
            slider = ipywidgets.FloatSlider(
                self.values[name], min=low, max=high, step=step, description=label
            )
            slider.observe(
                lambda change, name=name: setattr(image, "value", self.update(**{name: change.new})), "value"
            )
            sliders.append(slider)
        return ipywidgets.HBox([ipywidgets.VBox(sliders), image])

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = self.widget()._repr_mimebundle_(include=include, exclude=exclude)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "image/png": base64.b64encode(self.png).decode()}, metadata
