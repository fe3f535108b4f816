"One data set, four methods: each trains on little, is saved, loaded and acts, from Python and from the command line; what does not fit is refused."
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from ldp_tut.checkpoints import CheckpointError, save_checkpoint
from ldp_tut.cli import main
from ldp_tut.data import collect
from ldp_tut.methods import METHODS, MethodAgent, MethodPlan, MethodRecipe, load_method, save_method, train_method, with_goals
from ldp_tut.planner import play
from ldp_tut.records import Trajectories
from ldp_tut.reports import KEYS_ANYWHERE
from ldp_tut.store import load_data, to_folder

TINY = MethodRecipe(steps=3, width=16, batch=16)
LINE = '--steps 3 --width 16 --batch 16 --device cpu'


def reaching(episodes=8, steps=30, goals=True):
    "Points that walk towards a goal, vector actions, a reward where it is near."
    rng = np.random.default_rng(0)
    goal, x = rng.uniform(-1, 1, (episodes, 2)), rng.uniform(-1, 1, (episodes, 2))
    seen, done, paid = [x], [], []
    for _ in range(steps):
        done.append(np.clip(goal - x, -.1, .1)); x = x + done[-1]
        seen.append(x); paid.append(np.linalg.norm(goal - x, axis=1) < .05)
    seen, done, paid = (np.stack(v, 1).astype(np.float32) for v in (seen, done, paid))
    told = np.repeat(goal[:, None], steps + 1, 1) if goals else None
    return Trajectories.from_padded(seen, done, paid, np.full(episodes, steps), np.zeros(episodes, bool), goal=told)


@pytest.fixture(scope='module')
def cart():
    return collect('CartPole-v1', steps=300, progress=False)


@pytest.fixture(scope='module')
def agents(cart, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')
    return {m: (train_method(m, cart, TINY, out / m, device='cpu', progress=False), out / m / 'agent.safetensors') for m in METHODS}


@pytest.mark.parametrize('method', METHODS)
def test_a_method_plays_and_its_file_plays_the_same(method, agents):
    agent, path = agents[method]
    again = load_method(path)
    first, second = (play(a, 'CartPole-v1', 5, whole=True, progress=False) for a in (agent, again))
    assert [r['return'] for r in first['rows']] == [r['return'] for r in second['rows']] and first['mean_return'] > 0
    assert len({r['steps'] for r in first['rows']}) > 1, 'episodes of one length would not show that the others go on'
    assert again.card['data']['episodes'] == agent.card['data']['episodes'] and again.card['method'] == method
    alone = play(again, 'CartPole-v1', 1, 1_000_003, whole=True, progress=False)
    assert alone['rows'][0]['return'] == first['rows'][3]['return'], 'an episode does not depend on those beside it'


@pytest.mark.parametrize('method', METHODS)
def test_goals_are_seen_and_actions_stay_in_the_bounds_of_the_data(method):
    data = reaching()
    assert with_goals(data).observation.shape[1] == 4 and with_goals(reaching(goals=False)).goal is None
    agent = train_method(method, data, TINY, device='cpu', progress=False)
    obs = dict(observation=np.zeros((3, 2)), achieved_goal=np.zeros((3, 2)), desired_goal=np.ones((3, 2)))
    action = agent.begin([0, 1, 2]).act_batch(obs)
    assert action.shape == (3, 2) and action.dtype == np.float32 and (np.abs(action) <= .1 + 1e-6).all()
    assert np.array_equal(agent.begin([0, 1, 2]).act_batch(obs), action)
    one = agent.reset(1).act({n: x[:1] for n, x in obs.items()})
    np.testing.assert_allclose(one, action[1], atol=1e-4)
    with pytest.raises(ValueError, match='desired_goal'): agent.reset().act(np.zeros(2))


@pytest.mark.parametrize('method', METHODS)
def test_a_run_is_gone_on_with_by_the_same_recipe_alone(method, agents, cart):
    agent, path = agents[method]
    before = {p.name: p.read_bytes() for p in path.parent.glob('*.safetensors')}
    assert len(before) > 1
    again = train_method(method, cart, TINY, path.parent, device='cpu', progress=False)
    for a, b in zip(agent.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match='another path'): train_method(method, cart, replace(TINY, width=24), path.parent, device='cpu', progress=False)


def test_the_best_plan_is_kept(agents):
    "Of a few plans the one that the regression of returns puts first."
    agent = agents['diffuser'][0]
    m, seen = agent.model, []
    own = m.worth
    m.worth = lambda plans: seen.append(plans) or own(plans)
    try: action = agent.begin([5]).act_batch(np.zeros((1, 4), np.float32))
    finally: del m.worth
    assert len(seen[0]) == agent.config.candidates == 16
    best = int(own(seen[0]).argmax())
    assert action[0] == int(seen[0].action[best, 0, 0].argmax())


def test_what_does_not_fit_is_refused_at_the_door(cart, agents, tmp_path):
    frames = Trajectories(np.zeros((6, 8, 8, 3), np.uint8), np.zeros((5, 1)), np.ones(5), [5], [True])
    unpaid = replace(cart, reward=np.zeros_like(cart.reward))
    for m in METHODS[1:]:
        with pytest.raises(ValueError, match=f'{m} reads vectors'): train_method(m, frames)
    odd = replace(frames, observation=frames.observation[:, :6])
    with pytest.raises(ValueError, match='multiples of 4, got \\[6, 8, 3\\]'): train_method('policy', odd)
    with pytest.raises(ValueError, match='goals of 2 numbers: draw them'): train_method('policy', replace(frames, goal=np.zeros((6, 2), np.float32)))
    for m in METHODS[1:]:
        with pytest.raises(ValueError, match='returns are missing from the data'): train_method(m, unpaid)
    assert train_method('policy', unpaid, TINY, seed=10 ** 12, device='cpu', progress=False).card['rewards'] == {}, 'demonstrations need no rewards'
    with pytest.raises(ValueError, match="'fly'"): train_method('fly', cart)
    with pytest.raises(ValueError, match='a window takes'): train_method('latent-diffuser', reaching(), MethodRecipe(stride=10))
    with pytest.raises(ValueError, match='choose a multiple of 4, got 6'): train_method('diffuser', cart, replace(TINY, tokens=6))
    with pytest.raises(ValueError, match='steps must be'): MethodRecipe(steps=0)
    for m, how, words in [('diffuser', dict(stride=400), 'stride=400 steps to the next token, but no episode'), ('latent-diffuser', dict(stride=400), 'stride=400'),
                          ('policy', dict(tokens=1), 'tokens of a policy must be'), ('diffuser', dict(width=5), 'divisible by 8'),
                          ('diffuser', dict(tokens=3), 'choose a multiple of 4'), ('latent-diffuser', dict(width=5), 'shared by 4 heads')]:
        with pytest.raises(ValueError, match=words): train_method(m, cart, replace(TINY, **how))
    with pytest.raises(ValueError, match='a policy acts at every step: leave out stride=7'): train_method('policy', cart, replace(TINY, stride=7))
    agent = agents['policy'][0].begin([0, 1, 2, 3]); agent.act_batch(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match='2 observations for 4 episodes'): agent.act_batch(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match='1 observations for 4 episodes'): agent.act(np.zeros(4, np.float32))
    agent.keep([1, 3]); assert agent.act_batch(np.zeros((2, 4), np.float32)).shape == (2,)
    with pytest.raises(ValueError, match='beta must be a finite number'): MethodPlan(beta=float('nan'))
    def other(method, **how): return load_method(agents[method][1], **how)
    for method, how, words in [('policy', dict(candidates=4), 'no value to choose by'), ('policy', dict(execute=16), 'Ta is at most'),
                               ('diffuser', dict(beta=1.), 'beta is of latent-diffuser'), ('diffuser', dict(execute=99), 'execute'),
                               ('latent-diffuser', dict(beta=-1.), 'beta must be 0 or more'), ('latent-diffuser', dict(speed=1), 'unknown planning option')]:
        with pytest.raises(ValueError, match=words): other(method, **how)
    stride = agents['latent-diffuser'][0].model.config.stride
    if stride > 1:
        with pytest.raises(ValueError, match='must be a multiple'): other('latent-diffuser', execute=stride + 1)
    file = save_checkpoint(tmp_path / 'o.safetensors', dict(x=torch.zeros(1)), dict(kind='other'))
    with pytest.raises(CheckpointError, match="a 'other', not a method"): load_method(file)
    file = save_checkpoint(tmp_path / 'p.safetensors', dict(x=torch.zeros(1)), dict(kind='method', method='dream', config={}, spaces={}, plan={}))
    with pytest.raises(CheckpointError, match='newer ldp_tut'): load_method(file)


@pytest.mark.parametrize('method', METHODS)
def test_rows_end_and_begin_anew_by_themselves(method, agents):
    "As in a vector environment: a row that has ended remembers nothing, the others go on with what they saw."
    agent, obs = agents[method][0].begin([0, 1, 2]), torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0)).numpy()
    for x in obs[:5]: agent.act_batch(x)
    agent.restart([False, True, False])
    acts = agent.act_batch(obs[5])
    assert acts.shape[0] == 3
    past = getattr(agent.driver, 'seen', None)
    if past is not None:
        assert all((x[1] == past[-1][1]).all() for x in past), 'nothing of the old episode'
        if len(past) > 1: assert not (past[0][0] == past[-1][0]).all(), 'the others remember'
    for x in obs[6:]: agent.act_batch(x)
    if past is not None:
        buffer = obs[0].copy(); agent.begin([0, 1, 2]).act_batch(buffer); kept = agent.driver.seen[-1].clone(); buffer += 1
        assert torch.equal(agent.driver.seen[-1], kept), 'an environment may write into what it gave'
    with pytest.raises(ValueError, match='a mask of 3 episodes'): agent.restart([True])
    with pytest.raises(ValueError, match='no episode has begun'): agent.reset().keep([0])


class Dot(gym.Env):
    "A bright dot on a grey picture of 12 x 8 pixels, pushed left or right; being at the right border pays."
    observation_space, action_space = gym.spaces.Box(0, 255, (12, 8, 3), np.uint8), gym.spaces.Discrete(2)

    def shown(self):
        picture = np.full((12, 8, 3), 40, np.uint8)
        picture[self.row, self.at] = 255
        return picture

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.row = int(self.np_random.integers(0, 6)), int(self.np_random.integers(0, 12))
        return self.shown(), {}

    def step(self, action):
        self.at = int(np.clip(self.at + (1 if action else -1), 0, 7))
        return self.shown(), float(self.at == 7), self.at == 7, False, {}


if 'DotInPictures-v0' not in gym.registry: gym.register('DotInPictures-v0', entry_point=Dot, max_episode_steps=20)


@pytest.fixture(scope='module')
def dots():
    "Whoever plays goes right."
    return collect('DotInPictures-v0', lambda seen: np.ones(len(seen), int), episodes=40, progress=False)


def test_a_policy_reads_pictures(dots, tmp_path):
    "Eyes stand before it; the file plays the same, alone as beside others."
    recipe = MethodRecipe(steps=120, width=32, batch=32, tokens=4)
    agent = train_method('policy', dots, recipe, tmp_path, device='cpu', progress=False)
    again = MethodAgent.load_pretrained(agent.save(tmp_path / 'copy.safetensors'))
    first, second = (play(a, 'DotInPictures-v0', 6, whole=True, progress=False) for a in (agent, again))
    assert [r['steps'] for r in first['rows']] == [r['steps'] for r in second['rows']]
    assert first['success'] == 1 and len({r['steps'] for r in first['rows']}) > 1
    assert play(again, 'DotInPictures-v0', 1, 1_000_003, whole=True, progress=False)['rows'][0]['steps'] == first['rows'][3]['steps']
    assert load_method(tmp_path / 'agent.safetensors', iterations=3).model.policy.config.iterations == 3
    with pytest.raises(ValueError, match=r'\[12, 8, 3\], got \[12, 9, 3\]|history must be'): again.reset().act(np.zeros((12, 9, 3), np.uint8))


def test_a_policy_of_pictures_is_one_command(dots, tmp_path, capsys):
    folder = to_folder(dots, tmp_path / 'dots')
    report = says(capsys, f'train --method policy --data {folder} --env DotInPictures-v0 {LINE} --out {tmp_path}')
    assert report['method'] == 'policy' and report['env'] == 'DotInPictures-v0'
    played = says(capsys, f'eval --checkpoint {report["checkpoint"]} --episodes 2')
    assert played['env'] == 'DotInPictures-v0' and played['method'] == 'policy'


# From a shell.

def says(capsys, line):
    assert main([*line.split(), '--json']) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys, line, *words):
    assert main(line.split()) == 1
    out, err = capsys.readouterr()
    assert err.count('\n') == 1 and out == '' and 'Traceback' not in err, err
    for w in words: assert w in err, err


@pytest.fixture(scope='module')
def episodes(cart, tmp_path_factory):
    return to_folder(cart, tmp_path_factory.mktemp('given') / 'episodes')


@pytest.mark.parametrize('method', METHODS)
def test_the_command_trains_evaluates_records_and_checks(method, episodes, tmp_path, capsys):
    report = says(capsys, f'train --method {method} --data {episodes} --env CartPole-v1 {LINE} --out {tmp_path}')
    assert report['method'] == method and report['env'] == 'CartPole-v1' and report['data']['episodes'] == len(list(episodes.glob('*.npz')))
    file = report['checkpoint']
    assert json.loads((tmp_path / 'agent.json').read_text())['command'].startswith('ldp-tut train')
    first = says(capsys, f'eval --checkpoint {file} --episodes 3 --record')
    assert tuple(first)[:len(KEYS_ANYWHERE)] == KEYS_ANYWHERE and first['method'] == method and first['denoiser'] is None
    assert first['mean_return'] > 0 and first['data_return'] == pytest.approx(report['data']['mean_return']) and first['predicted_reward'] is None
    assert says(capsys, f'eval --checkpoint {file} --check')['holds']
    assert main(f'plan --checkpoint {file} --episodes 2'.split()) == 0
    text = capsys.readouterr().out
    assert f'({method})' in text and "the data's average" in text and 'predicted' not in text
    assert says(capsys, f'plan --checkpoint {file} --episodes 2 --iterations 2')['mean_return'] > 0
    fails(capsys, f'plan --checkpoint {file} --env Acrobot-v1', 'observations [4], got [6]')
    fails(capsys, f'bench --checkpoint {file}', 'not a far-future planner')


def test_the_far_future_planner_is_the_default_and_has_a_name(episodes, tmp_path, capsys):
    line = f'--data {episodes} --steps 3 --world-steps 3 --width 32 --depth 1 --longest 8 --device cpu'
    report = says(capsys, f'train --method far-future {line} --out {tmp_path}')
    assert report['denoiser'] == 'transformer' and '--method' not in report['command']


def test_a_method_can_play_for_its_data(tmp_path, capsys):
    report = says(capsys, f'train --method diffuser --env CartPole-v1 --data-steps 200 {LINE} --out {tmp_path}')
    assert report['data']['steps'] >= 200 and report['command'].startswith('ldp-tut train --env CartPole-v1 --method diffuser --data-steps 200')
    assert says(capsys, f'eval --checkpoint {report["checkpoint"]} --episodes 2')['env'] == 'CartPole-v1'


@pytest.mark.parametrize('line, words', [
    ('--method policy --env CartPole-v1', 'random actions show it nothing'), ('--method policy', 'give --env or --data'),
    ('--method diffuser --env MiniGrid-Empty-6x6-v0', 'reads vectors'), ('--method policy --denoiser exact', 'leave out --denoiser exact'),
    ('--method latent-diffuser --env MountainCar-v0 --data-steps 50 --steps 3 --tokens 7', 'latents must be even'),
    ('--method diffuser --env MountainCar-v0 --data-steps 50 --width 5', 'divisible by 8'), ('--env CartPole-v1 --data-steps 0', 'plays nothing'),
    ('--method diffuser --env CartPole-v1 --data-steps 100 --steps 0', 'steps must be an integer of at least 1, got 0')])
def test_a_wish_that_cannot_be_met_is_one_sentence(line, words, tmp_path, capsys):
    fails(capsys, f'train {line} --out {tmp_path}/x', words)
    assert not list(tmp_path.glob('x/*.safetensors')) and not list(tmp_path.glob('x/data/*')), 'nor was anything played'


@pytest.mark.parametrize('method', METHODS[1:])
def test_data_in_which_nothing_pays_are_for_cloning_only(method, cart, tmp_path, capsys):
    unpaid = to_folder(replace(cart, reward=np.zeros_like(cart.reward)), tmp_path / 'unpaid')
    fails(capsys, f'train --method {method} --data {unpaid} {LINE} --out {tmp_path}/x', 'returns are missing from the data')


def test_help_shows_the_options_of_a_method(capsys):
    with pytest.raises(SystemExit) as e: main('train --method latent-diffuser --help'.split())
    text = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert e.value.code == 0 and 'env steps between tokens' in text and '--data-steps' in text and '--radius' not in text


@pytest.mark.parametrize('method', ['policy', 'diffuser', 'latent-diffuser'])
def test_training_leaves_torchs_own_generator_alone_and_does_not_ask_it(method, cart):
    def weights(seed):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        agent = train_method(method, cart, TINY, device='cpu', progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([p.flatten() for p in agent.model.parameters()])
    assert torch.equal(weights(1), weights(2))


def test_a_short_plan_is_carried_out_to_its_end(cart):
    agent = train_method('diffuser', cart, replace(TINY, tokens=4, stride=1), device='cpu', progress=False)
    assert agent.config.execute == 4
