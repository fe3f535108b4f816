"Worlds made of cells: symbols, patches of pictures, and windows of sheets that are mostly empty."
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ldp_tut.checkpoints import find_checkpoint
from ldp_tut.cli import main
from ldp_tut.envs import layouts
from ldp_tut.maps import (PatchWorld, SymbolWorld, WindowWorld, corner_of, cut_as_asked, cut_up, in_patches,
                          make_symbol_world, renamed, through_window, windowed)
from ldp_tut.planner import PlannerRecipe, load_agent, train_planner
from ldp_tut.records import Trajectories
from ldp_tut.rooms import in_whole_room, walk_rooms
from test_fake_device import DEVICE, faked
from test_field import walkers

G = lambda s=0: torch.Generator().manual_seed(s)
noise_like = lambda like: np.random.default_rng(0).integers(0, 256, like.shape, dtype=np.uint8)


def tiled(data, side=3, seed=1):
    "The same walkers, every cell drawn as a tile of random pixels."
    kinds = np.unique(data.observation.reshape(-1, data.observation.shape[-1]), axis=0)
    tile = np.random.default_rng(seed).integers(0, 256, (len(kinds), side, side, 3), dtype=np.uint8)
    which = (data.observation[..., None, :] == kinds).all(-1).argmax(-1)                       # [N, rows, cols]
    N, rows, cols = which.shape
    return replace(data, observation=tile[which].swapaxes(2, 3).reshape(N, side * rows, side * cols, 3)), which, tile


def test_pictures_cut_into_patches_are_the_symbols_they_were_drawn_from():
    data, which, tile = tiled(walkers(6))
    patches, names = in_patches(np.array_split(data.observation, 4), 3)
    assert names.shape == (*which.shape, 1) and len(patches) == len(np.unique(which))
    assert (patches[names[..., 0]] == tile[which]).all(), 'every name is put back as the tile it stands for'
    with pytest.raises(ValueError, match='more than 2 different patches of 3 x 3'): in_patches([data.observation], 3, most=2)
    with pytest.raises(ValueError, match='15 x 15 pixels cannot be cut into patches of 4 x 4'): in_patches([data.observation], 4)


def test_patches_are_told_apart_in_every_byte_and_named_alike_however_the_pictures_are_dealt_out():
    "Random bytes, one changed at a time, from channels and sizes that fill no whole words."
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (3, 3, 3), np.uint8)
    many = np.repeat(one[None], 28, 0)
    many.reshape(28, 27)[np.arange(27), np.arange(27)] ^= 128
    pictures = many.reshape(4, 7, 3, 3, 3).swapaxes(1, 2).reshape(4, 3, 21, 3)
    patches, names = in_patches([pictures], 3)
    assert len(patches) == 28 and names.dtype == np.uint8 and names.shape == (4, 1, 7, 1)
    for p, n in ((patches, names), in_patches([pictures[:1], pictures[1:]], 3)):
        assert np.array_equal(p[n[..., 0]].swapaxes(2, 3).reshape(4, 3, 21, 3), pictures)
    assert np.array_equal(in_patches([pictures[::-1]], 3)[0], patches), 'one part: the order does not depend on where patches stand'


def test_grids_of_many_channels_keep_all_of_them():
    "One-hot grids have a channel for each thing, and may have more of them than a whole number has bytes."
    data = walkers(6)
    kinds, which = np.unique(data.observation.reshape(-1, data.observation.shape[-1]), axis=0, return_inverse=True)
    grid = (which.reshape(*data.observation.shape[:3], 1) == np.arange(len(kinds))).astype(np.uint8)
    many = replace(data, observation=np.concatenate([np.zeros_like(grid), np.zeros_like(grid), grid], -1))
    assert many.observation.shape[-1] > 8
    world = make_symbol_world(many)
    assert len(world.kinds) == len(kinds) == world.spaces.kinds
    assert np.array_equal(world.decode(world.encode(world.read(many.observation[:9]))).numpy(), many.observation[:9])
    other = many.observation[:1].copy()
    other[0, 2, 2] = 0
    with pytest.raises(ValueError, match='never did'): world.read(other)


@pytest.mark.parametrize('side', [8, 16, 32])
def test_large_bright_patches_that_hardly_differ_are_told_apart(side):
    tile = np.full((6, side, side, 3), 250, np.uint8)
    tile[np.arange(6), 0, np.arange(6)] -= 1
    which = np.random.default_rng(0).integers(0, 6, (len(walkers(6).observation), 3, 3))
    data = replace(walkers(6), observation=tile[which].swapaxes(2, 3).reshape(len(which), 3 * side, 3 * side, 3))
    names, world = cut_up(data, side)
    with torch.autocast('cpu', torch.bfloat16): seen = world.read(data.observation[:20])
    assert np.array_equal(seen.state.numpy(), names.observation[:20])


def test_cells_that_the_data_never_showed_are_refused():
    room = layouts('MiniGrid-SimpleCrossingS9N1-v0', [0])
    seen, agent = room.observe().numpy(), load_agent(find_checkpoint('crossing-walk-field'), 'cpu')
    world = agent.planner.world
    assert torch.equal(world.decode(world.encode(world.read(seen))), room.observe())
    lava = seen.copy()
    lava[0, 2, 2] = 9, 0, 0
    with pytest.raises(ValueError, match=r'never did, and would be read as others: \[\[9, 0, 0\]\]'): world.read(lava)
    with pytest.raises(ValueError, match='never did'): agent.reset().act(lava)


def test_a_world_of_patches_reads_pictures_of_any_size_through_a_little_noise_and_shows_them_again():
    data, world = cut_up(tiled(walkers(6))[0], 3)
    pictures = torch.from_numpy(tiled(walkers(6))[0].observation[:9])
    seen = world.read(pictures.numpy())
    assert torch.equal(seen.state, torch.from_numpy(data.observation[:9])) and world.latent_shape == (8, 5, 5)
    assert torch.equal(world.decode(world.encode(seen)), pictures)
    noisy = pictures.float() + 9 * torch.randn(pictures.shape, generator=G())
    assert torch.equal(world.read(noisy.clamp(0, 255).to(torch.uint8).numpy()).state, seen.state)
    assert world.read(pictures[:, :6, :9].numpy()).state.shape == (9, 2, 3, 1)
    with pytest.raises(ValueError, match='cannot be cut'): world.read(pictures[:, :7].numpy())


def test_a_planner_of_patches_is_trained_saved_and_loaded_whole(tmp_path):
    pictures = tiled(walkers(20))[0]
    agent = train_planner(pictures, 3, out=tmp_path, patch=3, longest=6, world_steps=5, width=8, batch=4, device='cpu', progress=False)
    again = load_agent(tmp_path / 'agent.safetensors', 'cpu')
    assert type(again.planner.world) is PatchWorld and again.card['world']['kind'] == 'patches'
    assert torch.equal(again.planner.world.patches, agent.planner.world.patches)
    obs = pictures.observation[:2]
    assert (agent.begin([1, 2]).act_batch(obs) == again.begin([1, 2]).act_batch(obs)).all()
    with pytest.raises(ValueError, match='patches are cut from pictures'): cut_up(replace(pictures, observation=np.zeros((len(pictures.observation), 4), np.float32)), 3)


def on_sheets(data, rows=12, cols=14, seed=0):
    "Every episode somewhere on a larger sheet of nothing; and where."
    r, N = np.random.default_rng(seed), len(data.observation)
    n, m = data.observation.shape[1:3]
    corner = np.stack([r.integers(0, rows - n + 1, len(data)), r.integers(0, cols - m + 1, len(data))], 1)
    sheet = np.full((N, rows, cols, data.observation.shape[-1]), 200, np.uint8)
    for i, e in enumerate(np.repeat(np.arange(len(data)), data.length + 1)):
        x, y = corner[e]
        sheet[i, x:x + n, y:y + m] = data.observation[i]
    return replace(data, observation=sheet), corner


def test_a_window_is_found_wherever_it_is_and_holds_what_was_put_there():
    data = walkers(20)
    sheets, corner = on_sheets(data)
    cut, world = windowed(sheets)
    assert (cut.observation == data.observation).all() and world.spaces.window == (5, 5) and world.latent_shape == (8, 5, 5)
    assert world.spaces.shape == (12, 14, 2) and world.empty.tolist() == [200, 200]
    first, extent = corner_of(torch.from_numpy(sheets.observation[sheets.observation_start]), world.empty)
    assert (first.numpy() == corner).all() and (extent == 5).all()
    seen = world.read(sheets.observation[:7])
    assert (seen.state.numpy() == data.observation[:7]).all() and (world.decode(world.encode(seen)) == seen.state).all()
    narrow = through_window(torch.from_numpy(sheets.observation[:7]), world.empty, (12, 14))
    assert (narrow.numpy() == sheets.observation[:7]).all(), 'a window as large as the sheet is the sheet'
    blank = torch.full((1, 12, 14, 2), 200, dtype=torch.uint8)
    assert (through_window(blank, world.empty, (5, 5)) == 200).all(), 'nothing at all has a window, too'


def test_pictures_are_looked_at_where_they_are_by_a_world_on_another_device():
    sheets, _ = on_sheets(walkers(20))
    world = faked(windowed(sheets)[1])
    asked = []
    class Told:
        device = world.empty.device
        def to(self, where): asked.append(where); return torch.tensor([200, 200], dtype=torch.uint8, device=where)
    pictures = torch.from_numpy(sheets.observation[:3])
    assert str(Told.device) == DEVICE and through_window(pictures, Told(), (5, 5)).device == pictures.device
    assert set(map(str, asked)) == {'cpu'}


def test_windows_that_move_or_are_too_small_are_refused():
    sheets, _ = on_sheets(walkers(20))
    cut, world = windowed(sheets)
    more = sheets.observation[:2].copy(); more[1, 0, 0], more[1, -1, -1] = (9, 9), (9, 9)
    with pytest.raises(ValueError, match=r'windows of \[5, 5\] cells, and something is in \[12, 14\] of \[12, 14\]'): world.read(more)
    with pytest.raises(ValueError, match='windows of'): world.read(more[:, :4])
    lone = sheets.observation.copy(); lone[(lone != (5, 200)).any(-1)] = 200  # the walker is all there is
    with pytest.raises(ValueError, match='the window is not where it was'): windowed(replace(sheets, observation=lone))
    with pytest.raises(ValueError, match='windows are cut from grids of symbols'): windowed(replace(sheets, observation=noise_like(sheets.observation)))
    with pytest.raises(ValueError, match='choose one'): PlannerRecipe(patch=8, window=True)
    with pytest.raises(ValueError, match='features=4 is an option of vectors, not of maps'): train_planner(sheets, 1, features=4, device='cpu', progress=False)
    assert cut_as_asked(sheets)[0] is sheets and type(cut_as_asked(sheets)[1]) is SymbolWorld


def test_a_planner_of_windows_is_trained_saved_and_gone_on_with(tmp_path):
    sheets, _ = on_sheets(walkers(40))
    how = dict(longest=6, width=8, batch=4, tokens=3, device='cpu', progress=False)
    agent = train_planner(sheets, 3, out=tmp_path / 'a', window=True, world_steps=5, **how)
    again = load_agent(tmp_path / 'a' / 'agent.safetensors', 'cpu')
    assert type(again.planner.world) is WindowWorld and again.planner.world.spaces == agent.planner.world.spaces
    assert torch.equal(again.planner.world.empty, agent.planner.world.empty)
    obs = sheets.observation[:2]
    assert (agent.begin([1, 2]).act_batch(obs) == again.begin([1, 2]).act_batch(obs)).all()
    start = dict(start_from=tmp_path / 'a' / 'agent.safetensors', lr=1e-12)
    on = train_planner(sheets, 1, window=True, **start, **how)
    assert torch.equal(on.planner.world.codes, again.planner.world.codes) and type(on.planner.world) is WindowWorld
    with pytest.raises(ValueError, match='reads by a WindowWorld, not by a SymbolWorld'): train_planner(sheets, 1, **start, **how)


def test_a_planner_of_pictures_is_gone_on_with_where_the_same_patches_have_other_names(tmp_path):
    pictures = tiled(walkers(40))[0]
    how = dict(longest=6, width=8, batch=4, tokens=3, device='cpu', progress=False)
    train_planner(pictures, 3, out=tmp_path, world_steps=5, patch=3, **how)
    start = dict(start_from=tmp_path / 'agent.safetensors', lr=1e-12)
    first = load_agent(start['start_from'], 'cpu')
    on = train_planner(pictures[np.arange(39, 4, -1)], 1, patch=3, **start, **how)
    assert torch.equal(on.planner.world.patches, first.planner.world.patches)
    assert torch.equal(on.planner.world.codes, first.planner.world.codes)
    obs = pictures.observation[:2]
    assert (on.begin([1, 2]).act_batch(obs) == first.begin([1, 2]).act_batch(obs)).all()
    patches, names = in_patches([pictures.observation], 3)
    theirs = renamed(replace(pictures, observation=names), patches, patches[::-1])
    assert not np.array_equal(theirs.observation, names)
    assert np.array_equal(patches[::-1][theirs.observation[..., 0]], patches[names[..., 0]]), 'the same pictures by other names'
    strange, smaller = tiled(walkers(40), seed=2)[0], tiled(walkers(40), side=2)[0]
    with pytest.raises(ValueError, match=r'never seen 4 of the 4 kinds of patches'): train_planner(strange, 1, patch=3, **start, **how)
    with pytest.raises(ValueError, match=r'reads patches \[3, 3, 3\], the data have \[2, 2, 3\]'): train_planner(smaller, 1, patch=2, **start, **how)


def test_rooms_on_a_sheet_are_walked_through_their_windows_and_filmed_whole(tmp_path, capsys):
    env_id = 'MiniGrid-MultiRoom-N2-S4-v0'
    said = (f'train --env {env_id} --denoiser field --policy fiddle --window --episodes 60 --steps 2 --longest 4 --world-steps 2 --width 8 '
            f'--batch 2 --out {tmp_path} --json')
    assert main(said.split()) == 0
    assert '--window' in (tmp_path / 'agent.json').read_text()
    agent = load_agent(tmp_path / 'agent.safetensors', 'cpu', far_iterations=2, iterations=2)
    world, rooms = agent.planner.world, layouts(env_id, range(3))
    assert world.spaces.window == (7, 7) and world.spaces.shape == (25, 25, 3)
    walked = walk_rooms(agent, env_id, episodes=2, most=2, progress=False)
    assert len(walked['rows']) == 2 and 0 <= walked['lawful_rate'] <= 1
    maps = np.ones((2, 7, 7), np.float32)
    whole = in_whole_room(world, rooms, maps)
    there = (rooms.observe()[0] != world.empty).any(-1).numpy()
    assert whole.shape == (2, 25, 25) and whole.sum() == maps.sum() and whole[0][there].all()
    film = tmp_path / 'film.gif'
    assert main(f'plan --checkpoint {tmp_path}/agent.safetensors --episodes 1 --most 2 --gif {film} --far-iterations 2 --iterations 2'.split()) == 0
    assert film.stat().st_size > 0


def test_large_pictures_of_few_kinds_say_that_they_are_slow():
    def shown(side):
        x = np.zeros((10, side, side, 3), np.uint8); x[np.arange(10), np.arange(10), 3] = 200
        return Trajectories(x, np.zeros(9, int), np.ones(9, np.float32), [9], [True], 2)
    with pytest.warns(UserWarning, match='32 x 32 cells are read as symbols'): cut_as_asked(shown(32))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cut_as_asked(shown(19)); cut_as_asked(shown(32), patch=8)
