"Property tests of noise boards and of the one sampler step they drive."
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ldp_tut.board import BOARDS, check_board, context_board, pin
from ldp_tut.ddpm import cosine_schedule, last, sample, sample_step, seeded_noise

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


@given(seed=st.integers(0, 2**31), eta=st.floats(0, 1), guided=st.booleans())
@settings(max_examples=40, deadline=None)
def test_tokens_whose_level_does_not_change_are_copied_bit_for_bit(seed, eta, guided):
    g = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 3, 7, 4, generator=g)
    a = torch.randint(0, 51, (3, 7), generator=g)
    b = torch.minimum(torch.randint(0, 51, (3, 7), generator=g), a)
    out = sample_step(shrink, x, a, b, torch.zeros(3, 7), schedule=SCHEDULE, eta=eta, noise=noise, guide=Pull() if guided else None)
    assert torch.equal(out[a == b], x[a == b])
    assert (out[a != b] != x[a != b]).any() or (a == b).all()


@pytest.mark.parametrize('eta', [0., 1.])
@pytest.mark.parametrize('guide', [None, Pull()])
def test_one_sample_is_the_same_alone_and_in_a_batch_of_64(eta, guide):
    board = BOARDS['far_first'](6, 50, 10)
    def run(seeds):
        noise = seeded_noise(seeds, 11, 6, 4).transpose(0, 1)
        return last(sample(shrink, noise[0], board, schedule=SCHEDULE, eta=eta, noise=noise[1:], guide=guide)).x
    many = run(range(64))
    for i in (0, 17, 63): torch.testing.assert_close(run([i])[0], many[i], atol=1e-5, rtol=1e-5)


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
