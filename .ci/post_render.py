#!/usr/bin/env python3
"""Mends the pages that Quarto has made, in place: `project: post-render` in _quarto.yml runs it after every render.

python .ci/post_render.py [folder]: every .html below `folder`, or where Quarto says its output is. A second run changes nothing.
Standard library only, since Quarto runs it with whatever Python it finds."""
import html
import os
import re
import sys
from pathlib import Path

# Quarto adds require.js and jQuery to any page with an HTML output, in case it is a Jupyter widget. Ours are not: they need neither.
WIDGETS = re.compile(r'''<script\b[^>]*\bsrc="(?:https?:)?//[^"]*/(?:require|jquery)(?:\.min)?\.js"[^>]*>\s*</script>[ \t]*\n?''', re.I)
SHIM = re.compile(r'''<script\b[^>]*>\s*define\(['"]jquery['"].*?</script>[ \t]*\n?''', re.S | re.I)
# nbdev writes every "Exported source" open; folded, a reader sees the signature, the words and the pictures, and opens what is wanted.
FOLD = re.compile(r'<details\b[^>]*\bclass="[^"]*\bcode-fold\b[^>]*>(?=\s*<summary>Exported source)')
FIGURE = re.compile(r'<figure\b.*?</figure>', re.S)
ELSEWHERE = re.compile(r'''<(?:script|img|iframe|source|video)\b[^>]*\bsrc\s*=\s*["']?(?:https?:)?//[^\s"'>]*|<link\b(?=[^>]*\brel="?(?:stylesheet|preload|prefetch|icon))[^>]*\bhref="(?:https?:)?//[^"]*''', re.I)

# KaTeX and fonts change the heights of a page after the browser has jumped to the address's anchor, so the place moves away.
# Jump again as long as heights change, unless the reader has moved; then KaTeX's widest inline formulas get a scroll bar of their own.
JUMP = '''<script id="jump-again">(() => {
  let moved = (performance.getEntriesByType('navigation')[0] || {}).type !== 'navigate';  // on the way back the browser knows the place
  for (const what of ['wheel', 'touchstart', 'keydown', 'pointerdown']) addEventListener(what, () => { moved = true; }, {passive: true});
  const jump = () => {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { /* not an escape: a name with a percent sign */ }
    const target = name && document.getElementById(name);
    if (!target) return;
    for (let e = target; e; e = e.parentElement) if (e.tagName === 'DETAILS') e.open = true;
    target.scrollIntoView({behavior: 'instant'});
  };
  addEventListener('hashchange', () => requestAnimationFrame(jump));
  addEventListener('load', () => {
    const widen = () => { for (const e of document.querySelectorAll('main .katex-base')) e.classList.toggle('too-wide', e.scrollWidth > e.closest('p, li, td, dd, main').clientWidth); };
    document.fonts.ready.then(widen);
    addEventListener('resize', widen);
    const watch = new ResizeObserver(() => { if (!moved) jump(); });
    watch.observe(document.querySelector('main') || document.body);
    for (const ms of [400, 1000, 3000]) setTimeout(() => { if (!moved) jump(); }, ms);  // Quarto moves the page below its bar a little later
    setTimeout(() => watch.disconnect(), 3000);
  });
})();</script>
'''


def described(figure):
    "A figure whose picture has no description gets its caption's words."
    caption = re.search(r'<figcaption\b[^>]*>(.*?)</figcaption>', figure, flags=re.S)
    if not caption: return figure
    says = html.escape(' '.join(html.unescape(re.sub(r'<[^>]*>', '', caption[1])).split()))
    return re.sub(r'<img\b(?![^>]*\salt=)', lambda m: f'<img alt="{says}"', figure)


def mended(page):
    "The HTML of one page, mended."
    page = SHIM.sub('', WIDGETS.sub('', page))
    page = FOLD.sub(lambda m: re.sub(r'\s+open(?:="[^"]*")?(?=[\s>])', '', m[0]), page)
    page = FIGURE.sub(lambda m: described(m[0]), page)
    if 'id="jump-again"' not in page and '</body>' in page:
        before, after = page.rsplit('</body>', 1)
        page = f'{before}{JUMP}</body>{after}'
    return page


def main(folder=None):
    folder = folder or os.environ.get('QUARTO_PROJECT_OUTPUT_DIR') or sys.exit('expected the folder of a rendered site, as an argument or from Quarto')
    asks = []
    for path in sorted(Path(folder).rglob('*.html')):
        old = path.read_text(encoding='utf-8')
        new = mended(old)
        if new != old: path.write_text(new, encoding='utf-8')
        asks += [f'{path.name}: {m[0]}' for m in ELSEWHERE.finditer(new)]
    if asks: sys.exit('pages that ask another host for something; make it part of the site, or strip it in post_render.py:\n' + '\n'.join(asks))


if __name__ == '__main__': main(*sys.argv[1:2])
