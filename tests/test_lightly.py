"""DirectCopy as the prediction head of lightly's own BYOL and SimSiam, by its modules and by Lightning."""

import copy

import pytest
import torch
from helpers.tiny import tiny_config, tiny_views
from torch import nn

from dcopy.predictors import DirectCopy, DirectPred
from dcopy.training.step import Trainer

pytest.importorskip("lightly", reason="lightly is of the extra of this name")
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLProjectionHead, SimSiamProjectionHead
from lightly.models.modules.heads import ProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum

D = 8
every_head = pytest.mark.parametrize("make", [DirectCopy, DirectPred])


class BYOL(nn.Module):
    """As in lightly's example, but for the prediction head."""

    def __init__(self, backbone: nn.Module, projection_head: nn.Module, prediction_head: nn.Module):
        super().__init__()
        self.backbone, self.projection_head = backbone, projection_head
        self.prediction_head = prediction_head
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def project(self, x):
        return self.projection_head(self.backbone(x))

    def forward(self, x):
        return self.prediction_head(self.project(x))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()

    def follow(self, momentum: float):
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)


def optimizer(model: nn.Module, lr: float = 0.03) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, 0.9, weight_decay=4e-4)


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 32), nn.BatchNorm1d(32), nn.ReLU())


@every_head
@pytest.mark.parametrize("batchnorm", ["per-view", "joint"])
def test_lightlys_byol_with_both_views_in_one_call_is_dcopys_trainer(make, batchnorm):
    """The same first weights and views: losses, weights, F and W_p after six steps."""
    method = make.__name__.lower()
    trainer = Trainer(tiny_config(method=method, batchnorm=batchnorm), channels=1)
    config, online = trainer.config, copy.deepcopy(trainer.online)
    norm = nn.BatchNorm1d(config.hidden_dim, affine=False)
    projection_head = ProjectionHead(
        [
            (online.encoder.out_dim, config.hidden_dim, norm, nn.ReLU(), True),
            (config.hidden_dim, D, None, None),
        ]
    )
    projection_head.layers.load_state_dict(online.projector.state_dict())
    model = BYOL(online.encoder, projection_head, make(D, calls_per_step=1))
    sgd, criterion = optimizer(model, config.lr), NegativeCosineSimilarity()
    for step in range(6):
        x0, x1 = tiny_views(seed=step)
        if batchnorm == "per-view":
            z0, z1, t0, t1 = model.project(x0), model.project(x1), *map(model.forward_momentum, (x0, x1))
            p0, p1 = model.prediction_head(torch.cat((z0, z1))).chunk(2)
        else:
            p0, p1 = model(torch.cat((x0, x1))).chunk(2)
            t0, t1 = model.forward_momentum(torch.cat((x0, x1))).chunk(2)
        loss = 2 * (criterion(p0, t1) + criterion(p1, t0))  # dcopy's loss is twice the cosine
        descend(sgd, loss)
        model.follow(config.ema)
        expected, _ = trainer.step(x0, x1)
        torch.testing.assert_close(loss.detach(), expected)
    head = model.prediction_head
    torch.testing.assert_close(head.F, trainer.predictor.F)
    torch.testing.assert_close(head.weight, trainer.predictor.weight)
    for ours, theirs in zip(
        model.projection_head.parameters(), trainer.online.projector.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@every_head
def test_lightlys_loops_as_they_are_move_F_once_a_step_on_both_views(make):
    """BYOL and SimSiam call the head once a view, before one backward pass."""
    byol = BYOL(backbone(), BYOLProjectionHead(32, 16, D), make(D, calls_per_step=2))
    simsiam = nn.Module()
    simsiam.project = nn.Sequential(backbone(), SimSiamProjectionHead(32, 16, D))
    simsiam.prediction_head = make(D, calls_per_step=2)
    criterion, reference = NegativeCosineSimilarity(), {byol: make(D), simsiam: make(D)}
    optimizers = {model: optimizer(model) for model in reference}
    for step in range(4):
        x0, x1 = tiny_views(seed=step)
        byol.follow(0.99)
        z = [byol.project(x) for x in (x0, x1)]
        p0, p1 = (byol.prediction_head(z_i) for z_i in z)
        loss = 0.5 * (criterion(p0, byol.forward_momentum(x1)) + criterion(p1, byol.forward_momentum(x0)))
        descend(optimizers[byol], loss)
        reference[byol].update(torch.cat(z))

        z = [simsiam.project(x) for x in (x0, x1)]
        p0, p1 = (simsiam.prediction_head(z_i) for z_i in z)
        loss = 0.5 * (criterion(z[0].detach(), p1) + criterion(z[1].detach(), p0))
        descend(optimizers[simsiam], loss)
        reference[simsiam].update(torch.cat(z))
    for model, expected in reference.items():
        head = model.prediction_head
        torch.testing.assert_close(head.F, expected.F)
        torch.testing.assert_close(head.weight, expected.weight, atol=1e-4, rtol=1e-4)
        assert head.steps == 4


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_under_lightning_F_moves_once_an_optimizer_step_and_never_in_validation(tmp_path, monkeypatch):
    """With its sanity check before training, validation in between, and two batches a step."""
    lightning = pytest.importorskip("pytorch_lightning")
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.byol = BYOL(backbone(), BYOLProjectionHead(32, 16, D), DirectCopy(D, calls_per_step=4))
            self.criterion = NegativeCosineSimilarity()

        def training_step(self, batch, index):
            x0, x1 = batch
            self.byol.follow(0.99)
            p0, p1 = self.byol(x0), self.byol(x1)
            return self.criterion(p0, self.byol.forward_momentum(x1)) + self.criterion(
                p1, self.byol.forward_momentum(x0)
            )

        def validation_step(self, batch, index):
            self.byol(batch[0])
            seen.append(self.byol.prediction_head.steps)

        def configure_optimizers(self):
            return optimizer(self)

    batches = torch.utils.data.DataLoader([tiny_views(seed=seed) for seed in range(4)], batch_size=None)
    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=2, accumulate_grad_batches=2, accelerator="cpu", default_root_dir=tmp_path, **quiet
    )
    trainer.fit(module, batches, batches)
    assert trainer.global_step == module.byol.prediction_head.steps == 4
    assert seen == [0] * 2 + [2] * 4 + [4] * 4  # the sanity check's two batches, then those after each epoch
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    Module().load_state_dict(state, strict=True)
