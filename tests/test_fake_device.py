"""Nothing waits for the device: on a fake one, whatever reads back or mixes devices raises.

Every denoiser, a sampler, a training step; whole plans are in test_planner.py."""
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ldp_tut import ddpm
from ldp_tut.board import full_board
from ldp_tut.ddpm import PointDenoiser, sample
from ldp_tut.diffuser import TemporalUNet
from ldp_tut.exact import load_denoiser
from ldp_tut.field import FieldConfig, FieldDenoiser
from ldp_tut.forcing import ForcingConfig, TokenTransformer
from ldp_tut.latent_diffuser import LatentConfig, LatentDiffuser
from ldp_tut.policy import DiffusionPolicy, PolicyConfig
from ldp_tut.worlds import DenoiserConfig, DenoisingLoss, Spaces, VectorDenoiser, VectorWorld

DEVICE = 'meta'  # a name that every build of torch can index tensors on; to the fake mode it is a device like any other


def faked(module, device=DEVICE):
    "The module, with all its tensors replaced by fake ones on another device; call it inside the mode."
    for m in module.modules():
        for table in (m._parameters, m._buffers):
            for name, t in table.items():
                if t is not None:
                    fake = torch.empty(t.shape, dtype=t.dtype, device=device)
                    table[name] = nn.Parameter(fake, t.requires_grad) if isinstance(t, nn.Parameter) else fake
    return module


def make(*shape): return torch.empty(*shape, device=DEVICE)
def levels(*shape): return torch.empty(*shape, dtype=torch.long, device=DEVICE)


def chain():
    "The exact denoiser of a shipped checkpoint, loaded outside the mode; frames as the world gives them."
    net = load_denoiser('simplecrossing-n1')[0].train()
    V, D = len(net.world.contents), net.world.table.shape[1] * 81
    frames = lambda: torch.empty(4, 9, 9, 3, dtype=torch.uint8, device=DEVICE)
    return net, lambda net: net(make(4, 3, D), levels(4, 3), make(4, 3), frames())


def policy(net):
    "Diffusion Policy, and a plan of its for histories of two observations."
    return (DiffusionPolicy(PolicyConfig(3, 2, Tp=8, Ta=4, net=net, width=16)),
            lambda p: p.denoiser(make(4, 6))(make(4, 8, 2), levels(4, 8)))


DENOISERS = dict(
    film=lambda: policy('film'), perceptron=lambda: policy('perceptron'), actions=lambda: policy('transformer'),
    latents=lambda: (LatentDiffuser(LatentConfig(3, 2, width=16)), lambda m: m.clean(make(4, 4, 4), levels(4), make(4, 3))),
    energy=lambda: (LatentDiffuser(LatentConfig(3, 2, width=16)).energy,
                    lambda net: net(make(4, 4, 4), levels(4, 4), make(4), make(4, 3))),
    points=lambda: (PointDenoiser(2, 16, 1, 10), lambda net: net(make(4, 1, 2), levels(4, 1))),
    transformer=lambda: (TokenTransformer(ForcingConfig(3, 32, 1, 2, 10), ddpm.cosine_schedule(10)),
                         lambda net: net(make(4, 5, 3), levels(4, 5), make(4, 5))),
    vectors=lambda: (VectorDenoiser(DenoiserConfig(3, 2, 4, longest=30, width=32, depth=1)),
                     lambda net: net(make(4, 5, 3), levels(4, 5), make(4, 5), make(4, 2))),
    unet=lambda: (TemporalUNet(6, width=8, K=10), lambda net: net(make(4, 16, 6), levels(4), make(4, 16, 6) > 0)),
    maps=lambda: (FieldDenoiser(FieldConfig(kinds=4, actions=4, longest=6, width=8), torch.randn(4, 8)),
                  lambda net: net(make(4, 3, 8, 5, 5), levels(4, 3), make(4, 3), make(4, 8, 5, 5), (1, 4))),
    exact=chain)


def numbers(said):
    "All that a denoiser said, added up."
    if isinstance(said, torch.Tensor): return said.float().sum()
    return said.x0.sum() + sum(h.float().sum() for h in said.heads.values() if h is not None)


@pytest.mark.parametrize('name', DENOISERS)
def test_every_denoiser_runs_forwards_and_backwards_without_reading_back(name, monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *a, **k: nullcontext())  # it knows no such device
    net, call = DENOISERS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        numbers(call(faked(net))).backward()
        grads = [p.grad for p in net.parameters() if p.requires_grad and p.grad is not None]
        assert grads and all(g.device.type == DEVICE for g in grads)


@pytest.fixture()
def vectors():
    spaces = Spaces('vector', (3,), goal=2, actions=4)
    config = DenoiserConfig(3, 2, 4, longest=30, width=32, depth=1, features=4)
    return VectorWorld(spaces, features=4), VectorDenoiser(config)


def step_of_training(net, world, spoil=lambda losses: losses):
    "Loss, gradients, clipping, optimiser, as in `fit`; what levels are drawn is a matter of the host's generator."
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    batch = {name: make(6, 4) for name in ('times', 'reward', 'termination', 'valid', 'paid', 'acted')}
    batch |= dict(state=make(6, 4, 3), goal=make(6, 2), action=levels(6, 4))
    loss = sum(spoil(DenoisingLoss(world)(net, batch, None)).values())
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.)
    optimiser.step()


def test_a_training_step_never_reads_back(vectors, monkeypatch):
    monkeypatch.setattr('ldp_tut.worlds.forcing_levels', lambda B, H, K, generator: levels(B, H))
    with FakeTensorMode(allow_non_fake_inputs=True):
        world, net = map(faked, vectors)
        step_of_training(net, world)
        assert all(p.grad.device.type == DEVICE for p in net.parameters() if p.grad is not None)


def test_a_read_back_in_a_training_step_is_caught(vectors, monkeypatch):
    monkeypatch.setattr('ldp_tut.worlds.forcing_levels', lambda B, H, K, generator: levels(B, H))
    with FakeTensorMode(allow_non_fake_inputs=True):
        world, net = map(faked, vectors)
        with pytest.raises(DataDependentOutputException):
            step_of_training(net, world, lambda losses: {n: loss * loss.item() for n, loss in losses.items()})


@pytest.mark.parametrize('fault', ['none', 'read back', 'mixed devices'])
def test_a_sampler_never_reads_back_and_is_caught_where_it_does(fault, monkeypatch):
    "The board lives on the host and is looked at once, before the loop; the fake mode would take that for a read-back."
    board, whole = full_board(1, 10, 4), lambda board, x: board.to(x.device)[:, None].expand(-1, len(x), -1)
    fit = lambda x, board, times, schedule: (whole(board, x), times, [True] * (len(board) - 1))
    monkeypatch.setattr(ddpm, '_fit_together', fit)
    monkeypatch.setattr(ddpm, '_check_noise', lambda *a: True)
    net, schedule = PointDenoiser(2, 16, 1, 10), ddpm.cosine_schedule(10)
    def run():
        def denoise(x, k, times):
            if fault == 'read back': x = x * x.sum().item()
            if fault == 'mixed devices': x = x + torch.empty(x.shape)
            return net(x, k)
        for state in sample(denoise, make(5, 1, 2), board, make(5, 1), schedule=schedule): pass
        return state.x
    with FakeTensorMode(allow_non_fake_inputs=True):
        faked(net), faked(schedule)
        if fault == 'none': assert run().device.type == DEVICE
        else:
            with pytest.raises((DataDependentOutputException, RuntimeError), match='_local_scalar_dense|device'): run()
