"Property tests of noise boards and of the one sampler step they drive."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ldp_tut.board import BOARDS, as_floats, check_board, context_board, pin
from ldp_tut.ddpm import SCHEDULES, add_noise, cosine_schedule, last, sample, sample_step, seeded_noise
from ldp_tut.forcing import Prediction
from ldp_tut.guidance import ClassifierFree, HeadGuide, Limited

SIZES = dict(H=st.integers(1, 17), K=st.integers(1, 200), M=st.integers(1, 40))


@pytest.mark.parametrize('name', sorted(BOARDS))
@given(**SIZES)
@settings(max_examples=60, deadline=None)
def test_every_board_falls_from_noise_to_clean(name, H, K, M):
    board = BOARDS[name](H, K, M)
    assert board.shape == (M + 1, H) and board.dtype == torch.int64
    assert (board[0] == K).all(), 'the first row is pure noise, for even and odd widths'
    assert (board[-1] == 0).all() and (board.diff(dim=0) <= 0).all()
    check_board(board, K, H)


@pytest.mark.parametrize('name', sorted(BOARDS))
@given(columns=st.integers(0, 5), **SIZES)
@settings(max_examples=30, deadline=None)
def test_pinned_columns_are_clean_and_the_rest_untouched(name, H, K, M, columns):
    board = BOARDS[name](H, K, M)
    wide = context_board(board, columns)
    assert (wide[:, :columns] == 0).all() and torch.equal(wide[:, columns:], board)
    held = pin(board, min(columns, H))
    assert (held[:, :min(columns, H)] == 0).all() and torch.equal(held[:, min(columns, H):], board[:, min(columns, H):])


@given(H=st.integers(1, 20), M=st.integers(1, 30), lead=st.floats(0, 0.95))
@settings(max_examples=60, deadline=None)
def test_trapezoid_and_ends_first_are_mirror_images(H, M, lead):
    for name in ('trapezoid', 'ends_first'):
        board = BOARDS[name](H, 100, M, lead=lead)
        assert torch.equal(board, board.flip(1))


@given(H=st.integers(2, 12), M=st.integers(2, 30), lead=st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_named_edge_leads(H, M, lead):
    far, pyramid = BOARDS['far_first'](H, 100, M, lead=lead), BOARDS['pyramid'](H, 100, M, lead=lead)
    assert (far[:, -1:] <= far).all() and (pyramid.diff(dim=1) >= 0).all()
    assert (far[:, -1].sum() < far[:, 0].sum()) and (pyramid[:, 0].sum() < pyramid[:, -1].sum())


def test_autoregression_cleans_one_token_before_it_starts_the_next():
    board = BOARDS['autoregressive'](4, 10, 12)
    for row in board: assert ((row > 0) & (row < 10)).sum() <= 1


@pytest.mark.parametrize('board, error, word', [
    (torch.zeros(5, 3), TypeError, 'integer'),
    (torch.tensor([[1, 1]]), ValueError, 'M >= 1'),
    (torch.tensor([[1, 1], [2, 0], [0, 0]]), ValueError, 'rises'),
    (torch.tensor([[9, 9], [0, 0]]), ValueError, '0..8'),
    (torch.tensor([[8, 8], [0, 1]]), ValueError, 'clean'),
    (torch.tensor([[8, 8, 8], [0, 0, 0]]), ValueError, '3 tokens'),
    ([[8, 8], [0, 0]], TypeError, 'integer'),
])
def test_what_is_not_a_board_is_refused(board, error, word):
    with pytest.raises(error, match=word): check_board(board, 8, 2)


def test_bad_sizes_and_leads_are_refused():
    with pytest.raises(ValueError, match='H must be'): BOARDS['full'](0, 10, 10)
    with pytest.raises(ValueError, match='M must be'): BOARDS['pyramid'](3, 10, 2.5)
    with pytest.raises(ValueError, match='lead'): BOARDS['far_first'](3, 10, 10, lead=1.)
    with pytest.raises(ValueError, match='pin column 3'): pin(BOARDS['full'](3, 10, 10), [3])


# --- the step -----------------------------------------------------------------------------------------------------------

SCHEDULE = cosine_schedule(50)
shrink = lambda x, k, times: 0.3 * x + 0.01 * k[..., None] + 0.1 * times[..., None]


class Pull:
    "A guide whose gradient couples the tokens of a sample, and no two samples."
    def __call__(self, x, k, times, prediction):
        return torch.autograd.grad((-(x.sum(1) - 1).pow(2)).sum(), x)[0]


VECTOR, MAP = (4,), (2, 3, 5)                          # one token: numbers, or channels of rows and columns
over = lambda v, x: v.reshape(v.shape + (1,) * (x.ndim - v.ndim))
shrink_any = lambda x, k, times: 0.3 * x + 0.01 * over(k, x) + 0.1 * over(times, x)


@given(seed=st.integers(0, 2**31), eta=st.floats(0, 1), guided=st.booleans(), token=st.sampled_from([VECTOR, MAP]),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
@settings(max_examples=60, deadline=None)
def test_tokens_whose_level_does_not_change_are_copied_bit_for_bit(seed, eta, guided, token, dtype):
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 3, 7, *token, generator=g).to(dtype)
    a = torch.randint(0, 51, (3, 7), generator=g)
    b = torch.minimum(torch.randint(0, 51, (3, 7), generator=g), a)
    guide = Limited(Pull(), SCHEDULE) if guided else None
    out = sample_step(shrink_any, x, a, b, torch.zeros(3, 7), schedule=SCHEDULE, eta=eta, noise=noise, guide=guide)
    assert out.dtype == dtype and torch.equal(out[a == b], x[a == b])
    assert (out[a != b] != x[a != b]).any() or (a == b).all()


@given(seed=st.integers(0, 2**31), eta=st.floats(0, 1), guided=st.booleans(), recurrences=st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_a_map_is_sampled_as_the_vector_with_its_numbers(seed, eta, guided, recurrences):
    "Levels are broadcast over whatever a token is, in the step, in noising up again and in a guide with a limit."
    noise = seeded_noise(range(seed, seed + 3), 19, 6, *MAP).transpose(0, 1)
    board = pin(BOARDS['far_first'](6, 50, 6), 1)
    guide = Limited(Pull(), SCHEDULE, 0.2) if guided else None
    def walk(noise): return last(sample(shrink_any, noise[0], board, schedule=SCHEDULE, eta=eta, noise=noise[1:], guide=guide, recurrences=recurrences)).x
    torch.testing.assert_close(walk(noise).flatten(2), walk(noise.flatten(3)), atol=1e-5, rtol=1e-5)
    assert torch.equal(walk(noise)[:, 0], noise[0][:, 0])


@pytest.mark.parametrize('eta', [0., 1.])
@pytest.mark.parametrize('guide', [None, Pull()])
@pytest.mark.parametrize('token', [VECTOR, MAP])
def test_one_sample_is_the_same_alone_and_in_a_batch_of_64(eta, guide, token):
    board = BOARDS['far_first'](6, 50, 10)
    def run(seeds):
        noise = seeded_noise(seeds, 11, 6, *token).transpose(0, 1)
        return last(sample(shrink_any, noise[0], board, schedule=SCHEDULE, eta=eta, noise=noise[1:], guide=guide)).x
    many = run(range(64))
    for i in (0, 17, 63): torch.testing.assert_close(run([i])[0], many[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('token', [VECTOR, MAP])
def test_a_head_pushes_its_own_token_alone_whatever_a_token_is(token):
    class Said:
        def __init__(self, x): self.x0, self.heads = 0.5 * x, dict(reward=0.05 * x.flatten(2).sum((1, 2), keepdim=True).expand(-1, x.shape[1], 1))
    x, k = torch.randn(3, 5, *token, generator=torch.Generator().manual_seed(0)), torch.full((3, 5), 40)
    guide = Limited(HeadGuide('reward', token=2, scale=1e4), SCHEDULE, 0.7)
    out, plain = (sample_step(lambda x, k, times: Said(x), x, k, k - 5, torch.zeros(3, 5), schedule=SCHEDULE, guide=g) for g in (guide, None))
    moved = (out - plain).flatten(2).abs().sum(-1) > 0
    assert moved[:, 2].all() and not moved[:, [0, 1, 3, 4]].any()
    free = ClassifierFree(shrink_any, lambda x, k, times: 0 * x, 2.)
    assert torch.equal(free(x, k, torch.zeros(3, 5)), 2 * shrink_any(x, k, torch.zeros(3, 5)))


class InHalf(torch.nn.Module):
    "A network that takes its own precision and no other."
    def __init__(self, dtype): super().__init__(); self.net = torch.nn.Linear(4, 4).to(dtype)
    def forward(self, x, k, times): return self.net(x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('eta, recurrences', [(0., 1), (1., 2)])
def test_a_network_in_half_precision_is_sampled_in_its_own(dtype, eta, recurrences):
    torch.manual_seed(0)
    net, board, schedule = InHalf(dtype), BOARDS['pyramid'](6, 50, 8), cosine_schedule(50).to(dtype)
    states = list(sample(net, torch.randn(2, 6, 4).to(dtype), board, schedule=schedule, eta=eta, recurrences=recurrences))
    assert all(s.x.dtype == dtype and s.x.isfinite().all() for s in states)


def test_sampling_keeps_no_graph_unless_asked_and_then_one_through_the_whole_walk():
    net = torch.nn.Linear(4, 4)
    denoise = lambda x, k, times: Prediction(net(x), dict(reward=net(x)))
    start, board = torch.randn(2, 6, 4, requires_grad=True), BOARDS['full'](6, 50, 3)
    for guide in (None, Pull()):
        for s in list(sample(denoise, start, board, schedule=SCHEDULE, guide=guide))[1:]:
            assert not s.x.requires_grad and not s.prediction.x0.requires_grad and not s.prediction.heads['reward'].requires_grad
    x = last(sample(denoise, start, board, schedule=SCHEDULE, keep_graph=True)).x
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(x.sum(), [start, net.weight]))


def test_guides_work_in_inference_mode():
    x, board = torch.randn(2, 6, 4), BOARDS['full'](6, 50, 4)
    walk = lambda: last(sample(shrink, x.clone(), board, schedule=SCHEDULE, guide=Pull())).x
    with torch.inference_mode(): inside = walk()
    assert torch.equal(inside.clone(), walk())


@pytest.mark.parametrize('integer', [np.int64, np.int32, np.uint8, torch.tensor])
def test_integers_of_any_library_are_integers(integer):
    for name, make in BOARDS.items(): assert torch.equal(make(integer(4), integer(10), integer(5)), make(4, 10, 5)), name
    board = BOARDS['full'](4, 10, 5)
    assert torch.equal(context_board(board, integer(2)), context_board(board, 2)) and torch.equal(pin(board, integer(2)), pin(board, 2))
    for make in SCHEDULES.values(): assert torch.equal(make(integer(10)).alpha_bar, make(10).alpha_bar)
    assert torch.equal(seeded_noise([integer(3)], 2), seeded_noise([3], 2))


def test_columns_are_pinned_by_count_numbers_or_mask():
    board = BOARDS['full'](4, 10, 5)
    want = pin(board, [0, 2])
    for columns in (np.array([0, 2]), (0, -2), torch.tensor([0, 2]), torch.tensor([True, False, True, False]), np.array([True, False, True, False]), [True, False, True, False]):
        assert torch.equal(pin(board, columns), want)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32])
def test_levels_of_any_kind_of_integer_mean_the_same(dtype):
    x, k, times = torch.randn(2, 3, 4), torch.tensor([[0, 1, 50], [0, 50, 7]]), torch.zeros(2, 3)
    noise = torch.randn(2, 3, 4)
    assert torch.equal(add_noise(SCHEDULE, x, k.to(dtype), noise), add_noise(SCHEDULE, x, k, noise))
    seen = []
    def denoise(x, k, times): seen.append(k.dtype); return shrink(x, k, times)
    step = lambda k: sample_step(denoise, x, k, (k // 2).to(k.dtype), times, schedule=SCHEDULE)
    assert torch.equal(step(k.to(dtype)), step(k)) and set(seen) == {torch.int64}


def test_one_conversion_of_numbers_to_floats():
    want = torch.tensor([[0., 255.], [3., 4.]])
    for value in (want.double(), want.half(), want.to(torch.uint8), want.long(), want.numpy().astype('float64'), want.numpy().astype('uint8'), want.tolist()):
        got = as_floats(value, 'start')
        assert got.dtype == torch.float32 and torch.equal(got, want)


def test_guide_zero_is_no_guide():
    board, x = BOARDS['full'](5, 50, 10), torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    none = lambda x, k, t, p: torch.zeros_like(x)
    assert torch.equal(last(sample(shrink, x, board, schedule=SCHEDULE)).x, last(sample(shrink, x, board, schedule=SCHEDULE, guide=none)).x)


def test_the_sampler_refuses_what_does_not_fit():
    x, board = torch.randn(2, 5, 3), BOARDS['full'](4, 50, 10)
    with pytest.raises(ValueError, match='4 tokens, the plan has 5'): last(sample(shrink, x, board, schedule=SCHEDULE))
    with pytest.raises(ValueError, match=r'\[B, H, D\]'): last(sample(shrink, x[0], board, schedule=SCHEDULE))
    k = torch.full((2, 5), 51)
    with pytest.raises(ValueError, match='0..50'): sample_step(shrink, x, k, k, torch.zeros(2, 5), schedule=SCHEDULE)
    low, high = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match='only lowers'): sample_step(shrink, x, low, high, torch.zeros(2, 5), schedule=SCHEDULE)
    with pytest.raises(ValueError, match='pass noise'): sample_step(shrink, x, high, low, torch.zeros(2, 5), schedule=SCHEDULE, eta=1.)
    with pytest.raises(TypeError, match='integers'): sample_step(shrink, x, high.float(), low, torch.zeros(2, 5), schedule=SCHEDULE)
