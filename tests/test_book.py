"The pages as a reader meets them: everything that can be checked without Quarto, and the moving parts in a real browser."
import functools
import html
import http.server
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import threading
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import ldp_tut
from ldp_tut.book import (SITE, anchors, bad_equations, bad_fences, bad_links, bad_outputs, bad_references, check_page, equations, named_fold, page_links,
                          prepare, preview, prose, put_rows, slug, symbols, tidy_card, without_private_links)

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
    assert bad_links(f'[a](exact.html#scene) [b](14_exact.ipynb#reference) ![c](figs/plan.gif) [d](https://x.y/z#w) `[e](f)` [g]({SITE}/ddpm.html)', ROOT / 'nbs') == []


@pytest.mark.parametrize('target', ['#nowhere', '14_exact.ipynb#nowhere', 'exact.html#nowhere', f'{SITE}/training.html#_update'])
def test_links_to_no_place_on_a_page_are_found(target):
    found = bad_links(f'[a]({target}) [b](#here) [`c`](07_diffuser.ipynb#what-the-two-parts-are-worth)', ROOT / 'nbs', {'here'})
    assert found == [f'link to no such place on its page: {target}']
    assert bad_links(f'[a]({SITE}/nothing.html)', ROOT / 'nbs') == [f'link to nothing: {SITE}/nothing.html']


@pytest.mark.parametrize('heading, anchor', [('Why not simply search?', 'why-not-simply-search'), ('3. `two` *Parts* & $x^2$', 'two-parts-x2'), ('Plan.step_by', 'plan.step_by'), ('_update', 'update'),
                                             ("Ours: [a link](b.html)'s", 'ours-a-links'), ('2026', 'section')])
def test_a_heading_has_pandocs_anchor(heading, anchor): assert slug(heading) == anchor


def test_the_anchors_of_a_notebook_are_those_of_its_page(pages):
    "Other pages are judged by their notebooks as they lie there; this one as it is prepared. Both must say the same."
    for path in NBS:
        raw, made = anchors(json.loads(path.read_text())['cells']), anchors(pages[path.name]['cells'])
        assert len(raw - made) <= 1, f'{path.name}: {raw - made}'  # the title, which has no anchor on the page
        assert all(a == 'cite-this-chapter' or re.search(r'-\d+$', a) for a in made - raw), f'{path.name}: {made - raw}'


def test_a_card_says_what_a_reader_would_write(pages):
    card = '### step\n\n```python\ndef Walk(\n    room:__main__.Room\n)->None:\n```\n\n*Go from * `a * b` to $c^*$, *once*.*\nAnd * rest.'
    assert tidy_card(card, 'Walk.Step', True) == '### Walk.Step\n\n```python\nclass Walk(\n    room:Room\n)\n```\n\n*Go from \\* `a * b` to $c^*$, _once_.*\nAnd * rest.'
    assert tidy_card('### f\n\n```python\ndef f()->__main__.Room:\n```', 'f', False) == '### f\n\n```python\ndef f()->Room:\n```'
    assert tidy_card('### C\n\n```python\ndef C()->None:\n```', 'C', True) == '### C\n\n```python\nclass C()\n```'
    text = '\n'.join(prose(p) for p in pages.values())
    assert '__main__.' not in text and not re.findall(r'^def [A-Z]\w*\(', text, flags=re.M) and len(re.findall(r'^class [A-Z]\w*\(', text, flags=re.M)) > 40
    said = re.findall(r'^```\n\n\*(.*)\*$', text, flags=re.M)
    assert len(said) > 150 and not [d for d in said if re.search(r'(?<!\\)\*', re.sub(r'`[^`]*`|\$[^$]*\$', '', d))]


def test_a_fold_says_what_is_in_it(pages):
    title = '#| code-summary: "Exported source'
    assert named_fold(title + '"\nA, b = 1, 2\nc = 3\ndef d(): pass\nclass E: pass') == title + ': A, b, c and 2 more"\nA, b = 1, 2\nc = 3\ndef d(): pass\nclass E: pass'
    assert named_fold('x = 1') == 'x = 1' and named_fold(title + '"\nf()') == title + '"\nf()'
    assert all(title + '"' not in c['source'] for p in pages.values() for c in p['cells'] if c['cell_type'] == 'code' and not c['source'].startswith('print('))


def test_names_without_a_card_are_not_linked():
    plain = without_private_links(f'[`_update`]({SITE}/training.html#_update), [`A._b`]({SITE}/ddpm.html#a._b), [`fit`]({SITE}/training.html#fit)')
    assert plain == f'`_update`, `A._b`, [`fit`]({SITE}/training.html#fit)'


def test_view_source_and_the_script_after_rendering_exist():
    config = yaml.safe_load((ROOT / '_quarto.yml').read_text())
    assert all((ROOT / config['website']['repo-subdir'] / p.name).is_file() for p in NBS)
    assert (ROOT / 'nbs' / config['project']['post-render']).resolve() == (ROOT / '.ci' / 'post_render.py').resolve()  # from nbs/, and from nbdev's _proc/ beside it


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


def test_rows_made_again_take_the_place_of_the_old_ones_and_half_a_table_is_never_left(tmp_path, monkeypatch):
    monkeypatch.setattr('ldp_tut.book.asset', lambda name: tmp_path / name)
    table = tmp_path / 'rows.csv'
    table.write_text('world,who,score\nmaze,"a, b",1\nmaze,c,2\n')
    put_rows('rows.csv', [('maze', 'a, b', 3), ('maze', 'a, b', None)], ('world', 'who'))
    put_rows('rows.csv', [dict(world='room', who='c')], ('world', 'who'))
    after = 'world,who,score\nmaze,c,2\nmaze,"a, b",3\nmaze,"a, b",\nroom,c,\n'
    assert table.read_text() == after
    def stopped():
        yield 'maze', 'c', 4
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): put_rows('rows.csv', stopped(), ('world', 'who'))
    with pytest.raises(ValueError, match=r"columns \['world', 'who', 'score'\], and not \['won'\]"): put_rows('rows.csv', [dict(won=1)], ('world',))
    with pytest.raises(ValueError, match='argument 2 is shorter'): put_rows('rows.csv', [('maze', 'c')], ('world',))
    assert table.read_text() == after and list(tmp_path.iterdir()) == [table]


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
    for path in NBS:
        if path.name == 'index.ipynb' or path.name > '91': continue
        first = next(c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code')
        source = ''.join(first['source'])
        assert source.startswith('#| hide\ntry: import ldp_tut') and source.count('\n') == 2 and 'pip' in source, path.name
        assert 'run_line_magic' not in str(pages[path.name])


@pytest.fixture(scope='module')
def post_render():
    spec = importlib.util.spec_from_file_location('post_render', ROOT / '.ci' / 'post_render.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = re.sub(r'^ *//.*\n', '', (ROOT / 'nbs' / 'fonts.scss').read_text().split('/*-- scss:rules --*/')[1], flags=re.M)  # no Sass in them but comments
FOREIGN = ('<script src="https://cdnjs.cloudflare.com/ajax/libs/jquery/3.5.1/jquery.min.js" integrity="sha512-x" crossorigin="anonymous"></script>'
           '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" crossorigin="anonymous"></script>\n'
           '<script type="application/javascript">define(\'jquery\', [],function() {return window.jQuery;})</script>\n')
FOLD = '<details open="" class="code-fold">\n<summary>Exported source: f</summary><pre>f</pre></details>'
# One of everything that gave readers trouble, in Quarto's words. Not every browser keeps a place when what is above it grows; here none does.
PAGE = f'''<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1.0"><style>html {{ overflow-anchor: none }} body {{ margin: 0; padding-top: 60px }} pre {{ white-space: pre-wrap }}
header {{ position: fixed; top: 0; width: 100%; height: 60px; background: #ddd; display: flex; justify-content: space-between }} .anchorjs-link {{ padding-left: .4em }}
STYLES</style>{FOREIGN}<link rel="stylesheet" href="katex/katex.min.css"><script defer src="katex/katex.min.js"></script>
<script>document.addEventListener("DOMContentLoaded", () => {{ for (const e of [...document.getElementsByClassName("math")]) katex.render(e.firstChild.data, e, {{displayMode: e.classList.contains("display"), throwOnError: false}}) }})</script></head>
<body><header><b>book</b><button id="search">search</button></header><main>{FOLD}<details open="" class="notes"><summary>Mine</summary>stays open</details><section id="top"><h2 class="anchored">A heading<a class="anchorjs-link" href="#top">link</a></h2>
<figure class="figure"><p><img src="figs/plan.gif"></p><figcaption>A &quot;film&quot; of <em>one</em> walk</figcaption></figure>
<table class="wide"><tr>{"<td><code>schedule.alpha_bar</code></td>" * 12}</tr></table><p>Here <code>{"a_very_long_name" * 12}</code> and <span class="math inline">(\\text{{{"no place to break it " * 8}}})</span> stand.</p>
<p class="wide"><span class="math display">x = {" + ".join(f"x_{{{i}}}" for i in range(60))}</span></p><div class="cell-output-display"><img alt="wide" width="1400" height="200" src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></div>
{"<p>" + "<span class='math display'>" + chr(92) + "begin{aligned}" + (chr(92) * 2).join(f"y_{{{i}}} &= {i}" for i in range(12)) + chr(92) + "end{aligned}</span></p>"}</section>
<section id="far"><h2 class="anchored">Far down</h2>{"<p>more</p>" * 60}</section></main></body></html>'''


def test_foreign_scripts_folds_and_missing_descriptions_are_mended(post_render, tmp_path, monkeypatch):
    assert 'define(' in PAGE and len(post_render.ELSEWHERE.findall(PAGE)) == 2
    page = post_render.mended(PAGE)
    assert post_render.ELSEWHERE.findall(page) == [] and 'define(' not in page and 'katex.min.js' in page
    assert '<details class="code-fold">\n<summary>Exported source: f' in page and '<details open="" class="notes">' in page
    assert '<img alt="A &quot;film&quot; of one walk" src="figs/plan.gif">' in page and page.count('alt="wide"') == 1
    assert post_render.mended(page) == page, 'a second run must change nothing'
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'page.html').write_text(PAGE)
    monkeypatch.setenv('QUARTO_PROJECT_OUTPUT_DIR', str(tmp_path))
    post_render.main()
    assert (tmp_path / 'deep' / 'page.html').read_text() == page
    (tmp_path / 'new.html').write_text('<body><script src="https://x.y/z.js"></script></body>')
    with pytest.raises(SystemExit, match='ask another host.*\n.*new.html.*x.y/z.js'): post_render.main()


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


@pytest.fixture(scope='module')
def trouble(site, post_render):
    "The page of all troubles, as Quarto leaves it and as we do."
    (site / 'before.html').write_text(PAGE.replace(FOREIGN, '').replace('STYLES', ''))
    (site / 'after.html').write_text(post_render.mended(PAGE.replace('STYLES', RULES)))
    return site


WIDE = """() => { const right = e => Math.round(e.getBoundingClientRect().right), phone = 390;
    return {page: document.documentElement.scrollWidth, search: right(document.querySelector('#search, #quarto-search button')), scroll: [...document.querySelectorAll('.wide, .katex-display')].filter(e => e.scrollWidth > e.clientWidth).length,
            cut: [...document.querySelectorAll('main img, main p > code, main .katex-base')].filter(e => right(e) > phone && getComputedStyle(e.closest('.katex-display') || e).overflowX !== 'auto').map(e => e.outerHTML.slice(0, 80))} }"""


def test_a_phone_shows_the_whole_page(tab, trouble):
    tab.set_viewport_size(dict(width=390, height=844))
    tab.goto((trouble / 'before.html').as_uri())
    assert tab.evaluate(WIDE)['page'] > 390, 'the page before must show the trouble'
    tab.goto((trouble / 'after.html').as_uri())
    tab.wait_for_function("document.querySelector('.too-wide')")
    seen = tab.evaluate(WIDE)
    assert seen['page'] == 390 and 0 < seen['search'] <= 390 and seen['cut'] == []
    assert seen['scroll'] >= 2, 'what is too wide, the table and the equation, scrolls by itself'
    assert [e for e in tab.wrong if 'plan.gif' not in e and 'ERR_FILE_NOT_FOUND' not in e] == [] and all(u.startswith(('file:', 'data:')) for u in tab.asked)


MATH, SET = re.compile(r'(?<![\\$])(\$\$.+?\$\$|\$[^$\n]+?\$)', re.S), """<script>document.addEventListener("DOMContentLoaded", () => {
    for (const e of [...document.getElementsByClassName("math")]) katex.render(e.textContent, e, {displayMode: e.classList.contains("display"), throwOnError: false}) })</script>"""


def as_pandoc_writes(source):
    "Markdown whose mathematics stand in spans, as on the site, for KaTeX to set."
    def span(m): return f'<span class="math {"display" if m[0].startswith("$$") else "inline"}">{html.escape(" ".join(m[0].strip("$").split()))}</span>'
    return ''.join(part if i % 2 else MATH.sub(span, part) for i, part in enumerate(re.split(r'(```.*?```|`[^`\n]*`)', source, flags=re.S)))


def test_every_page_of_the_book_fits_a_phone(tab, pages, post_render, tmp_path):
    "Each whole page as HTML made here, its formulas set, without our rules and with them: no page is wider than the phone, and none needs another host."
    for what in ('katex', 'figs'): shutil.copytree(ROOT / 'nbs' / what, tmp_path / what)
    tab.set_viewport_size(dict(width=390, height=844))
    wide, formulas = [], 0
    for name, page in pages.items():
        page = dict(page, cells=[dict(c, source=as_pandoc_writes(c['source'])) if c['cell_type'] == 'markdown' else c for c in page['cells']])
        file = preview(page, tmp_path)
        text = file.read_text().replace('<body>', '<body><header><button id="search">search</button></header><main>').replace('</body>', '</main></body>').replace('</head>', SET + '</head>').replace('img { max-width: 100% }', '')
        file.write_text(post_render.mended(text))
        tab.goto(file.as_uri(), wait_until='load')
        if tab.evaluate(WIDE)['page'] > 390: wide.append(name)
        tab.add_style_tag(content=RULES)
        tab.evaluate("dispatchEvent(new Event('resize'))")  # as when fonts have come, or a phone is turned
        seen = tab.evaluate(WIDE)
        assert seen['page'] == 390, (name, seen)
        assert tab.locator('.katex-error').count() == 0, name
        formulas += tab.locator('.katex').count()
    assert len(wide) > 10 and formulas > 250, 'the pages before must show the trouble'
    assert tab.wrong == [] and all(u.startswith(('file:', 'data:', 'blob:')) for u in tab.asked)


def test_a_deep_link_stays_where_it_leads(tab, trouble):
    place = "document.getElementById('far').getBoundingClientRect().top"
    tab.goto((trouble / 'after.html').as_uri() + '#far')
    tab.wait_for_function(f"document.querySelector('.katex') && {place} >= 60 && {place} < 140")  # below the bar, near the top
    tab.evaluate("document.querySelector('main').prepend(Object.assign(document.createElement('div'), {style: 'height: 700px'}))")  # as late fonts and formulas do
    tab.wait_for_function(f"{place} >= 60 && {place} < 140")
    tab.evaluate("dispatchEvent(new Event('wheel')); scrollTo(0, 0); document.querySelector('main').prepend(Object.assign(document.createElement('div'), {style: 'height: 700px'}))")
    tab.wait_for_timeout(200)
    assert tab.evaluate('scrollY') == 0, 'a reader who has moved is left alone'
    tab.evaluate("location.hash = '#top'")
    tab.wait_for_function("scrollY > 0 && Math.abs(document.getElementById('top').getBoundingClientRect().top - 100) < 40")


@pytest.mark.skipif(not shutil.which('quarto'), reason='Quarto is not here; it is in no package registry (https://quarto.org)')
def test_the_site_builds_and_can_be_searched(tab, tmp_path):
    "Needs Quarto: the whole site, opened in a browser, searched, with no request to another host."
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\0')
    for name in filter(None, files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name, follow_symlinks=False)
    run = subprocess.run(['nbdev-docs', '--symlinks'], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    made = tmp_path / 'www' / 'ldp_tut'  # where it stands on its host: the page for what is not found names this folder
    made.parent.mkdir()
    (tmp_path / '_docs').rename(made)
    serve = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=made.parent))
    threading.Thread(target=serve.serve_forever, daemon=True).start()
    home = f'http://127.0.0.1:{serve.server_port}/ldp_tut/'
    names = sorted(p.name for p in made.glob('*.html'))
    text = {n: (made / n).read_text() for n in names}
    places = {n: set(re.findall(r'\bid="([^"]*)"', t)) for n, t in text.items()}
    assert len(names) >= len(NBS)
    for name in names:
        page = text[name]
        assert len(page) < 2_000_000 and (name == 'book.html' or '__main__.' not in re.sub(r'<[^>]*>', '', page)) and '<details open="" class="code-fold">' not in page, name
        assert all(' alt=' in tag for tag in re.findall(r'<img\b[^>]*>', page)), name
        for target in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', page):
            place, _, anchor = target.replace(SITE + '/', '').removeprefix('/ldp_tut/').removeprefix('./').partition('#')
            if place.endswith('.html') and ':' not in place or (anchor and not place): assert not anchor and place in places or anchor in places[place or name], f'{name}: {target}'
        source = re.findall(r'href="([^"]*)"[^>]*>(?:<[^>]*>)*View source<', page)
        assert name == '404.html' or any((ROOT / s.split('/blob/main/')[1]).is_file() for s in source if '/blob/main/' in s), f'{name}: {source}'
    tab.set_viewport_size(dict(width=390, height=844))
    for name in names:
        tab.goto(home + name, wait_until='load')
        tab.evaluate('document.fonts.ready')
        seen = tab.evaluate(WIDE)
        assert tab.locator('h1').count() >= 1 and seen['page'] <= 390 and seen['search'] <= 390, (name, seen)
    assert all(u.startswith((home, 'data:')) for u in tab.asked), [u for u in tab.asked if not u.startswith(home)]
    tab.set_viewport_size(dict(width=1280, height=800))
    tab.goto(home + 'exact.html#reference', wait_until='load')
    tab.wait_for_function("document.querySelector('.katex') && Math.abs(document.getElementById('reference').getBoundingClientRect().top - 85) < 40")
    tab.goto(home)
    tab.locator('#quarto-search button').first.click()
    tab.keyboard.type('noise board')
    tab.locator('.search-result-container').first.wait_for(state='visible')
    serve.shutdown()
