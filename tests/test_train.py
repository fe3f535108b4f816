"The training loop: exact resume, checkpoints that are whole or refused, losses that stop."
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ldp_tut.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from ldp_tut.train import CSVTracker, NonFiniteLoss, Tracking, TrainConfig, differences, fingerprint, fit, learning_rate, pick_device


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 2))


def batches(step, g): return torch.randn(16, 4, generator=g)
def loss(model, x, g): return dict(fit=(model(x + 0.1 * torch.randn(x.shape, generator=g)) - x[:, :2]).pow(2).mean(), size=1e-3 * model[0].weight.pow(2).mean())


CONFIG = TrainConfig(steps=400, warmup=50, save_every=100)
QUIET = dict(device='cpu', progress=False)


def test_a_run_broken_off_at_step_350_resumes_from_300_and_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = fit(net(), loss, batches, CONFIG, tmp_path / 'a.safetensors', **QUIET)
    def broken_off(step, g):
        if step == 350: raise KeyboardInterrupt
        return batches(step, g)
    with pytest.raises(KeyboardInterrupt): fit(net(), loss, broken_off, CONFIG, tmp_path / 'b.safetensors', **QUIET)
    assert load_checkpoint(tmp_path / 'b.safetensors')[1]['step'] == 300
    resumed = fit(net(seed=5), loss, batches, CONFIG, tmp_path / 'b.safetensors', **QUIET)
    assert [h['step'] for h in resumed.history] == list(range(300, 400))
    assert [h['loss'] for h in resumed.history] == [h['loss'] for h in whole.history[300:]]
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values()): assert torch.equal(a, b), name
    a, b = (load_checkpoint(tmp_path / f'{n}.safetensors')[0] for n in 'ab')
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_stopping_at_a_step_saves_there_and_at_none_trains_nothing(tmp_path):
    path = tmp_path / 'a.safetensors'
    assert len(fit(net(), loss, batches, CONFIG, path, stop_at=30, **QUIET).history) == 30 and load_checkpoint(path)[1]['step'] == 30
    assert fit(net(), loss, batches, CONFIG, stop_at=0, **QUIET).history == []


def test_auto_never_means_arithmetic_the_device_only_imitates(monkeypatch):
    "Where the chip has no bf16 instructions, a planner trains in float32, and so does everything on an old GPU."
    from ldp_tut.train import _precision, fast_bf16
    cpu = torch.device('cpu')
    for has in (False, True):
        for name in ('amx_tile', 'avx512_bf16'): monkeypatch.setattr(torch.cpu, f'_is_{name}_supported', lambda: has)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: has)
        assert fast_bf16(cpu) is has and not fast_bf16(torch.device('meta'))
        assert _precision(TrainConfig(), cpu)[0].precision == 'no'
        assert _precision(TrainConfig(precision='bf16'), cpu)[0].precision == 'bf16', 'what was asked for by name is done'
        assert fast_bf16(torch.device('cuda')) is has


def test_the_precision_that_was_used_is_kept_not_the_word_auto(tmp_path):
    path = tmp_path / 'a.safetensors'
    fit(net(), loss, batches, TrainConfig(steps=4), path, stop_at=2, **QUIET)
    assert load_checkpoint(path)[1]['config']['precision'] == 'no'
    with pytest.raises(CheckpointError, match='precision=no, not bf16'): fit(net(), loss, batches, TrainConfig(steps=4, precision='bf16'), path, **QUIET)


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    runs = [fit(net(), loss, batches, TrainConfig(steps=20, seed=s), **QUIET).model for s in (0, 0, 1)]
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_a_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / 'run.safetensors'
    bad = lambda step, g: batches(step, g) * (float('nan') if step == 250 else 1)
    with pytest.raises(NonFiniteLoss, match='step 250.*last good checkpoint is .*step 200'): fit(net(), loss, bad, CONFIG, path, **QUIET)
    tensors, card = load_checkpoint(path)
    assert card['step'] == 200 and all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize('share', [0., .01, .3, .7, .99])
def test_a_cut_off_checkpoint_is_refused_in_one_sentence(tmp_path, share):
    path = save_checkpoint(tmp_path / 'a.safetensors', dict(w=torch.randn(50, 50)), dict(kind='demo'))
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match='damaged or cut off'): load_checkpoint(path)


def test_foreign_and_mismatched_checkpoints(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(w=torch.zeros(3)), tmp_path / 'x.safetensors')
    with pytest.raises(CheckpointError, match='has no card'): load_checkpoint(tmp_path / 'x.safetensors')
    with pytest.raises(CheckpointError, match='no checkpoint at'): load_checkpoint(tmp_path / 'y.safetensors')
    with pytest.raises(ValueError, match='say what it must be: sha256'): load_checkpoint('https://example.org/y.safetensors')
    with pytest.raises(CheckpointError, match='.safetensors'): save_checkpoint(tmp_path / 'z.pt', {}, {})
    save_checkpoint(tmp_path / 'demo.safetensors', dict(w=torch.zeros(3)), dict(kind='demo'))
    with pytest.raises(CheckpointError, match='not a training run'): fit(net(), loss, batches, CONFIG, tmp_path / 'demo.safetensors', **QUIET)
    fit(net(), loss, batches, TrainConfig(steps=4), tmp_path / 'run.safetensors', **QUIET)
    with pytest.raises(CheckpointError, match='lr='): fit(net(), loss, batches, TrainConfig(steps=4, lr=.5), tmp_path / 'run.safetensors', **QUIET)
    with pytest.raises(CheckpointError, match='another model'): fit(nn.Linear(4, 2), lambda m, x, g: m(x).mean(), batches, TrainConfig(steps=4), tmp_path / 'run.safetensors', **QUIET)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    import ldp_tut.checkpoints as checkpoints
    path = save_checkpoint(tmp_path / 'a.safetensors', dict(w=torch.zeros(3)), dict(kind='demo'))
    def full(tensors, file, metadata): open(file, 'wb').write(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(checkpoints, 'save_file', full)
    with pytest.raises(CheckpointError, match='No space left'): save_checkpoint(path, dict(w=torch.ones(3)), dict(kind='demo'))
    assert torch.equal(load_checkpoint(path)[0]['w'], torch.zeros(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'a.safetensors'], 'nothing half-written stays'


def test_a_full_disk_ends_in_one_sentence(small_disk):
    "Before the first step where it can be known, and with the last good checkpoint kept where the room was taken later."
    steps = []
    def counted(step, g): steps.append(step); return batches(step, g)
    large = nn.Sequential(nn.Linear(4, 100_000), nn.Linear(100_000, 2))
    with pytest.raises(CheckpointError, match=r'it takes 11\.2 MB and 2\.1 MB are free; make room'): fit(large, lambda m, x, g: m(x).mean(), counted, CONFIG, small_disk / 'a.safetensors', **QUIET)
    assert steps == [] and not list(small_disk.iterdir())
    with pytest.raises(CheckpointError, match=r'cannot write .*: No space left on device'): save_checkpoint(small_disk / 'a.safetensors', dict(w=torch.zeros(10 ** 6)), dict(kind='demo'))
    assert not list(small_disk.iterdir())
    path = save_checkpoint(small_disk / 'a.safetensors', dict(w=torch.zeros(10 ** 5)), dict(kind='demo'))
    (small_disk / 'others').write_bytes(bytes(1_500_000))
    with pytest.raises(CheckpointError, match='No space left'): save_checkpoint(path, dict(w=torch.ones(10 ** 5)), dict(kind='demo'))
    assert torch.equal(load_checkpoint(path)[0]['w'], torch.zeros(10 ** 5)) and sorted(p.name for p in small_disk.iterdir()) == ['a.json', 'a.safetensors', 'others']


@pytest.mark.parametrize('name, words', [('a.pt', 'checkpoints are .safetensors files'), ('file/a.safetensors', 'cannot write'), ('folder.safetensors', 'is a folder')])
def test_a_path_that_will_be_refused_is_refused_before_the_first_step(tmp_path, name, words):
    (tmp_path / 'file').write_text(''); (tmp_path / 'folder.safetensors').mkdir()
    def never(step, g): raise AssertionError('trained')
    with pytest.raises(CheckpointError, match=words): fit(net(), loss, never, CONFIG, tmp_path / name, **QUIET)


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


SHORT = TrainConfig(steps=8, warmup=2, save_every=4)


@pytest.mark.parametrize('first, then', [(True, False), (False, True)])
def test_compiled_and_plain_models_share_their_runs(tmp_path, first, then):
    "A compiled model's file has plain names; each kind goes on with the other's run, bit for bit."
    made = lambda compiled: torch.compile(net(), backend='eager') if compiled else net()
    path, plain = tmp_path / 'a.safetensors', lambda m, x, g: (m(x) - x[:, :2]).pow(2).mean()
    whole = fit(net(), plain, batches, SHORT, **QUIET)
    fit(made(first), plain, batches, SHORT, path, stop_at=4, **QUIET)
    assert not [n for n in load_checkpoint(path)[0] if '_orig_mod' in n]
    resumed = fit(made(then), plain, batches, SHORT, path, **QUIET)
    assert len(resumed.history) == 4 and all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))
    outer = nn.Sequential(torch.compile(net(), backend='eager'))
    tensors = load_checkpoint(save_checkpoint(tmp_path / 'b.safetensors', outer.state_dict(), dict(kind='demo')))[0]
    nn.Sequential(net()).load_state_dict(tensors)


def test_tied_weights_are_saved_and_trained(tmp_path):
    class Tied(nn.Module):
        def __init__(self): super().__init__(); torch.manual_seed(0); self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4); self.b.weight = self.a.weight
        def forward(self, x): return self.b(self.a(x))
    tensors, _ = load_checkpoint(save_checkpoint(tmp_path / 'a.safetensors', Tied().state_dict(), dict(kind='demo')))
    assert torch.equal(tensors['a.weight'], tensors['b.weight'])
    how = lambda m, x, g: (m(x) - x).pow(2).mean()
    whole = fit(Tied(), how, batches, SHORT, **QUIET)
    fit(Tied(), how, batches, SHORT, tmp_path / 'run.safetensors', stop_at=4, **QUIET)
    resumed = fit(Tied(), how, batches, SHORT, tmp_path / 'run.safetensors', **QUIET)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    whole_file = torch.arange(10.)
    assert torch.equal(load_checkpoint(save_checkpoint(tmp_path / 'b.safetensors', dict(a=whole_file[:6], b=whole_file[3:]), {}))[0]['b'], whole_file[3:])


def test_a_finished_run_is_extended_and_its_card_says_so(tmp_path):
    path, longer = tmp_path / 'a.safetensors', TrainConfig(steps=14, warmup=2, save_every=4)
    fit(net(), loss, batches, SHORT, path, stop_at=6, **QUIET)
    with pytest.raises(CheckpointError, match=r'steps=8, not 14.*more steps are for a run that is finished'): fit(net(), loss, batches, longer, path, **QUIET)
    fit(net(), loss, batches, SHORT, path, **QUIET)
    killed = fit(net(), loss, batches, longer, path, stop_at=12, **QUIET)
    assert [h['step'] for h in killed.history] == list(range(8, 12)) and killed.history[0]['lr'] == learning_rate(8, longer)
    run = fit(net(), loss, batches, longer, path, **QUIET)
    card = load_checkpoint(path)[1]
    assert card['extended'] == run.card['extended'] == [dict(after=8, to=14)] and card['step'] == card['config']['steps'] == 14
    with pytest.raises(CheckpointError, match='steps=14, not 8'): fit(net(), loss, batches, SHORT, path, **QUIET)


def test_training_begins_with_the_weights_of_another_run_and_its_card_says_whose(tmp_path):
    first = fit(net(), loss, batches, SHORT, tmp_path / 'first.safetensors', **QUIET)
    averaged = {n: t.clone() for n, t in first.model.state_dict().items()}
    later = TrainConfig(steps=8, warmup=2, save_every=4, start_from=tmp_path / 'first.safetensors')
    begun = fit(net(seed=7), loss, batches, later, tmp_path / 'second.safetensors', stop_at=0, **QUIET)
    assert same(begun.model.state_dict(), averaged), 'averaged weights, not the last ones'
    fit(net(seed=7), loss, batches, later, tmp_path / 'second.safetensors', stop_at=4, **QUIET)
    card = load_checkpoint(tmp_path / 'second.safetensors')[1]
    assert card['started_from']['file'] == 'first.safetensors' and len(card['started_from']['sha256']) == 64
    resumed = fit(net(seed=7), loss, batches, later, tmp_path / 'second.safetensors', **QUIET)
    assert len(resumed.history) == 4 and resumed.card['started_from'] == card['started_from']
    with pytest.raises(CheckpointError, match=r'started_from\.file=first\.safetensors, not nothing'): fit(net(), loss, batches, SHORT, tmp_path / 'second.safetensors', **QUIET)
    save_checkpoint(tmp_path / 'plain.safetensors', averaged, dict(kind='demo'))
    again = fit(net(seed=7), loss, batches, TrainConfig(steps=8, start_from=tmp_path / 'plain.safetensors'), stop_at=0, **QUIET)
    assert same(again.model.state_dict(), averaged), 'a model that was saved without its run will do'
    for file, words in [('none.safetensors', 'no checkpoint at'), ('other.safetensors', 'another model')]:
        save_checkpoint(tmp_path / 'other.safetensors', dict(w=torch.zeros(1)), {})
        with pytest.raises(CheckpointError, match=words): fit(net(), loss, batches, TrainConfig(steps=8, start_from=tmp_path / file), **QUIET)


def test_a_run_is_gone_on_with_by_its_own_recipe_alone(tmp_path):
    path, recipe = tmp_path / 'a.safetensors', dict(batch=16, data=fingerprint(torch.arange(3)), model=dict(width=32, depth=2))
    fit(net(), loss, batches, SHORT, path, recipe=recipe, **QUIET)
    before = path.read_bytes()
    assert fit(net(), loss, batches, SHORT, path, recipe=dict(recipe), **QUIET).history == []
    for other, words in [(recipe | dict(batch=8), 'batch=16, not 8'), (recipe | dict(data=fingerprint(torch.arange(4))), 'data=.*, not '), (recipe | dict(model=dict(width=64, depth=2)), r'model\.width=32, not 64'),
                         (None, 'batch=16, not nothing; data=.*model='), (recipe | dict(shift=2), 'shift=nothing, not 2')]:
        with pytest.raises(CheckpointError, match=words): fit(net(), loss, batches, SHORT, path, recipe=other, **QUIET)
    assert path.read_bytes() == before
    assert differences(dict(a=1, b=2), dict(b=2, c=3)) == ['a=1, not nothing', 'c=nothing, not 3']


def test_a_fingerprint_is_of_every_number_and_of_its_place():
    values = [torch.arange(4.), torch.arange(4), torch.arange(4.).reshape(2, 2), torch.arange(4.).bfloat16(), torch.tensor(1.), torch.zeros(0), torch.tensor([True]), np.arange(4), np.arange(4).astype('uint16'),
              dict(a=1, b=2), dict(a=2, b=1), [1, [2]], [[1], 2], '12', 12, None, [], SHORT, CONFIG]
    assert len({fingerprint(v) for v in values}) == len(values)
    assert fingerprint(dict(a=1, b=2)) == fingerprint(dict(b=2, a=1)) and fingerprint(torch.arange(4)) == fingerprint(torch.arange(4).clone())
    with pytest.raises(TypeError, match='no fingerprint of a Linear'): fingerprint(nn.Linear(1, 1))


def test_named_tuples_and_nested_batches_arrive_as_they_were():
    from collections import namedtuple
    Batch, seen = namedtuple('Batch', 'x more'), []
    def look(model, batch, g): seen.append(batch); return loss(model, batch.x, g)
    fit(net(), look, lambda step, g: Batch(batches(step, g), [dict(name='a', y=torch.ones(1)), (None, 3)]), TrainConfig(steps=1), **QUIET)
    assert isinstance(seen[0], Batch) and seen[0].more == [dict(name='a', y=torch.ones(1)), (None, 3)]


def test_no_clipping_is_no_clipping():
    "Zero turned every gradient to zero, and nothing was learned."
    plain = dict(steps=1, warmup=0, lr=.1, weight_decay=0.)
    moved = lambda clip: fit(net(), lambda m, x, g: 1e3 * m(x).mean(), batches, TrainConfig(clip=clip, **plain), **QUIET).model.state_dict()
    assert same(moved(0.), moved(1e9)) and not same(moved(0.), net().state_dict())


class Loader:
    "Any iterable: twelve different batches, then the end."
    def __iter__(self): return (torch.full((4, 4), float(i)) for i in range(12))


@pytest.mark.parametrize('source', [lambda: DataLoader(TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(0))), batch_size=6, shuffle=True), Loader, lambda: list(Loader()), lambda: iter(Loader())],
                         ids=['DataLoader', 'iterable', 'list', 'generator'])
def test_batches_come_from_any_iterable_and_resume_where_they_were(tmp_path, source):
    first = lambda batch: batch[0] if isinstance(batch, list) else batch
    how = lambda m, batch, g: loss(m, first(batch), g)
    steps = 12 if hasattr(source(), '__next__') else 30  # what ends for good must not end before
    config, state = TrainConfig(steps=steps, warmup=2, save_every=5), torch.random.get_rng_state()
    whole = fit(net(), how, source(), config, **QUIET)
    torch.random.set_rng_state(state)
    torch.manual_seed(99)  # what is drawn elsewhere does not matter
    fit(net(), how, source(), config, tmp_path / 'a.safetensors', stop_at=10, **QUIET)
    resumed = fit(net(), how, source(), config, tmp_path / 'a.safetensors', **QUIET)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    assert len({round(h['loss'], 6) for h in whole.history}) > 10


@pytest.mark.parametrize('source, error, words', [(torch.zeros(3, 4), TypeError, 'got a Tensor'), ('abc', TypeError, 'got a str'), ({}, TypeError, 'got a dict'), (None, TypeError, 'got a NoneType'),
                                                  (TensorDataset(torch.zeros(3, 4)), TypeError, 'such as a DataLoader, got a TensorDataset'), ([], ValueError, 'batches ended after 0'), (iter(Loader()), ValueError, 'batches ended after 12')])
def test_what_gives_no_batches_is_refused(source, error, words):
    with pytest.raises(error, match=words): fit(net(), loss, source, TrainConfig(steps=20), **QUIET)


def test_each_process_takes_its_share_of_an_iterable():
    from ldp_tut.train import BatchStream
    shares = [[int(BatchStream(list(range(7)), 0, (rank, 2))(s)) for s in range(7)] for rank in range(2)]
    assert [x for pair in zip(*shares) for x in pair] == [*range(7), *range(7)]


@pytest.mark.parametrize('name, value', [('steps', 0), ('steps', 2.5), ('save_every', 0), ('seed', -1), ('warmup', -1), ('lr', float('nan')), ('lr', -1), ('clip', -1.), ('clip', float('inf')), ('ema', 1.5), ('final_lr', -.1), ('weight_decay', float('nan'))])
def test_a_configuration_that_cannot_be_meant_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f'{name} must be .*got {value}'): TrainConfig(**{name: value})


def test_numpys_numbers_are_numbers(tmp_path):
    config = TrainConfig(steps=np.int64(3), lr=np.float32(1e-3), seed=np.int8(1), save_every=np.uint16(2))
    fit(net(), loss, batches, config, tmp_path / 'a.safetensors', recipe=dict(batch=np.int64(16), where=tmp_path, of=(np.float32(1), torch.tensor(2))), **QUIET)
    assert load_checkpoint(tmp_path / 'a.safetensors')[1]['recipe'] == dict(batch=16, where=str(tmp_path), of=[1., 2])
    with pytest.raises(CheckpointError, match='a card holds numbers.*not a Linear'): fit(net(), loss, batches, CONFIG, tmp_path / 'b.safetensors', recipe=dict(model=nn.Linear(1, 1)), **QUIET)
    assert not (tmp_path / 'b.safetensors').exists()


def test_configuration_at_the_door():
    with pytest.raises(ValueError, match='at least 1, got 0'): TrainConfig(steps=0)
    with pytest.raises(ValueError, match='precision'): TrainConfig(precision='fp8')
    with pytest.raises(ValueError, match='unknown device'): pick_device('gpu')
    rates = [learning_rate(s, TrainConfig(steps=100, warmup=10, lr=1.)) for s in range(100)]
    assert rates[0] == .1 and max(rates) == 1 and rates[-1] < .06


def test_two_processes_share_one_training_run(tmp_path):
    "Started by torchrun, as `accelerate launch` does it: each process draws its own batches, both end with the same weights, one of them saves."
    script = tmp_path / 'run.py'
    script.write_text('''
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from ldp_tut.train import TrainConfig, fit
import os
torch.manual_seed(int(os.environ['RANK']))   # they begin apart
model, folder = torch.nn.Linear(4, 1), Path(sys.argv[1])
def batches(step, g): x = torch.randn(16, 4, generator=g); return x, x.sum(1, keepdim=True)
run = fit(model, lambda m, b, g: (m(b[0]) - b[1]).pow(2).mean(), batches, TrainConfig(steps=30, lr=1e-1, warmup=5), folder / 'run.safetensors', 'cpu', progress=False)
rank = torch.distributed.get_rank()
from accelerate import Accelerator
from ldp_tut.train import _mean_of_processes
net = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False)])
net[0].weight.grad = torch.full((1, 1), 1. + rank)                       # 1 and 2
if rank: net[1].weight.grad = torch.full((1, 1), 8., dtype=torch.double)  # none and 8; nobody used the third
_mean_of_processes(Accelerator(), net)
mean = [None if m.weight.grad is None else float(m.weight.grad) for m in net]
(folder / f'{rank}.json').write_text(json.dumps(dict(first=run.history[0]['loss'], weight=model.weight[0].tolist(), mean=mean)))
''')
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script), str(tmp_path)],
                          capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1', **({'GLOO_SOCKET_IFNAME': 'lo'} if sys.platform == 'linux' else {})})
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f'{r}.json').read_text()) for r in (0, 1))
    assert one['first'] != two['first'] and one['weight'] == pytest.approx(two['weight'], abs=1e-6)
    assert one['mean'] == two['mean'] == [1.5, 4., None]
    assert load_checkpoint(tmp_path / 'run.safetensors')[1]['step'] == 30


def test_a_tracker_is_told_and_goes_on_after_a_kill(tmp_path):
    file, how = tmp_path / "log" / "losses.csv", dict(path=tmp_path / "run.safetensors", **QUIET)
    whole = fit(net(), loss, batches, CONFIG, track=Tracking(CSVTracker(file), every=50), stop_at=200, **how)
    fit(net(), loss, batches, CONFIG, track=Tracking(CSVTracker(file), every=50), **how)
    head, *rows = [line.split(',') for line in file.read_text().splitlines()]
    assert head == ['step', 'fit', 'loss', 'lr', 'size'] and [int(r[0]) for r in rows] == list(range(0, 400, 50))
    assert float(rows[1][2]) == pytest.approx(whole.history[50]['loss'], rel=1e-4)


def test_a_tracker_keeps_its_columns_whatever_a_step_says(tmp_path):
    for steps in ([(0, dict(loss=1., left_out=1.)), (1, dict(loss=2.))], [(2, dict(loss=3., new=4.)), (3, dict(loss=0., new=4.))]):
        tracker = CSVTracker(tmp_path / 'a.csv')   # the second one goes on after a kill
        for step, values in steps: tracker.log(values, step)
    assert (tmp_path / 'a.csv').read_text() == 'step,loss\n0,1\n1,2\n2,3\n3,0\n'
    with pytest.raises(ValueError, match="log of \\['loss'\\], and not of \\['a', 'loss'\\]"): CSVTracker(tmp_path / 'a.csv').log(dict(loss=1., a=2.), 0)
    assert (tmp_path / 'a.csv').read_text().endswith('3,0\n'), 'nothing of the other run is lost'
    with (tmp_path / 'a.csv').open('a') as f: f.write('3,0.')   # killed while it wrote; steps from 1 on were not saved
    CSVTracker(tmp_path / 'a.csv').log(dict(loss=9.), 1)
    assert (tmp_path / 'a.csv').read_text() == 'step,loss\n0,1\n1,9\n'
    (tmp_path / 'b.csv').touch(); CSVTracker(tmp_path / 'b.csv').log(dict(loss=1.), 4)   # killed before it wrote a line
    assert (tmp_path / 'b.csv').read_text() == 'step,loss\n4,1\n'


def test_steps_whose_gradient_leaps_are_left_out_and_resuming_remembers_what_is_usual(tmp_path):
    leaps = lambda step, g: batches(step, g) * (1000. if step == 60 else 1.)
    how = TrainConfig(steps=80, warmup=5, save_every=40, leap=4.)
    run = fit(net(), loss, leaps, how, tmp_path / 'a.safetensors', **QUIET)
    assert [h['step'] for h in run.history if 'left_out' in h] == [60] and run.history[60]['loss'] > 1000
    assert fit(net(), loss, leaps, replace(how, leap=0.), **QUIET).history[61]['loss'] != run.history[61]['loss']
    fit(net(), loss, leaps, how, tmp_path / 'b.safetensors', stop_at=50, **QUIET)
    again = fit(net(), loss, leaps, how, tmp_path / 'b.safetensors', **QUIET)
    assert [h['loss'] for h in again.history] == [h['loss'] for h in run.history[50:]]
    with pytest.raises(ValueError, match='leap'): TrainConfig(leap=-1.)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_one_changed_bit_is_refused(tmp_path, dtype):
    tensors = dict(w=torch.ones(5, 4, dtype=dtype), scalar=torch.ones((), dtype=dtype), none=torch.ones(0, dtype=dtype))
    path = save_checkpoint(tmp_path / 'a.safetensors', tensors, dict(kind='demo'))
    assert load_checkpoint(path)[1] == dict(kind='demo')
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match='not those that were written'): load_checkpoint(path)


def test_a_list_of_batches_serves_a_second_run_and_an_iterator_says_that_it_cannot():
    from ldp_tut.train import BatchStream
    stream = BatchStream(['a', 'b', 'c'])
    assert [stream(s) for s in (0, 1, 2, 3)] == ['a', 'b', 'c', 'a'] and [stream(s) for s in (0, 1)] == ['a', 'b']
    once = BatchStream(iter('abc')); once(0), once(1)
    with pytest.raises(ValueError, match='batch 0 of this iterator was drawn before'): once(0)


def test_the_clock_of_training_takes_a_plain_loss():
    from ldp_tut.train import steps_in
    net = torch.nn.Linear(2, 1)
    def batches(step, g): return torch.ones(4, 2)
    def loss(model, batch, g): return model(batch).pow(2).mean()
    def parts(model, batch, g): return dict(one=loss(model, batch, g))
    for f in (loss, parts): assert steps_in(.001, net, f, batches, TrainConfig(steps=1), 'cpu', tries=2) >= 10


TOGETHER = """
import json, sys, numpy as np
from pathlib import Path
from ldp_tut.latent_diffuser import LatentConfig, LatentDiffuser, LatentTraining, Segments, train_prior, train_vae
from ldp_tut.planner import train_planner
from ldp_tut.records import Episode, Trajectories
from ldp_tut.train import fingerprint, weights_from
from ldp_tut.worlds import make_world
import os
rng = np.random.default_rng(0)
data = Trajectories.from_episodes([Episode(rng.normal(size=(25, 2)).astype('float32'), rng.integers(0, 4, 24), np.eye(24)[23], True, None) for _ in range(20)], 4)
how = dict(width=32, depth=1, longest=8, progress=False, device='cpu')
agent = train_planner(data, 4, world_steps=4, **how)
world = make_world(data, 0).requires_grad_(False)
timed = train_planner(data, minutes=1e-3, world=world, **how)
shape, few = LatentConfig(2, 4, 1, 4, latents=2, width=16), LatentTraining(vae=3, prior=3, batch=16)
parts = Segments(data, shape)
with weights_from(0): latent = LatentDiffuser(shape)
train_vae(latent, parts, few); train_prior(latent, parts, few)
said = [fingerprint(m.state_dict()) for m in (agent.planner.world, agent.planner.denoiser, timed.planner.denoiser, latent.prior)]
Path(sys.argv[1], os.environ['RANK'] + '.json').write_text(json.dumps([timed.card['steps'], *said]))
"""


def test_two_processes_agree_on_every_stage_of_a_planner(tmp_path):
    "Also where a loss calls methods of a model and not the model, and where steps are counted by a clock."
    script = tmp_path / 'run.py'
    script.write_text(TOGETHER)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script), str(tmp_path)],
                          capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', **({'GLOO_SOCKET_IFNAME': 'lo'} if sys.platform == 'linux' else {})})
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f'{r}.json').read_text()) for r in (0, 1))
    assert one == two


@pytest.mark.parametrize('name, value', [('MIXED_PRECISION', 'bf16'), ('GRADIENT_ACCUMULATION_STEPS', '4')])
def test_a_variable_of_the_shell_does_not_change_a_training(name, value, monkeypatch):
    "Accelerate reads precision and accumulation from there; here the configuration alone says what happens."
    from accelerate.state import AcceleratorState, GradientState
    how, once = TrainConfig(steps=3, warmup=1, precision='no'), []
    for _ in range(2):
        from ldp_tut.train import _accelerator
        assert _accelerator(torch.device('cpu'), how, Tracking()).mixed_precision == 'no'
        seen = set()
        def spied(model, x, g):
            out = model(x); seen.add(out.dtype)
            return out.pow(2).mean()
        run = fit(net(), spied, batches, how, **QUIET)
        once.append(run.model[0].weight.detach().clone())
        assert seen == {torch.float32}
        monkeypatch.setenv(f'ACCELERATE_{name}', value)
        AcceleratorState._reset_state(reset_partial_state=True); GradientState._reset_state()
    assert torch.equal(*once)
    AcceleratorState._reset_state(reset_partial_state=True); GradientState._reset_state()


def test_a_file_is_trained_by_one_run_at_a_time(tmp_path):
    "The second one is refused, and the first one is not disturbed; a run that was broken off gives the file back."
    path, said = tmp_path / 'a.safetensors', []
    def meets(step, g):
        if step == 2:
            with pytest.raises(CheckpointError, match='is being trained already'): fit(net(), loss, batches, CONFIG, path, **QUIET)
            said.append(step)
        if step == 5: raise KeyboardInterrupt
        return batches(step, g)
    with pytest.raises(KeyboardInterrupt): fit(net(), loss, meets, CONFIG, path, **QUIET)
    assert said == [2] and len(fit(net(), loss, batches, CONFIG, path, stop_at=3, **QUIET).history) == 3


@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc for what is mapped')
def test_a_resumed_run_does_not_hang_on_the_file_that_it_replaces(tmp_path):
    path = tmp_path / 'a.safetensors'
    fit(net(), loss, batches, CONFIG, path, stop_at=3, **QUIET)
    def mapped(step, g):
        with open('/proc/self/maps') as f: assert str(path) not in f.read()
        return batches(step, g)
    assert len(fit(net(), loss, mapped, CONFIG, path, stop_at=5, **QUIET).history) == 2


def test_odd_settings_of_training_are_refused():
    with pytest.raises(ValueError, match='leap=0.5 would leave out steps of the usual length'): TrainConfig(leap=.5)
    with pytest.raises(ValueError, match='every must be an integer of at least 1, got 0'): Tracking(every=0)
    with pytest.raises(TypeError, match='array of objects'): fingerprint(np.array([object()]))
    parts = fit(net(), lambda m, x, g: dict(fit=m(x).pow(2).mean(), weight=.5), batches, TrainConfig(steps=2, warmup=1), **QUIET).history[0]
    assert parts['weight'] == .5 and parts['loss'] == pytest.approx(parts['fit'] + .5)


def test_a_disk_without_locks_trains_all_the_same(tmp_path, monkeypatch):
    from filelock import FileLock
    def none(*_, **__): raise OSError(37, 'No locks available')
    monkeypatch.setattr(FileLock, 'acquire', none)
    assert len(fit(net(), loss, batches, CONFIG, tmp_path / 'a.safetensors', stop_at=2, **QUIET).history) == 2


def test_training_leaves_the_accelerate_of_others_as_it_was():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    mine, seen = Accelerator(cpu=True, mixed_precision='bf16'), set()
    def spied(model, x, g):
        seen.add(model(x).dtype)
        return model(x).pow(2).mean()
    fit(net(), spied, batches, TrainConfig(steps=2, warmup=1, precision='no'), **QUIET)
    assert seen == {torch.float32} and mine.mixed_precision == 'bf16' and Accelerator(cpu=True, mixed_precision='bf16').mixed_precision == 'bf16'
    AcceleratorState._reset_state(reset_partial_state=True)
