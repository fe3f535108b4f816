"Every notebook, top to bottom, at the smoke budget: one test a file."
from pathlib import Path

import pytest
import torch
from nbdev.test import test_nb as run_notebook

NOTEBOOKS = sorted((Path(__file__).parent.parent / 'nbs').glob('*.ipynb'))
SKIP = ['slow', 'cuda']  # as [tool.nbdev] tst_flags


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook(path):
    torch.manual_seed(0)
    passed, _ = run_notebook(path, skip_flags=SKIP, do_print=False, basepath=str(path.parent))
    assert passed, f'{path.name} failed; the cell and its error are printed above'
