"Every notebook, top to bottom, at the smoke budget: one test a file."
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbdev.test import test_nb as run_notebook

from conftest import give_back

NOTEBOOKS = sorted((Path(__file__).parent.parent / 'nbs').glob('*.ipynb'))
SKIP = ['slow', 'cuda']  # as [tool.nbdev] tst_flags


@pytest.fixture(autouse=True)
def _forgotten():
    "Whatever a notebook made is given back: its shell lives on until Python ends, and keeps every name in it."
    yield
    if InteractiveShell._instance is not None:
        InteractiveShell._instance.reset(new_session=False)
        InteractiveShell._instance.close()
    plt.close('all')
    give_back()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook(path):
    torch.manual_seed(0)
    passed, _ = run_notebook(path, skip_flags=SKIP, do_print=False, basepath=str(path.parent))
    assert passed, f'{path.name} failed; the cell and its error are printed above'


def doubled(path, folder, more=()):
    "A copy of a notebook in which every code cell stands twice, as a reader runs it who is not sure."
    book = json.loads(path.read_text())
    cells = [c | dict(id=c['id'] + again) for c in book['cells'] for again in ('', '-again')[:1 + (c['cell_type'] == 'code')]]
    for source in more: cells += [dict(cells[-1], cell_type='code', id=f'more{i}', source=source, outputs=[], metadata={}) for i in range(2)]
    (folder / path.name).write_text(json.dumps(book | dict(cells=cells)))
    return folder / path.name


def run_twice(path, folder, more=()):
    torch.manual_seed(0)
    return run_notebook(doubled(path, folder, more), skip_flags=SKIP, do_print=False, basepath=str(path.parent))[0]


@pytest.mark.parametrize('name', ['05_trajectories', '06_training', '14_exact', '14b_chain_planner', '14c_chain_training', '93_checkpoints', '94_stores', '95_records'])
def test_a_cell_may_be_run_twice(name, tmp_path):
    "The chapters that write files, download, or train into a folder."
    assert run_twice(NOTEBOOKS[0].parent / f'{name}.ipynb', tmp_path), f'a cell of {name} fails when it is run twice; it and its error are printed above'


def test_a_cell_that_may_not_be_run_twice_is_found(tmp_path):
    assert not run_twice(NOTEBOOKS[0].parent / '00_notation.ipynb', tmp_path, ['import os; os.mkdir("made-once")'])
    assert run_twice(NOTEBOOKS[0].parent / '00_notation.ipynb', tmp_path, ['import os; os.makedirs("made-twice", exist_ok=True)'])
