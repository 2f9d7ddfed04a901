"""Making the default checkpoint: its parts against hand-made cases, and each job for a few steps on noise."""

import gzip
import importlib
import json
import random
import signal
import subprocess
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_close

from higgs import Engine
from higgs.codec.acoustic import snake
from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.config import CodecConfig, SamplingConfig, SemanticConfig
from higgs.data.chatml import ROLES, smart_voice
from higgs.data.text.lexicon import SPELL, Lexicon
from higgs.data.text.tokenizer import TextTokenizer
from higgs.files import sha256
from higgs.train.checkpointing import load_state, read_log, save_state, warmup_stable_decay
from higgs.train.losses import autocast, best_dtype
from training.corpus import corpus as make_corpus
from training.corpus.kokoro import blends
from training.corpus.shards import KOKORO, RANDOM, Shards, choose_balanced, group_of, sampling_weights
from training.corpus.texts import ngrams
from training.corpus.voices import IN_HOUSE, SHARES, choose_speaker, finished, source_dsp
from training.nano import assemble, augmented, codec, finishing, gpu, job, quantizer
from training.nano import snake as fast_snake
from training.nano.alignment import CHARACTERS, align, marked_texts, num_symbols, symbols_of, viterbi
from training.nano.augmented import Change, augment
from training.nano.byte_tokenizer import byte_tokenizer
from training.nano.cloning import AugmentedCorpus, CloningConfig, CloningJob, reference_frames
from training.nano.conversations import LONG, SHORT, Corpus, make_batch, plan
from training.nano.discriminators import Discriminators
from training.nano.model import ModelJob, TrainingConfig, text_tokenizer
from training.nano.muon import Muon, orthogonalised
from training.nano.sizes import NANO_MODEL
from training.nano.vq_ema import CodebookEMA, QuantizerTrainer

LEXICON = Lexicon("həlOjnʌmbɚ", {"hello": "həlO", "you": "jO", "number": "nʌmbɚ"})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As every job has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_as(symbols, lexicon=None):
    """CTC symbols as what they stand for."""
    return "".join((CHARACTERS + (lexicon.phonemes if lexicon else ""))[s - 1] for s in symbols)


@pytest.mark.parametrize(
    ("text", "lexicon", "read", "positions"),
    [
        ("Hi,  you!", None, "hi you", [0, 1, 2, 5, 6, 7]),
        ("Hi, you  hello!", LEXICON, "hi jO həlO", [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]),
        # A spelled word sounds as its phonemes, here five for six letters; an unknown one is its letters.
        (f"A {SPELL}number, you.", LEXICON, "a nʌmbɚ jO", [0, 1, 2, 3, 4, 5, 6, 8, 10, 11]),
        (f"{SPELL}Xylem.", LEXICON, "xylem", [0, 1, 2, 3, 4]),
    ],
)
def test_symbols_and_their_positions(text, lexicon, read, positions):
    symbols, found = symbols_of(text, lexicon)
    assert read_as(symbols, lexicon) == read and found == positions
    assert max(symbols) < num_symbols(lexicon)


@pytest.mark.parametrize("text", ["Hello, you!", f"A {SPELL}number 5, you", "Zany [SPEAKER1] hello"])
def test_positions_are_those_of_text_tokens(text):
    """At the position of a phoneme or a letter the text tokenizer has its token."""
    tokenizer = TextTokenizer(byte_tokenizer(LEXICON.tokens), LEXICON)
    ids = tokenizer.encode(text)
    for symbol, position in zip(*symbols_of(text, LEXICON), strict=True):
        read = tokenizer.decode([ids[position]])
        if symbol > len(CHARACTERS) and SPELL not in text:
            assert read == LEXICON.phonemes[symbol - 1 - len(CHARACTERS)]
        elif 1 < symbol <= len(CHARACTERS):
            assert read.lower() == CHARACTERS[symbol - 1]


def posteriors_of(symbols):
    return np.where(np.arange(30) == np.array(symbols)[:, None], -0.01, -20.0)


def test_the_best_path_of_a_text():
    spoken = [0, 3, 3, 0, 4, 0, 4, 0]  # a repeated character needs a blank between
    assert viterbi(posteriors_of(spoken), [3, 4, 4]).tolist() == [0, 1, 1, 2, 3, 4, 5, 6]
    # Two CTC frames a frame; frames before a character are aligned with the character to come.
    (a, b), _ = symbols_of("ab", None)
    assert align(posteriors_of([a, a, 0, 0, b, b, 0, 0]), "ab", None).tolist() == [0, 1, 1, 1]


def test_ema_follows_its_vectors_and_restarts_dead_codes():
    torch.manual_seed(0)
    averages, embed = CodebookEMA(2, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    averages.count.fill_(1.0)
    averages.total.copy_(embed)
    x = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    averages.update(x, embed)
    assert_close(averages.count, torch.tensor([0.99 + 0.02, 0.99]))
    assert embed[0, 0].item() == pytest.approx((0.99 + 0.04) / 1.01, rel=1e-3)
    assert embed[1, 0].item() == pytest.approx(-1.0, rel=1e-3)
    averages.count[1] = 0.1
    averages.update(x, embed)
    assert embed[1].tolist() == [2.0, 0.0] and averages.count[1] == 0.5


def test_quantizer_training_equals_the_quantizer_that_is_shipped():
    torch.manual_seed(0)
    trainer = QuantizerTrainer(ResidualVectorQuantizer(3, 12, 16, 4))
    z, used, shipped = torch.randn(4, 30, 12), torch.ones(4, 30, 3, dtype=torch.bool), trainer.quantizer
    trainer.train()(z, used)
    assert all(averages.ready for averages in trainer.averages)
    z_q, first, commitment = trainer.eval()(z, used)
    codes = shipped.encode(z.transpose(1, 2))
    assert_close(z_q, shipped.decode(codes).transpose(1, 2))
    assert_close(first, shipped.decode(codes[:, :1]).transpose(1, 2))
    assert commitment > 0
    used[..., 1:] = False
    assert_close(trainer(z, used)[0], first)


def test_snake_has_the_gradient_of_autograd():
    x = torch.randn(2, 3, 5, requires_grad=True)
    alpha = (torch.rand(1, 3, 1) + 0.5).requires_grad_()
    weight = torch.randn(2, 3, 5)
    ours, autograds = fast_snake._Snake.apply(x, alpha), snake(x, alpha)
    assert_close(ours, autograds)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), (x, alpha)) for y in (ours, autograds)), strict=True):
        assert_close(a, b, atol=1e-4)


def test_learning_rates_are_functions_of_the_step():
    rates = [warmup_stable_decay(step, 100, 10, 0.25) for step in (0, 9, 50, 75, 99, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.02 + 0.98 * 0.04, 0.02])
    rates = [job.warmup_cosine(step, 100, 10, 0.1) for step in (0, 50, 100)]
    assert rates == pytest.approx([0.1, 0.55, 0.1])


def test_the_number_format_is_that_of_the_processor(monkeypatch):
    for avx, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        dtype = torch.bfloat16 if avx or amx else torch.float32
        assert best_dtype("cpu") == dtype and best_dtype("cuda") == torch.bfloat16
        with autocast("cpu", dtype):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_muon_makes_updates_orthogonal_and_is_torchs():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(2, 8, 12)))
    assert values.min() > 0.6 and values.max() < 1.3
    shapes = ((8, 12), (12, 8), (8, 12), (6, 6))
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    ours = Muon(mine, lr=0.02, dtype=torch.float32)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        ours.step(), torchs.step()
    for a, b in zip(mine, theirs, strict=True):  # torch iterates in bfloat16
        assert_close(a, b, atol=2e-3)
    without_gradient = torch.nn.Parameter(torch.ones(2, 2))
    Muon([without_gradient], lr=1.0, dtype=torch.float32).step()
    assert without_gradient.tolist() == [[1, 1], [1, 1]]


def test_speakers_of_the_corpus():
    rng = random.Random(0)
    names = [choose_speaker(rng).name for _ in range(4000)]
    for speaker, share in zip(IN_HOUSE, SHARES, strict=True):
        assert names.count(speaker.name) / 4000 == pytest.approx(share, abs=0.02)
    mixed = blends(["af_a", "am_b", "bm_c"], 2, seed=0)
    assert len({blend.name for blend in mixed}) == 5 and mixed[3].name.count("+") == 1
    assert mixed == blends(["af_a", "am_b", "bm_c"], 2, seed=0)
    assert all(0.86 <= blend.played <= 1.15 and abs(blend.played - 1) > 0.05 for blend in mixed)
    wave = np.sin(np.arange(24_000) / 20).astype(np.float32)
    assert len(finished(wave)) % 960 == 0 and len(finished(wave, 1.1)) < len(finished(wave, 0.9))
    assert ngrams("One, two three!") == {("one", "two", "three")}
    groups = [group_of(name) for name in ("ada", "p0.87f0.96", "af_sky+am_onyx@0.9", "af_sky")]
    assert groups == ["ada", RANDOM, KOKORO, KOKORO]
    weights = sampling_weights(["ada", "ada", KOKORO], [1.0, 3.0, 2.0], {KOKORO: 3.0})
    assert weights == pytest.approx([0.25, 0.75, 3.0])


def test_a_shard_is_made_once_and_whole_or_not_at_all(tmp_path, monkeypatch):
    spoken, shard = [], make_corpus.Shard("hibari-00", 0, ("A text.", "Too short.", "More."), folder=tmp_path)

    def by_hibari(shard, tts):
        for text in shard.texts:
            spoken.append(text)
            yield np.full(24_000 if "short" not in text else 99, len(text), np.int16), text, "ada"

    monkeypatch.setitem(sys.modules, "hibari", types.SimpleNamespace(Hibari=lambda: None))
    monkeypatch.setattr(make_corpus, "by_hibari", by_hibari)
    assert make_corpus.make_shard(shard) == make_corpus.make_shard(shard) == 2 / 3600
    assert len(spoken) == 3 and [u.text for u in Shards(tmp_path).utterances] == ["A text.", "More."]
    assert Shards(tmp_path).waveform(1)[0] == 5 / 32768
    before = (tmp_path / "hibari-00.pcm").read_bytes()
    (tmp_path / "hibari-00.jsonl").unlink()  # killed between the two files
    make_corpus.make_shard(shard)
    assert (tmp_path / "hibari-00.pcm").read_bytes() == before and len(spoken) == 6
    for other in (replace(shard, texts=("One.", "Two.")), replace(shard, texts=("One.", "Two."), seed=1)):
        spoken.clear()
        make_corpus.make_shard(other)
        assert spoken == ["One.", "Two."], "made again"
    make_corpus.make_shard(replace(other, name="hibari-01"))
    write_shard(tmp_path, "own", ("ada",), 1)
    make_corpus.remove_others(tmp_path, [other])
    assert Shards(tmp_path).names == ["hibari-00", "own"] and len(list(tmp_path.iterdir())) == 5


def test_the_lexicon_is_that_of_the_corpus_and_of_the_commonest_words(tmp_path, monkeypatch):
    """With stand-ins for the source TTS, whose dictionaries know two words, and for the list of words."""
    (tmp_path / "assets").mkdir()
    for kind, table in (("gold", {"a": "ɐ", "no": {"DEFAULT": "nO"}}), ("silver", {"no": "x", "Rome": "ɹOm"})):
        (tmp_path / f"assets/lexicon_us_{kind}.json.gz").write_bytes(gzip.compress(json.dumps(table).encode()))
    source = types.SimpleNamespace(phonemize=lambda text: ["hi ðɛɹ."])
    stand_in = types.SimpleNamespace(__file__=str(tmp_path / "hibari.py"), Hibari=lambda: source)
    monkeypatch.setitem(sys.modules, "hibari", stand_in)
    words = types.SimpleNamespace(iter_wordlist=lambda language: iter(("a", "hi", "no", "rome", "there", "2", "xyz")))
    monkeypatch.setitem(sys.modules, "wordfreq", words)
    monkeypatch.delitem(sys.modules, "training.corpus.lexicon", raising=False)
    lexicon = importlib.import_module("training.corpus.lexicon")
    (tmp_path / "a.jsonl").write_text('{"offset": 0, "length": 1, "text": "Hi there.", "speaker": "ada"}')
    monkeypatch.setattr("sys.argv", f"lexicon --corpus {tmp_path} --out {tmp_path}".split())
    lexicon.main()
    assert Lexicon.read(tmp_path).words == {"a": "ɐ", "hi": "hi", "no": "nO", "rome": "ɹOm", "there": "ðɛɹ"}
    monkeypatch.delitem(sys.modules, "training.corpus.lexicon")


def test_the_source_tts_has_the_same_fft_everywhere(monkeypatch):
    """hibari itself takes scipy's where scipy is installed: other samples, another checkpoint."""
    module = types.SimpleNamespace(rfft=None, irfft=None)
    monkeypatch.setitem(sys.modules, "hibari", types.SimpleNamespace(dsp=module))
    monkeypatch.setitem(sys.modules, "hibari.dsp", module)
    frames = np.random.default_rng(0).standard_normal((3, 1200)).astype(np.float32)
    dsp = source_dsp()
    spectra = dsp.rfft(frames, 1)
    assert dsp is module and spectra.dtype == np.complex64
    assert np.array_equal(spectra, np.fft.rfft(frames).astype(np.complex64))
    back = dsp.irfft(spectra, 1200, 1)
    assert back.dtype == np.float32 and np.array_equal(back, np.fft.irfft(spectra, 1200).astype(np.float32))


TINY_CODEC = CodecConfig(
    encoder_width=4, decoder_width=32, acoustic_dim=8, codebook_dim=8,
    semantic=SemanticConfig(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, conv_dim=8),
)  # fmt: skip
TINY_MODEL = replace(
    NANO_MODEL, hidden_size=32, intermediate_size=48, num_layers=6, num_heads=2, num_kv_heads=2, head_dim=16
)
CONFIG = TrainingConfig(warmup_steps=2, positions=500, model=TINY_MODEL, codec=TINY_CODEC)
SPEAKERS = ("ada", "ben", "kit", "p0.80f0.94", "af_sky")


def write_shard(folder, name, speakers, count):
    """Noise in place of a greeting."""
    rng, rows, offset = np.random.default_rng(len(name)), [], 0
    with (folder / f"{name}.pcm").open("wb") as pcm:
        for index in range(count):
            length = 960 * int(rng.integers(20, 44))
            pcm.write((rng.standard_normal(length) * 3000).astype(np.int16).tobytes())
            text, speaker = f"Hello number {'abcdefghij'[index % 10]}.", speakers[index % len(speakers)]
            rows.append({"offset": offset, "length": length, "text": text, "speaker": speaker})
            offset += length
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_shard(folder, "hibari-00", SPEAKERS, 50)
    write_shard(folder, "validation-others", ("af_new",), 3)
    write_shard(folder, "validation-own", SPEAKERS[:3], 6)
    return folder


def test_shards(corpus, tmp_path):
    shards = Shards(corpus)
    assert shards.training == list(range(50)) and shards.validation == list(range(50, 59))
    whole = shards.waveform(5)
    assert torch.equal(shards.waveform(5, 960, 1920), whole[960:2880])
    with pytest.raises(ValueError, match="of an utterance of"):
        shards.waveform(5, 0, len(whole) + 1)
    chosen = choose_balanced(shards, shards.training, 14, {KOKORO: 3.0})
    assert [shards.utterances[i].speaker for i in chosen].count("af_sky") == 6 and len(chosen) == 14
    with pytest.raises(FileNotFoundError, match="make the corpus first"):
        Shards(tmp_path)


def quantizer_job(folder, corpus, steps=4, **more):
    return quantizer.QuantizerJob(folder, corpus, steps, utterances=40, batch=4, config=TINY_CODEC, **more)


@pytest.fixture(scope="module")
def coded(corpus, tmp_path_factory):
    """A folder with the quantiser, trained for a moment, and the codes of `corpus`."""
    folder = tmp_path_factory.mktemp("coded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizer, "WARM_STEPS", 0)
        quantizer_job(folder, corpus).run()
    quantizer.code_corpus(folder, corpus, TINY_CODEC)
    return folder


def test_codes_are_made_once(corpus, coded):
    """One file for each shard; those of another quantiser are made again."""
    shards = Shards(corpus)
    codes, aligned = quantizer.read_codes(coded, shards)
    for utterance, frames, tokens in zip(shards.utterances, codes, aligned, strict=True):
        assert frames.shape == (8, utterance.length // 960) and len(tokens) == frames.shape[1]
    path = coded / "codes/validation-own.pt"
    before = path.read_bytes()
    save_state(path, **load_state(path) | {"codes": []})
    quantizer.code_corpus(coded, corpus, TINY_CODEC)
    assert load_state(path)["codes"] == []
    save_state(path, codes=[], aligned=[], made_by="another")
    with pytest.raises(ValueError, match="codes are of another quantizer.pt"):
        quantizer.read_codes(coded, shards)
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match=r"codes/validation-own\.pt is cut off or damaged"):
        quantizer.read_codes(coded, shards)
    path.unlink()
    with pytest.raises(ValueError, match="or not all there"):
        quantizer.read_codes(coded, shards)
    quantizer.code_corpus(coded, corpus, TINY_CODEC)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def texts(corpus, coded):
    return Corpus(Shards(corpus), coded, text_tokenizer(None))


@pytest.fixture(scope="module")
def more_texts(corpus, coded):
    """With three augmented speakers, as heard by the encoder."""
    shards, autoencoder = Shards(corpus), augmented.trained_autoencoder(coded, TINY_CODEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec.CodecJob, "config", TINY_CODEC)
        codec.EncoderJob(coded, codec.Crops(shards, quantizer.read_codes(coded, shards)[0], 14), 1, 0, 2).run()
    encoder = codec.trained_codec(autoencoder, coded, TINY_CODEC)
    save_state(coded / augmented.FILE, **augment(shards, autoencoder, encoder, 3, seed=0))
    return AugmentedCorpus(shards, coded, text_tokenizer(None))


@pytest.fixture
def started(monkeypatch, corpus, coded, texts, request):
    """(name of a job, folder) -> that job, at its first step or where it last was in that folder."""
    monkeypatch.setattr(quantizer, "WARM_STEPS", 1)
    monkeypatch.setattr(codec.CodecJob, "config", TINY_CODEC)

    def start(name, folder, seed=0, config=CONFIG, steps=4):
        folder.mkdir(exist_ok=True)
        if name == "quantizer":
            return quantizer_job(folder, corpus, steps, seed=seed)
        if not (folder / "quantizer.pt").exists():
            (folder / "quantizer.pt").symlink_to(coded / "quantizer.pt")
        if name == "model":
            return ModelJob(folder, texts, steps, seed, config)
        if name == "cloning":
            if not (folder / "model.pt").exists():
                start("model", folder, steps=steps).run(stop_after=1)
            cloning = CloningConfig(**vars(config) | {"clones": 0.5})
            return CloningJob(folder, request.getfixturevalue("more_texts"), steps, seed, cloning)
        codes, _ = quantizer.read_codes(coded, texts.shards)
        if name == "finished_decoder":
            for half in ("decoder", "encoder"):
                if not (folder / f"{half}.pt").exists():
                    start(half, folder, steps=steps).run(stop_after=1)
            crops = finishing.ChangedCrops(texts.shards, codes, 14, folder, TINY_CODEC)
            return finishing.FinishedDecoder(folder, crops, steps, seed, 2)
        return codec.JOBS[name](folder, codec.Crops(texts.shards, codes, 14), steps, seed, 2)

    return start


JOBS = ["quantizer", "decoder", "encoder", "model", "cloning", "finished_decoder"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_a_function_of_its_seed_stopped_or_not(started, tmp_path, name):
    """The bytes of its state after 50 steps, stopped three times on the way, and its log but for the seconds."""
    whole, broken, other = (tmp_path / folder for folder in ("whole", "broken", "other"))
    started(name, whole, steps=50).run()
    for step in sorted(random.Random(name).sample(range(1, 50), k=3)):
        started(name, broken, steps=50).run(stop_after=step)
        half = (broken / f"{name}.pt").read_bytes()
        torch.rand(3)  # what else has drawn random numbers does not matter
    again = started(name, broken, steps=50)
    again.run()
    assert again.step == 50 and again.saved is None
    assert (whole / f"{name}.pt").read_bytes() == (broken / f"{name}.pt").read_bytes() != half
    logs = [read_log(folder / f"{name}.jsonl") for folder in (whole, broken)]
    assert [row | {"seconds": 0} for row in logs[0]] == [row | {"seconds": 0} for row in logs[1]]
    started(name, other, seed=1, steps=50).run()
    assert (other / f"{name}.pt").read_bytes() != (whole / f"{name}.pt").read_bytes()


def test_a_checkpoint_of_another_run_is_not_resumed(started, tmp_path):
    started("decoder", tmp_path / "a").run(stop_after=1)
    with pytest.raises(
        ValueError, match=r"decoder.pt is of another run: seed was 0 and is 1; delete it to train again"
    ):
        started("decoder", tmp_path / "a", seed=1).run()
    state = load_state(tmp_path / "a/decoder.pt")
    dtype, threads = str(best_dtype()).removeprefix("torch."), torch.get_num_threads()
    made_from = {"quantizer.pt": sha256(tmp_path / "a/quantizer.pt")[:16]}
    settings = dict(steps=4, seed=0, compiled=True, batch=2, frames=14, dtype=dtype, threads=threads, torch="")
    assert state["record"] | {"torch": ""} == settings | made_from
    save_state(tmp_path / "a/decoder.pt", **state | {"record": state["record"] | {"dtype": "float32"}})
    assert started("decoder", tmp_path / "a").dtype == torch.float32
    changed = load_state(tmp_path / "a/quantizer.pt") | {"another": 1}
    (tmp_path / "a/quantizer.pt").unlink()
    save_state(tmp_path / "a/quantizer.pt", **changed)
    with pytest.raises(ValueError, match="quantizer.pt was '[0-9a-f]{16}' and is '"):
        started("decoder", tmp_path / "a").run()


@pytest.mark.parametrize("name", JOBS)
def test_a_record_names_what_a_job_began_with(started, tmp_path, name):
    """The files of other jobs; and of the first job the corpus."""
    batches = ["quantizer.pt", "batch", "frames"]
    wanted = {
        "quantizer": ["lexicon.json", "utterances", "corpus"], "decoder": batches, "encoder": batches,
        "model": ["lexicon.json", "quantizer.pt"],
        "cloning": ["lexicon.json", "quantizer.pt", "model.pt", "augmented.pt"],
        "finished_decoder": ["quantizer.pt", "decoder.pt", "encoder.pt", "batch", "frames"],
    }  # fmt: skip
    record = started(name, tmp_path).record
    shared = ("steps", "seed", "compiled", "dtype", "threads", "torch")
    assert [key for key in record if key not in shared] == wanted[name]
    assert all(record[key] for key in record if key.endswith(".pt") and key != augmented.FILE)


def test_augmented_speakers_are_made_again_for_another_key(coded, corpus, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(augmented, "augment", lambda *arguments: made.append(arguments[3:]) or {"codes": []})
    for name in ("trained_codec", "trained_autoencoder"):
        monkeypatch.setattr(augmented, name, lambda *_: None)
    for speakers, seed in ((3, 0), (3, 0), (4, 0), (4, 1)):
        command = f"augmented --out {tmp_path} --corpus {corpus} --speakers {speakers} --seed {seed}"
        monkeypatch.setattr("sys.argv", command.split())
        augmented.main()
    (tmp_path / "encoder.pt").write_bytes(b"another")
    augmented.main()
    assert made == [(3, 0), (4, 0), (4, 1), (4, 1)]


@pytest.fixture(scope="module")
def phonemes(corpus, coded, tmp_path_factory):
    """As `texts`, with a lexicon and random alignments."""
    folder, shards, rng = tmp_path_factory.mktemp("phonemes"), Shards(corpus), np.random.default_rng(0)
    marked = marked_texts([u.text for u in shards.utterances], LEXICON)
    (folder / "codes").mkdir()
    for number, name in enumerate(shards.names):
        codes = load_state(coded / f"codes/{name}.pt")["codes"]
        some = [text for text, u in zip(marked, shards.utterances, strict=True) if u.shard == number]
        noise = [rng.random((2 * c.shape[1], num_symbols(LEXICON))) for c in codes]
        aligned = [torch.from_numpy(align(p, text, LEXICON)) for p, text in zip(noise, some, strict=True)]
        made_by = job.hashes(folder, quantizer.QUANTIZER)
        save_state(folder / f"codes/{name}.pt", codes=codes, aligned=aligned, made_by=made_by)
    return Corpus(shards, folder, text_tokenizer(LEXICON))


@pytest.mark.parametrize("kind", ["texts", "phonemes"])
def test_every_form_of_conversation_has_its_alignment(kind, request):
    """At each frame, the aligned token is the one that alignment found in the utterance's own text."""
    speech, rng, forms = request.getfixturevalue(kind), random.Random(0), set()
    for index in [*range(50)] * 2:
        item = speech.item(index, rng, LONG)
        example = speech.example(item, NANO_MODEL)
        text = speech.tokenizer.decode(example["input_ids"].tolist())
        forms.add((len(item.sample.messages), "[SPEAKER" in text))
        encoded = [torch.tensor(speech.tokenizer.encode(speech.texts[i])) for i in item.utterances]
        expected = [ids[speech.aligned[i].long()] for ids, i in zip(encoded, item.utterances, strict=True)]
        alignment = example["alignment"]
        assert torch.equal(example["input_ids"][alignment[alignment >= 0]], torch.cat(expected))
        frames = sum(speech.codes[i].shape[1] for i in item.utterances)
        segments = min(len(item.utterances), len(item.sample.audios) + 1)
        assert (example["code_labels"][:, 0] >= 0).sum() == frames + segments
        assert abs(len(example["input_ids"]) - item.positions) < 12 * len(item.utterances)
    assert {form[0] for form in forms} >= {2, 3, 4, 6, 8} and {form[1] for form in forms} == {True, False}
    spelled = sum(SPELL in text for text in speech.texts[:50])
    assert 2 < spelled < 30 if kind == "phonemes" else spelled == 0


def test_a_change_of_speaker_moves_the_spectrum_and_the_speed():
    """White noise: 10 dB more in one band, limits on both sides; two thirds of the length at 1.5 times the speed."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.1)

    def levels(change):
        power = np.abs(np.fft.rfft(change.apply(noise).astype(np.float64))) ** 2
        bands = [power[2 * low : 2 * high].mean() for low, high in ((20, 60), (500, 520), (1190, 1210), (7500, 8500))]
        return 10 * np.log10(np.array(bands) / bands[1])

    flat = (0.0,) * 8
    assert np.abs(levels(Change(1.0, flat, None, None))).max() < 2
    found = levels(Change(1.0, (0, 0, 0, 0, 10, 0, 0, 0), 4000, 160))
    assert found[2] > 6 and found[3] < -30 and found[0] < -20
    assert len(Change(1.5, flat, None, None).apply(noise)) == pytest.approx(32_000, abs=960)
    draws = [Change.draw(random.Random(seed), "ben") for seed in range(99)]
    assert len(set(draws)) == 99 and all(0.9 <= change.played <= 1.35 for change in draws)


def test_augmented_speakers_are_a_function_of_the_seed(coded, more_texts, monkeypatch):
    """Three new speakers of up to six utterances, whose alignments are of their own texts."""
    assert len({more_texts.speakers[i] for i in more_texts.augmented}) == 3 and 12 <= len(more_texts.augmented) <= 18
    for index in more_texts.augmented:
        assert more_texts.codes[index].shape[1] == len(more_texts.aligned[index])
        assert 0 <= more_texts.aligned[index].max() < more_texts.lengths[index]
        assert more_texts.item(index, random.Random(0), LONG).utterances[1] == index
    autoencoder = augmented.trained_autoencoder(coded, TINY_CODEC)
    encoder = codec.trained_codec(autoencoder, coded, TINY_CODEC)
    again, other = (augment(more_texts.shards, autoencoder, encoder, 3, seed) for seed in (0, 1))
    codes = [more_texts.codes[i] for i in more_texts.augmented]
    assert all(map(torch.equal, again["codes"], codes)) and again["texts"] != other["texts"]
    # They are the encoder's, not the autoencoder's.
    monkeypatch.setattr(encoder, "encode", lambda waveforms: [torch.zeros(8, 9) for _ in waveforms])
    assert not any(codes.any() for codes in augment(more_texts.shards, autoencoder, encoder, 1, 0)["codes"])


def test_a_reference_is_heard_as_it_is_and_not_predicted(started, tmp_path):
    """The first audio of a clone; all else is as in the model's job."""
    audio = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 1, 0], [0, 1, 0, 1, 1]]).bool()
    assert reference_frames(audio, [True, True, False]).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0] * 5]
    training = started("cloning", tmp_path / "a")
    training.next_batch()
    training.items = [item for some in training.batches for item in some]
    batch, _ = make_batch(training.corpus, training.items, TINY_MODEL)
    inputs, labels = training.prepared(batch)
    clones = [training.corpus.speakers[item.utterances[0]] not in ("ada", "ben", "kit") for item in training.items]
    reference, changed = reference_frames(batch.audio_out_mask, clones), (inputs.codes != batch.codes).any(-1)
    assert any(clones) and not all(clones) and reference.any()
    assert not changed[reference].any() and changed[batch.audio_out_mask & ~reference].any()
    assert (labels.code_labels[reference] == -100).all()
    assert torch.equal(labels.code_labels[~reference], batch.code_labels[~reference])


def test_short_conversations_come_first(started, texts, tmp_path):
    short, long = ([i for batch in plan(texts, range(50), 0, 500, limits) for i in batch] for limits in (SHORT, LONG))
    assert all(len(item.utterances) <= 2 and item.positions <= 300 for item in short)
    assert max(len(item.utterances) for item in long) > 2
    training = started("model", tmp_path / "a", steps=10)
    longest = []
    for training.step in (0, 7, 8, 9):
        training.next_batch()
        longest.append(max(len(item.utterances) for batch in training.batches for item in batch))
    assert training.epoch == 1 and training.planned_at == 8 and training.taken == 2
    assert longest[:2] == [2, 2] and longest[2] == longest[3] > 2


def test_the_name_of_a_role_is_a_token_alone_and_a_word_in_a_text():
    lexicon = Lexicon("sɪtəmjuzɹ", {"system": "sɪtəm", "user": "juzəɹ", "users": "juzəɹz"})
    tokenizer = text_tokenizer(lexicon)
    assert all(len(tokenizer.encode(role)) == 1 for role in ROLES)
    text = "The user of a system, ecosystem, users."
    ids = tokenizer.encode(text)
    for symbol, position in zip(*symbols_of(text, lexicon), strict=True):
        if symbol > 1:
            assert tokenizer.decode([ids[position]]).lower() == read_as([symbol], lexicon)
    assert marked_texts(["user " * 99], lexicon) == ["user " * 99]
    assert NANO_MODEL.vocab_size >= text_tokenizer(None).vocab_size + 48


def test_validation_measures_loud_frames_of_each_voice(started, tmp_path):
    training = started("model", tmp_path / "a")
    with torch.no_grad():
        losses = training.validate()["validation"]
        assert set(losses) == {"ada", "ben", "kit", "others"} and all(6 < nats < 8 for nats in losses.values())
        _, batch, loud = training.validation[0]
        answers = batch.code_labels[..., 0].roll(-1, 1)
        assert (answers[loud] >= 0).all() and (answers[loud] < 1024).all()


def test_a_run_on_the_pack_of_the_corpus_is_the_run_on_the_corpus(corpus, coded, more_texts, tmp_path, monkeypatch):
    """Codes, alignments and loud frames are equal, and two steps give the same weights, in float16."""
    gpu.pack(corpus, coded, tmp_path / "pack")
    assert not list((tmp_path / "pack").rglob("*.pcm"))
    packed, texts = gpu.PackedCorpus(tmp_path / "pack"), more_texts
    for mine, wanted in ((packed.codes, texts.codes), (packed.aligned, texts.aligned)):
        assert len(mine) == len(wanted) and all(map(torch.equal, mine, wanted))
    assert all(torch.equal(packed.loud(i), texts.loud(i)) for i in texts.shards.validation)
    tiny = CloningConfig(**vars(CONFIG))
    monkeypatch.setattr(gpu, "CloningConfig", lambda **options: replace(tiny, **options))
    command = f"gpu train --pack {tmp_path}/pack --out {tmp_path}/gpu --device cpu --positions 500 --steps 2 --eager"
    monkeypatch.setattr("sys.argv", command.split())
    gpu.main()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/quantizer.pt").symlink_to(coded / "quantizer.pt")
    whole = gpu.PackedJob(tmp_path / "cpu", texts, 2, 0, tiny, device="cpu")
    whole.run()
    found, wanted = load_state(tmp_path / "gpu/cloning.pt"), whole.model.state_dict()
    made_from = job.hashes(coded, ("lexicon.json", "quantizer.pt", "augmented.pt"))
    assert found["record"] | {"torch": ""} == whole.record | made_from | {"torch": ""}
    assert (found["record"]["device"], found["record"]["positions"]) == ("cpu", 500)
    assert found["progress"] == dict(step=2, **whole.position())
    assert all(torch.equal(tensor, wanted[name].half()) for name, tensor in found["model"].items())
    logs = [read_log(tmp_path / name / "cloning.jsonl")[-1] | {"seconds": 0} for name in ("gpu", "cpu")]
    assert logs[0] == logs[1]
    with pytest.raises(FileExistsError, match="cannot be resumed"):
        gpu.main()


def test_the_number_of_steps_follows_the_speed(coded, more_texts, tmp_path, monkeypatch):
    """A tenth of a second for each step: the steps of two minutes, and a margin."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock.now)
    (tmp_path / "quantizer.pt").symlink_to(coded / "quantizer.pt")
    training = gpu.PackedJob(tmp_path, more_texts, 10**6, 0, CloningConfig(**vars(CONFIG)), device="cpu", minutes=2)
    for training.step in range(1, 2 * gpu.WARM_UP + 1):
        clock.now += 0.1
        training.after_step()
    assert 1150 < training.steps < 1200


# Runs as a program of its own, saves after every step, and is killed while it writes the state of the third.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from test_train import CONFIG
from training.nano import job, model

write = torch.save

def save(state, file):
    if state["progress"]["step"] == 3:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(state, file)

torch.set_num_threads(int(sys.argv[3]))
torch.save, job.Job.save_seconds = save, -1
folder = Path(sys.argv[2])
texts = model.Corpus(model.Shards(sys.argv[1]), folder, model.text_tokenizer(None))
model.ModelJob(folder, texts, 4, 0, CONFIG).run()
"""


@pytest.mark.slow
def test_kill_9_while_the_state_is_written_costs_one_step(corpus, coded, started, tmp_path):
    started("model", tmp_path / "whole").run()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("quantizer.pt", "codes"):
        (broken / name).symlink_to(coded / name)
    arguments = [str(corpus), str(broken), str(torch.get_num_threads())]
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{KILLED}"
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again = started("model", broken)
    again.resume()
    assert again.step == 2
    again.run()
    assert (broken / "model.pt").read_bytes() == (tmp_path / "whole/model.pt").read_bytes()


def test_a_side_of_the_adversarial_losses_moves_itself_alone():
    torch.manual_seed(0)
    discriminators, wave = Discriminators(), torch.randn(2, 4800)
    estimate = torch.randn(2, 4800, requires_grad=True)
    losses = discriminators.losses(estimate, wave)
    losses["discriminators"].backward(retain_graph=True)
    assert estimate.grad is None and all(p.grad.abs().sum() > 0 for p in discriminators.parameters())
    for p in discriminators.parameters():
        p.grad = None
    (losses["adversarial"] + losses["matching"]).backward()
    assert estimate.grad.abs().sum() > 0 and all(p.grad is None for p in discriminators.parameters())
    assert discriminators.losses(wave, wave)["matching"] == 0


def test_changed_crops_have_the_codes_of_what_they_became(more_texts, coded, monkeypatch):
    """All or none changed, all or none heard by the encoder: the same draws, the same peaks."""
    shards = more_texts.shards
    crops = finishing.ChangedCrops(shards, quantizer.read_codes(coded, shards)[0], 14, coded, TINY_CODEC)
    drawn = []
    for changed, heard in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (1.0, 0.5)):
        monkeypatch.setattr(finishing, "CHANGED", changed)
        monkeypatch.setattr(finishing, "HEARD", heard)
        torch.manual_seed(0)
        drawn.append(crops.draw(4, True))
    (plain, codes), (equalised, others), (same, encoded), (_, half) = drawn
    assert codes.shape == others.shape == (4, 8, 14) and (codes != others).any()
    assert (plain - equalised).abs().amax(1).min() > 0.01
    assert_close(plain.abs().amax(1), equalised.abs().amax(1))
    assert torch.equal(same, equalised) and (encoded != others).any()
    assert torch.equal(encoded, crops.codec.quantizer.encode(crops.codec.embed(same[:, None])))
    assert torch.equal(half[2:], others[2:]) and (half[:2] == encoded[:2]).float().mean() > 0.9  # but for ties


def test_energies_tell_softer_noise_from_other_noise():
    """The spectral loss hardly does: it has nearly its least where the estimate is too soft."""
    torch.manual_seed(0)
    wave, other = torch.randn(2, 24_000) * 0.1, torch.randn(2, 24_000) * 0.1
    assert finishing.energy_loss(wave, wave) == 0
    assert_close(finishing.energy_loss(wave * 0.5, wave), torch.tensor(4.0).log(), atol=0.01, rtol=0)
    assert finishing.energy_loss(other * 0.8, wave) > 1.5 * finishing.energy_loss(other, wave)
    assert codec.spectral_loss(other * 0.8, wave) < 1.1 * codec.spectral_loss(other, wave)


def test_a_loss_that_is_not_a_number_stops_and_names_the_batch(started, tmp_path):
    training = started("model", tmp_path / "nan")
    with torch.no_grad():
        training.model.audio_head.weight[0, 0] = float("nan")
    before = [p.clone() for p in training.model.layers.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is nan; batch: \['Hello number"):
        training.run()
    assert all(map(torch.equal, before, training.model.layers.parameters()))
    assert not (tmp_path / "nan" / "model.pt").exists()


def test_what_is_assembled_is_finished_and_belongs_together(started, tmp_path):
    started("finished_decoder", tmp_path, steps=1).run()
    job.check_parts(tmp_path, ["finished_decoder", "encoder", "decoder"])
    started("model", tmp_path).run(stop_after=1)
    with pytest.raises(ValueError, match=r"model.pt is at step 1 of 4: train it to its end"):
        job.check_parts(tmp_path, ["decoder", "model"])
    (tmp_path / "encoder.pt").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"finished_decoder.pt was made from other files: encoder.pt was '"):
        job.check_parts(tmp_path, ["finished_decoder"])


def test_every_part_fits_and_the_checkpoint_speaks(started, coded, tmp_path, monkeypatch):
    """A step each, on noise."""
    monkeypatch.setattr(assemble, "NANO_CODEC", TINY_CODEC)
    monkeypatch.setattr(assemble, "NANO_MODEL", TINY_MODEL)
    for name in JOBS[1:]:
        started(name, tmp_path / "out", steps=1).run()
    nano = tmp_path / "nano"
    monkeypatch.setattr("sys.argv", ["assemble", "--parts", str(tmp_path / "out"), "--out", str(nano)])
    assemble.main()
    with pytest.raises(ValueError, match=r"do not make a codec: \['acoustic_decoder"):
        codec.trained_codec(augmented.trained_autoencoder(coded, TINY_CODEC), tmp_path / "out", TINY_CODEC, "encoder")
    engine = Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")
    assert engine.model.config == TINY_MODEL
    response = engine.generate(smart_voice("Hello."), SamplingConfig(seed=1), 20)
    assert response.usage.audio_steps <= 20
