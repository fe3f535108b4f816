"The training loop: exact resume, checkpoints that are whole or refused, losses that stop."
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from ldp_tut.train import CheckpointError, CSVTracker, NonFiniteLoss, Tracking, TrainConfig, fit, learning_rate, load_checkpoint, pick_device, save_checkpoint


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
    with pytest.raises(CheckpointError, match='.safetensors'): save_checkpoint(tmp_path / 'z.pt', {}, {})
    save_checkpoint(tmp_path / 'demo.safetensors', dict(w=torch.zeros(3)), dict(kind='demo'))
    with pytest.raises(CheckpointError, match='not a training run'): fit(net(), loss, batches, CONFIG, tmp_path / 'demo.safetensors', **QUIET)
    fit(net(), loss, batches, TrainConfig(steps=4), tmp_path / 'run.safetensors', **QUIET)
    with pytest.raises(CheckpointError, match='lr='): fit(net(), loss, batches, TrainConfig(steps=4, lr=.5), tmp_path / 'run.safetensors', **QUIET)
    with pytest.raises(CheckpointError, match='another model'): fit(nn.Linear(4, 2), lambda m, x, g: m(x).mean(), batches, TrainConfig(steps=4), tmp_path / 'run.safetensors', **QUIET)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    import ldp_tut.train as train
    path = save_checkpoint(tmp_path / 'a.safetensors', dict(w=torch.zeros(3)), dict(kind='demo'))
    def full(tensors, file, metadata): open(file, 'wb').write(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(train, 'save_file', full)
    with pytest.raises(CheckpointError, match='No space left'): save_checkpoint(path, dict(w=torch.ones(3)), dict(kind='demo'))
    assert torch.equal(load_checkpoint(path)[0]['w'], torch.zeros(3))


def test_configuration_at_the_door():
    with pytest.raises(ValueError, match='at least 1'): TrainConfig(steps=0)
    with pytest.raises(ValueError, match='precision'): TrainConfig(precision='fp8')
    with pytest.raises(ValueError, match='unknown device'): pick_device('gpu')
    rates = [learning_rate(s, TrainConfig(steps=100, warmup=10, lr=1.)) for s in range(100)]
    assert rates[0] == .1 and max(rates) == 1 and rates[-1] < .06


def test_two_processes_share_one_training_run(tmp_path):
    "Started by torchrun, as `accelerate launch` does it: each process draws its own batches, both end with the same weights, one of them saves."
    script = tmp_path / 'run.py'
    script.write_text('''
import json, sys, torch
from pathlib import Path
from ldp_tut.train import TrainConfig, fit
torch.manual_seed(0)
model, folder = torch.nn.Linear(4, 1), Path(sys.argv[1])
def batches(step, g): x = torch.randn(16, 4, generator=g); return x, x.sum(1, keepdim=True)
run = fit(model, lambda m, b, g: (m(b[0]) - b[1]).pow(2).mean(), batches, TrainConfig(steps=30, lr=1e-1, warmup=5), folder / 'run.safetensors', 'cpu', progress=False)
rank = torch.distributed.get_rank()
(folder / f'{rank}.json').write_text(json.dumps(dict(first=run.history[0]['loss'], weight=model.weight[0].tolist())))
''')
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script), str(tmp_path)],
                          capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1', **({'GLOO_SOCKET_IFNAME': 'lo'} if sys.platform == 'linux' else {})})
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f'{r}.json').read_text()) for r in (0, 1))
    assert one['first'] != two['first'] and one['weight'] == pytest.approx(two['weight'], abs=1e-6)
    assert load_checkpoint(tmp_path / 'run.safetensors')[1]['step'] == 30


def test_a_tracker_is_told_and_goes_on_after_a_kill(tmp_path):
    file, how = tmp_path / "log" / "losses.csv", dict(path=tmp_path / "run.safetensors", **QUIET)
    whole = fit(net(), loss, batches, CONFIG, track=Tracking(CSVTracker(file), every=50), stop_at=200, **how)
    fit(net(), loss, batches, CONFIG, track=Tracking(CSVTracker(file), every=50), **how)
    head, *rows = [line.split(',') for line in file.read_text().splitlines()]
    assert head == ['step', 'fit', 'loss', 'lr', 'size'] and [int(r[0]) for r in rows] == list(range(0, 400, 50))
    assert float(rows[1][2]) == pytest.approx(whole.history[50]['loss'], rel=1e-4)
