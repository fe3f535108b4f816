"The pages as a reader meets them: everything that can be checked without Quarto, and the moving parts in a real browser."
import inspect
import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

import ldp_tut
from ldp_tut.book import bad_equations, bad_fences, bad_links, bad_outputs, bad_references, check_page, equations, page_links, prepare, preview, prose, symbols

ROOT = Path(__file__).parent.parent
NBS = sorted((ROOT / 'nbs').glob('*.ipynb'))
KATEX = ROOT / 'nbs' / 'katex' / 'katex.min.js'
needs_node = pytest.mark.skipif(not shutil.which('node'), reason='KaTeX runs in Node, which is not here')


@pytest.fixture(scope='module')
def pages(): return {p.name: prepare(p) for p in NBS}


@pytest.mark.parametrize('name', [p.name for p in NBS])
def test_a_page_has_nothing_to_stumble_over(pages, name): assert check_page(pages[name], ROOT / 'nbs') == []


@needs_node
def test_every_equation_compiles(pages):
    found = [e for page in pages.values() for e in equations(prose(page))]
    assert len(found) > 250 and sum(shown for _, shown in found) > 20
    assert bad_equations(found, KATEX) == []


@needs_node
def test_broken_equations_are_found():
    assert len(bad_equations([(r'\frac{1', True), (r'\nosuchmacro', False), ('x^2', False)], KATEX)) == 2


@pytest.mark.parametrize('text, what', [('[a](13_nothing.ipynb)', 'link to nothing'), ('![](figs/plan.gif)', 'picture without'), ('[a](nothing.html#x)', 'link to nothing')])
def test_bad_links_are_found(text, what):
    found = bad_links(text, ROOT / 'nbs')
    assert len(found) == 1 and what in found[0]
    assert bad_links('[a](planner.html#plan) [b](12_planner.ipynb#x) ![c](figs/plan.gif) [d](https://x.y/z) `[e](f)`', ROOT / 'nbs') == []


def test_bad_references_are_found():
    bib = '@misc{known2020, title={x}}'
    assert len(bad_references('@eq-a @fig-b @unknown2020 @known2020', ['eq-a', 'eq-c', 'eq-c'], bib)) == 3
    assert bad_references('@eq-a, `@patch`, mail@host, $$x@y$$', ['eq-a'], bib) == []


@pytest.mark.parametrize('outputs, alt, bad', [
    ({'image/png': 'x'}, '', 1), ({'image/png': 'x'}, '#| fig-alt: "a cat"\n', 0), ({'text/html': '<img src="data:x" alt="a cat">', 'image/png': 'x'}, '', 0),
    ({'text/html': '<img src="data:x">'}, '', 1), ({'text/html': '<script src="https://x.y/z.js"></script>'}, '', 1), ({'text/html': '<a href="https://x.y">z</a>'}, '', 0),
    ({'text/html': '<style>@import url(https://x.y/z.css)</style>'}, '', 1), ({'text/html': '<link rel=stylesheet href=//x.y/z.css>'}, '', 1)])
def test_bad_outputs_are_found(outputs, alt, bad):
    assert len(bad_outputs(dict(cells=[dict(cell_type='code', source=alt + 'x', outputs=[dict(data=outputs)])]))) == bad


def test_open_fences_are_found():
    assert bad_fences('::: {.callout-note}\n```\n:::\n```\n:::\n') == []
    assert len(bad_fences('```\nx')) == 1 and len(bad_fences('::: {.a}\n::: {.b}\n:::')) == 1


def test_every_symbol_leads_to_its_chapter_and_back(pages):
    "A public name has an address; the page at that address has its card in its reference section; the section links to the notation."
    made = {re.search(r'^output-file: (\S+)$', page['cells'][0]['source'], flags=re.M)[1]: page for page in pages.values()}
    for module, names in symbols().items():
        mod = import_module(module)
        assert set(names) == set(mod.__all__)
        for name, address in names.items():
            page, _, anchor = address.partition('#')
            cells = made[page]['cells']
            start = next(i for i, c in enumerate(cells) if '{#reference}' in c['source'])
            assert '(00_notation.ipynb)' in cells[start]['source']
            if not anchor: continue
            assert inspect.isclass(getattr(mod, name)) or callable(getattr(mod, name))
            cards = prose(dict(cells=cells[start:]))
            assert re.search(rf'^#+ {re.escape(name)}$', cards, flags=re.M), f'{address}: no card for {name}'
    listed = prose(pages['92_symbols.ipynb'])
    for module, names in symbols().items():
        for name, address in names.items(): assert f'[{name}]({address}) | `{module}`' in listed, f'{module}.{name} is not among all symbols: publish 92_symbols again'


def test_links_of_a_page_are_pinned_to_this_version(pages):
    tag = f'/v{ldp_tut.__version__}/nbs/'
    for name, page in pages.items():
        if name == 'index.ipynb': continue
        top = next(c['source'] for c in page['cells'] if c['cell_type'] == 'markdown' and not c['source'].startswith('<!--'))
        assert page_links(name) in top and top.count(tag + name) == 3 and 'colab.research.google.com/github/ldp-tut/ldp_tut/blob' + tag in top


def test_every_chapter_has_its_box(pages):
    for name, page in pages.items():
        if re.match(r'0|1', name):
            box = re.search(r'::: \{\.callout-note appearance="minimal"\}\n(.*?)\n:::', prose(page), flags=re.S)
            assert box and all(f'**{w}**' in box[1] for w in ('You will be able to', 'You need', 'It takes', 'Last verified')), name
            pins = (NBS[0].parents[1] / 'constraints.txt').read_text()
            assert all(f'{w.replace(" ", "==")} ' in pins for w in re.findall(r'(?:torch|numpy|minigrid) [\d.]+\d', box[1])) and len(re.findall(r', \w+ [\d.]+', box[1])) >= 5, name


def test_every_chapter_says_how_to_cite_it(pages):
    "One BibTeX entry, with the chapter's own title and the address of the page it is on; braces balance."
    keys = set()
    for name, page in pages.items():
        if not re.match(r'0|1', name): continue
        entry = re.search(r'```bibtex\n(@misc\{(\w+),\n.*?\n\})\n```', page['cells'][-1]['source'], flags=re.S)
        title = re.search(r'^# (.+)$', ''.join(json.loads(next(p for p in NBS if p.name == name).read_text())['cells'][0]['source']), flags=re.M)[1]
        made = re.search(r'^output-file: (\S+)$', page['cells'][0]['source'], flags=re.M)[1]
        assert f'title = {{{{{title}}}}}' in entry[1] and f'ldp_tut/{made}}}' in entry[1] and entry[1].count('{') == entry[1].count('}'), name
        keys.add(entry[2])
    assert len(keys) >= 12


def test_a_notebook_installs_the_package_where_it_is_not(pages):
    "Two lines, before anything else; nothing of them on the page."
    import json
    for path in NBS:
        if path.name == 'index.ipynb' or path.name > '91': continue
        first = next(c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code')
        source = ''.join(first['source'])
        assert source.startswith('#| hide\ntry: import ldp_tut') and source.count('\n') == 2 and 'pip' in source, path.name
        assert 'run_line_magic' not in str(pages[path.name])


@pytest.fixture
def tab(browser):
    "A page that remembers what it asked for and what went wrong."
    page = browser.new_page()
    page.asked, page.wrong = [], []
    page.on('request', lambda r: page.asked.append(r.url))
    page.on('pageerror', lambda e: page.wrong.append(str(e)))
    page.on('console', lambda m: page.wrong.append(m.text) if m.type == 'error' else None)
    yield page
    page.close()


@pytest.fixture(scope='module')
def site(tmp_path_factory, pages):
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(ROOT / 'nbs' / 'katex', folder / 'katex')
    for name in ('00_notation.ipynb', '02_score.ipynb'): preview(pages[name], folder)
    return folder


def test_the_board_can_be_driven(tab, site):
    tab.goto((site / 'notation.html').as_uri())
    board = tab.locator('.ldp-board')
    picture, said = board.locator('svg'), board.locator('output')
    assert picture.get_attribute('aria-label') == 'noise board full, iteration 0' and said.inner_text() == 'm = 0'
    board.locator('select').select_option('far_first')
    slide = board.locator('input[type=range]')
    slide.focus()
    for _ in range(5): slide.press('ArrowRight')
    assert said.inner_text() == 'm = 5' and picture.get_attribute('aria-label') == 'noise board far_first, iteration 5'
    from ldp_tut.board import far_first_board
    assert [int(t) for t in board.locator('svg text').all_text_contents()] == far_first_board(12, 100, 16)[5].tolist()
    board.locator('select').select_option('full')
    slide.press('End')
    assert set(board.locator('svg text').all_text_contents()) == {'0'}
    assert tab.wrong == [] and all(u.startswith('file:') for u in tab.asked)


def test_katex_sets_mathematics_without_any_other_host(tab, site):
    tab.goto((site / 'score.html').as_uri())
    shown = tab.evaluate("katex.renderToString('\\\\nabla \\\\log p(x)', {throwOnError: true})")
    assert 'katex' in shown and tab.evaluate("document.fonts.load('16px KaTeX_Main').then(f => f.length)") == 1
    assert tab.wrong == [] and all(u.startswith('file:') for u in tab.asked)


@pytest.mark.skipif(not shutil.which('quarto'), reason='Quarto is not here; it is in no package registry (https://quarto.org)')
def test_the_site_builds_and_can_be_searched(tab, tmp_path):
    "Needs Quarto: the whole site, opened in a browser, searched, with no request to another host."
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    for name in filter(None, files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name, follow_symlinks=False)
    run = subprocess.run(['nbdev-docs', '--symlinks'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    import functools, http.server, threading
    serve = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / '_docs'))
    threading.Thread(target=serve.serve_forever, daemon=True).start()
    home = f'http://127.0.0.1:{serve.server_port}/'
    for page in ('index.html', 'notation.html', 'planner.html', 'symbols.html', '404.html'):
        tab.goto(home + page, wait_until='networkidle')
        assert (tmp_path / '_docs' / page).stat().st_size < 2_000_000 and tab.locator('h1').count() >= 1
    assert all(u.startswith((home, 'data:')) for u in tab.asked), [u for u in tab.asked if not u.startswith(home)]
    tab.goto(home)
    tab.locator('#quarto-search button').first.click()
    tab.keyboard.type('noise board')
    assert tab.locator('.search-result-container').first.is_visible()
    serve.shutdown()
