"What people install: built, put somewhere else, and used from there: the command, and every notebook with a real kernel."
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NBS = sorted(p for p in (ROOT / 'nbs').glob('*.ipynb') if p.name != 'index.ipynb')


def _run(*command, **kwargs):
    run = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "A source distribution and the wheel made from it."
    folder = tmp_path_factory.mktemp('dist')
    copy = folder / 'tree'
    for name in filter(None, _run('git', 'ls-files', '-z', cwd=ROOT).split('\0')):
        if (ROOT / name).is_file() and name.split('/')[0] not in ('nbs', 'tests', 'figs'):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    _run(sys.executable, '-m', 'build', str(copy), '--outdir', str(folder))
    return folder


@pytest.fixture(scope='module')
def elsewhere(dist, tmp_path_factory):
    "A folder with the installed wheel, and an environment that finds it before anything else."
    target = tmp_path_factory.mktemp('installed')
    _run(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', str(target), str(next(dist.glob('*.whl'))))
    return target, os.environ | dict(PYTHONPATH=str(target), LDP_BUDGET='smoke', MPLBACKEND='agg')


def test_the_wheel_holds_what_is_needed_and_no_more(dist):
    wheel = next(dist.glob('*.whl'))
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size <= 25e6  # the planners of two mazes are 6 and 4 MB
    for need in ('ldp_tut/py.typed', 'ldp_tut/checkpoints/registry.json', 'ldp_tut/checkpoints/fourrooms.safetensors', 'ldp_tut/assets/planner_tasks.csv', 'ldp_tut/exact.py'): assert need in names
    assert not [n for n in names if n.endswith(('.ipynb', '.pt', '.pkl', '.pth')) or n.startswith(('tests/', 'nbs/'))]
    meta = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('METADATA'))).decode()
    assert 'Typing :: Typed' in meta and 'Project-URL: Changelog' in meta and 'Provides-Extra: maze' in meta and 'Provides-Extra: docs' in meta
    assert 'Description-Content-Type: text/markdown' in meta and '# ldp_tut' in meta
    text = re.sub(r'\]\(figs/(plan|learned)\.gif\)', '', meta.split('# ldp_tut')[1])  # the films are for the repository's front page
    assert not re.search(r'\]\((?!https?:|#)', text), 'a package index cannot follow relative links'


def test_the_source_distribution_can_be_read_alone(dist):
    names = [n.split('/', 1)[-1] for n in tarfile.open(next(dist.glob('*.tar.gz'))).getnames()]
    for need in ('README.md', 'LICENSE', 'CHANGELOG.md', 'CITATION.cff', 'pyproject.toml', 'ldp_tut/checkpoints/registry.json'): assert need in names


def test_the_changelog_knows_this_version():
    import ldp_tut
    assert f'## {ldp_tut.__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_the_installed_command_plans(elsewhere, tmp_path):
    target, env = elsewhere
    out = _run(sys.executable, '-c', 'import sys, ldp_tut; print(ldp_tut.__file__); from ldp_tut.cli import main; sys.exit(main())', 'plan', '--episodes', '1', cwd=tmp_path, env=env)
    assert str(target) in out and 'success' in out and (tmp_path / 'plan.gif').stat().st_size > 1000


def ten_lines(env, data):
    "The README's script for a world of one's own, as it stands there; but of this world, and too small to learn."
    blocks = re.findall(r'``` python\n(.*?)```', (ROOT / 'README.md').read_text(), flags=re.S)
    script = next(b for b in blocks if 'train_planner(data' in b)
    assert len(script.splitlines()) <= 10
    size = re.search(r'train_planner\((data, .*)\)', script)[1]
    for old, small in [("'CartPole-v1'", repr(env)), ('collect(env, steps=50_000)', data),
                       ('episodes=16', 'episodes=2, most=12'), (size, 'data, steps=3, world_steps=3, width=32, depth=1, longest=8')]:
        assert script.count(old) == 1, old
        script = script.replace(old, small)
    return script


WRITE = """import gymnasium as gym
import numpy as np
from pathlib import Path
env, rng = gym.make('CartPole-v1'), np.random.default_rng(0)
Path('my_episodes').mkdir()
for game in range(20):
    seen, done, paid, over = [env.reset(seed=game)[0]], [], [], False
    while not over:
        done.append(rng.integers(2) if rng.random() < 0.5 else int(seen[-1][2] > 0))
        obs, reward, fell, cut, _ = env.step(done[-1])
        seen.append(obs); paid.append(reward); over = fell or cut
    np.savez(f'my_episodes/{game:03d}.npz', observation=seen, action=done, reward=paid, terminated=fell)
"""  # by somebody who has never heard of this package
STRANGERS = dict(cart=('CartPole-v1', 'collect(env, steps=400)'),
                 maze=('PointMaze_UMaze-v3', 'collect(env, steps=4800)'),
                 folder=('CartPole-v1', "from_folder('my_episodes')"))


@pytest.mark.parametrize('who', STRANGERS)
def test_a_strangers_ten_lines_plan(who, elsewhere, tmp_path):
    "In an environment by its name, in a maze, from a folder: each says what was predicted beside what happened."
    if who == 'maze': pytest.importorskip('gymnasium_robotics')
    python = lambda *words: _run(sys.executable, *words, cwd=tmp_path, env=elsewhere[1])
    if who == 'folder': python('-c', WRITE)
    more = 'from ldp_tut.store import from_folder\n'
    (tmp_path / 'ten.py').write_text(more + ten_lines(*STRANGERS[who]))
    pattern = r'return: data ([\d.]+), planner ([\d.]+)\nreward: predicted ([\d.]+), executed ([\d.]+)'
    average, own, predicted, executed = map(float, re.search(pattern, python('ten.py')).groups())
    assert average > 0 and own >= 0 and 0 <= predicted <= 1 and 0 <= executed <= 1
    if who != 'maze': assert 0 < own <= 12, 'every step pays one'


def test_importing_the_package_loads_nothing_heavy(elsewhere, tmp_path):
    "Not torch, not matplotlib, not gymnasium: the command's help must come at once."
    code = "import sys, ldp_tut, ldp_tut.cli; print([m for m in ('torch', 'matplotlib', 'gymnasium', 'accelerate', 'PIL') if m in sys.modules])"
    assert _run(sys.executable, '-c', code, cwd=tmp_path, env=elsewhere[1]).strip() == '[]'


def run_in_jupyter(path, folder, env):
    "A notebook without its slow cells, run top to bottom by a kernel of its own."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if c.cell_type != 'code' or not re.search(r'^#\| *(eval: *false|slow|cuda)', c.source, flags=re.M)]
    nb.cells.insert(0, nbformat.v4.new_code_cell('import ldp_tut; print(ldp_tut.__file__)'))
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(folder)))).execute(env=env)
    return nb


@pytest.fixture(scope='module')
def ran(elsewhere, request, tmp_path_factory):
    "The notebooks that are asked for, two at a time, for at this budget a second core is of little use to one."
    asked = [i.callspec.params['path'] for i in request.session.items if getattr(i, 'originalname', '') == 'test_a_notebook_runs_in_jupyter_from_the_installed_package']
    env = elsewhere[1] | dict(OMP_NUM_THREADS='1')
    pool = ThreadPoolExecutor(2)
    yield {path: pool.submit(run_in_jupyter, path, tmp_path_factory.mktemp('desk'), env) for path in asked}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.name)
def test_a_notebook_runs_in_jupyter_from_the_installed_package(path, elsewhere, ran):
    "Top to bottom, by a real kernel, in a folder that knows nothing of the checkout. Progress bars stay on one line."
    nb = ran[path].result()
    assert str(elsewhere[0]) in nb.cells[0].outputs[0].text
    for c in nb.cells:
        for o in c.get('outputs', []):
            if o.output_type == 'stream':
                assert len(re.findall(r'\d+%\|', re.sub(r'[^\n]*\r', '', o.text))) <= 1, o.text[-500:]


@pytest.fixture(scope='module')
def lab(elsewhere, tmp_path_factory):
    "JupyterLab, started where nobody knows of the checkout, with two chapters in its folder."
    folder = tmp_path_factory.mktemp('desk')
    for name in ('00_notation.ipynb', '06_training.ipynb'): shutil.copy(ROOT / 'nbs' / name, folder)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    home = {name: str(tmp_path_factory.mktemp('jupyter')) for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR')}
    settings = Path(home['JUPYTER_CONFIG_DIR']) / 'lab/user-settings/@jupyterlab/notebook-extension'
    settings.mkdir(parents=True)
    (settings / 'tracker.jupyterlab-settings').write_text('{"windowingMode": "none"}')  # keep every cell on the page, also those out of sight
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.token=desk', '--ServerApp.port_retries=0'],
                              cwd=folder, env=elsewhere[1] | home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(240):
        try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token=desk', timeout=5); break
        except OSError: time.sleep(0.5)
        if server.poll() is not None: break
    else: server.kill(); server.wait()
    if server.poll() is not None: pytest.fail('JupyterLab did not start')
    yield f'http://127.0.0.1:{port}', folder
    server.terminate(); server.wait(30)


@pytest.mark.parametrize('name', ['00_notation.ipynb', '06_training.ipynb'])
def test_a_notebook_runs_in_jupyterlab_as_a_person_runs_it(name, lab, elsewhere, browser):
    "Opened in a browser, Run All Cells from the menu, saved from the menu; then the saved file is read: every cell has run, none has failed, and a progress bar takes one line."
    address, folder = lab
    page = browser.new_page()
    page.goto(f'{address}/lab/tree/{name}?token=desk&reset', timeout=120_000)
    ready = page.locator('#jp-main-statusbar', has_text='| Idle')  # the notebook's own sign says idle before there is a kernel
    ready.wait_for(timeout=120_000)
    menu = lambda first, second: (page.locator('.lm-MenuBar-item', has_text=first).first.click(), page.locator('.lm-Menu-item', has_text=second).first.click())
    menu('Run', 'Run All Cells')
    cells = lambda: [c for c in json.loads((folder / name).read_text())['cells'] if c['cell_type'] == 'code']
    before = (folder / name).stat().st_mtime_ns
    for _ in range(90):
        page.wait_for_timeout(2000)
        if ready.count():
            menu('File', 'Save Notebook')
            page.wait_for_timeout(1000)
            if (folder / name).stat().st_mtime_ns > before and all(c['execution_count'] for c in cells() if ''.join(c['source']).strip()): break
    if name == '00_notation.ipynb':  # the board moves here, too
        board = page.locator('.ldp-board').first
        board.locator('select').select_option('far_first')
        board.locator('input[type=range]').focus()
        for _ in range(5): page.keyboard.press('ArrowRight')
        assert board.locator('output').inner_text() == 'm = 5' and board.locator('svg').get_attribute('aria-label') == 'noise board far_first, iteration 5'
    page.close()
    for c in cells():
        assert c['execution_count'] or not ''.join(c['source']).strip(), ''.join(c['source'])
        for o in c['outputs']:
            assert o['output_type'] != 'error', o
            if o['output_type'] == 'stream': assert len(re.findall(r'\d+%\|', re.sub(r'[^\n]*\r', '', ''.join(o['text'])))) <= 1
