"Diffusion Forcing's parts against what they promise."
import pytest
import torch

from ldp_tut.board import full_board
from ldp_tut.ddpm import cosine_schedule, last, sample, seeded_noise
from ldp_tut.forcing import ForcingConfig, Prediction, TokenTransformer, rollout


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
        with pytest.raises(ValueError, match='noise level, 0 to 100'): rollout(Line(), torch.zeros(1, 3, 2), 2, stabilise=level)


def test_one_token_of_a_rollout_is_the_sampler():
    torch.manual_seed(0)
    model = TokenTransformer(ForcingConfig(token_dim=2, width=16, depth=1, heads=2)).eval()
    start = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    mine = rollout(model, start, 1, iterations=6, seed=5)[:, -1]
    x = torch.cat([start, seeded_noise(range(5, 8), 1, 2)], 1)
    board = torch.cat([torch.zeros(7, 4, dtype=torch.long), full_board(1, 100, 6)], 1)
    with torch.no_grad(): torch.testing.assert_close(mine, last(sample(model, x, board, schedule=model.schedule)).x[:, -1])
