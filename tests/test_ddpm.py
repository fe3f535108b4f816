"The one step against `diffusers`' own schedulers on shared noise, and against exact answers."
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings, strategies as st

from ldp_tut.board import full_board
from ldp_tut.ddpm import (add_noise, convert, cosine_schedule, energy_distance, fused_snr_weight, last, linear_schedule, min_snr_weight, sample,
                          sample_step, shifted, sigmoid_schedule, NoiseSchedule)

OURS = {'linear': linear_schedule(1000), 'squaredcos_cap_v2': cosine_schedule(1000)}


def network(x, k): return torch.sin(x) + 0.001 * k  # any fixed function of sample and level will do


def on_shared_levels(theirs):
    "Both sides in float64 on the very same alpha-bars: what is compared is the step, not float32's cancellation near pure noise."
    ours = linear_schedule(1000).double()
    theirs.alphas_cumprod, theirs.one = ours.alpha_bar[1:], torch.ones((), dtype=torch.float64)
    theirs.final_alpha_cumprod = theirs.one
    theirs.alphas, theirs.betas = ours.alpha_bar[1:] / ours.alpha_bar[:-1], 1 - ours.alpha_bar[1:] / ours.alpha_bar[:-1]
    return ours


@pytest.mark.parametrize('name', OURS)
def test_schedules_equal_diffusers(name):
    theirs = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule=name)
    torch.testing.assert_close(OURS[name].alpha_bar[1:], theirs.alphas_cumprod, atol=1e-6, rtol=2e-3)
    torch.testing.assert_close(OURS[name].alpha_bar[1:900], theirs.alphas_cumprod[:899], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('kind', ['epsilon', 'sample', 'v_prediction'])
def test_ancestral_sampling_equals_diffusers_ddpm(kind):
    theirs = DDPMScheduler(1000, beta_schedule='linear', prediction_type=kind, clip_sample=False, variance_type='fixed_small')
    schedule, source = on_shared_levels(theirs), {'epsilon': 'eps', 'sample': 'x0', 'v_prediction': 'v'}[kind]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    denoise = lambda x, k, times: convert(schedule, x, k, network(x, k[..., None]), source, 'x0')
    theirs.set_timesteps(1000)
    for t in [999, 998, 700, 500, 300, 100, 10, 2, 1, 0]:
        y = x.clone()
        k = torch.full((2, 3), t + 1)
        noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        ours = sample_step(denoise, x, k, k - 1, torch.zeros(2, 3), schedule=schedule, eta=1., noise=noise)
        ref = theirs.step(network(y, t + 1), t, y, generator=torch.Generator().manual_seed(t)).prev_sample
        assert (ours - ref).abs().max() < 1e-5
        x = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)


@pytest.mark.parametrize('eta', [0., 0.5, 1.])
@pytest.mark.parametrize('iterations', [10, 50])
def test_a_whole_ddim_chain_equals_diffusers(eta, iterations):
    theirs = DDIMScheduler(1000, beta_schedule='linear', clip_sample=False, set_alpha_to_one=True, timestep_spacing='trailing')
    theirs.set_timesteps(iterations)
    schedule = on_shared_levels(theirs)
    denoise = lambda x, k, times: convert(schedule, x, k, network(x, k[..., None]), 'eps', 'x0')
    board = torch.cat([theirs.timesteps + 1, torch.zeros(1, dtype=torch.long)])[:, None].expand(-1, 3)
    g = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 3, 4, generator=g, dtype=torch.float64), torch.randn(iterations, 2, 3, 4, generator=g, dtype=torch.float64)
    ours = [s.x for s in sample(denoise, x0, board, schedule=schedule, eta=eta, noise=noise)][1:]
    y = x0
    for m, t in enumerate(theirs.timesteps):
        y = theirs.step(network(y, t + 1), t, y, eta=eta, variance_noise=noise[m]).prev_sample
        assert (ours[m] - y).abs().max() < 1e-5


def test_forward_noise_equals_diffusers():
    theirs = DDPMScheduler(1000, beta_schedule='linear')
    x, noise = torch.randn(2, 5, 3), torch.randn(5, 3)
    t = torch.tensor([0, 10, 500, 998, 999])
    torch.testing.assert_close(add_noise(OURS['linear'], x[0], t + 1, noise), theirs.add_noise(x[0], noise, t))


@given(seed=st.integers(0, 2**31), k=st.integers(1, 80))
@settings(max_examples=50, deadline=None)
def test_parametrisations_round_trip(seed, k):
    schedule, g = cosine_schedule(100), torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 4, 3, generator=g).double(), torch.randn(2, 4, 3, generator=g).double()
    level = torch.full((2, 4), k)
    x = add_noise(schedule, x0, level, eps)
    truth = dict(x0=x0, eps=eps, v=convert(schedule, x, level, x0, 'x0', 'v'))
    for a in truth:
        for b in truth: torch.testing.assert_close(convert(schedule, x, level, truth[a], a, b), truth[b], atol=2e-4, rtol=1e-3)


def test_the_exact_denoiser_of_a_gaussian_is_recovered_by_the_sampler():
    """With the exact posterior mean of N(1, 0.25) in place of a network, DDPM gives back its mean and variance.

    A thousand levels, because the smaller of DDPM's two variances is too small by O(1/K): with 100 levels the result is 0.236."""
    K = 1000
    schedule = cosine_schedule(K)
    def denoise(x, k, times):
        a = schedule.alpha_bar[k][..., None]
        return 1 + a.sqrt() * 0.25 / (a * 0.25 + 1 - a) * (x - a.sqrt())
    g = torch.Generator().manual_seed(0)
    board = torch.arange(K, -1, -1)[:, None]
    x = last(sample(denoise, torch.randn(20_000, 1, 1, generator=g), board, schedule=schedule, eta=1., noise=g)).x
    assert abs(float(x.mean()) - 1) < 4 * 0.5 / 20_000 ** .5
    assert abs(float(x.var()) - 0.25) < 0.01


def test_noise_is_given_or_drawn_by_a_generator():
    x, board = torch.randn(3, 4, 2), full_board(4, 50, 5)
    made = lambda noise: last(sample(lambda x, k, times: 0.5 * x, x, board, schedule=cosine_schedule(50), eta=1., noise=noise)).x
    g = torch.Generator().manual_seed(3)
    drawn = torch.stack([torch.randn(x.shape, generator=g) for _ in range(5)])
    assert torch.equal(made(torch.Generator().manual_seed(3)), made(drawn)) and torch.equal(made(list(drawn)), made(drawn)) and not torch.equal(made(None), made(drawn))
    with pytest.raises(TypeError, match='one a draw, or a torch.Generator, got int'): made(3)
    with pytest.raises(ValueError, match='noise must hold 5 draws'): made(drawn[:4])


def test_the_last_step_adds_no_noise():
    schedule, x = cosine_schedule(10), torch.randn(1, 2, 3)
    one, zero = torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    out = [sample_step(lambda x, k, t: x * 0 + 5, x, one, zero, torch.zeros(1, 2), schedule=schedule, eta=1., noise=n * torch.ones_like(x)) for n in (-9, 9)]
    assert torch.equal(*out) and torch.equal(out[0], torch.full_like(x, 5))


def test_fused_weights_do_not_count_a_token_twice():
    schedule = cosine_schedule(100)
    K = schedule.K
    alone = fused_snr_weight(schedule, torch.tensor([[50, K, K]]))
    torch.testing.assert_close(alone[0, 0], min_snr_weight(schedule, torch.tensor(50)))  # nothing before it: its own clipped SNR
    clean_past = fused_snr_weight(schedule, torch.tensor([[0, 50]]))[0, 1]
    noisy_past = fused_snr_weight(schedule, torch.tensor([[K, 50]]))[0, 1]
    assert clean_past > noisy_past and torch.isclose(noisy_past, alone[0, 0], rtol=1e-3)


def test_fused_weights_know_the_past_and_never_the_future():
    schedule, g = cosine_schedule(100), torch.Generator().manual_seed(0)
    k = torch.randint(0, 101, (50, 9), generator=g)
    w, own = fused_snr_weight(schedule, k, decay=0.8), min_snr_weight(schedule, k)
    assert (w >= own - 1e-5).all() and (w <= 5 + 1e-5).all()
    j = k.clone(); j[:, 4] = 0
    changed = (fused_snr_weight(schedule, j, decay=0.8) != w).any(0)
    assert not changed[:4].any() and changed[4:].all()
    torch.testing.assert_close(w[:, 1], 5 * (1 - (1 - 0.2 * own[:, 0] / 5) * (1 - own[:, 1] / 5)))  # a share of 1 - decay of the token before


def test_fused_weights_differ_from_the_published_code_as_the_chapter_says():
    "The published rule, written out; ours is reached by undoing the three differences, and is one loss for all targets."
    schedule, decay, gamma, g = cosine_schedule(100), 0.9, 5., torch.Generator().manual_seed(0)
    k = torch.randint(1, 101, (20, 6), generator=g)
    snr, own = schedule.snr(k), schedule.snr(k).clamp(max=gamma) / gamma
    def published(first, again):
        held = [own[:, 0] if first else (1 - decay) * own[:, 0]]
        for j in range(1, 6): held.append(decay * held[-1] + (1 - decay) * own[:, j])
        past = torch.stack([0 * held[0], *held[:-1]], 1) * (decay if again else 1.)
        return [1 - (1 - past) * (1 - s) for s in (own, snr / gamma)]
    ours = {target: fused_snr_weight(schedule, k, target, gamma, decay) for target in ('x0', 'eps', 'v')}
    clipped, fused = published(first=False, again=False)
    torch.testing.assert_close(ours['x0'], clipped * gamma)
    for first, again in ((True, False), (False, True)): assert not torch.allclose(published(first, again)[0] * gamma, ours['x0'], rtol=1e-2)
    torch.testing.assert_close(ours['eps'] * snr, ours['x0']); torch.testing.assert_close(ours['v'] * (snr + 1), ours['x0'])
    assert not torch.allclose(clipped / fused, ours['eps'], rtol=1e-2) and not torch.allclose(clipped * gamma / (fused * gamma + 1), ours['v'], rtol=1e-2)


def test_schedules_and_levels_at_the_door():
    for schedule in (linear_schedule(), cosine_schedule(), sigmoid_schedule()):
        assert schedule.alpha_bar[0] == 1 and len(schedule.alpha_bar) == schedule.K + 1
    with pytest.raises(ValueError, match='must be 1'): NoiseSchedule(torch.tensor([.9, .5]))
    with pytest.raises(ValueError, match='fall strictly'): NoiseSchedule(torch.tensor([1., .5, .6]))
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match='0..100, got -1'): add_noise(cosine_schedule(100), x, torch.full((2, 3), -1), x)
    with pytest.raises(ValueError, match='shape of x0'): add_noise(cosine_schedule(100), x, torch.zeros(2, 3, dtype=torch.long), x[0])
    with pytest.raises(TypeError, match='integers'): add_noise(cosine_schedule(100), x, torch.zeros(2, 3), x)
    with pytest.raises(ValueError, match="'eps', 'x0' or 'v'"): convert(cosine_schedule(100), x, torch.zeros(2, 3, dtype=torch.long), x, 'noise', 'x0')


def test_a_shifted_schedule_has_so_much_more_noise():
    base = cosine_schedule(50)
    for factor in (.5, 1., 4.):
        new, k = shifted(base, factor), torch.arange(1, 50)
        sigma = lambda s: ((1 - s.alpha_bar[k].double()) / s.alpha_bar[k].double()).sqrt()
        assert torch.allclose(sigma(new), factor * sigma(base), rtol=1e-3) and new.alpha_bar[0] == 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_schedule_in_half_precision_loses_no_signal(dtype):
    "In float16 the last alpha-bars of the cosine schedule are 0 and the first are 1: x0 and eps would be divided by nothing."
    for schedule in (cosine_schedule(1000), shifted(cosine_schedule(100), 4.)):
        kept = schedule.alpha_bar.clone()
        assert torch.equal(schedule.to(dtype).alpha_bar, kept) and torch.equal(torch.nn.Sequential(schedule).half()[0].alpha_bar, kept)
    assert cosine_schedule(10).double().alpha_bar.dtype == torch.float64 and cosine_schedule(10).to('meta').alpha_bar.device.type == 'meta'
    k, x = torch.tensor([[1, 50, 100]]), torch.randn(1, 3, 2).to(dtype)
    for source in ('eps', 'x0', 'v'): assert convert(cosine_schedule(100).to(dtype), x, k, x, source, 'x0').isfinite().all()


def test_energy_distance_does_not_depend_on_the_origin():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 2, generator=g), .5 + torch.randn(200, 2, generator=g)
    here = energy_distance(a, b)
    assert abs(energy_distance(a + 4096, b + 4096) - here) < .01 * here
