"""How one clip is made ready, and batches of them."""

import numpy as np
import pytest
import torch

from espnet2_sslam.tasks import ClipError, ClipPreprocessor, collate_clips


def wave(size=1000, dtype=np.float32):
    return np.linspace(-0.5, 0.5, size).astype(dtype)


def test_whole_numbers_become_audio_between_minus_one_and_one():
    speech = np.array([-32768, 0, 16384] * 200, dtype=np.int16)
    result = ClipPreprocessor(False)("a", {"speech": speech})["speech"]
    assert result.dtype == np.float32
    assert result[:3] == pytest.approx([-1.0, 0.0, 0.5])
    long = speech.astype(np.int32) * 65536
    assert (ClipPreprocessor(False)("a", {"speech": long})["speech"] == result).all()


@pytest.mark.parametrize(
    "speech, complaint",
    [
        (np.zeros((1000, 2), np.float32), r"clip bad has shape \(1000, 2\), mono"),
        (np.zeros(1, np.float32), "clip bad has 1 samples, 400"),
        (np.zeros(0, np.float32), "clip bad has 0 samples"),
        (np.full(1000, np.nan, np.float32), "clip bad holds NaN"),
        (np.zeros(1000, np.int64), "clip bad holds int64"),
    ],
)
def test_unusable_audio_is_an_error_that_names_the_clip(speech, complaint):
    with pytest.raises(ClipError, match=complaint):
        ClipPreprocessor(True)("bad", {"speech": speech})


def test_long_clips_are_cut_at_the_start_in_validation():
    result = ClipPreprocessor(False, max_samples=400)("a", {"speech": wave()})
    assert (result["speech"] == wave()[:400]).all()


def test_crops_are_keyed_by_seed_epoch_and_clip():
    def crop(seed=0, epoch=1, uid="a"):
        preprocess = ClipPreprocessor(True, max_samples=400, seed=seed)
        preprocess.set_epoch(epoch)
        preprocess("other", {"speech": wave()})
        return preprocess(uid, {"speech": wave()})["speech"][0]

    np.random.seed(0)
    first = crop()
    np.random.seed(1)
    assert crop() == first
    others = [crop(seed=1), crop(epoch=2), crop(uid="b")]
    assert len({first, *others}) == 4


def test_crops_reach_both_ends_and_short_clips_stay_whole():
    preprocess = ClipPreprocessor(True, max_samples=400)
    speech = np.arange(403, dtype=np.float32)
    starts = set()
    for epoch in range(60):
        preprocess.set_epoch(epoch)
        starts.add(int(preprocess("a", {"speech": speech})["speech"][0]))
    assert starts == {0, 1, 2, 3}
    assert len(preprocess("a", {"speech": wave(399 + 1)})["speech"]) == 400


def test_log_mel_input_is_cut_in_frames():
    preprocess = ClipPreprocessor(False, max_samples=1600, input_size=128)
    frames = np.ones((20, 128), np.float64)
    result = preprocess("a", {"speech": frames})["speech"]
    assert result.shape == (10, 128) and result.dtype == np.float32
    with pytest.raises(ClipError, match="log-mel"):
        preprocess("a", {"speech": np.ones((20, 80), np.float32)})


def test_labels_become_a_vector_in_class_order():
    preprocess = ClipPreprocessor(True, class_list=["cat", "dog", "owl"])
    assert preprocess("a", {"label": "owl cat"})["label"].tolist() == [1.0, 0.0, 1.0]
    assert preprocess("a", {"label": ""})["label"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "options, text, complaint",
    [
        ({"class_list": ["cat"]}, "dog", "clip a has the label dog"),
        ({"class_list": ["cat"], "single_label": True}, "", "clip a has 0 labels"),
        ({}, "cat", "class list"),
    ],
)
def test_wrong_labels_are_an_error_that_names_the_clip(options, text, complaint):
    with pytest.raises(ClipError, match=complaint):
        ClipPreprocessor(True, **options)("a", {"label": text})


def test_a_label_twice_in_the_class_list_is_refused():
    with pytest.raises(ValueError, match="twice"):
        ClipPreprocessor(True, class_list=["cat", "cat"])


def test_collate_pads_with_zeros_and_counts():
    clips = [
        ("a", {"speech": wave(5), "label": np.array([1.0, 0.0], np.float32)}),
        ("b", {"speech": wave(3), "label": np.array([0.0, 1.0], np.float32)}),
    ]
    ids, batch = collate_clips(clips)
    assert ids == ["a", "b"]
    assert batch["speech"].shape == (2, 5) and batch["speech"][1, 3:].tolist() == [0, 0]
    assert batch["speech_lengths"].tolist() == [5, 3]
    assert batch["label"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    frames = [("a", {"speech": np.ones((4, 128), np.float32)})]
    assert collate_clips(frames)[1]["speech"].shape == (1, 4, 128)


def test_an_error_in_a_worker_stays_one_line():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise ClipError("clip x cannot be used: restore it")

    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(ClipError) as caught:
        list(loader)
    assert str(caught.value) == "clip x cannot be used: restore it"
