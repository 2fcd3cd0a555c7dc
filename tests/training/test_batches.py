"""Memory of batches: used again, never while something still looks at it."""

import gc

from torch.utils.data import DataLoader

from pipeline.training.batches import PairedBatches


def test_a_window_that_is_still_looked_at_keeps_its_samples(tiny_study):
    batches = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)
    views, expected = [], []
    for step in range(len(batches)):
        batch = batches[step]
        views += [batch.labeled_BS[1], batch.partner_BS.numpy()[2], batch.labeled_BS.view(-1)[::7]]
        expected += [view.tolist() for view in views[-3:]]
        del batch
    gc.collect()
    assert [view.tolist() for view in views] == expected


def test_batches_that_are_gone_leave_their_memory_to_the_next(tiny_study):
    batches = PairedBatches(tiny_study.pairs("composed", epochs=6), tiny_study.shards)
    places = set()
    for batch in DataLoader(batches, batch_size=None):
        places |= {batch.labeled_BS.data_ptr(), batch.partner_BS.data_ptr()}
    assert len(batches) == 18 and len(places) == 4, "of this batch and the one before"


def test_a_loader_worker_reads_into_memory_that_both_processes_share(tiny_study):
    batches = PairedBatches(tiny_study.pairs("composed"), tiny_study.shards)
    for step, batch in enumerate(DataLoader(batches, batch_size=None, num_workers=1)):
        assert batch.labeled_BS.is_shared() and batch.partner_BS.is_shared()
        assert batch.labeled_BS.equal(batches[step].labeled_BS) and batch.partner_BS.equal(batches[step].partner_BS)
