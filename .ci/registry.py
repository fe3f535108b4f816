#!/usr/bin/env python3
"""Writes ldp_tut/checkpoints/registry.json: where each checkpoint can be downloaded once this version is released, and its SHA-256; `--check` only compares."""
import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHELF = ROOT / 'ldp_tut' / 'checkpoints'


def registry():
    version = re.search(r"__version__ = ['\"](.+?)['\"]", (ROOT / 'ldp_tut' / '__init__.py').read_text())[1]
    address = f'https://github.com/ldp-tut/ldp_tut/releases/download/v{version}'
    row = lambda p: dict(url=f'{address}/{p.name}', sha256=hashlib.sha256(p.read_bytes()).hexdigest(), bytes=p.stat().st_size)
    return json.dumps({p.stem: row(p) for p in sorted(SHELF.glob('*.safetensors'))}, indent=1) + '\n'


if __name__ == '__main__':
    target = SHELF / 'registry.json'
    if '--check' in sys.argv:
        if not target.exists() or target.read_text() != registry(): sys.exit('registry.json is not what the checkpoints say: run python .ci/registry.py')
    else:
        target.write_text(registry())
