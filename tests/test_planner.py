"The planner's promises that do not depend on how well it was trained, and the shipped checkpoint's that do."
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldp_tut.data import Windows, collect
from ldp_tut.envs import FORWARD, GridTwin, distance_to, layouts, make_env, paint_agent
from ldp_tut.planner import (FarFuturePlanner, PlanConfig, PlannerAgent, PlannerConfig, PlannerModel, Recipe, between_times, evaluate, judge_plan,
                             lawful, load_pretrained, save_agent, train_planner)
from ldp_tut.train import CheckpointError, save_checkpoint
from ldp_tut.world import WorldConfig, WorldModel, decode_pose, world_batches, world_loss

ENV = 'MiniGrid-SimpleCrossingS9N1-v0'
SMALL = PlanConfig(horizons=(2, 5, 9), candidates=2, far_iterations=3, iterations=3, tokens=5)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    m = PlannerModel(PlannerConfig(env_id=ENV, world=WorldConfig(width=9, height=9, latent_dim=8), width=32, depth=2, heads=2))
    m.world.freeze()
    return m.eval()


@pytest.fixture(scope='module')
def obs(): return layouts(ENV, range(6)).observe()


@pytest.mark.parametrize('eta', [0., 1.])
def test_a_plan_is_the_same_alone_and_in_a_batch(model, obs, eta):
    planner = FarFuturePlanner(model, replace(SMALL, eta=eta))
    many = planner.plan(obs, range(6))
    for i in (0, 5):
        one = planner.plan(obs[i:i + 1], [i])
        assert int(one.at) == int(many.at[i])
        for name in ('z', 'reward', 'action', 'times'): torch.testing.assert_close(getattr(one, name)[0], getattr(many, name)[i], atol=2e-4, rtol=1e-3)


def test_context_and_far_token_hold_exactly_at_every_iteration(model, obs):
    planner = FarFuturePlanner(model, SMALL)
    plan = planner.plan(obs[:1], [0], film=True)
    z0 = model.world.encode(obs[:1])
    assert torch.equal(plan.z[:, 0], z0)
    settled = [f for f in plan.film if f.times.shape[1] > 2]
    assert len(plan.film) == SMALL.far_iterations + SMALL.iterations and len(settled) == SMALL.iterations
    for f in settled: assert (f.level[:, 0] == 0).all() and (f.level[0, plan.at] == 0).all()


def test_the_guide_moves_the_far_token_and_scale_zero_does_not(model, obs):
    scene, z0 = model.observe(obs), model.world.encode(obs)
    far, noise = torch.full((6,), 5), torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    run = lambda scale: FarFuturePlanner(model, replace(SMALL, scale=scale)).far_tokens(z0, scene, far, noise)[0]
    assert torch.equal(run(0.), run(0.)) and not torch.allclose(run(0.), run(5.))


def test_the_nearest_credible_horizon_wins(model):
    planner = FarFuturePlanner(model, replace(SMALL, believe=.5))
    belief = torch.tensor([[.1, .6, .9], [.1, .2, .3], [.8, .1, .9]])
    assert planner.choose(belief).tolist() == [1, 1, 0]


def test_times_of_a_plan_rise_and_hold_the_far_token():
    far = torch.tensor([1, 2, 7, 30, 48])
    times = between_times(far, 10)
    assert times.shape == (5, 12) and (times[:, 0] == 0).all() and (times.diff(dim=1) > 0).all()
    assert all(n in row for n, row in zip(far.tolist(), times.tolist()))


def test_lawful_is_what_the_twin_does():
    rooms = layouts(ENV, range(40))
    g = torch.Generator().manual_seed(0)
    before = rooms.pose.clone()
    rooms.step(torch.randint(0, 3, (40,), generator=g))
    assert lawful(rooms.cells, before, rooms.pose, torch.ones(40, dtype=torch.long)).all()
    jump = before.clone(); jump[:, 2] = (jump[:, 2] + 2) % 4
    assert not lawful(rooms.cells, before, jump, torch.ones(40, dtype=torch.long)).any()
    assert lawful(rooms.cells, before, jump, torch.full((40,), 2)).all()


def test_the_agent_is_reproducible_and_drives_like_gymnasium(model):
    agent, env = PlannerAgent(model, SMALL), make_env(ENV)
    def walk(seed):
        obs, _ = env.reset(seed=3); agent.reset(seed=seed); actions = []
        for _ in range(6):
            actions.append(agent.act(obs)); obs, *_ = env.step(actions[-1])
        return actions
    assert walk(0) == walk(0) and all(isinstance(a, int) and 0 <= a < 7 for a in walk(1))


def test_observations_are_checked_at_the_door(model):
    agent = PlannerAgent(model, SMALL)
    good, _ = make_env(ENV).reset(seed=0)
    image = good['image'].astype(float)
    with pytest.raises(ValueError, match='partial view.*FullyObsWrapper'): agent.act(np.zeros((7, 7, 3)))
    with pytest.raises(ValueError, match=r'reads grids \[9, 9, 3\], got \[19, 19, 3\]'): agent.act(np.zeros((19, 19, 3)))
    with pytest.raises(ValueError, match='NaN'): agent.act(np.where(image == 2, np.nan, image))
    with pytest.raises(ValueError, match='vocabulary'): agent.act(image + 0.5)
    with pytest.raises(ValueError, match='vocabulary'): agent.act(image * 40)
    with pytest.raises(ValueError, match='exactly one agent'): agent.act(np.ones((9, 9, 3)))


def test_checkpoints_round_trip_and_misfits_are_refused(model, tmp_path):
    path = save_agent(tmp_path / 'a.safetensors', PlannerAgent(model, SMALL), dict(note='test'))
    again = load_pretrained(str(path), 'cpu')
    assert again.config == SMALL and again.env_id == ENV and again.card['note'] == 'test'
    for (n, a), b in zip(model.state_dict().items(), again.planner.model.state_dict().values()): torch.testing.assert_close(a.float(), b.float(), atol=2e-2, rtol=1e-2)
    assert load_pretrained(str(path), 'cpu', scale=0.).config.scale == 0
    with pytest.raises(ValueError, match='unknown planning option'): load_pretrained(str(path), 'cpu', speed=3)
    with pytest.raises(CheckpointError, match='no shipped checkpoint'): load_pretrained('nothing')
    save_checkpoint(tmp_path / 'b.safetensors', dict(w=torch.zeros(2)), dict(kind='demo'))
    with pytest.raises(CheckpointError, match='not a far-future planner'): load_pretrained(str(tmp_path / 'b.safetensors'))


def test_the_whole_recipe_runs_and_resumes(tmp_path):
    recipe = Recipe(env_id='MiniGrid-Empty-6x6-v0', episodes=20, world_steps=6, steps=6, batch=8, width=32, depth=1, longest=12, precision='no')
    agent, first = train_planner(recipe, tmp_path, 'cpu', progress=False)
    again, second = train_planner(recipe, tmp_path, 'cpu', progress=False)
    assert len(first['planner']) == 6 and second['planner'] == [], 'a finished run has nothing left to do'
    for a, b in zip(agent.planner.model.parameters(), again.planner.model.parameters()): assert torch.equal(a, b)
    with pytest.raises(ValueError, match='holds other data'): train_planner(replace(recipe, episodes=21), tmp_path, 'cpu', progress=False)


def test_a_world_model_learns_a_small_world():
    "Two hundred steps on an empty room: the decoder must find the agent far more often than chance (one in 64 poses)."
    windows = Windows(collect('MiniGrid-Empty-6x6-v0', 'wander', 100, seed=0, progress=False))
    from ldp_tut.train import TrainConfig, fit
    torch.manual_seed(0)
    world = WorldModel(WorldConfig(width=6, height=6, latent_dim=8))
    batches = world_batches(windows, 64, 16)
    world.balance(batches(0, torch.Generator().manual_seed(0))['frames'].flatten(0, 1))
    fit(world, world_loss, batches, TrainConfig(steps=300, lr=5e-3, warmup=20), device='cpu', progress=False)
    world.freeze()
    frames = windows.frames(np.arange(100), np.minimum(3, windows.length))
    cells, *_ = world.decode(world.encode(frames)[:, None], world.look(windows.frames(np.arange(100), np.zeros(100, int))))
    pose = torch.from_numpy(windows.gather('pose', np.arange(100), np.minimum(3, windows.length)).astype('int64'))
    assert (decode_pose(cells, 6)[:, 0] == pose).all(-1).float().mean() > 0.5


def test_the_shipped_planner_is_better_than_wandering():
    "Forty-eight held-out rooms in the real environment (sixteen vary too much for a bar like this); a wanderer reaches about one goal in five within the time limit."
    report = evaluate(load_pretrained('fourrooms', 'cpu'), 48, progress=False)
    assert report['success'] >= 0.4
    assert report['lawful_rate'] >= 0.5
