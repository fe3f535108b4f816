"Planning as sampling: conditions, equalities, choices, and the worlds it is measured in."
import numpy as np
import pytest
import torch

from ldp_tut.data import Normaliser, Slices, Trajectories
from ldp_tut.diffuser import (Diffuser, DiffuserConfig, Plans, Replanning, Support, TemporalUNet, as_plans, choose, conditions, drive_actions, drive_plans, follow, follow_plans, joined,
                              load_diffuser, masked_loss, maze_scores, plan, planning, reach_of, replanned, return_of, save_diffuser, shortest, train_diffuser, warmed)
from ldp_tut.envs import MAZES, PointMaze, point_mazes
from ldp_tut.guidance import ClassifierGuide
from ldp_tut.checkpoints import CheckpointError
from ldp_tut.train import TrainConfig

CONFIG = DiffuserConfig(state_dim=4, action_dim=2, stride=2, goal_dims=2, width=16)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return Diffuser(CONFIG, Normaliser(torch.linspace(-1, 1, 8), torch.linspace(.5, 2, 8))).eval()


START, GOAL = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)), torch.randn(64, 2, generator=torch.Generator().manual_seed(2))


def test_conditions_hold_exactly_at_every_iteration(model):
    known, value = conditions(model, START, GOAL, 16)
    states = list(planning(model, known, value, iterations=6, limit=9.))
    assert len(states) == 7 and all(torch.equal(it.x[known], value[known]) for it in states)
    p = as_plans(model, states[-1].x)
    assert torch.allclose(p.state[:, 0], START, atol=1e-5) and torch.allclose(p.state[:, -1, :2], GOAL, atol=1e-5)
    assert not torch.allclose(p.state[:, -1, 2:], p.state[:1, -1, 2:].expand(64, -1))  # what is not asked for is free


def test_a_guided_plan_is_the_same_in_a_batch_of_1_and_of_64(model):
    guide = ClassifierGuide(return_of(model, lambda s: -s[..., :2].pow(2).sum(-1)), 2.)
    how = dict(tokens=16, iterations=5, guide=guide)
    many = plan(model, START, GOAL, seeds=range(64), **how)
    for i in (0, 17, 63):
        one = plan(model, START[i:i + 1], GOAL[i:i + 1], seeds=[i], **how)
        assert torch.allclose(one.tokens[0], many.tokens[i], atol=1e-4)
    free = plan(model, START, GOAL, 16, iterations=5, seeds=range(64))
    assert (many.tokens - free.tokens).abs().max() > 1e-3, 'this guide does nothing, so the test shows nothing'


def test_guidance_zero_equals_unguided(model):
    guide = ClassifierGuide(return_of(model, lambda s: -s.pow(2).sum(-1)), 0.)
    a, b = (plan(model, START[:4], GOAL[:4], 16, iterations=5, guide=g) for g in (guide, None))
    assert torch.allclose(a.tokens, b.tokens, atol=1e-5)


def test_seeds_decide(model):
    a, b, c = (plan(model, START[:2], GOAL[:2], 8, iterations=3, seeds=s) for s in (0, 0, 7))
    assert torch.equal(a.tokens, b.tokens) and not torch.equal(a.tokens, c.tokens)


def test_starts_are_numbers_of_any_kind_and_gradients_may_be_switched_off(model):
    "Arrays and lists, whole numbers and doubles plan as float32 tensors do; a guide works inside `inference_mode`."
    whole, there = START[:2].round(), GOAL[:2].round()
    want = plan(model, whole, there, 8, iterations=2).tokens
    for kind in (torch.Tensor.double, torch.Tensor.half, torch.Tensor.long, torch.Tensor.numpy, lambda t: t.double().numpy(), torch.Tensor.tolist):
        assert torch.equal(plan(model, kind(whole), kind(there), 8, iterations=2, seeds=np.array([0, 1])).tokens, want)
    with pytest.raises(TypeError, match='start must hold numbers'): plan(model, [['a'] * 4], None, 8)
    guide = ClassifierGuide(return_of(model, lambda s: -s.pow(2).sum(-1)), 2.)
    guided = plan(model, whole, there, 8, iterations=2, guide=guide).tokens
    with torch.inference_mode(): assert torch.equal(plan(model, whole.clone(), there.clone(), 8, iterations=2, guide=guide).tokens, guided)
    assert not torch.equal(guided, want) and torch.is_grad_enabled()


def test_planning_leaves_gradients_as_it_found_them(model):
    next(iter(planning(model, *conditions(model, START[:1], None, 8), iterations=2)))
    assert torch.is_grad_enabled()
    assert not plan(model, START[:1], None, 8, iterations=2).tokens.requires_grad


def test_known_numbers_cost_nothing_and_a_perfect_network_has_no_loss():
    torch.manual_seed(0)
    model = Diffuser(DiffuserConfig(2, 0, goal_dims=2, width=8, mults=(1, 1)))
    plans = torch.randn(32, 8, 2, generator=torch.Generator().manual_seed(0))
    seen = []
    class Oracle(torch.nn.Module):  # knows the clean plan, and writes rubbish where the plan is known
        def forward(self, x, k, known):
            a = model.schedule.alpha_bar[k][:, None, None]
            seen.append(known)
            return torch.where(known, 1e6, (a.sqrt() * x - plans) / (1 - a).sqrt())
    model.net = Oracle()
    assert model(plans, torch.Generator().manual_seed(3)) < 1e-6
    assert seen[0][:, 0].all() and 0 < seen[0][:, -1, 0].float().mean() < 1 and not seen[0][:, 1:-1].any()


def test_the_network_takes_lengths_it_can_halve():
    net, none = TemporalUNet(6, 16, (1, 2, 2)), torch.zeros(1, 10, 6, dtype=torch.bool)
    for H in (4, 8, 20): assert net(torch.zeros(2, H, 6), torch.tensor([1, 9]), none[:, :1].expand(2, H, -1)).shape == (2, H, 6)
    with pytest.raises(ValueError, match='multiple of 4, for instance 12'): net(torch.zeros(1, 10, 6), torch.tensor([1]), none)
    with pytest.raises(ValueError, match='tokens of 6 numbers, got 5'): net(torch.zeros(1, 8, 5), torch.tensor([1]), none)
    with pytest.raises(ValueError, match='divisible by 8'): TemporalUNet(6, 12)


def test_more_stages_see_farther():
    def wide(mults, norm=False):
        torch.manual_seed(0)
        return int((reach_of(TemporalUNet(4, 16, mults, norm=norm), 256) > 0).sum())
    assert wide((1,)) < wide((1, 1)) < wide((1, 1, 1)) < 256
    assert wide((1,), norm=True) == 256  # group normalisation sees every token; without it the window is exact


def line(n=200, T=60, seed=0):
    "Walks along the x axis at one of two speeds."
    rng = np.random.default_rng(seed)
    speed = rng.choice([-.02, .02], (n, 1)); x = rng.uniform(-1, 1, (n, 1)) + speed * np.arange(T + 1)
    state = np.stack([x, 0 * x, speed + 0 * x, 0 * x], -1).astype(np.float32)
    return Trajectories.from_padded(state, np.zeros((n, T, 2), np.float32), np.zeros((n, T), np.float32), np.full(n, T, np.int32), np.zeros(n, bool))


def test_support_believes_the_data_and_not_a_leap():
    slices = Slices(line(), 2)
    support = Support(slices, Normaliser.limits(slices.draw(4000, 2, torch.Generator().manual_seed(1))), size=4000)
    real = slices.draw(50, 16, torch.Generator().manual_seed(9))[..., :4]
    assert (support(real) <= 1).float().mean() > .9
    leap = real.clone(); leap[:, 8:, 1] += 1.
    assert (support(leap) > 2).all()


def test_shortest_takes_the_shortest_believable_length(monkeypatch):
    import ldp_tut.diffuser as module
    def fake(model, start, goal, tokens, seeds, **_):  # 8 tokens are never enough, 12 only for the second start
        state = torch.full((len(start), tokens, 4), 0. if tokens == 16 else 5.)
        state[:, :, 0] = torch.where((start[:, :1] == 2) & (tokens == 12), 0., state[:, :, 0])
        return Plans(state, torch.zeros(len(start), tokens, 2, 2), state)
    monkeypatch.setattr(module, 'plan', fake)
    plans, cost = shortest(None, lambda s: s[:, 0, 0], torch.tensor([[1.] * 4, [2.] * 4]), torch.zeros(2, 2), (8, 12, 16, 20), candidates=3)
    assert [len(p.state) for p in plans] == [16, 12] and cost.tolist() == [0, 0]


def test_choose_picks_each_ones_best_candidate():
    p = Plans(*(torch.arange(6.).view(6, 1, 1),) * 3)
    assert choose(p, torch.tensor([0., 5, 1, 9, 2, 3]), 3).state.flatten().tolist() == [1, 3]


def test_a_joined_plan_passes_through_its_tokens_with_their_speeds():
    rng = np.random.default_rng(0)
    state = rng.standard_normal((5, 4)).astype(np.float32)
    path = joined(state, 8)
    assert path.shape == (32, 4) and np.allclose(path[7::8], state[1:], atol=1e-5)
    between = np.diff(path[:, :2], axis=0) / .01  # finite differences against the stated velocities
    middle = (path[1:, 2:] + path[:-1, 2:]) / 2
    assert np.abs(between - middle).max() < .15 * np.abs(middle).max()


def test_scores_against_d4rls_definition():
    task, rewards = MAZES['large'], np.zeros((2, 800)); rewards[0, 300:] = 1
    s = maze_scores(task, rewards)
    assert s['success'] == .5 and s['first_reach'] == 301
    assert s['score'] == pytest.approx(100 * (250 - 6.7) / (273.99 - 6.7)) and task.normalised(273.99) == pytest.approx(100) and task.normalised(6.7) == 0


def test_following_a_reachable_path_reaches_the_goal():
    "An oracle plan (cell centres, at rest) followed by the controller: the protocol itself does not lose."
    many = point_mazes('umaze', 3); state, _ = many.reset(seed=0); maze, goal = many.envs[0].map, many.envs[0].goal; many.close()
    wanted = []
    for xy in state[:, :2]:
        cell, target, way = maze.nearest(xy), maze.nearest(goal), []
        while cell != target: cell = maze.next[target, cell]; way += [maze.centre[cell]] * 40
        way = np.array((way or [goal]) + [goal] * 300)[:300]
        wanted.append(np.concatenate([way, 0 * way], 1))
    rewards, states = follow('umaze', np.stack(wanted), 0)
    assert rewards.any(1).all() and states.shape == (3, 301, 4) and np.allclose(states[:, 0], state)


def test_what_is_followed_stays_at_the_goal(model, monkeypatch):
    "With the exact way as its plan, the controller arrives and never leaves again; the plans' own actions (none) go nowhere."
    from ldp_tut import diffuser
    maze, goal = PointMaze('umaze').map, PointMaze('umaze').goal
    def exact(model, support, old, state, goal_, *_, **__):
        plans, none = [], np.zeros(len(state), bool)
        for xy in state[:, :2].numpy():
            cell, target, way = maze.nearest(xy), maze.nearest(goal), [xy]
            while cell != target: cell = maze.next[target, cell]; way += [maze.centre[cell]] * 5
            way = torch.tensor(np.array(way + [goal])).float()
            plans.append(Plans(torch.cat([way, 0 * way], 1), torch.zeros(len(way), 8, 2), torch.zeros(len(way), 20)))
        return plans, none
    monkeypatch.setattr(diffuser, 'replanned', exact)
    eight = Diffuser(DiffuserConfig(4, 2, stride=8, goal_dims=2, width=8, mults=(1, 1))).eval()
    followed = drive_actions(eight, None, 'umaze', (4,), 4, seed=0, how=Replanning(every=4), controller=True)
    assert followed['success'] == 1 and followed['score'] > 100
    stayed = MAZES['umaze'].normalised(300 - followed['first_reach'] + 1)
    assert followed['score'] > stayed - 8                        # D4RL's points: a few steps are lost turning round, no more
    assert drive_actions(eight, None, 'umaze', (4,), 4, seed=0, how=Replanning(every=0))['score'] < followed['score'] / 2


def test_a_dense_support_is_told_what_to_tolerate():
    slices = Slices(line(), 2); normaliser = Normaliser.limits(slices.draw(100, 8, torch.Generator().manual_seed(0)))
    strict, mild = Support(slices, normaliser, size=500), Support(slices, normaliser, size=500, least=(9., 9.))
    assert torch.equal(mild.scale, torch.tensor([9., 9.])) and (strict.scale < 9).all()
    far = slices.draw(5, 8, torch.Generator().manual_seed(1))[..., :4] + .2
    assert (strict(far) > mild(far)).all()


def test_a_model_learns_a_line_and_reaches_along_it(tmp_path):
    slices, config = Slices(line(), 2), DiffuserConfig(4, 2, stride=2, goal_dims=2, width=16, mults=(1, 2), shift=1.)
    model = train_diffuser(slices, config, (8, 16), TrainConfig(steps=400, lr=3e-3, warmup=20, ema=.98), device='cpu', progress=False)
    p = plan(model, torch.tensor([[0., 0, .02, 0]]).repeat(16, 1), torch.tensor([[.28, 0]]).repeat(16, 1), 8)
    error = (p.state[:, :, 0] - torch.linspace(0, .28, 8)).abs().mean()
    assert error < .08 and p.state[:, :, 1].abs().max() < .1, error
    again = load_diffuser(save_diffuser(tmp_path / 'line.safetensors', model, dict(seed=0)))
    assert torch.equal(plan(again, START[:2], GOAL[:2], 8).tokens, plan(model, START[:2], GOAL[:2], 8).tokens)
    with pytest.raises(CheckpointError, match='no checkpoint'): load_diffuser(tmp_path / 'none.safetensors')


def test_warm_starts_stay_near_the_old_plan(model):
    old = plan(model, START[:8], GOAL[:8], 8, iterations=4)
    near, far = (plan(model, START[:8], GOAL[:8], 8, iterations=4, warm=old.tokens, level=l, seeds=50) for l in (2, 99))
    assert (near.tokens - old.tokens).abs().mean() < (far.tokens - old.tokens).abs().mean()


def test_the_whole_drive_runs_and_reports(model):
    config = DiffuserConfig(4, 2, stride=8, goal_dims=2, width=8, mults=(1, 1))
    torch.manual_seed(0); driver = Diffuser(config).eval()
    scores, states, plans = drive_plans(driver, lambda s: torch.ones(len(s)), 'umaze', (4, 8), 2, candidates=1, iterations=2)
    assert states.shape == (2, 301, 4) and len(plans) == 2 and all(len(p.state) == 4 for p in plans) and scores['believable'] == 1
    for every, warm, controller in ((0, 0, False), (4, 0, False), (4, 2, False), (4, 2, True), (0, 0, True)):
        how = Replanning(every=every, warm=warm, candidates=1, iterations=2)
        s = drive_actions(driver, lambda s: torch.ones(len(s)), 'umaze', (4, 8), 2, how=how, controller=controller)
        assert 0 <= s['success'] <= 1 and s['planning_seconds'] > 0 and (s['kept'] > 0) <= (every > 0 and warm > 0)


def test_bad_requests_are_refused_at_the_door(model):
    with pytest.raises(ValueError, match='state_dim must be an integer'): DiffuserConfig(0, 2)
    with pytest.raises(ValueError, match=r'goal_dims must be an integer in 0\.\.4'): DiffuserConfig(4, 2, goal_dims=5)
    with pytest.raises(ValueError, match=r'start must be \[B, state_dim\] = \[2, 4\]'): conditions(model, torch.zeros(2, 3), None, 8)
    with pytest.raises(ValueError, match='goal must be'): conditions(model, torch.zeros(2, 4), torch.zeros(2, 4), 8)
    with pytest.raises(ValueError, match='one seed per plan'): plan(model, START[:3], None, 8, seeds=[1, 2])
    with pytest.raises(ValueError, match='a stride of 4; the configuration 4 numbers a state, 2 an action, and a stride of 2'): train_diffuser(Slices(line(), 4), CONFIG)
    with pytest.raises(ValueError, match='multiples of 4'): train_diffuser(Slices(line(), 2), CONFIG, (6, 8), TrainConfig(steps=1))
    nan = START[:2].clone(); nan[1, 2] = float('nan')
    with pytest.raises(ValueError, match='start must be finite'): plan(model, nan, None, 8)
    with pytest.raises(ValueError, match='goal must be finite'): plan(model, START[:2], GOAL[:2] / 0, 8)
    with pytest.raises(ValueError, match=r'iterations must be an integer in 1\.\.'): plan(model, START[:2], GOAL[:2], 8, iterations=5000)
    assert torch.equal(plan(model, START[:2], None, 8, iterations=2, seeds=np.int64(3)).tokens, plan(model, START[:2], None, 8, iterations=2, seeds=[3, 4]).tokens)


@pytest.mark.parametrize('kind', [torch.float64, torch.float16, torch.int64, torch.uint8, np.float64, np.int32, list])
def test_starts_and_goals_of_any_numbers_give_the_same_plan(model, kind):
    start, goal = torch.tensor([[0., 1, 2, 3]]), torch.tensor([[1., 2]])
    given = [t.tolist() if kind is list else t.to(kind) if isinstance(kind, torch.dtype) else t.numpy().astype(kind) for t in (start, goal)]
    made = plan(model, *given, 8, iterations=2)
    assert made.tokens.dtype == torch.float32 and torch.equal(made.tokens, plan(model, start, goal, 8, iterations=2).tokens)


@pytest.mark.parametrize('how, words', [(dict(limit=float('nan')), 'limit must be a finite number, got nan'), (dict(limit=0), 'limit must be positive'), (dict(eta=-3), 'eta must be in'), (dict(iterations=0), 'iterations must be')])
def test_planning_options_that_cannot_be_meant_are_refused(model, how, words):
    with pytest.raises(ValueError, match=words): plan(model, START[:1], GOAL[:1], 8, **how)


@pytest.mark.parametrize('how, words', [(dict(width=float('nan')), 'width must be an integer'), (dict(K=0), 'K must be'), (dict(shift=-1), 'shift must be positive'), (dict(action_weight=float('inf')), 'action_weight must be a finite')])
def test_a_model_that_cannot_be_meant_is_refused(how, words):
    with pytest.raises(ValueError, match=words): DiffuserConfig(4, 2, **how)


def test_what_is_left_of_a_plan_starts_the_next_one_only_where_it_fits(model):
    "Two tokens of six and of four done: four remain where the network takes four, two where it takes none; `pad` asks them to wait."
    old = [plan(model, START[:1], GOAL[:1], n, iterations=2)[0] for n in (8, 4)]
    fits = warmed(model, old, START[:2], GOAL[:2], 4, Replanning(every=4))
    assert len(fits[0].state) == 4 and fits[1] is None
    asked = warmed(model, old, START[:2], GOAL[:2], 4, Replanning(every=4, pad=True))
    assert [len(p.state) for p in asked] == [4, 4]
    believe = lambda state: torch.zeros(len(state)); doubt = lambda state: torch.full((len(state),), 2.)
    for support, kept in ((believe, [True, False]), (doubt, [False, False])):
        plans, warm = replanned(model, support, old, START[:2], GOAL[:2], (4, 8), Replanning(every=4, iterations=2))
        assert warm.tolist() == kept and all(torch.allclose(p.state[0], s, atol=1e-4) for p, s in zip(plans, START))


def test_without_normalisation_a_token_depends_on_its_neighbours_alone():
    "So halves that share a long enough middle can be joined; with it, every token reaches every other."
    torch.manual_seed(0)
    for norm, whole in ((True, True), (False, False)):
        net = Diffuser(DiffuserConfig(2, 0, goal_dims=2, width=16, mults=(1,), ends=False, norm=norm)).net
        assert bool((reach_of(net, 128, 0) > 0).all()) == whole


@pytest.mark.parametrize('change, match', [(dict(config=None), 'no configuration'), (dict(config=dict(action_dim=2)), 'no usable configuration'), (dict(kind='agent'), 'not a Diffuser'),
                                           (dict(config=dict(state_dim=4, action_dim=2, attention=8)), 'newer version: this one does not know attention'),
                                           (dict(config=dict(state_dim=-4, action_dim=2)), 'no usable configuration'), (dict(config=dict(state_dim=4, action_dim=3)), 'other weights')])
def test_a_model_of_another_version_is_refused_in_one_sentence(model, tmp_path, change, match):
    from ldp_tut.checkpoints import save_checkpoint
    card = dict(kind='diffuser', config=dict(state_dim=4, action_dim=2, stride=2, goal_dims=2, width=16)) | change
    path = save_checkpoint(tmp_path / 'm.safetensors', model.state_dict(), {k: v for k, v in card.items() if v is not None})
    with pytest.raises(CheckpointError, match=match): load_diffuser(path)


def test_a_run_goes_on_with_its_own_data_only(tmp_path):
    "Other numbers, another cut, other lengths or another model: refused by name, and the file is left as it was."
    path, train = tmp_path / 'run.safetensors', TrainConfig(steps=2, warmup=1)
    def go(seed=0, stride=2, tokens=(8, 8), batch=4, **c):
        config = DiffuserConfig(**(dict(state_dim=4, action_dim=2, stride=stride, goal_dims=2, width=8, mults=(1, 1)) | c))
        return train_diffuser(Slices(line(20, seed=seed), stride), config, tokens, train, batch, path, 'cpu', False)
    first, before = go(), path.read_bytes()
    again = go()                                              # the same: nothing to do
    assert torch.equal(first.normaliser.scale, again.normaliser.scale)
    for change, name in ((dict(seed=1), 'data'), (dict(stride=4), 'stride'), (dict(tokens=(8, 16)), 'tokens'), (dict(batch=8), 'batch'), (dict(shift=1.), 'model.shift')):
        with pytest.raises(CheckpointError, match=name): go(**change)
    assert path.read_bytes() == before
