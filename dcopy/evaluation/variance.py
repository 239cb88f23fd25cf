"""Which directions of the projections survive: those that augmentation leaves alone?

In the linear theory weight decay drops feature j when its variance under augmentation, sigma_j^2 in
units of its variance over images, lies above a threshold. This measures both variances along the
eigenvectors of F of a trained network.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata  # a dependency of scikit-learn
from torch import Tensor

from .. import hardware, results
from ..config import TrainConfig
from ..data import augment, fingerprint
from ..models import Network
from ..training import checkpoint
from ..training.runs import read_config
from ..training.step import derive_seed


def load_network(folder: str | Path) -> tuple[Network, Tensor, TrainConfig]:
    """The trained online network of a run in eval mode, its F (D, D), and its configuration.

    Raises:
        ValueError: the checkpoint is not complete, or of another version of dcopy.
    """
    path = Path(folder) / checkpoint.NEWEST
    tensors, header = checkpoint.read(path)
    config = read_config(header["config"], path)
    network = Network(config, header["channels"])
    with checkpoint.complete(path):
        network.load_state_dict(checkpoint.part(tensors, "online"), strict=True)
        F = tensors["predictor.F"].reshape(2 * (config.projection_dim,))
    return network.eval(), F, config


@torch.inference_mode()
def variances(
    folder: str | Path,
    images: Tensor,
    views: int = 16,
    device: str | None = None,
    directions: Tensor | None = None,
) -> dict[str, list[float]]:
    """Variance over images and under augmentation along each eigenvector u of F, or other directions.

    With z the projection of a random view of image x: over images Var_x E[u.z | x], under
    augmentation E_x Var[u.z | x]; both unbiased for a finite number of views.

    Args:
        folder: of a finished run.
        images: (N, C, H, W) uint8.
        views: random views of each image, at least 2.
        device: default a GPU where there is one.
        directions: (D, D), orthonormal columns; default the eigenvectors of F, by eigenvalue from
            large to small.

    Returns:
        Lists of D numbers, one a direction: eigenvalue (u.F u), image, augmentation, and
        sigma2 = augmentation / image (infinite values as None).
    """
    network, F, config = load_network(folder)
    augmentation = augment.build(config.recipe.augmentation, config.image_size)
    device, _ = hardware.choose(device)
    generator = torch.Generator(device).manual_seed(derive_seed(config.seed, "variance"))
    network, batches = network.to(device), images.to(device).split(1000)

    def project() -> Tensor:  # a view of each image: (N, D)
        return torch.cat([network(augmentation(batch, generator)) for batch in batches])

    z = torch.stack([project() for _ in range(views)]).cpu().double()  # (V, N, D)
    if directions is None:
        eigenvalues, U = (part.flip(-1) for part in torch.linalg.eigh(F.double()))
    else:
        U = directions.double().cpu()
        eigenvalues = (U * (F.double() @ U)).sum(0)  # (D,)
    along = z @ U  # (V, N, D)
    under = along.var(dim=0).mean(dim=0)  # (D,)
    over = (along.mean(dim=0).var(dim=0) - under / views).clamp(min=0)  # (D,)
    ratio = under / over
    return {
        "eigenvalue": eigenvalues.clamp(min=0).tolist(),
        "image": over.tolist(),
        "augmentation": under.tolist(),
        "sigma2": [value if value < float("inf") else None for value in ratio.tolist()],
    }


def of_run(folder: str | Path, images: Tensor, views: int = 16, keep: Path | None = None) -> dict | None:
    """`variances` of a run, kept as variance.json, since weights are seldom passed on.

    Args:
        keep: the folder to keep it in; default: the run's own.

    Returns:
        The record with views, data_fingerprint and where it was made; None where the run was not measured
        on these images with as many views, and its weights are not there to do so.
    """
    paths = [Path(place) / "variance.json" for place in (keep or folder, folder)]
    asked = {"views": views, "data_fingerprint": fingerprint(images)}
    for path in paths:
        if path.exists() and asked.items() <= (known := results.read_json(path)).items():
            return known
    if not (Path(folder) / checkpoint.NEWEST).exists():
        return None
    record = variances(folder, images, views) | asked | results.provenance()
    results.write_json(paths[0], record)
    return record


def summarize(record: dict[str, list[float]], share: float = 0.01) -> dict[str, float | None]:
    """Does the spectrum prefer low variance? Survivors hold at least `share` of the trace of F.

    Returns:
        survivors: their number; sigma2_survivors and sigma2_dropped: medians of sigma2 (None where
        there is none); rank_correlation: Spearman's, of eigenvalue and sigma2 over all directions (None
        where all are equal, as after a collapse to one point).
    """
    eigenvalue = torch.tensor(record["eigenvalue"])
    sigma2 = torch.tensor([float("inf") if value is None else value for value in record["sigma2"]])
    survives = (eigenvalue > 0) & (eigenvalue >= share * eigenvalue.sum())

    def median(values: Tensor) -> float | None:
        found = np.median(values) if len(values) else np.inf
        return float(found) if np.isfinite(found) else None

    ranks = np.stack([rankdata(values) for values in (eigenvalue, sigma2)])  # equal ones share theirs
    differ = np.ptp(ranks, axis=1).all()
    return {
        "survivors": int(survives.sum()),
        "sigma2_survivors": median(sigma2[survives]),
        "sigma2_dropped": median(sigma2[~survives]),
        "rank_correlation": float(np.corrcoef(ranks)[0, 1]) if differ else None,
    }
