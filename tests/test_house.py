"The house rules: one direction of imports, one sampler, one truth in every file."
import ast
import configparser
import inspect
import json
import re
import subprocess
import sys
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest

try: import tomllib
except ImportError: import tomli as tomllib

ROOT = Path(__file__).parent.parent
NBS = sorted((ROOT / 'nbs').glob('*.ipynb'))
CHAPTERS = {}
for path in NBS:
    text = path.read_text()
    if found := re.search(r'#\| default_exp (\w+)', text): CHAPTERS[found[1]] = path.name
LIBRARY = sorted(p for p in (ROOT / 'ldp_tut').glob('*.py') if not p.name.startswith('_'))


def imports(tree):
    "Modules of ldp_tut imported anywhere in a piece of code, inside functions too."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module is None or node.module == 'ldp_tut'): yield from (a.name for a in node.names if a.name in CHAPTERS)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith('ldp_tut.')): yield node.module.split('.')[-1]
        if isinstance(node, ast.Import): yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('ldp_tut.'))


def code(path):
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    return ast.parse('\n'.join(re.sub(r'^[%!].*$', '', c, flags=re.M) for c in cells))


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.name)
def test_a_chapter_imports_only_earlier_chapters(path):
    "Five appendices are open to all: drawing, records, checkpoints and the book's own import nothing of ours, stores import records."
    for module in imports(code(path)):
        assert module in CHAPTERS, f'{path.name} imports ldp_tut.{module}, which no notebook makes'
        if module in ('viz', 'records', 'store', 'checkpoints', 'book'): continue
        assert CHAPTERS[module] < path.name, f'{path.name} imports {module} from the later chapter {CHAPTERS[module]}'


@pytest.mark.parametrize('module, may', [('viz', set()), ('records', set()), ('checkpoints', set()), ('book', set()), ('store', {'records'})])
def test_open_appendices_import_next_to_nothing_of_ours(module, may):
    assert set(imports(ast.parse((ROOT / 'ldp_tut' / f'{module}.py').read_text()))) == may


def test_every_module_has_a_notebook():
    assert {p.stem for p in LIBRARY} == set(CHAPTERS)


def test_there_is_one_denoising_loop():
    "`sample_step` is called by `sample` alone, and nobody else undoes noise: no other library function both reads `alpha_bar` and loops."
    callers, loops = [], []
    for path in LIBRARY:
        for f in ast.walk(ast.parse(path.read_text())):
            if not isinstance(f, ast.FunctionDef): continue
            names = {n.id for n in ast.walk(f) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(f) if isinstance(n, ast.Attribute)}
            called = {n.func.id for n in ast.walk(f) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            if 'sample_step' in called: callers.append(f'{path.stem}.{f.name}')
            reads = 'alpha_bar' in names or any(isinstance(n, ast.Attribute) and n.attr == 'at' and 'schedule' in ast.unparse(n.value) for n in ast.walk(f))  # `NoiseSchedule.at`
            if reads and any(isinstance(n, (ast.For, ast.While)) for n in ast.walk(f)): loops.append(f'{path.stem}.{f.name}')
    # argument checks, blocks of a network, and three that move a point without denoising it: a likelihood, and Langevin chains at a level
    over_other_things = {'ddpm.convert', 'ddpm.sample_step', 'forcing.forward', 'score.flow_log_prob', 'score.annealed_langevin'}
    assert callers == ['ddpm.sample'] and set(loops) <= over_other_things, (callers, loops)


def generated(module):
    "Lines of a module that nbdev writes: the list of its public names."
    tree = ast.parse(module.read_text())
    return {n for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__' for n in range(node.lineno, node.end_lineno + 1)}


def long_lines(module):
    made = generated(module)
    return [f'{module.name}:{n}: {len(line)} columns' for n, line in enumerate(module.read_text().split('\n'), 1) if len(line) > 120 and n not in made]


@pytest.mark.parametrize('path', LIBRARY, ids=lambda p: p.name)
def test_lines_have_at_most_120_columns(path):
    assert long_lines(path) == []


def test_a_long_line_is_found(tmp_path):
    module = tmp_path / 'm.py'
    module.write_text(f"__all__ = ['{'a' * 130}']\nx = 1  # {'b' * 120}\n")
    assert long_lines(module) == ['m.py:2: 129 columns']


@pytest.mark.parametrize('path', LIBRARY, ids=lambda p: p.name)
def test_a_module_has_at_most_700_lines(path):
    assert len(path.read_text().splitlines()) <= 700


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.name)
def test_a_chapter_has_at_most_70_code_cells(path):
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    assert sum(bool(c.strip()) for c in cells) <= 70


FIT_A_PAGE = [
    '00_notation', '01_ddpm', '02_score', '03_guidance', '04_envs', '05_trajectories', '06_training', '07_diffuser', '08_blocks',
    '09_forcing', '10_policy', '10b_sight', '11_latent_diffuser', '11b_swimmer', '12c_maps', '12d_field', '14_exact', '14b_chain_planner',
    '14c_chain_training', '15b_while_you_read', '17_benchmark', '19_reading', '20_own_world', '20b_methods', '20c_reports',
    '21_command_line', '94_stores', '95_records']  # the others are still to be mended


def wide_lines(path, most=88):
    "Lines too long for a page, in cells that readers see: not hidden, not exported unseen, not folded."
    unseen = r'^#\| *(hide|export|code-fold: *true|echo: *false|include: *false)\s*$'
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    lines = [line for c in cells if not re.search(unseen, c, flags=re.M) for line in c.split('\n')]
    return [line for line in lines if len(line) > most and not line.startswith('#|')]


@pytest.mark.parametrize('name', FIT_A_PAGE)
def test_cells_that_readers_see_have_at_most_88_columns(name): assert wide_lines(ROOT / 'nbs' / f'{name}.ipynb') == []


def doubled(source):
    r"Commands of TeX after two backslashes, which end a line and leave the command's letters behind: \\log."
    return [c for part in re.findall(r'\$\$.+?\$\$|\$[^$\n]+\$', source, flags=re.S) for c in re.findall(r'\\\\[a-zA-Z]{2,}', part)]


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.name)
def test_formulas_have_single_backslashes(path):
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown']
    assert [c for cell in cells for c in doubled(cell)] == []


def test_a_doubled_backslash_is_found():
    assert doubled(r'so $\\frac{a}{b}$ and $$\\log p \\\\ q$$') == [r'\\frac', r'\\log'] and doubled(r'$\log p$, `$\\log`') == []


def public_functions(module):
    "Every public function, and every public method of a public class, with its arguments by name."
    for name in import_module(f'ldp_tut.{module}').__all__:
        thing = getattr(import_module(f'ldp_tut.{module}'), name)
        if inspect.isfunction(thing): yield name, thing
        if inspect.isclass(thing):
            for n, f in vars(thing).items():
                f = getattr(f, '__func__', f)  # of a class method, or a static one
                counted = n == '__call__' or not n.startswith('_') or n == '__init__' and not is_dataclass(thing)
                if inspect.isfunction(f) and counted: yield f'{name}.{n}', f


def too_many(module, most=10):
    count = lambda f: sum(n not in ('self', 'cls') for n in inspect.signature(f).parameters)
    return [f'{module}.{name}: {count(f)} arguments' for name, f in public_functions(module) if count(f) > most]


@pytest.mark.parametrize('module', [p.stem for p in LIBRARY])
def test_a_function_has_at_most_ten_arguments(module):
    "What has more to be told takes a configuration; the fields of one are not counted."
    assert too_many(module) == []


def test_functions_of_many_arguments_are_found():
    assert 'train.fit: 10 arguments' in too_many('train', 9) and any(n.startswith('planner.FarFuturePlanner.') for n in too_many('planner', 2))


def nested_lambdas(tree):
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Lambda)
            and any(isinstance(m, ast.Lambda) for m in ast.walk(n.body))]


@pytest.mark.parametrize('path', [*NBS, *LIBRARY], ids=lambda p: p.name)
def test_no_lambda_stands_in_a_lambda(path):
    assert nested_lambdas(code(path) if path.suffix == '.ipynb' else ast.parse(path.read_text())) == []


def test_a_lambda_in_a_lambda_is_found():
    assert nested_lambdas(ast.parse('f = lambda x: x\ng = lambda x: (lambda y: x + y)')) == [2]


@pytest.mark.parametrize('module', [p.stem for p in LIBRARY])
def test_no_name_of_a_module_is_none(module):
    "fastcore's `patch` leaves `None` behind under the name of every method."
    made = import_module(f'ldp_tut.{module}')
    assert [n for n, thing in vars(made).items() if thing is None and not n.startswith('__')] == []
    assert all(hasattr(made, n) for n in made.__all__)


def test_every_appendix_is_in_the_table_of_the_readme():
    "And every chapter: the front page is where a reader looks for them."
    table = (ROOT / 'README.md').read_text().split('## Read it')[1].split('\n## ')[0]
    linked = set(re.findall(r'/(\w+)\.html\)', table))
    assert linked == {re.sub(r'^\d+[a-z]*_', '', p.stem) for p in NBS} - {'index'}


def test_settings_ini_agrees_with_pyproject():
    ini = configparser.ConfigParser(); ini.read(ROOT / 'settings.ini')
    short, toml = dict(ini['DEFAULT']), tomllib.loads((ROOT / 'pyproject.toml').read_text())
    nbdev, project = toml['tool']['nbdev'], toml['project']
    for key in ('lib_name', 'lib_path', 'nbs_path', 'doc_path', 'branch'): assert short[key] == nbdev[key], key
    assert short['description'] == project['description'] and short['lib_name'] == project['name']
    assert f"github.com/{short['user']}/{short['repo']}" in nbdev['git_url']
    assert short['version'] == re.search(r"__version__ = ['\"](.+?)['\"]", (ROOT / 'ldp_tut' / '__init__.py').read_text())[1]
    assert (ROOT / 'settings.ini').read_text().startswith('# pyproject.toml is canonical')


def test_runtime_requirements_have_lower_bounds_only():
    toml = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for need in toml['dependencies']: assert re.fullmatch(r'[\w-]+>=[\d.]+', need), need


def test_the_readme_is_the_index_notebook():
    run = subprocess.run([sys.executable, str(ROOT / '.ci' / 'readme.py'), '--check'], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_links_from_nbs_are_links():
    for name, target in (('_quarto.yml', '../_quarto.yml'), ('figs', '../figs'), ('references.bib', '../references.bib')):
        link = ROOT / 'nbs' / name
        assert link.is_symlink() and link.readlink() == Path(target) and link.exists()


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.name)
def test_pages_are_published(path):
    "Outputs are there, and every numbered figure has a caption and a description. The rest is test_book's."
    book = json.loads(path.read_text())
    source = '\n'.join(''.join(c['source']) for c in book['cells'] if c['cell_type'] == 'code')
    assert source.count('#| label: fig-') == source.count('#| fig-cap:') <= source.count('#| fig-alt:')
    if path.name != 'index.ipynb': assert any(c.get('outputs') for c in book['cells'])


def test_every_page_is_in_the_sidebar():
    text = (ROOT / '_quarto.yml').read_text()
    assert {p.name for p in NBS} == set(re.findall(r'[\w]+\.ipynb', text.split('sidebar:')[1].split('bibliography')[0]))


def test_published_outputs_are_not_smoke():
    for path in NBS: assert 'smoke budget' not in path.read_text(), path.name


def test_shipped_checkpoints_are_small_and_say_where_they_come_from():
    found = sorted((ROOT / 'ldp_tut' / 'checkpoints').glob('*.safetensors'))
    assert found
    for path in found:
        card = json.loads(path.with_suffix('.json').read_text())
        assert path.stat().st_size <= 10e6 and not any(p.suffix in ('.pt', '.pkl', '.pth', '.bin') for p in path.parent.iterdir())
        assert card['data']['steps'] > 0
        # what no command makes again (trained on a GPU by a loop of its own) says in words how it was made
        if 'made_by' in card: assert len(card['made_by']) > 80 and card['device'] and card['seed'] is not None
        else: assert card['command'].startswith('ldp-tut train') and card['recipe']['seed'] is not None
        # planners of mazes were trained by the function behind the command, on a machine without a repository
        assert card.get('commit') or card['kind'] == 'agent'


def test_no_other_host_or_machine_is_named():
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
    for name in filter(None, files):
        path = ROOT / name
        if path.suffix in ('.ipynb', '.py', '.md', '.toml', '.yml', '.ini', '.txt', '.cff') and path.is_file() and path != Path(__file__).resolve():
            text = path.read_text()
            assert not re.search(r'/(root|home)/\w|/tmp/\w|/work/', text), f'{name} names a path of a machine'


FOUND_FALSE = ['never searches', 'every moment with its own noise', 'never sought the goal', 'the plan being denoised', 'not so much whether', 'no reward to propagate', 'the same network, unchanged', 'told apart only by',
               'what dynamic programming does not offer', 'the gradient finds it', 'whatever the network', 'is fatal', 'every number of the README', 'must come from guidance', 'noise the guided token']


@pytest.mark.parametrize('path', [ROOT / 'README.md', *NBS, *LIBRARY], ids=lambda p: p.name)
def test_sentences_that_measurements_refuted_do_not_come_back(path):
    "Each stood in this book until a table on another page said otherwise."
    text = path.read_text()
    if path.suffix == '.ipynb': text = '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'])
    text = ' '.join(text.replace('*', '').split())
    assert [s for s in FOUND_FALSE if s in text] == []
