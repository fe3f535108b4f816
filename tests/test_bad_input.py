"Every public function of Part I refuses bad input with a sentence that names the argument; a test fails when one is missing here."
import importlib

import numpy as np
import pytest
import torch

from ldp_tut import board, ddpm, guidance, score
from ldp_tut.board import full_board
from ldp_tut.ddpm import PointDenoiser, cosine_schedule

S = cosine_schedule(10)
X, K = torch.zeros(3, 2, 4), torch.full((3, 2), 5)
META = torch.zeros(3, 2, dtype=torch.long, device='meta')
MIX = score.blobs(S)
same = lambda x, k, times=None: x
step = lambda x=X, f=K, g=K - 1, times=torch.zeros(3, 2), denoise=same, **kw: ddpm.sample_step(denoise, x, f, g, times, schedule=S, **kw)
walk = lambda x=X, b=full_board(2, 10, 5), times=None, **kw: list(ddpm.sample(same, x, b, times, schedule=S, **kw))
flat = lambda H, K, M: full_board(H, K, M)

BAD = [  # function, call, exception, words of the sentence
    ('board.check_count', lambda: board.check_count(True, 'H'), ValueError, 'H must be an integer of at least 1, got True'),
    ('board.check_count', lambda: board.check_count('3', 'H', 0, 5), ValueError, r"H must be an integer in 0\.\.5, got '3'"),
    ('board.check_count', lambda: board.check_count(torch.ones(2), 'H'), ValueError, 'H must be an integer'),
    ('board.check_finite', lambda: board.check_finite('3', 'eta'), TypeError, "eta must be a number, got '3'"),
    ('board.check_finite', lambda: board.check_finite(torch.tensor([0., torch.nan]), 'x'), ValueError, 'x must be finite'),
    ('board.check_between', lambda: board.check_between(1, 'lead', 0, 1, '[)', 'a share'), ValueError, r'lead must be in \[0, 1\), got 1: a share'),
    ('board.check_between', lambda: board.check_between(0, 'share', 0, 1, '(]'), ValueError, r'share must be in \(0, 1\], got 0'),
    ('board.check_positive', lambda: board.check_positive(torch.inf, 'limit'), ValueError, 'limit must be a finite number, got inf'),
    ('board.check_floats', lambda: board.check_floats(torch.ones(2).long(), 'x', '[B]'), TypeError, r'x must be a floating-point tensor \[B\], got torch.int64 \[2\]: convert'),
    ('board.as_floats', lambda: board.as_floats([[1.], [1., 2.]], 'start'), TypeError, 'start must hold numbers of one shape, got list'),
    ('board.as_floats', lambda: board.as_floats(['a'], 'start'), TypeError, 'start must hold numbers'),
    ('board.as_floats', lambda: board.as_floats([1j], 'start'), TypeError, 'real numbers'),
    ('board.as_floats', lambda: board.as_floats(np.array([0., np.nan]), 'start'), ValueError, 'start must be finite'),
    ('board.ramp', lambda: board.ramp(torch.zeros(3), torch.ones(2), 10, 5), ValueError, r'start and stop .*\[3\] and \[2\]'),
    ('board.ramp', lambda: board.ramp(torch.ones(2), torch.zeros(2), 10, 5), ValueError, 'stop after it starts'),
    ('board.ramp', lambda: board.ramp(torch.zeros(2), torch.tensor([1., torch.inf]), 10, 5), ValueError, 'stop must be finite'),
    ('board.draw_board', lambda: board.draw_board(torch.zeros(3)), ValueError, r'board must be .*got \[3\]'),
    *[(f'board.{f}_board', lambda f=f: board.BOARDS[f](0, 10, 5), ValueError, 'H must be .*got 0') for f in board.BOARDS],
    *[(f'board.{f}_board', lambda f=f: board.BOARDS[f](3, 2.5, 5), ValueError, 'K must be .*got 2.5') for f in board.BOARDS],
    *[(f'board.{f}_board', lambda f=f: board.BOARDS[f](3, 10, 5, lead=1.), ValueError, 'lead must be .*got 1.0') for f in board.BOARDS if f not in ('full', 'autoregressive')],
    ('board.pin', lambda: board.pin(full_board(3, 10, 5), [3]), ValueError, 'column 3 of a board of 3'),
    ('board.pin', lambda: board.pin(full_board(3, 10, 5), -1), ValueError, r'columns must be .*0\.\.3, got -1'),
    ('board.pin', lambda: board.pin(full_board(3, 10, 5), [True, False]), ValueError, r'mask of columns must be \[H\] = \[3\], got \[2\]'),
    ('board.pin', lambda: board.pin(full_board(3, 10, 5), [0.5]), ValueError, 'column 0.5 of a board of 3'),
    ('board.pin', lambda: board.pin([[1]], 1), TypeError, 'board must be'),
    ('board.context_board', lambda: board.context_board(full_board(3, 10, 5), -1), ValueError, 'context .*got -1'),
    ('board.check_board', lambda: board.check_board(torch.zeros(3, 2), 10), TypeError, 'integer tensor .*float32'),
    ('board.check_board', lambda: board.check_board(full_board(3, 10, 5), 10, 4), ValueError, 'for 3 tokens, the plan has 4'),
    ('board.check_board', lambda: board.check_board(full_board(3, 10, 5), 9), ValueError, r'0\.\.9, the board has 0\.\.10'),
    ('board.check_board', lambda: board.check_board(full_board(3, 10, 5).flip(0), 10), ValueError, 'rises'),
    ('board.edm_sigma', lambda: board.edm_sigma(torch.tensor([0.])), ValueError, r'alpha_bar .*\(0, 1\]'),
    ('board.edm_sigma', lambda: board.edm_sigma(torch.tensor([1])), TypeError, 'alpha_bar must be a floating-point'),
    ('board.flow_time', lambda: board.flow_time(torch.tensor([1.5])), ValueError, r'alpha_bar .*1\.5'),
    ('board.Budget', lambda: board.Budget('laptop'), ValueError, 'smoke, cpu, gpu'),
    ('board.asset', lambda: board.asset('../secret'), ValueError, 'plain file name'),
    ('ddpm.NoiseSchedule', lambda: ddpm.NoiseSchedule(torch.tensor([.9, .5])), ValueError, r'alpha_bar\[0\] must be 1'),
    ('ddpm.NoiseSchedule', lambda: ddpm.NoiseSchedule(torch.tensor([1., .5, .6])), ValueError, 'fall strictly'),
    ('ddpm.NoiseSchedule', lambda: ddpm.NoiseSchedule([1., .5]), TypeError, 'alpha_bar .*list'),
    ('ddpm.NoiseSchedule', lambda: ddpm.NoiseSchedule(torch.tensor([1., torch.nan])), ValueError, 'alpha_bar must be finite'),
    ('ddpm.NoiseSchedule', lambda: ddpm.NoiseSchedule(torch.tensor([1., 1 - 1e-9, .5]).double()), ValueError, 'fall strictly .*float32'),
    ('ddpm.linear_schedule', lambda: ddpm.linear_schedule(10, torch.nan, .1), ValueError, 'beta_start <= beta_end < 1, got nan'),
    ('ddpm.cosine_schedule', lambda: ddpm.cosine_schedule(10, torch.nan), ValueError, 's must be a finite number, got nan'),
    ('ddpm.sigmoid_schedule', lambda: ddpm.sigmoid_schedule(10, -torch.inf), ValueError, 'start must be a finite number, got -inf'),
    ('ddpm.sigmoid_schedule', lambda: ddpm.sigmoid_schedule(10, tau=torch.nan), ValueError, 'tau must be a finite number, got nan'),
    ('ddpm.shifted', lambda: ddpm.shifted(S, torch.inf), ValueError, 'factor must be a finite number, got inf'),
    ('ddpm.check_like', lambda: ddpm.check_like(1., 'value', X), TypeError, 'value must be a tensor like x, got float'),
    ('ddpm.check_callable', lambda: ddpm.check_callable(3, 'guide', '(x, k)'), TypeError, r'guide must be callable as \(x, k\), got int'),
    ('ddpm.levels_over', lambda: ddpm.levels_over(K, X[:2], 10), ValueError, r'levels k \[3, 2\] do not match the leading axes of x \[2, 2, 4\]'),
    ('ddpm.linear_schedule', lambda: ddpm.linear_schedule(0), ValueError, 'K must be .*got 0'),
    ('ddpm.linear_schedule', lambda: ddpm.linear_schedule(10, .5, .1), ValueError, 'beta_start <= beta_end'),
    ('ddpm.cosine_schedule', lambda: ddpm.cosine_schedule(10.), ValueError, r'K must be .*got 10\.0'),
    ('ddpm.cosine_schedule', lambda: ddpm.cosine_schedule(10, -1), ValueError, 's must be .*got -1'),
    ('ddpm.sigmoid_schedule', lambda: ddpm.sigmoid_schedule(10, 3, -3), ValueError, 'start < end'),
    ('ddpm.shifted', lambda: ddpm.shifted(S, 0), ValueError, 'factor must be positive, got 0'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X, K, X[:2]), ValueError, r'noise \[2, 2, 4\]'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X, K.float(), X), TypeError, 'k must be integers, got torch.float32'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X, K + 6, X), ValueError, r'0\.\.10, got 11\.\.11'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X, K[:, :1], X), ValueError, r'k \[3, 1\]'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X.long(), K, X.long()), TypeError, 'x must be a floating-point'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X, META, X), ValueError, 'k are on meta and x on cpu'),
    ('ddpm.add_noise', lambda: ddpm.add_noise(S, X, 5, X), TypeError, 'k must be an integer tensor, got int'),
    ('ddpm.check_levels', lambda: ddpm.check_levels(K.bool(), 10), TypeError, 'k must be integers, got torch.bool'),
    ('ddpm.check_levels', lambda: ddpm.check_levels(K, 4), ValueError, r'0\.\.4, got 5\.\.5'),
    ('ddpm.convert', lambda: ddpm.convert(S, X, K, X, 'noise', 'x0'), ValueError, "'eps', 'x0' or 'v', got 'noise'"),
    ('ddpm.convert', lambda: ddpm.convert(S, X, K, X[:1], 'eps', 'x0'), ValueError, r'value \[1, 2, 4\]'),
    ('ddpm.posterior', lambda: ddpm.posterior(S, X, X, 0 * K), ValueError, 'k must be at least 1'),
    ('ddpm.posterior', lambda: ddpm.posterior(S, X, X[:1], K), ValueError, r'x0 \[1, 2, 4\]'),
    ('ddpm.min_snr_weight', lambda: ddpm.min_snr_weight(S, K + 10), ValueError, r'0\.\.10'),
    ('ddpm.min_snr_weight', lambda: ddpm.min_snr_weight(S, K, gamma=0), ValueError, 'gamma .*got 0'),
    ('ddpm.min_snr_weight', lambda: ddpm.min_snr_weight(S, K, 'noise'), ValueError, "got 'noise'"),
    ('ddpm.fused_snr_weight', lambda: ddpm.fused_snr_weight(S, K[0]), ValueError, r'\[B, H\], got \[2\]'),
    ('ddpm.fused_snr_weight', lambda: ddpm.fused_snr_weight(S, K, decay=1.), ValueError, 'decay .*got 1.0'),
    ('ddpm.PointDenoiser', lambda: PointDenoiser(width=0), ValueError, 'width .*got 0'),
    ('ddpm.PointDenoiser', lambda: PointDenoiser(K=10)(X, K), ValueError, '4 numbers, .*dim=2'),
    ('ddpm.PointDenoiser', lambda: PointDenoiser(4, K=10)(X, K, label=K[:, 0]), ValueError, 'without classes'),
    ('ddpm.train_denoiser', lambda: ddpm.train_denoiser(PointDenoiser(4, K=10), None, S, 'noise'), ValueError, "got 'noise'"),
    ('ddpm.train_denoiser', lambda: ddpm.train_denoiser(PointDenoiser(4, K=10), None, S, steps=0), ValueError, 'steps and batch .*got 0'),
    ('ddpm.x0_denoiser', lambda: ddpm.x0_denoiser(PointDenoiser(4, K=10), S, 'noise'), ValueError, "got 'noise'"),
    ('ddpm.sample_step', lambda: step(times=torch.zeros(3)), ValueError, r'times must be \[B, H\] = \[3, 2\], got \[3\]'),
    ('ddpm.sample_step', lambda: step(g=K + 1), ValueError, 'k_to is above k_from'),
    ('ddpm.sample_step', lambda: step(eta=1.), ValueError, 'eta=1.0 .*noise'),
    *[('ddpm.sample_step', lambda eta=eta: step(eta=eta, noise=X), ValueError, 'eta must be') for eta in (-.1, 1.1, torch.nan, torch.inf)],
    ('ddpm.sample_step', lambda: step(eta=1., noise=X[:1]), ValueError, r'noise \[1, 2, 4\] must have the shape of x \[3, 2, 4\]'),
    ('ddpm.sample_step', lambda: step(denoise=lambda x, k, t: x[..., :2]), ValueError, r"denoiser's clean estimate \[3, 2, 2\] must have the shape of x \[3, 2, 4\]"),
    ('ddpm.sample_step', lambda: step(denoise=lambda x, k, t: None), TypeError, "denoiser's clean estimate must be a tensor"),
    ('ddpm.sample_step', lambda: step(guide=lambda x, k, t, p: x.sum()), ValueError, r"guide's gradient \[\] must have the shape of x"),
    ('ddpm.sample_step', lambda: step(x=X.long()), TypeError, 'x must be a floating-point'),
    ('ddpm.sample_step', lambda: step(f=K + 20), ValueError, r'0\.\.10'),
    ('ddpm.renoise', lambda: ddpm.renoise(S, X, K, K - 1, X), ValueError, 'k_to is below k_from'),
    ('ddpm.renoise', lambda: ddpm.renoise(S, X, K, K, X[:1]), ValueError, r'noise \[1, 2, 4\]'),
    ('ddpm.sample', lambda: walk(x=X[0]), ValueError, r'x must be \[B, H, D\].*\[2, 4\]'),
    ('ddpm.sample', lambda: walk(x=X[:0]), ValueError, r'at least one number, got \[0, 2, 4\]'),
    ('ddpm.sample', lambda: walk(x=X.long()), TypeError, 'x must be a floating-point'),
    ('ddpm.sample', lambda: walk(x=X.to('meta')), ValueError, 'schedule is on cpu and x on meta'),
    ('ddpm.sample', lambda: walk(b=full_board(3, 10, 5)), ValueError, '3 tokens, the plan has 2'),
    ('ddpm.sample', lambda: walk(times=torch.zeros(5)), ValueError, r'times must be .*got \[5\]'),
    ('ddpm.sample', lambda: walk(eta=2.), ValueError, r'eta must be in \[0, 1\], got 2'),
    ('ddpm.sample', lambda: walk(eta=1., noise=X.expand(4, -1, -1, -1)), ValueError, 'noise must hold 5 draws .*got 4'),
    ('ddpm.sample', lambda: walk(recurrences=0), ValueError, 'recurrences .*got 0'),
    ('ddpm.last', lambda: ddpm.last([]), ValueError, 'iterations is empty'),
    ('ddpm.seeded_noise', lambda: ddpm.seeded_noise([], 2), ValueError, 'seeds is empty'),
    ('ddpm.seeded_noise', lambda: ddpm.seeded_noise([0.5], 2), TypeError, 'integer'),
    ('ddpm.energy_distance', lambda: ddpm.energy_distance(X[0], X[0, :, :3]), ValueError, '4 numbers, b of 3'),
    ('ddpm.energy_distance', lambda: ddpm.energy_distance(X[0, :1], X[0]), ValueError, r'a must be .*got \[1, 4\]'),
    ('score.GaussianMixture', lambda: score.GaussianMixture(torch.ones(2), torch.zeros(3, 1, 2), torch.eye(2).expand(3, 2, 2), S), ValueError, 'weights must be 3 positive'),
    ('score.GaussianMixture', lambda: score.GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], S), ValueError, r'means must be \[C, H, D\]'),
    ('score.GaussianMixture', lambda: score.GaussianMixture(torch.ones(1), torch.zeros(1, 1, 2), -torch.eye(2)[None], S), ValueError, 'covariances must be .*positive definite'),
    ('score.GaussianMixture', lambda: score.GaussianMixture(torch.ones(1), torch.zeros(1, 1, 2), torch.eye(3)[None], S), ValueError, r'covariances must be \[C, H\*D, H\*D\]'),
    ('score.GaussianMixture', lambda: MIX.denoise(X, K), ValueError, r'x must be \[B, 1, 2\], got \[3, 2, 4\]'),
    ('score.GaussianMixture', lambda: MIX.score(torch.zeros(0, 1, 2)), ValueError, 'x is empty'),
    ('score.GaussianMixture', lambda: MIX.log_prob(torch.zeros(3, 1, 2), torch.full((3, 1), 11)), ValueError, r'0\.\.10, got 11'),
    ('score.GaussianMixture', lambda: MIX.log_class(torch.zeros(3, 1, 2), torch.zeros(3, 1)), TypeError, 'k must be integers'),
    ('score.GaussianMixture', lambda: MIX.sample(0), ValueError, 'n must be .*got 0'),
    ('score.blobs', lambda: score.blobs(S, -1), ValueError, 'std must be positive, got -1'),
    ('score.score_of', lambda: score.score_of(None, S), TypeError, 'denoise must be callable'),
    ('score.score_of', lambda: score.score_of(same, S)(X, 0 * K), ValueError, 'k must be at least 1'),
    ('score.langevin', lambda: list(score.langevin(same, X, 3, -1.)), ValueError, r'size must be positive, got -1\.0'),
    ('score.langevin', lambda: list(score.langevin(same, X, 0, 1.)), ValueError, 'steps must be .*got 0'),
    ('score.annealed_langevin', lambda: list(score.annealed_langevin(same, X, S, [1, 5])), ValueError, 'levels must fall'),
    ('score.annealed_langevin', lambda: list(score.annealed_langevin(same, X, S, [11])), ValueError, r'levels must lie in 1\.\.10'),
    ('score.flow_log_prob', lambda: score.flow_log_prob(same, X[0], S), ValueError, r'x must be \[B, H, D\]'),
    ('score.ModelBasedDenoiser', lambda: score.ModelBasedDenoiser(None, S, 1), ValueError, 'candidates .*got 1'),
    ('score.ModelBasedDenoiser', lambda: score.ModelBasedDenoiser(None, S, temperature=0), ValueError, 'temperature .*got 0'),
    ('score.ModelBasedDenoiser', lambda: score.ModelBasedDenoiser(lambda u: u.flatten(1).sum(1) * torch.nan, S)(X, K), ValueError, 'no finite number'),
    ('guidance.ClassifierGuide', lambda: guidance.ClassifierGuide(3), TypeError, 'log_prob must be callable'),
    ('guidance.ClassifierGuide', lambda: guidance.ClassifierGuide(lambda x, *_: x.mean())(X.requires_grad_(), K, None, None), ValueError, 'one value per sample'),
    ('guidance.ClassifierFree', lambda: guidance.ClassifierFree(same, None), TypeError, 'unconditional must be callable'),
    ('guidance.GridDensity', lambda: guidance.GridDensity(MIX.log_prob, S, cells=1), ValueError, 'cells must be .*at least 3, got 1'),
    ('guidance.GridDensity', lambda: guidance.GridDensity(MIX.log_prob, S, cells=5).denoise(X, K), ValueError, r'x must be \[B, 1, 2\]'),
    ('guidance.ClassifierGuide', lambda: guidance.ClassifierGuide(same, torch.nan), ValueError, 'scale must be a finite number, got nan'),
    ('guidance.ClassifierFree', lambda: guidance.ClassifierFree(same, same, torch.inf), ValueError, 'scale must be a finite number, got inf'),
    ('guidance.HeadGuide', lambda: guidance.HeadGuide(scale=torch.inf), ValueError, 'scale must be a finite number, got inf'),
    *[('guidance.Limited', lambda limit=limit: guidance.Limited(same, S, limit), ValueError, f'limit must be a finite number, got {limit}') for limit in (torch.nan, torch.inf)],
    ('guidance.GridDensity', lambda: guidance.GridDensity(lambda x: x[:, 0, 0] * torch.nan, S), ValueError, 'log_density on the grid must be finite'),
    ('guidance.Limited', lambda: guidance.Limited(same, S, 0.), ValueError, r'limit must be positive, got 0\.0'),
    ('guidance.Limited', lambda: guidance.Limited(None, S), TypeError, 'guide must be callable'),
    ('guidance.HeadGuide', lambda: guidance.HeadGuide('value')(X, K, None, ddpm.Iteration(0, X, None)), ValueError, "no head 'value'"),
]


@pytest.mark.parametrize('name, call, error, words', BAD, ids=[f'{i}-{b[0]}' for i, b in enumerate(BAD)])
def test_bad_input_is_named(name, call, error, words):
    with pytest.raises(error, match=words): call()


@pytest.mark.parametrize('module', ['board', 'ddpm', 'score', 'guidance'])
def test_nothing_public_is_missing_above(module):
    takes_nothing_wrong = {'board.BOARDS', 'ddpm.SCHEDULES', 'board.Stamp', 'ddpm.Iteration', 'ddpm.digits'}  # tables, records, and functions without arguments
    public = {f'{module}.{n}' for n in importlib.import_module(f'ldp_tut.{module}').__all__}
    assert public - takes_nothing_wrong <= {b[0] for b in BAD}
