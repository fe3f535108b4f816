#!/usr/bin/env python3
"""Writes README.md from the markdown of nbs/index.ipynb, as nbdev-readme would where Quarto is installed; `--check` only compares.

The index holds markdown alone, already in the form pandoc writes (dash bullets, fenced code with a space before the language, no wrapping)."""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def readme():
    cells = json.loads((ROOT / 'nbs' / 'index.ipynb').read_text())['cells']
    code = [c for c in cells if c['cell_type'] == 'code']
    if code: sys.exit('index.ipynb has code cells; this script carries over markdown only')
    return '\n\n'.join(''.join(c['source']).strip() for c in cells) + '\n'


if __name__ == '__main__':
    target = ROOT / 'README.md'
    if '--check' in sys.argv:
        if not target.exists() or target.read_text() != readme(): sys.exit('README.md is not what nbs/index.ipynb says: run python .ci/readme.py')
    else:
        target.write_text(readme())
