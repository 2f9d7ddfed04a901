"""Signal metrics and text errors against known numbers."""

import math

import pytest
import torch
from spoken import RATE, made_pair, noise, sine

from higgs.audio import level_dbfs, save_audio
from higgs.evaluate.metrics.codec import compare, counts_to_decode, mean_of, round_trips
from higgs.evaluate.metrics.error_rates import ErrorCounts, character_errors, normalize, word_errors
from higgs.evaluate.metrics.signal import code_usage, log_mel_distance, si_sdr, silence_share, stft_distance, stoi

HALF_IN_DB = 20 * math.log10(2)


# ---- metrics


def test_distances_of_a_change_of_level():
    x = noise()
    assert log_mel_distance(x, x) == stft_distance(x, x) == 0
    assert log_mel_distance(x, x / 2) == pytest.approx(HALF_IN_DB, abs=1e-4)
    assert log_mel_distance(torch.zeros(4800), sine(1000, 1e-8, 4800)) == 0  # the floor: 100 dB below full scale


def test_distances_grow_with_noise_and_misalignment_but_not_with_argument_order():
    x, disturbance = noise(), noise(seed=1)
    for distance in (log_mel_distance, stft_distance):
        values = [distance(x, x + gain * disturbance) for gain in (0.01, 0.1, 1.0)]
        assert values == sorted(values) and values[0] > 0
        assert distance(x[:-960], x[960:]) > distance(x, 1.01 * x) > 0
        assert distance(x, disturbance) == pytest.approx(distance(disturbance, x), rel=1e-12)


def test_si_sdr_of_orthogonal_mixture():
    # 1000 Hz and 3000 Hz over whole periods are orthogonal and have no mean.
    target, other = sine(1000), sine(3000)
    for gain, expected in ((0.1, 20.0), (1.0, 0.0), (10.0, -20.0)):
        assert si_sdr(target, target + gain * other) == pytest.approx(expected, abs=1e-3)
        assert si_sdr(target, -0.3 * (target + gain * other) + 0.5) == pytest.approx(expected, abs=1e-3)
    x = noise()
    assert si_sdr(x, 2 * x) > 200
    assert si_sdr(x, torch.zeros_like(x)) == -math.inf
    with pytest.raises(ValueError, match="constant reference"):
        si_sdr(torch.full((1000,), 0.1), x[:1000])


@pytest.mark.parametrize("metric", [log_mel_distance, stft_distance, si_sdr])
def test_bad_pairs(metric):
    x, broken = noise(4800), noise(4800).index_fill(0, torch.tensor([7]), math.nan)
    pairs = {"4800 samples and estimate 4799": (x, x[:-1]), "empty": (x[:0], x[:0]), "estimate: 1 of 4800": (x, broken)}
    pairs[r"\[L\].*\(1, 4800\)"] = (x[None], x[None])
    if metric is not si_sdr:  # the longest window
        pairs["2048 samples, got 2047"] = (noise(2047), noise(2047))
        assert metric(noise(2048), noise(2048, seed=1)) > 0
    for message, pair in pairs.items():
        with pytest.raises(ValueError, match=message):
            metric(*pair)


def test_code_usage_by_hand():
    codes = torch.tensor([[0, 1, 2, 3], [5, 5, 5, 5], [0, 0, 7, 3]])
    even, single, skewed = code_usage([codes], codebook_size=8)
    sizes = {"codebook_size": 8, "frames": 4}
    assert even == {"codebook": 0, **sizes, "distinct": 4, "entropy_bits": 2.0, "perplexity": 4.0}
    assert single == {"codebook": 1, **sizes, "distinct": 1, "entropy_bits": 0.0, "perplexity": 1.0}
    assert (skewed["codebook"], skewed["distinct"], skewed["entropy_bits"]) == (2, 3, 1.5)
    assert skewed["perplexity"] == pytest.approx(2**1.5)
    assert code_usage([codes[:, :1], codes[:, 1:]], 8) == [even, single, skewed]
    for wrong, message in (([[0, 8]], r"0\.\.8, outside 0\.\.7"), ([[0, -1]], r"-1\.\.0"), ([[]], "no codes")):
        with pytest.raises(ValueError, match=message):
            code_usage([torch.tensor(wrong, dtype=torch.long)], 8)


def test_level_and_silence_of_known_signals():
    assert level_dbfs(sine(1000)) == pytest.approx(10 * math.log10(0.5), abs=1e-4)
    assert level_dbfs(torch.full((100,), 0.1)) == pytest.approx(-20, abs=1e-4)
    # three frames of 480 samples at -20 dBFS, one at -60 dBFS
    loud, quiet = torch.full((3 * 480,), 0.1), torch.full((480,), 1e-3)
    mixed = torch.cat([loud, quiet, torch.ones(479)])  # the last frame is not full
    assert silence_share(mixed, 24_000) == 0.25
    assert silence_share(torch.zeros(960), 24_000) == 1
    for wrong, message in ((torch.zeros(479), "480 samples, .* has 479"), (torch.full((960,), math.nan), "NaN")):
        with pytest.raises(ValueError, match=message):
            silence_share(wrong, 24_000)


def test_metrics_agree_with_reference_packages():
    """librosa 0.11.0 (mel spectra), auraloss 0.4.0 (STFT), torchmetrics 1.9.0, pystoi 0.4.1 on the same signals."""
    clean, degraded = made_pair()
    # librosa.feature.melspectrogram(power=1, htk=True, norm=None, pad_mode="reflect"), scaled and floored likewise
    assert log_mel_distance(clean, degraded, RATE) == pytest.approx(6.167618, abs=1e-4)
    # auraloss.freq.STFTLoss: 2 / ln 10 of its logarithmic term and its linear term, windows 2048 and 512
    assert stft_distance(clean, degraded) == pytest.approx(2.421338, abs=1e-4)
    # scale_invariant_signal_distortion_ratio(zero_mean=True)
    assert si_sdr(clean, degraded) == pytest.approx(14.613604, abs=1e-4)
    assert stoi(clean, degraded, RATE) == pytest.approx(0.4870713, abs=1e-6)


def test_stoi_is_not_defined_for_a_moment():
    x = noise(RATE)
    assert stoi(x[:9120], x[:9120], RATE) is stoi(x[:100], x[:100], RATE) is None  # 0.38 s
    assert stoi(x[:10_800], x[:10_800], RATE) == pytest.approx(1)
    with pytest.raises(ValueError, match="24000 samples and estimate 23999"):
        stoi(x, x[:-1], RATE)


class Bits:
    """A codec whose codebooks are bits of a sample, the first the highest."""

    sample_rate = RATE

    def encode(self, waveform, pad_to_hop):
        assert pad_to_hop
        levels = ((waveform + 1) * 128).long().clamp(0, 255)
        return torch.stack([(levels >> (7 - bit)) & 1 for bit in range(8)])

    def decode(self, codes):
        place = torch.tensor([2 ** (7 - bit) for bit in range(len(codes))])
        return (codes * place[:, None]).sum(dim=0) / 128 - 1 + 0.5 ** len(codes)


def test_what_each_further_codebook_adds(tmp_path):
    save_audio(tmp_path / "a.wav", made_pair(RATE)[0].float(), RATE)
    counts = counts_to_decode([4, 2, 8], 8)
    trip = round_trips(Bits, counts, True)((tmp_path / "a.wav", None))
    rows = trip.distances
    assert [row["codebooks"] for row in rows] == counts == counts_to_decode([2, 4], 8) == [2, 4, 8]
    for column, sign in (("mel_db", -1), ("stft", -1), ("si_sdr_db", 1), ("stoi", 1)):
        values = [sign * row[column] for row in rows]
        assert values == sorted(values), column
    decoded = Bits().decode(trip.codes)
    assert torch.equal(trip.decoded, decoded)
    assert rows[-1] == {"codebooks": 8} | compare(trip.recorded, decoded, RATE)
    unknown = {"codebooks": 8, "stoi": None}
    assert mean_of([*rows, unknown], "stoi", codebooks=8) == rows[-1]["stoi"]
    assert mean_of([unknown], "stoi", codebooks=8) is None
    with pytest.raises(ValueError, match="9"):
        counts_to_decode([9], 8)


@pytest.mark.parametrize(
    ("waveform", "undefined"),
    [
        (torch.zeros(RATE), {"si_sdr_db", "stoi"}), (torch.full((RATE,), 0.1), {"si_sdr_db", "stoi"}),
        (0.1 * noise(1500).float(), {"mel_db", "stft", "stoi"}), (0.1 * noise(RATE).float(), set()),
    ],
)  # fmt: skip
def test_a_clip_without_a_distance_takes_no_other_along(tmp_path, waveform, undefined):
    path = tmp_path / "clip.wav"
    save_audio(path, waveform, RATE)
    (distances,) = round_trips(Bits, [8], True)((path, None)).distances
    assert {name for name, value in distances.items() if value is None} == undefined
    assert mean_of([distances, {"codebooks": 8, "stft": 3.0}], "stft", codebooks=8) is not None
    with pytest.raises(ValueError, match="no row has"):
        mean_of([distances], "stft", codebooks=7)
    with pytest.raises(ValueError, match="lengths must be equal"):
        compare(waveform, waveform[:-1], RATE)


# ---- text


def test_word_errors_by_kind():
    errors = word_errors("the cat sat on the mat", "a cat really sat on mat")
    assert errors == ErrorCounts(substitutions=1, deletions=1, insertions=1, hits=4)
    assert (errors.errors, errors.total, errors.rate) == (3, 6, 0.5)


def test_english_normalisation_forgives_writing_and_not_words():
    for reference, hypothesis, errors in (
        ("Hello, world!", "hello world", 0), ("It's fifty dollars.", "it is $50", 0), ("fifteen", "fifty", 1),
        ("Can't you?", "can not you", 0), ("Doctor Smith", "Dr. Smith", 0), ("colour", "collar", 1),
        ("The colour of aluminium", "the color of aluminum", 0), ("one hundred and twenty three", "123", 0),
    ):  # fmt: skip
        assert word_errors(reference, hypothesis).errors == errors, reference


# What a recogniser writes for the same words; below, what sounds otherwise.
SAME = [
    ("Take plan B. I like it.", "Take plan B, I like it."),
    ("J. R. Lee", "J.R. Lee"),
    ("at ten thirty", "at 10:30"),
    ("at ten oh five", "at 10:05"),
    ("ten o'clock", "10:00"),
    ("seven p.m.", "7 PM"),
    ("at seven a.m.", "at 7am"),
    ("from nine a.m. to five p.m.", "from 9am-5pm"),
    ("at seven thirty p.m.", "at 7:30 PM"),
    ("the U.S. Army", "the US army"),
    ("the U. S. Army", "The U S Army"),
    ("the B.B.C.", "the BBC"),
    ("the B B C", "the BBC"),
    ("A.I. is here", "AI is here"),
    ("The US won.", "THE U S WON"),
    ("The US won.", "THE US WON"),
    ("twenty degrees Celsius", "20 °C"),
    ("five kilometers", "5 km"),
    ("five kilometres an hour", "5 km an hour"),
    ("sixty kilometers per hour", "60 km/h"),
    ("two point five kilograms", "2.5 kg"),
    ("five feet", "5 ft"),
    ("fifty percent", "50%"),
    ("five to ten percent", "5-10%"),
    ("three quarters of it", "3/4 of it"),
    ("number five", "No. 5"),
    ("Henry the Eighth", "Henry VIII"),
    ("Smith and Sons", "Smith & Sons"),
    ("the first of May, nineteen forty five", "the 1st of May, 1945"),
    ("in nineteen eighty four", "in 1984"),
    ("two plus two equals four", "2 + 2 = 4"),
    ("okay then", "OK then"),
    ("Okay.", "O.K."),
    ("twelve dollars and fifty cents", "$12.50"),
    ("five million pounds", "£5m"),
    ("Doctor Lee and Mister Fox", "Dr. Lee and Mr. Fox"),
]
OTHER = [
    ("at ten thirty", "at 10:13"),
    ("seven p.m.", "7 AM"),
    ("half past ten", "10:30"),
    ("ten o'clock", "10"),
    ("They told us.", "They told U.S."),
    ("They told us.", "They told US."),
    ("who is it", "WHO is it, the WHO"),
    ("I am here", "I p.m. here"),
    ("twenty degrees Celsius", "20 °F"),
    ("twenty degrees", "20 °C"),
    ("five kilometers", "5 miles"),
    ("five meters", "5 mm"),
    ("fifteen percent", "50%"),
    ("five percent", "5"),
    ("five pounds", "$5"),
    ("number five", "5"),
    ("Henry the Eighth", "Henry VII"),
    ("B. Smith", "P. Smith"),
    ("Plan B I like", "Plan BI like"),
    ("It is a b c.", "It is ABD."),
    ("three quarters", "1/4"),
    ("two plus two", "2 - 2"),
    ("first of May", "2nd of May"),
    ("Saint Lee", "Street Lee"),
    ("okay", "oak"),
    ("one", "won"),
]


@pytest.mark.parametrize(("reference", "hypothesis"), SAME)
def test_figures_and_short_forms_of_the_same_words_are_no_errors(reference, hypothesis):
    assert word_errors(reference, hypothesis).errors == word_errors(hypothesis, reference).errors == 0
    assert character_errors(reference, hypothesis).errors == 0


@pytest.mark.parametrize(("reference", "hypothesis"), OTHER)
def test_other_words_stay_errors(reference, hypothesis):
    assert word_errors(reference, hypothesis).errors and word_errors(hypothesis, reference).errors


def test_figures_in_chinese():
    for reference, hypothesis in (
        ("十点三十分见", "10:30见"),
        ("百分之五十", "50%"),
        ("二零二四年五月三日", "2024年5月3日"),
    ):
        assert character_errors(reference, hypothesis, "zh").errors == 0
    assert character_errors("百分之五十", "15%", "zh").errors and character_errors("十点", "11点", "zh").errors


def test_other_languages_and_characters():
    assert normalize("¿Qué tal, señor?", "es") == "qué tal señor"
    assert normalize("Colour uno", "es") == "colour uno"  # not the English spelling
    assert word_errors("L'été, déjà", "l'ete déjà", "fr") == ErrorCounts(1, 0, 0, 2)
    assert word_errors("你好世界", "你好", "zh") == ErrorCounts(0, 2, 0, 2)
    assert character_errors("你好世界", "你 好世", "zh") == ErrorCounts(0, 1, 0, 3)
    assert character_errors("abc", "abd") == ErrorCounts(1, 0, 0, 2)
    errors = character_errors("cat sat", "cats at")
    assert (errors.total, errors.errors) == (7, 2)
    with pytest.raises(ValueError, match="'English'"):
        word_errors("a", "a", "English")


@pytest.mark.parametrize("hypothesis", ["the us economy grew", "I", "A", "OK.", "US", "", "The US economy grew."])
def test_the_words_of_a_reference_are_as_many_whatever_was_heard(hypothesis):
    assert word_errors("The US economy grew.", hypothesis).total == 5
    assert character_errors("The US economy grew.", hypothesis).total == 20


def test_an_empty_hypothesis_deletes_everything_and_an_empty_reference_is_an_error():
    for hypothesis in ("", "  ", "...", "[noise]"):
        assert word_errors("a b c", hypothesis) == ErrorCounts(0, 3, 0, 0)
        assert character_errors("a b c", hypothesis) == ErrorCounts(0, 5, 0, 0)
        with pytest.raises(ValueError, match="no words"):
            word_errors(hypothesis, "something")


@pytest.mark.parametrize(
    "text", ["I don’t know.", "I donʼt know.", "I don\u00adʼt know.", "I don´t\u200b know.", "Ｉ don't know."]
)
def test_the_spelling_of_an_apostrophe_is_no_error(text):
    assert word_errors("I don't know.", text).errors == word_errors(text, "I don't know.").errors == 0
