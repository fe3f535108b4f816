"Collecting, storing, cutting windows."
import os
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldp_tut.data import (Normaliser, Slices, Windows, as_frames, as_vectors, collect, collect_rooms, data_card, random_cells, random_offsets, relabel, returns_to_go,
                          wander_blocks, wander_maze)
from ldp_tut.envs import FAR, BlockTable, MazeMap, distance_to, layouts, make_env, point_mazes
from ldp_tut.records import FIELDS, Episodes, Trajectories, action_reader, observation_reader, select
from ldp_tut.store import StoreError, TrajectoryStore, file_sum, from_folder, from_minari, to_folder, to_minari

CARD = dict(env_id='MiniGrid-FourRooms-v0', policy='wander', seed=0)


@pytest.fixture(scope='module')
def episodes(): return collect('MiniGrid-FourRooms-v0', 'wander', 24, seed=0, progress=False)


def test_collected_episodes_replay_in_minigrid(episodes):
    env = make_env('MiniGrid-FourRooms-v0')
    for e in range(6):
        env.reset(seed=e)
        for t in range(episodes.length[e]):
            assert (*map(int, env.unwrapped.agent_pos), int(env.unwrapped.agent_dir)) == tuple(episodes.pose[e, t])
            _, reward, end, cut, _ = env.step(int(episodes.action[e, t]))
        assert bool(end) == episodes.terminated[e] and (reward > 0) == episodes.success[e] and (end or cut)


def test_frames_rebuild_every_change_of_a_world_with_doors_and_keys():
    e = collect('MiniGrid-DoorKey-6x6-v0', 'random', 6, seed=3, progress=False)
    windows, env = Windows(e), make_env('MiniGrid-DoorKey-6x6-v0')
    assert windows.has_change.any(), 'this test needs an episode in which something changed'
    for i in range(6):
        obs, _ = env.reset(seed=3 + i)
        for t in range(min(120, int(e.length[i]))):
            assert (windows.frames([i], [t])[0].numpy() == obs['image']).all()
            obs, *_ = env.step(int(e.action[i, t]))


def test_a_fiddler_takes_keys_and_opens_doors_but_seeks_nothing():
    data = collect('MiniGrid-DoorKey-5x5-v0', 'fiddle', 60, seed=0, progress=False)
    taken, opened = (data.change[..., 2:] == (1, 0, 0)).all(-1).any(1), ((data.change[..., 2] == 4) & (data.change[..., 4] == 0)).any(1)
    assert taken.mean() > .9 and opened.mean() > .9 and (taken >= opened).all(), 'no door opens without the key'
    assert 4 not in np.unique(data.action), 'keys are kept'
    slow = data.length[data.success].mean()
    assert slow > 30, 'an agent that sought the goal would need about ten steps'


def test_the_same_seed_gives_the_same_data(episodes):
    again = collect('MiniGrid-FourRooms-v0', 'wander', 24, seed=0, progress=False)
    assert all((getattr(again, f) == getattr(episodes, f)).all() for f in FIELDS)


def test_shards_read_as_one(episodes, tmp_path):
    store = TrajectoryStore(tmp_path)
    store.append(episodes, CARD); store.append(collect('MiniGrid-FourRooms-v0', 'wander', 8, seed=24, progress=False), CARD)
    windows = Windows(store.load())
    assert len(windows) == 32
    where = np.array([0, 23, 24, 31])
    both = windows.gather('grid', where)
    assert (both[0] == episodes.grid[0]).all() and (both[2] == store.load()[1].grid[0]).all()
    one = Windows(episodes)
    assert torch.equal(one.frames([3, 5], [2, 4]), windows.frames([3, 5], [2, 4]))


def small(n=6, T=9, seed=0, lengths=None, terminated=None, actions=0, goal=False, shape=(3,), dtype=np.float32):
    "Episodes of noise."
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T + 1, n) if lengths is None else np.asarray(lengths)
    N, M = int(lengths.sum()) + len(lengths), int(lengths.sum())
    see = rng.standard_normal((N, *shape)).astype(np.float32) if dtype == np.float32 else rng.integers(0, 256, (N, *shape)).astype(dtype)
    act = rng.integers(0, actions, M) if actions else rng.standard_normal((M, 2)).astype(np.float32)
    return Trajectories(see, act, rng.random(M).astype(np.float32), lengths, rng.random(len(lengths)) < .5 if terminated is None else terminated, actions,
                        rng.standard_normal((N, 2)).astype(np.float32) if goal else None)


def equal(a, b):
    "Two flat records are the same, types too."
    for f in a.__dataclass_fields__:
        x, y = getattr(a, f), getattr(b, f)
        assert (x is None) == (y is None) and np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y), f
    return True


KINDS_OF_DATA = dict(vectors=dict(), discrete=dict(actions=4), goals=dict(goal=True), pixels=dict(shape=(5, 4, 3), dtype=np.uint8, actions=3))


@pytest.mark.parametrize('how', KINDS_OF_DATA.values(), ids=KINDS_OF_DATA)
def test_episodes_lie_end_to_end(how):
    data = small(7, 12, **how)
    assert len(data.observation) == data.length.sum() + 7 and len(data.action) == data.length.sum() and (data.truncated == ~data.terminated).all()
    parts = [*data]
    assert [len(e) for e in parts] == data.length.tolist() and all(len(e.observation) == len(e) + 1 for e in parts)
    assert equal(data, Trajectories.from_episodes(parts, data.actions)) and equal(data, Trajectories.from_padded(**data.padded()))
    assert equal(data, Trajectories.concat([data[:3], data[3:4], data[[4, 5, 6]]])) and equal(data, Trajectories.concat(data[i:i + 1] for i in range(7)))
    long = data.length > np.median(data.length)
    assert [len(e) for e in data[long]] == data.length[long].tolist() and np.array_equal(data[long][0].observation, parts[int(np.argmax(long))].observation)
    assert np.array_equal(data[[5, 2]][1].observation, parts[2].observation) and np.array_equal(data[np.int64(-1)].reward, parts[6].reward)
    for e, T in enumerate(data.length):
        for t in range(T + 1):
            assert np.array_equal(data.rows('observation', e, t), parts[e].observation[t]) and (t == T or np.array_equal(data.rows('action', e, t), parts[e].action[t]))
    full = data.padded()
    e = int(np.argmin(data.length)); T = data.length[e]
    assert (full['observation'][e, T:] == parts[e].observation[-1]).all() and (full['reward'][e, T:] == 0).all() and (full['action'][e, T:] == (-1 if data.actions else 0)).all()
    assert data.action_vectors().shape == (data.length.sum(), data.action_dims)


def test_one_long_episode_among_short_ones_is_not_padded():
    data = small(lengths=[2] * 500 + [20_000])
    assert data.observation.nbytes == (500 * 3 + 20_001) * 3 * 4
    window = Windows(data)
    assert window.tokens(np.array([500]), np.array([0]), np.array([[0, 19_999, 20_001]]))['valid'].tolist() == [[True, True, False]]


def test_cut_episodes():
    data = small(4, lengths=[5, 3, 4, 6], terminated=[True] * 4, goal=True)
    cut = select(data, [0, 2, 3], [5, 2, 1])
    assert cut.length.tolist() == [5, 2, 1] and cut.terminated.tolist() == [True, False, False]
    assert np.array_equal(cut[1].observation, data[2].observation[:3]) and np.array_equal(cut[2].goal, data[3].goal[:2]) and np.array_equal(cut[1].action, data[2].action[:2])


def test_numbers_are_converted_in_one_place():
    see, act = np.arange(8, dtype=np.float64).reshape(4, 2), np.ones((3, 1), np.float64)
    for kind in (np.float64, np.float16, np.int64, np.int8, bool):
        data = Trajectories(see.astype(kind), act, np.zeros(3, int), [np.int64(3)], [1])
        assert data.observation.dtype == np.float32 and np.array_equal(data.observation, see.astype(kind)) and data.action.dtype == data.reward.dtype == np.float32
    data = Trajectories(see.astype(np.uint8), np.array([0, 1, 2], np.int8), np.zeros(3), np.array([3], np.uint8), [False], np.int64(3))
    assert data.observation.dtype == np.uint8 and data.action.dtype == np.int64 and type(data.actions) is int and data.terminated.dtype == bool and data.length.dtype == np.int32
    shared = np.zeros((4, 2), np.float32)
    assert np.shares_memory(Trajectories(shared, act, np.zeros(3), [3], [1]).observation, shared), 'what has the right type is not copied'


@pytest.mark.parametrize('change, reason', [
    (dict(length=[3, 3]), 'observation has 7 rows, but 2 episodes of together 6 steps need 8: are the lengths right'), (dict(length=[5, 0]), 'episode 1 has 0 steps'),
    (dict(length=[]), 'at least one episode, got none'), (dict(reward=np.zeros((5, 1))), 'one number a step'), (dict(reward=np.zeros(4)), 'reward has 4 rows'),
    (dict(terminated=[True]), 'terminated has 1 rows'), (dict(action=np.zeros(5)), 'told as `actions`'), (dict(action=np.zeros(5, int)), 'told as `actions`'),
    (dict(action=np.zeros(5), actions=3), 'told as `actions`'), (dict(observation=np.array(list('abcdefg'))), 'data are numbers'), (dict(goal=np.zeros((5, 2))), 'goal has 5 rows')])
def test_records_that_do_not_fit_are_refused(change, reason):
    good = dict(observation=np.zeros((7, 2)), action=np.zeros((5, 1)), reward=np.zeros(5), length=[2, 3], terminated=[True, False])
    Trajectories(**good)
    with pytest.raises(ValueError, match=reason): Trajectories(**good | change)


def test_what_is_empty_or_does_not_go_together_is_refused():
    data = small()
    for nothing in (lambda: data[data.length > 99], lambda: data[[]], lambda: Trajectories.from_episodes([])):
        with pytest.raises(ValueError, match='was everything filtered out'): nothing()
    with pytest.raises(ValueError, match='empty list'): Trajectories.concat([])
    with pytest.raises(ValueError, match='part 1 is unlike the first'): Trajectories.concat([data, small(actions=3)])
    with pytest.raises(ValueError, match='part 1 is unlike the first'): Windows([data, small(goal=True)])
    with pytest.raises(ValueError, match='windows are cut from Episodes or from Trajectories'): Windows([dict()])
    with pytest.raises(ValueError, match='no episodes'): Windows([])
    with pytest.raises(ValueError, match='episode 1 has length 9, its arrays hold 4 actions'):
        Trajectories.from_padded(np.zeros((2, 5, 1)), np.zeros((2, 4, 1)), np.zeros((2, 4)), [2, 9], [0, 0])
    with pytest.raises(IndexError): data[99]


POISON = dict(observation=('observation of episode 2, step 1, dimension 1 is nan', np.nan), action=('action of episode 2, step 1, dimension 1 is inf', np.inf),
              reward=('reward of episode 2, step 1 is -inf', -np.inf), goal=('goal of episode 2, step 1, dimension 1 is nan', np.nan))


@pytest.mark.parametrize('name', POISON)
def test_nan_and_infinity_are_said_at_every_door(name, tmp_path, monkeypatch):
    monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
    data = small(goal=True, lengths=[3, 4, 5, 2])
    row = (data.action_start if name in ('action', 'reward') else data.observation_start)[2] + 1
    getattr(data, name)[(row, 1) if name != 'reward' else row] = POISON[name][1]
    for door in (lambda: Slices(data), lambda: Windows(data), lambda: TrajectoryStore(tmp_path / 's').append(data, CARD), lambda: to_minari(data, 'ldp/poison-v0')):
        with pytest.raises(ValueError, match=POISON[name][0]): door()
    assert not [*tmp_path.glob('s/*')] and not (tmp_path / 'minari' / 'ldp').exists()


class Faulty(gym.Wrapper):
    "Shows NaN from a certain step on, and counts its steps."
    steps = 0

    def step(self, action):
        Faulty.steps += 1
        seen, *rest = self.env.step(action)
        return (seen * np.nan if Faulty.steps > 60 else seen, *rest)


def test_nan_in_a_world_ends_the_playing_with_the_episode_that_shows_it():
    Faulty.steps = 0
    with pytest.raises(ValueError, match=r'observation of episode \d+, step \d+, dimension 0 is nan'):
        collect(lambda: Faulty(gym.make('CartPole-v1')), episodes=500, progress=False)
    assert 60 < Faulty.steps < 1000, Faulty.steps


@pytest.mark.parametrize('wrong', [-1, 7])
def test_discrete_actions_outside_their_space_are_refused(wrong):
    data = small(actions=4, lengths=[3, 4]); data.action[4] = wrong
    with pytest.raises(ValueError, match=f'action of episode 1, step 1 is {wrong}: there are the actions 0 to 3'): Slices(data)


@pytest.mark.parametrize('how', KINDS_OF_DATA.values(), ids=KINDS_OF_DATA)
@pytest.mark.parametrize('shards', [1, 3])
def test_windows_of_flat_records_stay_where_the_episode_ended(how, shards):
    data = small(9, 12, **how)
    windows = Windows([data[i::shards] for i in range(shards)] if shards > 1 else data)
    order = np.concatenate([np.arange(9)[i::shards] for i in range(shards)])
    assert len(windows) == 9 and windows.length.tolist() == data.length[order].tolist()
    episode, start = windows.draw(40, torch.Generator().manual_seed(0))
    offsets = np.random.default_rng(1).integers(-2, 16, (40, 5))
    for absorb in (False, True):
        windows.absorb = absorb
        t = windows.tokens(episode, start, offsets)
        for b in range(40):
            e = data[order[episode[b]]]
            for h in range(5):
                time, T = start[b] + offsets[b, h], len(e)
                at = min(max(time, 0), T)
                assert t['time'][b, h] == at and np.array_equal(t['observation'][b, h], e.observation[at])
                assert t['reward'][b, h] == (e.reward[time - 1] if 0 < time <= T else 0) and t['terminated'][b, h] == (time >= T and e.terminated)
                assert t['valid'][b, h] == (0 <= time <= T or time > T and absorb and e.terminated)
                assert np.array_equal(t['action'][b, h], e.action[at] if at < T else np.full_like(e.action[0], -1 if data.actions else 0))
                if e.goal is not None: assert np.array_equal(t['goal'][b, h], e.goal[at])
    assert torch.equal(windows.frames(episode[:, None], t['time']), torch.from_numpy(t['observation']))


@pytest.mark.parametrize('how', KINDS_OF_DATA.values(), ids=KINDS_OF_DATA)
def test_flat_records_survive_a_store(how, tmp_path):
    data, store = small(**how), TrajectoryStore(tmp_path)
    store.append(data[:4], CARD); store.append(data[4:], CARD)
    assert equal(data, Trajectories.concat(store.load())) and store.cards()[0]['kind'] == 'flat'


def test_stores_of_padded_episodes_still_load(tmp_path):
    "What earlier versions wrote: [episodes, longest] of everything."
    import json
    import zlib
    data = small()
    (shard := tmp_path / 'shard-00000').mkdir()
    full, sums = data.padded(), {}
    for f in ('observation', 'action', 'reward', 'length', 'terminated'):
        np.save(shard / f'{f}.npy', full[f]); sums[f] = zlib.crc32((shard / f'{f}.npy').read_bytes())
    (shard / 'card.json').write_text(json.dumps(dict(CARD, kind='vector', crc32=sums)))
    store = TrajectoryStore(tmp_path)
    assert equal(store.load()[0], data)
    store.append(data, CARD)
    assert len(Trajectories.concat(store.load())) == 12


@pytest.mark.parametrize('kind', ['grid', 'vector'])
def test_a_store_cut_off_at_any_byte_is_refused_in_one_sentence_and_the_rest_recovered(episodes, tmp_path, kind):
    "Every file of a shard, at forty cut points each, first and last bytes among them."
    data = episodes if kind == 'grid' else small()
    store = TrajectoryStore(tmp_path)
    store.append(data, CARD); shard = store.append(data, CARD)
    for file in sorted(shard.iterdir()):
        whole = file.read_bytes()
        for cut in sorted({0, 1, len(whole) - 2, *np.linspace(2, len(whole) - 3, 37).astype(int)}):
            file.write_bytes(whole[:cut])
            with pytest.raises(StoreError, match=f'{shard.name}.*(checksum|read|readable).*recover'): store.load()
        file.write_bytes(whole)
    assert len(store.load()) == 2
    file.write_bytes(whole[:-1])
    assert store.recover() == [shard.name] and len(store.load()) == 1 and store.recover() == []
    again = store.load()[0]
    assert all(np.array_equal(getattr(again, f), getattr(data, f)) for f in data.__dataclass_fields__ if getattr(data, f) is not None)
    assert len([*tmp_path.glob('broken-*')]) == 1  # set aside, not deleted


def test_a_changed_byte_is_noticed(episodes, tmp_path):
    shard = TrajectoryStore(tmp_path).append(episodes, CARD)
    for field in FIELDS:
        file = shard / f'{field}.npy'; whole = bytearray(file.read_bytes())
        whole[-1] ^= 1; file.write_bytes(whole)
        with pytest.raises(StoreError, match='checksum'): TrajectoryStore(tmp_path).load()
        whole[-1] ^= 1; file.write_bytes(whole)
    assert len(TrajectoryStore(tmp_path).load()) == 1


def test_two_writers_are_refused_and_a_killed_one_is_forgotten(tmp_path):
    store = TrajectoryStore(tmp_path); store.append(small(), CARD)
    code = f"""
import sys, time
from ldp_tut.store import TrajectoryStore
with TrajectoryStore({str(tmp_path)!r}).writing(): print('holding', flush=True); time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'holding\n'
    with pytest.raises(StoreError, match='written by somebody else'): store.append(small(), CARD)
    with pytest.raises(StoreError, match='written by somebody else'): store.recover()
    assert len(store.load()) == 1  # reading is free
    other.kill(); other.wait()
    store.append(small(), CARD)
    assert len(store.load()) == 2


def test_one_kind_and_one_environment_a_store(episodes, tmp_path):
    store = TrajectoryStore(tmp_path); store.append(small(), CARD)
    with pytest.raises(StoreError, match='choose another folder'): store.append(episodes, CARD)
    with pytest.raises(StoreError, match='Episodes or Trajectories, not dict'): store.append({}, CARD)
    with pytest.raises(StoreError, match='must name its environment'): store.append(episodes, dict(policy='wander'))


@pytest.fixture
def minari_home(tmp_path, monkeypatch): monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))


def same(a, b):
    "Two gridworld records are equal in every field, beyond the end of an episode too."
    for f in FIELDS: assert getattr(a, f).dtype == getattr(b, f).dtype and np.array_equal(getattr(a, f), getattr(b, f)), f


def test_a_minari_round_trip_loses_nothing(episodes, minari_home):
    for name, how in KINDS_OF_DATA.items():
        data = small(**how)
        assert equal(data, from_minari(to_minari(data, f'ldp/{name}-v0', dict(policy='none'))))
    same(episodes, from_minari(to_minari(episodes, 'ldp/rooms-v0')))
    doors = collect('MiniGrid-DoorKey-5x5-v0', 'random', 5, seed=2, progress=False)
    assert (doors.change[..., 0] >= 0).any(), 'this test needs a door that moved'
    same(doors, from_minari(to_minari(doors, 'ldp/doors-v0')))
    with pytest.raises(ValueError, match='choose another id'): to_minari(data, 'ldp/vectors-v0')


def test_the_ecosystems_data_works_here(minari_home):
    "Data recorded with Minari's own collector, discrete actions and all."
    import minari
    pytest.importorskip('jax', reason="Minari's collector needs jax, which this book does not")
    env = minari.DataCollector(gym.make('CartPole-v1'))
    for seed in range(3):
        env.reset(seed=seed); done = False
        while not done: _, _, end, cut, _ = env.step(env.action_space.sample()); done = end or cut
    data = from_minari(env.create_dataset('ldp/cartpole-v0'))
    assert data.observation.shape[1] == 4 and data.actions == 2 and data.terminated.all()


def test_foreign_boxes_and_discrete_actions_come_in(minari_home):
    "The same, through Minari's buffers: dictionaries of boxes, discrete actions that do not start at 0."
    import minari
    from gymnasium.spaces import Box, Dict, Discrete
    from minari.data_collector import EpisodeBuffer
    rng, buffers = np.random.default_rng(0), []
    for i, n in enumerate((3, 5)):
        end = np.zeros(n, bool); end[-1] = i == 0
        buffers.append(EpisodeBuffer(id=i, observations=dict(b=rng.random((n + 1, 2)), a=rng.random((n + 1, 1))), actions=np.arange(n) % 3 + 1, rewards=np.arange(n, dtype=float),
                                     terminations=end, truncations=~end & (np.arange(n) == n - 1), infos={}))
    made = minari.create_dataset_from_buffers('other/mixed-v0', buffers, observation_space=Dict(a=Box(0, 1, (1,)), b=Box(0, 1, (2,))), action_space=Discrete(3, start=1))
    data = from_minari('other/mixed-v0')
    assert data.length.tolist() == [3, 5] and data.terminated.tolist() == [True, False]
    assert np.allclose(data[1].observation[:, 0], buffers[1].observations['a'][:, 0]) and np.allclose(data[1].observation[:, 1:], buffers[1].observations['b'])
    assert data.actions == 3 and data[1].action.tolist() == [0, 1, 2, 0, 1] and data[1].reward.tolist() == [0, 1, 2, 3, 4]


def write_minari(name, episodes, see, act):
    "A data set as others write it: (observations, actions, rewards, terminations) of each episode."
    import minari
    from minari.data_collector import EpisodeBuffer
    buffers = [EpisodeBuffer(id=i, observations=o, actions=a, rewards=r, terminations=np.asarray(t, bool), truncations=np.zeros(len(t), bool), infos={})
               for i, (o, a, r, t) in enumerate(episodes)]
    return minari.create_dataset_from_buffers(name, buffers, observation_space=see, action_space=act)


@pytest.mark.filterwarnings('ignore:`')
def test_a_missing_last_observation_is_not_zero(minari_home):
    "n observations for n actions: the last action, whose result nobody knows, is left out."
    from gymnasium.spaces import Box
    rows = [(np.ones((5, 2)), np.ones((5, 1)), np.ones(5), [0, 0, 0, 0, 1]), (np.ones((4, 2)), np.ones((3, 1)), np.ones(3), [0, 0, 1])]
    write_minari('other/short-v0', rows, Box(-9, 9, (2,)), Box(-9, 9, (1,)))
    with pytest.warns(UserWarning, match='1 of 2 episodes of other/short-v0 lack the observation after the last action.* reward in 1 of them, and an end in 1'): data = from_minari('other/short-v0')
    assert data.length.tolist() == [4, 3] and (data.observation == 1).all() and data.terminated.tolist() == [False, True]


IMPOSSIBLE = dict(
    few_observations=((np.ones((3, 2)), np.ones((5, 1)), np.ones(5), [0] * 5), 'episode 1 has 3 observations, 5 actions'),
    few_rewards=((np.ones((6, 2)), np.ones((5, 1)), np.ones(4), [0] * 5), 'episode 1 has 6 observations, 5 actions, 4 rewards'),
    ends_inside=((np.ones((6, 2)), np.ones((5, 1)), np.ones(5), [0, 1, 0, 0, 1]), 'terminates at step 1 of 5, and goes on'),
    one_observation=((np.ones((1, 2)), np.ones((1, 1)), np.ones(1), [0]), 'has no step with an observation after it'),
    nan=((np.full((3, 2), np.nan), np.ones((2, 1)), np.ones(2), [0, 1]), 'observation of episode 1, step 0, dimension 0 is nan'))


@pytest.mark.filterwarnings('ignore:`')
@pytest.mark.parametrize('kind', IMPOSSIBLE)
def test_impossible_minari_episodes_are_refused(kind, minari_home):
    from gymnasium.spaces import Box
    good, (bad, reason) = (np.ones((3, 2)), np.ones((2, 1)), np.ones(2), [0, 1]), IMPOSSIBLE[kind]
    write_minari('other/bad-v0', [good, bad], Box(-9, 9, (2,)), Box(-9, 9, (1,)))
    with pytest.raises(ValueError, match=reason): from_minari('other/bad-v0')


@pytest.mark.filterwarnings('ignore:`')
@pytest.mark.parametrize('wrong', [-1, 9])
def test_minari_actions_outside_their_space_and_filtered_to_none(wrong, minari_home):
    from gymnasium.spaces import Box, Discrete
    made = write_minari('other/padded-v0', [(np.ones((4, 2)), np.array([0, 6, wrong]), np.ones(3), [0, 0, 0])], Box(-9, 9, (2,)), Discrete(7))
    with pytest.raises(ValueError, match=f'action of episode 0, step 2 is {wrong}: there are the actions 0 to 6, and padding is none of them'): from_minari(made)
    with pytest.raises(ValueError, match='other/padded-v0 has no episodes: was everything filtered out'): from_minari(made.filter_episodes(lambda e: False))


@pytest.mark.filterwarnings('ignore:`')
def test_minigrids_own_observations_and_goals_are_read(minari_home):
    from gymnasium.spaces import Box, Dict, Discrete, Text
    rng = np.random.default_rng(0)
    image = rng.integers(0, 9, (4, 7, 7, 3)).astype(np.uint8)
    see = dict(direction=np.array([0, 1, 2, 3]), image=image, mission=['go'] * 4)
    write_minari('other/grid-v0', [(see, np.array([0, 1, 2]), np.ones(3), [0, 0, 1])], Dict(direction=Discrete(4), image=Box(0, 255, (7, 7, 3), np.uint8), mission=Text(30)), Discrete(7))
    data = from_minari('other/grid-v0')
    assert data.actions == 7 and data.observation.dtype == np.uint8 and np.array_equal(data.observation, image)
    place, speed, goal = rng.random((4, 2)), rng.random((4, 2)), rng.random((4, 2))
    spaces = lambda n: Dict(achieved_goal=Box(-9, 9, (2,)), desired_goal=Box(-9, 9, (2,)), observation=Box(-9, 9, (n,)))
    for name, state in (('in', np.concatenate([place, speed], 1)), ('out', speed)):  # whether a state holds the place already or not
        made = write_minari(f'other/{name}-v0', [(dict(achieved_goal=place, desired_goal=goal, observation=state), np.ones((3, 1)), np.ones(3), [0, 0, 0])], spaces(state.shape[1]), Box(-1, 1, (1,)))
        data = from_minari(made)
        assert np.allclose(data.observation, np.concatenate([place, speed], 1)) and np.allclose(data.goal, goal)
    for space in (Dict(text=Text(9)), Text(9), Dict(image=Box(0, 255, (4, 4, 3), np.uint8), speed=Box(-1, 1, (2,)))):
        with pytest.raises(ValueError, match='wrap the environment'): observation_reader(space)
    with pytest.raises(ValueError, match='actions must be a Box or Discrete'): action_reader(Text(4))


@pytest.mark.parametrize('name', ['no version', 'a/b/c d-v0', 'x/-v0', '', 'name-v', None])
def test_an_id_minari_refuses_leaves_nothing_behind(name, minari_home, tmp_path):
    import minari
    with pytest.raises(ValueError, match='no id Minari would take'): to_minari(small(), name)
    assert not [*(tmp_path / 'minari').glob('**/*')]
    to_minari(small(), 'ldp/good-v0')
    assert [*minari.list_local_datasets()] == ['ldp/good-v0']


def test_a_failed_write_leaves_nothing_behind_and_a_numpy_card_is_kept(minari_home, tmp_path, monkeypatch):
    import minari
    real = minari.create_dataset_from_buffers
    def half(*a, **k): real(*a, **k); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(minari, 'create_dataset_from_buffers', half)
    with pytest.raises(OSError): to_minari(small(), 'ldp/half-v0')
    assert not (tmp_path / 'minari' / 'ldp').exists()
    monkeypatch.undo(); monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
    with pytest.raises(ValueError, match='a card holds numbers, text, lists and dictionaries, got set'): to_minari(small(), 'ldp/set-v0', dict(seed={1}))
    made = to_minari(small(), 'ldp/card-v0', dict(seed=np.int64(3), share=np.float32(.5), rows=np.arange(2)))
    import json
    assert json.loads(made.storage.metadata['ldp_tut']) == dict(seed=3, share=.5, rows=[0, 1], kind='flat') and [*minari.list_local_datasets()] == ['ldp/card-v0']


def test_pixels_are_not_squeezed_on_their_way_through_minari(minari_home):
    data = small(2, shape=(40, 40, 3), dtype=np.uint8, actions=2)
    assert equal(data, from_minari(to_minari(data, 'ldp/large-v0')))


def test_a_store_keeps_numpy_cards_and_names_odd_folders(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.append(small(), dict(CARD, seed=np.int64(7)))
    assert store.cards()[0]['seed'] == 7
    with pytest.raises(StoreError, match='a card holds numbers'): store.append(small(), dict(CARD, seed={1}))
    assert [p.name for p in tmp_path.glob('shard*')] == ['shard-00000']
    (tmp_path / 'shard-00000-copy').mkdir()
    for call in (store.load, store.cards, store.recover, lambda: store.append(small(), CARD)):
        with pytest.raises(StoreError, match='shard-00000-copy does not have the name of a shard.*move or rename'): call()


def test_sums_are_made_in_pieces(tmp_path, monkeypatch):
    import zlib
    (file := tmp_path / 'x').write_bytes(data := np.random.default_rng(0).bytes(3_000_001))
    seen = []
    monkeypatch.setattr('ldp_tut.store.zlib.crc32', lambda piece, total, real=zlib.crc32: seen.append(len(piece)) or real(piece, total))
    total = file_sum(file); monkeypatch.undo()
    assert total == zlib.crc32(data) and max(seen) <= 1 << 20 and len(seen) == 3


def test_impossible_lengths_of_rooms_are_refused(episodes):
    for wrong in (0, 9999):
        length = episodes.length.copy(); length[3] = wrong
        with pytest.raises(ValueError, match='lengths of episodes must lie in'): replace(episodes, length=length)


@given(st.integers(0, 23), st.integers(0, 10 ** 6), st.sampled_from([(np.int8, -1), (np.int8, 7), (np.int8, 9)]))
@settings(max_examples=40, deadline=None)
def test_an_action_that_rooms_do_not_have_is_found_wherever_it_is(episodes, e, t, wrong):
    "Inside an episode it is refused with its place; beyond the end of one nobody looks."
    kind, value = wrong
    for step, inside in ((t % int(episodes.length[e]), True), (int(episodes.length[e]), False)):
        action = episodes.action.astype(kind)
        if step == action.shape[1]: continue
        action[e, step] = value
        if inside:
            with pytest.raises(ValueError, match=f'action of episode {e}, step {step} is {value}: there are the actions 0 to 6'): Windows(replace(episodes, action=action))
        else: Windows(replace(episodes, action=action))


def test_numbers_that_name_nothing_in_a_room_are_refused_at_every_door(episodes, tmp_path, minari_home):
    pose, change, grid = episodes.pose.copy(), episodes.change.copy(), episodes.grid.astype(np.float32)
    pose[2, 1], change[3, 0], grid[0, 0, 0, 0] = (4, 19, 0), (4, -1, 1, 0, 0), np.nan
    turned = episodes.pose.copy(); turned[0, 0, 2] = 4
    for bad, words in ((replace(episodes, pose=pose), r'pose of episode 2, step 1 is \[4, 19, 0\]: the grid has 19 by 19 cells'), (replace(episodes, pose=turned), 'pose of episode 0, step 0'),
                       (replace(episodes, change=change), 'change of episode 3, step 0'), (replace(episodes, grid=grid), 'grid of rooms holds whole numbers, got float32')):
        for door in (Windows, lambda e: TrajectoryStore(tmp_path / 's').append(e, CARD), lambda e: to_minari(e, 'ldp/odd-v0'), as_vectors, as_frames):
            with pytest.raises(ValueError, match=words): door(bad)
    assert not [*tmp_path.glob('s/*')] and not (tmp_path / 'minari' / 'ldp').exists()


@given(st.integers(1, 4), st.integers(0, 3), st.floats(-50, 50), st.sampled_from(['limits', 'gaussian']))
@settings(max_examples=40, deadline=None)
def test_normalisers_undo_themselves_and_leave_constants_alone(dims, constant, level, kind):
    g = torch.Generator().manual_seed(dims)
    x = torch.cat([torch.randn(50, dims, generator=g) * torch.logspace(-3, 3, dims), torch.full((50, constant), level)], 1)
    norm = getattr(Normaliser, kind)(x)
    y = norm(x)
    assert torch.allclose(norm.inverse(y), x, rtol=1e-4, atol=1e-5 * x.abs().max()) and y.isfinite().all() and (y[:, dims:] == 0).all()
    if kind == 'limits': assert torch.allclose(y[:, :dims].amin(0), -torch.ones(dims), atol=1e-5) and torch.allclose(y[:, :dims].amax(0), torch.ones(dims), atol=1e-5)
    else: assert torch.allclose(y[:, :dims].std(0, unbiased=False), torch.ones(dims), atol=1e-3)
    assert torch.equal(norm(x[:, :1]), y[:, :1])  # states without their actions


@pytest.mark.parametrize('kind', ['limits', 'gaussian'])
def test_normalisers_refuse_nan_and_warn_of_what_hardly_varies(kind):
    make, g = getattr(Normaliser, kind), torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, generator=g); x[17, 1] = torch.nan
    with pytest.raises(ValueError, match='row 17, dimension 1 is nan'): make(x)
    with pytest.raises(ValueError, match=r'row \[2, 1\], dimension 1 is nan'): make(x.view(5, 8, 3))
    x[17, 1] = -torch.inf
    with pytest.raises(ValueError, match='row 17, dimension 1 is -inf'): make(x)
    for bad in (torch.zeros(0, 3), torch.zeros(3)):
        with pytest.raises(ValueError, match='rows of numbers'): make(bad)
    x = torch.stack([torch.rand(40, generator=g), 1e6 + .4 * torch.rand(40, generator=g).round(), torch.full((40,), 3.), 1e-9 * torch.rand(40, generator=g)], 1).double()
    with pytest.warns(UserWarning, match=r'dimensions \[1\] vary by less than a millionth'): norm = make(x)
    assert norm.scale[1] == norm.scale[2] == 1 and norm.scale[3] < 1e-8 and norm(x).abs().max() < 5
    for kind in (torch.int64, torch.uint8): assert make(torch.arange(12).view(6, 2).to(kind)).scale.dtype == torch.float32
    assert make(np.arange(12.).reshape(6, 2)).centre.tolist() == [5, 6]
    with pytest.raises(ValueError, match='is there NaN'): Normaliser(torch.full((2,), torch.nan), torch.ones(2))


def test_numpy_integers_are_integers(episodes):
    one = np.int64(1)
    again = collect('MiniGrid-FourRooms-v0', 'wander', np.int64(24), seed=np.int64(0), progress=False, longest=np.int32(0), spare=np.int8(0))
    same(again, episodes)
    data = small(lengths=[20, 20])
    assert Slices(data, 2 * one).draw(4 * one, 3 * one, torch.Generator().manual_seed(0)).shape == (4, 3, 3 + 2 * 2)
    assert len(Windows(data).draw(5 * one, torch.Generator())[0]) == 5 and random_offsets(3 * one, 4 * one, 9 * one, torch.Generator()).shape == (3, 4)
    assert len(data[one]) == 20 and len(wander_blocks(BlockTable(2, 2), 3 * one, 4 * one, one)) == 3


@pytest.mark.parametrize('actions', [0, 3])
def test_slices_are_rows_of_the_data(actions):
    data = small(5, lengths=[20, 20, 8, 3, 20], terminated=[0, 0, 1, 1, 0], actions=actions)
    act = lambda e, t: data.action_vectors()[data.action_start[e] + t]
    w = Slices(data, 2).at(torch.tensor([1]), torch.tensor([4]), 3)[0]
    for j in range(3): assert np.allclose(w[j], np.concatenate([data[1].observation[4 + 2 * j], act(1, 4 + 2 * j), act(1, 5 + 2 * j)]))
    absorbed = Slices(data, 2, absorb=True).at(torch.tensor([2]), torch.tensor([6]), 3)[0]
    assert (absorbed[1:, :3] == torch.tensor(data[2].observation[8])).all() and (absorbed[1:, 3:] == 0).all() and (absorbed[0, 3:] != 0).any()
    for absorb, who in ((False, {0, 1, 4}), (True, {0, 1, 2, 3, 4})):
        s, g, seen = Slices(data, 2, absorb), torch.Generator().manual_seed(0), set()
        firsts = {tuple(data[e].observation[t]): (e, t) for e in range(5) for t in range(data.length[e] + 1)}
        for row in s.draw(400, 5, g): e, t = firsts[tuple(row[0, :3].numpy())]; seen.add(e); assert absorb or t + 10 <= data.length[e]
        assert seen == who
    with pytest.raises(ValueError, match='the longest has 20 steps'): Slices(data, 2).draw(4, 11, torch.Generator())
    with pytest.raises(ValueError, match='stride'): Slices(data, 0)
    with pytest.raises(ValueError, match='cut from vectors'): Slices(small(shape=(4, 4, 3), dtype=np.uint8))


def test_returns_run_to_the_end_of_the_episode():
    data = small(7, 12)
    value = returns_to_go(data, .9)
    assert value.shape == (len(data.observation),) and value.dtype == np.float32
    for e, T in enumerate(data.length):
        for t in range(T + 1):
            want = sum(.9 ** (i - t) * data[e].reward[i] for i in range(t, T))
            assert value[data.observation_start[e] + t] == pytest.approx(want, abs=1e-5)
    with pytest.raises(ValueError, match='discount'): returns_to_go(data, 1.5)


def test_relabelled_walks():
    data = small(6, lengths=[15] * 6, terminated=[False] * 6)
    new = relabel(data, lambda s: (s[..., 0] > 1).astype(float), stop=True)
    for e in range(6):
        hits = np.flatnonzero(data[e].observation[1:, 0] > 1)
        assert new.terminated[e] == bool(len(hits)) and new.length[e] == (hits[0] + 1 if len(hits) else 15) and new[e].reward.sum() == bool(len(hits))
        assert np.array_equal(new[e].observation, data[e].observation[:new.length[e] + 1])
    assert np.array_equal(relabel(data, lambda s: s[..., 0])[3].reward, data[3].observation[1:, 0])
    with pytest.raises(ValueError, match='reward must return'): relabel(data, lambda s: s)


def test_maze_drives_replay_and_cover():
    data = wander_maze('umaze', 3, 200, seed=4)
    many = point_mazes('umaze', 3, 200); state, _ = many.reset(seed=4)
    for t in range(200):
        assert all((data[e].observation[t] == state[e]).all() for e in range(3))
        state, *_ = many.step(np.stack([e.action[t] for e in data]))
    assert np.abs(data.action).max() <= 1 and not data.terminated.any()
    assert equal(wander_maze('umaze', 3, 200, seed=4), data)
    maze = many.envs[0].map
    card = data_card(data, maze.nearest(data.observation[:, :2]), policy='wander')
    assert card['steps'] == 600 and 3 <= card['places_visited'] <= len(maze.cells)
    with pytest.raises(ValueError, match='at least 1'): wander_maze('umaze', 0)


def test_maze_data_is_made_a_few_worlds_at_a_time(monkeypatch):
    "MuJoCo worlds are large, so they come in rounds; the first round does not depend on how many follow."
    pytest.importorskip('gymnasium_robotics', reason="the extra 'maze' is not installed")
    monkeypatch.setattr('ldp_tut.data.ROUND', 3)
    few, more = wander_maze('umaze', 3, 3, seed=5), wander_maze('umaze', 5, 3, seed=5)
    assert len(more) == 5 and equal(more[:3], few)
    assert not np.array_equal(more[3].observation, more[0].observation) and more.length.tolist() == [3] * 5


def test_block_data_is_lawful_and_prefers_nothing():
    table = BlockTable(3, 3); data = wander_blocks(table, 300, 60, seed=1, rest=.5)
    at = table.index(data.observation.reshape(300, 61, 3, 2))
    move = (data.action[:, :3].argmax(-1) * 3 + data.action[:, 3:].argmax(-1)).reshape(300, 60)
    assert (at >= 0).all() and (table.next[at[:, :-1], move] == at[:, 1:]).all() and (data.action.sum(-1) == 2).all()
    counts = np.bincount(at.ravel(), minlength=len(table))
    towers = counts[table.tower()].mean() / counts.mean()
    assert counts.min() > 0 and towers < 1.3, towers  # a tower is never sought; hard to leave and to reach, it is seen about as often as the rest
    with pytest.raises(ValueError, match='rest'): wander_blocks(table, 2, 2, rest=1.)


def test_poses_as_vectors(episodes):
    data = as_vectors(episodes)
    e, t = 3, 5
    x, y, d = episodes.pose[e, t]
    assert np.allclose(data[e].observation[t], [x, y, np.cos(d * np.pi / 2), np.sin(d * np.pi / 2)], atol=1e-6)
    assert data[e].action[t] == episodes.action[e, t] and data.actions == 3 and data.length.tolist() == episodes.length.tolist()
    assert [e.reward.sum() for e in data] == episodes.success.tolist()
    with pytest.raises(ValueError, match='turns and steps'): as_vectors(collect('MiniGrid-DoorKey-5x5-v0', 'random', 3, progress=False))


def test_other_broken_stores(episodes, tmp_path):
    with pytest.raises(StoreError, match='ldp-tut collect'): TrajectoryStore(tmp_path / 'none').load()
    shard = TrajectoryStore(tmp_path).append(episodes, CARD)
    with pytest.raises(StoreError, match='holds MiniGrid-FourRooms-v0'): TrajectoryStore(tmp_path).append(episodes, dict(CARD, env_id='MiniGrid-Empty-5x5-v0'))
    (shard / 'card.json').write_text('{"env_id": ')
    with pytest.raises(StoreError, match='no readable card'): TrajectoryStore(tmp_path).load()


def test_a_full_disk_is_said_and_keeps_what_was_there(episodes, small_disk):
    "On a real file system of two megabytes: no half shard is left to fill it."
    store = TrajectoryStore(small_disk / 'data')
    store.append(small(), CARD)
    before = sorted(p.name for p in (small_disk / 'data').iterdir())
    (small_disk / 'others').write_bytes(bytes(1_900_000))
    large = small(20_000)
    for _ in range(2):
        with pytest.raises(StoreError, match='cannot write .*shard-00001: (No space left|no room on the disk)'): store.append(large, CARD)
        assert sorted(p.name for p in (small_disk / 'data').iterdir()) == before
    assert len(store.load()) == 1


def test_a_killed_writer_leaves_no_shard(episodes, tmp_path, monkeypatch):
    store = TrajectoryStore(tmp_path)
    store.append(episodes, CARD)
    monkeypatch.setattr(np, 'save', lambda *a, **k: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(StoreError, match='No space left'): store.append(episodes, CARD)
    assert len(store.shards()) == 1 and len(store.load()[0]) == len(episodes)


def test_absorbing_and_unknown_futures(episodes):
    windows = Windows(episodes)
    won, cut = np.flatnonzero(windows.success)[0], np.flatnonzero(~windows.terminated)[0]
    e = np.array([won, cut]); start = windows.length[e] - 3
    t = windows.tokens(e, start, np.array([[0, 1, 3, 50]] * 2))
    assert t['success'].tolist() == [[False, False, True, True], [False] * 4]
    assert t['valid'].tolist() == [[True] * 4, [True, True, True, False]]
    assert (t['pose'][0, 2] == t['pose'][0, 3]).all() and t['action'][0].tolist()[2:] == [-1, -1]


@pytest.mark.parametrize('H, longest', [(2, 1), (10, 9), (10, 24), (2, 24), (12, 48)])
def test_offsets_rise_from_zero_and_stay_in_reach(H, longest):
    offsets = random_offsets(500, H, longest, torch.Generator().manual_seed(0))
    assert offsets.shape == (500, H) and (offsets[:, 0] == 0).all() and (np.diff(offsets, axis=1) > 0).all() and offsets.max() <= longest
    assert np.array_equal(offsets, random_offsets(500, H, longest, torch.Generator().manual_seed(0)))


def test_offsets_mix_single_steps_with_strides():
    steps = np.diff(random_offsets(500, 10, 24, torch.Generator().manual_seed(0)))
    assert 0.3 < (steps == 1).mean() < 0.9 and (steps > 8).any()
    with pytest.raises(ValueError, match='do not fit'): random_offsets(5, 10, 8, torch.Generator())


def test_bad_requests():
    with pytest.raises(ValueError, match='unknown policy'): collect('MiniGrid-FourRooms-v0', 'clever', 2)
    with pytest.raises(ValueError, match='at least 1'): collect('MiniGrid-FourRooms-v0', 'wander', 0)


class Counter(gym.Env):
    "Counts its steps: observations say which episode (its seed) and which step; ends after `seed % 5 + 2` steps, even seeds by themselves, odd ones by the clock."
    observation_space, action_space = gym.spaces.Box(-9e9, 9e9, (2,), np.float64), gym.spaces.Discrete(3, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = (-1 if seed is None else seed), 0
        return np.array([self.seed, 0.]), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        over = self.t >= self.seed % 5 + 2
        return np.array([self.seed, self.t], float), float(self.t), over and self.seed % 2 == 0, over and self.seed % 2 == 1, {}


def whole(data, seed):
    "Every episode of a `Counter` is there from its first to its true last observation."
    for e in data:
        T = len(e)
        assert (e.observation[:, 0] == e.observation[0, 0]).all() and e.observation[:, 1].tolist() == list(range(T + 1)) and e.reward.tolist() == list(range(1, T + 1))
    return sorted(int(e.observation[0, 0]) - seed for e in data)


@pytest.mark.parametrize('episodes', [1, 3, 8, 30])
def test_episodes_are_played_to_their_true_ends(episodes):
    data = collect(Counter, episodes=episodes, seed=40, progress=False)
    assert whole(data, 40) == list(range(episodes)) and [int(e.observation[0, 0]) for e in data] == list(range(40, 40 + episodes))
    for e in data:
        s = int(e.observation[0, 0])
        assert len(e) == s % 5 + 2 and e.terminated == (s % 2 == 0), 'a clock is not an end'
    assert data.actions == 3 and set(data.action) <= {0, 1, 2} and data.observation.dtype == np.float32
    assert equal(data, collect(Counter, episodes=episodes, seed=40, progress=False))


def test_so_many_steps_and_cut_off_episodes():
    data = collect(Counter, steps=100, seed=1, progress=False)
    assert 100 <= data.length.sum() < 108 and whole(data, 1)
    cut = collect(Counter, episodes=20, longest=3, progress=False)
    assert cut.length.max() == 3 and (cut.length == 2).any() and whole(cut, 0) == list(range(20))
    for e in cut:
        s = int(e.observation[0, 0])
        assert e.terminated == (s % 2 == 0 and s % 5 + 2 <= 3), 'what we cut off is not terminated'


def test_one_environment_is_played_alone_and_left_open():
    env = Counter(); closed = []
    env.close = lambda: closed.append(1)
    data = collect(env, episodes=4, progress=False)
    assert whole(data, 0) == [0, 1, 2, 3] and not closed


def test_any_callable_is_a_policy():
    class Keeps:
        "Chooses by what it was given; is told of resets."
        begun = 0
        def begin(self, which, observation): self.begun += which.sum(); assert (observation[which, 1] == 0).all()
        def __call__(self, observation): return observation[:, 1].astype(int) % 3 + 1
    policy = Keeps()
    data = collect(Counter, policy, episodes=12, progress=False)
    assert policy.begun >= 4 and all((e.action == e.observation[:-1, 1] % 3).all() for e in data)
    data = collect('CartPole-v1', lambda x: torch.from_numpy(x[:, 2] > 0).long(), 4, progress=False)
    assert data.length.mean() > 30 and data.actions == 2
    with pytest.raises(ValueError, match=r'actions of shape \[8\] for 8 environments, got \[8, 1\]'): collect('CartPole-v1', lambda x: np.zeros((8, 1), int), 4, progress=False)
    with pytest.raises(ValueError, match='an action outside Discrete'): collect(Counter, lambda x: np.zeros(8, int), 4, progress=False)


def test_spaces_that_cannot_be_recorded_are_refused_before_any_step():
    def make(see, act=gym.spaces.Discrete(2)):
        class Refused(gym.Env):
            observation_space, action_space = see, act
            def reset(self, **_): raise AssertionError('a step was taken')
        return Refused
    box = gym.spaces.Box(0, 1, (2,))
    for see in (gym.spaces.Text(5), gym.spaces.Tuple([box, box]), gym.spaces.MultiBinary(3), gym.spaces.Dict(a=gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), b=box)):
        with pytest.raises(ValueError, match='observations must be a Box.*wrap the environment'): collect(make(see), progress=False)
    for act in (gym.spaces.MultiDiscrete([2, 2]), gym.spaces.Dict(a=box)):
        with pytest.raises(ValueError, match='actions must be a Box or Discrete'): collect(make(box, act), progress=False)


@pytest.mark.parametrize('env, how, reason', [
    ('CartPole-v1', dict(policy='wander'), "'wander' is not for CartPoleEnv: choose one of \\['random'\\]"), ('CartPole-v1', dict(policy='clever'), "unknown policy 'clever'"),
    ('MiniGrid-Unlock-v0', dict(policy='waypoints'), 'is not for UnlockEnv'), ('CartPole-v1', dict(episodes=2, steps=3), 'choose one of episodes and steps'),
    ('CartPole-v1', dict(episodes=-1), 'episodes must be at least 1'), ('CartPole-v1', dict(seed=-1), 'must be at least 0, got -1'), ('CartPole-v1', dict(spare=3), 'layouts are kept aside'), (7, {}, 'plays an id'),
    ('NoSuchEnv-v0', {}, 'NoSuchEnv-v0'), ('MiniGrid-NoSuch-v0', {}, 'unknown environment id')])
def test_collect_refuses_in_one_sentence(env, how, reason):
    with pytest.raises(ValueError, match=reason): collect(env, progress=False, **how)


@pytest.mark.parametrize('env_id, policy', [('MiniGrid-Unlock-v0', 'fiddle'), ('MiniGrid-Dynamic-Obstacles-5x5-v0', 'wander'), ('MiniGrid-UnlockPickup-v0', 'random')])
def test_real_rooms_are_collected_where_the_twin_does_not_know_the_rules(env_id, policy):
    data = collect(env_id, policy, 6, seed=3, progress=False, longest=60)
    env = make_env(env_id)
    assert data.observation.dtype == np.uint8 and data.observation.shape[1:] == env.observation_space['image'].shape and data.actions == env.action_space.n
    for i, e in enumerate(data[:3]):  # played again in the environment itself
        obs, _ = env.reset(seed=3 + i)
        for t in range(len(e)):
            assert (obs['image'] == e.observation[t]).all()
            obs, reward, ended, cut, _ = env.step(int(e.action[t]))
            assert e.reward[t] == np.float32(reward)
        assert (obs['image'] == e.observation[-1]).all() and e.terminated == ended


@pytest.mark.parametrize('env_id, policy', [('MiniGrid-KeyCorridorS3R1-v0', 'fiddle'), ('MiniGrid-LavaGapS5-v0', None)])
def test_rooms_the_twin_knows_stay_compact(env_id, policy):
    data = collect(env_id, policy, 12, progress=False)
    assert isinstance(data, Episodes) and len(data) == 12
    frames = as_frames(data)
    assert frames.length.tolist() == data.length.tolist() and [e.reward.sum() for e in frames] == data.success.tolist() and np.array_equal(frames[3].action, data.action[3, :data.length[3]])
    assert torch.equal(torch.from_numpy(frames[2].observation), Windows(data).frames([2] * (data.length[2] + 1), np.arange(data.length[2] + 1)))
    some = collect(env_id, policy, steps=300, progress=False)
    assert 300 <= some.length.sum() and some.length[:-1].sum() < 300


def test_a_walker_in_real_rooms_walks_as_in_the_twin():
    "What a walker sees of real rooms is what it sees of the twin's, so that both take the same steps."
    from ldp_tut.data import RealRooms, Wander
    from ldp_tut.envs import layouts
    envs = [make_env('MiniGrid-FourRooms-v0') for _ in range(3)]
    for i, env in enumerate(envs): env.reset(seed=i)
    real, twin = RealRooms(envs), layouts('MiniGrid-FourRooms-v0', range(3))
    walks = [Wander(rooms, torch.Generator().manual_seed(0)) for rooms in (real, twin)]
    for _ in range(25):
        a, b = (walk() for walk in walks)
        assert torch.equal(a, b)
        for env, action in zip(envs, a): env.step(int(action))
        twin.step(b); real.read()


def test_pixels_and_mazes_are_collected():
    data = collect('MiniGrid-Empty-5x5-v0', 'wander', 2, progress=False, view='rgb', longest=9)
    assert data.observation.shape[1:] == (40, 40, 3) and data.observation.dtype == np.uint8
    pytest.importorskip('gymnasium_robotics', reason="the extra 'maze' is not installed")
    data = collect('PointMaze_UMaze-v3', steps=1600, seed=2, progress=False, max_episode_steps=150)
    maze = MazeMap(make_env('PointMaze_UMaze-v3').unwrapped.maze)
    assert data.observation.shape[1] == 4 and data.goal.shape == (len(data.observation), 2) and data.length.max() == 150 and not data.terminated.any()
    assert len(np.unique(maze.nearest(data.observation[:, :2]))) == len(maze.cells), 'drives wander everywhere'
    assert max(np.abs(np.diff(e.observation[:, :2], axis=0)).max() for e in data) < .2, 'no episode jumps: resets are not in it'


@pytest.mark.parametrize('how', KINDS_OF_DATA.values(), ids=KINDS_OF_DATA)
def test_a_folder_of_files_round_trip(how, tmp_path):
    data = small(**how)
    assert equal(data, from_folder(to_folder(data, tmp_path / 'a')))
    with pytest.raises(ValueError, match='is not empty'): to_folder(data, tmp_path / 'a')


def test_half_a_folder_of_files_is_not_there(tmp_path, monkeypatch):
    data, saved = small(), []
    def full(path, **rows):
        if len(saved) == 1: raise OSError('no space left')
        saved.append(path)
    monkeypatch.setattr('ldp_tut.store.np.savez', full)
    with pytest.raises(OSError, match='no space'): to_folder(data, tmp_path / 'a')
    assert saved and not (tmp_path / 'a').exists()
    monkeypatch.undo()
    assert equal(data, from_folder(to_folder(data, tmp_path / 'a'))) and [p.name for p in tmp_path.iterdir()] == ['a']


def test_a_single_array_is_no_episode(tmp_path):
    with open(tmp_path / 'a.npz', 'wb') as f: np.save(f, np.zeros(3))
    with pytest.raises(ValueError, match=r'a\.npz cannot be read'): from_folder(tmp_path)


FILES = dict(
    missing=(dict(reward=None), 'e1.npz has the keys .* and reward is missing'), lengths=(dict(action=np.zeros((3, 1))), '4 observations, 3 actions, 2 rewards'),
    objects=(dict(observation=np.array([{}, 1, 2], object)), 'cannot be read'), text=(dict(observation=np.array(['a', 'b', 'c'])), 'observation in .*e1.npz: data are numbers'),
    nan=(dict(reward=np.array([0, np.nan])), 'reward in .*e1.npz is nan at step 1'), column=(dict(reward=np.zeros((2, 1))), 'reward in .*e1.npz must be one number a step'),
    inside=(dict(terminated=np.array([True, False])), 'terminates at step 0 of 2'))


@pytest.mark.parametrize('kind', FILES)
def test_files_that_are_no_episodes_are_named(kind, tmp_path):
    good = dict(observation=np.zeros((3, 2)), action=np.zeros((2, 1)), reward=np.zeros(2), terminated=True)
    change, reason = FILES[kind]
    if kind == 'lengths': change = dict(change, observation=np.zeros((4, 2)))
    np.savez(tmp_path / 'e0.npz', **good)
    np.savez(tmp_path / 'e1.npz', **{k: v for k, v in (good | change).items() if v is not None})
    with pytest.raises(ValueError, match=reason): from_folder(tmp_path)


def test_folders_of_odd_files(tmp_path):
    with pytest.raises(ValueError, match='no .npz files in'): from_folder(tmp_path / 'none')
    (tmp_path / 'e0.npz').write_bytes(b'PK not really')
    with pytest.raises(ValueError, match='e0.npz cannot be read'): from_folder(tmp_path)
    good = dict(observation=np.zeros((3, 2), int), action=np.array([0, 1]), reward=[0, 1], terminated=[0, 1])
    np.savez(tmp_path / 'e0.npz', **good)
    data = from_folder(tmp_path)
    assert data.actions == 2 and data.terminated.tolist() == [True] and data.observation.dtype == np.float32 and from_folder(tmp_path, actions=5).actions == 5
    with pytest.raises(ValueError, match='give a positive whole number'): from_folder(tmp_path, actions=-3)
    for odd, words in [(dict(desired_goal=np.zeros((3, 1))), 'has desired_goal: call the goal'), (dict(terminated='False'), 'must be true or false'),
                       (dict(terminated=np.nan), 'must be true or false')]:
        np.savez(tmp_path / 'e1.npz', **(good | odd))
        with pytest.raises(ValueError, match=f'e1.npz {words}' if 'has' in words else f'e1.npz {words}'): from_folder(tmp_path)
    np.savez(tmp_path / 'e1.npz', actions=4, **good)
    assert from_folder(tmp_path).actions == 4
    with pytest.raises(ValueError, match=r'speaks of \[4, 5\] actions'): from_folder(tmp_path, actions=5)
    np.savez(tmp_path / 'e2.npz', **(good | dict(observation=np.zeros((2, 2)))))
    with pytest.warns(UserWarning, match='1 of 3 episodes .* lack the observation'): data = from_folder(tmp_path)
    assert data.length.tolist() == [2, 2, 1] and data.terminated.tolist() == [True, True, False]


def test_a_wanderer_goes_where_it_can_get_to_and_so_through_a_door():
    "A sheet of nothing around two small rooms is free, too; who aims there stays in the first room, walking at random."
    rooms = collect('MiniGrid-MultiRoom-N2-S4-v0', 'wander', 100, progress=False)
    assert (rooms.change[..., 0] >= 0).any(1).mean() > 0.95 and rooms.success.mean() > 0.6
    room = layouts('MiniGrid-MultiRoom-N2-S4-v0', range(50))
    start, i = room.pose[:, :2], torch.arange(50)
    drawn = torch.stack([random_cells(room.cells, torch.Generator().manual_seed(s), start) for s in range(20)])
    for target in drawn: assert (distance_to(room.cells, target)[i, room.pose[:, 2], start[:, 0], start[:, 1]] < FAR).all()
    assert len({tuple(t) for t in drawn[:, 0].tolist()}) > 4, 'in both rooms'
    sheet = torch.stack([random_cells(room.cells, torch.Generator().manual_seed(s)) for s in range(5)])
    assert (distance_to(room.cells, sheet[0])[i, room.pose[:, 2], start[:, 0], start[:, 1]] >= FAR).any()


class Running(gym.Env):
    "Moves by what is done; five steps an episode."
    observation_space, action_space = gym.spaces.Box(-9., 9., (1,)), gym.spaces.Box(-1., 1., (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = np.zeros(1, np.float32), 0
        return self.x, {}

    def step(self, action):
        self.x, self.t = self.x + action, self.t + 1
        return self.x.astype(np.float32), 0., False, self.t == 5, {}


def test_a_policy_may_use_its_own_array_again():
    buffer = np.zeros((8, 1), np.float32)
    def policy(seen):
        buffer[:] += .1
        return buffer[:len(seen)]
    e = collect(Running, policy, episodes=1, progress=False)[0]
    assert np.allclose(np.diff(e.observation[:, 0]), e.action[:, 0], atol=1e-6) and len(set(e.action[:, 0].tolist())) == 5


def test_frames_before_an_episode_are_its_first():
    data = small(lengths=[4, 4])
    assert torch.equal(Windows(data).frames(np.array([1, 1, 0]), np.array([-1, 0, -3]))[[0, 0, 2]], torch.from_numpy(data.observation[[5, 5, 0]]))


def test_bytes_and_floats_are_not_one_data_set(tmp_path):
    about = dict(action=np.zeros(3, int), reward=np.ones(3), terminated=True)
    np.savez(tmp_path / 'a.npz', observation=np.full((4, 8, 8, 3), 200, np.uint8), **about)
    np.savez(tmp_path / 'b.npz', observation=np.full((4, 8, 8, 3), .5, np.float32), **about)
    with pytest.raises(ValueError, match='numbers of type float32, not uint8'): from_folder(tmp_path)
    np.savez(tmp_path / 'b.npz', observation=np.full((4, 8, 8, 3), 200, np.uint8), **about | dict(action=np.int64(1)))
    with pytest.raises(ValueError, match='action in .*b.npz must be one row a step, got a single number'): from_folder(tmp_path)


def test_an_emptied_file_of_a_store_is_said_and_set_aside_twice(tmp_path):
    store = TrajectoryStore(tmp_path / 's')
    for name in ('shard-00000', 'broken-0-shard-00000', 'shard-00000'):
        if name.startswith('broken'):
            import shutil
            shutil.rmtree(tmp_path / 's' / name); continue
        store.append(small(seed=1), CARD); store.append(small(seed=2), CARD)
        for shard in store.shards()[:2]: (shard / 'reward.npy').write_bytes(b'')
        for door in (lambda: store.load(check=False), lambda: store.append(small(seed=3), CARD)):
            with pytest.raises(StoreError, match='reward.npy'): door()
        assert len(store.recover()) == 2 and not store.shards()


def test_another_worlds_store_is_refused_before_any_step(tmp_path):
    store = TrajectoryStore(tmp_path / 's')
    assert store.cards_of('CartPole-v1') == []
    store.append(small(), CARD | dict(env_id='CartPole-v1'))
    assert len(store.cards_of('CartPole-v1')) == 1
    with pytest.raises(StoreError, match='holds CartPole-v1, not Acrobot-v1: choose another folder'): store.cards_of('Acrobot-v1')


def test_a_shard_that_cannot_be_read_now_is_not_called_broken(tmp_path, monkeypatch):
    "Too many open files are no fault of a file: nothing is set aside."
    store = TrajectoryStore(tmp_path)
    store.append(small(), CARD)
    def full(*_, **__): raise OSError(24, 'Too many open files')
    with monkeypatch.context() as m:
        m.setattr(np, 'load', full)
        for call in (store.load, store.recover):
            with pytest.raises(StoreError, match='cannot be read now .*no fault of the file'): call()
    with monkeypatch.context() as m:
        m.setattr('pathlib.Path.read_text', full)
        with pytest.raises(StoreError, match='cannot be read now'): store.recover()
    assert store.recover() == [] and len(store.load()) == 1
    with pytest.raises(ValueError, match='read-only'): store.load()[0].reward[0] = 1
