"""Data loading of mixed heights: the collate function, and the sampler that groups similar heights."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from srnn_zoo import HeightBatchSampler, PackedPyramid, ScalePyramid, create_transform
from srnn_zoo import pyramid_collate as collate

SIDES = [40, 70, 33, 150, 64, 128, 90, 35]
HEIGHTS = [1, 2, 1, 3, 2, 3, 2, 1]
DATASETS = {"heights": st.lists(st.integers(1, 4), min_size=1, max_size=60), "batch_size": st.integers(1, 9)}


@pytest.mark.parametrize("levels_in_sequence", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataloader_gives_packed_pyramids_that_a_model_reads(model, levels_in_sequence, num_workers):
    transform = create_transform(model, sizes=ScalePyramid.variable(32, levels_in_sequence=levels_in_sequence))
    dataset = [(transform(Image.new("RGB", (side,) * 2, (i * 20,) * 3)), i) for i, side in enumerate(SIDES)]
    sampler = HeightBatchSampler(HEIGHTS, batch_size=3)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers)
    seen = []
    for (pyramid, targets), indices in zip(loader, list(sampler), strict=True):
        assert targets.tolist() == indices
        assert pyramid.heights == [HEIGHTS[index] for index in indices]
        expected = torch.cat([model([level[None] for level in dataset[index][0]]) for index in indices])
        assert torch.allclose(model(pyramid), expected, atol=1e-5)
        seen += indices
    assert sorted(seen) == list(range(len(SIDES)))


def test_batches_with_and_without_targets_are_collated():
    one, two = [torch.zeros(3, 8, 8)], [torch.zeros(3, 8, 8), torch.zeros(3, 16, 16)]
    assert isinstance(collate([one, two]), PackedPyramid)
    assert collate([tuple(two), tuple(two)]).sizes == [(8, 8), (16, 16)]
    pyramid, targets, names = collate([(one, 3, "a"), (two, 4, "b")])
    assert (pyramid.heights, targets.tolist(), names) == ([1, 2], [3, 4], ["a", "b"])


@given(**DATASETS, epoch=st.integers(0, 5), shuffle=st.booleans())
def test_every_image_comes_once_and_heights_mix_only_where_one_ends(heights, batch_size, epoch, shuffle):
    sampler = HeightBatchSampler(heights, batch_size, shuffle=shuffle)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(heights)))
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    mixed = [batch for batch in batches if len({heights[index] for index in batch}) > 1]
    assert len(mixed) <= len(set(heights)) - 1
    assert batches == list(sampler)


@given(**DATASETS, replicas=st.integers(1, 4), drop_last=st.booleans())
def test_processes_share_the_batches_equally(heights, batch_size, replicas, drop_last):
    options = {"drop_last": drop_last, "num_replicas": replicas}
    shares = [HeightBatchSampler(heights, batch_size, rank=rank, **options) for rank in range(replicas)]
    batches = [list(share) for share in shares]
    assert {len(share) for share in shares} == {len(share) for share in batches}
    assert len({len(share) for share in shares}) == 1
    indices = [index for share in batches for batch in share for index in batch]
    if drop_last:
        assert all(len(batch) == batch_size for share in batches for batch in share)
        assert len(indices) == len(set(indices))
        assert sum(map(len, batches)) > len(heights) // batch_size - replicas
    else:
        assert set(indices) == set(range(len(heights)))


def test_epochs_have_orders_of_their_own_that_a_seed_repeats():
    sampler, same, other = (HeightBatchSampler([1, 2, 3, 4] * 10, 4, seed=seed) for seed in (0, 0, 7))
    first = list(sampler)
    assert first == list(same)
    assert first != list(other)
    sampler.set_epoch(1)
    assert first != list(sampler)
    dropped = [HeightBatchSampler([1, 1, 2], 2, drop_last=True, seed=seed) for seed in range(20)]
    assert {frozenset(next(iter(sampler))) for sampler in dropped} == {frozenset(x) for x in ([0, 1], [0, 2], [1, 2])}


def test_level_sizes_group_shapes_as_well():
    transform = ScalePyramid.variable(32, keep_aspect=True)
    sizes = [transform.level_sizes(h, w) for h, w in [(40, 40), (40, 80), (80, 80), (80, 40), (40, 90), (80, 40)]]
    assert list(HeightBatchSampler(sizes, batch_size=2, shuffle=False)) == [[0, 1], [4, 3], [5, 2]]
    assert sizes[1] == sizes[4] == [(32, 64)]


def test_what_makes_no_batch_or_sampler_is_refused():
    for make, arguments, message in (
        (collate, ([],), "a batch needs at least one image; got none"),
        (HeightBatchSampler, ([], 2), "height of at least one image; got none"),
        (HeightBatchSampler, ([1], 0), "batch_size must be 1 or more; got 0"),
        (partial(HeightBatchSampler, num_replicas=0), ([1], 2), "num_replicas must be 1 or more; got 0"),
        (partial(HeightBatchSampler, num_replicas=2, rank=2), ([1], 2), "rank must be 0 to 1; got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*arguments)
