"The batched twin against MiniGrid itself, and the two exact oracles against each other."
import numpy as np
import pytest
import torch

from ldp_tut.envs import (FAR, FORWARD, GridTwin, distance_to, goal_cell, layouts, make_env, optimal_steps, paint_agent, read_grid, shortest_plan,
                          split_agent, steer)

IDS = ['MiniGrid-FourRooms-v0', 'MiniGrid-Empty-8x8-v0', 'MiniGrid-SimpleCrossingS9N3-v0', 'MiniGrid-LavaCrossingS9N1-v0',
       'MiniGrid-MultiRoom-N2-S4-v0', 'MiniGrid-MultiRoom-N4-S5-v0', 'MiniGrid-DoorKey-5x5-v0', 'MiniGrid-DoorKey-8x8-v0']
EPISODES = 12


@pytest.mark.parametrize('env_id', IDS)
def test_twin_equals_minigrid_step_by_step(env_id):
    "Random play with all seven actions: every observation, reward and ending agrees, in each of a dozen layouts."
    env, rooms, g = make_env(env_id), layouts(env_id, range(EPISODES)), torch.Generator().manual_seed(0)
    T = min(rooms.max_steps, 250)
    script = torch.multinomial(torch.tensor([1., 1., 2., 1., .3, 1., .2]), EPISODES * T, replacement=True, generator=g).view(T, EPISODES)
    twin, rows = GridTwin(rooms.cells, rooms.pose, rooms.max_steps), []
    for t in range(T):
        reward, end, cut = twin.step(script[t])
        rows.append((twin.observe().numpy(), reward.numpy(), end.numpy(), cut.numpy()))
    checked = 0
    for e in range(EPISODES):
        env.reset(seed=e)
        for t in range(T):
            obs, reward, end, cut, _ = env.step(int(script[t, e]))
            assert (rows[t][0][e] == obs['image']).all(), f'{env_id}, layout {e}, step {t}'
            assert abs(rows[t][1][e] - reward) < 1e-6 and rows[t][2][e] == end and rows[t][3][e] == cut
            checked += 1
            if end or cut: break
    assert checked > EPISODES * 5


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
    with pytest.raises(ValueError, match='not a MiniGrid'): make_env('CartPole-v1')
    cells, pose = read_grid(_reset('MiniGrid-FourRooms-v0'))
    box = cells.clone(); box[5, 5, 0] = 7
    with pytest.raises(ValueError, match='no rule for objects'): GridTwin(box[None], pose[None])
    with pytest.raises(ValueError, match='one goal'): goal_cell(torch.ones(2, 5, 5, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match='exactly one agent'): split_agent(cells[None])
    assert torch.equal(split_agent(paint_agent(cells[None], pose[None]))[0], pose)


def _reset(env_id):
    env = make_env(env_id); env.reset(seed=0)
    return env
