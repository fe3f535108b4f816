"Tests run every notebook at the smallest budget; published outputs come from `LDP_BUDGET=cpu nbdev-test --save`."
import os
import shutil
import subprocess

import pytest

os.environ.setdefault('LDP_BUDGET', 'smoke')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('PYTHONWARNINGS', 'ignore::DeprecationWarning')

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.fixture(scope='session')
def browser():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed (it comes with the dev extra)')
    if not CHROMIUM: pytest.skip('no Chromium on this machine: apt install chromium')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def small_disk(tmp_path):
    "A real file system of two megabytes."
    disk = tmp_path / 'disk'; disk.mkdir()
    try: done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(disk)], capture_output=True, text=True)
    except OSError as e: pytest.skip(f'no small file system can be mounted here: {e}')
    if done.returncode: pytest.skip(f'no small file system can be mounted here: {done.stderr.strip()}')
    yield disk
    subprocess.run(['umount', '-l', str(disk)], check=True)
