"""The delay pattern against its written-out tables."""

import torch

from higgs.delay import add_stream_ids, apply_delay, delayed_labels, delayed_segment, revert_delay, segment_frames

B, E, X = 1024, 1025, -100


def test_segment_of_eight_codebooks():
    codes = torch.arange(24).view(8, 3)
    delayed = delayed_segment(codes, B, E)
    assert delayed.shape == (8, 12)
    for k in range(8):
        row = [B] * (k + 1) + codes[k].tolist() + [E] * (8 - k)
        assert delayed[k].tolist() == row
    assert torch.equal(segment_frames(delayed, 1024, finished=True), codes)


def test_labels_train_each_row_on_its_codes_and_one_eos():
    codes = torch.tensor([[18, 693, 180], [872, 375, 890]])
    assert delayed_labels(codes, E).tolist() == [[X, 18, 693, 180, E, X], [X, X, 872, 375, 890, E]]


def test_batches_and_inverse():
    for steps in range(8):  # fewer than codebooks hold no frame
        assert revert_delay(torch.zeros(8, steps, dtype=torch.long)).shape == (8, 0)
    codes = torch.randint(0, 1024, (2, 8, 11))
    assert torch.equal(revert_delay(apply_delay(add_stream_ids(codes, B, E), B, E))[..., 1:-1], codes)


def test_a_segment_cut_off_keeps_its_last_complete_frame():
    codes = torch.randint(0, 1024, (8, 6))
    cut = delayed_segment(codes, B, E)[:, : 1 + 4 + 7]  # bos, then columns in which 4 frames are complete
    assert torch.equal(segment_frames(cut, 1024, finished=False), codes[:, :4])


def test_stray_stream_ids_become_the_last_code():
    delayed = delayed_segment(torch.full((8, 4), 5), B, E)
    delayed[2, 5] = E
    assert segment_frames(delayed, 1024, finished=True).max() == 1023
