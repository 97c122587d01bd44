"""Stored rows in a seeded order that is a function of the cursor alone."""

import numpy as np
import pytest
import torch
from helpers.random_stores import make_store, make_x

from saelib.activations.rows import ShuffledRows


def test_every_epoch_is_a_new_permutation(tmp_path):
    store, index = make_store(tmp_path / "s"), np.arange(3, 33)
    stream = ShuffledRows(store, 1, index, batch_size=10, seed=0)
    epochs = [np.concatenate([stream.next_rows() for _ in range(3)]) for _ in range(3)]
    assert all(np.array_equal(np.sort(epoch), index) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], index)
    assert stream.cursor == 90
    other_seed = ShuffledRows(store, 1, index, batch_size=30, seed=1)
    assert not np.array_equal(other_seed.next_rows(), epochs[0])


def test_a_batch_may_straddle_epochs_or_span_several(tmp_path):
    store, index = make_store(tmp_path / "s"), np.arange(30)
    flat = ShuffledRows(store, 1, index, batch_size=1, seed=0)
    order = np.concatenate([flat.next_rows() for _ in range(180)])
    for batch_size in (7, 30, 75):
        stream = ShuffledRows(store, 1, index, batch_size, seed=0)
        batches = [stream.next_rows() for _ in range(180 // batch_size)]
        assert all(len(batch) == batch_size for batch in batches)
        in_order = np.split(order[: len(batches) * batch_size], len(batches))
        assert all(
            np.array_equal(batch, np.sort(want))
            for batch, want in zip(batches, in_order, strict=True)
        )


def test_a_sample_is_drawn_from_the_whole_stream_wherever_it_stands(tmp_path):
    store, index = make_store(tmp_path / "s"), np.arange(3, 30)
    stream = ShuffledRows(store, 1, index, batch_size=10, seed=0)
    chosen = torch.randperm(27, generator=torch.Generator().manual_seed(4))[:12].sort().values
    next(stream)
    for cursor in (0, 500):
        drawn = stream.sample(12, torch.Generator().manual_seed(4), cursor)
        assert torch.equal(drawn, store.rows(1, index[chosen.numpy()]))
    assert len(stream.sample(100, torch.Generator(), 0)) == 27
    assert stream.cursor == 10


def test_the_cursor_is_the_whole_state(tmp_path):
    store, index = make_store(tmp_path / "s"), np.arange(30)
    stream = ShuffledRows(store, 3, index, batch_size=7, seed=5)
    for _ in range(6):
        next(stream)
    cursor = stream.cursor
    assert cursor == 42
    expected = [next(stream) for _ in range(8)]
    resumed = ShuffledRows(store, 3, index, batch_size=7, seed=5)
    resumed.seek(cursor)
    stream.seek(cursor)
    for x, rows in expected:
        for again in (resumed, stream):
            x_again, rows_again = next(again)
            assert np.array_equal(rows_again, rows)
            assert torch.equal(x_again, x)
        assert torch.equal(x, make_x()[3][rows])
    assert resumed.cursor == stream.cursor == cursor + 56


def test_no_rows_to_shuffle_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="site 1: no rows to draw"):
        ShuffledRows(make_store(tmp_path / "s"), 1, np.array([], dtype=np.int64), 4, seed=0)
