"""Training: its parts against hand-made cases, and each job for a few steps on a corpus of noise."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_close

from higgs import Engine
from higgs.codec.quantizer import ResidualVectorQuantizer
from higgs.config import SamplingConfig
from higgs.data.chatml import smart_voice
from higgs.data.lexicon import SPELL, Lexicon
from higgs.data.text import TextTokenizer, byte_tokenizer, save_byte_tokenizer
from higgs.model.higgs_audio import HiggsAudio
from higgs.train import assemble, codec, quantizer
from higgs.train.align import spoken_token, viterbi
from higgs.train.codebooks import CodebookAverages, QuantizerTrainer
from higgs.train.conversations import Corpus
from higgs.train.model import Training, TrainingConfig
from higgs.train.nano import NANO_MODEL, NANO_PHRASES
from higgs.train.schedule import Averages, Clock, load_state, save_state, set_rate, trapezoid
from higgs.train.shards import Shards, split
from higgs.train.teacher import CHARACTERS, num_symbols, symbols_of

LEXICON = Lexicon("həlOjnʌmbɚ", {"hello": "həlO", "you": "jO", "number": "nʌmbɚ"})


def heard(symbols, lexicon=None):
    """CTC symbols as what they stand for."""
    return "".join((CHARACTERS + (lexicon.phonemes if lexicon else ""))[s - 1] for s in symbols)


def test_symbols_and_their_places():
    symbols, places = symbols_of("Hi,  you!", None)
    assert heard(symbols) == "hi you" and places == [0, 1, 2, 5, 6, 7]
    symbols, places = symbols_of("Hi, you  hello!", LEXICON)
    assert heard(symbols, LEXICON) == "hi jO həlO"
    assert (
        symbols[3] > len(CHARACTERS) >= symbols[0]
    )  # a phoneme is no letter, whatever it looks like
    assert places == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert max(symbols) < num_symbols(LEXICON) == num_symbols(None) + 10


def test_a_spelled_word_sounds_as_its_phonemes_at_its_letters():
    symbols, places = symbols_of(f"A {SPELL}number, you.", LEXICON)
    assert heard(symbols, LEXICON) == "a nʌmbɚ jO"
    assert places == [0, 1, 2, 3, 4, 5, 6, 8, 10, 11]  # five phonemes for six letters
    symbols, places = symbols_of(f"{SPELL}Xylem.", LEXICON)  # unknown: its letters as they are
    assert heard(symbols, LEXICON) == "xylem" and places == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "text", ["Hello, you!", f"A {SPELL}number 5, you", "Zany [SPEAKER1] hello"]
)
def test_places_count_the_tokens_of_the_text(text):
    """Where a phoneme or a letter is said to stand, the text tokenizer has the token of it."""
    tokenizer = TextTokenizer(byte_tokenizer(LEXICON.tokens), LEXICON)
    ids = tokenizer.encode(text)
    symbols, places = symbols_of(text, LEXICON)
    assert max(places) < len(ids)
    spelled = SPELL in text
    for symbol, place in zip(symbols, places, strict=True):
        read = tokenizer.decode([ids[place]])
        if symbol > len(CHARACTERS) and not spelled:
            assert read == LEXICON.phonemes[symbol - 1 - len(CHARACTERS)]
        elif 1 < symbol <= len(CHARACTERS):
            assert read.lower() == CHARACTERS[symbol - 1]


def test_viterbi_finds_the_only_good_path():
    text = [3, 4, 4]
    said = [0, 3, 3, 0, 4, 0, 4, 0]  # a repeated character needs a blank between
    log_probs = np.full((len(said), 6), -20.0)
    log_probs[np.arange(len(said)), said] = -0.01
    assert viterbi(log_probs, text).tolist() == [0, 1, 1, 2, 3, 4, 5, 6]


def test_spoken_token():
    """Two slots a frame; frames before a character count as the character to come."""
    symbols, _ = symbols_of("ab", None)
    slots = [symbols[0], symbols[0], 0, 0, symbols[1], symbols[1], 0, 0]
    posteriors = np.full((8, 30), -20.0)
    posteriors[np.arange(8), slots] = -0.01
    assert spoken_token(posteriors, "ab", None).tolist() == [0, 1, 1, 1]


def test_averages_follow_their_vectors_and_revive_dead_codes():
    torch.manual_seed(0)
    averages, embed = CodebookAverages(2, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
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
    z = torch.randn(4, 30, 12)
    used = torch.ones(4, 30, 3, dtype=torch.bool)
    trainer.train()
    trainer(z, used)
    assert all(averages.ready for averages in trainer.averages)
    trainer.eval()
    z_q, first, commitment = trainer(z, used)
    shipped = trainer.quantizer
    codes = shipped.encode(z.transpose(1, 2))
    assert_close(z_q, shipped.decode(codes).transpose(1, 2))
    assert_close(first, shipped.decode(codes[:, :1]).transpose(1, 2))
    assert commitment > 0
    used[..., 1:] = False
    assert_close(trainer(z, used)[0], first)


def test_snake_has_the_gradient_of_autograd():
    from higgs.codec import acoustic
    from higgs.train import snake as fast

    x = torch.randn(2, 3, 5, requires_grad=True)
    alpha = (torch.rand(1, 3, 1) + 0.5).requires_grad_()
    weight = torch.randn(2, 3, 5)
    plain = torch.autograd.grad((acoustic.snake(x, alpha) * weight).sum(), (x, alpha))
    assert_close(fast._Snake.apply(x, alpha), acoustic.snake(x, alpha))
    quick = torch.autograd.grad((fast._Snake.apply(x, alpha) * weight).sum(), (x, alpha))
    for a, b in zip(quick, plain, strict=True):
        assert_close(a, b, atol=1e-4)


def test_clock_and_rate():
    clock = Clock(minutes=1, warmup_steps=10, floor=0.0)
    assert clock.rate() == pytest.approx(0.1)
    clock.step = 100
    assert clock.rate() == pytest.approx(1.0)
    clock.spent = 30.0
    assert clock.rate() == pytest.approx(0.5)
    clock.spent = 60.0
    assert clock.done and clock.rate() == pytest.approx(0.0, abs=1e-12)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    for rate in (0.5, 0.25):
        set_rate(optimizer, rate)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * rate)


def test_state_is_whole_or_absent(tmp_path):
    assert load_state(tmp_path / "a.pt") is None
    save_state(tmp_path / "a.pt", x=torch.ones(2))
    assert load_state(tmp_path / "a.pt")["x"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    averages = Averages()
    averages.add(loss=1.0)
    averages.add(loss=3.0)
    assert averages.read() == {"loss": 2.0} and averages.read() == {}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """260 utterances of noise by the two named speakers and by others."""
    folder = tmp_path_factory.mktemp("corpus")
    rng, rows, pieces, offset = np.random.default_rng(0), [], [], 0
    for index in range(260):
        length = 960 * int(rng.integers(20, 44))
        pieces.append((rng.standard_normal(length) * 3000).astype(np.int16))
        speaker = ("ada", "ben", "kit", "p0.80f0.94")[index % 4]
        rows.append(
            {
                "offset": offset,
                "length": length,
                "text": f"Hello number {'abcdefghij'[index % 10]}.",
                "speaker": speaker,
            }
        )
        offset += length
    (folder / "shard-00.pcm").write_bytes(np.concatenate(pieces).tobytes())
    (folder / "shard-00.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_shards(corpus, tmp_path):
    shards = Shards(corpus)
    assert len(shards) == 260
    whole = shards.waveform(5)
    assert torch.equal(shards.waveform(5, 960, 1920), whole[960:2880])
    with pytest.raises(ValueError, match="of an utterance of"):
        shards.waveform(5, 0, len(whole) + 1)
    train_on, held_out = split(260, 200)
    assert list(train_on) == list(range(60)) and len(held_out) == 200
    with pytest.raises(FileNotFoundError, match="make the corpus first"):
        Shards(tmp_path)


SHORT = TrainingConfig(steps=6, warmup_steps=2, positions=500)


@pytest.fixture(scope="module")
def taught(corpus, tmp_path_factory):
    """A folder with the quantiser and the codes of `corpus`, trained for a moment."""
    folder = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizer, "WARM_STEPS", 0)
        teacher = quantizer.train(folder, corpus, quantizer.NANO_CODEC, 0.02, 60)
    quantizer.code_corpus(teacher, Shards(corpus), folder / "codes.pt")
    return folder


@pytest.fixture(scope="module")
def texts(corpus, taught):
    tokenizer = TextTokenizer(byte_tokenizer(NANO_PHRASES))
    return Corpus(Shards(corpus), taught / "codes.pt", tokenizer)


def started(taught, folder, texts, config=SHORT):
    """A training in a folder of its own."""
    folder.mkdir()
    (folder / "teacher.pt").symlink_to(taught / "teacher.pt")
    return Training(folder, texts, config)


def same(a, b):
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_learning_rate_rises_stays_and_falls():
    rates = [trapezoid(step, 100, 10, 0.25) for step in (0, 9, 50, 75, 99, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.02 + 0.98 * 0.04, 0.02])


def test_every_form_of_conversation_is_trained_and_reads_its_own_bytes(texts):
    """Frame by frame, the byte that a row says is spoken is the one that alignment found in that utterance."""
    rng, forms = random.Random(0), set()
    for index in range(60):
        item = texts.item(index, rng)
        row = texts.row(item, NANO_MODEL)
        text = texts.tokenizer.decode(row["input_ids"].tolist())
        forms.add((item.sample.messages[0].role, len(item.sample.messages), "[SPEAKER" in text))
        spoken = row["spoken"][row["spoken"] >= 0]
        wanted = torch.cat(
            [
                torch.tensor(list(texts.texts[i].encode()))[texts.aligned[i].long()]
                for i in item.utterances
            ]
        )
        alphabet = TextTokenizer(byte_tokenizer()).encode(bytes(range(32, 127)).decode())
        as_id = dict(zip(range(32, 127), alphabet, strict=True))
        assert row["input_ids"][spoken].tolist() == [as_id[int(byte)] for byte in wanted]
        assert (row["code_labels"][:, 0] >= 0).sum() == sum(
            segment.shape[1] + 1 for segment in segments_of(item, texts)
        )
    assert {form[1] for form in forms} >= {2, 3, 4, 6} and {True, False} == {f[2] for f in forms}


def test_conversations_of_phonemes_know_what_is_spoken(corpus, taught, tmp_path):
    """As above with a lexicon, whose words are now and then spelled: the token at a frame is the one aligned."""
    stored = torch.load(taught / "codes.pt", weights_only=True)
    size, seeded = num_symbols(LEXICON), torch.Generator().manual_seed(0)
    read = [torch.randn(len(p), size, generator=seeded).half() for p in stored["posteriors"]]
    save_state(tmp_path / "codes.pt", codes=stored["codes"], posteriors=read)
    tokenizer = TextTokenizer(byte_tokenizer((*NANO_PHRASES, *LEXICON.tokens)), LEXICON)
    speech, rng = Corpus(Shards(corpus), tmp_path / "codes.pt", tokenizer), random.Random(0)
    spelled = [index for index, text in enumerate(speech.texts) if SPELL in text]
    assert 0.05 < len(spelled) / len(speech.texts) < 0.5
    for index in [*spelled[:10], *range(20)]:
        item = speech.item(index, rng)
        row = speech.row(item, NANO_MODEL)
        spoken = row["spoken"][row["spoken"] >= 0]
        wanted = [
            torch.tensor(tokenizer.encode(speech.texts[i]))[speech.aligned[i].long()]
            for i in item.utterances
        ]
        assert torch.equal(row["input_ids"][spoken], torch.cat(wanted))


def segments_of(item, texts):
    codes = [texts.codes[i] for i in item.utterances]
    return [torch.cat(codes, dim=1)] if len(item.sample.audios) + 1 < len(codes) else codes


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(taught, texts, tmp_path):
    whole = started(taught, tmp_path / "whole", texts)
    whole.run()
    broken = started(taught, tmp_path / "broken", texts)
    broken.run(stop_after=3)
    again = Training(tmp_path / "broken", texts, SHORT)
    again.resume()
    assert again.step == 3 and same(again, broken) and not same(again, whole)
    again.run()
    assert again.step == 6 and same(again, whole)
    other = started(taught, tmp_path / "other", texts, replace(SHORT, seed=1))
    other.run()
    assert not same(other, whole)


# Runs as a program of its own, saves after every step, and is killed while it writes the state of the fourth.
KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from higgs.data.text import TextTokenizer, byte_tokenizer
from higgs.train import model
from higgs.train.conversations import Corpus
from higgs.train.nano import NANO_PHRASES
from higgs.train.shards import Shards

corpus, folder, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
write = torch.save

def save(state, file):
    if state["progress"]["step"] == 4:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(state, file)

torch.save, model.SAVE_SECONDS = save, -1
texts = Corpus(Shards(corpus), folder / "codes.pt", TextTokenizer(byte_tokenizer(NANO_PHRASES)))
config = model.TrainingConfig(steps=6, warmup_steps=2, positions=500)
model.Training(folder, texts, config).run()
"""


@pytest.mark.slow
def test_kill_9_while_the_state_is_written_costs_one_step(corpus, taught, texts, tmp_path):
    whole = started(taught, tmp_path / "whole", texts)
    whole.run()
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("teacher.pt", "codes.pt", "aligned.pt"):
        (broken / name).symlink_to(taught / name)
    arguments = [str(corpus), str(broken), str(torch.get_num_threads())]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again = Training(broken, texts, SHORT)
    again.resume()
    assert again.step == 3
    again.run()
    assert same(again, whole)


def test_training_goes_on_from_a_finished_checkpoint(taught, texts, tmp_path):
    first = started(taught, tmp_path / "first", texts, replace(SHORT, steps=2))
    first.run()
    finished = tmp_path / "finished"
    assemble.save_model(first.folder, finished)
    second = started(taught, tmp_path / "second", texts)
    assert not same(first, second)
    second.start_from(finished)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    assert second.step == 0
    second.run(stop_after=1)
    assert not same(first, second)


def test_a_checkpoint_of_other_sizes_or_other_text_is_not_gone_on_from(taught, texts, tmp_path):
    training = started(taught, tmp_path / "new", texts)
    other = tmp_path / "other"
    HiggsAudio(replace(NANO_MODEL, num_layers=2)).save_pretrained(other, {}, half=True)
    with pytest.raises(ValueError, match="num_layers=2"):
        training.start_from(other)
    HiggsAudio(NANO_MODEL).save_pretrained(other, {}, half=True)
    save_byte_tokenizer(other, (*NANO_PHRASES,), LEXICON)
    with pytest.raises(ValueError, match="reads text in another way: copy its lexicon.json"):
        training.start_from(other)


def test_a_loss_that_is_not_a_number_stops_and_names_the_batch(taught, texts, tmp_path):
    training = started(taught, tmp_path / "nan", texts)
    with torch.no_grad():
        training.model.audio_head.weight[0, 0] = float("nan")
    before = [p.clone() for p in training.model.layers.parameters()]
    with pytest.raises(
        FloatingPointError, match=r"step 0: the loss is nan; batch: \['Hello number"
    ):
        training.run()
    assert all(map(torch.equal, before, training.model.layers.parameters()))
    assert not (tmp_path / "nan" / "model.pt").exists()


@pytest.mark.slow
def test_every_job_runs_and_the_checkpoint_speaks(corpus, taught, texts, tmp_path):
    """A few steps each, on noise: what is tested is that the parts fit."""
    minute = 0.02
    codes = torch.load(taught / "codes.pt", weights_only=True)["codes"]
    assert all(
        c.shape[1] * 960 == u.length for c, u in zip(codes, Shards(corpus).utterances, strict=True)
    )
    training = started(taught, tmp_path / "out", texts)
    crops = codec.Crops(corpus, codes, 14)
    codec.train_decoder(training.folder, crops, minute, 2)
    codec.train_encoder(training.folder, crops, minute, 2)
    training.run(stop_after=2)
    nano = tmp_path / "nano"
    assemble.assemble_codec(training.folder).save_pretrained(nano / "codec", half=True)
    assemble.save_model(training.folder, nano / "model")
    engine = Engine.from_pretrained(nano / "model", nano / "codec", device="cpu")
    assert engine.model.config == NANO_MODEL
    response = engine.generate(smart_voice("Hello."), SamplingConfig(seed=1), 20)
    assert response.usage.audio_columns <= 20
