"The denoiser of maps: generic, exact where it must be, and a planner with it."
import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldp_tut.cli import main
from ldp_tut.data import Trajectories, as_frames, collect
from ldp_tut.envs import draw_pixels, layouts, room_seeds, shortest_plan
from ldp_tut.field import FieldConfig, FieldDenoiser, each_once, field_offsets, field_parts, steps_said
from ldp_tut.maps import kinds_in, make_symbol_world
from ldp_tut.planner import Agent, FarFuturePlanner, PlanConfig, load_agent, save_agent, train_planner
from ldp_tut.rooms import Cloning, in_pixels, next_pictures_lawful, rooms_of, shown_to, walk_rooms
from ldp_tut.worlds import Spaces, fit_world

G = lambda s=0: torch.Generator().manual_seed(s)
CODE = Path(__file__).resolve().parent.parent / 'ldp_tut'


def walkers(episodes=12, steps=14, size=5, seed=0, goal=True):
    "Two things on a torus without walls: one goes where it is told, one drifts by itself. Made up for this test."
    r, frames, action, reward, length, ended = np.random.default_rng(seed), [], [], [], [], []
    for _ in range(episodes):
        me, other, T = r.integers(0, size, 2), r.integers(0, size, 2), steps
        def draw():
            f = np.zeros((size, size, 2), np.uint8); f[..., 1] = 3
            f[0, 0] = (9, 9); f[tuple(other)] = (7, 3); f[tuple(me)] = (5, 200)
            return f
        seen, acts = [draw()], []
        for t in range(steps):
            a = int(r.integers(0, 4)); acts.append(a)
            me = (me + [(0, 1), (1, 0), (0, -1), (-1, 0)][a]) % size
            other = (other + r.integers(-1, 2, 2)) % size
            seen.append(draw())
            if goal and not me.any(): break
        frames += seen; action += acts; length.append(len(acts)); ended.append(goal and not me.any())
        reward += [0.] * (len(acts) - 1) + [float(ended[-1])]
    return Trajectories(np.array(frames), np.array(action), np.array(reward), np.array(length), np.array(ended), actions=4)


@pytest.fixture(scope='module')
def parts():
    data = walkers(40)
    world, _ = fit_world(data, 3, 30, make_symbol_world(data), device='cpu', progress=False)
    good = data.terminated
    net, loss, batches = field_parts(world, data, good, 6, 10, width=16)
    return data, world, net, loss, batches


@pytest.mark.parametrize('module', ['maps', 'field'])
def test_they_name_no_environment_and_nothing_that_moves(module):
    text = (CODE / f'{module}.py').read_text().split('# %%', 2)[2]
    words = re.findall(r'[a-z]+', re.sub(r'""".*?"""|"[^"\n]*"|#.*', '', text, flags=re.S).lower())
    assert not set(words) & {'minigrid', 'gridtwin', 'agent', 'wall', 'door', 'mover', 'goal', 'key', 'neighbours', 'exact', 'envs'}


def test_every_kind_has_a_name_and_comes_back(parts):
    data, world = parts[:2]
    assert len(world.kinds) == len(np.unique(data.observation.reshape(-1, 2), axis=0)) == Spaces.of(data).kinds
    seen = world.read(data.observation[:9])
    assert (world.decode(world.encode(seen)) == seen.state).all()
    assert torch.allclose(world.codes.pow(2).sum(-1), torch.tensor(8.))


def test_kinds_are_found_in_every_frame_and_not_in_a_sample():
    frames = np.zeros((30_001, 2, 2, 2), np.uint8); frames[-1, 1, 1] = (3, 255)
    assert kinds_in(frames, chunk=1000).tolist() == [[0, 0], [3, 255]]


def test_what_is_worked_out_once_is_what_would_be_said_each_time(parts):
    _, world, net, *_ = parts
    net = net.eval()
    z0 = torch.randn(2, 8, 5, 5, generator=G())
    x = torch.randn(6, 4, 8, 5, 5, generator=G(1)); x[:, 0] = z0.repeat_interleave(3, 0)
    k = torch.tensor([0, 40, 70, 0]).expand(6, 4)
    times = torch.tensor([[0., 1, 2, n] for n in (3, 4, 6, 6, 5, 3)])
    with torch.no_grad():
        plain = net(x, k, times, z0)
        ready = net.prepare_way(x[:, -1], times[:, -1].long(), None, net.prepare_now(z0, z0))
        quick = net(x, k, times, ready)
    assert torch.allclose(plain.x0[:, 1:3], quick.x0[:, 1:3], atol=1e-4)
    for name in quick.heads: assert torch.allclose(plain.heads[name][:, 1:3], quick.heads[name][:, 1:3], atol=1e-4)
    assert (quick.x0[:, 0] == x[:, 0]).all() and (quick.x0[:, 3] == x[:, 3]).all()


def test_one_row_alone_is_the_row_of_many(parts):
    _, world, net, *_ = parts
    x, k = torch.randn(5, 2, 8, 5, 5, generator=G()), torch.full((5, 2), 30)
    times = torch.tensor([[0., n] for n in (1, 5, 2, 6, 3)])
    many = net(x, k, times, x[:, 0])
    for i in range(5):
        one = net(x[i:i + 1], k[i:i + 1], times[i:i + 1], x[i:i + 1, 0])
        assert torch.allclose(one.x0, many.x0[i:i + 1], atol=1e-4)


def test_equal_gaps_are_the_gaps_of_every_row(parts):
    net = parts[2]
    x, k = torch.randn(3, 3, 8, 5, 5, generator=G()), torch.full((3, 3), 50)
    times = torch.tensor([0., 2, 5]).expand(3, 3)
    a, b = net(x, k, times, x[:, 0]), net(x, k, times, x[:, 0], (2, 3))
    assert torch.allclose(a.x0, b.x0, atol=1e-5)


def test_what_is_n_steps_away_hears_of_nothing_farther_than_its_own_reading_and_n_cells():
    "A change far off must not be felt early, but for what all cells compete for."
    config = FieldConfig(kinds=3, longest=8, width=8)
    net = FieldDenoiser(config, torch.randn(3, 8, generator=G())).double().eval()
    with torch.no_grad():
        field, fine = torch.randn(1, 8, 1, 31, generator=G(1)).double(), torch.zeros(1, 16, 1, 31).double()
        for age in net.age: age.norm = torch.nn.Identity()   # its mean is over the whole picture
        other = field.clone(); other[..., 0] += 5
        for n in (1, 4):
            a, b = net.later(0, field, fine, n), net.later(0, other, fine, n)
            moved = (a != b).any(0).any(0).any(0)
            assert moved.nonzero().max() == n


def test_evidence_is_bayes_rule(parts):
    net = parts[2]
    x, k = torch.randn(1, 1, 8, 2, 2, generator=G()), torch.tensor([[60]])
    a = net.schedule.alpha_bar[60]
    log = torch.stack([-(x[0, 0].movedim(0, -1) - a.sqrt() * c).pow(2).sum(-1) / (2 * (1 - a)) for c in net.codes])
    assert torch.allclose(net.evidence(x, k)[0, 0], log.log_softmax(0).clamp(min=-20), atol=1e-4)


def test_offsets_rise_from_now_to_no_farther_than_they_may():
    for seed in range(200):
        tokens, far = 2 + seed % 5, 3 + seed % 40
        tokens = min(tokens, far + 1)
        o = field_offsets(tokens, far, G(seed))
        assert o[0] == 0 and len(o) == tokens and all(b > a for a, b in zip(o, o[1:])) and o[-1] <= max(far, tokens - 1)


def test_first_passages_are_those_of_the_record(parts):
    data, world, _, _, batches = parts
    pick = torch.arange(0, len(data.action), 7)
    b = batches.window((0, 1, 4), pick)
    for row, at in enumerate(pick.tolist()):
        e = int(np.searchsorted(np.cumsum(data.length), at, side='right')); s = at - data.action_start[e]
        walk = data[e].observation
        for column, off in ((1, 1), (2, 4)):
            shown = walk[min(s + off, len(walk) - 1)]
            first = next(t for t in range(1, off + 1) if (walk[min(s + t, len(walk) - 1)] == shown).all())
            assert b['first'][row, column] == first


def test_training_learns_and_a_bigger_picture_is_read(parts):
    data, world, *_ = parts
    agent = train_planner(data, steps=60, world=world, longest=6, width=16, device='cpu', progress=False)
    h = [r['denoise'] for r in agent.history]
    assert np.mean(h[-10:]) < 0.5 * np.mean(h[:5]) and agent.card['denoiser'] == 'field'
    big = np.tile(data.observation[:2], (1, 2, 2, 1))
    assert agent.begin([0, 1]).act_batch(big).shape == (2,)


def test_an_agent_of_maps_is_saved_and_loaded_whole(parts, tmp_path):
    data, world, net, *_ = parts
    agent = Agent(FarFuturePlanner(world, net, PlanConfig(horizon=6, tokens=1, near=1, votes=2, when='soonest', candidates=2)), {})
    save_agent(tmp_path / 'a.safetensors', agent)
    again = load_agent(tmp_path / 'a.safetensors', 'cpu')
    obs = data.observation[:3]
    assert again.card['denoiser'] == 'field'
    save_agent(tmp_path / 'b.safetensors', again)
    twice = load_agent(tmp_path / 'b.safetensors', 'cpu')
    assert (again.begin([1, 2, 3]).act_batch(obs) == twice.begin([1, 2, 3]).act_batch(obs)).all()


def test_what_maps_are_not_trained_for_is_refused_before_training():
    data = walkers(6)
    data.reward[:] = np.random.default_rng(0).random(len(data.reward))
    with pytest.raises(ValueError, match='end well'): train_planner(data, steps=2, longest=6, device='cpu', progress=False)
    world = make_symbol_world(walkers(6))
    with pytest.raises(ValueError, match='this world was made'): world.read(np.zeros((5, 5, 3), np.uint8))


def test_steps_said_is_smooth_and_never_explodes():
    v = torch.linspace(-3, 40, 500, requires_grad=True)
    s = steps_said(v); s.sum().backward()
    assert (s.diff() > 0).all() and v.grad.max() <= np.exp(4) + 1e-3


def test_a_plan_depends_on_its_own_seed_alone_and_arrival_asks_the_denoiser(parts):
    data, world, net, *_ = parts
    planner = FarFuturePlanner(world, net, PlanConfig(horizon=6, tokens=1, near=1, when='arrival', slack=3., candidates=2, eta=1.))
    obs = data.observation[[0, 3, 5]]
    many = planner.plan(obs, [7, 8, 9])
    one = planner.plan(obs[1:2], [8])
    assert torch.allclose(many.z[1], one.z[0], atol=1e-4) and many.times[1].tolist() == one.times[0].tolist()
    log = net.arrivals(world.encode(world.read(obs)), many.z[:, -1:], net.prepare_now(*[world.encode(world.read(obs))] * 2))
    assert log.shape == (3, 1, 6) and (log <= 1e-4).all()
    first = (log >= log.amax(2, keepdim=True) - 3).int().argmax(2) + 1
    assert many.times[:, -1].tolist() == first[:, 0].clamp(1).tolist()


def test_arrival_is_refused_where_the_denoiser_cannot_say(parts):
    class Mute: schedule, longest = parts[2].schedule, 6
    with pytest.raises(ValueError, match='arrivals'): FarFuturePlanner(parts[1], Mute(), PlanConfig(when='arrival'))


def test_the_chance_from_an_imagined_picture_is_that_of_a_seen_one(parts):
    data, world, net, *_ = parts
    z = world.encode(world.read(data.observation[[0, 3, 5, 0]]))
    far = world.encode(world.read(data.observation[[4, 6, 9, 4]]))
    log, steps = net.arrivals(z, far[:, None], net.prepare_now(z, z))[:, 0], torch.tensor([2, 5, 6, 2])
    said = net.chance_from(z + 0.05 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), far, steps)
    assert torch.allclose(said, log[torch.arange(4), steps - 1], atol=1e-4) and said[0] == said[3], 'noise on a code is forgotten'
    assert torch.allclose(net.chance_from(z[1:2], far[1:2], steps[1:2]), said[1:2], atol=1e-4)
    assert net.chance_from(z, far, torch.tensor([0, 1, -1, 0])).ne(0).tolist() == [False, True, False, False]


def test_a_share_of_windows_comes_to_an_end(parts):
    "As many as asked, of moments before ends alone, all alike; ends are overstated by one factor at every horizon."
    data, world, *_ = parts
    _, _, batches = field_parts(world, data, data.terminated, 6, 10, width=16)
    every = torch.arange(len(batches.episode)).repeat(40)
    assert batches.ending == 0
    left = lambda at: batches.length[batches.episode[at]] - 1 - batches.start[at]
    for share in (1., 0.25):
        batches.ending = share
        moved = batches.to_ends(every, G(1))
        assert abs((moved != every).float().mean() - share) < 0.05
        if share < 1: continue
        assert batches.ends[batches.episode[moved]].all() and ((left(moved) >= 0) & (left(moved) < 6)).all()
    seen, g = torch.zeros(2, 7, 2), G(2)  # windows, and those that show an end, by how far they look
    for drawn, step in itertools.product((0, 1), range(400)):
        batches.ending = float(drawn)
        shown = (b := batches(step + 100, g))['termination'][:, -1]
        seen[drawn, int(b['times'][0, -1])] += torch.tensor([len(shown), shown.sum()])
    rate = seen[..., 1] / seen[..., 0]
    over = (rate[1] / rate[0])[2:6]
    assert over.min() > 1.5 and over.max() < 1.15 * over.min(), 'sooner ends would seem nearer than they are'
    assert torch.isfinite(batches.window((0, 6), moved)['first']).all()


def test_cloning_asks_the_action_head_alone_and_tries_something_else_when_it_doubts(parts):
    data, world, net, *_ = parts
    agent, obs = Agent(FarFuturePlanner(world, net)), data.observation[[0, 3, 5]]
    sure, doubts, drawn = Cloning(agent), Cloning(agent, 50.), Cloning(agent, sample=True)
    for walker in (sure, doubts, drawn): walker.begin(range(3))
    first = sure.act_batch(obs)
    assert np.array_equal(first, sure.act_batch(obs)), 'without doubt always the same'
    assert np.array_equal(first, doubts.act_batch(obs)) and (doubts.act_batch(obs) != first).all()
    doubts.keep([2, 0]), drawn.keep([1])
    again = doubts.act_batch(obs[[2, 0]])
    assert (again != first[[2, 0]]).all() and drawn.act_batch(obs[[1]]).shape == (1,), 'who is left remembers'


def test_rows_are_kept_once_and_all_find_theirs():
    rows = torch.tensor([[1, 2], [3, 4], [1, 2], [0, 9], [3, 4]])
    own, back = each_once(rows)
    assert len(own) == 3 and torch.equal(rows[own][back], rows)


def test_a_way_that_is_judged_best_wins_the_vote(parts):
    data, world, net, *_ = parts
    plan = PlanConfig(horizon=6, tokens=1, near=1, when='arrival', slack=3., candidates=2, eta=1., votes=4, judge='chance')
    obs, seeds = data.observation[[0, 3, 5]], [7, 8, 9]
    alone = FarFuturePlanner(world, net, replace(plan, votes=1, judge='nobody')).plan(obs, seeds)
    class Partial(FieldDenoiser):
        def chance_from(self, z, far, steps): return torch.arange(len(z)).remainder(4).eq(0) * 50.
    partial = Partial(net.config, net.codes)
    partial.load_state_dict(net.state_dict())
    assert torch.allclose(FarFuturePlanner(world, partial, plan).plan(obs, seeds).z, alone.z, atol=1e-4), 'the first way is the only one that counts'
    many, one = (FarFuturePlanner(world, net, plan).plan(o, s) for o, s in ((obs, seeds), (obs[1:2], seeds[1:2])))
    assert torch.allclose(many.first[1], one.first[0], atol=1e-3)
    class Mortal(FieldDenoiser):
        def forward(self, x, k, times, scene, gaps=None):
            said = super().forward(x, k, times, scene, gaps)
            if x.shape[1] == 2 and not k.any(): said.heads['termination'] = 80. * (torch.arange(len(x)) % 8 != 3)[:, None, None].expand(-1, 2, -1) - 40.
            return said
    mortal = Mortal(net.config, net.codes)
    mortal.load_state_dict(net.state_dict())
    free = FarFuturePlanner(world, mortal, replace(plan, judge='ends', free=True))
    with_free = FarFuturePlanner(world, net, replace(plan, judge='ends', free=True))
    assert free.plan(obs, seeds).z.shape == alone.z.shape and not torch.allclose(free.plan(obs, seeds).z[:, 1], with_free.plan(obs, seeds).z[:, 1]), 'the second free token is the only one alive'
    with pytest.raises(ValueError, match='unknown judge'): PlanConfig(judge='me')
    with pytest.raises(ValueError, match='need a judge'): PlanConfig(free=True)
    class Mute: schedule, longest = net.schedule, 6
    with pytest.raises(ValueError, match='chance_from'): FarFuturePlanner(world, Mute(), replace(plan, when='believable'))


def test_a_field_remembers_for_some_rows_and_stands_at_whole_steps():
    data = walkers(20)
    agent = train_planner(data, steps=2, world_steps=2, longest=6, width=8, device='cpu', progress=False)
    world, net = agent.planner.world, agent.planner.denoiser
    obs, seeds = data.observation[:3], [5, 6, 7]
    planner = FarFuturePlanner(world, net, PlanConfig(when='passage', trust=1., scale=0., horizons=2, far_iterations=2, iterations=2, tokens=1, near=1, replan=1))
    first = planner.plan(obs, seeds)
    known = first.z[:, -1].clone()
    known[1] = torch.nan   # one row of three looks for a new far token
    again = planner.plan(obs, seeds, known=known)
    assert torch.equal(again.z[[0, 2], -1], known[[0, 2]]) and torch.allclose(again.z[1, -1], first.z[1, -1], atol=1e-3)
    whole = FarFuturePlanner(world, net, PlanConfig(when='arrival', slack=3., whole_steps=True, tokens=8, near=8, replan=1, iterations=4, far_iterations=2, horizon=6, scale=0.))
    plan = whole.plan(obs, seeds)
    assert (plan.at < plan.z.shape[1] - 1).all(), 'the far token is not the last'
    assert plan.z.norm(dim=2).max() < world.codes.shape[1] ** 0.5 + 1e-3, 'and those after it are means of codes, and no noise'


def test_a_sample_of_the_head_depends_on_its_own_seed(tmp_path):
    data = walkers(20)
    agent = train_planner(data, steps=2, world_steps=2, longest=6, width=8, device='cpu', progress=False)
    clone, obs = Cloning(agent, sample=True), data.observation[:3]
    def drawn(seeds, rows):
        clone.begin(seeds)
        return np.stack([clone.act_batch(obs[rows]) for _ in range(20)], 1)
    many = drawn([8, 9, 10], [0, 1, 2])
    assert np.array_equal(many[1], drawn([9], [1])[0]) and not np.array_equal(drawn([9], [0])[0], drawn([8], [0])[0])


def test_training_goes_on_from_an_agent_with_its_own_codes(tmp_path):
    data = walkers(40)
    how = dict(longest=6, width=16, device='cpu', progress=False)
    train_planner(data, steps=3, world_steps=3, out=tmp_path / 'a', **how)
    first = tmp_path / 'a' / 'agent.safetensors'
    on = train_planner(data, steps=1, out=tmp_path / 'b', start_from=first, lr=1e-12, batch=4, tokens=3, **how)
    old, new = (a.planner for a in (load_agent(first, 'cpu'), on))
    assert torch.equal(old.world.codes, new.world.codes) and torch.equal(old.world.kinds, new.world.kinds)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(old.denoiser.parameters(), new.denoiser.parameters()))
    assert re.fullmatch(r'agent.safetensors [0-9a-f]{16}', on.card['recipe']['start_from'])
    few = walkers(40, goal=False)  # other kinds: nothing ever stands in the corner
    few.observation[:, 1, 1] = (77, 7)
    few.terminated[:], few.reward[few.action_start + few.length - 1] = True, 1.
    with pytest.raises(ValueError, match=r'never seen cells.*\(77, 7\)'): train_planner(few, steps=1, start_from=first, **how)
    few.terminated[:] = False
    with pytest.raises(ValueError, match='the environment ended none'): train_planner(few, steps=1, ends=0.2, out=tmp_path / 'c', **how)
    assert not (tmp_path / 'c').exists()


class Told:
    "Plays what it is told, room by room, and shows plans made up by a test."
    def __init__(self, actions): self.actions = actions
    def begin(self, seeds): self.at, self.rows = 0, list(range(len(seeds)))
    def keep(self, rows): self.rows = [self.rows[r] for r in rows]
    def act_batch(self, obs):
        self.at += 1
        return np.array([(self.actions[r] + [6] * 999)[self.at - 1] for r in self.rows])


def test_rooms_are_walked_beside_the_fewest_steps_there_are():
    env_id, seeds = 'MiniGrid-DoorKey-5x5-v0', range(2_000_000, 2_000_003)
    ways = [shortest_plan(layouts(env_id, [s])) for s in seeds]
    best = walk_rooms(Told([ways[0], [4] * 3 + ways[1], []]), env_id, 3, most=60, progress=False)
    assert [(r['success'], r['steps'], r['optimum']) for r in best['rows']] == [
        (True, len(ways[0]), len(ways[0])), (True, 3 + len(ways[1]), len(ways[1])), (False, 60, len(ways[2]))]
    assert best['success'] == 2 / 3 and best['steps_over_optimum'] == pytest.approx((2 + 3 / len(ways[1])) / 2)
    assert np.isnan(best['lawful_rate']) and best['executed_reward'] == best['success']
    kept = walk_rooms(Told([[]] * 2), env_id, 2, spare=3, most=1, progress=False)
    assert [r['seed'] for r in kept['rows']] == room_seeds(env_id, 2, 2_000_000, 3)


def test_a_next_picture_is_lawful_where_an_action_leads_to_it():
    rooms, world = layouts('MiniGrid-FourRooms-v0', [1, 2]), NoWorld()
    then = rooms_of(rooms, [0, 1])
    then.step(torch.tensor([0, 1]))
    other = rooms_of(rooms, [0, 1])
    for _ in range(2): other.step(torch.tensor([0, 1]))
    show = lambda *twins: SimpleNamespace(times=torch.tensor([[0., 1., 9.]] * 2), z=torch.stack([t.observe() for t in twins], 1))
    assert next_pictures_lawful(world, show(rooms, then, other), rooms).tolist() == [True, True]
    assert next_pictures_lawful(world, show(rooms, rooms, other), rooms).tolist() == [True, True]   # waiting is an action
    assert next_pictures_lawful(world, show(rooms, other, then), rooms).tolist() == [False, False]
    assert rooms.steps.tolist() == [0, 0]


class NoWorld:
    actions = 7
    def decode(self, z): return z


def test_a_learned_planner_is_filmed_in_rooms_and_says_how_it_walked(tmp_path, capsys):
    words = f'plan --checkpoint crossing-field --episodes 1 --most 3 --gif {tmp_path}/film.gif'.split()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert 'steps over optimum' in said and 'lawful steps' in said and 'film.gif  (room 20000' in said
    with Image.open(tmp_path / 'film.gif') as film: assert film.n_frames > 20 and film.size[0] > 200
    assert main(['plan', '--checkpoint', 'pointmaze-medium', '--gif', f'{tmp_path}/no.gif']) == 1
    assert 'films are made of rooms' in capsys.readouterr().err and not (tmp_path / 'no.gif').exists()


def test_rooms_seen_as_pixels_are_walked_judged_and_filmed_as_those_of_symbols(tmp_path, capsys):
    env_id, rooms = 'MiniGrid-Empty-5x5-v0', collect('MiniGrid-Empty-5x5-v0', 'wander', 20, progress=False, longest=12)
    data, patches = in_pixels(rooms, 8)
    eager = as_frames(rooms, 'rgb')
    assert (patches[data.observation[..., 0]].swapaxes(2, 3).reshape(eager.observation.shape) == eager.observation).all()
    said = f'train --env {env_id} --denoiser field --patch 8 --episodes 30 --steps 2 --longest 4 --world-steps 2 --width 8 --batch 2 --out {tmp_path} --json'
    assert main(said.split()) == 0
    agent, twin = load_agent(tmp_path / 'agent.safetensors', 'cpu'), layouts(env_id, [0])
    assert torch.equal(shown_to(agent, twin), draw_pixels(twin.cells, twin.pose)) and torch.equal(shown_to(None, twin), twin.observe())
    plan = agent.planner.plan(shown_to(agent, twin).numpy(), [0])
    turned = rooms_of(twin, [0]); turned.step(torch.tensor([0]))
    then = agent.planner.world.encode(agent.planner.world.read(shown_to(agent, turned).numpy()))
    plan = plan._replace(z=torch.stack([plan.z[:, 0], then], 1), times=torch.tensor([[0., 1.]]))
    assert next_pictures_lawful(agent.planner.world, plan, twin).all()
    assert walk_rooms(agent, env_id, 2, most=3, progress=False)['episodes'] == 2
    said = f'plan --checkpoint {tmp_path}/agent.safetensors --episodes 1 --most 3 --gif {tmp_path}/a.gif --votes 2 --iterations 2 --far-iterations 2'
    assert main(said.split()) == 0 and Image.open(tmp_path / 'a.gif').n_frames > 3
