"Tests run every notebook at the smallest budget; published outputs come from `LDP_BUDGET=cpu nbdev-test --save`."
import os
import shutil

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
