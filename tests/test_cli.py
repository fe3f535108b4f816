"The command: JSON keys, exit statuses, one clear sentence for every mistake, nothing overwritten."
import inspect
import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from ldp_tut.cli import AnyRecipe, main
from ldp_tut.book import share_interval
from ldp_tut.reports import KEYS, KEYS_ANYWHERE, as_json, claim_holds, success_line

SHELL = [sys.executable, '-c', 'import sys; from ldp_tut.cli import main; sys.exit(main())']  # what the installed command does


def fails(capsys, line, *words):
    "The command ends with status 1 and one sentence on stderr that says all the words."
    assert main(line.split()) == 1
    out, err = capsys.readouterr()
    assert err.count('\n') == 1 and err.startswith('ldp-tut '), err
    for w in words: assert w in err, err
    assert 'Traceback' not in err and out == ''


@pytest.mark.parametrize('line, words', [
    ('collect', 'at least so many steps'), ('train', 'optimiser steps of the world model'), ('plan', 'sampler iterations'),
    ('train --env CartPole-v1', 'optimiser steps of the denoiser'), ('eval', 'settled side by side'), ('eval --checkpoint fourrooms-exact', 'nats by which'), ('bench', 'its address')])
def test_help_shows_units_and_defaults(line, words, capsys):
    with pytest.raises(SystemExit) as e: main([*line.split(), '--help'])
    text = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert e.value.code == 0 and '--seed' in text and '--json' in text and 'default' in text and words in text


def test_collect_reports_and_stores(tmp_path, capsys):
    assert main(f'collect --episodes 8 --out {tmp_path} --json'.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['episodes'] == 8 and report['steps'] > 0 and os.path.isdir(report['shard'])


def test_plan_prints_its_keys_and_writes_a_film(tmp_path, capsys):
    from PIL import Image
    assert main(f'plan --checkpoint fourrooms-exact --episodes 2 --gif {tmp_path}/plan.gif --json'.split()) == 0
    text = capsys.readouterr().out
    report = json.loads(text)
    assert text.count('\n') == 1 and list(report)[:len(KEYS)] == list(KEYS)
    assert report['env'] == 'MiniGrid-FourRooms-v0' and report['episodes'] == 2 and report['denoiser'] == 'exact'
    assert (tmp_path / 'plan.gif').stat().st_size < 500_000
    with Image.open(tmp_path / 'plan.gif') as film: assert film.n_frames > 10
    main(f'plan --checkpoint fourrooms --episodes 2 --gif {tmp_path}/again.gif --json'.split())
    again = json.loads(capsys.readouterr().out)
    timing = ('ms_per_plan', 'gif', 'checkpoint')
    assert {k: v for k, v in again.items() if k not in timing} == {k: v for k, v in report.items() if k not in timing}
    assert (tmp_path / 'again.gif').read_bytes() == (tmp_path / 'plan.gif').read_bytes()


def test_the_planner_that_ships_is_the_learned_one(tmp_path, capsys):
    from PIL import Image
    assert main(f'plan --episodes 1 --seed 2000002 --gif {tmp_path}/plan.gif --json'.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['denoiser'] == 'field' and report['env'] == 'MiniGrid-FourRooms-v0' and report['checkpoint'] == 'fourrooms-field'
    assert report['success'] == 1 and report['steps_over_optimum'] < 1.3 and report['lawful_rate'] > 0.9
    with Image.open(tmp_path / 'plan.gif') as film: assert film.n_frames > 4


@pytest.mark.parametrize('name, denoiser', [('fourrooms-exact', 'exact'), ('fourrooms-field', 'field')])
def test_the_first_rooms_of_a_claim_are_walked_again(name, denoiser, capsys):
    told = says(capsys, f'eval --checkpoint {name} --check --episodes 2')
    assert told['holds'] and told['denoiser'] == denoiser and told['checkpoint'] == name and told['episodes'] == 2
    assert told['measured']['success'] == 1 and told['measured']['steps_over_optimum'] < 1.4


@pytest.mark.parametrize('maze', ['medium', 'large'])
def test_a_shipped_planner_of_mazes_is_planned_with_by_its_name(maze, capsys):
    pytest.importorskip('gymnasium_robotics')
    assert main(f'plan --checkpoint pointmaze-{maze} --episodes 2 --most 20 --json'.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report)[:len(KEYS_ANYWHERE)] == list(KEYS_ANYWHERE) and report['denoiser'] == 'transformer'
    assert report['env'].lower() == f'pointmaze_{maze}-v3' and report['data_return'] > 0 and report['predicted_reward'] > 0.5
    fails(capsys, f'bench --checkpoint pointmaze-{maze}', 'exact denoiser')
    fails(capsys, f'plan --checkpoint pointmaze-{maze} --env CartPole-v1', 'goals of 2 numbers')


@pytest.mark.parametrize('checkpoint', ['simplecrossing-n1', 'fourrooms-rgb'])
def test_bench_times_what_the_checkpoint_reads(checkpoint, capsys, monkeypatch):
    from ldp_tut.chain_planner import ChainPlanner
    plain, asked = ChainPlanner.plan, []
    monkeypatch.setattr(ChainPlanner, 'plan', lambda self, obs, seeds, **how: (asked.append((len(obs), sorted(how))), plain(self, obs, seeds, **how))[1])
    monkeypatch.setattr('ldp_tut.bench.seconds_per_call', lambda f, at_least=0: (f(), 0.5)[1])  # every loop runs once, on symbols or on pixels
    assert main(f'bench --checkpoint {checkpoint} --device cpu --json'.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert asked == [(1, []), (1, []), (1, ['known']), (16, []), (64, [])], 'a plan to remember, a first one, a later one, batches'
    assert report['ms_per_plan'] == report['ms_per_later_plan'] == 500 and report['plans_per_second_in_batches_of_16'] == 32
    assert report['minigrid_steps_per_second'] == 2 and report['training_tokens_per_second'] == 512


def test_mistakes(tmp_path, capsys):
    fails(capsys, 'plan --env MiniGrid-FiveRooms-v0', 'unknown environment id')
    fails(capsys, f'collect --env FiveRooms-v0 --out {tmp_path}/x', 'cannot be made')
    fails(capsys, 'plan --checkpoint fourrooms --most 5', 'leave out --most')
    fails(capsys, 'plan --checkpoint fourrooms --env MiniGrid-Empty-8x8-v0', 'plans in MiniGrid-FourRooms-v0', 'not in MiniGrid-Empty-8x8-v0')
    for other in ('--seed 5', '--scale 0'): fails(capsys, f'eval --checkpoint simplecrossing-n1 --check {other}', f'leave out {other}')
    fails(capsys, 'plan --checkpoint nothing', 'no checkpoint is called')
    fails(capsys, f'eval --checkpoint {tmp_path}/none.safetensors', 'no checkpoint at')
    (tmp_path / 'bad.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"__metadata__')
    fails(capsys, f'eval --checkpoint {tmp_path}/bad.safetensors', 'damaged or cut off')
    fails(capsys, f'collect --policy clever --out {tmp_path}/x', 'unknown policy')
    fails(capsys, f'collect --episodes 0 --out {tmp_path}/x', 'at least 1')
    fails(capsys, 'eval --episodes 0', 'at least 1')
    fails(capsys, 'plan --device gpu', 'unknown device')
    fails(capsys, f'plan --gif {tmp_path}/film.mp4', '.gif')


@pytest.mark.parametrize('line, words', [
    ('plan --seed -5', '--seed must be an integer of at least 0, got -5'), ('collect --seed -1', '--seed'), ('train --seed -1', '--seed'), ('bench --seed -1', '--seed'),
    ('plan --scale nan', '--scale must be a finite number, got nan'), ('eval --scale inf', '--scale'), ('plan --eta -3', 'eta must be in [0, 1], got -3'), ('plan --eta 2', 'eta must be in'),
    ('plan --slack nan', '--slack'), ('train --lr nan', '--lr'), ('train --lr 0', 'lr must be positive'), ('train --shift -8', 'shift must be positive'), ('train --walk -1', 'walk must be'),
    ('train --latent-noise -1', 'latent_noise must be in'), ('train --env CartPole-v1 --steps 0', 'steps must be an integer of at least 1, got 0'), ('train --env CartPole-v1 --radius nan', 'radius'),
    ('train --env CartPole-v1 --longest -3', 'longest must be'), ('train --env CartPole-v1 --world-steps 0', 'world_steps must be'), ('train --env CartPole-v1 --width 30', 'width 30 must be')])
def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_done(line, words, capsys, tmp_path):
    fails(capsys, line + f' --out {tmp_path}/x' * line.startswith(('collect', 'train')), words)
    assert not list(tmp_path.glob('x/*'))


def test_a_reader_who_goes_away_is_no_error():
    "In `ldp-tut bench | true` nobody reads; the command says nothing, and its status is that of any command nobody listens to."
    code = "import sys, os, ldp_tut.cli as cli; cli.run_bench = lambda a: dict(rows='x' * 99999); os.close(0); sys.exit(cli.main(['bench']))"
    run = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    assert run.stderr.read() == '' and run.wait() == 141


def test_a_card_names_a_commit_of_this_repository_or_none(tmp_path, monkeypatch):
    "A repository that only surrounds the installed package, as one around a virtual environment does, has nothing to say."
    import shutil
    from ldp_tut import checkpoints
    if not shutil.which('git'): pytest.skip('git is not installed')
    git = lambda *words: subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    for where in ('ldp_tut', 'env/site-packages/ldp_tut'):
        (tmp_path / where).mkdir(parents=True); (tmp_path / where / 'checkpoints.py').write_text('')
    git('init', '-q')
    git('commit', '-qm', 'nothing', '--allow-empty')
    said = lambda where: (monkeypatch.setattr(checkpoints, '__file__', str(tmp_path / where / 'checkpoints.py')), checkpoints.commit_of_package())[1]
    assert said('ldp_tut') is None, 'it lies there, but git does not know it'
    git('add', 'ldp_tut'); git('commit', '-qm', 'ours')
    assert said('ldp_tut') == git('rev-parse', 'HEAD')
    git('add', '-A'); git('commit', '-qm', 'an installed copy, even one that is tracked')
    assert said('env/site-packages/ldp_tut') is None


def test_unwritable_output_is_found_before_the_work(tmp_path, capsys):
    (tmp_path / 'file').write_text('in the way')
    fails(capsys, f'collect --episodes 2 --out {tmp_path}/file/x', 'cannot write')
    fails(capsys, f'train --out {tmp_path}/file/x', 'cannot write')
    fails(capsys, f'plan --gif {tmp_path}/file/plan.gif', 'cannot write')
    assert (tmp_path / 'file').read_text() == 'in the way'


def test_a_damaged_store_is_refused_and_left_alone(tmp_path, capsys):
    main(f'collect --episodes 4 --out {tmp_path}/data --json'.split()); capsys.readouterr()
    file = tmp_path / 'data' / 'shard-00000' / 'grid.npy'
    file.write_bytes(file.read_bytes()[:100])
    fails(capsys, f'train --episodes 4 --world-steps 1 --steps 1 --out {tmp_path}', 'checksum')
    assert file.stat().st_size == 100


def test_a_folder_is_gone_on_with_by_the_same_recipe_alone(tmp_path, capsys):
    "Other options are refused by name before anything is overwritten; more steps extend a finished run, and the card says so."
    line = f'train --env MiniGrid-Empty-6x6-v0 --episodes 12 --world-steps 3 --steps 3 --tokens 4 --longest 10 --precision no --device cpu --out {tmp_path}'
    assert main(line.split()) == 0
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in tmp_path.glob('*.*')}
    for option, words in [('--batch 16', 'batch=32, not 16'), ('--longest 9', 'longest=10, not 9'), ('--shift 4', 'shift=8.0, not 4.0'), ('--latent-noise 2', 'latent_noise=1.0, not 2.0'),
                          ('--lr .1', 'lr=0.002, not 0.1'), ('--no-chain', 'chain=True, not False'), ('--scene-width 8', 'scene_width=48, not 8'), ('--steps 2', 'steps=3, not 2')]:
        fails(capsys, f'{line} {option}', words, 'choose another path')
    assert {p.name: p.read_bytes() for p in tmp_path.glob('*.*')} == before
    assert main(f'{line} --steps 5 --json'.split()) == 0
    card = json.loads((tmp_path / 'agent.json').read_text())
    assert card['extended'] == [dict(after=3, to=5)] and card['recipe']['steps'] == 5 and card['denoiser'] == 'exact'


def test_the_commands_on_shipped_cards_are_still_understood():
    "Each, read as a command line, asks for the recipe on its card, and for its denoiser."
    from pathlib import Path
    from ldp_tut import cli
    cards = sorted(Path(cli.__file__).parent.glob('checkpoints/*.json'))
    cards = [json.loads(p.read_text()) for p in cards if p.with_suffix('.safetensors').exists()]
    cards = [c for c in cards if 'made_by' not in c]  # no command makes these again
    assert len(cards) >= 2 and {c['kind'] for c in cards} == {'agent', 'far-future planner'}
    for card in cards:
        asked = cli.read_command(card['command'].split()[1:])
        assert cli.is_exact(asked) == (card['kind'] != 'agent')
        if card['kind'] == 'agent':
            names = ('radius', 'world_steps', 'width', 'depth', 'features')
            mine = {n: getattr(asked.recipe, n) for n in names}
            theirs = {n: card['recipe'].get(n, 0) for n in names}  # older cards know of no features
            for d in (mine, theirs): d['world_steps'] = d['world_steps'] or 6000  # what no number comes to for vectors
            assert mine == theirs and asked.recipe.window == card['recipe'].get('window', False)
            assert (asked.env, asked.seed, asked.recipe.steps) == (card['env_id'], card['seed'], card['steps'])
            for n in ('tokens', 'batch', 'lr', 'longest'):
                if getattr(asked.recipe, n) is not None and n in card['recipe']: assert getattr(asked.recipe, n) == card['recipe'][n]
            r, data = asked.recipe, card['data']
            assert r.episodes == data['episodes'] if r.episodes else r.data_steps == data['steps']
            assert (r.policy or cli.usual_policy(asked.env)) == data['policy'] and r.spare == data.get('spare', 0)
            continue
        mine = vars(cli.exact_recipe(asked))
        given = {n: v for n, v in card['recipe'].items() if n != 'precision'}  # on a card it says what 'auto' came to
        assert {n: mine[n] for n in given} == given


def test_an_unknown_command_exits_non_zero_from_a_shell():
    run = subprocess.run([*SHELL, 'fly'], capture_output=True, text=True)
    assert run.returncode != 0


# Any world: the same commands, another denoiser.

SMALL = '--steps 3 --world-steps 3 --width 32 --depth 1 --longest 8 --device cpu'
QUICK = '--device cpu --episodes 2 --iterations 2 --far-iterations 2 --horizons 2 --candidates 1'


def says(capsys, line):
    "What a command reports."
    assert main([*line.split(), '--json']) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope='module')
def cart(tmp_path_factory):
    "A folder with a planner for CartPole that has hardly been trained."
    out = tmp_path_factory.mktemp('cart')
    assert main(f'train --env CartPole-v1 --data-steps 300 {SMALL} --out {out} --json'.split()) == 0
    return out


@pytest.fixture(scope='module')
def episodes(cart, tmp_path_factory):
    "The same data as a folder of files, one an episode."
    from ldp_tut.store import load_data, to_folder
    return to_folder(load_data(str(cart / 'data'))[0], tmp_path_factory.mktemp('given') / 'episodes')


def test_a_planner_of_any_world_is_known_by_its_card(cart, capsys):
    card = json.loads((cart / 'agent.json').read_text())
    assert card['denoiser'] == 'transformer' and card['env_id'] == 'CartPole-v1' and card['device'] == 'cpu'
    assert card['command'].startswith('ldp-tut train --env CartPole-v1 --data-steps 300 --steps 3')
    first = says(capsys, f'plan --checkpoint {cart}/agent.safetensors {QUICK}')
    assert tuple(first)[:len(KEYS_ANYWHERE)] == KEYS_ANYWHERE and first['denoiser'] == 'transformer'
    assert first['data_return'] == pytest.approx(card['data']['mean_return']) == pytest.approx(first['data_steps'])
    assert first['mean_return'] == first['mean_steps'] > 0  # every step of CartPole pays one
    again = says(capsys, f'plan --checkpoint {cart}/agent.safetensors {QUICK}')
    del first['ms_per_step'], again['ms_per_step']
    assert first == again
    assert main(f'plan --checkpoint {cart}/agent.safetensors {QUICK}'.split()) == 0
    text = capsys.readouterr().out
    assert 'predicted reward' in text and 'executed reward' in text and "the data's average" in text


class Talks(gym.Env):
    "Says what it does, as some environments do."
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        print('Sampling rejected')
        return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1., False, False, {}


def test_a_world_that_prints_does_not_print_into_json_and_nothing_is_collected_twice(tmp_path, capsys):
    gym.register('Talks-v0', entry_point=Talks, max_episode_steps=5)
    line = f'collect --env Talks-v0 --episodes 4 --out {tmp_path}/x'
    assert says(capsys, line)['episodes'] == 4
    fails(capsys, line, 'choose another --seed')
    assert says(capsys, line + ' --seed 9')['shard'].rstrip('/').endswith('00001')
    gym.register('Broken-v0', entry_point=lambda: undefined_name)
    fails(capsys, f'collect --env Broken-v0 --out {tmp_path}/y', 'cannot be made: NameError')
    grey = type('Grey', (Talks,), dict(observation_space=gym.spaces.Box(0, 255, (16, 16), np.uint8)))
    gym.register('Grey-v0', entry_point=grey, max_episode_steps=5)
    fails(capsys, f'train --env Grey-v0 --out {tmp_path}/z', 'a world is made of vectors')
    assert not list((tmp_path / 'z').glob('data/*'))


def test_a_claim_of_any_world_is_recorded_and_checked(cart, tmp_path, capsys):
    import shutil
    from ldp_tut.checkpoints import load_checkpoint, save_checkpoint
    own = shutil.copy(cart / 'agent.safetensors', tmp_path)
    fails(capsys, f'eval --checkpoint {own} --check', 'claims nothing')
    report = says(capsys, f'eval --checkpoint {own} {QUICK} --record')
    tensors, card = load_checkpoint(own)
    assert card['metrics']['mean_return'] == report['mean_return'] and card['plan']['iterations'] == 2
    assert says(capsys, f'eval --checkpoint {own} --check')['measured']['mean_return'] == report['mean_return']
    fails(capsys, f'eval --checkpoint {own} --check --seed 7', 'leave out --seed 7')
    save_checkpoint(own, tensors, card | dict(metrics=card['metrics'] | dict(success=1.)))
    fails(capsys, f'eval --checkpoint {own} --check', 'does not hold')


def test_a_claim_holds_within_what_chance_explains_and_no_further():
    rows = [{'return': x} for x in (9., 10., 11., 10.) * 10]
    measured = dict(success=0., mean_return=10., rows=rows)
    for claim, holds in [(10., True), (10.5, True), (11., False), (500., False)]:
        assert claim_holds(dict(success=0., mean_return=claim), measured) == holds
    few = measured | dict(rows=[{'return': 9.3}] * 16, mean_return=9.3)
    assert not claim_holds(dict(success=0., mean_return=123.), few)
    assert claim_holds(dict(success=0., mean_return=500.), measured | dict(rows=rows[:1])), 'one episode proves nothing'
    lost = dict(success=0., mean_return=0., rows=[{'return': 0.}] * 3)
    assert claim_holds(dict(success=.5, mean_return=.5), lost), 'three of three are lost by chance now and then'
    assert not claim_holds(dict(success=1.), measured), 'all of them succeeded, and none of these'
    walked = measured | dict(steps_over_optimum=1.2)
    assert claim_holds(dict(success=0., steps_over_optimum=1.19), walked)
    assert not claim_holds(dict(success=0., steps_over_optimum=1.1), walked)
    nothing = dict(success=0., mean_return=0., steps_over_optimum=None)
    assert claim_holds(nothing, nothing | dict(rows=[dict(**{'return': 0.})] * 8)), 'nothing was solved, and nothing claimed'


def test_help_and_mistakes_do_not_wait_for_torch():
    code = 'import sys, ldp_tut.cli; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_a_report_has_an_interval_that_is_not_nothing_and_json_that_is():
    low, high = share_interval(16, 16)
    assert '(95 %: 80.6% to 100.0%' in success_line(dict(success=1., episodes=16)) and .80 < low < .81 and high == 1
    said = json.loads(as_json('eval', dict(claimed=dict(success=.5, over=float('nan')), walks=[1], each=[float('inf'), 2])))
    assert said == dict(claimed=dict(success=.5, over=None), each=[None, 2])


def test_a_run_of_any_world_is_gone_on_with_by_the_same_recipe_alone(cart, capsys):
    line = f'train --env CartPole-v1 --data-steps 300 {SMALL} --out {cart}'
    before = {p.name: p.read_bytes() for p in cart.glob('*.*')}
    for option, words in [('--data-steps 400', 'steps_asked=300, not 400'), ('--seed 1', 'seed=0, not 1'),
                          ('--steps 2', 'steps=3, not 2'), ('--env Acrobot-v1', 'env_id=CartPole-v1, not Acrobot-v1')]:
        fails(capsys, f'{line} {option}', words)
    assert {p.name: p.read_bytes() for p in cart.glob('*.*')} == before
    assert says(capsys, f'{line} --steps 4')['denoiser'] == 'transformer'
    assert json.loads((cart / 'agent.json').read_text())['extended'] == [dict(after=3, to=4)]


@pytest.mark.parametrize('where', ['folder', 'store', 'minari'])
def test_data_of_ones_own_are_learned_from(where, cart, episodes, tmp_path, capsys, monkeypatch):
    address = {'folder': episodes, 'store': cart / 'data', 'minari': 'minari:own/cart-v0'}[where]
    if where == 'minari':
        pytest.importorskip('minari')
        from ldp_tut.store import from_folder, to_minari
        monkeypatch.setenv('MINARI_DATASETS_PATH', str(tmp_path / 'minari'))
        to_minari(from_folder(episodes), 'own/cart-v0')
    report = says(capsys, f'train --data {address} {SMALL} --out {tmp_path}/x')
    assert report['data']['episodes'] == len(list(episodes.glob('*.npz'))) and not (tmp_path / 'x' / 'data').exists()
    file = report['checkpoint']
    if where == 'store': assert says(capsys, f'plan --checkpoint {file} {QUICK}')['env'] == 'CartPole-v1'
    else: fails(capsys, f'plan --checkpoint {file} {QUICK}', 'name no environment', '--env')
    assert says(capsys, f'plan --checkpoint {file} {QUICK} --env CartPole-v1')['mean_return'] > 0
    fails(capsys, f'plan --checkpoint {file} --env Acrobot-v1', 'observations [4], got [6]')
    fails(capsys, f'plan --checkpoint {file} --gif x.gif', 'leave out --gif')
    fails(capsys, f'bench --checkpoint {file}', 'not a far-future planner')


def test_data_that_cannot_be_planned_from_are_refused_before_any_training(episodes, tmp_path, capsys):
    short = tmp_path / 'short'; short.mkdir()
    for i in range(4):
        np.savez(short / f'{i}.npz', observation=np.zeros((4, 2)), action=np.array([0, 1, 0]), reward=np.ones(3),
                 terminated=True)
    assert main(f'collect --episodes 2 --out {tmp_path}/rooms --json'.split()) == 0
    capsys.readouterr()
    for line, words in [
        ('--env Blackjack-v1', 'observations must be'), ('--env Nothing-v0', 'cannot be made'),
        ('--env CartPole-v1 --policy waypoints', "'waypoints' is not for"),
        ('--env MiniGrid-Empty-6x6-v0 --denoiser transformer', 'not grids of symbols'),
        ('--env MountainCar-v0 --data-steps 50', 'nothing in them pays'),
        ('--denoiser transformer', 'give --env or --data'),
        (f'--data {tmp_path}/nowhere', 'no folder'), ('--data minari:no/such-v0', 'no Minari data set'),
        (f'--data {short}', 'a plan needs at least 4'), (f'--data {episodes} --longest 999', 'choose less'),
        (f'--data {episodes} --env Acrobot-v1', 'observations [4], got [6]'),
        (f'--data {tmp_path}/rooms', 'holds rooms'),
        (f'--data {episodes} --policy random', 'leave out --policy random'),
        (f'--data {episodes} --denoiser exact', 'leave out --data')]:
        fails(capsys, f'train {line} --device cpu --out {tmp_path}/out', words)
        assert not list(tmp_path.glob('out/*.safetensors'))
        for f in tmp_path.glob('out/data'): f.rename(tmp_path / f'aside-{len(list(tmp_path.iterdir()))}')


def test_any_environment_is_collected(tmp_path, capsys):
    report = says(capsys, f'collect --env Pendulum-v1 --steps 60 --out {tmp_path}')
    assert report['policy'] == 'random' and report['steps'] >= 60 and report['mean_return'] < 0


def test_options_of_training_are_those_of_the_function():
    "The command's defaults are the library's."
    from ldp_tut import planner
    theirs = dict(inspect.signature(planner.train_planner).parameters)
    if more := getattr(planner, 'PlannerRecipe', None): theirs |= inspect.signature(more).parameters
    for name in ('steps', 'minutes', 'radius', 'longest', 'world_steps', 'width', 'depth'):
        assert getattr(AnyRecipe(), name) == theirs[name].default, name


def test_two_wishes_that_exclude_each_other_are_refused(capsys):
    with pytest.raises(SystemExit) as e: main(['eval', '--check', '--record'])
    assert e.value.code == 2 and 'not allowed together' in capsys.readouterr().err


def test_weights_to_start_from_are_read_before_anything_is_played(tmp_path, capsys):
    (tmp_path / 'torn.safetensors').write_bytes(b'torn')
    line = f'train --env MiniGrid-Unlock-v0 --denoiser field --out {tmp_path / "out"} --start-from'
    fails(capsys, f'{line} {tmp_path / "torn.safetensors"}', 'torn.safetensors')
    fails(capsys, f'{line} simplecrossing-n1', 'not an agent')
    assert not (tmp_path / 'out').exists()


def test_planning_options_that_an_older_card_does_not_know_are_used(capsys, tmp_path):
    "Its card leaves them to the defaults; asked for, they change the plan."
    from pathlib import Path
    from ldp_tut import cli
    from ldp_tut.planner import PlanConfig
    cards = {p.stem: json.loads(p.read_text()) for p in Path(cli.__file__).parent.glob('checkpoints/*-field.json')}
    missing = {name: {f for f in PlanConfig.__dataclass_fields__ if f not in card['plan']} for name, card in cards.items()}
    assert 'doubt' in missing['fourrooms-field'], 'or nothing is tested here'
    for name, card in cards.items():
        a = cli.read_command(['plan', '--checkpoint', name])
        assert cli._overrides(a, card) == {}
        a = cli.read_command(['plan', '--checkpoint', name, '--doubt', '0.7', '--free', '--votes', '5'])
        assert cli._overrides(a, card).items() >= dict(doubt=0.7, votes=5).items() and a.planning.free
    fails(capsys, 'eval --check --doubt 3', '--doubt 3.0')
    fails(capsys, 'eval --check --most 5', '--most 5')


def test_a_store_of_other_data_is_not_taken_for_ones_own(tmp_path):
    from ldp_tut.cli import _check_same_data
    have = dict(env_id='X-v0', seed=0, walk=0, spare=8)
    _check_same_data(tmp_path, have, dict(env_id='X-v0', seed=0, walk=0, spare=8, patch=None))
    with pytest.raises(ValueError, match='spare=8, not 0'): _check_same_data(tmp_path, have, dict(env_id='X-v0', seed=0, walk=0, spare=0, patch=None))


def test_who_asks_for_an_option_of_another_world_is_told_where_they_are(capsys):
    with pytest.raises(SystemExit): main('train --radius 0.2'.split())
    assert 'ldp-tut train --env ID --help' in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: main('train --env CartPole-v1 --help'.split())
    said = capsys.readouterr()
    assert not e.value.code and '--env ID' not in said.err


@pytest.mark.parametrize('option, words', [
    ('--radius 0.2', 'radius=0.2 is an option of goals, and CartPole-v1 has none'), ('--patch 2', 'patch is an option of pictures'), ('--window', 'window is an option of pictures'),
    ('--longest 5000', 'episodes of CartPole-v1 end after 500: choose less'), ('--episodes 3 --data-steps 500', 'choose one of --episodes and --data-steps'),
    ('--data-steps -5', '--data-steps must be at least 0, got -5'), ('--episodes -2', '--episodes must be at least 0, got -2')])
def test_options_that_do_not_fit_a_world_are_refused_before_it_is_played(option, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('ldp_tut.data.collect', lambda *a, **k: pytest.fail('it was played'))
    assert main(f'train --env CartPole-v1 --out {tmp_path} {option}'.split()) == 1
    assert words in capsys.readouterr().err


def test_a_run_and_its_folder_lead_to_the_agent_beside_it(tmp_path, capsys):
    import torch
    from ldp_tut.checkpoints import save_checkpoint
    save_checkpoint(tmp_path / 'denoiser.safetensors', {'w': torch.zeros(1)}, dict(kind='training run'))
    for name, words in ((tmp_path / 'denoiser.safetensors', 'is a training run: take agent.safetensors beside it'), (tmp_path, f'is a folder: give a file in it, such as {tmp_path}/agent')):
        assert main(f'plan --checkpoint {name} --most 5'.split()) == 1
        assert words in capsys.readouterr().err


def test_limits_that_are_none_and_other_files_are_refused(capsys):
    for line, words in (('eval --episodes 1 --most -5', 'most must be an integer of at least 1, got -5'), ('eval --episodes 1 --most 0', 'got 0'),
                        ('eval --episodes 1 --sha256 ' + '0' * 64, 'is not the file that was asked for')):
        assert main(line.split()) != 0
        assert words in capsys.readouterr().err


def test_data_are_played_by_one_training_at_a_time(tmp_path, capsys):
    "The second one in a folder is told to wait, and does not add the same episodes again."
    from ldp_tut.store import TrajectoryStore
    line = f'train --env CartPole-v1 --data-steps 300 {SMALL} --out {tmp_path} --json'.split()
    with TrajectoryStore(tmp_path / 'data').writing(): assert main(line) != 0
    assert 'being written by somebody else' in capsys.readouterr().err
    assert main(line) == 0 and main(line) == 0 and len(TrajectoryStore(tmp_path / 'data').shards()) == 1
