"Tests run every notebook at the smallest budget; published outputs come from `LDP_BUDGET=cpu nbdev-test --save`."
import ctypes
import gc
import os
import shutil
import subprocess
import sys

import pytest

try: import resource
except ImportError: resource = None  # on Windows

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


@pytest.fixture(autouse=True, scope='module')
def _give_back():
    "What a file of tests has held goes back to the system."
    yield
    give_back()


def give_back():
    "Free what nobody can reach, and hand it to the system: else the heap keeps it, and peaks add up."
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None): trim(0)  # where the C library is GNU's


def most_memory() -> float:
    "Gigabytes that this process, or the largest of those it started, held at its peak."
    if resource is None: return float('nan')
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak * (1 if sys.platform == 'darwin' else 1024) / 1e9


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f'memory at its peak: {most_memory():.2f} GB')


def pytest_sessionfinish(session, exitstatus):
    "With a limit set in `LDP_TEST_MEMORY_GB`, a run that needed more fails."
    limit = float(os.environ.get('LDP_TEST_MEMORY_GB', 'inf'))
    if exitstatus == 0 and most_memory() > limit:
        print(f'\nthe tests needed {most_memory():.2f} GB, and {limit} GB are allowed (LDP_TEST_MEMORY_GB)')
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
