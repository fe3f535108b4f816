"Collecting, storing, cutting windows."
import json

import numpy as np
import pytest
import torch

from ldp_tut.data import FIELDS, StoreError, TrajectoryStore, Windows, collect, random_offsets
from ldp_tut.envs import GridTwin, make_env

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


@pytest.mark.parametrize('share', [0., .1, .5, .9, .999])
@pytest.mark.parametrize('field', ['pose', 'grid', 'length'])
def test_a_store_cut_off_anywhere_is_refused_in_one_sentence(episodes, tmp_path, field, share):
    shard = TrajectoryStore(tmp_path).append(episodes, CARD)
    file = shard / f'{field}.npy'
    file.write_bytes(file.read_bytes()[:int(share * file.stat().st_size)])
    with pytest.raises(StoreError, match=f'{field}.npy.*(checksum|read)'): TrajectoryStore(tmp_path).load()


def test_other_broken_stores(episodes, tmp_path):
    with pytest.raises(StoreError, match='ldp-tut collect'): TrajectoryStore(tmp_path / 'none').load()
    shard = TrajectoryStore(tmp_path).append(episodes, CARD)
    with pytest.raises(StoreError, match='holds MiniGrid-FourRooms-v0'): TrajectoryStore(tmp_path).append(episodes, dict(CARD, env_id='MiniGrid-Empty-5x5-v0'))
    (shard / 'card.json').write_text('{"env_id": ')
    with pytest.raises(StoreError, match='no readable card'): TrajectoryStore(tmp_path).load()


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


def test_offsets_rise_from_zero_and_reach_the_far_token():
    offsets = random_offsets(300, 12, 48, torch.Generator().manual_seed(0))
    assert (offsets[:, 0] == 0).all() and (np.diff(offsets, axis=1) > 0).all() and offsets.max() <= 48 + 12
    assert np.array_equal(offsets, random_offsets(300, 12, 48, torch.Generator().manual_seed(0)))


def test_bad_requests():
    with pytest.raises(ValueError, match='unknown policy'): collect('MiniGrid-FourRooms-v0', 'clever', 2)
    with pytest.raises(ValueError, match='at least 1'): collect('MiniGrid-FourRooms-v0', 'wander', 0)
