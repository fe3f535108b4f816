"LatentDiffuser: the exact tilt, the energy's gradient, values inside the support, plans that do not depend on their batch."
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldp_tut.board import full_board
from ldp_tut.book import asset
from ldp_tut.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from ldp_tut.ddpm import cosine_schedule, energy_distance, last, sample
from ldp_tut.guidance import GridDensity
from ldp_tut.latent_diffuser import (Backup, Energy, EnergyGuide, LatentConfig, LatentPlanner, LatentTraining, Segments,
                                     SupportSet, contrastive_loss, decode_plans, draw_latents, energy_labels, load_latent_diffuser,
                                     save_latent_diffuser, support_backup, support_of, tilted_mixture, train_latent_diffuser)
from ldp_tut.records import Trajectories
from ldp_tut.score import blobs

SMALL = LatentConfig(4, 2, stride=2, tokens=8, latents=2, latent_dim=3, width=16, depth=1, K=20)


def walks(episodes=6, steps=40, seed=0, ended=None):
    "Random walks, a tenth of their steps rewarded."
    rng = np.random.default_rng(seed)
    state = .1 * rng.standard_normal((episodes, steps + 1, 4)).cumsum(1)
    reward = (rng.random((episodes, steps)) < .1).astype(float)
    ended = np.arange(episodes) % 2 == 0 if ended is None else ended
    return Trajectories.from_padded(state, rng.standard_normal((episodes, steps, 2)), reward, np.full(episodes, steps), ended)


@pytest.fixture(scope='module')
def model():
    how = LatentTraining(vae=3, prior=3, value=3, energy=3, support=16, candidates=4)
    return train_latent_diffuser(walks(), SMALL, how)


@pytest.fixture(scope='module')
def tilt():
    mixture = blobs(cosine_schedule(100), .35)
    A, peak = torch.tensor([[1., .3], [.3, .5]]), torch.tensor([.6, .2])
    J = lambda z: -((z.flatten(1) - peak) @ A.to(z) * (z.flatten(1) - peak)).sum(1) / 2
    return mixture, A, A @ peak, J


def test_the_tilted_mixture_is_the_density_it_says(tilt):
    "Up to a constant, log density plus beta J; and its denoiser is that of a grid, which adds up cells."
    mixture, A, slope, J = tilt
    z = torch.randn(50, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for beta in (0., 1., 5.):
        wanted = tilted_mixture(mixture, slope, A, beta)
        constant = wanted.log_prob(z) - mixture.log_prob(z) - beta * J(z)
        assert constant.std() < 1e-5
    grid = GridDensity(lambda x: mixture.log_prob(x) + 5 * J(x.double()), mixture.schedule)
    k = torch.full((50, 1), 40)
    torch.testing.assert_close(wanted.denoise(z.float(), k), grid.denoise(z.float(), k), atol=1e-3, rtol=1e-3)


def test_the_exact_energy_samples_the_tilted_density_and_the_value_of_the_guess_does_not(tilt):
    mixture, A, slope, J = tilt
    wanted, n, beta = tilted_mixture(mixture, slope, A, 4.), 1000, 4.
    exact = lambda z, k, *_: (wanted.score(z.detach(), k) - mixture.score(z.detach(), k))
    def naive(z, k, times, prediction): return torch.autograd.grad(beta * J(prediction).sum(), z)[0]
    def draw(guide):
        g = torch.Generator().manual_seed(0)
        start = torch.randn(n, 1, 2, generator=g)
        walk = sample(mixture.denoise, start, full_board(1, 100, 50), schedule=mixture.schedule, guide=guide, eta=1., noise=g)
        return last(walk).x[:, 0]
    truth = wanted.sample(n, torch.Generator().manual_seed(1))[:, 0]
    right, wrong = (1000 * float(energy_distance(draw(guide), truth)) for guide in (exact, naive))
    assert right < 6 < 10 < wrong, (right, wrong)


def test_the_gradient_of_an_energy_agrees_with_finite_differences():
    torch.manual_seed(0)
    energy, z, k = Energy(6, context=2, schedule=cosine_schedule(20)).double(), torch.randn(5, 2, 3).double(), torch.full((5, 2), 7)
    context, beta = torch.randn(5, 2).double(), torch.full((5,), 3.).double()
    leaf = z.clone().requires_grad_()
    gradient = EnergyGuide(energy, 3., context, scale=2.)(leaf, k, None, None)
    for i in range(2):
        for j in range(3):
            step = torch.zeros_like(z); step[:, i, j] = 1e-5
            with torch.no_grad(): slope = (energy(z + step, k, beta, context) - energy(z - step, k, beta, context)) / 2e-5
            torch.testing.assert_close(gradient[:, i, j], 2 * slope, atol=1e-7, rtol=1e-5)


def test_the_contrast_is_lowest_at_the_exact_energy(tilt):
    "Not lower with the value of the guess or the value of the noisy plan in its place, on the same noise."
    mixture, A, slope, J = tilt
    wanted, beta = tilted_mixture(mixture, slope, A, 4.), 4.
    z = mixture.sample(256 * 16, torch.Generator().manual_seed(0)).view(256, 16, 1, 2)
    value = J(z.flatten(0, 1)).view(256, 16)
    exact = lambda x, k, *_: wanted.log_prob(x, k) - mixture.log_prob(x, k)
    guess = lambda x, k, *_: beta * J(mixture.denoise(x, k)).double()
    clean = lambda x, k, *_: beta * J(x).double()
    loss = [float(contrastive_loss(f, mixture.schedule, z, value, beta, torch.Generator().manual_seed(1))) for f in (exact, guess, clean)]
    assert loss[0] < min(loss[1:]) - .01, loss


def test_candidates_of_a_state_share_a_level_and_no_noise():
    seen = {}
    def energy(z, k, beta, context): seen.update(z=z.view(8, 4, 2, 3), k=k.view(8, 4, 2)); return z.flatten(1).sum(1)
    clean = torch.zeros(8, 4, 2, 3)
    contrastive_loss(energy, cosine_schedule(50), clean, torch.randn(8, 4), 1., torch.Generator().manual_seed(0))
    assert (seen['k'] == seen['k'][:, :1, :1]).all() and len(seen['k'][:, 0, 0].unique()) > 1
    assert (seen['z'][:, 0] != seen['z'][:, 1]).all()


def test_labels_and_backup_stay_inside_the_candidates():
    q = torch.tensor([[0., 1., 3.], [2., 2., 2.]])
    assert torch.equal(energy_labels(q, 0.), torch.full((2, 3), 1 / 3)) and torch.allclose(energy_labels(1e4 * q, 1.)[0], torch.tensor([0., 0., 1.]))
    assert torch.allclose(support_backup(q, 0.), q.mean(1)) and torch.allclose(support_backup(q, 1e3), q.amax(1))
    for beta in (.1, 1., 10.): assert (support_backup(q, beta) <= q.amax(1) + 1e-6).all() and (support_backup(q, beta) >= q.mean(1) - 1e-6).all()


def test_the_value_never_hears_of_actions_outside_the_support(model):
    "Whatever the value says of latents that nobody drew, the targets are the same; only endings are worth nothing."
    g = torch.Generator().manual_seed(0)
    N, M, L, D = 12, 4, SMALL.latents, SMALL.latent_dim
    draw = lambda *shape: torch.randn(*shape, generator=g)
    over = torch.arange(N) < 6
    support = SupportSet(draw(N, L, D), draw(N, 4), draw(N), draw(N, 4), over, draw(N, M, L, D))
    own, asked = model.q, []
    def spy(z, state): asked.append(z.clone()); return own(z, state)
    model.q = spy
    try: targets = Backup(model, support, 5.).targets()
    finally: del model.q
    assert torch.equal(torch.cat(asked), support.candidates.flatten(0, 1))
    assert torch.equal(targets[:6], support.gain[:6]) and (targets[6:] != support.gain[6:]).all()
    best = own(support.candidates.flatten(0, 1), support.after.repeat_interleave(M, 0)).view(N, M).amax(1)
    assert (targets[6:] <= (support.gain + SMALL.discount ** SMALL.steps * best)[6:] + 1e-5).all()


def test_windows_add_up():
    "What a window earns is the discounted sum of its rewards; past a termination nothing is paid, and a time limit is no end."
    data, c = walks(4, 40, ended=np.array([True, True, False, False])), SMALL
    segments = Segments(data, c)
    rows = segments.at(torch.tensor([0, 0, 2]), torch.tensor([3, 30, 3]))
    for i, (e, start) in enumerate(((0, 3), (0, 30), (2, 3))):
        paid = data[e].reward[start:start + c.steps]
        assert float(rows['gain'][i]) == pytest.approx(float((paid * c.discount ** np.arange(len(paid))).sum()), abs=1e-5)
    assert rows['over'].tolist() == [False, True, False]
    assert torch.allclose(rows['token'][1, 5:, -2:], torch.zeros(3, 2), atol=1e-6)
    drawn = segments.draw(256, torch.Generator().manual_seed(0))
    assert drawn['token'].shape == (256, 8, SMALL.numbers) and drawn['over'].any() and not drawn['over'].all()


def test_the_encoder_and_the_decoder_are_causal(model):
    token = torch.randn(2, 8, SMALL.numbers, generator=torch.Generator().manual_seed(0))
    other = token.clone(); other[:, 4:] += 1
    with torch.no_grad():
        a, b = model.vae.encoder(token)[0], model.vae.encoder(other)[0]
        assert torch.equal(a[:, 0], b[:, 0]) and not torch.equal(a[:, 1], b[:, 1])
        z, start = torch.randn(2, 2, 3), torch.randn(2, 4)
        later = z.clone(); later[:, 1] += 1
        a, b = model.vae.decoder(z, start), model.vae.decoder(later, start)
        assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4:], b[:, 4:])


@pytest.mark.parametrize('beta', [0., 3.])
def test_a_plan_alone_is_its_row_in_sixty_four(model, beta):
    state = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r'iterations must be an integer in 1\.\.'): draw_latents(model, state, beta, iterations=5000)
    many = draw_latents(model, state, beta, iterations=5, seeds=range(64))
    for i in (0, 17): torch.testing.assert_close(draw_latents(model, state[i:i + 1], beta, 5, [i])[0], many[i], atol=1e-4, rtol=1e-4)
    out = decode_plans(model, many, state)
    assert {n: tuple(x.shape) for n, x in out.items()} == dict(state=(64, 8, 4), action=(64, 8, 2, 2), reward=(64, 8), to_go=(64, 8))
    if beta: assert not torch.allclose(many, draw_latents(model, state, 0., 5, range(64)))


def test_a_planner_plans_when_its_plan_is_used_up(model, monkeypatch):
    planner, plans = LatentPlanner(model, 1., every=3, iterations=2), []
    own = planner.plan
    monkeypatch.setattr(planner, 'plan', lambda state: plans.append(planner.time) or own(state))
    actions = [planner(torch.randn(5, 4)) for _ in range(13)]
    assert plans == [0, 6, 12] and all(a.shape == (5, 2) and a.isfinite().all() for a in actions)
    best = LatentPlanner(model, 0., iterations=2, best_of=8).plan(torch.zeros(3, 4))
    assert best.shape == (3, SMALL.latents, SMALL.latent_dim)


def test_the_action_at_a_step_is_that_of_its_token_for_the_state_met_there(model):
    "Step t of a plan is part t % stride of token t // stride; the decoder reads the state in which the token begins."
    g, c = torch.Generator().manual_seed(0), SMALL
    states = torch.randn(4 * c.stride, 3, 4, generator=g)
    planner = LatentPlanner(model, 0., every=4, iterations=2)
    done = [planner(state) for state in states]
    with torch.no_grad(): z = draw_latents(model, states[0], 0., 2, seeds=0)
    features = model.vae.decoder(model.latents.inverse(z), model.tokens(states[0]))
    for t, action in enumerate(done):
        token, part = divmod(t, c.stride)
        with torch.no_grad(): raw = model.vae.decoder.act(features[:, token], model.tokens(states[token * c.stride]))
        scale = model.tokens.scale[c.state_dim:-2].view(c.stride, 2)[part], model.tokens.centre[c.state_dim:-2].view(c.stride, 2)[part]
        torch.testing.assert_close(action, raw.view(3, c.stride, 2)[:, part] * scale[0] + scale[1], atol=1e-4, rtol=1e-4)


def test_episodes_with_seeds_of_their_own_do_not_depend_on_one_another(model):
    "Rows that end are left out; the others act as they would have alone."
    states = torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(0))
    def drive(rows, best_of):
        planner, out = LatentPlanner(model, 2., every=2, iterations=3, best_of=best_of).begin([10 + r for r in rows]), []
        for t, state in enumerate(states):
            out.append(dict(zip(rows, planner(state[rows]))))
            if t == 6 and len(rows) > 1: planner.keep([0, 2]); rows = [rows[0], rows[2]]
        return out
    for best_of in (1, 3):
        many, alone = drive([0, 1, 2, 3, 4], best_of), drive([2], best_of)
        for a, b in zip(many, alone): torch.testing.assert_close(a[2], b[2], atol=1e-4, rtol=1e-4)
        assert set(many[-1]) == {0, 2}


def test_a_killed_training_is_gone_on_with_stage_by_stage(tmp_path, monkeypatch):
    "A finished stage is read, not trained again; another recipe is refused by name."
    from ldp_tut import latent_diffuser
    data, how = walks(), LatentTraining(vae=3, prior=3, value=3, energy=3, support=16, candidates=4)
    def killed(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(latent_diffuser, 'train_value', killed)
        with pytest.raises(KeyboardInterrupt): train_latent_diffuser(data, SMALL, how, out=tmp_path)
    assert {p.name for p in tmp_path.glob('*.safetensors')} == {'vae.safetensors', 'prior.safetensors'}
    went_on, whole = train_latent_diffuser(data, SMALL, how, out=tmp_path), train_latent_diffuser(data, SMALL, how)
    for a, b in zip(went_on.state_dict().values(), whole.state_dict().values()): torch.testing.assert_close(a, b)
    with pytest.raises(CheckpointError, match='candidates=4, not 8'):
        train_latent_diffuser(data, SMALL, LatentTraining(vae=3, prior=3, value=3, energy=3, support=16, candidates=8), out=tmp_path)


def test_latents_that_say_nothing_are_not_magnified_where_samples_set_the_scale():
    "A number that the encoder leaves at N(0, 1) hardly differs in its means; its samples have a spread of 1."
    from ldp_tut.latent_diffuser import LatentDiffuser, train_vae
    spread = {}
    for of_samples in (False, True):
        torch.manual_seed(0)
        dull = LatentDiffuser(LatentConfig(4, 2, stride=2, tokens=8, latents=2, latent_dim=3, width=16, depth=1, K=20, kl=1e3))
        segments = Segments(walks(), dull.config)
        train_vae(dull, segments, LatentTraining(vae=150, batch=32, lr=1e-2, of_samples=of_samples))
        with torch.no_grad(): mean, log_variance = dull.vae.encoder(dull.tokens(segments.draw(256, torch.Generator().manual_seed(1))['token']))
        z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
        spread[of_samples] = float(dull.latents(z).std())
    assert spread[True] == pytest.approx(1, abs=.2) and spread[False] > 2, spread


def test_a_checkpoint_round_trips(model, tmp_path):
    path = save_latent_diffuser(tmp_path / 'm.safetensors', model, dict(seed=0))
    again, state = load_latent_diffuser(path), torch.randn(3, 4)
    assert again.config == SMALL and not again.training
    assert torch.equal(draw_latents(again, state, 2., 3), draw_latents(model, state, 2., 3))
    z = torch.randn(3, SMALL.latents, SMALL.latent_dim)
    assert torch.equal(decode_plans(again, z, state)['action'], decode_plans(model, z, state)['action'])
    other = save_checkpoint(tmp_path / 'o.safetensors', dict(x=torch.zeros(1)), dict(kind='other'))
    with pytest.raises(CheckpointError, match="not a LatentDiffuser .it is a 'other'"): load_latent_diffuser(other)


def test_bad_input_is_refused_at_the_door(model):
    with pytest.raises(ValueError, match='M >= 2'): energy_labels(torch.randn(4, 1), 1.)
    for beta in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='beta must be a finite number'): energy_labels(torch.randn(4, 2), beta)
        with pytest.raises(ValueError, match='beta must be a finite number'): draw_latents(model, torch.zeros(1, 4), beta)
        with pytest.raises(ValueError, match='beta must be a finite number'): LatentPlanner(model, beta)
    with pytest.raises(ValueError, match='beta must be 0 or more'): support_backup(torch.randn(4, 2), -1.)
    with pytest.raises(ValueError, match='value must be finite'): energy_labels(torch.tensor([[0., float('nan')]]), 1.)
    data = walks()
    data.reward[:] = 0
    with pytest.raises(ValueError, match='returns are missing from the data: every reward is 0'): train_latent_diffuser(data, SMALL)
    data.reward[3] = np.nan  # said by the episode format's own check
    with pytest.raises(ValueError, match='reward of episode 0, step 3 is nan'): Segments(data, SMALL)
    with pytest.raises(ValueError, match='a window takes 64 steps, the longest episode has 40'):
        Segments(walks(ended=np.zeros(6, bool)), LatentConfig(4, 2))
    with pytest.raises(ValueError, match='latents must be even and divide tokens'): LatentConfig(4, 2, tokens=16, latents=3)
    with pytest.raises(ValueError, match=r'state must be \[B, 4\]'): draw_latents(model, torch.zeros(2, 5))
    with pytest.raises(ValueError, match='candidates, M, must be an integer of at least 2'): LatentTraining(candidates=1)
    planner = LatentPlanner(model, 0., every=2, iterations=2); planner(torch.zeros(3, 4))
    with pytest.raises(ValueError, match='2 states for 3 plans'): planner(torch.zeros(2, 4))
    with pytest.raises(ValueError, match='every must be an integer'): LatentPlanner(model, 1., every=9)


def rows_of(experiment):
    with open(asset('latent_diffuser.csv')) as f: return [r for r in csv.DictReader(f) if r['experiment'] == experiment]


def test_the_committed_rows_say_what_the_chapter_says():
    "Leaning by the energy beats the prior, cloning and the naive guide, by more than the 95 % intervals of the starts; from other seeds, too, the prior."
    def half(p, n): return 1.96 * (p * (1 - p) / n) ** .5
    rows = {(r['seed'], r['method'], float(r['beta'])): (float(r['success']), int(r['episodes'])) for r in rows_of('beta')}
    seeds = {seed for seed, *_ in rows}
    assert '0' in seeds and {float(beta) for s, m, beta in rows if m == 'energy'} >= {1., 4., 16., 64., 256.}
    for seed in seeds:
        best, n = rows[seed, 'energy', 16.]
        rivals = [('prior', 0.)] + [('cloning', 0.), ('naive', 4.), ('naive', 16.)] * (seed == '0')
        for name, beta in rivals:
            p, m = rows[seed, name, beta]
            assert n >= 200 and best - half(best, n) > p + half(p, m), (seed, name)
    others = {(r['seed'], r['method']): (float(r['success']), int(r['episodes'])) for r in rows_of('seeds')}
    for seed in ('1', '2'):
        (best, n), (p, m) = others[seed, 'energy'], others[seed, 'prior']
        assert best - half(best, n) > p + half(p, m), seed


def test_each_of_the_six_experiments_has_rows():
    "Reconstruction and latent sizes, generated plans, beta, data and shift, the clock."
    variants = {r['setting'] for r in rows_of('variant')}
    assert {'as it is', 'D = 1', 'D = 8', 'T = 32, L = 4', 'half'} <= variants
    for setting in variants: assert {r['method'] for r in rows_of('variant') if r['setting'] == setting} - {'energy, to its end'} == {'model', 'energy', 'prior'}
    assert all(float(r['apart']) > 0 and 0 <= float(r['walls']) <= 1 for r in rows_of('variant') + rows_of('generated') if r['method'] == 'model')
    assert {'none', 'motor', 'wind', 'wind, every 1', 'wind, every 8'} == {r['setting'] for r in rows_of('shift')}
    clock = rows_of('clock')
    for r in clock: assert float(r['one']) > 0 if r['method'] == 'milliseconds' else 0 <= float(r['success']) <= 1
    assert {r['setting'] for r in clock if r['method'] == 'drive'} == {r['setting'] for r in clock if r['method'] == 'milliseconds'}


@pytest.mark.parametrize('shape', [dict(state_dim=3, action_dim=3), dict(action_dim=3), dict(state_dim=5)])
def test_a_configuration_of_other_data_is_refused(shape):
    "Also where the numbers of a token come to as many."
    with pytest.raises(ValueError, match='the slices have 4 numbers a state, 2 an action'): Segments(walks(), replace(SMALL, **shape))


def test_what_fails_late_is_refused_early(tmp_path, model):
    with pytest.raises(ValueError, match='support must be'): LatentTraining(support=1)
    with pytest.raises(ValueError, match='seed must be'): LatentTraining(seed=-1)
    support = support_of(model, Segments(walks(), SMALL), 4, 2, seed=10**14, iterations=2)
    assert all(x.isfinite().all() for x in vars(support).values() if torch.is_tensor(x) and x.is_floating_point())
    save_latent_diffuser(tmp_path / 'm.safetensors', model, {})
    tensors, card = load_checkpoint(tmp_path / 'm.safetensors')
    for said in ({}, dict(config={n: v for n, v in card['config'].items() if n != 'action_dim'})):
        save_checkpoint(tmp_path / 'n.safetensors', tensors, {n: v for n, v in card.items() if n != 'config'} | said)
        with pytest.raises(CheckpointError, match='configuration'): load_latent_diffuser(tmp_path / 'n.safetensors')
