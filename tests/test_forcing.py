"Diffusion Forcing's parts against what they promise."
import pytest
import torch

from ldp_tut.board import full_board
from ldp_tut.ddpm import cosine_schedule, last, sample, seeded_noise
from ldp_tut.forcing import ForcingConfig, Prediction, TokenTransformer, forcing_loss, rollout


class Line(torch.nn.Module):
    "An exact denoiser's stand-in: the next token is twice the last one minus the one before, whatever the noise."
    schedule = cosine_schedule(100)
    def forward(self, x, k, times):
        x0 = x.clone()
        x0[:, -1] = 2 * x[:, -2] - x[:, -3]
        return Prediction(x0, {})


@pytest.mark.parametrize('stabilise', [0, 10])
def test_a_rollout_goes_on_from_its_own_tokens_and_keeps_them(stabilise):
    start = torch.tensor([[[0., 1.], [1., 1.], [2., 1.]], [[0., 0.], [0., 2.], [0., 4.]]])
    walk = rollout(Line(), start, 40, iterations=5, stabilise=stabilise)
    assert walk.shape == (2, 43, 2) and torch.equal(walk[:, :3], start)
    torch.testing.assert_close(walk[0, :, 0], torch.arange(43.), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(walk[1, :, 1], 2 * torch.arange(43.), atol=1e-3, rtol=1e-3)


def test_own_tokens_are_shown_at_the_level_asked_for_and_facts_at_none():
    seen = []
    class Spy(Line):
        def forward(self, x, k, times): seen.append(k[0].tolist()); return super().forward(x, k, times)
    rollout(Spy(), torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0)), 4, iterations=1, stabilise=7)
    assert seen == [[0, 0, 0, 100], [0, 0, 7, 100], [0, 7, 7, 100], [7, 7, 7, 100]]
    for level in (-1, 101):
        with pytest.raises(ValueError, match=r'noise level, must be an integer in 0\.\.100'): rollout(Line(), torch.zeros(1, 3, 2), 2, stabilise=level)


def test_one_token_of_a_rollout_is_the_sampler():
    torch.manual_seed(0)
    model = TokenTransformer(ForcingConfig(token_dim=2, width=16, depth=1, heads=2)).eval()
    start = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    mine = rollout(model, start, 1, iterations=6, seed=5)[:, -1]
    x = torch.cat([start, seeded_noise(range(5, 8), 7, 2)[:, :1]], 1)
    board = torch.cat([torch.zeros(7, 4, dtype=torch.long), full_board(1, 100, 6)], 1)
    with torch.no_grad(): torch.testing.assert_close(mine, last(sample(model, x, board, schedule=model.schedule)).x[:, -1])


@pytest.mark.parametrize('eta', [0., 1.])
def test_a_row_of_a_rollout_is_the_same_alone(eta):
    torch.manual_seed(0)
    model = TokenTransformer(ForcingConfig(token_dim=2, width=16, depth=1, heads=2)).eval()
    start = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    both = rollout(model, start, 2, iterations=4, seed=5, eta=eta)
    torch.testing.assert_close(both[1:2], rollout(model, start[1:2], 2, iterations=4, seed=6, eta=eta), atol=1e-5, rtol=1e-5)


class Mean(torch.nn.Module):
    "Says the mean of the facts; in one precision only."
    schedule = cosine_schedule(100)
    def __init__(self, dtype=torch.float32): super().__init__(); self.dtype = dtype
    def forward(self, x, k, times):
        assert x.dtype == self.dtype
        return Prediction(x[:, :-1].mean(1, keepdim=True).expand_as(x), {})


@pytest.mark.parametrize('token', [(2,), (3, 4, 5)])
def test_vectors_and_maps_are_rolled_out_alike(token):
    start = torch.randn(2, 3, *token, generator=torch.Generator().manual_seed(0))
    walk = rollout(Mean(), start, 3, iterations=4)
    assert walk.shape == (2, 6, *token) and torch.equal(walk[:, :3], start)
    torch.testing.assert_close(walk[:, 3], start.mean(1))
    torch.testing.assert_close(walk.flatten(2), rollout(Mean(), start.flatten(2), 3, iterations=4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_rollouts_and_samples_go_on_in_the_precision_of_their_network(dtype):
    start = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert rollout(Mean(dtype), start, 3, iterations=4, eta=1.).dtype == dtype
    torch.manual_seed(0)
    model = TokenTransformer(ForcingConfig(token_dim=2, width=16, depth=1, heads=2, outputs=(('reward', 1),))).to(dtype).eval()
    for x in (start, start.float()):  # a converted network also takes tokens in another precision, and answers in theirs
        walk = rollout(model, x, 2, iterations=4, stabilise=10)
        assert walk.dtype == x.dtype and walk.isfinite().all()
    noise, k, times = torch.randn(2, 5, 2), torch.randint(0, 101, (2, 5)), torch.arange(5.).expand(2, -1)
    torch.testing.assert_close(model(noise, k, times).x0, model.float()(noise, k, times).x0, atol=0.05, rtol=0.05)


def test_numbers_of_any_kind_are_facts():
    start = torch.tensor([[[1, 2], [3, 4], [5, 200]]])
    want = rollout(Mean(), start.float(), 2, iterations=3)
    for context in (start, start.to(torch.uint8), start.numpy(), start.double().numpy(), start.tolist()):
        assert torch.equal(rollout(Mean(), context, 2, iterations=3), want)
    for bad, error in ((start[0], ValueError), ([[['a']]], TypeError)):
        with pytest.raises(error, match='context'): rollout(Mean(), bad, 2)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match='context must be finite'): rollout(Mean(), torch.full((1, 3, 2), bad), 2)


def test_a_transformer_says_what_it_cannot_be_built_of():
    for bad, words in ((dict(width=0), 'width must be'), (dict(depth=2.5), 'depth must be .*2.5'), (dict(width=30, heads=4), 'twice the heads'), (dict(max_time=float('nan')), 'max_time must be')):
        with pytest.raises(ValueError, match=words): ForcingConfig(**bad)
    with pytest.raises(ValueError, match='x0'): forcing_loss(Prediction(torch.zeros(1, 2, 3), {}), torch.zeros(1, 2, 2))


@pytest.mark.parametrize('w', [1., .5, .05, 1e-4])
def test_the_loss_is_an_average_whatever_the_weights_sum_to(w):
    x0 = torch.zeros(1, 4, 3)
    loss = forcing_loss(Prediction(x0 + 1, {}), x0, torch.full((1, 4), w))
    assert abs(float(loss) - 1) < 1e-5
    assert float(forcing_loss(Prediction(x0 + 1, {}), x0, torch.zeros(1, 4))) == 0
