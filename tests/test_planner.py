"The generic planner: it plans in a world made up here, knows no environment, waits for no device."
import ast
import math
import re
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from test_fake_device import DEVICE, faked
from ldp_tut.board import pyramid_board, settling_board
from ldp_tut.data import Trajectories
from ldp_tut.ddpm import cosine_schedule
from ldp_tut.field import FieldConfig, FieldDenoiser
from ldp_tut.maps import SymbolWorld
from ldp_tut.forcing import Prediction
from ldp_tut.planner import (
    ORDERS, WHEN, Agent, Destination, Denoiser, DenoiserConfig, DenoisingLoss, FarFuturePlanner, PlanConfig, Rewards, VectorDenoiser,
    believable, between_times, horizons, load_agent, play, save_agent, token_batches, train_planner)
from ldp_tut.checkpoints import CheckpointError
from ldp_tut.worlds import Motion, PixelWorld, Seen, Spaces, Tried, VectorWorld, World, check_world, fit_world

ROOT = Path(__file__).parent.parent


class Rail:
    "A cart on a rail: one number, two actions, left and right by 0.1; the goal is a place."
    latent_shape, actions = (1,), 2
    def read(self, obs): return Seen(torch.as_tensor(obs).float().reshape(-1, 2)[:, :1], torch.as_tensor(obs).float().reshape(-1, 2)[:, 1:])
    def scene(self, seen): return seen.goal
    def encode(self, seen): return seen.state
    def decode(self, z): return z
    def action(self, z, later, gap, scene): return torch.cat([z - later, later - z], 1)
    def steps_between(self, z, later): return (z - later).abs()[:, 0] * 10


class RailDenoiser:
    "Exact enough: one can be anywhere within a tenth a step; the reward head likes the goal."
    schedule, longest = cosine_schedule(50), 20
    def __call__(self, x, k, times, scene):
        a = self.schedule.alpha_bar[k][..., None]
        reach = 0.1 * times[..., None].clamp(min=0.1) / math.sqrt(3)
        spread = (1 - a) / a.clamp(min=1e-6)
        share = times / times[:, -1:].clamp(min=1) * (k[:, -1:] == 0)  # on the way to the last token, if that is known
        mean, seen = x[:, :1] + (x[:, -1:] - x[:, :1]) * share[..., None], x / a.sqrt().clamp(min=1e-3)
        x0 = torch.where(k[..., None] == 0, x, (mean * spread + seen * reach**2) / (spread + reach**2))
        goal = scene.repeat_interleave(len(x) // len(scene), 0)[:, None]
        return Prediction(x0, dict(reward=4 - 40 * (x0 - goal) ** 2))


@pytest.fixture(scope='module')
def rail(): return FarFuturePlanner(Rail(), RailDenoiser(), PlanConfig(horizons=6, tokens=3, scale=10., limit=3., slack=0.02))


@pytest.fixture(scope='module')
def data():
    "Drunken walks on a square, pushed by two numbers."
    rng = np.random.default_rng(0)
    push = rng.uniform(-1, 1, (12, 30, 2)).astype(np.float32)
    place = np.concatenate([np.zeros((12, 1, 2)), push.cumsum(1) / 5], 1)
    goal = np.repeat(place[:, -1:], 31, 1)
    paid = np.linalg.norm(place[:, 1:] - goal[:, 1:], axis=-1) < 0.2
    return Trajectories(place.reshape(-1, 2), push.reshape(-1, 2), paid.reshape(-1), np.full(12, 30), np.zeros(12, bool), goal=goal.reshape(-1, 2))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('agent')
    return train_planner(data, steps=5, world=fit_world(data, 10, steps=5, progress=False)[0], longest=10, out=out, progress=False), out


def test_the_module_knows_no_environment_and_no_exact_denoiser():
    for name in ('planner', 'worlds'):
        text = (ROOT / 'ldp_tut' / f'{name}.py').read_text()
        modules = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.level}
        assert not modules & {'envs', 'exact', 'world', 'chain_planner', 'diffuser'}, modules
        for word in ('MiniGrid', 'PointMaze', 'minigrid', 'CartPole'): assert word not in text.replace("minigrid's symbolic", ''), (name, word)


def test_a_world_made_up_here_is_planned_in(rail):
    assert isinstance(rail.world, World)
    plan = rail.plan(np.array([[0., 0.8], [0.5, -0.6]]), [0, 1])
    end = plan.z[:, -1, 0]
    assert torch.allclose(end, torch.tensor([0.8, -0.6]), atol=0.3) and (plan.reward > 0.5).all()
    assert (plan.times.diff(dim=1) > 0).all() and (plan.times[:, 0] == 0).all()
    assert rail.act(plan, np.array([[0., 0.8], [0.5, -0.6]]), 0).argmax(1).tolist() == [1, 0]


@pytest.mark.parametrize('when', sorted(set(WHEN) - {'arrival'}))  # that one asks a denoiser of maps: tests/test_field.py
def test_a_plan_depends_on_its_own_seed_alone(rail, when):
    planner = FarFuturePlanner(rail.world, rail.denoiser, PlanConfig(horizons=6, tokens=3, when=when))
    obs = np.array([[0., 0.8], [0.5, -0.6], [-.2, .1]])
    many, alone = planner.plan(obs, [5, 6, 7]), planner.plan(obs[1:2], [6])
    for a, b in zip(many, alone): assert torch.allclose(a[1:2], b, atol=1e-5)
    again = planner.plan(obs, [5, 6, 7])
    assert all(torch.equal(a, b) for a, b in zip(many, again))
    assert not torch.equal(many.z[0], planner.plan(obs, [8, 6, 7]).z[0])


def test_a_plan_can_be_made_inside_inference_mode(rail):
    with torch.inference_mode(): plan = rail.plan(np.array([[0., 0.8]]), [0])
    assert torch.equal(plan.z, rail.plan(np.array([[0., 0.8]]), [0]).z)


RAIL = PlanConfig(horizons=6, tokens=3, scale=10., limit=3., slack=0.02)
PLACES = np.array([[0., 0.8], [0.5, -0.6], [-.2, .1]])


def variant(rail, **how): return FarFuturePlanner(rail.world, rail.denoiser, replace(RAIL, **how))


@pytest.mark.parametrize('order', sorted(ORDERS))
def test_tokens_settle_in_any_order_and_the_film_shows_it(rail, order):
    plan = variant(rail, order=order).plan(PLACES, [5, 6, 7], film=(film := []))
    alone = variant(rail, order=order).plan(PLACES[1:2], [6])
    assert torch.allclose(plan.z[1:2], alone.z, atol=1e-5) and (plan.at == 4).all()
    settled = [f for f in film if f.times.shape[1] == 5]
    assert len(film) - len(settled) == RAIL.far_iterations and len(settled) == RAIL.iterations * (max(ORDERS[order](3)) + 1)
    for f in settled: assert not f.level[:, [0, 4]].any() and torch.equal(f.times, plan.times) and torch.allclose(f.x0[:, 0], plan.z[:, 0])
    first = settled[0].level[0, 1:4] < rail.denoiser.schedule.K
    assert first.tolist() == dict(near=[1, 0, 0], far=[0, 0, 1], ends=[0, 1, 0], all=[1, 1, 1], pyramid=[1, 0, 0])[order]


@pytest.mark.parametrize('between', [1, 2, 3, 9])
def test_a_settling_pyramid_has_the_slope_of_the_board_of_that_name(between):
    board = settling_board(between, 100, 8, 'pyramid')[:, 1:-1]
    assert (board - pyramid_board(between, 100, 16 if between > 1 else 8, lead=0.5 if between > 1 else 0.)).abs().max() <= 13  # a row


def test_a_horizon_is_the_only_distance_tried(rail):
    planner = variant(rail, horizon=7, when='believable', candidates=2)
    far = planner.where(*(f(planner.world.read(PLACES)) for f in (planner.world.encode, planner.world.scene)), [5, 6, 7])
    assert far.n.tolist() == [[7, 7]] * 3 and planner.plan(PLACES, [5, 6, 7]).times[:, -1].tolist() == [7] * 3
    with pytest.raises(ValueError, match='horizon 21 is farther than the 20 steps'): variant(rail, horizon=21)


def test_whole_steps_are_whole_and_a_short_plan_runs_on(rail):
    "Eight steps to the first goal, two to the third: it stands in the second column, and what comes after it, later."
    planner = variant(rail, whole_steps=True, tokens=5, near=2, votes=2)
    plan = planner.plan(PLACES, [5, 6, 7], film=(film := []))
    assert torch.equal(plan.times, plan.times.round()) and (plan.times.diff(dim=1) > 0).all()
    n = plan.times[range(3), plan.at]
    assert plan.at.tolist() == [6, 6, int(n[2])] and n[2] < 5
    for f in film[RAIL.far_iterations:]: assert not f.level[:, 0].any() and not f.level[range(3), plan.at].any(), 'the far token is clean wherever it stands'
    alone = planner.plan(PLACES[2:], [7])
    for name in ('times', 'z', 'at', 'first'): assert torch.allclose(getattr(plan, name)[2:].float(), getattr(alone, name).float(), atol=1e-5)
    with pytest.raises(ValueError, match='stride=2'): PlanConfig(whole_steps=True, stride=2)


class Pushed(Rail):
    "The same cart, pushed by a number."
    actions = 0
    def action(self, z, later, gap, scene): return (later - z) / gap[:, None]


@pytest.mark.parametrize('world', [Rail, Pushed])
def test_the_first_action_is_put_to_the_vote(rail, world):
    planner = FarFuturePlanner(world(), rail.denoiser, replace(RAIL, votes=5, eta=1.))
    plan, one = planner.plan(PLACES, [5, 6, 7]), variant(rail, eta=1.).plan(PLACES, [5, 6, 7])
    assert plan.z.shape == one.z.shape and plan.first.shape == (3, world.actions or 1) and one.first.shape == (3, 0)
    assert torch.equal(planner.act(plan, PLACES, 0), plan.first)
    if world.actions: assert plan.first.argmax(1).tolist() == [1, 0, 1] and torch.allclose(plan.first.exp().sum(1), torch.ones(3))
    else: assert torch.allclose(plan.first[:2], plan.z[:2, 1] - plan.z[:2, 0]), 'a step along one of the ways, not a mixture'
    late = planner.act(plan, PLACES, 1)
    assert late.shape == plan.first.shape and not torch.equal(late, plan.first)


def test_an_agent_remembers_where_it_wanted_to_be(rail):
    "What was believed in is kept, whatever the next seed; a new episode, or a doubt, is sought anew."
    tried = []
    class Counting(FarFuturePlanner):
        def where(self, z0, scene, seeds, film=None): tried.append(len(z0)); return super().where(z0, scene, seeds, film)
    agent = Agent(Counting(rail.world, rail.denoiser, replace(RAIL, trust=0.5))).begin([1, 2, 3])
    agent.act_batch(PLACES); far = agent.plan.z[:, -1]
    agent.act_batch(PLACES)
    assert tried == [3] and torch.equal(agent.plan.z[:, -1], far) and (agent.plan.reward == 1).all()
    agent.restart([False, True, False]); agent.act_batch(PLACES)
    assert tried == [3, 1] and torch.equal(agent.plan.z[[0, 2], -1], far[[0, 2]]) and not torch.equal(agent.plan.z[1, -1], far[1])
    agent.keep([0, 2]); agent.act_batch(PLACES[[0, 2]])
    assert tried == [3, 1] and torch.equal(agent.plan.z[:, -1], far[[0, 2]]) and agent.plans_made == 4
    with pytest.raises(ValueError, match='a mask of 2 episodes, got shape .1.'): agent.restart([True])
    for rows in ([2], [-1], [[0]], [0.5], [True]):
        with pytest.raises(ValueError, match='rows must be numbers below 2, or a mask of 2'): agent.keep(rows)
    agent.keep([False, True]); assert agent.seeds == [3] and torch.equal(agent.plan.z[:, -1], far[2:])
    easy = Agent(Counting(rail.world, rail.denoiser, replace(RAIL, trust=0.))).begin([1]); easy.act_batch(PLACES[:1])
    easy.restart([True]); assert easy.remembered().isnan().all(), 'a new episode remembers nothing, however little is enough'; tried.pop()
    forgetful = Agent(Counting(rail.world, rail.denoiser, RAIL)).begin([1])
    for _ in range(2): forgetful.act_batch(PLACES[:1])
    assert tried == [3, 1, 1, 1]
    with pytest.raises(ValueError, match='remembers where and not when'): PlanConfig(trust=0.9, when='believable')


def test_patience_lengthens_the_horizon_of_whoever_gets_no_nearer(rail):
    "One stands still, one is moved on; the horizon of the first grows with every plan, and a new episode begins on time."
    agent = Agent(variant(rail, patience=1., tokens=3, near=2, replan=2)).begin([1, 2])
    stands, moves = torch.tensor([[-.5, .9]]), torch.tensor([[-.5, .9]])
    delays = []
    for step in range(10):
        agent.act_batch(torch.cat([stands, moves]))
        if agent.since == 1: delays.append(agent.delay.tolist())
        moves = moves + torch.tensor([[.1, 0.]])
    first, second = (list(d) for d in zip(*delays))
    assert first == sorted(first) and first[0] == 0 and first[-1] >= 3 * 2 and second[-1] < first[-1]
    n = agent.plan.times[range(2), agent.plan.at]
    assert n[0] > n[1] and (n <= rail.denoiser.longest).all()
    agent.keep([0]); assert agent.delay.tolist() == first[-1:]
    agent.restart([True]); agent.act_batch(stands); assert agent.delay.tolist() == [0.]
    steady = Agent(variant(rail)).begin([1]); steady.act_batch(PLACES[:1]); assert steady.delay is None


def test_what_disappoints_is_not_remembered(rail):
    "At the far token, and the reward head sees no reward there: with patience it is sought anew."
    agent = Agent(variant(rail, trust=0.5, patience=1.)).begin([1])
    at = torch.tensor([[.5, .5]])
    agent.act_batch(at); far = agent.plan.z[:, -1]
    assert not agent.remembered().isnan().any(), 'it stands where the head sees reward'
    agent.plan = agent.plan._replace(scene=agent.plan.scene - 1)
    assert agent.remembered().isnan().all() and far.shape == (1, 1)


def test_whoever_comes_no_nearer_looks_for_another_far_token(rail):
    "One stands still and one is moved on: with patience the first forgets, without it both remember."
    for patience, forgets in ((1., [True, False]), (0., [False, False])):
        agent = Agent(variant(rail, trust=0.5, patience=patience, tokens=3, near=2, replan=2)).begin([1, 2])
        stands, moves, found = torch.tensor([[-.5, .9]]), torch.tensor([[-.5, .9]]), []
        for _ in range(8):
            agent.act_batch(torch.cat([stands, moves]))
            found.append(agent.remembered().isnan().any(1).tolist())
            moves = moves + torch.tensor([[.1, 0.]])
        assert found[0] == [False, False] and found[-1] == forgets


def test_an_episode_that_ends_does_not_put_its_neighbours_behind(rail):
    "One goes on, on time, while its neighbour begins anew one step after a plan; and rows are kept together."
    agent = Agent(variant(rail, trust=0.5, patience=1., tokens=5, near=4, replan=4)).begin([1, 2])
    at = torch.tensor([[-.5, .9], [-.5, .9]])
    for step in range(7):
        agent.act_batch(at); at = at + torch.tensor([[.1, 0.]])
        if step < 4: agent.restart([False, True]); at[1] = torch.tensor([-.5, .9])
        assert agent.behind.tolist() == [False, False], step
    agent.keep([1]); assert agent.behind.tolist() == [False] and len(agent.left) == len(agent.delay) == 1


def test_worth_narrows_what_is_believable(rail):
    z0, scene = (f(rail.world.read(PLACES)) for f in (rail.world.encode, rail.world.scene))
    far = rail.where(z0, scene, [5, 6, 7])
    some = {w: believable(variant(rail, worth=w, slack=100.), z0, scene, far) for w in (0., .9, 1.)}
    assert some[0.].all() and (some[.9] <= some[0.]).all() and (some[1.].sum(1) >= 1).all()
    assert (far.reward[some[.9]] >= 0.9 * far.reward.amax(1, keepdim=True).expand_as(far.reward)[some[.9]]).all()
    with pytest.raises(ValueError, match='worth'): PlanConfig(worth=1.5)


def test_when_can_be_brought_along(rail):
    "A function with the arguments of `first_passage`; it may change the far token, too, and say what it went by."
    def when(planner, z0, scene, far):
        which = far.reward.argmax(1)
        there = Destination.of(far, which, torch.full_like(which, 9), far.reward)
        return there._replace(z=scene)
    class Unmeasured:
        def __getattr__(self, name):
            if name == 'steps_between': raise AttributeError(name)
            return getattr(rail.world, name)
    plan = FarFuturePlanner(Unmeasured(), rail.denoiser, RAIL, when).plan(PLACES, [5, 6, 7])
    assert torch.equal(plan.z[:, -1], plan.scene) and plan.times[:, -1].tolist() == [9.] * 3 and plan.grounds.shape == (3, 24)
    with pytest.raises(ValueError, match='asks the world for steps_between'): FarFuturePlanner(Unmeasured(), rail.denoiser, RAIL)


def test_distances_and_times():
    assert horizons(100, 1) == [100] and horizons(5, 3, 9) == [5]
    for some in (horizons(8, 12), horizons(400, 12, 8)): assert some == sorted(set(some)) and some[-1] in (8, 400) and len(some) <= 12
    t = between_times(torch.tensor([3, 90]), 5, 2, 4)
    assert (t.diff(dim=1) > 0).all() and t[:, -1].tolist() == [3, 90] and t[1, :3].tolist() == [0, 4, 8]
    assert between_times(torch.tensor([3, 20]), 4, 3, 1, whole_steps=True).tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 12, 20]]


def test_an_agent_trained_saved_and_loaded_is_the_same(trained, data):
    agent, out = trained
    obs = dict(observation=data.observation[:3], desired_goal=data.goal[:3])
    agent.begin([1, 2, 3]); first = agent.act_batch(obs)
    again = load_agent(out / 'agent.safetensors').begin([1, 2, 3])
    assert first.shape == (3, 2) and np.abs(first - again.act_batch(obs)).max() < 0.05  # half precision
    one = agent.reset(seed=1).act(dict(observation=data.observation[0], desired_goal=data.goal[0]))
    assert one.shape == (2,) and np.allclose(one, first[0], atol=1e-5)
    with pytest.raises(ValueError, match='3 observations for 1 plans'): agent.act_batch(obs)
    assert agent.card['rewards']['kind'] == 'goal' and agent.card['denoiser'] == 'transformer'


def test_features_are_saved_with_an_agent_and_make_thin_walls_seen(data, tmp_path):
    train_planner(data, 2, out=tmp_path, world_steps=2, width=32, depth=1, features=4, progress=False)
    again = load_agent(tmp_path / 'agent.safetensors').planner
    assert again.world.features == again.denoiser.config.features == 4
    assert again.world.motion.passage[0].in_features == 5 * 2 * data.observation.shape[1]
    left = torch.rand(512, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    right = left + 0.1
    over = ((left < 0) & (right > 0)).float()[:, 0]  # a wall at 0: one step to the right is far away there
    def error(features):
        torch.manual_seed(0)
        net = Motion(1, 2, 4, 64, features)
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
        for _ in range(150):
            loss = (net.steps_between(left, right) - over).pow(2).mean()
            optimiser.zero_grad(); loss.backward(); optimiser.step()
        return float(loss)
    assert error(16) < 0.5 * error(0)


def test_a_world_of_another_size_comes_back_with_its_agent(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (44, 8, 12, 1), np.uint8)
    seen = Trajectories(pictures, rng.normal(size=(40, 2)).astype(np.float32), np.tile(np.eye(10)[-1], 4), [10] * 4, [True] * 4)
    spaces = Spaces.of(seen)
    for world in (PixelWorld(spaces, dim=5, noise=0., max_gap=3, width=8), PixelWorld(spaces)):
        kept = world.options
        train_planner(seen, 2, world=world, out=tmp_path, world_steps=2, width=32, depth=1, longest=8, progress=False)
        again = load_agent(tmp_path / 'agent.safetensors').planner.world
        assert again.options == kept and again.latent_shape == (kept['dim'],)
        for path in tmp_path.iterdir(): path.unlink()


@pytest.mark.parametrize('change', [dict(model=dict(token_dim=3)), dict(model=dict(nonsense=1)), dict(world=dict(kind='moon')), dict(kind='cat'),
                                    dict(plan=dict(wings=2)), dict(plan=dict(replan=9)), dict(plan=None), dict(model=None), dict(world=None)])
def test_a_checkpoint_that_does_not_fit_is_refused(trained, tmp_path, change):
    from ldp_tut.checkpoints import load_checkpoint, save_checkpoint
    tensors, card = load_checkpoint(trained[1] / 'agent.safetensors')
    for name, value in change.items(): card[name] = {**card[name], **value} if isinstance(value, dict) else value
    card = {name: value for name, value in card.items() if value is not None}
    with pytest.raises(CheckpointError, match='newer ldp_tut|not an agent'): load_agent(save_checkpoint(tmp_path / 'x.safetensors', tensors, card))
    with pytest.raises(ValueError, match='unknown planning option'): load_agent(trained[1] / 'agent.safetensors', wings=2)


def test_a_planner_is_gone_on_with_by_its_own_data_and_recipe_alone(data, tmp_path):
    "Anything else is refused by name, before a world is trained, and every file stays as it was. More steps extend it."
    other = Trajectories(data.observation + 1e-3, data.action, data.reward, data.length, data.terminated, goal=data.goal)
    def go(data=data, steps=3, **options):
        return train_planner(data, steps, **dict(dict(world_steps=3, longest=10, width=16, depth=1, out=tmp_path, device='cpu', progress=False), **options))
    assert len(go().history) == 3
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for change, words in ((dict(data=other), 'data='), (dict(longest=9), 'longest=10, not 9'), (dict(width=32), 'width=16, not 32'), (dict(world_steps=4), 'world_steps=3, not 4'),
                          (dict(radius=.3), r'radius=.*, not 0\.3'), (dict(seed=1), 'seed=0, not 1'), (dict(steps=2), 'steps=3, not 2'), (dict(world=fit_world(data, 10, steps=1, progress=False)[0]), 'world=default, not VectorWorld')):
        with pytest.raises(CheckpointError, match=words): go(**change)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert go(minutes=9).history == [], 'a finished run keeps its number of steps'
    more = go(steps=5)
    assert len(more.history) == 2 and more.card['recipe']['world_steps'] == 3 and more.card['steps'] == 5
    with pytest.raises(CheckpointError, match='max_gap|longest|data'): fit_world(data, 9, steps=3, path=tmp_path / 'world.safetensors', progress=False)
    with pytest.raises(ValueError, match='wdith'): train_planner(data, wdith=3)


def test_an_agent_doubts_what_led_it_back_to_where_it_was(rail):
    stuck, goal = np.zeros(20), np.full(20, 0.9)
    free = np.linspace(-0.9, 0.5, 20)  # the first cart stands before a wall that its planner knows nothing of; the second moves
    def walk(doubt):
        agent = Agent(FarFuturePlanner(rail.world, rail.denoiser, replace(rail.config, doubt=doubt))).begin([0, 1])
        return np.array([agent.act_batch(np.stack([np.stack([a, g]), np.stack([b, g])])) for a, b, g in zip(stuck, free, goal)]), agent
    (sure, _), (wary, agent) = walk(0.), walk(2.)
    assert (sure == 1).all(), 'without doubt it pushes against the wall for ever'
    assert (wary[:, 0] == 0).any() and (wary[:, 1] == 1).all()
    agent.restart([True, False])
    assert agent.act_batch(np.array([[0., 0.9], [0.5, 0.9]]))[0] == 1, 'a new episode, no doubts'
    with pytest.raises(AttributeError): agent.config = replace(agent.config, replan=2)  # its planner's, in one place
    agent.planner.config = replace(agent.config, replan=2)
    assert agent.config.replan == 2
    tried, here, says = Tried(2), torch.zeros(2, 3), torch.tensor([[0., 1.], [0., 1.]])
    assert [tried.doubted(here, says, 0.6).argmax(1).tolist() for _ in range(3)] == [[1, 1], [1, 1], [0, 0]]
    tried.keep([1])
    assert tried.doubted(here[:1] + 1, says[:1], 0.6).argmax() == 1 and says.tolist() == [[0., 1.], [0., 1.]]


def test_bad_data_and_options_are_refused_before_training(data, rail):
    row = np.zeros((40, 2), np.float32)
    few = Trajectories(row[:4], row[:3], [0, 0, 1], [3], [True])
    with pytest.raises(ValueError, match='at least 4'): train_planner(few)
    with pytest.raises(ValueError, match='nothing in them pays'): train_planner(Trajectories(row, row[:39], row[:39, 0], [39], [False]))
    with pytest.raises(ValueError, match='radius='): train_planner(Trajectories(row, row[:39], row[:39, 0], [39], [False], goal=row + 1))
    with pytest.raises(ValueError, match='choose less'): train_planner(data, longest=99)
    with pytest.raises(ValueError, match='reach'): PlanConfig(replan=9)
    with pytest.raises(ValueError, match='unknown when'): PlanConfig(when='soon')
    with pytest.raises(ValueError, match='stand close'): PlanConfig(near=9)
    with pytest.raises(ValueError, match='doubt'): PlanConfig(doubt=-1.)
    class Pushed(Rail): actions = 0
    with pytest.raises(ValueError, match='doubt=1.0 counts'): FarFuturePlanner(Pushed(), RailDenoiser(), PlanConfig(doubt=1.))
    with pytest.raises(ValueError, match='2 observations for 1 seeds'): rail.plan(np.zeros((2, 2)), [0])
    with pytest.raises(ValueError, match='trained levels'): FarFuturePlanner(Rail(), RailDenoiser(), PlanConfig(iterations=99))
    class Half: schedule, longest = RailDenoiser.schedule, 20
    class Blind(Rail): encode = None
    del Blind.encode; Blind.read = Rail.read
    with pytest.raises(ValueError, match='a world needs'): FarFuturePlanner(object(), RailDenoiser())
    with pytest.raises(ValueError, match='a denoiser needs'): FarFuturePlanner(Rail(), object())


def test_a_plan_that_does_not_fit_is_refused_before_the_denoiser_is_trained(data, monkeypatch):
    world = fit_world(data, 10, steps=1, progress=False)[0]
    monkeypatch.setattr('ldp_tut.planner.fit', lambda *a, **k: pytest.fail('a denoiser was trained'))
    for plan, words in ((PlanConfig(when='arrival'), 'asks for arrivals'), (PlanConfig(horizon=50), 'horizon 50 is farther'), (PlanConfig(doubt=1.), 'actions are vectors')):
        with pytest.raises(ValueError, match=words): train_planner(data, world=world, plan=plan, longest=10, progress=False)


def test_a_world_of_ones_own_trains_in_a_folder_and_keeps_its_run(data, tmp_path):
    class Own(VectorWorld): pass
    own = Own(Spaces.of(data), max_gap=4)
    agent = train_planner(data, 2, world=own, world_steps=2, longest=10, out=tmp_path, width=16, depth=1, progress=False)
    assert sorted(p.name for p in tmp_path.glob('*.safetensors')) == ['denoiser.safetensors', 'world.safetensors']
    with pytest.raises(ValueError, match='only agents made of .* save the weights of Own'): agent.save(tmp_path / 'agent.safetensors')


def test_what_training_starts_from_is_looked_for_first(data, tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint at .*none.safetensors'): train_planner(data, start_from=tmp_path / 'none.safetensors', longest=10)
    with pytest.raises(CheckpointError, match="no checkpoint is called 'nowhere'"): train_planner(data, start_from='nowhere', longest=10)
    with pytest.raises(ValueError, match='must denoise maps'): train_planner(data, start_from='crossing-field', longest=10)


def test_a_world_that_encodes_to_another_shape_is_refused_before_training(data, monkeypatch, tmp_path):
    "The rail says that its tokens are one number, and makes two of a place on the square."
    monkeypatch.setattr('ldp_tut.planner.fit', lambda *a, **k: pytest.fail('something was trained'))
    with pytest.raises(ValueError, match=r'encode returned \[4, 2\] for 4 observations, .* its tokens are \[1\]'):
        train_planner(data, world=Rail(), out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('how, words', [
    (dict(scale=math.nan), 'scale must be a finite number, got nan'), (dict(eta=-3), r'eta must be in \[0, 1\], got -3'), (dict(limit=0), 'limit must be positive, got 0'),
    (dict(haste=-1), 'haste must be positive'), (dict(slack=math.nan), 'slack must be a finite'), (dict(slack=-.1), 'slack must be in'), (dict(horizons=2.5), 'horizons must be an integer')])
def test_options_that_cannot_be_meant_are_refused(how, words):
    with pytest.raises(ValueError, match=words): PlanConfig(**how)


@pytest.mark.parametrize('name, value, words', [
    ('observation', math.nan, 'observation of episode 1, step 2, dimension 1 is nan'), ('action', math.inf, 'action of episode 1, step 2, dimension 1 is inf'),
    ('reward', -math.inf, 'reward of episode 1, step 2 is -inf'), ('goal', math.nan, 'goal of episode 1, step 2, dimension 1 is nan')])
def test_nan_and_infinity_are_said_before_training_with_their_place(data, name, value, words):
    from dataclasses import replace
    field = getattr(data, name).copy()
    field[(data.action_start if name in ('action', 'reward') else data.observation_start)[1] + 2, ...] = np.where(np.arange(max(1, field[0].size)) == field[0].size - 1, value, 0).reshape(field[0].shape)
    for door in (train_planner, fit_world):
        with pytest.raises(ValueError, match=words): door(replace(data, **{name: field}))


@pytest.mark.parametrize('how, words', [(dict(radius=math.nan), 'radius must be a finite number'), (dict(radius=-1), 'radius must be positive'), (dict(longest=math.nan), 'longest must be an integer of at least 4, got nan'),
                                        (dict(minutes=math.nan), 'minutes must be a finite number'), (dict(seed=-1), 'seed must be'), (dict(steps=0), 'steps must be an integer'), (dict(world_steps=0), 'world_steps must be'),
                                        (dict(width=30), 'width 30 must be'), (dict(features=3), 'features come in pairs'), (dict(features=-2), 'features must be an integer'), (dict(depth=math.nan), 'depth must be')])
def test_numbers_that_cannot_be_meant_are_refused_before_training(data, how, words, tmp_path, monkeypatch):
    def trained(*a, **k): raise AssertionError('the world was trained before the number was looked at')
    monkeypatch.setattr('ldp_tut.planner.fit_world', trained)
    with pytest.raises(ValueError, match=words): train_planner(data, **dict(world_steps=1, steps=1, out=tmp_path / 'x', progress=False) | how)
    assert not [*tmp_path.glob('x/*')]


def test_a_record_of_rooms_is_told_what_it_can_become():
    from ldp_tut.data import collect
    rooms = collect('MiniGrid-Empty-5x5-v0', 'wander', 2, progress=False)
    for door in (train_planner, fit_world):
        with pytest.raises(ValueError, match="expected Trajectories, got Episodes: rooms become pictures by `as_frames"): door(rooms)


def test_three_kinds_of_reward(data):
    row = np.zeros((10, 1), np.float32)
    end = Rewards.of(Trajectories(row, row[:9], [0] * 8 + [0.7], [9], [True]))
    each = Rewards.of(Trajectories(row, row[:9], [1] * 9, [9], [True]))
    assert (end.kind, each.kind, each.low, each.high) == ('end', 'step', 0., 1.)
    goal = Rewards.of(data)
    assert goal.kind == 'goal' and 0.1 < goal.radius < 0.2
    at = dict(observation=np.zeros((1, 2, 3), np.float32))
    assert goal.of_tokens(at, np.array([[0., 0.1]])).tolist() == [[1., 1.]] and goal.of_tokens(at, np.array([[0., 0.3]])).sum() == 0


class Walk(gym.Env):
    "A line of nine places; every step pays, and an end is off the line."
    observation_space, action_space = gym.spaces.Box(0, 8, (1,), np.float32), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None): super().reset(seed=seed); self.x = 4; return self._obs(), {}
    def _obs(self): return np.array([self.x], np.float32)
    def step(self, a): self.x += 2 * int(a) - 1; return self._obs(), 1., not 0 <= self.x <= 8, False, {}


def test_rewards_that_are_all_alike_and_goals_that_nobody_asked_for_are_refused():
    row = np.zeros((21, 2), np.float32)
    alike = Trajectories(row, row[:20], np.ones(20), [20], [False])
    with pytest.raises(ValueError, match='every step pays 1 and no episode ended'): Rewards.of(alike)
    assert Rewards.of(replace(alike, terminated=np.array([True]))).kind == 'step'
    world = VectorWorld(Spaces.of(alike))
    with pytest.raises(ValueError, match='data without goals'): world.read(dict(observation=row[:2], desired_goal=row[:2]))
    class Plain(nn.Module):
        latent_shape = (2,)
        def encode(self, seen): return seen.state
    check_world(Plain(), alike)   # without any weights


def test_a_radius_that_the_data_do_not_show_is_asked_for(data):
    "Rewards that are never nought, and goals that are not the first numbers of an observation."
    with pytest.raises(ValueError, match='100% of all steps are rewarded'): Rewards.of(replace(data, reward=np.exp(-data.reward)))
    turned = replace(data, observation=np.concatenate([np.ones((len(data.observation), 2)), data.observation], 1).astype(np.float32))
    with pytest.raises(ValueError, match='Put the place first'): Rewards.of(turned)
    assert Rewards.of(turned, radius=.2).radius == .2 and Rewards.of(data).radius < .2


def test_options_nobody_knows_and_plans_of_another_kind_are_refused_before_training(data):
    with pytest.raises(ValueError, match='train_planner knows the options radius, .*, got stpes'): train_planner(data, stpes=10)
    with pytest.raises(ValueError, match="plan must be a PlanConfig, got {'scale': 1.0}"): train_planner(data, plan=dict(scale=1.))


def test_an_episode_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr('ldp_tut.worlds.NO_LIMIT', 7)
    class Endless(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (1,), np.float32), gym.spaces.Discrete(2)
        def reset(self, *, seed=None, options=None): return np.zeros(1, np.float32), {}
        def step(self, action): return np.zeros(1, np.float32), 0., False, False, {}
    class Still:
        def begin(self, seeds): pass
        def keep(self, rows): pass
        def act_batch(self, obs): return np.zeros(len(obs), int)
    assert play(Still(), Endless, 2, progress=False)['mean_steps'] == 7
    with pytest.raises(ValueError, match='most must be an integer of at least 1, got 0'): play(Still(), Endless, 2, most=0)


def test_playing_counts_what_happened():
    class Always:
        card = dict(rewards=dict(kind='step'))
        def begin(self, seeds): pass
        def keep(self, rows): pass
        def act_batch(self, obs): return np.ones(len(obs), int)
    r = play(Always(), Walk, 2, progress=False)
    assert r['mean_steps'] == 5 and r['mean_return'] == 5 and r['success'] == 0
    assert play(Always(), Walk, 2, most=3, progress=False)['success'] == 1


class Tired(Walk):
    "The same line, but each step pays half a point."
    def step(self, a): obs, _, *rest = super().step(a); return obs, .5, *rest


class Sure:
    "Says what it was told to say, and turns back before the end of the line."
    def __init__(self, said, turns=True, **rewards): self.said, self.turns, self.card = said, turns, dict(rewards=rewards)
    def begin(self, seeds): self.plan = FakePlan(torch.full((len(seeds),), self.said), torch.full((len(seeds), 2), 6.))
    def keep(self, rows): self.plan = FakePlan(self.plan.reward[rows], self.plan.times[rows])
    def act_batch(self, obs): return (obs[:, 0] < 6).astype(int) if self.turns else np.ones(len(obs), int)


class FakePlan:
    def __init__(self, reward, times): self.reward, self.times, self.at = reward, times, torch.full((len(times),), times.shape[1] - 1)


@pytest.mark.parametrize('world, said, turns, rewards, executed, words', [
    (Walk, .97, False, dict(kind='step'), 0., 'farther apart than the .* that 40 episodes explain: the plans promise what does not happen'), (Walk, .97, True, dict(kind='step'), 1., ''),
    (Walk, .3, True, dict(kind='step'), 1., 'the plans expect less than what happens'), (Tired, .5, True, dict(kind='step', low=0., high=1.), .5, ''), (Tired, .97, True, dict(kind='step', low=.5, high=1.), 0., 'promise'),
    (Walk, math.nan, True, dict(kind='step'), 1., '')])
def test_a_report_of_played_episodes_warns_where_predicted_and_executed_reward_part(world, said, turns, rewards, executed, words):
    report = play(Sure(said, turns, **rewards), world, 40, most=10, progress=False)
    assert report['executed_reward'] == pytest.approx(executed) and re.search(words, report['warning']) and (words or report['warning'] == '')


# Nothing waits for the device: on a fake one, whatever reads back or mixes devices raises.


@pytest.fixture()
def boards_are_checked_elsewhere(monkeypatch):
    "A board lives on the host and is looked at once, before the loop; the fake mode would take that for a read-back."
    from ldp_tut import ddpm, planner as farfuture
    K = DenoiserConfig(3).levels
    ready = {m: farfuture.full_board(1, K, m) for m in {PlanConfig().iterations, PlanConfig().far_iterations}}
    monkeypatch.setattr(farfuture, 'full_board', lambda H, K, M: ready[M])
    monkeypatch.setattr('ldp_tut.board.full_board', lambda H, K, M: ready[M])  # for `settling_board`
    monkeypatch.setattr(farfuture, 'context_board', lambda board: torch.nn.functional.pad(board, (1, 0)))
    whole = lambda board, x: board.to(x.device)[:, None].expand(-1, len(x), -1)
    monkeypatch.setattr(ddpm, '_fit_together', lambda x, board, times, schedule: (whole(board, x), times, [True] * (len(board) - 1)))
    monkeypatch.setattr(ddpm, '_check_noise', lambda *a: True)


@pytest.fixture()
def parts():
    spaces = Spaces('vector', (3,), goal=2, actions=4)
    config = DenoiserConfig(3, 2, 4, longest=30, width=32, depth=1, features=4)
    return VectorWorld(spaces, features=4), VectorDenoiser(config)


@pytest.mark.parametrize('when', sorted(set(WHEN) - {'arrival'}))  # that one asks a denoiser of maps: tests/test_field.py
def test_a_whole_plan_never_reads_back_from_the_device(parts, when, boards_are_checked_elsewhere):
    with FakeTensorMode(allow_non_fake_inputs=True):
        world, net = map(faked, parts)
        planner = FarFuturePlanner(world, net, PlanConfig(horizons=3, candidates=2, when=when))
        plan = planner.plan_from(torch.empty(5, 3, device=DEVICE), torch.empty(5, 2, device=DEVICE), list(range(5)))
        assert plan.z.shape == (5, 8, 3) and plan.z.device.type == DEVICE == plan.times.device.type
        now = torch.empty(5, 3, device=DEVICE)
        assert world.action(now, plan.z[:, 1], plan.times[:, 1].long(), plan.scene).shape == (5, 4)


def test_a_plan_in_maps_and_its_training_never_read_back_from_the_device(boards_are_checked_elsewhere):
    kinds = np.arange(8, dtype=np.uint8).reshape(4, 2)
    world = SymbolWorld(Spaces('symbols', (5, 5, 2), 0, 4, kinds=4), kinds)
    net = FieldDenoiser(FieldConfig(kinds=4, actions=4, longest=6, width=8), world.codes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        world, net = faked(world), faked(net)
        make = lambda *s: torch.empty(*s, device=DEVICE)
        k = torch.empty(4, 3, dtype=torch.long, device=DEVICE)
        p = net(make(4, 3, 8, 5, 5), k, make(4, 3), make(4, 8, 5, 5), (1, 4))
        (p.x0.sum() + sum(h.sum() for h in p.heads.values())).backward()
        assert all(q.grad.device.type == DEVICE for n, q in net.named_parameters() if q.grad is not None)
        planner = FarFuturePlanner(world, net, PlanConfig(horizon=6, tokens=1, near=1, when='soonest', candidates=2, votes=2))
        plan = planner.plan_from(make(3, 8, 5, 5), make(3, 8, 5, 5), [1, 2, 3])
        assert plan.z.shape == (3, 3, 8, 5, 5) and plan.z.device.type == DEVICE


def test_a_training_update_never_reads_back_from_the_device(parts, data):
    with FakeTensorMode(allow_non_fake_inputs=True):
        world, net = map(faked, parts)
        make = lambda *s: torch.empty(*s, device=DEVICE)
        x, k = make(6, 4, 3), torch.empty(6, 4, dtype=torch.long, device=DEVICE)
        p = net(x, k, make(6, 4), make(6, 2))
        (p.x0.sum() + sum(h.sum() for h in p.heads.values())).backward()
        assert all(q.grad is not None and q.grad.device.type == DEVICE for q in net.parameters())


@pytest.mark.parametrize('fault', ['read back', 'mixed devices'])
def test_the_fake_device_catches_faults(parts, fault, boards_are_checked_elsewhere):
    with FakeTensorMode(allow_non_fake_inputs=True):
        world, net = map(faked, parts)
        right = net.forward
        def wrong(x, k, times, scene):
            if fault == 'read back': float(x.sum())
            else: x = x + torch.empty(x.shape)
            return right(x, k, times, scene)
        net.forward = wrong
        planner = FarFuturePlanner(world, net, PlanConfig(horizons=2, candidates=1))
        with pytest.raises((DataDependentOutputException, RuntimeError), match='_local_scalar_dense|device'):
            planner.plan_from(torch.empty(2, 3, device=DEVICE), torch.empty(2, 2, device=DEVICE), [0, 1])


@pytest.fixture(scope='module', params=['medium', 'large'])
def maze(request):
    pytest.importorskip('gymnasium_robotics')
    return request.param


def test_the_shipped_maze_planners_want_to_be_at_the_goal(maze):
    from ldp_tut.chain_planner import load_pretrained
    from ldp_tut.data import make_any
    agent = load_pretrained(f'pointmaze-{maze}', 'cpu')
    env = make_any(agent.card['env_id'])
    obs = [env.reset(seed=1_500_000 + i)[0] for i in range(6)]
    obs = {n: np.stack([o[n] for o in obs]) for n in obs[0]}
    plan = agent.planner.plan(obs, range(6))
    off = np.linalg.norm(agent.planner.world.decode(plan.z[:, -1])[:, :2].numpy() - obs['desired_goal'], axis=1)
    aimless = load_pretrained(f'pointmaze-{maze}', 'cpu', scale=0.).planner.plan(obs, range(6))
    assert (off <= 0.5).sum() >= 5 and plan.reward.mean() > 0.8 > aimless.reward.mean() + 0.2
    env.close()


def test_the_rows_of_the_maze_table_can_be_had_again(maze):
    "The three shortest walks of the first sixteen, and the card's claim is one that can be checked."
    import csv
    from ldp_tut.book import asset
    from ldp_tut.chain_planner import load_pretrained
    agent = load_pretrained(f'pointmaze-{maze}', 'cpu')
    with open(asset('planner_mazes.csv')) as f: rows = [r for r in csv.DictReader(f) if (r['maze'], r['method']) == (maze, 'planner')]
    assert [int(r['seed']) for r in rows] == list(range(1_000_000, 1_000_256))
    for r in sorted((r for r in rows[:16] if r['success'] == 'True'), key=lambda r: int(r['steps']))[:3]:
        again = play(agent, agent.card['env_id'], 1, int(r['seed']), progress=False)['rows'][0]
        assert again['success'] and abs(again['steps'] - int(r['steps'])) <= 0.1 * int(r['steps']), 'other kernels may round otherwise'
    own = agent.card['metrics']
    assert own['episodes'] >= 16 and own['env'] == agent.card['env_id'] and 0.8 < own['success'] <= 1
