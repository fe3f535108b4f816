"The batched twin against MiniGrid itself, and the two exact oracles against each other."
import gymnasium as gym
import numpy as np
import pytest
import torch

from ldp_tut.data import collect
from ldp_tut.envs import (CLASSIC, FAR, MAZES, BlockStacking, BlockTable, GridTwin, PointMaze, distance_to, draw_pixels, goal_cell, layouts, make_env, optimal_steps, paint_agent,
                          point_mazes, read_grid, shortest_plan, split_agent, steer, room_seeds, spared)

IDS = ['MiniGrid-FourRooms-v0', 'MiniGrid-Empty-8x8-v0', 'MiniGrid-SimpleCrossingS9N3-v0', 'MiniGrid-LavaCrossingS9N1-v0',
       'MiniGrid-MultiRoom-N2-S4-v0', 'MiniGrid-MultiRoom-N4-S5-v0', 'MiniGrid-DoorKey-5x5-v0', 'MiniGrid-DoorKey-8x8-v0',
       'MiniGrid-KeyCorridorS3R1-v0', 'MiniGrid-KeyCorridorS3R3-v0']
TRANSITIONS = 10_000  # of each id: 100,000 in all


@pytest.mark.parametrize('env_id', IDS)
def test_twin_equals_minigrid_step_by_step(env_id):
    "Random play with all seven actions: every cell, pose, reward and ending agrees, layout after layout."
    env, g, checked, first = make_env(env_id, view='partial').unwrapped, torch.Generator().manual_seed(0), 0, 0
    env.gen_obs = lambda: {}  # MiniGrid's own view is not compared here, and most of its time goes into it
    while checked < TRANSITIONS:
        rooms = layouts(env_id, range(first, first + 20))
        T = min(rooms.max_steps, 250)
        script = torch.multinomial(torch.tensor([1., 1., 2., 1., .3, 1., .2]), 20 * T, replacement=True, generator=g).view(T, 20)
        twin, rows = GridTwin(rooms.cells, rooms.pose, rooms.max_steps, prize=rooms.prize), []
        for t in range(T):
            reward, end, cut = twin.step(script[t])
            rows.append((twin.cells.numpy().copy(), twin.pose.numpy().copy(), reward.numpy(), end.numpy(), cut.numpy()))
        for e in range(20):
            env.reset(seed=first + e)
            for t in range(T):
                _, reward, end, cut, _ = env.step(int(script[t, e]))
                cells, pose = read_grid(env)
                assert (rows[t][0][e] == cells.numpy()).all() and (rows[t][1][e] == pose.numpy()).all(), f'{env_id}, layout {first + e}, step {t}'
                assert abs(rows[t][2][e] - reward) < 1e-6 and rows[t][3][e] == end and rows[t][4][e] == cut
                checked += 1
                if end or cut: break
        first += 20


@pytest.mark.parametrize('env_id', IDS[::3])
def test_what_the_twin_shows_is_what_the_wrapper_shows(env_id):
    env, room, g = make_env(env_id), layouts(env_id, [5]), torch.Generator().manual_seed(1)
    env.reset(seed=5)
    for _ in range(60):
        a = int(torch.randint(0, 7, (1,), generator=g))
        obs, _, end, cut, _ = env.step(a); room.step(torch.tensor([a]))
        assert (room.observe()[0].numpy() == obs['image']).all()
        if end or cut: break


def test_the_prize_of_keycorridor_is_taken_by_the_oracle():
    for seed in range(2):
        env = make_env('MiniGrid-KeyCorridorS3R1-v0'); env.reset(seed=seed)
        for a in shortest_plan(layouts('MiniGrid-KeyCorridorS3R1-v0', [seed])): _, reward, done, *_ = env.step(a)
        assert done and reward > 0


def test_ended_rooms_stay_as_they_are():
    room = layouts('MiniGrid-Empty-5x5-v0', [0])
    field = distance_to(room.cells, goal_cell(room.cells))
    while not bool(room.done): room.step(steer(room.cells, room.pose, field))
    before = room.pose.clone()
    for a in range(7):
        reward, *_ = room.step(torch.tensor([a]))
        assert float(reward) == 0 and torch.equal(room.pose, before)


@pytest.mark.parametrize('env_id', ['MiniGrid-FourRooms-v0', 'MiniGrid-SimpleCrossingS9N2-v0', 'MiniGrid-MultiRoom-N2-S4-v0'])
def test_two_exact_oracles_agree_and_steering_is_optimal(env_id):
    rooms = layouts(env_id, range(6))
    best, field = optimal_steps(rooms), distance_to(rooms.cells, goal_cell(rooms.cells))
    walk = GridTwin(rooms.cells, rooms.pose, 10_000)
    for _ in range(int(best.max())): walk.step(steer(walk.cells, walk.pose, distance_to(walk.cells, goal_cell(walk.cells))))
    assert bool(walk.terminated.all()) and walk.steps.tolist() == best.tolist()
    for i in range(6):
        one = GridTwin(rooms.cells[i:i + 1], rooms.pose[i:i + 1])
        assert len(shortest_plan(one)) == int(best[i])


def test_plans_with_keys_are_executed_by_minigrid_itself():
    for seed in range(4):
        env = make_env('MiniGrid-DoorKey-6x6-v0'); env.reset(seed=seed)
        for a in shortest_plan(layouts('MiniGrid-DoorKey-6x6-v0', [seed])): _, reward, done, *_ = env.step(a)
        assert done and reward > 0


def test_an_unreachable_goal_is_far_and_has_no_plan():
    room = layouts('MiniGrid-Empty-5x5-v0', [0])
    x, y = goal_cell(room.cells)[0]
    room.cells[0, x - 1, y] = room.cells[0, x, y - 1] = torch.tensor([2, 5, 0], dtype=torch.uint8)
    assert int(optimal_steps(room)) == FAR and shortest_plan(room) is None


def test_distance_to_a_pose_counts_the_last_turn():
    room = layouts('MiniGrid-Empty-8x8-v0', [0])
    pose = torch.tensor([[3, 3, 0]])
    for later, expect in (([3, 3, 0], 0), ([3, 3, 1], 1), ([3, 3, 2], 2), ([4, 3, 0], 1), ([2, 3, 0], 5), ([4, 4, 1], 3)):
        d = distance_to(room.cells, torch.tensor([later]))
        assert int(d[0, 0, 3, 3]) == expect, later


def test_bad_worlds_are_refused():
    with pytest.raises(ValueError, match='unknown environment id'): make_env('MiniGrid-Nowhere-v0')
    with pytest.raises(ValueError, match='no adapter'): make_env('FrozenLake-v1')
    with pytest.raises(ValueError, match='unknown view'): make_env('MiniGrid-FourRooms-v0', view='side')
    with pytest.raises(ValueError, match='unknown maze'): PointMaze('giant')
    cells, pose = read_grid(_reset('MiniGrid-FourRooms-v0'))
    box = cells.clone(); box[5, 5, 0] = 7
    with pytest.raises(ValueError, match='no rule for objects'): GridTwin(box[None], pose[None])
    with pytest.raises(ValueError, match='exactly one goal'): goal_cell(torch.ones(2, 5, 5, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match='exactly one agent'): split_agent(cells[None])
    assert torch.equal(split_agent(paint_agent(cells[None], pose[None]))[0], pose)


def _reset(env_id):
    env = make_env(env_id); env.reset(seed=0)
    return env


@pytest.mark.parametrize('env_id', CLASSIC)
def test_classic_control_passes_through(env_id):
    a, b = make_env(env_id), gym.make(env_id)
    assert (a.reset(seed=3)[0] == b.reset(seed=3)[0]).all() and a.action_space == b.action_space


def test_three_views_of_one_room():
    views = {v: make_env('MiniGrid-FourRooms-v0', view=v).reset(seed=1)[0]['image'] for v in ('full', 'partial', 'rgb')}
    assert views['full'].shape == (19, 19, 3) and views['partial'].shape == (7, 7, 3) and views['rgb'].shape == (152, 152, 3)
    assert all(v.dtype == np.uint8 for v in views.values())


@pytest.mark.parametrize('env_id', ['MiniGrid-FourRooms-v0', 'MiniGrid-DoorKey-5x5-v0', 'MiniGrid-MultiRoom-N2-S4-v0', 'MiniGrid-LavaCrossingS9N1-v0'])
def test_pixels_are_minigrids_own(env_id):
    "Pixel by pixel, along random walks that open doors, pick up keys and step on the goal."
    env, g = make_env(env_id, view='rgb', highlight=False), torch.Generator().manual_seed(0)
    for seed in range(3):
        obs, done = env.reset(seed=seed)[0], False
        for _ in range(60):
            cells, pose = read_grid(env)
            assert (draw_pixels(cells[None], pose[None])[0].numpy() == obs['image']).all()
            if done: break
            obs, _, *ends, _ = env.step(int(torch.randint(0, 6, (1,), generator=g)))
            done = any(ends)
    env.reset(seed=0)
    env.unwrapped.agent_pos = next((x, y) for x in range(env.unwrapped.width) for y in range(env.unwrapped.height) if getattr(env.unwrapped.grid.get(x, y), 'type', '') == 'goal')
    cells, pose = read_grid(env)
    assert (draw_pixels(cells[None], pose[None])[0].numpy() == env.unwrapped.get_frame(highlight=False, tile_size=8)).all()


def test_point_maze_is_d4rls_task():
    env = PointMaze('umaze')
    goals, starts = set(), []
    for seed in range(20):
        state, _ = env.reset(seed=seed)
        goals.add(tuple(env.unwrapped.goal)); starts.append(state)
    assert len(goals) == 1 and tuple(env.goal) in goals and env.map.cells[env.map.nearest(env.goal)] == MAZES['umaze'].goal_cell
    assert np.abs(np.array(starts)[:, :2] - env.map.centre[env.map.nearest(np.array(starts)[:, :2])]).max() <= .1 + 1e-6  # never a quarter of a cell off
    state, reward, end, cut, _ = env.step(np.zeros(2, np.float32))
    assert state.shape == (4,) and state.dtype == np.float32 and not end
    for _ in range(298): *_, cut, _ = env.step(np.zeros(2, np.float32))
    assert not cut and env.step(np.zeros(2, np.float32))[3]


def test_a_reached_goal_stays_where_it_is_and_goes_on_paying():
    "gymnasium-robotics' defaults would end the episode or move the goal."
    env = PointMaze('umaze'); state, _ = env.reset(seed=0)
    goal, total = env.goal.copy(), 0.
    for _ in range(300):
        aim = env.map.centre[env.map.next[env.map.nearest(goal), env.map.nearest(state[:2])]]
        state, reward, end, *_ = env.step(np.clip(10 * (aim - state[:2]) - state[2:], -1, 1).astype(np.float32)); total += reward
        assert not end and reward == float(np.hypot(*(state[:2] - goal)) <= .5) and (env.unwrapped.goal == goal).all()
    assert total > 50


@pytest.mark.parametrize('name', ['umaze', 'medium'])
def test_a_goal_that_is_asked_for_is_the_goal(name):
    "For that episode: it pays there, the ball starts where it is told to, and the next reset has the task's goal again."
    env = PointMaze(name); cells = env.map.cells
    goal, start = next(c for c in cells if c != env.task.goal_cell), cells[-2]
    state, _ = env.reset(seed=0, options=dict(goal_cell=goal, reset_cell=np.array(start)))
    centre = env.map.centre[cells.index(goal)]
    assert (env.goal == centre).all() and (env.unwrapped.goal == centre).all() and np.abs(state[:2] - env.map.centre[cells.index(start)]).max() <= .1 + 1e-6
    there, _ = env.reset(seed=0, options=dict(goal_cell=goal, reset_cell=goal))
    assert env.step(np.zeros(2, np.float32))[1] == 1
    env.reset(seed=0)
    assert env.map.cells[env.map.nearest(env.goal)] == env.task.goal_cell


@pytest.mark.parametrize('options, match', [(dict(goal_cell=(0, 0)), r'goal_cell \(0, 0\) is a wall'), (dict(reset_cell=(99, 1)), 'outside the maze'), (dict(goal_cell=(1.5, 1)), 'two integers'),
                                            (dict(goal_cell=3), 'two integers'), (dict(goal_cell=(-1, 1)), 'two integers'), (dict(goal=(1, 1)), 'knows the options goal_cell, reset_cell')])
def test_goals_and_starts_that_there_are_not_are_refused(options, match):
    with pytest.raises(ValueError, match=match): PointMaze('umaze').reset(options=options)


@pytest.mark.parametrize('force', [[np.nan, 0.], [0., np.inf], [1.], 0., [0., 0., 0.]])
def test_forces_that_are_none_are_refused(force):
    env = PointMaze('umaze'); env.reset(seed=0)
    with pytest.raises(ValueError, match='two finite numbers'): env.step(np.array(force))
    assert np.isfinite(env.step(np.array([1, -1]))[0]).all()  # integers are numbers, too, and the world is unharmed


def test_a_maze_leaves_no_file_behind(tmp_path, monkeypatch):
    "gymnasium-robotics writes one for each; where it writes is wherever temporary files go."
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    many = point_mazes('umaze', 3); many.reset(seed=0); many.close()
    make_env('PointMaze_UMaze-v3').close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('integer', [np.int64, np.int8, np.uint16, torch.tensor])
def test_seeds_of_any_library_are_seeds(integer):
    "Gymnasium takes Python's own alone; ours take all, for one world and for many, and each the same."
    make = lambda: PointMaze('umaze'), lambda: point_mazes('umaze', 2), lambda: BlockStacking(3, 3)
    for env in (f() for f in make):
        assert np.array_equal(env.reset(seed=integer(7))[0], env.reset(seed=7)[0])
        for bad in (-1, 2.5, 'x'):
            with pytest.raises(ValueError, match='seed must be an integer of at least 0'): env.reset(seed=bad)
    many = point_mazes('umaze', 2)
    assert np.array_equal(many.reset(seed=np.array([7, 9]))[0], np.stack([PointMaze('umaze').reset(seed=s)[0] for s in (7, 9)])) and many.reset()[0].shape == (2, 4)


@pytest.mark.parametrize('env_id', ['MiniGrid-Empty-5x5-v0', 'CartPole-v1', 'ldp_tut/BlockStacking-v0'])
def test_a_render_mode_may_be_named(env_id):
    for how in (dict(render_mode='rgb_array'), dict(render=True)):
        env = make_env(env_id, **how); env.reset(seed=0)
        assert env.render_mode == 'rgb_array' and np.asarray(env.render()).ndim == 3
    assert make_env(env_id, render_mode=None).render_mode is None


def test_maze_distances_are_those_of_a_graph_search():
    maze = PointMaze('medium').map
    d = maze.distance
    assert (d == d.T).all() and (np.diag(d) == 0).all() and d.max() < 40
    for t, c in ((0, 5), (3, 20), (11, 2)):
        steps, at = 0, c
        while at != t: at, steps = maze.next[t, at], steps + 1
        assert steps == d[t, c]


def test_point_mazes_side_by_side_equal_each_alone():
    many, one = point_mazes('medium', 3), PointMaze('medium')
    states, (alone, _) = many.reset(seed=7)[0], one.reset(seed=9)
    force = np.random.default_rng(0).uniform(-1, 1, (50, 3, 2)).astype(np.float32)
    assert (states[2] == alone).all()
    for f in force: states, alone = many.step(f)[0], one.step(f[2])[0]
    assert (states[2] == alone).all()


@pytest.mark.parametrize('blocks, places, count', [(2, 3, 12), (3, 3, 60), (4, 4, 840)])
def test_block_table_counts_and_moves(blocks, places, count):
    "n! C(n + p - 1, p - 1) arrangements; every move can be undone; indices survive the trip through positions."
    table = BlockTable(blocks, places)
    assert len(table) == count and (table.index(table.position) == np.arange(count)).all()
    for s in range(0, count, 7):
        for f in range(places):
            for t in range(places):
                after = table.next[s, f * places + t]
                assert after == s or table.next[after, t * places + f] == s
    assert int(table.tower().sum()) == places * np.prod(range(1, blocks + 1))
    assert np.array_equal(table.positions(table.one_hot(table.position)), table.position) and table.one_hot(table.position).shape == (count, blocks, places + blocks)
    with pytest.raises(ValueError, match='one_hot must end in'): table.positions(np.zeros((blocks, 2)))
    floating = table.position[0] + np.array([[0, 1]] + [[0, 0]] * (blocks - 1)) * 5
    assert table.index(floating) == -1 and table.index(np.zeros((blocks, 2))) == -1
    d = table.distance(table.match(0))
    assert (np.abs(d[table.next] - d[:, None]) <= 1).all() and d.max() < 20 and (d == 0).sum() == 1


@pytest.mark.parametrize('env_id', ['MiniGrid-Unlock-v0', 'MiniGrid-Fetch-5x5-N2-v0', 'MiniGrid-Dynamic-Obstacles-5x5-v0'])
def test_worlds_with_other_rules_than_the_twins_are_refused(env_id):
    with pytest.raises(ValueError, match='rules of its own'): layouts(env_id, [0])


def test_block_stacking_is_a_gymnasium_environment():
    env = gym.make('ldp_tut/BlockStacking-v0')
    (obs, info), table = env.reset(seed=4, options=dict(target=BlockTable().tower([1, 3, 0, 2]))), BlockTable()
    far = table.distance(table.tower([1, 3, 0, 2]))
    for n in range(info['fewest_moves']):
        obs, reward, done, *_ = env.step(far[table.next[env.unwrapped.at]].argmin())
        assert done == (n + 1 == info['fewest_moves']) and reward == done
    for move in (-1, 16, 2.5, None):
        with pytest.raises(ValueError, match=r'a move must be an integer in 0\.\.15'): env.unwrapped.step(move)
    assert env.unwrapped.step(np.int64(0))[0].shape == (4, 2)
    for options, match in ((dict(start=-1), 'start must'), (dict(start=float('nan')), 'start must'), (dict(start=840), 'start must'), (dict(target=np.ones(3, bool)), r'bool \[840\]'), (dict(goal=1), 'target, start')):
        with pytest.raises(ValueError, match=match): env.reset(options=options)
    with pytest.raises(ValueError, match='every block'): table.tower([0, 0, 1, 2])
    with pytest.raises(ValueError, match=r'blocks must be an integer in 1\.\.5'): BlockStacking(9)
    with pytest.raises(ValueError, match='no arrangement'): table.distance(np.zeros(len(table), bool))


@pytest.mark.parametrize('env_id', ['MiniGrid-SimpleCrossingS9N1-v0', 'MiniGrid-DoorKey-5x5-v0'])
def test_layouts_kept_aside_are_never_walked_in(env_id):
    "Another seed is not another room: what was kept aside shares no layout with what was played, whatever the seeds."
    walked = {g.tobytes() for g in collect(env_id, 'wander', 60, seed=0, progress=False, longest=2, spare=3).grid}
    aside = room_seeds(env_id, 40, 2_000_000, 3)
    kept = layouts(env_id, aside).cells
    assert len(aside) == 40 and min(aside) >= 2_000_000 and aside == sorted(set(aside)) and spared(kept, 3).all()
    assert len(walked) > 1 and not walked & {c.numpy().tobytes() for c in kept}
    assert room_seeds(env_id, 5, 7) == [7, 8, 9, 10, 11] and not spared(kept, 0).any()


def test_too_few_layouts_to_keep_some_aside():
    with pytest.raises(ValueError, match='too few layouts'):
        for aside in (True, False): room_seeds('MiniGrid-Empty-5x5-v0', 2, 0, 3, aside)
    with pytest.raises(ValueError, match='at least 2'): room_seeds('MiniGrid-Empty-5x5-v0', 2, 0, 1)
