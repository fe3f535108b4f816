"Cloning by denoising sequences: index conventions, seeds, files, what is refused, and the worlds it is shown in."
import numpy as np
import pytest
import torch

from ldp_tut.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from ldp_tut.book import share_interval
from ldp_tut.policy import (EDGE, GOAL_POSE, ActionWindows, DiffusionPolicy, Detour, FilmBlock, MixturePolicy, NearestNeighbour, PolicyConfig, Receding, RegressionPolicy,
                            as_positions, demonstrate_rooms, detour_demonstrations, from_block, load_policy, mirrored, placed, play_cloned, play_detour, play_pusht,
                            policy_rows, pusht_demonstrations, pusht_features, pusht_record, save_policy, score_of_policy, to_block, train_policy, turned)
from ldp_tut.records import Trajectories
from ldp_tut.train import TrainConfig, fit

NETS = ('film', 'transformer', 'perceptron')
small = lambda net='perceptron', **more: PolicyConfig(3, 2, **dict(dict(To=2, Tp=8, Ta=4, net=net, width=16, depth=1, iterations=3), **more))


def untrained(net='perceptron', seed=0):
    torch.manual_seed(seed)
    return DiffusionPolicy(small(net)).eval()


def counting(*lengths):
    "Episodes whose observation and action are their step, plus a hundred for each episode."
    rows = [(100 * e + np.arange(n + 1.), 100 * e + np.arange(1. * n)) for e, n in enumerate(lengths)]
    see, do = (np.concatenate(x)[:, None] for x in zip(*rows))
    return Trajectories(see, do, np.zeros(len(do)), lengths, [True] * len(lengths))


@pytest.mark.parametrize('To, Tp', [(1, 1), (1, 4), (2, 5), (3, 3), (4, 9)])
def test_windows_are_what_the_convention_says(To, Tp):
    "Token i is the action of step t - To + 1 + i, inside the episode; the one for now has the index To - 1."
    data = counting(6, 3)
    windows = ActionWindows(data, To, Tp)
    for e, n in enumerate((6, 3)):
        for t in range(n):
            see, do = windows.at([e], [t])
            assert see.shape == (1, To, 1) and do.shape == (1, Tp, 1)
            assert see[0, :, 0].tolist() == [100 * e + max(0, t - To + 1 + i) for i in range(To)]
            assert do[0, :, 0].tolist() == [100 * e + min(n - 1, max(0, t - To + 1 + i)) for i in range(Tp)]
            assert do[0, To - 1, 0] == 100 * e + t
    see, do = windows.every()
    assert len(see) == 9 and do[:, To - 1, 0].tolist() == [*range(6), 100, 101, 102]


def test_drawn_windows_are_all_steps_alike():
    see, do = ActionWindows(counting(6, 3), 1, 1).draw(9000, torch.Generator().manual_seed(0))
    values, counts = do.flatten().unique(return_counts=True)
    assert values.tolist() == [0, 1, 2, 3, 4, 5, 100, 101, 102] and torch.equal(see, do) and counts.min() > 850 and counts.max() < 1150


@pytest.mark.parametrize('To, Tp, Ta', [(1, 1, 1), (1, 4, 4), (2, 8, 7), (3, 6, 2)])
def test_what_is_executed_is_what_was_done(To, Tp, Ta):
    "A policy that knows the demonstration does the action of its own step, whatever the horizons."
    policy = NearestNeighbour(PolicyConfig(1, 1, To=To, Tp=Tp, Ta=Ta), counting(20))
    agent, asked = Receding(policy), []
    plan = policy.plan
    policy.plan = lambda history, seeds=0: (asked.append(np.asarray(history)[0, :, 0].tolist()), plan(history, seeds))[1]
    for again in range(2):
        agent.reset(); asked.clear()
        assert np.allclose([agent.act([[float(t)]])[0, 0] for t in range(20)], range(20), atol=1e-3)
        assert len(asked) == -(-20 // Ta) and asked[0] == [0.] * To
        assert asked[-1] == [max(0., Ta * (len(asked) - 1) - To + 1. + i) for i in range(To)]


@pytest.mark.parametrize('bad, says', [(dict(Ta=8), 'Ta=8 .* at most 7'), (dict(To=9), 'To=9 .* Tp=8'), (dict(Ta=0), 'Ta must be'), (dict(To=0), 'To must be'), (dict(Tp=2.5), 'Tp must be'),
                                       (dict(net='lstm'), 'unknown network'), (dict(iterations=101), 'iterations=101'), (dict(modes=0), 'modes must be')])
def test_horizons_that_do_not_fit_are_refused(bad, says):
    with pytest.raises(ValueError, match=says): small(**bad)


def test_the_most_that_can_be_executed_can():
    c = small(To=2, Tp=8, Ta=7)
    assert c.fresh == slice(1, 8)
    with pytest.raises(ValueError, match='Ta=9'): Receding(untrained(), Ta=9)


def test_a_u_net_that_cannot_halve_a_plan_says_so():
    with pytest.raises(ValueError, match='Tp=7 .* multiple of 2'): DiffusionPolicy(small('film', Tp=7))
    DiffusionPolicy(small('transformer', Tp=7)), DiffusionPolicy(small('film', Tp=7, mults=(1,)))


@pytest.mark.parametrize('history, says', [(np.zeros((4, 1, 3)), 'history has 1 observations .* To=2'), (np.zeros((4, 2, 5)), r'\[B, 2, 3\]'), (np.zeros((4, 3)), 'must be'),
                                           (np.full((1, 2, 3), np.nan), 'finite'), ([['a']], 'numbers')])
@pytest.mark.parametrize('kind', [DiffusionPolicy, RegressionPolicy, MixturePolicy])
def test_histories_that_do_not_fit_are_refused(kind, history, says):
    with pytest.raises((TypeError, ValueError), match=says): kind(small()).plan(history)


def test_a_longer_history_counts_with_its_last_observations():
    policy, long = untrained(), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(policy.plan(long), policy.plan(long[:, -2:])) and not torch.equal(policy.plan(long), policy.plan(long[:, :2]))


@pytest.mark.parametrize('net', NETS)
def test_a_batch_of_one_is_a_row_of_sixty_four(net):
    policy, history = untrained(net), torch.randn(64, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = policy.plan(history, range(7, 71))
    for i in (0, 5, 63): assert torch.allclose(policy.plan(history[i:i + 1], [7 + i])[0], whole[i], atol=1e-5)
    assert not torch.allclose(policy.plan(history[:1], [8])[0], whole[0], atol=1e-2), 'another seed draws another plan'
    with pytest.raises(ValueError, match='one seed per plan'): policy.plan(history, [1, 2])


def test_the_worlds_of_an_agent_do_not_disturb_one_another():
    "World i of an agent of three does what it does alone."
    policy, seen = untrained(), torch.randn(9, 3, 3, generator=torch.Generator().manual_seed(2)).numpy()
    own = np.zeros((3, policy.config.obs_dim), np.float32); keeps = Receding(policy); keeps.act(own); own += 1
    assert (keeps.history[-1] == 0).all(), 'an environment may write into what it gave'
    three = Receding(policy, seed=4)
    many = np.stack([three.act(o) for o in seen])
    for i in range(3):
        one = Receding(policy, seed=4 + i)
        assert np.allclose(np.stack([one.act(o[i:i + 1])[0] for o in seen]), many[:, i], atol=1e-5)


@pytest.mark.parametrize('net', NETS)
def test_the_level_and_the_history_reach_every_network(net):
    policy, g = untrained(net), torch.Generator().manual_seed(0)
    x, known = torch.randn(4, 8, 2, generator=g), torch.randn(4, 6, generator=g)
    level = torch.full((4, 8), 30)
    out = policy.denoiser(known)(x, level)
    assert out.shape == x.shape and not torch.allclose(out, policy.denoiser(known + 1)(x, level), atol=1e-4)
    v = lambda k: policy.net(x, torch.full((4, 8), k), policy.net.encode(known))
    assert not torch.allclose(v(30), v(80), atol=1e-4)
    mixed = level.clone(); mixed[:, 0] = 0
    if net == 'transformer': assert policy.denoiser(known)(x, mixed).shape == x.shape
    else:
        with pytest.raises(ValueError, match='one level for a whole plan'): policy.denoiser(known)(x, mixed)


def test_film_scales_and_shifts():
    torch.manual_seed(0)
    block = FilmBlock(8, 8, 4)
    block.level.weight.data.zero_(); block.level.bias.data.zero_()
    x = torch.randn(2, 8, 6)
    assert torch.allclose(block(x, torch.randn(2, 4)), block.second(block.first(x)) + x, atol=1e-6), 'a condition of zeros changes nothing'
    block.level.bias.data[:8] = -1.; block.level.bias.data[8:] = .5
    flat = block.second(torch.full_like(x, .5)) + x
    assert torch.allclose(block(x, torch.randn(2, 4)), flat, atol=1e-6), 'scale 0 leaves the shift alone'


@pytest.mark.parametrize('kind', [DiffusionPolicy, RegressionPolicy, MixturePolicy])
def test_a_checkpoint_is_the_same_policy_again(kind, tmp_path):
    data = detour_demonstrations(8, seed=1)
    policy = train_policy(kind, data, PolicyConfig(2, 2, To=2, Tp=8, Ta=4, net='film', width=8, depth=1, mults=(1, 2)), TrainConfig(steps=3), batch=8)
    save_policy(tmp_path / 'p.safetensors', policy, dict(note='mine'))
    again, history = load_policy(tmp_path / 'p.safetensors'), torch.randn(5, 2, 2)
    assert type(again) is kind and again.config == policy.config and torch.equal(again.plan(history, 3), policy.plan(history, 3))
    assert not torch.equal(again.do.scale, torch.ones(2)), 'the scaling of the data comes along'


def test_files_that_are_no_policy_are_refused(tmp_path):
    save_checkpoint(tmp_path / 'a.safetensors', dict(w=torch.zeros(1)), dict(kind='diffuser'))
    with pytest.raises(CheckpointError, match='not a policy'): load_policy(tmp_path / 'a.safetensors')
    save_checkpoint(tmp_path / 'b.safetensors', dict(w=torch.zeros(1)), dict(kind='policy', policy='diffusion', config=dict(obs_dim=2, action_dim=2, Ta=99)))
    with pytest.raises(CheckpointError, match='no usable configuration .*Ta=99'): load_policy(tmp_path / 'b.safetensors')


def test_training_resumes_to_the_last_bit(tmp_path, monkeypatch):
    data, c = detour_demonstrations(8, seed=1), PolicyConfig(2, 2, To=1, Tp=4, Ta=2, net='perceptron', width=8, depth=1)
    straight = train_policy(DiffusionPolicy, data, c, TrainConfig(steps=6), batch=8)
    with monkeypatch.context() as m:
        m.setattr('ldp_tut.policy.fit', lambda *a, **k: fit(*a, **k, stop_at=3))
        half = train_policy(DiffusionPolicy, data, c, TrainConfig(steps=6), batch=8, path=tmp_path / 'r.safetensors')
    assert not all(torch.equal(a, b) for a, b in zip(straight.parameters(), half.parameters())), 'it stopped half way'
    again = train_policy(DiffusionPolicy, data, c, TrainConfig(steps=6), batch=8, path=tmp_path / 'r.safetensors')
    for a, b in zip(straight.parameters(), again.parameters()): assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match='batch=8, not 9'): train_policy(DiffusionPolicy, data, c, TrainConfig(steps=6), batch=9, path=tmp_path / 'r.safetensors')


@pytest.mark.parametrize('c, says', [(PolicyConfig(3, 2), 'obs_dim=3'), (PolicyConfig(2, 5), 'action_dim=5')])
def test_data_of_other_sizes_are_refused(c, says):
    with pytest.raises(ValueError, match=says): train_policy(RegressionPolicy, detour_demonstrations(3), c)
    with pytest.raises(ValueError, match=says): NearestNeighbour(c, detour_demonstrations(3))


def test_demonstrators_wait_go_round_and_arrive():
    data = detour_demonstrations(400, seed=5)
    for e in data:
        idle = np.linalg.norm(e.action, axis=1) == 0
        assert 5 <= idle.sum() <= 15 and idle[:idle.sum()].all(), 'all waiting is at the start'
        assert np.linalg.norm(e.observation, axis=1).min() > Detour.radius and np.linalg.norm(e.observation[-1] - Detour.goal) < Detour.near
    above = sum(e.observation[np.abs(e.observation[:, 0]) < .3][0, 1] > 0 for e in data)
    low, high = share_interval(int(above), 400)
    assert low < .7 < high
    with pytest.raises(ValueError, match='above'): detour_demonstrations(3, above=1.5)


def test_the_disc_is_hard_and_steps_are_short():
    world = Detour(1)
    begin = world.at.copy()
    for _ in range(40): world.step(np.array([[9., 0.]]))
    assert world.hit[0] and not world.won[0] and np.linalg.norm(world.at[0]) < Detour.radius
    assert np.linalg.norm(Detour(1).step(np.array([[9., 0.]])) - begin) == pytest.approx(Detour.reach, abs=1e-6)


def test_a_demonstration_replayed_by_the_nearest_neighbour_arrives():
    "One demonstrator without waiting: a sequence as long as the way is the demonstration itself, and goes the same way round."
    data = detour_demonstrations(1, seed=0, above=1., hesitate=(0, 0))
    c = PolicyConfig(2, 2, To=1, Tp=30, Ta=30)
    r = play_detour(NearestNeighbour(c, data), 50)
    assert r['won'].mean() > .9 and r['above'].all()


def test_a_mixture_keeps_both_of_two_answers_and_a_regression_neither():
    "Half the actions are +1, half -1, and nothing tells them apart."
    do = np.tile([1., -1.], 500)[:, None]
    data = Trajectories(np.zeros((2000, 1)), do, np.zeros(1000), np.ones(1000, int), np.ones(1000, bool))
    c, how = PolicyConfig(1, 1, To=1, Tp=1, Ta=1, width=32, depth=1), TrainConfig(steps=300, lr=5e-3, ema=.9, warmup=10)
    mean = train_policy(RegressionPolicy, data, c, how).plan(np.zeros((1, 1, 1)))
    both = train_policy(MixturePolicy, data, c, how).plan(np.zeros((400, 1, 1))).flatten()
    assert abs(float(mean)) < .1 and (both.abs() - 1).abs().max() < .1 and 150 < int((both > 0).sum()) < 250


def test_wilsons_interval():
    low, high = share_interval(0, 10)
    assert low == pytest.approx(0, abs=1e-9) and high == pytest.approx(.2775, abs=1e-3) and share_interval(0, 0) == (0., 1.)
    low, high = share_interval(50, 100)
    assert (low, high) == pytest.approx((.4038, .5962), abs=1e-3)


def test_shipped_demonstrations_are_whole_and_solved():
    state, action, length = pusht_record()
    data = pusht_demonstrations()
    assert len(length) == 200 and len(state) == len(action) + 200 and length.sum() == len(action) and length.max() <= 300
    assert action.min() >= 0 and action.max() <= 512
    assert len(data) == 400 and data.observation.shape[1] == 20 and data.action_dims == 2 and len(pusht_demonstrations(mirror=False)) == 200
    ends = placed(EDGE, state[np.cumsum(length + 1) - 1][:, 2:]) - placed(EDGE, GOAL_POSE)
    assert np.linalg.norm(ends, axis=-1).mean(1).max() < 8, 'every one ends with the block on its goal'


def test_features_do_not_jump_where_the_angle_does():
    a, b = (pusht_features(np.array([[10., 20, 250, 260, angle]])) for angle in (0., 2 * np.pi))
    assert np.allclose(a, b, atol=1e-3) and a.dtype == np.float32


def test_what_the_block_sees():
    "A block on its goal sees no error; turning and moving all but the goal changes nothing about the agent; near is cut off."
    solved = np.array([[100., 120, *GOAL_POSE]])
    assert np.allclose(pusht_features(solved)[:, 4:], 0, atol=1e-5)
    for angle in (0., 1., 4.):
        agent = turned(np.array([70., 20.]), np.array(angle)) + [200, 300]
        seen = pusht_features(np.array([[*agent, 200, 300, angle]]))
        assert np.allclose(seen[0, :4], [70, 20, 70, 20], atol=1e-3)
    far = pusht_features(np.array([[500., 500, 100, 100, 0]]))[0, :4]
    assert far.tolist() == [400, 400, 100, 160]


def test_a_step_seen_from_the_block_leads_to_its_place():
    state, action, length = pusht_record()
    acted = np.delete(state, np.cumsum(length + 1) - 1, axis=0)
    step = to_block(action, acted)
    assert np.allclose(from_block(step, acted), action) and np.abs(step).max() < 45
    quarter = np.array([[10., 10, 200, 200, np.pi / 2]])
    assert np.allclose(to_block(np.array([[10., 30.]]), quarter), [[20, 0]])
    data = pusht_demonstrations(mirror=False)
    assert np.allclose(data.action, step, atol=1e-4)


def test_the_mirror_shows_the_same_world():
    "Twice mirrored is the same; in the mirror the block sees x turned round, and corners with their partners."
    state, action, length = pusht_record()
    there, back = mirrored(state, action), mirrored(*mirrored(state, action))
    assert np.allclose(back[0], state) and np.allclose(back[1], action)
    a, b = pusht_features(state), pusht_features(there[0])
    partner, flip = [1, 0, 7, 6, 5, 4, 3, 2], np.array([-1, 1])
    assert np.allclose(a[:, :4].reshape(-1, 2, 2) * flip, b[:, :4].reshape(-1, 2, 2), atol=1e-2)
    assert np.allclose(a[:, 4:].reshape(-1, 8, 2)[:, partner] * flip, b[:, 4:].reshape(-1, 8, 2), atol=1e-3)
    data, n = pusht_demonstrations(), len(action)
    assert np.allclose(data.action[:n] * flip, data.action[n:], atol=1e-3)


def test_positions_are_where_displacements_lead():
    data = detour_demonstrations(5, seed=1)
    there = as_positions(data)
    after = np.concatenate([e.observation[1:] for e in data])
    moved = np.linalg.norm(after - np.concatenate([e.observation[:-1] for e in data]), axis=1)
    free = moved < Detour.reach - 1e-3
    assert np.allclose(there.action[free], after[free], atol=1e-5) and free.mean() > .5


def test_pusht_is_played():
    pytest.importorskip('gym_pusht', reason="the extra 'pusht' is not installed")
    data = pusht_demonstrations()
    policy = NearestNeighbour(PolicyConfig(20, 2, To=2, Tp=16, Ta=8), data)
    r, again = play_pusht(policy, [3, 4], steps=30), play_pusht(policy, [3, 4], steps=30)
    assert r['score'].shape == (2,) and (r['score'] >= 0).all() and (r['steps'] <= 30).all() and np.array_equal(r['score'], again['score'])
    with pytest.raises(ValueError, match='Ta=16'): play_pusht(policy, [3], Ta=16)
    with pytest.raises(ValueError, match='number of seeds'): play_pusht(policy, [])


def test_demonstrations_are_followed_in_pusht():
    "From the starts of demonstrations, the nearest neighbour does what was done there: same features, same index convention, same world."
    pytest.importorskip('gym_pusht', reason="the extra 'pusht' is not installed")
    r = play_pusht(NearestNeighbour(PolicyConfig(20, 2, To=1, Tp=1, Ta=1), pusht_demonstrations()), range(6))
    assert np.median(r['score']) > .9


def test_the_expert_of_rooms_walks_shortest_ways():
    env, seeds = 'MiniGrid-SimpleCrossingS9N1-v0', range(6)
    data = demonstrate_rooms(env, seeds, anywhere=False)
    assert data.terminated.all() and data.actions == 3
    r = play_cloned(NearestNeighbour(PolicyConfig(338, 3, To=1, Tp=2, Ta=1), data), env, seeds)
    assert r['success'].all() and (r['steps'] == r['optimum']).all() and (r['steps'] == data.length).all()


@pytest.mark.parametrize('task', ['fork', 'fork of four', 'pusht', 'pusht clock', 'pusht drift', 'pusht few', 'pusht nets',
                                  'pusht pictures'])
def test_rows_of_the_table_are_whole(task):
    "No episode twice, as when a cell that appends rows was run again."
    rows = policy_rows(task)
    for policy in {r['policy'] for r in rows}:
        own = [r for r in rows if r['policy'] == policy]
        assert len({(r['seed'], r['start']) for r in own}) == len(own) and all(0 <= r['score'] <= 1 for r in own)
        mean, low, high, n = score_of_policy(rows, policy)
        assert low <= mean <= high and n == len(own)
    with pytest.raises(ValueError, match='no rows'): score_of_policy(rows, 'nobody')


def test_four_forks_are_what_the_chapter_says():
    "128 numbers at once: more points arrive by denoising than by anything else, by more than the intervals."
    rows = policy_rows('fork of four')
    low = score_of_policy(rows, 'diffusion, sequence')[1]
    assert {r['seed'] for r in rows if r['policy'] == 'diffusion, sequence'} == {0, 1, 2}
    for other in {r['policy'] for r in rows} - {'diffusion, sequence'}: assert score_of_policy(rows, other)[2] < low, other


def test_the_clone_of_pusht_is_what_the_chapter_says():
    "At least 0.85 of the script's score, from every seed, and above every baseline by more than the intervals."
    rows = policy_rows('pusht')
    script, (mean, low, _, n) = score_of_policy(rows, 'the script itself')[0], score_of_policy(rows, 'diffusion, sequence')
    ours = [r for r in rows if r['policy'] == 'diffusion, sequence']
    assert {r['seed'] for r in ours} == {0, 1, 2} and n == 150
    assert all(np.mean([r['score'] for r in ours if r['seed'] == s]) >= .85 * script for s in (0, 1, 2))
    for other in {r['policy'] for r in rows} - {'the script itself', 'diffusion, sequence'}:
        assert score_of_policy(rows, other)[2] < low, other


def test_who_never_arrived_was_cut_off():
    data = detour_demonstrations(3, hesitate=(100, 100))
    assert (data.length == 80).all() and not data.terminated.any()
    assert detour_demonstrations(20).terminated.all()


def test_a_card_without_a_configuration_is_said(tmp_path):
    save_policy(tmp_path / 'p.safetensors', untrained(), {})
    tensors, card = load_checkpoint(tmp_path / 'p.safetensors')
    for said in ({}, dict(config=None), dict(config=dict(obs_dim=3))):
        card = {n: v for n, v in card.items() if n != 'config'} | said
        save_checkpoint(tmp_path / 'q.safetensors', tensors, card)
        with pytest.raises(CheckpointError, match='no usable configuration'): load_policy(tmp_path / 'q.safetensors')


def test_worlds_are_closed_whatever_happens(monkeypatch):
    made, closed = [], []
    class World:
        def __enter__(self): made.append(self); return self
        def __exit__(self, *error): closed.append(self)
        def reset(self, seed): raise RuntimeError('no world')
    monkeypatch.setattr('ldp_tut.policy.make_pusht', World)
    with pytest.raises(RuntimeError, match='no world'): play_pusht(untrained(), [1, 2, 3])
    assert len(made) == len(closed) == 3
    with pytest.raises(ValueError, match='Ta'): play_pusht(untrained(), [1], Ta=99)
    assert len(made) == 3, 'refused before any world is made'


def test_a_share_has_no_more_good_ones_than_there_are():
    assert share_interval(0, 0) == (0., 1.) and share_interval(4, 4)[1] == pytest.approx(1)
    for good in (5, -1):
        with pytest.raises(ValueError, match=f'{good} of 4 is no share'): share_interval(good, 4)


def test_goals_and_other_classes_are_refused_where_they_would_be_left_out(tmp_path):
    goals = Trajectories(np.zeros((6, 2), np.float32), np.zeros((5, 2), np.float32), np.ones(5), [5], [True], goal=np.zeros((6, 2), np.float32))
    with pytest.raises(ValueError, match='these data have goals'): train_policy(RegressionPolicy, goals, PolicyConfig(2, 2, To=1, Tp=1, Ta=1), TrainConfig(steps=1), device='cpu')
    class Own(RegressionPolicy): pass
    with pytest.raises(ValueError, match='Own is none of diffusion, regression, mixture'): save_policy(tmp_path / 'a.safetensors', Own(PolicyConfig(2, 2, To=1, Tp=1, Ta=1)))
    worlds = Receding(RegressionPolicy(PolicyConfig(2, 2, To=1, Tp=4, Ta=2)).eval())
    worlds.act(np.zeros((4, 2)))
    with pytest.raises(ValueError, match='2 worlds after 4: reset'): worlds.act(np.zeros((2, 2)))
