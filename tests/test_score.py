"Exact scores as oracles: the mixture against torch's own distributions, samplers and guides against the mixture."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ldp_tut.board import full_board, pin
from ldp_tut.ddpm import add_noise, cosine_schedule, energy_distance, last, posterior, sample
from ldp_tut.guidance import ClassifierFree, ClassifierGuide, GridDensity, Limited
from ldp_tut.score import GaussianMixture, ModelBasedDenoiser, annealed_langevin, blobs, flow_log_prob, langevin, score_of

SCHEDULE = cosine_schedule(100)


def gen(seed): return torch.Generator().manual_seed(seed)


def random_mixture(seed, C=3, H=2, D=2):
    g = gen(seed)
    A = torch.randn(C, H * D, H * D, generator=g)
    return GaussianMixture(torch.rand(C, generator=g) + .1, torch.randn(C, H, D, generator=g), A @ A.mT / 4 + .05 * torch.eye(H * D), SCHEDULE)


def by_torch(mixture, k):
    "The same noised mixture as a torch distribution; one row of levels for all."
    a = SCHEDULE.alpha_bar.double()[k].repeat_interleave(mixture.D)
    A = a.sqrt().diag()
    return MixtureSameFamily(Categorical(mixture.weights), MultivariateNormal(mixture.means @ A, A @ mixture.covariances @ A + (1 - a).diag()))


@given(seed=st.integers(0, 10**6), k=st.lists(st.integers(0, 100), min_size=2, max_size=2))
@settings(max_examples=40, deadline=None)
def test_noised_density_and_score_equal_torch_distributions(seed, k):
    mixture, x = random_mixture(seed), torch.randn(5, 2, 2, generator=gen(seed + 1), dtype=torch.float64).requires_grad_()
    levels, theirs = torch.tensor(k).expand(5, 2), by_torch(mixture, torch.tensor(k)).log_prob(x.flatten(1))
    torch.testing.assert_close(mixture.log_prob(x, levels), theirs, rtol=1e-5, atol=1e-5)
    gradient, = torch.autograd.grad(theirs.sum(), x)
    torch.testing.assert_close(mixture.score(x, levels), gradient, rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 97))
@settings(max_examples=30, deadline=None)
def test_tweedie(seed, k):
    mixture, x, level = random_mixture(seed), torch.randn(4, 2, 2, generator=gen(seed + 2), dtype=torch.float64), torch.full((4, 2), k)
    torch.testing.assert_close(score_of(mixture.denoise, cosine_schedule(100).double())(x, level), mixture.score(x, level), rtol=1e-4, atol=1e-4)


def test_a_clean_token_informs_the_noisy_one_exactly():
    "Level 0 on one token, K on the other: the estimate is the conditional mean."
    mixture = random_mixture(3, C=1)
    x = torch.randn(6, 2, 2, generator=gen(4))
    got = mixture.denoise(x, torch.tensor([[0, 100]]).expand(6, 2))
    S, mu = mixture.covariances[0], mixture.means[0]
    want = mu[2:] + (x[:, 0].double() - mu[:2]) @ torch.linalg.solve(S[:2, :2], S[:2, 2:])
    torch.testing.assert_close(got[:, 0], x[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[:, 1].double(), want, atol=2e-3, rtol=1e-2)   # level K keeps a trace of signal


@pytest.mark.parametrize('eta', [0., 1.])
def test_samplers_with_the_exact_denoiser_reproduce_the_mixture(eta):
    "Weights, means and covariances within four standard errors, plus 0.01 for the finite number of iterations."
    schedule, n = cosine_schedule(1000), 4000
    mixture = blobs(schedule)
    x = last(sample(mixture.denoise, torch.randn(n, 1, 2, generator=gen(0)), full_board(1, 1000, 200), schedule=schedule, eta=eta, noise=gen(1))).x
    which, var = mixture.log_class(x).argmax(1), 0.25 ** 2
    for c, w in enumerate(mixture.weights.tolist()):
        own = x[which == c, 0]
        assert abs(len(own) / n - w) < 4 * math.sqrt(w * (1 - w) / n) + 0.01
        assert (own.mean(0) - mixture.means[c]).abs().max() < 4 * 0.25 / math.sqrt(len(own)) + 0.01
        assert (own.T.cov() - var * torch.eye(2)).abs().max() < 4 * var * math.sqrt(2 / len(own)) + 0.01


def test_annealed_chains_find_the_right_proportions_and_plain_ones_do_not():
    mixture, n, start = blobs(SCHEDULE), 1500, torch.randn(1500, 1, 2, generator=gen(0))
    *_, (_, annealed) = annealed_langevin(mixture.score, start, SCHEDULE, range(100, 0, -1), 4, generator=gen(1))
    *_, plain = langevin(mixture.score, start, 400, 0.01, gen(2))
    band = 4 * (mixture.weights * (1 - mixture.weights) / n).sqrt()
    share = lambda x: torch.bincount(mixture.log_class(x).argmax(1), minlength=3) / n
    assert ((share(annealed) - mixture.weights).abs() < band).all() and not ((share(plain) - mixture.weights).abs() < band).all()


def test_the_flow_gives_the_likelihood():
    schedule = cosine_schedule(400)
    mixture, x = blobs(schedule), blobs(schedule).sample(20, gen(0))
    assert (flow_log_prob(mixture.denoise, x, schedule) - mixture.log_prob(x)).abs().max() < 0.1


def test_the_model_based_denoiser_converges_to_the_exact_one():
    mixture, level = blobs(SCHEDULE), torch.full((100, 1), 60)
    x = add_noise(SCHEDULE, mixture.sample(100, gen(0)), level, torch.randn(100, 1, 2, generator=gen(1)))
    cost = lambda u: -u.flatten(1).pow(2).sum(1) / 2 - mixture.log_prob(u)   # up to a constant
    error = lambda n: float((ModelBasedDenoiser(cost, SCHEDULE, n, generator=gen(2))(x, level) - mixture.denoise(x, level)).pow(2).mean().sqrt())
    assert error(4096) < error(64) / 4 and error(4096) < 0.05


# ---- guidance
N = 2000
MIXTURE = blobs(SCHEDULE, std=0.35)
GUIDE = lambda w: ClassifierGuide(lambda x, k, times, prediction: MIXTURE.log_class(x, k)[:, 1], w)


def draw(guide=None, denoise=MIXTURE.denoise, seed=0, **kw):
    g = gen(seed)
    return last(sample(denoise, torch.randn(N, 1, 2, generator=g), full_board(1, 100, 100), schedule=SCHEDULE, eta=1., guide=guide, noise=g, **kw)).x[:, 0]


def yardstick(source, pairs=4):
    "The largest energy distance between two exact samples of this size, over a few pairs."
    return max(float(energy_distance(source.sample(N, gen(100 + i))[:, 0], source.sample(N, gen(200 + i))[:, 0])) for i in range(pairs))


@pytest.mark.parametrize('how', ['classifier', 'classifier-free'])
def test_guidance_at_one_is_the_exact_conditional(how):
    wanted = MIXTURE.only(1)
    x = draw(GUIDE(1.)) if how == 'classifier' else draw(denoise=ClassifierFree(wanted.denoise, MIXTURE.denoise, 1.))
    assert float(energy_distance(x, wanted.sample(N, gen(300))[:, 0])) < yardstick(wanted) + 0.002


@pytest.mark.parametrize('w, exact', [(0., True), (1., True), (0.5, False), (4., False), (8., False)])
def test_only_zero_and_one_sample_the_tilted_density(w, exact):
    target = GridDensity(lambda x: MIXTURE.log_prob(x) + w * MIXTURE.log_class(x)[:, 1], SCHEDULE)
    band = yardstick(target) + 0.002
    assert float(energy_distance(draw(denoise=target.denoise), target.sample(N, gen(300))[:, 0])) < band
    assert (float(energy_distance(draw(GUIDE(w)), target.sample(N, gen(300))[:, 0])) < band) == exact


def test_a_guide_does_not_depend_on_the_batch():
    x, k, times = torch.randn(64, 1, 2, generator=gen(0)), torch.full((64, 1), 50), torch.zeros(64, 1)
    for guide in (GUIDE(2.), Limited(GUIDE(50.), SCHEDULE, 0.3)):
        together = guide(x.clone().requires_grad_(), k, times, None)
        alone = guide(x[:1].clone().requires_grad_(), k[:1], times[:1], None)
        torch.testing.assert_close(together[:1], alone)


def test_limited_never_moves_the_estimate_further_than_its_limit():
    x, k = (5 * torch.randn(200, 1, 2, generator=gen(0))).requires_grad_(), torch.randint(1, 100, (200, 1), generator=gen(1))
    gradient = Limited(GUIDE(1e3), SCHEDULE, 0.3)(x, k, None, None)
    a = SCHEDULE.alpha_bar[k][..., None]
    assert (((1 - a) / a.sqrt() * gradient).pow(2).mean(-1).sqrt() <= 0.3 * (1 - a[..., 0]).sqrt() * 1.0001).all()


def test_pinning_is_exact_and_overwriting_is_not():
    S = torch.tensor([[.3, .24], [.24, .3]])
    plans = GaussianMixture(torch.ones(1), torch.zeros(1, 2, 1), S[None], SCHEDULE)
    start = torch.randn(N, 2, 1, generator=gen(0)); start[:, 0] = 0.8
    x = last(sample(plans.denoise, start, pin(full_board(2, 100, 100), 1), schedule=SCHEDULE, eta=1., noise=gen(1))).x[:, 1]
    mean, std = 0.8 * .24 / .3, math.sqrt(.3 - .24 ** 2 / .3)
    assert abs(float(x.mean()) - mean) < 4 * std / math.sqrt(N) + 0.01 and abs(float(x.std()) - std) < 0.02


def test_recurrences_noise_back_up_to_the_same_distribution():
    mixture = blobs(SCHEDULE)
    x = last(sample(mixture.denoise, torch.randn(N, 1, 2, generator=gen(0)), full_board(1, 100, 50), schedule=SCHEDULE, eta=1., noise=gen(1), recurrences=3)).x[:, 0]
    assert float(energy_distance(x, mixture.sample(N, gen(2))[:, 0])) < yardstick(mixture) + 0.004
    given_noise = torch.randn(50 * 5, 4, 1, 2, generator=gen(3))
    run = lambda noise: last(sample(mixture.denoise, torch.zeros(noise.shape[1], 1, 2), full_board(1, 100, 50), schedule=SCHEDULE, eta=1., noise=noise, recurrences=3)).x
    torch.testing.assert_close(run(given_noise)[:1], run(given_noise[:, :1]))


@given(k=st.integers(1, 100), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_posterior_is_bayes_rule(k, seed):
    "q(x^(k-1) | x^k, x0) is proportional to q(x^k | x^(k-1)) q(x^(k-1) | x0): completing the square by hand."
    schedule = cosine_schedule(100).double()
    x0, x = torch.randn(2, 1, 1, 1, generator=gen(seed), dtype=torch.float64)
    a, b = schedule.alpha_bar[k], schedule.alpha_bar[k - 1]
    mean, variance = posterior(schedule, x, x0, torch.tensor([[k]]))
    if k == 1:
        torch.testing.assert_close(mean, x0); assert float(variance) == 0
        return
    step = a / b
    precision = step / (1 - step) + 1 / (1 - b)
    torch.testing.assert_close(variance, 1 / precision.view(1, 1, 1))
    torch.testing.assert_close(mean, (step.sqrt() * x / (1 - step) + b.sqrt() * x0 / (1 - b)) / precision)


def test_covariances_have_to_be_symmetric():
    lopsided = torch.tensor([[[1., .9], [0., 1.]]])
    with pytest.raises(ValueError, match='symmetric'): GaussianMixture(torch.ones(1), torch.zeros(1, 1, 2), lopsided, cosine_schedule(100))


def test_the_flow_asks_a_network_in_its_own_numbers():
    net = torch.nn.Linear(2, 2)
    def denoise(x, k, times): return net(x)
    x = torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0))
    log = flow_log_prob(denoise, x, cosine_schedule(20))
    assert log.shape == (3,) and log.dtype == torch.float64 and log.isfinite().all()
