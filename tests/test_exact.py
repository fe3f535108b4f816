"The planner's promises that do not depend on how well it was trained, and the shipped checkpoint's that do."
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldp_tut.data import Windows, collect
from ldp_tut.ddpm import add_noise
from ldp_tut.envs import AGENT, CLOSED, DOOR, EMPTY, GOAL, LAVA, OPEN, WALL, GridTwin, layouts, make_env, paint_agent, read_grid, shortest_plan, split_agent
from ldp_tut.bench import ArgMaxPlanner, Rooms, SearchAgent, evaluate, lawful, lawful_step, promise_warning, reachable, steps_to
from ldp_tut.chain_planner import Arrival, ChainAgent, ChainPlanner, ChainWorld, PlanConfig, load_pretrained, open_env, read_image, save_agent, single_steps, without_doubtful_steps
from ldp_tut.chain_training import Recipe, check_goal, plan_levels, planner_batches, planner_loss, train_planner
from ldp_tut.exact import ChainConfig, ChainDenoiser, evidence, messages, one_step, one_step_back
from ldp_tut.checkpoints import CheckpointError, save_checkpoint
from ldp_tut.planner import ORDERS, FarFuturePlanner, settling_board
from ldp_tut.planner import between_times as spaced
from ldp_tut.world import NEIGHBOURS, WorldConfig, check_contents, inside, find_contents, find_modes, find_mover, make_world, name_cells, patches, world_batches, world_loss

ENV = 'MiniGrid-SimpleCrossingS9N1-v0'
SMALL = PlanConfig(candidates=2, votes=2, far_iterations=3, iterations=2, tokens=3)


def between_times(n, tokens):
    "As the planner of a chain lays them out."
    return spaced(n, tokens, single_steps(tokens), 1, whole_steps=True)


@pytest.fixture(scope='module')
def windows(): return Windows(collect(ENV, 'wander', 60, seed=0, progress=False))


@pytest.fixture(scope='module')
def model(windows):
    world = make_world(windows).config
    torch.manual_seed(0)
    m = ChainDenoiser(ChainConfig(env_id=ENV, world=world, width=32, fine=8, mixers=4, scene_width=16, place_dim=16, longest=12))
    m.world.freeze()
    return m.eval()


@pytest.fixture(scope='module')
def obs(): return layouts(ENV, range(6)).observe()


@pytest.mark.parametrize('eta', [0., 1.])
def test_a_plan_is_the_same_alone_and_in_a_batch(model, obs, eta):
    planner = ChainPlanner(model, replace(SMALL, eta=eta))
    many = planner.plan(obs, range(6))
    for i in (0, 5):
        one = planner.plan(obs[i:i + 1], [i])
        assert int(one.at) == int(many.at[i])
        for name in ('z', 'reward', 'first', 'times'): torch.testing.assert_close(getattr(one, name)[0], getattr(many, name)[i], atol=2e-4, rtol=1e-3)
    assert many.first.shape == (6, model.config.world.actions), 'two ways were put to the vote'


def test_context_and_far_token_hold_exactly_at_every_iteration(model, obs):
    planner = ChainPlanner(model, SMALL)
    plan = planner.plan(obs[:1], [0], film=(film := []))
    assert torch.equal(plan.z[:, 0], model.world.encode(obs[:1]))
    settled = [f for f in film if f.times.shape[1] > 2]
    assert len(film) == SMALL.far_iterations + len(settled) and len(settled) == SMALL.iterations * SMALL.tokens
    for f in settled: assert (f.level[:, 0] == 0).all() and (f.level[0, plan.at] == 0).all()


def _random_chain(seed, B=2, G=2, W=3, H=2):
    g = torch.Generator().manual_seed(seed)
    steps = torch.rand(B, 2, G, G + 4, W, H, generator=g)
    steps[:, :, :, G:] *= inside(W, H)
    places = torch.eye(G * W * H).view(-1, G, W, H)
    matrix = lambda step: torch.stack([one_step(p[None], step[None]).flatten() for p in places]).double()  # row: from, column: to
    return g, steps, matrix


@pytest.mark.parametrize('seed', range(4))
def test_messages_are_exact(seed):
    "Against brute force: the joint weight of every combination of three places, summed; the tokens are spaced unevenly and the first step has rules of its own."
    g, steps, matrix = _random_chain(seed)
    B, P, times = 2, 12, torch.tensor([[0., 2., 5.], [0., 1., 3.]])
    fits = torch.randn(B, 3, 2, 3, 2, generator=g)
    before, after = messages(fits, times, steps, 5)
    for i in range(B):
        first, later = (matrix(steps[i, j]) for j in (0, 1))
        power = lambda n, start: torch.linalg.multi_dot([first] * start + [later] * (n - start) + [torch.eye(P).double()])
        e = fits[i].flatten(1).double().exp()
        gaps = times[i].diff().int().tolist()
        joint = torch.einsum('a,b,c,ab,bc->abc', e[0], e[1], e[2], power(gaps[0], 1), power(gaps[1], 0))
        for j, dims in enumerate(((1, 2), (0, 2), (0, 1))):
            mine = (before[i, j] + after[i, j] + fits[i, j]).flatten().softmax(0).double()
            torch.testing.assert_close(mine, joint.sum(dims) / joint.sum(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('name', ['simplecrossing-n1', 'doorkey-5x5', 'multiroom-n2-s4'])  # one mode, counted modes, modes by change
def test_what_is_foreseen_is_what_the_messages_say(name):
    "Messages from now, worked out once, against the whole chain at every question: two far tokens per room at four levels, and pure noise at all times."
    planner = (agent := load_pretrained(name, 'cpu')).planner
    m, g = planner.model, torch.Generator().manual_seed(0)
    obs = torch.stack(Rooms(agent.env_id, [5_000_000, 5_000_001], m.config).obs)
    with torch.no_grad():
        z0, scene = m.world.encode(obs), m.observe(obs)
        alone = m.with_messages_from_now(scene)
        for level in (0, 40, 80, 100):
            now, k = z0.repeat_interleave(2, 0), torch.tensor([[0, level]]).expand(4, 2)
            x = add_noise(m.schedule, torch.stack([now, now], 1), k, torch.randn(4, 2, z0.shape[1], generator=g))
            times = torch.tensor([[0., 1.], [0., 7.], [0., 12.], [0., m.config.longest]])
            a, b = (m(x, k, times, s) for s in (scene, alone))
            for one, other in ((a.x0, b.x0), (a.heads['reward'], b.heads['reward']), (a.heads['place'].exp(), b.heads['place'].exp())):
                torch.testing.assert_close(one[:, 1], other[:, 1], atol=2e-3, rtol=2e-3)
        T = m.config.longest
        x = torch.cat([z0[:, None], torch.zeros(2, T, z0.shape[1])], 1)
        k, times = torch.full((2, T + 1), 100), torch.arange(T + 1.).expand(2, -1)
        k[:, 0] = 0
        whole = m(x, k, times, scene).heads
        place, joint = m.arrival_by_mode(scene)
    torch.testing.assert_close(whole['place'][:, 1:].exp(), place.exp(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(whole['joint'][:, 1:].flatten(2).softmax(-1), joint.flatten(2).softmax(-1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('name', ['simplecrossing-n1', 'doorkey-5x5', 'multiroom-n2-s4'])
@pytest.mark.parametrize('tokens', [1, 2])
def test_a_clean_far_token_says_always_the_same(name, tokens):
    "Its messages to the single steps after now, worked out once, against the whole chain: near and far ends, also one before the last token, at four levels of those between."
    planner = (agent := load_pretrained(name, 'cpu')).planner
    m, g, n, i = planner.model, torch.Generator().manual_seed(0), torch.tensor([1, 2, 3, 4, 8, 12]), torch.arange(6)
    obs = torch.stack(Rooms(agent.env_id, [5_000_000, 5_000_001], m.config).obs)
    with torch.no_grad():
        z0, scene, times = m.world.encode(obs), m.observe(obs), between_times(n, tokens)
        future, held = m.arrival_by_mode(scene)[0][i // 3, n - 1].flatten(1), scene.seen.argmax(1)[i // 3].flatten(1)
        kind, cell = future.argmax(1) // held.shape[1], future.argmax(1) % held.shape[1]     # where one may well be by then
        floor = m.world.contents.tolist().index([1, 0, 0])
        held[torch.isin(held, m.world.mover)] = floor
        held[i, cell] = m.world.mover[kind]
        far, at = m.world.embed(held.view(6, *scene.seen.shape[2:])), (times == n[:, None]).int().argmax(1)
        for level in (10, 40, 80, 100):
            x, k = torch.stack([z0[i // 3]] * (tokens + 2), 1), torch.full(times.shape, level)
            k[:, 0] = 0; k[i, at] = 0
            x[i, at] = far
            x = add_noise(m.schedule, x, k, torch.randn(x.shape, generator=g))
            a, b = (m(x, k, times, s).heads['place'].exp() for s in (scene, m.with_messages_from_far(far, n, tokens, scene)))
            for j in range(1, tokens + 2):
                between = at != j
                torch.testing.assert_close(a[between, j], b[between, j], atol=1e-4, rtol=1e-3)
        assert not torch.allclose(a[:, 1], m(x, k, times, m.with_messages_from_far(far.flip(0), n, tokens, scene)).heads['place'][:, 1].exp(), atol=1e-2)


def test_a_step_back_is_the_transpose_of_a_step():
    g, steps, matrix = _random_chain(7)
    m = torch.rand(2, 2, 3, 2, generator=g)
    for i in range(2):
        torch.testing.assert_close(one_step_back(m, steps[:, 0])[i].flatten().double(), matrix(steps[i, 0]) @ m[i].flatten().double(), atol=1e-6, rtol=1e-5)


def test_the_grid_has_edges():
    for (dx, dy), ok in zip(NEIGHBOURS, inside(4, 3)):
        assert all(bool(ok[x, y]) == (0 <= x + dx < 4 and 0 <= y + dy < 3) for x in range(4) for y in range(3))


def test_tokens_that_contradict_each_other_give_numbers(model, obs):
    "A clean far token that cannot be reached in time must not make NaNs, in values or in gradients."
    z, away = model.world.encode(obs[:1]), model.world.encode(paint_agent(layouts(ENV, [0]).cells, torch.tensor([[7, 7, 0]])))
    x = torch.stack([z, torch.zeros_like(z), away], 1).requires_grad_()
    p = model(x, torch.tensor([[0, 100, 0]]), torch.tensor([[0., 1., 2.]]), obs[:1])
    p.heads['reward'].sum().backward()
    assert p.x0.isfinite().all() and x.grad.isfinite().all()
    torch.testing.assert_close(p.x0[:, [0, 2]], x[:, [0, 2]].detach(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize('modes', [False, True])
def test_modes_and_messages_can_be_left_out(modes):
    windows = Windows(collect('MiniGrid-DoorKey-5x5-v0', 'fiddle', 40, seed=0, progress=False))
    batch, g, world = planner_batches(windows, 4, 5, 12)(1, torch.Generator().manual_seed(1)), torch.Generator(), make_world(windows, modes=modes).config
    assert len(world.modes) == (4 if modes else 0), 'the key lies there or not, the door is locked, closed or open; open and closed only without the key'
    for chain in (True, False):
        m = ChainDenoiser(ChainConfig(world=world, chain=chain, fine=8, mixers=4, scene_width=16, place_dim=16, longest=12))
        loss = sum(planner_loss(m, batch, g.manual_seed(0)).values())
        loss.backward()
        assert loss.isfinite() and (m.message_weight.weight.grad is None) == (not chain)


def test_a_clean_frame_tells_its_mode_and_noise_tells_none():
    windows = Windows(collect('MiniGrid-DoorKey-5x5-v0', 'fiddle', 40, seed=0, progress=False))
    m = ChainDenoiser(ChainConfig(world=make_world(windows, modes=True).config, fine=8, mixers=4, scene_width=16, place_dim=16, longest=12)).eval()
    frames = windows.frames(np.arange(40), windows.length // 2)
    z, level = m.world.encode(frames)[:, None], lambda k: torch.full((40, 1), k)
    hint = lambda x, k: m.hint(evidence(m.world, x, level(k), m.schedule), level(k), None, None)[:, 0].softmax(-1).detach()
    shows = [tuple(c) for c in torch.nn.functional.one_hot(m.world.read(frames), len(m.config.world.contents)).flatten(1, 2).sum(1).clamp(max=2)[:, m.world.scenery].tolist()]
    known = [tuple(c) for c in m.world.modes.tolist()]
    right = [(i, known.index(c)) for i, c in enumerate(shows) if c in known]
    assert len(right) > 25 and all(float(hint(z, 0)[i, q]) > 0.999 for i, q in right)
    assert float(hint(0 * z, 100).max()) < 0.5


HOUSE = 'MiniGrid-MultiRoom-N2-S4-v0'


@pytest.fixture(scope='module')
def house(): return Windows(collect(HOUSE, 'wander', 150, seed=0, progress=False))


@pytest.fixture(scope='module')
def doors(house):
    "A world model of houses that tells modes by change, and has looked at enough steps to know what can be stepped on."
    world, g = make_world(house, window=True, changes=True).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i in range(25): world(world_batches(house, 256, 12)(i, g), g)
    return world.eval()


def test_something_has_changed_exactly_when_a_door_has(house, doors):
    "The mode of every frame of every walk, against the room's own cells: is a door other than at the start?"
    right = told = 0
    for e in range(60):
        t = np.arange(house.length[e])
        frames = house.frames([e] * len(t), t)
        state = torch.where(frames[..., 0] == AGENT, 0, frames[..., 2])[:, (frames[..., 0] == DOOR).any(0)]  # of every door; under the agent it is open
        truth, held = (state != state[0]).any(1).long(), doors.read(frames)
        mode = doors.locate(held[None], held[:1])[2][0]
        right, told = right + int((mode == truth).sum()), told + len(t)
        assert mode[0] == 0
    assert right == told and told > 1000


def test_a_shut_door_is_passed_only_after_something_has_changed(house, doors):
    "The shares of steps into a cell that shows a shut door: none now, none later as long as all is as it was, some after."
    rooms = layouts(HOUSE, range(500, 520))
    obs = rooms.observe()
    steps, (x0, y0) = doors.steps(doors.look(obs)).unflatten(2, (2, -1))[:, :, :, :, -4:], doors.origin(obs).T  # [B, 2, modes, G, 4, W, H]
    shut = ((rooms.cells[..., 0] == DOOR) & (rooms.cells[..., 2] == CLOSED)).nonzero()
    assert len(shut) >= 20
    after = 0
    for b, x, y in shut.tolist():
        into = torch.stack([steps[b, :, :, :, i, x - x0[b] - dx, y - y0[b] - dy].amax(2) for i, (dx, dy) in enumerate(NEIGHBOURS)]).amax(0)  # [2, modes]
        assert into[0, 0] == 0 and into[1, 0] == 0
        after += int(into[1, 1] > 0)
    assert after >= 5, f"{after} of {len(shut)}"  # most colours are too rare in so few walks


def test_change_is_seen_in_clean_frames_and_not_in_noise(house, doors):
    torch.manual_seed(0)
    m = ChainDenoiser(ChainConfig(world=doors.config, fine=8, mixers=4, scene_width=16, place_dim=16, longest=12)).eval()
    m.world.load_state_dict(doors.state_dict())
    e = np.arange(100)
    t = (house.length[e] * 0.7).astype(int)
    frames, then = house.frames(e, 0 * e), house.frames(e, t)
    scene, times = m.observe(frames), torch.tensor([[0., 1., 2.]]).expand(100, 3)
    z = torch.stack([m.world.encode(frames), m.world.encode(then), 0 * m.world.encode(then)], 1)
    k = torch.tensor([[0, 0, 100]]).expand(100, 3)
    hint = m.hint(evidence(m.world, z, k, m.schedule), k, times, scene).detach()
    truth = m.world.locate(torch.stack([m.world.read(then)] * 2, 1), m.world.read(frames))[2][:, 0]
    assert 10 < truth.sum() < 90 and (hint[:, 0].argmax(-1) == 0).all()
    assert (hint[:, 1].argmax(-1) == truth).all() and hint[:, 2].diff(dim=-1).abs().max() < 0.1


def test_modes_are_counted_or_told_by_change_not_both():
    with pytest.raises(ValueError, match='not both'): make_world(Windows(collect('MiniGrid-DoorKey-5x5-v0', 'fiddle', 40, seed=0, progress=False)), modes=True, changes=True)
    with pytest.raises(ValueError, match='choose one'): Recipe(modes=True, changes=True)


def test_the_guide_moves_the_far_token_and_scale_zero_does_not(model, obs):
    z0, scene = model.world.encode(obs), model.observe(obs)
    run = lambda scale: ChainPlanner(model, replace(SMALL, scale=scale, horizon=5)).where(z0, scene, range(6)).z
    assert torch.equal(run(0.), run(0.)) and not torch.allclose(run(0.), run(5.))


def test_steps_that_are_executed_have_to_be_single_ones():
    "Of three tokens between, the last stands at a stride: nobody could read a third action from such a plan."
    with pytest.raises(ValueError, match='only 2 stand at single steps: give tokens=4'): PlanConfig(replan=3, tokens=3)
    with pytest.raises(ValueError, match='give tokens=2'): PlanConfig(replan=2)
    for r in range(1, 12):
        fits = [t for t in range(r, 25) if (between_times(torch.tensor([60]), t)[0, :r + 1] == torch.arange(r + 1.)).all()]
        assert PlanConfig(replan=r, tokens=fits[0]).replan == r
        if fits[0] > 1:
            with pytest.raises(ValueError, match=f'give tokens={fits[0]} '): PlanConfig(replan=r, tokens=fits[0] - 1)


@pytest.mark.parametrize('name, every', [('simplecrossing-n2', 6), ('fourrooms', 4)])
def test_a_plan_can_be_followed_for_many_steps(name, every):
    agent = load_pretrained(name, 'cpu', replan=every, tokens=next(t for t in range(1, 20) if t - t // 3 >= every))
    r = evaluate(agent, 6, seed=5_000_000, progress=False)
    assert r['success'] >= 5 / 6 and r['steps_over_optimum'] < 1.25 and r['plans'] * every < sum(row['steps'] for row in r['rows']) + 6 * every


def test_a_plan_may_run_on_past_the_longest_horizon():
    "More tokens than steps to the far one, and than the model was trained for: those after it stay in the room."
    agent = load_pretrained('simplecrossing-n1', 'cpu', tokens=40)
    rooms = Rooms(agent.env_id, [5_000_000, 5_000_001], agent.planner.model.config)
    plan, world = agent.planner.plan(obs := torch.stack(rooms.obs), [0, 1]), agent.planner.model.world
    x, y = world.find_agent(world.decode(plan.z, world.look(obs))[0])[0].unbind(-1)[:2]
    assert plan.times.max() > agent.planner.model.config.longest
    assert (torch.stack(list(rooms.cells))[torch.arange(2)[:, None], x, y, 0] != WALL).float().mean() > 0.95


def test_a_fixed_near_horizon_has_single_steps_only():
    assert PlanConfig(horizon=4, replan=3, tokens=3).replan == 3
    with pytest.raises(ValueError, match='single steps'): PlanConfig(horizon=5, replan=3, tokens=3)


def test_what_is_foreseen_is_not_taken_for_more(model, obs):
    "A plan with tokens between asks the whole chain, whatever the scene carries."
    z0, scene = model.world.encode(obs), model.observe(obs)
    x, k, times = torch.stack([z0] * 4, 1), torch.tensor([[0, 60, 60, 60]]).expand(6, 4), torch.tensor([[0., 1., 2., 9.]]).expand(6, 4)
    with torch.no_grad(): assert torch.equal(model(x, k, times, scene).x0, model(x, k, times, model.with_messages_from_now(scene)).x0)


def test_the_earliest_likely_arrival_wins(model):
    planner = ChainPlanner(model, replace(SMALL, slack=1.))
    arrival = torch.tensor([[-9., -3., -2.5], [-5., -9., -4.5], [-1., -1., -1.]])
    assert planner.when.choose(arrival).tolist() == [2, 1, 1]
    assert ChainPlanner(model, replace(SMALL, horizon=7)).when.choose(arrival).tolist() == [7, 7, 7]
    worth = lambda discount: ChainPlanner(model, replace(SMALL, discount=discount)).when.choose(arrival).tolist()
    assert worth(0.9) == [3, 3, 1] and worth(0.55) == [2, 1, 1], 'a step costs 0.11 and 0.60 nats'
    assert ChainPlanner(model, replace(SMALL, discount=0.01)).when.choose(torch.tensor([[-69., -66., -3., -2.5]])).tolist() == [3], 'impossible arrivals are not cheap because they are soon'
    with pytest.raises(ValueError, match='at most 1, got 0'): PlanConfig(discount=0.)
    with pytest.raises(ValueError, match='one of discount and horizon'): PlanConfig(discount=0.9, horizon=3)
    with pytest.raises(ValueError, match='trained without one'): ChainPlanner(ChainDenoiser(replace(model.config, chain=False)), PlanConfig(absorb=True))


def test_the_clean_estimate_is_the_encoding_of_the_belief(model, obs):
    "x0 is linear in the probabilities: a belief that is certain gives exactly the latent of that frame, and every belief sums to one mover."
    z, k, times = model.world.encode(obs)[:, None], torch.ones(6, 1, dtype=torch.long), torch.zeros(6, 1)
    p = model(z, k, times, obs)
    torch.testing.assert_close(p.heads['place'].exp().flatten(1).sum(1), torch.ones(6))
    torch.testing.assert_close(p.x0, z, atol=1e-2, rtol=1e-2)


def test_evidence_is_the_exact_likelihood(model, obs):
    "Against the normal density, written out for one cell and every content."
    z, schedule = model.world.encode(obs[:1])[:, None], model.schedule
    k, g = torch.tensor([[60]]), torch.Generator().manual_seed(0)
    a = schedule.alpha_bar[60]
    x = a.sqrt() * z + (1 - a).sqrt() * torch.randn(z.shape, generator=g)
    cell = model.world.shaped(x)[0, 0, :, 2, 3]
    exact = torch.distributions.Normal(a.sqrt() * model.world.table, (1 - a).sqrt()).log_prob(cell).sum(-1)
    torch.testing.assert_close(evidence(model.world, x, k, schedule)[0, 0, :, 2, 3].softmax(0), exact.softmax(0))


def test_what_moves_is_found_in_the_data(windows):
    frames = windows.frames(*windows.draw(300, torch.Generator().manual_seed(0)))
    contents, share = find_contents(frames)
    assert abs(float(share.sum()) - 1) < 1e-6 and {contents[v] for v in find_mover(frames, contents)} == {(10, 0, d) for d in range(4)}
    doors = Windows(collect('MiniGrid-MultiRoom-N2-S4-v0', 'wander', 60, seed=0, progress=False))
    frames = doors.frames(*doors.draw(500, torch.Generator().manual_seed(0)))
    contents, _ = find_contents(frames)
    assert {contents[v][0] for v in find_mover(frames, contents)} == {10}, 'a door that opens is scenery, not a mover'


@pytest.fixture(scope='module')
def pixels(): return Windows(collect(ENV, 'wander', 60, seed=0, progress=False), 'rgb')


def test_pixels_are_read_as_symbols_are(pixels):
    "The same poses in the same frames, from a dictionary of pictures nobody labelled; a little noise in the pixels changes nothing, another world is refused."
    world, (e, t) = make_world(pixels), pixels.draw(64, torch.Generator().manual_seed(1))
    frames, pose = pixels.frames(e, t), torch.from_numpy(pixels.gather('pose', e, t).astype('int64'))
    assert frames.shape == (64, 72, 72, 3) and torch.equal(world.find_agent(100 * world.look(frames))[0], pose)
    noisy = (frames.float() + 6 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).to(torch.uint8)
    assert torch.equal(world.read(noisy), world.read(frames))
    with pytest.raises(ValueError, match='never seen a cell'): world.read(255 - frames)
    with pytest.raises(ValueError, match=r'reads pixels \[72, 72, 3\]'): world.read(frames[:, :64])


def test_the_goal_under_the_arrow_is_no_mover(pixels):
    "In pixels the goal, too, stands in every frame exactly once, alone or under the arrow; but it is the arrow that changes."
    world = make_world(pixels)
    e, t = pixels.draw(300, torch.Generator().manual_seed(2))
    moved = world.find_agent(100 * world.look(pixels.frames(e, np.minimum(t + 1, pixels.length[e]))))[0]
    assert torch.equal(moved, torch.from_numpy(pixels.gather('pose', e, np.minimum(t + 1, pixels.length[e])).astype('int64')))


def test_a_window_follows_the_rooms():
    doors = Windows(collect('MiniGrid-MultiRoom-N2-S4-v0', 'wander', 200, seed=0, progress=False))
    world, (e, t) = make_world(doors, window=True), doors.draw(64, torch.Generator().manual_seed(1))
    frames, pose = doors.frames(e, t), torch.from_numpy(doors.gather('pose', e, t).astype('int64'))
    held, at = world.read(frames), world.origin(frames)
    assert held.shape == (64, 7, 7) and world.config.frame == (25, 25)
    found = world.find_agent(100 * world.look(frames))[0]
    assert torch.equal(found[:, :2] + at, pose[:, :2]) and torch.equal(found[:, 2], pose[:, 2])
    whole = make_world(doors).read(frames)
    for i in range(64): assert torch.equal(held[i], whole[i, at[i, 0]:at[i, 0] + 7, at[i, 1]:at[i, 1] + 7])
    assert ((whole != world.config.background).sum((1, 2)) == (held != world.config.background).sum((1, 2))).all(), 'something lies outside the window'
    with pytest.raises(ValueError, match='more than the window of 7 by 7'): world.read(layouts('MiniGrid-MultiRoom-N6-v0', [0]).observe())


def test_pixels_and_symbols_have_the_same_window():
    stored = collect('MiniGrid-MultiRoom-N2-S4-v0', 'wander', 60, seed=0, progress=False)
    doors, pictures = Windows(stored), Windows(stored, view='rgb')
    symbols, pixels = (make_world(w, window=True, frames=1000) for w in (doors, pictures))
    e, t = doors.draw(16, torch.Generator().manual_seed(1))
    assert pixels.config.obs_shape == (200, 200, 3) and symbols.config.obs_shape == (25, 25, 3)
    assert (pixels.config.width, pixels.config.height, pixels.config.frame) == (symbols.config.width, symbols.config.height, symbols.config.frame)
    assert torch.equal(pixels.origin(pictures.frames(e, t)), symbols.origin(doors.frames(e, t)))


def test_names_are_the_nearest_contents():
    g = torch.Generator().manual_seed(0)
    contents = torch.randint(0, 256, (9, 192), generator=g, dtype=torch.uint8)
    cells, which = contents[torch.tensor([3, 8, 0, 5])].clone(), torch.tensor([3, 8, 0, 5])
    cells[1, 0] ^= 1                                                     # one number, by one
    cells[3] = torch.randint(0, 256, (192,), generator=g, dtype=torch.uint8)
    with torch.autocast('cpu', torch.bfloat16): (exact, known), (near, close) = (name_cells(cells, contents, tolerance) for tolerance in (0., 0.05))
    assert torch.equal(exact[:3], which[:3]) and known.tolist() == [True, False, True, False]
    assert torch.equal(near, exact) and close.tolist() == [True, True, True, False]
    assert torch.equal(torch.cdist(cells.double(), contents.double()).argmin(1), near)


@pytest.mark.parametrize('make, words', [(lambda: Recipe(view='pixels'), "unknown view 'pixels'"), (lambda: Recipe(episodes=0), 'episodes must be an integer of at least 1, got 0'),
                                         (lambda: Recipe(tokens=99), 'between 2 and longest'), (lambda: PlanConfig(least=1.), 'least is a share .*got 1.0'),
                                         (lambda: PlanConfig(tokens=0), 'tokens must be an integer of at least 1'), (lambda: PlanConfig(votes=1.5), 'votes must be an integer'), (lambda: PlanConfig(candidates=float('nan')), 'candidates must be'), (lambda: PlanConfig(order='best'), "unknown order 'best'")])
def test_impossible_settings_are_refused_before_anything_is_played(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_the_mover_is_where_the_latent_says(model, obs):
    "Against the definition: exactly one mover, every other cell scenery, unit noise."
    w, pose = model.world, split_agent(obs)
    share = w.whereabouts(w.encode(obs))
    torch.testing.assert_close(share.sum((1, 2)), torch.ones(6))
    likely = torch.stack([torch.distributions.Normal(e[:, None, None], 1.).log_prob(w.shaped(w.encode(obs))).sum(1) for e in w.table], 1).double()
    mover, rest = likely[:, w.mover].logsumexp(1), likely[:, w.scenery].logsumexp(1)
    exact = (mover - rest).flatten(1).softmax(1).view_as(share)
    torch.testing.assert_close(share.double(), exact, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('env_id, policy', [(ENV, 'wander'), ('MiniGrid-DoorKey-5x5-v0', 'fiddle')])
def test_what_a_taken_step_costs_is_what_the_chain_says(env_id, policy):
    "The likelihood of a step, gathered, against a step of the chain from the one place to the other."
    data = Windows(collect(env_id, policy, 40, seed=0, progress=False))
    world, (e, t) = make_world(data, modes=True).train(), data.draw(64, torch.Generator().manual_seed(3))
    held = torch.stack([world.read(data.frames(e, np.minimum(t + d, data.length[e]))) for d in (0, 1)], 1)
    steps, (content, cell, mode) = world.steps(world.look(data.frames(e, t)))[:, 0], world.locate(held)
    loss = world.step_loss(world.step_shares(held[:, 0], 0, cell[:, 0]), (content, cell, mode))
    place = torch.zeros(64, 2, steps.shape[1], held.shape[2] * held.shape[3])
    known = (mode >= 0).all(1)
    place[torch.arange(64)[:, None], torch.arange(2), (mode.clamp(min=0) * 4 + content), cell] = 1
    exact = (one_step(place[:, 0].unflatten(2, held.shape[2:]), steps).flatten(2) * place[:, 1]).sum((1, 2))
    assert known.sum() > 40
    torch.testing.assert_close(loss[known].exp(), 1 / exact[known])
    for later in (0, 1): torch.testing.assert_close(world.step_shares(held[:, 0], later, cell[:, 0]), world.steps(world.look(data.frames(e, t)))[:, later].flatten(3)[torch.arange(64), :, :, cell[:, 0]])


def test_nobody_walks_where_nobody_has_walked(windows):
    "After a little training the shares of steps into walls are small; after training they are nothing, and the others still sum to one."
    world, g = make_world(windows).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i in range(20): world(world_batches(windows, 64, 12)(i, g), g)
    rooms = layouts(ENV, range(100, 110))
    wall = rooms.cells[..., 0] == WALL
    near = torch.stack([wall.roll((-dx, -dy), (1, 2)) for dx, dy in NEIGHBOURS], 1)[:, None, None]
    shares = lambda: world.steps(world.look(rooms.observe())).detach()
    into = lambda s: (s[:, :, :, 4:] * near).sum(3).movedim((1, 2), (-2, -1))[~wall]
    assert into(shares()).max() > 0.01
    world.eval()
    assert into(shares()).max() < 1e-6
    torch.testing.assert_close(shares().sum(3), torch.ones(10, 2, 4, 9, 9))


def test_the_far_token_is_turned_the_way_it_is_entered(model, obs):
    planner, scene = ChainPlanner(model, SMALL), model.observe(obs)
    z0, n = model.world.encode(obs), torch.full((6,), 5)
    away = paint_agent(layouts(ENV, range(6)).cells, torch.tensor([[7, 7, 0]]).expand(6, -1))
    future = torch.full((6, 12, 4, 9, 9), -9.)
    future[torch.arange(6), 4, torch.tensor([0, 1, 2, 3, 0, 1]), 7, 7] = -1.
    shown = model.world.evidence(model.world.encode(away)[:, None])  # an untrained decoder names nothing: here, the nearest embedding does
    far, reward, chance = planner.when.on_arrival(z0, scene, shown, planner.when.cells(shown), (future, None), n)
    assert reward.shape == (6, 1) and (chance == -1).all()
    turned = model.world.find_agent(100 * model.world.evidence(far[:, 0]))[0]
    assert turned.tolist() == [[7, 7, d] for d in (0, 1, 2, 3, 0, 1)]


def test_nobody_stands_behind_a_locked_door():
    "The far token of a DoorKey plan shows the goal reached and the door open, as it must be by then; and the key gone, unless somebody drops it again."
    agent = load_pretrained('doorkey-5x5', 'cpu')
    world, rooms = agent.planner.model.world, layouts('MiniGrid-DoorKey-5x5-v0', range(1_000_000, 1_000_016))
    plan = agent.planner.plan(rooms.observe(), range(16))
    far = plan.z[torch.arange(16), plan.at]
    held = world.evidence(far).argmax(1)                                   # [16, W, H]
    has = lambda *cell: (held == world.config.contents.index(cell)).flatten(1).any(1)
    assert has(4, 4, 0).all() and not has(4, 4, 2).any() and has(5, 4, 0).sum() <= 2 and not has(8, 1, 0).any()


@pytest.mark.parametrize('name, kinds', [('fourrooms', (GOAL,)), ('lavacrossing-n1', (GOAL, LAVA)), ('doorkey-5x5', (GOAL,))])
def test_an_end_is_an_end(name, kinds):
    "The termination head knows the cells in which an episode is over; asked for, nobody moves on from there, all other steps are as before, and what is too unlikely stays out."
    agent = load_pretrained(name, 'cpu')
    model = agent.planner.model
    obs = torch.stack(Rooms(agent.env_id, range(2_000_000, 2_000_006), model.config).obs)
    with torch.no_grad():
        scene = model.observe(obs)
        over, absorbed = model.ends(scene), without_doubtful_steps(model, scene, PlanConfig(absorb=True)).steps
    held = model.world.contents[scene.seen.argmax(1)][..., 0]
    end, free = torch.isin(held, torch.tensor(kinds, dtype=held.dtype)), (held == EMPTY)[:, None].expand_as(over)
    assert end.any() and over.amax(1)[end].min() > 0.95 and over[free].max() < 0.1 and over[free].mean() < 0.01
    K = absorbed.shape[2]
    torch.testing.assert_close(absorbed.sum(3), scene.steps.sum(3))
    both = without_doubtful_steps(model, scene, PlanConfig(absorb=True, least=0.05)).steps
    assert not ((both > 1e-6) & (both < 0.05)).any()
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad(): assert (model.ends(model.observe(obs)) - over).abs().max() < 0.1, 'also in half precision'
    leave = lambda steps: steps[:, :, :, K:].sum(3)  # [b, 2, K, W, H], shares of steps to other cells
    torch.testing.assert_close(leave(absorbed), leave(scene.steps) * (1 - over.repeat(1, len(model.world.modes), 1, 1)[:, None]))
    assert (absorbed - scene.steps).abs().movedim((2, 3), (-2, -1)).movedim(1, -1)[(held == EMPTY)].mean() < 1e-3
    if name == 'fourrooms':
        before, after = (leave(steps).movedim((1, 2), (-2, -1))[end].mean() for steps in (scene.steps, absorbed))
        assert before > 0.3 and after < 0.02, 'few walks end at the goal, so the steps have not learned it; the head has'


def test_nobody_leaves_a_shut_door_behind():
    "What an agent in a doorway hides is an open door, also in plans; a shut one there looked like a turn to inverse dynamics."
    agent, inside = load_pretrained('multiroom-n2-s4', 'cpu'), []
    world = agent.planner.model.world
    for seed in range(2_000_040, 2_000_048):
        env = open_env(HOUSE, agent.planner.model.config); obs, _ = env.reset(seed=seed); agent.reset(seed=seed)
        for _ in range(20):
            if getattr(env.unwrapped.grid.get(*env.unwrapped.agent_pos), 'type', '') == 'door': inside.append(read_image(obs, agent.planner.model.config)); break
            obs, *_ = env.step(int(agent.act(obs)))
    assert len(inside) >= 4
    obs = torch.stack(inside).repeat_interleave(16, 0)
    plan, seen = agent.planner.plan(obs, range(len(obs))), world.look(obs)
    left = world.contents[world.decode(plan.z[:, 1:2], seen)[0][:, 0].argmax(1)][torch.isin(seen.argmax(1), world.mover)]  # what the next token shows where the mover is now
    assert not ((left[:, 0] == DOOR) & (left[:, 2] != OPEN)).any()
    assert ((left[:, 0] == DOOR) & (left[:, 2] == OPEN)).float().mean() > 0.5


def test_levels_of_training_plans(windows):
    g = torch.Generator().manual_seed(0)
    k = plan_levels(2000, 10, 100, g)
    assert (k[:, 0] == 0).all() and ((k > 0).any(1)).all() and ((k == 0).sum(1) > 5).any() and ((k == 100).sum(1) > 5).any() and k.max() == 100
    batch = planner_batches(windows, 4, 6, 12)(0, g)
    assert batch['frames'].shape[:2] == batch['times'].shape and batch['frames'].shape[2:] == (9, 9, 3)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('between', [1, 2, 7, 8])
def test_a_settling_board_is_a_board(order, between):
    from ldp_tut.board import check_board
    board = settling_board(between, 100, 3, order)
    check_board(board, 100, between + 2)
    assert not board[:, [0, -1]].any(), 'both ends are clean'
    board = board[:, 1:-1]
    assert (board[0] == 100).all() and (board[-1] == 0).all()
    moves = (board.diff(dim=0) != 0)
    assert (moves.sum(0) == 3).all(), 'every token takes as many iterations as it was given'
    if order == 'near': assert (moves.float().argmax(0).diff() > 0).all()


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


@pytest.mark.parametrize('env_id', [ENV, HOUSE, 'MiniGrid-DoorKey-5x5-v0'])
def test_every_real_step_is_lawful_and_nothing_else_is(env_id):
    "Frames of real walks: each step is lawful; turning about is not, nor two cells at once, nor any step after which a wall is missing."
    walks = Windows(collect(env_id, 'wander' if 'DoorKey' not in env_id else 'fiddle', 60, seed=0, progress=False))
    e, t = walks.draw(400, torch.Generator().manual_seed(0))
    def at(d):
        frames = walks.frames(e, np.minimum(t + d, walks.length[e]))
        return torch.where(frames[..., :1] == AGENT, torch.tensor([EMPTY, 0, 0], dtype=torch.uint8), frames), split_agent(frames)
    now, soon = at(0), at(1)
    assert lawful_step(*now, *soon).all()
    about = now[1].clone(); about[:, 2] = (about[:, 2] + 2) % 4
    assert not lawful_step(*now, soon[0], about).any()
    assert not lawful_step(*now, soon[0], (now[1] + torch.tensor([2, 0, 0])).clamp(max=soon[0].shape[1] - 1)).any()
    first, height = (soon[0][..., 0] == WALL).flatten(1).int().argmax(1), soon[0].shape[2]
    hole = soon[0].clone(); hole[torch.arange(400), first // height, first % height] = torch.tensor([EMPTY, 0, 0], dtype=torch.uint8)
    assert not lawful_step(*now, hole, soon[1]).any()


def test_a_plan_may_open_a_door_and_go_through_but_not_go_through_and_not_open():
    rooms = layouts(HOUSE, range(30))
    door = (rooms.cells[..., 0] == DOOR) & (rooms.cells[..., 2] == CLOSED)
    which, x, y = (v[0:1] for v in door.nonzero().T)
    for d, (dx, dy) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):  # the side from which it can be entered
        if int(rooms.cells[which, x - dx, y - dy, 0]) == EMPTY: break
    shut = rooms.cells[which]
    opened = shut.clone(); opened[0, x, y, 2] = OPEN
    front, inside = torch.tensor([[int(x) - dx, int(y) - dy, d]]), torch.tensor([[int(x), int(y), d]])
    assert lawful_step(shut, front, opened, front) and lawful_step(opened, front, opened, inside)
    assert not lawful_step(shut, front, shut, inside) and not lawful_step(shut, front, opened, inside)


@pytest.mark.parametrize('env_id', ['MiniGrid-DoorKey-5x5-v0', 'MiniGrid-MultiRoom-N2-S4-v0'])
def test_rooms_know_what_changed_and_how_far_it_was(env_id):
    "Played at random: the rooms' record of the cells is MiniGrid's own grid at every step, and the optimum is that of an exhaustive search."
    w, (W, H, _) = WorldConfig, make_env(env_id).reset(seed=0)[0]['image'].shape
    rooms = Rooms(env_id, list(range(12)), ChainConfig(env_id=env_id, world=w(width=W, height=H)))
    assert rooms.optimum == [len(shortest_plan(GridTwin(*(t[None] for t in read_grid(env))))) for env in rooms.envs]
    g, changed = torch.Generator().manual_seed(0), False
    start = [c.clone() for c in rooms.cells]
    for _ in range(60):
        if not rooms.live: break
        rooms.step(torch.randint(0, 6, (len(rooms.live),), generator=g).tolist())
        for j in rooms.live: assert torch.equal(rooms.cells[j], read_grid(rooms.envs[j])[0])
        changed |= any(not torch.equal(a, b) for a, b in zip(start, rooms.cells))
    assert changed


def test_the_agent_is_reproducible_and_drives_like_gymnasium(model):
    agent, env = ChainAgent(model, SMALL), make_env(ENV)
    def walk(seed):
        obs, _ = env.reset(seed=3); agent.reset(seed=seed); actions = []
        for _ in range(6):
            actions.append(agent.act(obs)); obs, *_ = env.step(actions[-1])
        return actions
    assert walk(0) == walk(0) and all(isinstance(a, int) and 0 <= a < 7 for a in walk(1))


def test_observations_are_checked_at_the_door(model):
    agent = ChainAgent(model, SMALL)
    good, _ = make_env(ENV).reset(seed=0)
    image = good['image'].astype(float)
    with pytest.raises(ValueError, match='partial view.*FullyObsWrapper'): agent.act(np.zeros((7, 7, 3)))
    with pytest.raises(ValueError, match=r'reads grids \[9, 9, 3\], got \[19, 19, 3\]'): agent.act(np.zeros((19, 19, 3)))
    with pytest.raises(ValueError, match='NaN'): agent.act(np.where(image == 2, np.nan, image))
    with pytest.raises(ValueError, match='vocabulary'): agent.act(image + 0.5)
    with pytest.raises(ValueError, match='vocabulary'): agent.act(image * 40)
    with pytest.raises(ValueError, match='exactly one agent'): agent.act(np.ones((9, 9, 3)))


def test_checkpoints_round_trip_and_misfits_are_refused(model, tmp_path):
    path = save_agent(tmp_path / 'a.safetensors', ChainAgent(model, SMALL), dict(note='test'))
    again = load_pretrained(str(path), 'cpu')
    assert again.config == SMALL and again.env_id == ENV and again.card['note'] == 'test'
    for (n, a), b in zip(model.state_dict().items(), again.planner.model.state_dict().values()): torch.testing.assert_close(a.float(), b.float(), atol=2e-2, rtol=1e-2)
    assert load_pretrained(str(path), 'cpu', scale=0.).config.scale == 0
    with pytest.raises(ValueError, match='unknown planning option'): load_pretrained(str(path), 'cpu', speed=3)
    with pytest.raises(CheckpointError, match="no checkpoint is called 'nothing'"): load_pretrained('nothing')
    save_checkpoint(tmp_path / 'b.safetensors', dict(w=torch.zeros(2)), dict(kind='demo'))
    with pytest.raises(CheckpointError, match='not a far-future planner'): load_pretrained(str(tmp_path / 'b.safetensors'))


def test_the_whole_recipe_runs_and_resumes(tmp_path):
    recipe = Recipe(env_id='MiniGrid-Empty-6x6-v0', episodes=20, world_steps=6, steps=6, batch=4, tokens=4, longest=12, precision='no')
    agent, first = train_planner(recipe, tmp_path, 'cpu', progress=False)
    again, second = train_planner(recipe, tmp_path, 'cpu', progress=False)
    assert len(first['planner']) == 6 and second['planner'] == [], 'a finished run has nothing left to do'
    for a, b in zip(agent.planner.model.parameters(), again.planner.model.parameters()): assert torch.equal(a, b)
    with pytest.raises(ValueError, match='holds other data'): train_planner(replace(recipe, episodes=21), tmp_path, 'cpu', progress=False)


def test_a_world_model_learns_a_small_world():
    "Four hundred steps on an empty room: decoder, inverse and forward dynamics must be right nearly always, through noise; a roll-out must hold."
    windows = Windows(collect('MiniGrid-Empty-6x6-v0', 'wander', 100, seed=0, progress=False))
    from ldp_tut.train import TrainConfig, fit
    world = make_world(windows)
    fit(world, world_loss, world_batches(windows, 64, 16), TrainConfig(steps=400, lr=3e-3, warmup=20), device='cpu', progress=False)
    world.freeze()
    e, t = np.arange(100), np.minimum(3, windows.length - 1)
    scene, now, after = windows.frames(e, 0 * e), windows.frames(e, t), windows.frames(e, t + 1)
    seen, z = world.look(scene), world.encode(now)
    pose = lambda frames: split_agent(frames)
    same = lambda a, b: float((a == b).all(-1).float().mean())
    noisy = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert same(world.find_agent(world.decode(noisy[:, None], seen)[0])[0][:, 0], pose(now)) > 0.9
    action = torch.from_numpy(windows.gather('action', e, t).astype('int64'))
    assert same(world.find_agent(world.forward_dynamics(z, action, seen))[0], pose(after)) > 0.9
    moved = (pose(now) != pose(after)).any(-1)
    guess = world.inverse_dynamics(z, world.encode(after), torch.ones(100, dtype=torch.long), seen).argmax(-1)
    assert float((guess == action)[moved].float().mean()) > 0.8
    right = (world.forward_dynamics(z, action, seen).argmax(1) == world.read(after)).flatten(1).all(1)
    assert right.float().mean() > 0.8
    assert torch.equal(world.imagine(z, action, seen)[right], world.encode(after)[right])


def test_the_shipped_planner_takes_nearly_shortest_ways():
    "Twenty-four held-out rooms in the real environment; a wanderer reaches about one goal in five within the time limit."
    report = evaluate(load_pretrained('fourrooms', 'cpu'), 24, progress=False)
    assert report['success'] >= 0.95
    assert report['steps_over_optimum'] <= 1.25
    assert report['decoded_at_goal'] >= 0.9
    assert abs(report['predicted_reward'] - report['executed_reward']) <= 0.1
    assert report['lawful_rate'] >= 0.97


@pytest.mark.parametrize('name, ratio', [('simplecrossing-n1', 1.25), ('simplecrossing-n2', 1.25), ('simplecrossing-n3', 1.25), ('lavacrossing-n1', 1.25), ('multiroom-n2-s4', 1.4), ('multiroom-n4-s5', 1.4), ('doorkey-5x5', 1.1), ('doorkey-8x8', 1.1), ('fourrooms-rgb', 1.4)])
def test_the_other_checkpoints_solve_their_rooms(name, ratio):
    report = evaluate(load_pretrained(name, 'cpu'), 5 if name == 'multiroom-n4-s5' else 10, progress=False)
    assert report['success'] >= 0.9 and report['steps_over_optimum'] <= ratio and report['lawful_rate'] >= 0.97


def test_the_ablation_table_has_every_line_that_its_cell_lists():
    "Three seeds of each, and nothing else: the cell that makes the table is slow and does not run here."
    import csv, json
    from pathlib import Path
    from ldp_tut.book import asset
    cells = json.loads((Path(__file__).parent.parent / 'nbs/17_benchmark.ipynb').read_text())['cells']
    source = next(s for s in (''.join(c['source']) for c in cells) if '\nTRAINED = {' in s)
    names = dict(ORDERS=ORDERS, Decoded=None, InPainter=None)
    exec(source[source.index('TRAINED'):source.index('def asked')], names)
    listed = [('SimpleCrossing', v) for v in [*names['TRAINED'], *names['ASKED']]] + [('FourRooms', v) for v in ['the baseline', *names['LARGE']]]
    with open(asset('ablation_planner.csv')) as f: rows = [(r['task'], r['variant'], int(r['seed'])) for r in csv.DictReader(f)]
    assert sorted(rows) == sorted((task, v, seed) for task, v in listed for seed in range(3))


@pytest.fixture(scope='module')
def crossing(): return load_pretrained('simplecrossing-n1', 'cpu')


def _argmax(agent):
    chooser = ChainAgent(agent.planner.model, replace(agent.config, candidates=1), agent.card)
    chooser.planner = ArgMaxPlanner(agent.planner.model, chooser.config)
    return chooser


@pytest.mark.parametrize('name', ['simplecrossing-n1', 'doorkey-5x5', 'multiroom-n2-s4'])  # one mode, counted modes, modes by change
def test_argmax_and_search_do_what_the_planner_does(name):
    agent = load_pretrained(name, 'cpu')
    model = agent.planner.model
    walked = lambda a: [(r['success'], r['steps']) for r in evaluate(a, 4, seed=5_000_000, progress=False)['rows']]
    assert walked(agent) == walked(_argmax(agent)) == walked(SearchAgent(model, agent.config, agent.card))


def test_the_first_baseline_draws_the_mover_where_the_reward_head_says_most(crossing):
    model = crossing.planner.model
    obs = torch.stack(Rooms(crossing.env_id, [5_000_000, 5_000_001], model.config).obs)
    far = _argmax(crossing).planner.plan(obs, [0, 1])
    shown = model.world.contents[model.world.evidence(far.z[[0, 1], far.at]).argmax(1)]
    assert [tuple(p) for p in (shown[..., 0] == AGENT).nonzero()[:, 1:].tolist()] == [(7, 7), (7, 7)], 'where the goal is'
    assert (far.reward > 0.9).all()


@pytest.mark.parametrize('seed', range(3))
def test_search_is_breadth_first_and_exact(seed):
    "Against powers of the matrix of possible steps, with some steps too rare to be believed."
    g, steps, matrix = _random_chain(seed)
    steps = steps * (torch.rand(steps.shape, generator=g) < 0.4)
    target = torch.zeros(2, 2, 3, 2, dtype=torch.bool); target[:, 1, 2, 0] = True
    count = steps_to(target, steps[:, 1])
    for i in range(2):
        can, reach = (matrix(torch.where(steps[i, 1] > 0.02, 1., 0.)) > 0).double(), target[i].flatten().double()
        for n in range(13):
            assert torch.equal(count[i].flatten() <= n, reach > 0), n
            reach = reach + can @ reach
        first = (matrix(torch.where(steps[i, 0] > 0.02, 1., 0.)) > 0).double()
        start = torch.zeros(2, 3, 2, dtype=torch.bool); start[0, 0, 1] = True
        there = start.flatten().double() @ (torch.eye(12).double() + first @ torch.linalg.matrix_power(torch.eye(12).double() + can, 12))
        assert torch.equal(reachable(start[None].expand(2, -1, -1, -1), steps)[i].flatten(), there > 0)


def test_the_baselines_are_measured_in_every_task_and_said_in_the_readme():
    "The rows behind the claim: 64 rooms of each shipped checkpoint, the same ones, and the two numbers on the front page."
    import csv
    from pathlib import Path
    from ldp_tut.book import asset
    read = lambda name: list(csv.DictReader(open(asset(name))))
    own = {(r['task'], r['seed']): (r['success'], r['steps']) for r in read('planner_tasks.csv')}
    rows = [r for r in read('planner_baselines.csv') if r['method'].startswith('argmax')]
    tasks, methods = {task for task, _ in own}, {'argmax of the reward head', 'argmax + search in the learned steps'}
    assert len(tasks) == 10 and len(rows) == 2 * 64 * len(tasks) and {(r['task'], r['method']) for r in rows} == {(t, m) for t in tasks for m in methods}
    same = sum(own[r['task'], r['seed']] == (r['success'], r['steps']) for r in rows if r['method'] == 'argmax of the reward head')
    found = sum(r['success'] == 'True' for r in rows if r['method'] != 'argmax of the reward head')
    said = (Path(__file__).parent.parent / 'README.md').read_text()
    assert same == 640 and 'all of 640 walks' in said and f'solves {found} of the 640 rooms' in said


# Steps of the first rooms from seed 2,000,000, as the planner walked them that this chapter had before it used the generic one.
WALKS = {'simplecrossing-n1': [14, 14, 13, 14], 'doorkey-5x5': [12, 8, 12, 8], 'multiroom-n2-s4': [7, 8, 10, 9]}


@pytest.mark.parametrize('name', sorted(WALKS))  # one mode, counted modes, modes by change
def test_the_generic_planner_plans_through_the_chain(name, monkeypatch):
    "`FarFuturePlanner` itself, with the chain's world and denoiser put in: its own functions are called, and it walks as ever."
    from ldp_tut import planner as farfuture
    agent, called = load_pretrained(name, 'cpu'), []
    assert isinstance(agent.planner, FarFuturePlanner) and type(agent.planner).plan is FarFuturePlanner.plan and type(agent.planner).plan_from is FarFuturePlanner.plan_from
    for part in ('try_destinations', 'settle_way', 'next_action'):
        plain = getattr(farfuture, part)
        monkeypatch.setattr(farfuture, part, lambda *a, _plain=plain, _part=part, **k: (called.append(_part), _plain(*a, **k))[1])
    model, config = agent.planner.model, agent.config
    generic = FarFuturePlanner(ChainWorld(model, config), model, config.for_planner(), Arrival(model, config))
    generic.model, walked = model, {}  # whoever judges plans wants to know it
    for planner in (agent.planner, generic):
        agent.planner = planner
        report = evaluate(agent, len(WALKS[name]), progress=False)
        walked[type(planner).__name__] = [r['steps'] * r['success'] for r in report['rows']]
        assert called.count('settle_way') == called.count('next_action') == max(walked[type(planner).__name__]), 'each plan and each action is the generic class\'s'
        assert 1 <= called.count('try_destinations') <= called.count('settle_way'), 'a place once believed in is remembered'
        called.clear()
    assert walked == dict(ChainPlanner=WALKS[name], FarFuturePlanner=WALKS[name])


def test_a_chain_is_a_world_and_a_denoiser_by_their_protocols(crossing):
    from ldp_tut.worlds import World
    planner, frame = crossing.planner, make_env(ENV).reset(seed=3)[0]['image'][None]
    world = planner.world
    assert isinstance(world, World)
    z = world.encode(world.read(frame))
    assert z.shape == (1, *world.latent_shape) and (world.decode(z)[0] == torch.from_numpy(frame[0])).all()
    scene = world.scene(world.read(frame))
    p = planner.denoiser(torch.stack([z, z], 1), torch.tensor([[0, 50]]), torch.tensor([[0., 9.]]), scene)
    assert p.x0.shape == (1, 2, *world.latent_shape) and p.heads['reward'].shape == (1, 2, 1)
    assert world.action(z, z, torch.tensor([9]), scene).exp().sub(1 / world.actions).abs().max() < 1e-6, 'too far to tell'


def test_what_is_known_is_not_sought_again(crossing):
    "Of two rooms the second one's place is known: it stays, whatever the seed; the first is sought as if alone."
    obs = torch.stack(Rooms(crossing.env_id, [5_000_000, 5_000_001], crossing.planner.model.config).obs)
    first = crossing.planner.plan(obs, [0, 1])
    far = first.z[[0, 1], first.at]
    known = torch.stack([torch.full_like(far[0], torch.nan), far[1]])
    again = crossing.planner.plan(obs, [0, 7], known=known)
    torch.testing.assert_close(again.z[0], first.z[0])
    assert torch.equal(again.z[1, again.at[1]], far[1]) and not torch.equal(again.z[1], first.z[1])


def test_an_agent_acts_whatever_the_caller_has_switched_off():
    "Also with gradients that cannot be had, and with weights that were loaded so."
    obs, actions = make_env(ENV).reset(seed=3)[0], []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            agent = load_pretrained('simplecrossing-n1', 'cpu').reset(0)
            actions.append((agent.act(obs), agent.act(obs), float(agent.plan.reward)))
    assert actions[0] == actions[1] == actions[2]


def test_an_agent_drives_a_vector_environment(crossing):
    "Dicts of arrays, no `begin`, rooms that start again by themselves."
    import gymnasium as gym
    from functools import partial
    many = gym.vector.SyncVectorEnv([partial(make_env, ENV)] * 2)
    obs, _ = many.reset(seed=5)
    agent = ChainAgent(crossing.planner.model, crossing.config, crossing.card).reset(0)
    images = obs['image'].copy()
    first, won, last = agent.act_batch(obs), 0, np.zeros(2, bool)
    with pytest.raises(ValueError, match='1 observations for 2 rooms'): agent.act_batch(obs['image'][:1])
    for _ in range(40):
        action = agent.act_batch(obs).numpy()
        obs, reward, terminated, truncated, _ = many.step(action)
        won, last = won + int((reward > 0).sum()), last | terminated
        agent.restart(terminated | truncated)
        if (terminated | truncated).any(): assert agent.remembered()[terminated | truncated].isnan().all()
    assert won >= 3 and last.all()
    again = ChainAgent(crossing.planner.model, crossing.config, crossing.card)
    again.begin(np.arange(2))
    assert torch.equal(first, again.act_batch(images)) and first.dtype == torch.int64


@pytest.mark.parametrize('kind', [np.uint8, np.int64, np.float64, torch.uint8, torch.float64])
def test_plans_do_not_depend_on_how_frames_and_seeds_are_held(crossing, kind):
    frame = make_env(ENV).reset(seed=3)[0]['image']
    given = torch.from_numpy(frame).to(kind) if isinstance(kind, torch.dtype) else frame.astype(kind)
    plan = crossing.planner.plan(given[None], np.array([2**40 + 3]))
    assert torch.equal(plan.z, crossing.planner.plan(torch.from_numpy(frame)[None], [2**40 + 3]).z)


def test_a_plan_refuses_what_it_cannot_read(crossing):
    frame = make_env(ENV).reset(seed=3)[0]['image']
    with pytest.raises(ValueError, match='1 observations for 2 seeds'): crossing.planner.plan(frame[None], [0, 1])
    with pytest.raises(ValueError, match='NaN'): crossing.planner.plan(np.full(frame[None].shape, np.nan), [0])
    with pytest.raises(ValueError, match=r'reads grids \[9, 9, 3\], got \[9, 3\]'): crossing.planner.plan(frame, [0])


def _moving(n, size, draw, seed=0):
    "Two frames a step apart of something that goes to a neighbouring place, `draw`n on a canvas."
    g, ways = torch.Generator().manual_seed(seed), torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    at = torch.randint(0, size, (n, 2), generator=g)
    return draw(at), draw((at + ways[torch.randint(0, 4, (n,), generator=g)]).clamp(0, size - 1)), g


def _walker(content, n=300, size=7, seed=0):
    "One cell in one of two looks on a grid of cells."
    def draw(at):
        frames = torch.zeros(n, size, size, 1, dtype=torch.uint8)
        frames[torch.arange(n), at[:, 0], at[:, 1], 0] = (content + torch.arange(n) % 2).to(torch.uint8)
        return frames
    return _moving(n, size, draw, seed)[:2]


def test_one_mover_on_a_grid_is_found():
    now, then = _walker(1)
    assert find_mover(now, find_contents(now)[0], then) == (1, 2)


def test_two_movers_and_moving_obstacles_are_refused():
    (now, then), (other, later) = _walker(1), _walker(5, seed=1)
    both = lambda a, b: torch.where(a > 0, a, b)
    now, then = both(now, other), both(then, later)
    alone = ((now > 4).sum((1, 2, 3)) == 1) & ((then > 4).sum((1, 2, 3)) == 1)
    with pytest.raises(ValueError, match='more than one thing moves.*one mover, and no obstacles'): find_mover(now[alone], find_contents(now[alone])[0], then[alone])
    ball, rolls = (t.clamp(max=1) * 9 for t in (other, later))                      # always the same look: no mover, but it moves
    (now, then) = _walker(1)
    now, then = both(now, ball), both(then, rolls)
    alone = ((now == 9).sum((1, 2, 3)) == 1) & ((then == 9).sum((1, 2, 3)) == 1)
    with pytest.raises(ValueError, match=r'more than one thing moves.*such as \[[09]\]'): find_mover(now[alone], find_contents(now[alone])[0], then[alone])
    with pytest.raises(ValueError, match='as much of everything as before'): find_modes(now[alone], then[alone], find_contents(now[alone])[0], (1, 2))


@pytest.mark.parametrize('step', [1, 3])
def test_what_moves_by_less_than_a_cell_is_refused(step):
    "A dot of four pixels on a canvas cut into cells of eight."
    def draw(at):
        canvas = torch.zeros(300, 32, 32, 3, dtype=torch.uint8)
        for i, (x, y) in enumerate((step * at).tolist()): canvas[i, x:x + 4, y:y + 4] = 255
        return patches(canvas, 8)
    now, then, _ = _moving(300, 29 // step, draw)
    with pytest.raises(ValueError, match='not one cell large'): find_mover(now, find_contents(torch.cat([now, then]))[0], then)


def test_what_jumps_is_refused():
    now, _ = _walker(1)
    with pytest.raises(ValueError, match='jumps'): find_mover(now, find_contents(now)[0], now.flip(1))


def test_too_many_things_and_too_many_modes_are_refused():
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (60, 8, 8, 3), generator=g, dtype=torch.uint8)
    with pytest.raises(ValueError, match='distinct cells'): check_contents(find_contents(noise)[0])
    with pytest.raises(ValueError, match='use changes=True'): find_modes(noise[..., :1], noise[..., :1], find_contents(noise[..., :1])[0], (0,))


@pytest.mark.parametrize('env_id, reason', [('MiniGrid-KeyCorridorS3R1-v0', 'no goal cells'), ('MiniGrid-Unlock-v0', 'rules of its own'), ('MiniGrid-Dynamic-Obstacles-6x6-v0', 'rules of its own')])
def test_tasks_that_are_won_otherwise_are_refused_before_training(tmp_path, env_id, reason):
    with pytest.raises(ValueError, match=reason): train_planner(Recipe(env_id=env_id, episodes=4), tmp_path / 'run', 'cpu', progress=False)
    assert not (tmp_path / 'run').exists(), 'nothing was collected'
    check_goal(ENV)


@pytest.mark.parametrize('predicted, executed, n, says', [(0.97, 0.56, 64, 'promise what does not happen'), (0.986, 1., 16, ''), (0.6, 0.5, 16, ''), (0.03, 1., 64, 'expect less')])
def test_a_report_warns_where_predicted_and_executed_reward_part(predicted, executed, n, says):
    text = promise_warning(dict(episodes=n, predicted_reward=predicted, executed_reward=executed, lawful_rate=0.9))
    assert (says in text and f'{n} rooms' in text) if says else text == ''


def test_an_evaluation_carries_its_warning(crossing):
    blind = ChainAgent(crossing.planner.model, replace(crossing.config, scale=0.), crossing.card)
    report = evaluate(blind, 8, seed=5_000_000, progress=False)
    assert report['warning'] == promise_warning(report) != ''
    assert evaluate(crossing, 2, seed=5_000_000, progress=False)['warning'] == ''


def test_the_oracle_says_what_the_denoiser_says(crossing):
    "The posterior is the denoiser's own belief; arrivals are those of pure noise; both are log-probabilities."
    model = crossing.planner.model
    obs = torch.stack(Rooms(crossing.env_id, [5_000_000, 5_000_001], model.config).obs)
    with torch.no_grad(): scene = model.observe(obs)
    z0, g = model.latent_now(scene), torch.Generator().manual_seed(0)
    times, k = torch.tensor([[0., 3., 9.]]).expand(2, 3), torch.tensor([[0, 60, 90]]).expand(2, 3)
    x = add_noise(model.schedule, torch.stack([z0] * 3, 1), k, torch.randn(2, 3, z0.shape[1], generator=g))
    with torch.no_grad():
        torch.testing.assert_close(model.posterior(x, k, times, scene), model(x, k, times, scene).heads['place'])
        later = model.arrival(scene, 5)
    assert later.shape[:2] == (2, 5)
    torch.testing.assert_close(later.exp().flatten(2).sum(2), torch.ones(2, 5))


def test_the_oracle_knows_how_soon_one_can_be_anywhere(crossing):
    "Lawful in time exactly where the room's own rules say so: every pose of a room, at its exact distance and one step before."
    from ldp_tut.envs import distance_to
    model = crossing.planner.model
    rooms = layouts(ENV, [5_000_000])
    scene, (x0, y0, d0) = model.observe(rooms.observe()), rooms.pose[0].tolist()
    poses = torch.tensor([(x, y, d) for x in range(1, 8) for y in range(1, 8) for d in range(4) if rooms.cells[0, x, y, 0] == EMPTY and (x, y, d) != (x0, y0, d0)])[::7]
    far = distance_to(rooms.cells.expand(len(poses), -1, -1, -1), poses)[torch.arange(len(poses)), d0, x0, y0].float()
    many = lambda t: t if not t.numel() else t.expand(len(poses), *t.shape[1:])
    scene = type(scene)(*(many(t) for t in scene))
    z = torch.stack([model.latent_now(scene), model.world.encode(paint_agent(rooms.cells.expand(len(poses), -1, -1, -1), poses))], 1)
    in_time = lambda n: model.lawful(z, torch.stack([torch.zeros_like(n), n], 1), scene)[:, 0]
    assert in_time(far).all() and not in_time(far - 1).any()


def test_old_names_of_weights_are_known():
    "A file with the names of the first release loads, and nothing in it is left over."
    from ldp_tut.checkpoints import checkpoint_shelf
    from ldp_tut.exact import load_denoiser, renamed
    from ldp_tut.checkpoints import load_checkpoint
    tensors, _ = load_checkpoint(checkpoint_shelf() / 'doorkey-5x5.safetensors')
    model, _ = load_denoiser('doorkey-5x5')
    own = model.state_dict()
    assert {renamed(n) for n in tensors} == set(own) and len(tensors) == len(own)
    assert all(renamed(n) == n for n in own), 'today\'s names stay as they are'


@pytest.mark.parametrize('module', ['world', 'exact', 'chain_planner', 'chain_training', 'bench'])
def test_every_public_name_is_something(module):
    "fastcore's `patch` leaves `None` behind under the name of every method; these modules have none."
    from importlib import import_module
    m = import_module(f'ldp_tut.{module}')
    assert m.__all__ and all(getattr(m, name) is not None for name in vars(m) if not name.startswith('__'))


def test_an_exact_agent_is_played_as_any_other():
    from ldp_tut.rooms import walk_rooms
    from ldp_tut.worlds import play
    agent, place = load_pretrained('simplecrossing-n1', 'cpu'), 'MiniGrid-SimpleCrossingS9N1-v0'
    walked = walk_rooms(agent, place, 4, progress=False)
    assert walked['success'] == 1 and len({r['steps'] for r in walked['rows']}) > 1, 'rooms that end one after the other'
    assert play(agent, place, 4, 2_000_000, progress=False)['success'] == 1
    with pytest.raises(ValueError, match='rows must be numbers below 2'): agent.begin([0, 1]).keep([2])
