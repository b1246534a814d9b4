"""Batches without padding: which parts of recordings are in them, how they are read."""

import logging
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from espnet2.train.distributed_utils import DistributedOption
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet2_sslam import mixing
from espnet2_sslam.audio import AudioError, read_audio, read_part
from espnet2_sslam.corpus import padding_share
from espnet2_sslam.masking import inverse_block_mask
from espnet2_sslam.tasks import (
    ClipDataset,
    ClipError,
    ClipPreprocessor,
    ClipSampler,
    Crop,
    CropSampler,
    EpochIterFactory,
    SSLAMTask,
    collate_clips,
    read_lengths,
)
from tests.corpus_case import cut, noise, real_audio
from tests.toy_task import arguments, assert_same, state

SECOND = 16_000


def recordings(seconds, size=16, frames=1024, rank=0, **options):
    """The sampler of recordings of these lengths in seconds, called 0, 1, ..."""
    options = {"train": True, "min_clips_per_rank": 2, "mixture": True, **options}
    lengths = (np.asarray(seconds) * SECOND).astype(int)
    keys = [str(number) for number in range(len(lengths))]
    return CropSampler(keys, lengths, size, clip_frames=frames, rank=rank, **options)


def crops(sampler, number=0):
    return [crop for batch in sampler.generate(number) for crop in batch]


@settings(deadline=None, max_examples=150)
@given(
    seconds=st.lists(st.floats(0.5, 100), min_size=2, max_size=40),
    size=st.integers(2, 20),
    world=st.integers(1, 3),
    mixture=st.booleans(),
    train=st.booleans(),
    drop=st.booleans(),
    number=st.integers(0, 5),
)
def test_no_crop_is_padded_or_mixed_with_its_own_recording_on_any_rank(
    seconds, size, world, mixture, train, drop, number
):
    least = 2 if mixture else 1
    options = {
        "train": train,
        "mixture": mixture,
        "drop_last": drop,
        "world_size": world,
    }
    options["min_clips_per_rank"] = least
    try:
        ranks = [recordings(seconds, size, rank=r, **options) for r in range(world)]
    except ValueError as error:
        assert "too small" in str(error) or "too few" in str(error)
        return
    seen = Counter()
    for parts in zip(*(rank.generate(number) for rank in ranks), strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= least
        [length] = {crop.size for part in parts for crop in part}
        assert (length - 240) % 2560 == 0 and 48 <= (length - 240) // 160 <= 1024
        for part in parts:
            for crop in part:
                end = int(seconds[int(crop.uid)] * SECOND)
                assert 0 <= crop.start <= end - length
            ids = [crop.uid for crop in part]
            if mixture:
                assert all(a != b for a, b in zip(ids, ids[1:] + ids[:1], strict=True))
            seen.update(ids)
    if not (train and drop):
        assert set(seen) == {str(index) for index in range(len(seconds))}
        limits = [max(1, round((s * SECOND - 240) / 163840)) for s in seconds]
        assert all(seen[str(i)] <= n for i, n in enumerate(limits))
        assert mixture or seen.total() == sum(limits)


def test_recordings_are_sampled_by_duration():
    sampler = recordings([600] * 300, 48, frames=1000)
    drawn = crops(sampler)
    assert len(drawn) == 18_000
    assert {crop.size for crop in drawn} == {992 * 160 + 240}
    mixed = recordings([100, 20, 5, 1], 2, mixture=False)
    assert Counter(crop.uid for crop in crops(mixed)) == {
        "0": 10,
        "1": 2,
        "2": 1,
        "3": 1,
    }
    assert (
        "4 recordings, 0.03 h; a pass is 14 crops of 1024 frames (median)"
        in mixed.describe()
    )


@pytest.mark.parametrize("world", [1, 4])
def test_crops_of_a_recording_are_in_different_batches_where_there_are_enough(world):
    ranks = [
        recordings([600] * 100, 48, rank=r, world_size=world) for r in range(world)
    ]
    for number in range(2):
        for parts in zip(*(rank.generate(number) for rank in ranks), strict=True):
            ids = [crop.uid for part in parts for crop in part]
            assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("seconds", [5.3, 11.0, 14.0, 30.0, 107.0])
def test_all_of_a_recording_is_heard_about_equally_often(seconds):
    sampler = recordings([seconds] * 20, 4)
    heard = np.zeros(int(seconds * 20))
    passes = 100
    for number in range(passes):
        for crop in crops(sampler, number):
            first, end = crop.start // 800, (crop.start + crop.size) // 800
            heard[first:end] += 1 / passes / 20
    length = crop.size / SECOND
    inner = slice(int(length * 20) + 1, -int(length * 20) - 1)
    if seconds > 2 * length:
        assert heard[inner].min() > 0.9 * heard[inner].mean()
        assert heard[inner].max() < 1.1 * heard[inner].mean()
    assert heard.min() > 0.3 * heard.mean()
    assert heard[: len(heard) // 2].sum() == pytest.approx(heard.sum() / 2, rel=0.05)


def test_lengths_in_a_batch_are_nearly_equal_and_partners_change():
    seconds = np.random.default_rng(0).uniform(0.5, 10, 2000)
    sampler = recordings(seconds, 16)
    first, second = (sampler.generate(number) for number in (0, 1))
    for batch in first:
        lengths = [seconds[int(crop.uid)] for crop in batch]
        assert max(lengths) < 1.25 * min(lengths) + 0.1
    sizes = [batch[0].size for batch in first]
    assert sizes != sorted(sizes) and sizes != sorted(sizes, reverse=True)
    pairs = [
        {frozenset((a.uid, b.uid)) for x in p for a in x for b in x}
        for p in (first, second)
    ]
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])
    heard = sum(crop.size - 240 for crop in crops(sampler)) / SECOND / seconds.sum()
    assert 0.85 < heard < 1


def test_draws_depend_on_seed_and_pass_alone_and_validation_on_neither():
    seconds = np.linspace(0.6, 40, 30)

    def make(**options):
        return recordings(seconds, 4, **options)

    assert make(seed=5).generate(2) == make(seed=5).generate(2)
    assert make(seed=5).generate(2) != make(seed=6).generate(2)
    assert make(seed=5).generate(6) != make(seed=5).generate(5)
    once = make(train=False).generate(0)
    assert once == make(train=False, seed=3).generate(7)
    ranks = [make(train=False, rank=r, world_size=2).generate(1) for r in (0, 1)]
    assert [set(batch) for batch in once] == [
        {*a, *b} for a, b in zip(*ranks, strict=True)
    ]


def test_weights_draw_recordings_each_for_one_crop():
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    sampler = recordings([50, 50, 2, 30], 3, weights=weights, num_samples=3)
    drawn = [crops(sampler, number) for number in range(20)]
    assert all({crop.uid for crop in each} == {"0", "2", "3"} for each in drawn)
    starts = {crop.start for each in drawn for crop in each if crop.uid == "0"}
    assert len(starts) == 20 and max(starts) > 40 * SECOND and min(starts) < 8 * SECOND


def test_too_short_recordings_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        sampler = recordings([0.2, 0.4, 0.6, 0.7], 2)
    assert "2 of 4 clips are left out: shorter than 0.495 s (48 frames)" in caplog.text
    assert {crop.uid for crop in crops(sampler)} == {"2", "3"}
    with pytest.raises(
        ValueError, match="all 2 clips are shorter than 0.495 s"
    ) as error:
        recordings([0.2, 0.4], 2)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="list of validation has one .* --valid_share"):
        recordings([0.2, 600], 2, train=False)
    alone = recordings([600], 2, mixture=False, min_clips_per_rank=1)
    assert len(crops(alone)) == 59


def test_a_pass_that_hears_little_is_warned_of_with_the_remedy(caplog):
    unequal = [1, *[10.24] * 15]
    assert " crops of 96 frames (median)" in recordings(unequal, 16).describe()
    assert "a pass hears 10 % of the audio: lower --batch_size 16" in caplog.text
    assert "--cut 10" in caplog.text
    caplog.clear()
    recordings(unequal, 4).describe()
    assert not caplog.text


def test_a_recording_that_has_no_partners_gives_fewer_crops(caplog):
    with caplog.at_level(logging.WARNING):
        sampler = recordings([600, 600, 11], 8)
    assert "could not be mixed with other recordings" in caplog.text
    assert len(crops(sampler)) > 100
    assert len(crops(recordings([600, 11, 11], 8))) == 4


@pytest.mark.parametrize("steps", range(3, 65))
def test_the_shares_hidden_and_unmixed_hold_to_a_patch_for_every_length(steps):
    generator = torch.Generator().manual_seed(steps)
    mask = inverse_block_mask(50, steps, generator)
    hidden = mask.sum(1).unique()
    assert len(hidden) == 1 and abs(int(hidden) - 0.8 * 8 * steps) < 1
    unmixed = mixing.unmixed_steps(mixing.draw_regions(steps, generator, 50), steps)
    count = unmixed.sum(1).unique()
    assert len(count) == 1
    assert abs(int(count) - 30 / 64 * steps) <= 1 or steps == 3


# Reading


@pytest.mark.parametrize(
    "form, subtype",
    [
        ("wav", "PCM_16"),
        ("wav", "FLOAT"),
        ("flac", "PCM_24"),
        ("ogg", "VORBIS"),
        ("mp3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_part_of_a_file_equals_the_slice_of_it(tmp_path, form, subtype, channels):
    path = str(tmp_path / f"a.{form}")
    soundfile.write(path, noise(300_000, channels=channels), SECOND, subtype=subtype)
    whole = soundfile.read(path, dtype="float32")[0]
    for start, end in ((0, 5), (7, 7), (123_456, 223_457), (290_000, len(whole))):
        part, rate = read_part(path, lambda n, part=(start, end): part)
        assert rate == SECOND and part.dtype == np.float32
        if form == "mp3":  # whose decoder rounds one way or the other
            np.testing.assert_allclose(part, whole[start:end], atol=1e-6)
        else:
            np.testing.assert_array_equal(part, whole[start:end])
    assert read_part(path, lambda n: (n - 9, n))[0].shape[0] == 9


def test_a_part_that_a_file_has_lost_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(300_000), SECOND)
    with pytest.raises((AudioError, soundfile.SoundFileError)):
        read_part(str(cut(tmp_path / "a.flac")), lambda n: (n - 50_000, n))


def write_corpus(folder, seconds, form="wav"):
    """wav.scp and utt2num_samples of noise of these lengths."""
    folder.mkdir(parents=True)
    scp, counts = [], []
    for number, length in enumerate(seconds):
        samples = 0.1 * noise(int(length * SECOND), number)
        soundfile.write(folder / f"{number:03d}.{form}", samples, SECOND)
        scp.append(f"{number:03d} {folder}/{number:03d}.{form}\n")
        counts.append(f"{number:03d} {len(samples)}\n")
    (folder / "wav.scp").write_text("".join(scp))
    (folder / "utt2num_samples").write_text("".join(counts))
    return folder


def write_arks(folder):
    """feats.scp and utt2num_frames of random log-mel with the lengths of the audio."""
    import kaldiio

    generator = np.random.default_rng(0)
    lines = (folder / "utt2num_samples").read_text().splitlines()
    sizes = {key: (int(n) - 240) // 160 for key, n in map(str.split, lines)}
    arrays = {
        key: generator.normal(-5, 4, (frames, 128)).astype(np.float32)
        for key, frames in sizes.items()
    }
    kaldiio.save_ark(str(folder / "f.ark"), arrays, scp=str(folder / "feats.scp"))
    counts = "".join(f"{key} {frames}\n" for key, frames in sizes.items())
    (folder / "utt2num_frames").write_text(counts)
    return arrays


def test_a_crop_of_audio_or_log_mel_is_a_slice_of_the_clip(tmp_path):
    folder = write_corpus(tmp_path / "c", [3, 2], "flac")
    arrays = write_arks(folder)
    audio = ClipDataset(
        [(f"{folder}/wav.scp", "speech", "sound")], preprocess=ClipPreprocessor(True)
    )
    whole = audio["000"][1]["speech"]
    uid, data = audio[Crop("000", 7001, 12_000)]
    assert uid == "000"
    np.testing.assert_array_equal(data["speech"], whole[7001:19_001])
    features = ClipDataset(
        [(f"{folder}/feats.scp", "speech", "kaldi_ark")],
        preprocess=ClipPreprocessor(True, input_size=128),
    )
    np.testing.assert_array_equal(features["001"][1]["speech"], arrays["001"])
    part = features[Crop("001", 30, 64)][1]["speech"]
    np.testing.assert_array_equal(part, arrays["001"][30:94])
    with pytest.raises(ClipError, match="clip 001 has 32000 .*, the list of lengths"):
        audio[Crop("001", 0, 40_000)]


@pytest.mark.parametrize("kind", ["sound", "kaldi_ark"])
def test_a_random_cut_of_a_long_clip_reads_the_same_part_without_the_rest(
    tmp_path, monkeypatch, kind
):
    folder = write_corpus(tmp_path / "c", [3], "flac")
    write_arks(folder)
    name, size = ("wav.scp", 1) if kind == "sound" else ("feats.scp", 128)
    options = {"max_samples": 16_000, "seed": 3, "input_size": size}
    train, plain = ClipPreprocessor(True, **options), ClipPreprocessor(
        True, input_size=size
    )
    data = [(f"{folder}/{name}", "speech", kind)]
    whole = ClipDataset(data, preprocess=plain)["000"][1]["speech"]
    dataset = ClipDataset(data, preprocess=train)
    monkeypatch.setattr(type(dataset.loader_dict["speech"]), "__getitem__", None)
    for epoch in range(3):
        train.set_epoch(epoch)
        part = dataset["000"][1]["speech"]
        np.testing.assert_array_equal(part, train("000", {"speech": whole})["speech"])
        assert len(part) == (16_000 if size == 1 else 100)


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_lengths_come_from_a_list_or_else_from_the_headers(tmp_path, form):
    folder = write_corpus(tmp_path / "c", [0.5, 1.25, 0.75], form)
    write_arks(folder)
    keys, samples, frames = ["002", "000"], [12_000, 8000], [73, 48]
    audio = [(f"{folder}/wav.scp", "speech", "sound")]
    log_mel = [(f"{folder}/feats.scp", "speech", "kaldi_ark")]
    shapes = tmp_path / "speech_shape"
    shapes.write_text("000 48,128\n001 123,128\n002 73,128\n")

    def lengths():
        return (
            read_lengths(keys, audio).tolist(),
            read_lengths(keys, log_mel, input_size=128).tolist(),
        )

    assert lengths() == (samples, frames)
    listed = read_lengths(keys, log_mel, [str(shapes)], 128)
    assert listed.tolist() == frames
    # the samples of the dump say nothing about the frames of its features
    other = [f"{folder}/utt2num_samples"]
    assert read_lengths(keys, log_mel, other, 128).tolist() == frames
    for name in ("utt2num_samples", "utt2num_frames"):
        (folder / name).unlink()
    assert lengths() == (samples, frames)
    shapes.write_text("000 48,128\n002 many\n")
    with pytest.raises(ValueError, match="line 2: the length of 002 is 'many'"):
        read_lengths(keys, log_mel, [str(shapes)], 128)
    shapes.write_text("000 48,128\n")
    with pytest.raises(ValueError, match="lacks 1 of 2 clips, the first is 002"):
        read_lengths(keys, log_mel, [str(shapes)], 128)
    (folder / f"002.{form}").unlink()
    with pytest.raises(ValueError, match="clip 002 cannot be read"):
        read_lengths(["002"], audio)


# Through the task

MODEL = (
    "{clip_frames: 128, clone_batch: 2, mask_block_size: 2, mixture: true, "
    "decoder_conf: {num_layers: 1, groups: 2}}"
)


def options(data, folder, *more):
    """Options of a small phase 2."""
    encoder = ["--encoder_conf", "{embed_dim: 16, depth: 1, num_heads: 2}"]
    words = ["--model_conf", MODEL, "--scheduler_conf", "total_steps=90"]
    return arguments(*data, folder, *encoder, *words, *more)


def batches(data, folder, *more, epoch=1, mode="train"):
    """The model of a training and the batches of an epoch."""
    args = SSLAMTask.get_parser().parse_args(options(data, folder, *more))
    if not (data[0] / "utt2num_samples").exists():
        args.train_shape_file, args.valid_shape_file = [], []
    SSLAMTask.check_and_complete(args)
    factory = SSLAMTask.build_iter_factory(args, DistributedOption(), mode)
    return SSLAMTask.build_model(args), list(factory.build_iter(epoch))


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """Clips as long as spoken digits, and two recordings."""
    folder = tmp_path_factory.mktemp("noises")
    seconds = np.random.default_rng(1).uniform(0.5, 1.4, 24)
    train = write_corpus(folder / "train", [*seconds, 9, 12])
    return train, write_corpus(folder / "valid", seconds[:6])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Real spoken digits without a list of their lengths, many below half a second."""
    files = sorted(real_audio("fsdd-mini").rglob("*.flac"))[::10]
    folder = tmp_path_factory.mktemp("digits")
    sets = []
    for name, some in (("train", files), ("valid", files[::3])):
        (folder / name).mkdir()
        scp = []
        for path in some:
            soundfile.write(folder / name / path.name, read_audio(path), SECOND)
            scp.append(f"{path.stem} {folder / name / path.name}\n")
        (folder / name / "wav.scp").write_text("".join(scp))
        sets.append(folder / name)
    return sets


@pytest.mark.parametrize("rule", mixing.MIXING_RULES)
@pytest.mark.parametrize("corpus", ["noises", "digits"])
def test_nothing_is_padded_and_a_mixture_holds_nothing_but_its_two_clips(
    request, tmp_path, corpus, rule
):
    data = request.getfixturevalue(corpus)
    model, found = batches(data, tmp_path, "--model_conf", f"mixing_rule={rule}")
    padding = -float(model.encoder.log_mel.mean) / (
        2 * float(model.encoder.log_mel.std)
    )
    lengths = set()
    for _, batch in found:
        speech, sizes = batch["speech"], batch["speech_lengths"]
        assert sizes.unique().tolist() == [speech.shape[1]]
        steps = model.common_steps(speech, sizes)
        lengths.add(steps)
        assert speech.shape[1] == steps * 2560 + 240 and 3 <= steps <= 8
        draws = model.draw(len(speech), torch.Generator().manual_seed(0), steps)
        unmixed, mixed = model.student_inputs(speech, sizes, draws)
        assert unmixed.shape[1] == mixed.shape[1] == 16 * steps
        for frames in (unmixed, mixed):
            assert not (frames == padding).all(-1).any()
        other = unmixed.roll(1, 0)
        if rule == "max":
            assert torch.logical_or(mixed == unmixed, mixed == other).all()
            assert (mixed >= unmixed).all()
        keep = mixing.unmixed_steps(draws.regions, steps)[0].repeat_interleave(16)
        torch.testing.assert_close(mixed[:, keep], unmixed[:, keep], atol=1e-3, rtol=0)
    assert len(lengths) > 2


def assert_equal_batches(one, other):
    for (ids, batch), (same, again) in zip(one, other, strict=True):
        assert ids == same and torch.equal(batch["speech"], again["speech"])


def test_validation_hears_the_same_crops_in_every_epoch(noises, tmp_path):
    first, *others = (
        batches(noises, tmp_path, "--seed", seed, epoch=epoch, mode="valid")[1]
        for seed, epoch in (("0", 1), ("0", 3), ("1", 2))
    )
    for other in others:
        assert_equal_batches(first, other)


def test_crops_do_not_depend_on_the_number_of_workers(noises, tmp_path):
    one, two = (
        batches(noises, tmp_path, "--num_workers", number, epoch=2)[1]
        for number in ("0", "2")
    )
    assert_equal_batches(one, two)


def test_a_resumed_training_takes_the_same_crops(noises, tmp_path):
    more = ["--max_epoch", "2", "--num_iters_per_epoch", "3"]
    SSLAMTask.main(cmd=options(noises, tmp_path / "whole", *more))
    SSLAMTask.main(cmd=options(noises, tmp_path / "parts", *more, "--max_epoch", "1"))
    SSLAMTask.main(cmd=options(noises, tmp_path / "parts", *more, "--resume", "true"))
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    with pytest.raises(ValueError, match="--padding none, this run has authors"):
        other = ["--padding", "authors", "--resume", "true"]
        SSLAMTask.main(cmd=options(noises, tmp_path / "parts", *more, *other))


def test_a_training_from_before_the_option_is_resumed_as_the_authors(noises, tmp_path):
    words = options(
        noises, tmp_path / "exp", "--padding", "authors", "--max_epoch", "1"
    )
    SSLAMTask.main(cmd=words)
    config = tmp_path / "exp/config.yaml"
    config.write_text(config.read_text().replace("padding: authors\n", ""))
    with pytest.raises(ValueError, match="--padding authors, this run has none"):
        SSLAMTask.main(cmd=[*words, "--padding", "none", "--resume", "true"])
    SSLAMTask.main(cmd=[*words, "--resume", "true"])
    assert SSLAMTask.build_model_from_file(config)[0].padding == "authors"


def test_the_authors_way_is_every_clip_once_from_its_start_or_a_random_place(
    noises, tmp_path, caplog
):
    """What trainings were before there was another way."""
    with caplog.at_level(logging.WARNING):
        model, found = batches(noises, tmp_path, "--padding", "authors")
    keys = [line.split()[0] for line in open(f"{noises[0]}/wav.scp")]
    sampler = ClipSampler(keys, 4, train=True, min_clips_per_rank=2)
    preprocess = ClipPreprocessor(True, max_samples=128 * 160 + 240)
    dataset = ClipDataset(
        [(f"{noises[0]}/wav.scp", "speech", "sound")], preprocess=preprocess
    )
    factory = EpochIterFactory(dataset, sampler, collate_fn=collate_clips)
    for (ids, one), (same, two) in zip(found, factory.build_iter(1), strict=True):
        assert ids == same and torch.equal(one["speech"], two["speech"])
        draws = model.draw(len(ids), torch.Generator().manual_seed(0))
        inputs = model.student_inputs(one["speech"], one["speech_lengths"], draws)
        assert inputs[0].shape[1] == inputs[1].shape[1] == 128
    assert "of the frames are padding" in caplog.text
    assert (
        "--padding none, or set model_conf clip_frames to less than 128" in caplog.text
    )


def test_the_share_of_padding_counts_what_is_filled_up():
    assert padding_share(np.array([50, 100, 400]), 100) == pytest.approx(1 / 6)
    assert padding_share(np.array([998]), 1024) == pytest.approx(26 / 1024)


def test_the_start_says_what_is_heard(noises, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        batches(noises, tmp_path, "--accum_grad", "2", "--num_iters_per_epoch", "2")
    assert "26 recordings, 0.01 h; a pass is" in caplog.text
    assert "% of the audio" in caplog.text and "updates" in caplog.text
