"Cloning from pictures: where keypoints look, mirrors, what the camera shows, files, what is refused."
import numpy as np
import pytest
import torch

from ldp_tut.checkpoints import CheckpointError
from ldp_tut.policy import DiffusionPolicy, MixturePolicy, PolicyConfig, RegressionPolicy, mirrored, pusht_record, save_policy
from ldp_tut.records import Trajectories
from ldp_tut.sight import (Eyes, SeeingPolicy, SightConfig, draw_states, in_a_mirror, load_seeing, make_pusht_pictures, play_pictures, pusht_pictures, save_seeing,
                           train_seeing)
from ldp_tut.train import TrainConfig

SIGHT = SightConfig((16, 16, 3), keypoints=8, width=8)
CONFIG = PolicyConfig(16, 2, To=2, Tp=4, Ta=2, net='perceptron', width=32, depth=1, iterations=3)


@pytest.fixture(scope='module')
def dots():
    "A dot somewhere in a picture; the action is where it is."
    rng = np.random.default_rng(0)
    place = rng.integers(2, 13, (200, 2))
    seen = np.zeros((200, 16, 16, 3), np.uint8)
    for picture, (x, y) in zip(seen, place): picture[y:y + 2, x:x + 2] = 255
    action = place.astype(np.float32)
    keep = np.arange(200) % 10 < 9
    return Trajectories(seen, action[keep], np.zeros(keep.sum()), [9] * 20, [True] * 20)


def untrained(kind=DiffusionPolicy):
    torch.manual_seed(0)
    return SeeingPolicy(kind, CONFIG, SIGHT).eval()


def pictures(*shape): return torch.randint(0, 256, (*shape, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_keypoint_is_the_mean_place_of_its_shares():
    eyes = Eyes(SIGHT)
    seen = pictures(3)
    with torch.no_grad(): p, point = eyes.shares(seen), eyes(seen)
    rows, cols = p.shape[2:]
    assert (rows, cols) == (4, 4) and point.shape == (3, 16)
    at = np.linspace(-1, 1, 4)
    for b in range(3):
        for c in range(8):
            x, y = (sum(float(p[b, c, i, j]) * (at[j], at[i])[axis] for i in range(4) for j in range(4)) for axis in (0, 1))
            assert np.isclose(float(point[b, c]), x, atol=1e-5) and np.isclose(float(point[b, 8 + c]), y, atol=1e-5)


@pytest.mark.parametrize('kind', [DiffusionPolicy, RegressionPolicy, MixturePolicy])
def test_a_plan_is_the_same_alone_and_in_a_batch(kind):
    policy, seen = untrained(kind), pictures(6, 3)  # one picture more than it looks back on
    many = policy.plan(seen, 5)
    assert many.shape == (6, 4, 2)
    assert torch.allclose(many[4:5], policy.plan(seen[4:5, 1:], [9]), atol=1e-5)
    assert torch.allclose(many, policy.plan(seen.numpy().astype(np.float32), 5), atol=1e-5)  # as `Receding` hands them on


def test_what_it_sees_decides_what_it_does(dots):
    "From pictures alone: where the dot is, to a third of a pixel or so; without looking it is three pixels off."
    how = TrainConfig(steps=250, lr=3e-3, ema=.98, warmup=20)
    policy = train_seeing(RegressionPolicy, dots, CONFIG, SIGHT, how, batch=64)
    seen, do = dots.observation[:9], dots.action[:9]
    said = policy.plan(np.stack([seen, seen], 1))[:, 1]
    blind = np.abs(dots.action - dots.action.mean(0)).mean()
    assert np.abs(said.numpy() - do).mean() < 0.3 * blind
    again = train_seeing(RegressionPolicy, dots, CONFIG, SIGHT, TrainConfig(steps=3, warmup=1), batch=8)
    twin = train_seeing(RegressionPolicy, dots, CONFIG, SIGHT, TrainConfig(steps=3, warmup=1), batch=8)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), twin.state_dict().values()))


def test_a_policy_of_pictures_is_saved_whole(tmp_path):
    policy, seen = untrained(), pictures(2, 2)
    path = save_seeing(tmp_path / 'p.safetensors', policy, dict(about='dots'))
    assert torch.equal(load_seeing(path).plan(seen), policy.plan(seen))
    save_policy(tmp_path / 'other.safetensors', DiffusionPolicy(CONFIG))
    with pytest.raises(CheckpointError, match="is not a policy of pictures .it is a 'policy'"): load_seeing(tmp_path / 'other.safetensors')


def test_what_does_not_fit_is_refused_before_training(dots):
    for how, words in ((dict(keypoints=7), 'keypoints are 14 numbers, and obs_dim is 16'),):
        with pytest.raises(ValueError, match=words): SeeingPolicy(DiffusionPolicy, CONFIG, SightConfig((16, 16, 3), width=8, **how))
    for how, words in ((dict(shape=(15, 16, 3)), 'multiples of 4'), (dict(shape=(16, 16)), 'rows, cols, channels'), (dict(width=12), 'multiple of 8'), (dict(keypoints=0), 'keypoints must be')):
        with pytest.raises(ValueError, match=words): SightConfig(**how)
    vectors = Trajectories(np.zeros((10, 3), np.float32), np.zeros((9, 2), np.float32), np.zeros(9), [9], [True])
    with pytest.raises(ValueError, match='take `train_policy` for vectors'): train_seeing(DiffusionPolicy, vectors, CONFIG, SIGHT)
    with pytest.raises(ValueError, match=r'pictures uint8 \[64, 64, 3\]'): train_seeing(DiffusionPolicy, dots, PolicyConfig(128, 2), SightConfig())
    with pytest.raises(ValueError, match='action_dim=3'): train_seeing(DiffusionPolicy, dots, PolicyConfig(16, 3), SIGHT)
    with pytest.raises(ValueError, match='looks back on To=2'): untrained().plan(pictures(2, 1))
    with pytest.raises(ValueError, match='history must be'): untrained().plan(torch.zeros(2, 2, 16, 16))


def test_a_mirror_shows_what_the_world_shows_in_a_mirror():
    pytest.importorskip('gym_pusht', reason="the extra 'pusht' is not installed")
    states, actions, _ = pusht_record()
    some = np.arange(0, 300, 60)
    there, place = mirrored(states[some], actions[some])
    both = [torch.from_numpy(draw_states(s)).float()[:, None] for s in (states[some], there)]
    draw = lambda s: torch.rand(len(some), generator=torch.Generator().manual_seed(s))
    seed = next(s for s in range(1000) if (draw(s) < .5).all())  # turns all of them
    seen, do = in_a_mirror(both[0], torch.from_numpy(actions[some]).float()[:, None], torch.Generator().manual_seed(seed))
    assert np.allclose(do[:, 0], place, atol=1e-3)
    assert (seen - both[1]).abs().mean() < .3 * (both[0] - both[1]).abs().mean()  # edges are drawn to whole pixels


def test_demonstrations_are_drawn_as_the_world_draws_them():
    pytest.importorskip('gym_pusht', reason="the extra 'pusht' is not installed")
    data, (states, actions, lengths) = pusht_pictures(2), pusht_record()
    assert data.observation.shape == (lengths[:2].sum() + 2, 64, 64, 3) and data.observation.dtype == np.uint8
    assert np.array_equal(data.action, actions[:len(data.action)].astype(np.float32))
    env = make_pusht_pictures()
    first, _ = env.reset(seed=0)
    assert (first != data.observation[0]).any(-1).mean() < .01
    later = env.step(np.array([100., 400.]))[0]
    world = env.unwrapped
    state = np.array([*world.agent.position, *world.block.position, world.block.angle])
    assert (draw_states(state[None])[0] != later).any(-1).mean() < .01
    env.close()
    with pytest.raises(ValueError, match='episodes'): pusht_pictures(0)


def test_pusht_is_played_from_pictures():
    pytest.importorskip('gym_pusht', reason="the extra 'pusht' is not installed")
    torch.manual_seed(0)
    policy = SeeingPolicy(DiffusionPolicy, PolicyConfig(16, 2, To=2, Tp=4, Ta=2, net='perceptron', width=16, depth=1, iterations=2), SightConfig(keypoints=8, width=8)).eval()
    score = play_pictures(policy, [3, 4], steps=6)
    assert score.shape == (2,) and np.array_equal(score, play_pictures(policy, [3, 4], steps=6)) and (0 <= score).all() and (score <= 1).all()
    with pytest.raises(ValueError, match='number of seeds'): play_pictures(policy, [])


@pytest.mark.parametrize('spoil', [lambda x: x / 255, lambda x: x * torch.nan, lambda x: x - 300, lambda x: x.int() * 100])
def test_pictures_that_are_no_bytes_any_more_are_refused(spoil):
    seen = pictures(2, 2).float()
    assert torch.equal(untrained().plan(seen), untrained().plan(seen.byte()))
    with pytest.raises(ValueError, match='pictures are bytes'): untrained().plan(spoil(seen))
    assert torch.isfinite(untrained().plan((seen > 99).float())).all(), 'dark pictures are pictures'
