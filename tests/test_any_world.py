"Worlds that do not speak as data do: other actions, other observations, other rewards."
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from ldp_tut.checkpoints import CheckpointError
from ldp_tut.data import collect
from ldp_tut.methods import MethodAgent, MethodRecipe, train_method
from ldp_tut.planner import FarFuturePlanner, PlanConfig, load_agent, save_agent, train_planner
from ldp_tut.records import Episode, Trajectories, as_agents_see, check_actions, check_data, select
from ldp_tut.store import StoreError, TrajectoryStore, from_folder, load_data
from ldp_tut.worlds import (
    Rewards, Spaces, Windows, action_error, check_environment, executed, fit_world, from_units, in_units, make_world, play, read_observation,
    token_batches, world_batches)

rng = np.random.default_rng(0)
SHORT = dict(steps=2, world_steps=2, width=32, depth=1, progress=False, device='cpu')


def episode(T=20, D=2, reward=None, terminated=True, goal=None, offset=0., scale=1.):
    x = (rng.normal(size=(T + 1, D)) * scale + offset).astype(np.float32)
    reward = rng.random(T).astype(np.float32) if reward is None else np.asarray(reward, np.float32)
    return Episode(x, rng.integers(0, 2, T), reward, terminated, goal)


class Choice(gym.Env):
    "Ten steps; action 3 of 1, 2, 3 pays. It sees one of four numbers."
    observation_space, action_space = Discrete(4), Discrete(3, start=1)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}
    def step(self, action):
        self.t += 1
        return self.t % 4, float(action == 3), False, self.t == 10, {}


class Table(Choice):
    "The same, which sees a table and acts by one of whole numbers."
    observation_space = Box(-1, 1, (2, 2))
    action_space = Box(-3, 3, (2, 2), np.int64)
    def reset(self, **how): return np.full((2, 2), super().reset(**how)[0], np.float32), {}
    def step(self, action):
        assert action.shape == (2, 2) and action.dtype == np.int64
        _, _, *rest = super().step(1)
        return np.full((2, 2), self.t / 10, np.float32), 1., *rest


def test_what_is_cloned_is_what_was_shown_where_actions_start_at_one():
    data = collect(Choice, lambda obs: np.full(len(obs), 3), episodes=20, progress=False)
    assert data.observation.shape[1:] == (4,) and set(data.action) == {2}
    agent = train_method('policy', data, MethodRecipe(steps=60, width=32), progress=False)
    check_environment(Choice(), Spaces.of(data))
    assert play(agent, Choice, 4, whole=True, progress=False)['mean_return'] > 5  # 0 where action 3 is played as 2
    with pytest.raises(ValueError, match='integers, the policy returned float64'):
        check_actions(np.full(8, .9), Choice.action_space, 8)


def test_tables_are_vectors_for_agents_and_tables_for_their_world():
    data = collect(Table, 'random', episodes=6, progress=False)
    data.reward[0] = 0.   # or every step would pay the same
    agent = train_planner(data, **SHORT)
    assert play(agent, Table, 2, whole=True, most=3, progress=False)['mean_return'] == 3
    plain = gym.make('CartPole-v1')
    assert as_agents_see(plain) is plain
    with pytest.raises(ValueError, match='give its id, or a function'): play(agent, plain)


def test_a_saved_planner_is_the_planner_that_was_trained(tmp_path):
    for offset, scale in ((1e5, 1.), (0., 1e7), (0., 1e-7), (3000., .1)):
        data = Trajectories.from_episodes([episode(offset=offset, scale=scale) for _ in range(4)], 2)
        agent = train_planner(data, **SHORT)
        back = load_agent(save_agent(tmp_path / 'a.safetensors', agent), 'cpu')
        obs = data.observation[:9]
        z, again = (a.planner.world.encode(a.planner.world.read(obs)) for a in (agent, back))
        assert torch.equal(z, again) and again.isfinite().all()


def test_ends_that_pay_better_than_steps_are_what_is_planned_for():
    "Acrobot's rewards, a climber's who pays for every push, and CartPole's."
    up = Trajectories.from_episodes([episode(9, reward=[-1] * 8 + [0]) for _ in range(3)]
                                    + [episode(9, reward=[-1] * 9, terminated=False)], 2)
    paid = Rewards.of(up)
    assert (paid.kind, paid.low) == ('end', -1)
    windows = Windows([up[:2], up[2:]], absorb=True)
    batch = token_batches(windows, paid, 8)(1, torch.Generator().manual_seed(0))
    assert 0 < batch['reward'].mean() < 1
    push = Trajectories.from_episodes([episode(9, reward=[-.1] * 8 + [100])], 2)
    assert (Rewards.of(push).kind, Rewards.of(push).low) == ('end', 0)
    pole = Trajectories.from_episodes([episode(9, reward=[1] * 9)], 2)
    assert Rewards.of(pole).kind == 'step'
    lost = Trajectories.from_episodes([episode(9, reward=[0] * 8 + [1], terminated=False)], 2)
    with pytest.raises(ValueError, match='ended well as terminated'): Rewards.of(lost)


def test_where_every_step_costs_an_end_as_cheap_as_a_step_is_what_is_planned_for():
    "Walks along a line: each step costs 1, falling off 10, and the environment ends the walk at the goal or at the edge."
    home, fall, cut = (episode(6, reward=[-1] * 5 + [last], terminated=end) for last, end in ((-1, True), (-10, True), (-1, False)))
    data = Trajectories.from_episodes([home, fall, cut, home], 2)
    costs = Rewards.of(data)
    assert costs.kind == 'end' and -10 < costs.low < -1
    t = Windows(data, absorb=True).tokens(np.arange(4), np.zeros(4, int), np.array([[0, 3, 6]] * 4))
    final = data.reward[data.action_start + data.length - 1]
    assert costs.of_tokens(t | dict(final=final[:, None])).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    same = Rewards.of(Trajectories.from_episodes([home, cut], 2))   # MountainCar's: nothing but -1
    assert same.kind == 'end' and same.low < -1
    with pytest.raises(ValueError, match='nothing in them pays'): Rewards.of(Trajectories.from_episodes([cut, cut], 2))
    lucky = play(Always(1, kind='end', low=-2.), Costly, 2, whole=True, progress=False)
    assert lucky['success'] == 1 and lucky['first_reward'] == 5 and lucky['mean_return'] == -5
    assert play(Always(0, kind='end', low=-2.), Costly, 2, whole=True, progress=False)['success'] == 0


def test_a_promise_beyond_the_last_step_that_was_played_is_not_broken():
    row = dict(promised=40, ended=False, first=1)
    assert executed(row, [1.] * 8, 'step') == dict(success=True, executed=1.)
    assert executed(row | dict(ended=True), [1.] * 8, 'step') == dict(success=False, executed=0.)
    assert executed(row | dict(promised=3), [1., 1., 0., 1.], 'step')['executed'] == 0.


def test_a_batch_says_what_was_paid_and_what_was_done():
    "At time 0 nothing was paid, past an end nothing is; the action at the last state of an episode was never taken."
    costs = Trajectories.from_episodes([Episode(np.zeros((11, 2), np.float32), np.full((10, 1), .9, np.float32),
                                                np.r_[rng.uniform(-.6, -.5, 9), -1].astype(np.float32), end) for end in (True, False)])
    paid = Rewards.of(costs)
    assert (paid.kind, paid.low) == ('step', -1)
    batches = token_batches(Windows(costs, absorb=True), paid, 10, tokens=4)
    for step in (1, 2):
        b = batches(step, torch.Generator().manual_seed(step))
        H = b['times'].shape[1]
        assert b['valid'].sum() > b['paid'].sum() > 0 and H == 4
        over, done = b['termination'] > 0, (b['action'][..., 0] > 0).float()
        assert over.any() and (b['reward'][over] == 0).all(), 'a crash is no better than the worst'
        assert torch.equal(b['acted'], done), 'zeros past an end are not actions'


def test_the_last_steps_teach_what_was_done_there():
    data = Trajectories.from_episodes([episode(40) for _ in range(30)], 2)
    b = world_batches(Windows(data), 20, 4, 5000)(0, torch.Generator().manual_seed(0))
    assert b['near'].float().mean() > 0.93 and (b['near'] & ~b['known']).any() and (b['known'] & ~b['near']).any()


def test_a_world_of_pictures_reads_motion_in_the_units_it_was_trained_in():
    frames = rng.integers(0, 255, (12, 8, 8, 1)).astype(np.uint8)
    world = make_world(Trajectories(frames, np.zeros(11, int), np.ones(11), [11], [True], actions=2), max_gap=4)
    world.normaliser.centre.fill_(.3); world.normaliser.scale.fill_(2.)
    seen = world.read(frames)
    raw, z, gap = world.encoder(seen.state.movedim(-1, 1).float() / 255), world.encode(seen), torch.ones(11, dtype=torch.long)
    assert torch.allclose(world.action(z[:-1], z[1:], gap), world.motion.action(raw[:-1], raw[1:], gap), atol=1e-5)
    assert torch.allclose(world.steps_between(z[:-1], z[1:]), 4 * world.motion.steps_between(raw[:-1], raw[1:]), atol=1e-5)


def test_environments_are_closed_whatever_happens():
    closed = []
    class Shut(Swing):
        def close(self): closed.append(1)
    class Fails(Always):
        def act_batch(self, obs): raise RuntimeError('no idea')
    with pytest.raises(RuntimeError, match='no idea'): play(Fails(1), Shut, 3, progress=False)
    assert len(closed) == 3


class Swing(gym.Env):
    "Ends after five steps of action 1, paying 0 there and -1 before."
    observation_space, action_space = Box(-1, 1, (1,)), Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = self.up = 0
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.t, self.up = self.t + 1, self.up + action
        over = self.up >= 5
        return np.full(1, self.up / 10, np.float32), float(over) - 1, bool(over), self.t >= 20, {}


class Costly(Swing):
    "The same, and its last step costs, too."
    def step(self, action):
        obs, _, over, cut, info = super().step(action)
        return obs, -1., over, cut, info


class Always:
    def __init__(self, action, **rewards): self.action, self.card = action, dict(rewards=rewards)
    def begin(self, seeds): pass
    def keep(self, rows): pass
    def act_batch(self, obs): return np.full(len(obs), self.action)


@pytest.mark.parametrize('rewards', [dict(kind='end', low=-1.), dict(kind='step', low=-1., high=0.)])
def test_who_ends_it_well_succeeds_and_who_idles_does_not(rewards):
    done, idle = (play(Always(a, **rewards), Swing, 2, whole=True, progress=False) for a in (1, 0))
    assert done['success'] == 1 and done['mean_steps'] == 5
    assert idle['success'] == (rewards['kind'] == 'step')  # it was never ended


def test_goals_that_cost_nothing_are_reached():
    "Rewards of -1, and 0 at the goal."
    def trip():
        x = np.linspace([0, 0], [1, 1], 11).astype(np.float32)
        return Episode(x, np.zeros(10, int), np.r_[[-1.] * 9, 0.].astype(np.float32), False, np.ones_like(x))
    data = Trajectories.from_episodes([trip() for _ in range(3)], 2)
    r = Rewards.of(data)
    assert (r.kind, r.low, r.radius) == ('goal', -1, 0)


def test_pictures_are_bytes_of_rows_columns_and_channels():
    spaces = Spaces('pixels', (4, 4, 3), actions=2)
    for odd in (np.full((4, 4, 3), .7), np.full((4, 4, 3), np.nan), np.full((4, 4, 3), 300)):
        with pytest.raises(ValueError, match='pictures are bytes'): read_observation(odd, spaces)
    stacked = Trajectories(np.zeros((6, 4, 32, 32), np.uint8), np.zeros(5, int), np.ones(5), [5], [True], 2)
    with pytest.raises(ValueError, match='move the first axis to the end'): Spaces.of(stacked)


def test_no_episode_reaches_into_the_next_one():
    data = Trajectories(np.arange(12.)[:, None], np.zeros(10, int), np.arange(10.), [5, 5], [True, True], 2)
    some = select(data, [0], [8])
    assert some.length.tolist() == [5] and some.terminated[0] and some.observation[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert select(data, [0, 1], 3).length.tolist() == [3, 3]


class Still(gym.Env):
    "At the start its speed and its place are the same numbers."
    place = Box(-9, 9, (2,))
    observation_space = Dict(observation=Box(-9, 9, (4,)), achieved_goal=place, desired_goal=place)
    action_space = Discrete(2)
    def see(self):
        v = np.full(2, float(self.t > 0), np.float32)
        x = np.full(2, 2. * self.t, np.float32)
        return dict(observation=np.r_[v, x], achieved_goal=x, desired_goal=np.full(2, 6, np.float32))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}
    def step(self, action):
        self.t += 1
        return self.see(), float(self.t == 3), False, self.t == 6, {}


def test_what_was_achieved_stands_first_in_every_row_or_in_none():
    data = collect(Still, 'random', episodes=3, progress=False)
    assert data.observation.shape[1] == 6 and data.observation[1].tolist() == [2, 2, 1, 1, 2, 2]
    seen = read_observation(Still().reset()[0], Spaces.of(data))
    assert seen.state.tolist() == [[0] * 6]
    class Same(Still):
        def see(self): return super().see() | dict(achieved_goal=super().see()['observation'][:2])
    data = collect(Same, 'random', episodes=3, progress=False)
    assert data.observation.shape[1] == 4
    assert read_observation(Same().reset()[0], Spaces.of(data)).state.shape == (1, 4)


def test_a_model_may_act_in_two_ways_at_once():
    data = Trajectories.from_episodes([episode(40) for _ in range(4)], 2)
    agent = train_method('policy', data, MethodRecipe(steps=2, width=32), progress=False)
    before = agent.model.config.Ta
    MethodAgent('policy', agent.model, agent.spaces, agent.config.__class__(execute=2), agent.card)
    assert agent.model.config.Ta == before != 2


def test_a_finished_diffuser_can_be_trained_on(tmp_path):
    data = Trajectories.from_episodes([episode(40) for _ in range(4)], 2)
    for steps in (100, 120):
        recipe = MethodRecipe(steps=steps, tokens=4, width=8, batch=4)
        agent = train_method('diffuser', data, recipe, out=tmp_path, progress=False)
    assert agent.method == 'diffuser'


def test_next_tokens_are_never_skipped():
    with pytest.raises(ValueError, match='replan=2 executes more'): PlanConfig(tokens=1, near=1, replan=2)


def test_files_of_another_kind_are_named(tmp_path):
    def write(name, **also):
        rows = dict(observation=np.zeros((4, 2)), action=np.zeros(3, int), reward=np.ones(3), terminated=True)
        np.savez(tmp_path / name, **rows | also)
    write('a')
    for also, words in [(dict(goal=np.zeros((4, 2))), 'b.npz is unlike a.npz .*goal'), (dict(reward=1.), 'reward in .*b.npz'),
                        (dict(actions=np.ones(2)), 'actions in .*b.npz'), (dict(observation=np.zeros((4, 3))), 'b.npz is unlike')]:
        write('b', **also)
        with pytest.raises(ValueError, match=words): from_folder(tmp_path)
    store = TrajectoryStore(tmp_path / 'store')
    one = lambda D: Trajectories.from_episodes([episode(5, D)], 2)
    store.append(one(4), dict(env_id='a'))
    with pytest.raises(StoreError, match='unlike the first'): store.append(one(5), dict(env_id='a'))


def test_an_agent_keeps_itself_and_comes_by_name(tmp_path):
    from ldp_tut.chain_planner import ChainAgent
    from ldp_tut.planner import Agent
    learned = Agent.load_pretrained('crossing-field', 'cpu', votes=2)
    assert learned.config.votes == 2 and learned.card['denoiser'] == 'field'
    again = Agent.load_pretrained(str(learned.save(tmp_path / 'mine.safetensors')), 'cpu')
    assert again.config == learned.config
    exact = ChainAgent.load_pretrained('doorkey-5x5', 'cpu')
    assert type(exact) is ChainAgent and exact.card['denoiser'] == 'exact'
    back = ChainAgent.load_pretrained(exact.save(tmp_path / 'exact.safetensors'), 'cpu')
    assert back.config == exact.config and back.card['denoiser'] == 'exact'
    with pytest.raises(CheckpointError, match='no checkpoint is called'): Agent.load_pretrained('nowhere')
    with pytest.raises(CheckpointError, match='not an agent'): Agent.load_pretrained('doorkey-5x5')


def test_the_same_environment_twice_is_noticed():
    class Scripted:
        def begin(self, seeds): pass
        def keep(self, rows): pass
        def act_batch(self, obs): return np.zeros(len(obs), int)
    env = gym.make('CartPole-v1')
    for go in (lambda make: play(Scripted(), make, 2, progress=False), lambda make: collect(make, steps=20, progress=False)):
        with pytest.raises(ValueError, match='gave the same one again'): go(lambda: env)


def test_options_that_would_do_nothing_are_refused():
    data = collect('CartPole-v1', steps=300, progress=False)
    for options, of in (dict(ends=0.5), 'maps'), (dict(radius=1.), 'goals, and the data have none'):
        with pytest.raises(ValueError, match=f'is an option of {of}: leave it out'): train_planner(data, 1, progress=False, **options)
    agent = train_planner(data, 1, world_steps=1, longest=8, device='cpu', progress=False)
    with pytest.raises(ValueError, match='stride=9 steps to the next token, and the inverse dynamics'):
        FarFuturePlanner(agent.planner.world, agent.planner.denoiser, PlanConfig(stride=9))


def test_goals_fit_their_observations():
    from dataclasses import replace
    data = collect('CartPole-v1', steps=50, progress=False)
    for goal, words in ((np.zeros(len(data.observation)), 'goals are rows of numbers'), (np.zeros((len(data.observation), 5)), 'goals of 5 numbers for observations of 4')):
        with pytest.raises(ValueError, match=words): check_data(replace(data, goal=goal.astype(np.float32)))
    spaces = Spaces('vector', (2,), goal=2, actions=2)
    both = dict(observation=np.zeros((2, 2)), desired_goal=np.zeros((2, 2)))
    assert read_observation(both, spaces).goal.shape == (2, 2)
    with pytest.raises(ValueError, match='1 goals for 2 observations'): read_observation(both | dict(desired_goal=np.zeros(2)), spaces)
    with pytest.raises(ValueError, match='2 goals for 1 observations'): read_observation(dict(observation=np.zeros(2), desired_goal=np.zeros((2, 2))), spaces)


class Sea(gym.Env):
    "A boat that is pushed; near the harbour it is paid, and nothing ever ends but by the clock."
    action_space = Box(-1., 1., (2,))
    def __init__(self, pays='near', goals=False):
        self.pays, self.goals = pays, goals
        at, wide = Box(-9., 9., (2,)), Box(-9., 9., (4,))
        self.observation_space = Dict(observation=wide, achieved_goal=at, desired_goal=at) if goals else at
    def seen(self):
        x = self.x.astype(np.float32)
        if not self.goals: return x
        return dict(observation=np.concatenate([x, x]), achieved_goal=x, desired_goal=self.goal.astype(np.float32))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t, self.goal = self.np_random.uniform(-1, 1, 2), 0, np.zeros(2)
        if self.goals: self.goal = self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}
    def step(self, action):
        self.x, self.t = self.x + .2 * np.asarray(action), self.t + 1
        d = np.linalg.norm(self.x - self.goal)
        paid = dict(near=float(d < .3), exp=np.exp(-d), minus=-d)[self.pays]
        return self.seen(), float(paid), False, self.t == 30, {}


class Pilot:
    "Goes to the goal, or stands still."
    def __init__(self, card, moves): self.card, self.moves, self.plan = dict(rewards=card), moves, None
    def begin(self, seeds): return self
    def keep(self, rows): pass
    def act_batch(self, obs):
        if isinstance(obs, dict): off = obs['desired_goal'] - obs['achieved_goal']
        else: off = -obs
        return np.clip(off / .2, -1, 1) * self.moves


def test_to_go_on_is_no_success_where_nothing_ends():
    paid = Rewards.of(collect(Sea, steps=900, progress=False))
    assert (paid.kind, paid.ends, paid.told) == ('step', False, False)
    far, home = (play(Pilot(vars(paid), moves), Sea, 8, seed=7, whole=True, progress=False) for moves in (0, 1))
    assert home['success'] == 1 and far['success'] == np.mean([r['return'] > 0 for r in far['rows']]) < 1
    assert Rewards.of(collect('CartPole-v1', steps=200, progress=False)).ends


@pytest.mark.parametrize('pays', ['exp', 'minus', 'near'])
def test_where_rewards_do_not_show_it_a_goal_is_reached_within_the_radius_that_was_told(pays):
    def make(): return Sea(pays, goals=True)
    data = collect(make, steps=900, progress=False)
    if pays == 'near': assert not Rewards.of(data, .25).told and Rewards.of(data).radius > .1
    else:
        with pytest.raises(ValueError, match='with radius='): Rewards.of(data)
        assert Rewards.of(data, .25).told
    paid = vars(Rewards.of(data, .25))
    stays, goes = (play(Pilot(paid, moves), make, 8, seed=7, progress=False) for moves in (0, 1))
    assert goes['success'] == 1 and goes['mean_steps'] > 1 and stays['success'] < .5


class Odd(Choice):
    wrong = ''
    def reset(self, seed=None, options=None):
        out = super().reset(seed=seed)
        return out[0] if self.wrong == 'reset' else out
    def step(self, action):
        seen, paid, *over = super().step(action)
        if self.wrong == 'four': return seen, paid, *over[:2]
        return seen, np.ones(1) if self.wrong == 'reward' else paid, *over


class Unseeded(Choice):
    def reset(self): return 0, {}


class Misshapen(Sea):
    def step(self, action):
        seen, *rest = super().step(action)
        return seen[:1], *rest


@pytest.mark.parametrize('make, says', [
    (Unseeded, r'Unseeded: `reset` must take seed= and options='), (Misshapen, r'Misshapen: `step` shows \[1\] numbers, its observation_space says \[2\]'),
    ('reset', r'Odd: `reset` must return \(observation, info\)'), ('four', r'Odd: `step` must return .* got 4 values'), ('reward', r'Odd: the reward must be one number')])
def test_what_a_world_does_otherwise_than_gymnasium_is_one_sentence(make, says, monkeypatch):
    if isinstance(make, str): monkeypatch.setattr(Odd, 'wrong', make)
    with pytest.raises(ValueError, match=says): collect(Odd if isinstance(make, str) else make, episodes=2, progress=False)


def test_what_is_no_observation_no_agent_and_no_world_is_said():
    spaces = Spaces.of(collect('CartPole-v1', steps=200, progress=False))
    with pytest.raises(ValueError, match='is it `obs, info = env.reset'): read_observation(gym.make('CartPole-v1').reset(), spaces)
    with pytest.raises(ValueError, match='made of numbers, got object'): read_observation(None, spaces)
    for agent, env in ((None, 'CartPole-v1'), (lambda o: 0, 'CartPole-v1'), (Pilot({}, 1), 5)):
        with pytest.raises(ValueError, match='play takes an agent'): play(agent, env, 1)
    for how in (dict(steps=1e3), dict(episodes=2.5)):
        with pytest.raises(ValueError, match='whole numbers, got'): collect('CartPole-v1', 'random', progress=False, **how)


@pytest.mark.parametrize('action, says', [
    (np.zeros((3, 1), int), r'store choices as \[steps\]'), (np.zeros(3), r'store amounts as \[steps, A\]'), (np.array(['a', 'b', 'c']), 'must be numbers, got <U1'),
    (np.array([-1, 0, 1]), 'has a -1: choices count from 0')])
def test_actions_of_files_are_choices_or_amounts(action, says, tmp_path):
    about = dict(observation=np.zeros((4, 6), np.uint8), reward=np.arange(3.), terminated=True)
    np.savez(tmp_path / 'a.npz', action=action, **about)
    with pytest.raises(ValueError, match='a.npz') as e: from_folder(tmp_path)
    assert __import__('re').search(says, str(e.value)), e.value
    np.savez(tmp_path / 'a.npz', action=np.array([True, False, True]), **about)
    data = from_folder(tmp_path)
    assert data.action.tolist() == [1, 0, 1] and data.actions == 2 and data.observation.dtype == np.float32, 'bytes in rows are a vector'


@pytest.mark.parametrize('units', [(1e-3, 1e3), (.05, 50.)])
def test_no_number_of_an_action_counts_more_for_the_size_of_its_unit(units):
    "The same losses, and the same actions in other units, whatever the units."
    n, T = 6, 20
    def record(scale):
        g = np.random.default_rng(0)
        return Trajectories(g.normal(size=(n * (T + 1), 3)), g.uniform(-1, 1, (n * T, 2)) * scale, g.random(n * T), [T] * n, [True] * n)
    plain, scaled = record(np.full(2, 100.)), record(np.array(units))
    said, done, nets = [], [], []
    for data in (plain, scaled):
        torch.manual_seed(0)
        world = make_world(data)
        batch = world_batches(Windows(data), 8, 4)(0, torch.Generator().manual_seed(1))
        said.append(float(world.losses(batch, torch.Generator().manual_seed(2))['inverse'].detach()))
        z = world.encode(world.read(data.observation[:5]))
        done.append(world.action(z, z + 1, torch.ones(5).long()).detach() / torch.tensor(units if data is scaled else (100., 100.)))
        rows = token_batches(Windows(data, absorb=True), Rewards.of(data), 8, 4, 6)(1, torch.Generator().manual_seed(3))
        nets.append(float(action_error(torch.zeros(6, 4, 2), rows['action'], world).mean()))
    assert said[0] == pytest.approx(said[1], rel=1e-4) and nets[0] == pytest.approx(nets[1], rel=1e-4)
    assert torch.allclose(done[0], done[1], atol=1e-4)
    assert Spaces.of(scaled).unit and not Spaces.of(record(np.ones(2))).unit   # numbers of the order of one stay as they are
    old = replace(Spaces.of(scaled), unit=False)   # a world that was saved before: its numbers are actions as they are
    assert torch.equal(from_units(torch.zeros(1, 2), old), torch.zeros(1, 2)) and in_units(z, old) is z
    still = replace(Spaces.of(scaled), low=(2., -1.), high=(2., 1.))   # what never varies is told, not divided by
    assert torch.equal(from_units(torch.full((1, 2), .5), still), torch.tensor([[2., .5]]))
    assert in_units(torch.tensor([[2., .5]]), still).tolist() == [[0., .5]]
    idle = record(np.array([1., 0.]))   # a number that is never used changes nothing for the other
    assert not Spaces.of(idle).unit


def lift(reward): return episode(T=len(reward), reward=reward)


def test_where_an_end_pays_best_to_do_nothing_is_no_success():
    "A step pays a little, and the good end much more: who idles to the clock has not succeeded."
    loads = [0, 1, 0, 0, 1, 0]
    data = Trajectories.from_episodes([lift([*loads, 5]), lift([*loads, 5]), replace_end(lift(loads))], 2)
    rewards = Rewards.of(data)
    assert rewards.kind == 'step' and not rewards.ends
    def fared(paid, ended): return executed(dict(promised=3, ended=ended, first=None), paid, **vars(rewards))['success']
    assert fared([0, 1, 5], True) and not fared([0] * 9, False) and not fared([0, 1, 0], False)
    assert fared([0, 1, 3], True), 'a good end that pays less than the best one'
    crashes = Trajectories.from_episodes([lift([5, 10, 5, 30]), lift([5, 10, -100]), replace_end(lift([5, 10, 5]))], 2)
    assert not Rewards.of(crashes).ends, 'penalties do not make a good end smaller'
    poles = Trajectories.from_episodes([lift([1] * n) for n in (5, 9, 14)], 2)
    assert Rewards.of(poles).ends   # an end that pays no more than the steps before it is none to go for


def replace_end(e):
    e.terminated = False
    return e


class Broken(Choice):
    "Its sensor fails in the fifth step."
    error = KeyError('sensor')
    def step(self, action):
        if self.t == 4: raise self.error
        return super().step(action)


class Grows(Table):
    "Shows more numbers than it says after five steps."
    def step(self, action):
        seen, *rest = super().step(action)
        return (np.zeros((2, 3), np.float32) if self.t > 4 else seen), *rest


@pytest.mark.parametrize('error', [KeyError('sensor'), ValueError('bad motor'), TypeError('no force')])
def test_an_error_of_an_environment_says_whose_it_is(error, monkeypatch):
    monkeypatch.setattr(Broken, 'error', error)
    says = f'Broken raised {type(error).__name__}.*test_any_world.py, line'
    with pytest.raises(RuntimeError, match=says): collect(Broken, episodes=2, progress=False)
    agent = train_method('policy', collect(Choice, episodes=4, progress=False), MethodRecipe(steps=2, width=32), progress=False)
    with pytest.raises(RuntimeError, match=says): play(agent, Broken, 2, progress=False)
    with pytest.raises(RuntimeError, match='Grows raised .*observation_space says'): collect(Grows, episodes=2, progress=False)


class Duck:
    "No `gym.Env`, and nothing unwrapped."
    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)
    def reset(self, **how): raise KeyError('x')
    def close(self): pass


def test_an_error_of_what_only_looks_like_an_environment_says_whose_it_is():
    agent = train_method('policy', collect(Choice, episodes=4, progress=False), MethodRecipe(steps=2, width=32), progress=False)
    agent.card = {}
    with pytest.raises(RuntimeError, match='Duck raised KeyError'): play(agent, Duck, 1, progress=False)


def test_a_clipped_action_is_inside_its_box(recwarn):
    for b in (.7, 1.3, 2.1):
        check_actions(np.clip(np.full((4, 2), 9.), -b, b), Box(-b, b, (2,)), 4)
    assert not [w for w in recwarn if 'outside Box' in str(w.message)]


def test_a_world_of_old_units_is_not_gone_on_with(tmp_path):
    "What was learned of actions as they are cannot be read as numbers from -1 to 1."
    data = Trajectories.from_episodes([Episode(rng.normal(size=(21, 2)), rng.normal(size=(20, 2)) * 90, rng.random(20), True) for _ in range(6)])
    old = make_world(data)
    old.spaces = replace(old.spaces, unit=False)
    fit_world(data, 8, 2, old, path=tmp_path / 'w.safetensors', progress=False, device='cpu')
    with pytest.raises(CheckpointError, match='unit'): fit_world(data, 8, 2, path=tmp_path / 'w.safetensors', progress=False, device='cpu')


def test_actions_outside_their_box_warn():
    with pytest.warns(UserWarning, match='outside Box.*clip'): check_actions(np.full((2, 2), 1.5), Box(-1, 1, (2,)), 2)


@pytest.mark.parametrize('change, says', [
    (lambda e: setattr(e, 'action', e.action[:-1]), 'episode 1 has 19 rows of action and 20 rewards: expected 20'),
    (lambda e: setattr(e, 'observation', e.observation[:-1]), 'episode 1 has 20 rows of observation and 20 rewards: expected 21'),
    (lambda e: setattr(e, 'goal', np.zeros((21, 1), np.float32)), 'episode 1 has a goal, other than the first'),
    (lambda e: setattr(e, 'terminated', np.arange(20) == 3), 'episode 1 terminates before its last step'),
    (lambda e: setattr(e, 'terminated', np.zeros(7, bool)), '7 flags for 20 steps')])
def test_an_episode_that_does_not_hang_together_is_named(change, says):
    one, two = episode(), episode()
    change(two)
    with pytest.raises(ValueError, match=says): Trajectories.from_episodes([one, two], 2)
    with pytest.raises(ValueError, match='episode 0 is a tuple: make each an `Episode`'): Trajectories.from_episodes([(1, 2)])


def test_flags_lengths_and_lists_are_read_or_refused():
    one, flagged = episode(terminated=True), episode(terminated=np.arange(20) == 19)
    assert Trajectories.from_episodes([one, flagged], 2).terminated.tolist() == [True, True]
    data = Trajectories.from_episodes([one, episode(terminated=False)], 2)
    with pytest.raises(ValueError, match='terminated is true or false'): replace(data, terminated=['False', 'True'])
    with pytest.raises(ValueError, match='terminated is true or false'): replace(data, terminated=[.3, 1.])
    with pytest.raises(ValueError, match='lengths of episodes are whole numbers'): replace(data, length=[20.5, 20])
    with pytest.raises(ValueError, match='from_episodes'): replace(data, observation=[np.zeros((3, 2)), np.zeros((4, 2))])
    assert len(data[torch.tensor([1])]) == 1 and len(data[torch.tensor(0)]) == 20


def test_what_nothing_can_be_learned_from_is_refused():
    short, still = (Trajectories.from_episodes([episode(T=T) for _ in range(9)], 2) for T in (1, 20))
    still.observation[:] = 1.
    for method in ('diffuser', 'latent-diffuser'):
        with pytest.raises(ValueError, match='every episode has one step'): train_method(method, short, MethodRecipe(steps=1))
        with pytest.raises(ValueError, match='every observation in these data is the same'): train_method(method, still, MethodRecipe(steps=1))
    with pytest.raises(ValueError, match='every observation in these data is the same'): train_planner(still, **SHORT)


def test_play_asks_for_a_batch_and_a_kind_that_there_are():
    agent = train_method('policy', collect(Choice, episodes=4, progress=False), MethodRecipe(steps=2, width=32), progress=False)
    for batch in (0, -1):
        with pytest.raises(ValueError, match='batch must be an integer'): play(agent, Choice, 2, batch=batch, progress=False)
    with pytest.raises(ValueError, match='kind is goal, end or step'): play(agent, Choice, 2, kind='x', progress=False)


def test_files_with_nan_or_other_goals_are_named(tmp_path):
    def write(name, **change):
        e = episode(T=5)
        np.savez(tmp_path / f'{name}.npz', **dict(observation=e.observation, action=e.action, reward=e.reward, terminated=True, actions=2) | change)
    write('a'), write('b', reward=np.array([0, 1, np.nan, 0, 0]))
    with pytest.raises(ValueError, match=r'reward in .*b\.npz is nan at step 2'): from_folder(tmp_path)
    write('a', goal=np.float32(1))
    with pytest.raises(ValueError, match=r'goal in .*a\.npz must be a row'): from_folder(tmp_path)
    write('a', goal=np.zeros((7, 1))), write('b', goal=np.zeros((5, 1)))
    with pytest.raises(ValueError, match=r'goal in .*a\.npz must be a row of numbers for each of 6 observations, got \[7, 1\]'): from_folder(tmp_path)
    with pytest.raises(ValueError, match='give a positive whole number'): from_folder(tmp_path, actions=2.5)
    assert len(load_data(write('a') or write('b') or tmp_path)[0]) == 2


def test_a_planner_with_a_part_of_ones_own_is_not_saved_as_another(tmp_path):
    agent = train_planner(Trajectories.from_episodes([episode() for _ in range(8)], 2), **SHORT)
    p = agent.planner
    class Own(FarFuturePlanner): pass
    mine = FarFuturePlanner(p.world, p.denoiser, p.config)
    mine.where = p.where
    for other in (Own(p.world, p.denoiser, p.config), mine, FarFuturePlanner(p.world, p.denoiser, p.config, when=lambda *a: p.when(*a))):
        with pytest.raises(ValueError, match='where or when of this planner is not what its config says'): save_agent(tmp_path / 'a.safetensors', type(agent)(other))
    assert not list(tmp_path.iterdir()) and save_agent(tmp_path / 'a.safetensors', agent).exists()


@pytest.mark.parametrize('plan, words', [(dict(horizon=100), 'horizon 100 is farther'), (dict(when='arrival'), 'asks for arrivals'),
                                         (dict(iterations=200, far_iterations=200), '200 iterations are more than')])
def test_a_plan_that_cannot_be_is_refused_before_the_world_learns(plan, words, monkeypatch):
    def never(*_, **__): raise AssertionError('the world was trained')
    monkeypatch.setattr('ldp_tut.planner.fit_world', never)
    data = Trajectories.from_episodes([episode() for _ in range(8)], 2)
    with pytest.raises(ValueError, match=words): train_planner(data, plan=PlanConfig(**plan), longest=8, **SHORT)


@pytest.mark.parametrize('radius', [None, .5])
def test_goals_of_pictures_are_refused_at_the_door(radius):
    pictures = [Episode(rng.integers(0, 256, (13, 16, 16, 3), dtype=np.uint8), rng.integers(0, 2, 12), np.eye(12)[11], True, np.zeros((13, 2), np.float32)) for _ in range(4)]
    with pytest.raises(ValueError, match=r'goals \[2\] of pictures \[16, 16, 3\]'): train_planner(Trajectories.from_episodes(pictures, 2), radius=radius, **SHORT)


class Named(Choice):
    "Sees a dictionary whose vectors are called what MiniGrid calls other things."
    observation_space, action_space = Dict(image=Box(-1, 1, (4,)), mission=Box(-1, 1, (2,))), Discrete(2)
    def see(self): return dict(image=np.full(4, self.t / 10, np.float32), mission=np.zeros(2, np.float32))
    def reset(self, **how): super().reset(**how); return self.see(), {}
    def step(self, action):
        _, _, *rest = super().step(3)
        return self.see(), float(self.t == 10), self.t == 10, *rest[1:]


def test_vectors_may_be_called_image_or_mission():
    data = collect(Named, episodes=8, progress=False)
    agent = train_planner(data, **SHORT)
    check_environment(Named(), Spaces.of(data))
    assert len(play(agent, Named, 2, progress=False)['rows']) == 2


def test_an_environment_that_cannot_be_reset_is_named():
    class NoSeed(Choice):
        def reset(self): return 0, {}
    data = collect(Choice, episodes=8, progress=False)
    with pytest.raises(RuntimeError, match='NoSeed raised TypeError'): check_environment(NoSeed(), Spaces.of(data))


def test_environments_that_were_made_are_closed_where_another_cannot_be():
    made, shut = [], []
    class Third(Choice):
        def __init__(self):
            if len(made) == 2: raise OSError('no third one')
            made.append(self)
        def close(self): shut.append(self)
    agent = train_planner(collect(Choice, episodes=8, progress=False), **SHORT)
    with pytest.raises(OSError, match='no third one'): play(agent, Third, 4, progress=False)
    assert made and set(map(id, made)) == set(map(id, shut))


def test_observations_with_an_axis_too_many_are_refused():
    spaces = Spaces.of(Trajectories.from_episodes([episode()], 2))
    with pytest.raises(ValueError, match='made of numbers'): read_observation({}, spaces)
    with pytest.raises(ValueError, match=r'made for observations \[2\], got'): read_observation(dict(image=np.zeros((7, 7, 3), np.uint8), direction=0), spaces)
    with pytest.raises(ValueError, match=r'observations \[2, 3, 2\] of \[2\] each'): read_observation(np.zeros((2, 3, 2)), spaces)


@pytest.mark.parametrize('change, words', [(dict(goal=np.array([['a']] * 4)), 'goal in .*a.npz must be numbers'), (dict(actions=3.7), 'actions in .*a.npz is how many .*got 3.7'),
                                           (dict(actions=-1), 'got -1')])
def test_a_file_is_named_whose_numbers_are_none(change, words, tmp_path):
    parts = dict(observation=rng.normal(size=(4, 2)), action=np.array([0, 1, 1]), reward=np.eye(3)[2], terminated=True)
    np.savez(tmp_path / 'a.npz', **parts | change)
    with pytest.raises(ValueError, match=words): from_folder(tmp_path)


@pytest.mark.parametrize('change', [dict(length=[[20]]), dict(terminated=[[True]]), dict(actions=-3)])
def test_records_of_another_shape_are_refused(change):
    one = episode()
    good = dict(observation=one.observation, action=one.action, reward=one.reward, length=[20], terminated=[True], actions=2)
    assert len(Trajectories(**good)) == 1
    with pytest.raises(ValueError, match='one for each|for each episode|0 or more'): Trajectories(**good | change)


def test_seeds_of_episodes_are_whole_numbers():
    "Else two episodes would share one, and nobody would know."
    data = Trajectories.from_episodes([episode() for _ in range(8)], 2)
    for agent in (train_planner(data, **SHORT), train_method('policy', data, MethodRecipe(steps=2, width=32), progress=False)):
        with pytest.raises(ValueError, match='a seed must be an integer of at least 0, got 0.5'): agent.begin([.5, .7])
        agent.begin(np.arange(2))
