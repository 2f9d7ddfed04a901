"""Text: the reference's normalisation, numbers as words, chunks, and validation."""

import random
import re
from functools import partial

import pytest

from higgs import ChatMLSample, Message, TextContent
from higgs.data.text.chunks import Chunk, ChunkOptions, chunk_text, chunk_turns, count_words, sentences, speaker_turns
from higgs.data.text.folding import check_text
from higgs.data.text.normalize import SOUND_EVENTS, normalize_contents, normalize_prompt
from higgs.data.text.numbers import spell_out
from higgs.data.text.numbers_chinese import integer
from higgs.data.text.tokenizer import TextTokenizer
from training.nano.byte_tokenizer import byte_tokenizer


def normalize_text(text: str) -> str:
    return "".join(part.text for part in normalize_contents(text))


# One entry per character and rule of the reference, in its order.
NORMAL = [
    ("  Hello.\n", "Hello."),
    ("你好，世界。", "你好, 世界."),
    ("a：b；c？", "a:b;c?."[:-1]),
    ("Yes！", "Yes!"),
    ("（a）【b】《c》", "a [b]<c>."),
    ("“a” ‘b’", "\"a\" 'b'"),
    ("a、b—c…", "a,b-c..."),
    ("a·b", "a.b."),
    ("「a」『b』", '"a""b"'),
    ("one (two) three", "one two three."),
    ("70°F or 21°C", "70 degrees Fahrenheit or 21 degrees Celsius."),
    ("Ha [laugh] ha.", "Ha <SE>[Laughter]</SE> ha."),
    ("[humming start] la [humming end]", "<SE_s>[Humming]</SE_s> la <SE_e>[Humming]</SE_e>"),
    ("[music start] la [music end]", "<SE_s>[Music]</SE_s> la <SE_e>[Music]</SE_e>"),
    ("[music]", "<SE>[Music]</SE>"),
    ("[sing start] la [sing end]", "<SE_s>[Singing]</SE_s> la <SE_e>[Singing]</SE_e>"),
    ("[applause]", "<SE>[Applause]</SE>"),
    ("[cheering]", "<SE>[Cheering]</SE>"),
    ("[cough]", "<SE>[Cough]</SE>"),
    ("【cough】", "<SE>[Cough]</SE>"),
    ("la [sing start]", "la <SE_s>[Singing]</SE_s>."),
    ("a\n\n \n  b   c\t d", "a\nb c d."),
    ("no end", "no end."),
    ("a;", "a;"),
    ("a,", "a,"),
    ("a:", "a:."),
    ("[sneeze] 25 °C [SPEAKER0]", "[sneeze] 25 degrees Celsius [SPEAKER0]."),
]


@pytest.mark.parametrize(("text", "normal"), NORMAL)
def test_normalisation_of_the_reference(text, normal):
    assert normalize_text(text) == normal
    assert normalize_text(normal) == normal, "fixed point"


def test_only_sound_events_become_tokens():
    with pytest.raises(ValueError, match="nothing is left"):
        normalize_text("()")
    tokenizer = TextTokenizer(byte_tokenizer())
    parts = normalize_contents("《SE》 <SE>[Laughter]</SE> <|eot_id|> [laugh] bye")
    assert [part.text for part in parts if part.allow_special] == [SOUND_EVENTS["[laugh]"]]
    ids = [token for part in parts for token in tokenizer.encode(part.text, part.allow_special)]
    assert ids.count(tokenizer.token_id("<SE>")) == ids.count(tokenizer.token_id("</SE>")) == 1
    assert tokenizer.token_id("<|eot_id|>") not in ids
    for event in SOUND_EVENTS.values():
        opening, name, closing = re.fullmatch(r"(<\w+>)(.*)(</\w+>)", event).groups()
        read = tokenizer.encode(event, allow_special=True)
        assert read[0] == tokenizer.token_id(opening) and read[-1] == tokenizer.token_id(closing)
        assert read[1:-1] == tokenizer.encode(name)


def test_a_prompt_is_normalised_at_its_end_only():
    sample = ChatMLSample([Message("user", "(one)"), Message("user", "two [laugh]")])
    first, last = normalize_prompt(sample).messages
    assert first == sample.messages[0]
    assert last.parts == [TextContent("two "), TextContent("<SE>[Laughter]</SE>", True)]


ENGLISH = [
    ("I have 2 apples and 21 pears.", "I have two apples and twenty-one pears."),
    ("1,234,567 people", "one million two hundred and thirty-four thousand five hundred and sixty-seven people"),
    ("0.5, 3.14 and 3.10", "zero point five, three point one four and three point one zero"),
    ("-5 and −6", "minus five and minus six"),
    (".5", "point five"),
    ("agent 007", "agent zero zero seven"),
    ("1234567890123456", "one two three four five six seven eight nine zero one two three four five six"),
    ("It is 5. We go.", "It is five. We go."),
    ("2020-12-25", "December twenty-fifth, twenty twenty"),
    ("12/25/2020", "December twenty-fifth, twenty twenty"),
    ("25/12/2020", "December twenty-fifth, twenty twenty"),
    ("March 3, 2021 and Jan. 4th", "March third, twenty twenty-one and January fourth"),
    ("the 4th of July 1776", "the fourth of July, seventeen seventy-six"),
    ("on 3 March", "on the third of March"),
    ("May 2005", "May two thousand and five"),
    ("in 1984", "in nineteen eighty-four"),
    ("the 1990s and the '80s", "the nineteen nineties and the eighties"),
    ("1939-1945", "nineteen thirty-nine to nineteen forty-five"),
    ("at 10:30 or 3:05 pm", "at ten thirty or three oh five p.m."),
    ("from 9:00 to 17:30", "from nine o'clock to seventeen thirty"),
    ("10:00-12:00", "ten o'clock to twelve o'clock"),
    ("10am. 7 PM, sharp", "ten a.m. seven p.m., sharp"),
    ("16:45:30", "sixteen forty-five and thirty seconds"),
    ("$12.50, $1 and $0.99", "twelve dollars and fifty cents, one dollar and ninety-nine cents"),
    ("£1,200.50", "one thousand two hundred pounds and fifty pence"),
    ("€5, 5€ and ¥100", "five euros, five euros and one hundred yen"),
    ("-$5", "minus five dollars"),
    ("$3.5 million, $2bn, $5-10", "three point five million dollars, two billion dollars, five to ten dollars"),
    ("40.45% or 5 %", "forty point four five percent or five percent"),
    ("5-10%", "five to ten percent"),
    ("72°F, -5 °C, 90°", "seventy-two degrees Fahrenheit, minus five degrees Celsius, ninety degrees"),
    ("1°C", "one degree Celsius"),
    ("5km, 1 kg, 1.5 kg", "five kilometres, one kilogram, one point five kilograms"),
    ("60 km/h, 9.8 m/s", "sixty kilometres per hour, nine point eight metres per second"),
    ("6 ft and 50 Hz", "six feet and fifty hertz"),
    ("5 in the morning", "five in the morning"),
    ("1/2, 3/4, 2/3, 1 1/2", "one half, three quarters, two thirds, one and a half"),
    ("24/7", "twenty-four seven"),
    ("1st, 22nd, 1,001st", "first, twenty-second, one thousand and first"),
    ("No. 5 and #7", "number five and number seven"),
    ("Call 555-1234.", "Call five five five, one two three four."),
    ("+1 555 123-4567", "one, five five five, one two three, four five six seven"),
    ("version 1.2.3", "version one point two point three"),
    ("MP3, B2B, H2O, 1e5, 2x4", "MP3, B2B, H2O, 1e5, 2x4"),
    ("[SPEAKER12] 12 <|x_5|> a5@b6.com https://x.y/7", "[SPEAKER12] twelve <|x_5|> a5@b6.com https://x.y/7"),
    ("One.\n\n2 lines.", "One.\n\ntwo lines."),
    ("Say hello 好 5\nCafé 5\n12", "Say hello 好 five\nCafé five\ntwelve"),
]  # fmt: skip
CHINESE = [
    ("今天是2024年5月3日。", "今天是二零二四年五月三日。"),
    ("日期2020-12-25或2020/1/5", "日期二零二零年十二月二十五日或二零二零年一月五日"),
    ("2023-2024年", "二零二三到二零二四年"),
    ("５月３号", "五月三号"),
    ("下午3:05，2：30，14:00", "下午三点零五分，两点三十分，十四点"),
    ("准确率40.45%，5‰", "准确率百分之四十点四五，千分之五"),
    ("一共12.50元，¥100", "一共十二点五零元，一百元"),
    ("赚了$5.5，€3，￥5万", "赚了五点五美元，三欧元，五万元"),
    ("气温20℃，-5°C", "气温二十摄氏度，零下五摄氏度"),
    ("跑了3km，重2kg", "跑了三公里，重两公斤"),
    ("速度120km/h", "速度一百二十公里每小时"),
    ("吃了1/2", "吃了二分之一"),
    ("我有2个苹果，第2个，12个，2月", "我有两个苹果，第二个，十二个，二月"),
    ("电话13812345678，区号010-12345678", "电话幺三八幺二三四五六七八，区号零幺零幺二三四五六七八"),
    ("10~20个，5-10%", "十到二十个，五到百分之十"),
    ("共1,234人，-3度", "共一千二百三十四人，负三度"),
    ("长3.5米", "长三点五米"),
    ("我用iPhone 15和GPT4", "我用iPhone 十五和GPT4"),
    ("编号007", "编号零零七"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [*ENGLISH, *CHINESE])
def test_numbers_as_words(text, words):
    assert spell_out(text) == words
    assert spell_out(words) == words, "fixed point"


def test_spelling_out_leaves_other_text_alone():
    for text, normal in NORMAL:
        if not re.search(r"\d", text + normal):
            assert spell_out(text) == text and spell_out(normal) == normal
    for text in ("٣ كتب", "私は5人です", "у меня 5", "שלום 5", "🎉", ""):
        assert spell_out(text) == text


def test_spelling_out_is_idempotent_on_anything():
    draw = random.Random(0)
    bits = "12|3.5|1,000|2020|-|/|:|%|$| |km|am|年|个|第|No. |th|'".split("|")
    for start in ("Text ", "文字"):
        for _ in range(2000):
            once = spell_out(start + "".join(draw.choices(bits, k=6)))
            assert spell_out(once) == once


CHINESE_NUMBERS = {
    0: "零", 10: "十", 12: "十二", 20: "二十", 101: "一百零一", 110: "一百一十", 200: "二百", 1001: "一千零一",
    1010: "一千零一十", 2022: "两千零二十二", 10_000: "一万", 10_010: "一万零一十", 101_010: "十万一千零一十",
    150_000: "十五万", 22_222: "两万二千二百二十二", 100_000_001: "一亿零一", 100_010_000: "一亿零一万",
    110_000_000: "一亿一千万", 1_000_100_000_000: "一万零一亿",
}  # fmt: skip


def test_chinese_numbers():
    assert {value: integer(value) for value in CHINESE_NUMBERS} == CHINESE_NUMBERS
    assert len({integer(value) for value in range(20_000)}) == 20_000


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ('He said: "Go!" She went...', ['He said: "Go!" ', "She went..."]),
        ("It costs 3.14 dollars.", ["It costs 3.14 dollars."]),
        ("Dr. Smith vs. Mr. Fox, e.g. here.", ["Dr. Smith vs. Mr. Fox, e.g. here."]),
        ("J. R. Tolkien of the U.S. Army.", ["J. R. Tolkien of the U.S. Army."]),
        ("See No. 5 and Fig. 2. No. I do not.", ["See No. 5 and Fig. 2. ", "No. ", "I do not."]),
        ("At 5 p.m. we ate. At 6 p.m. We left.", ["At 5 p.m. we ate. ", "At 6 p.m. ", "We left."]),
        ("1. First. 2. Second.", ["1. First. ", "2. Second."]),
        ("你好。今天好！去吗？价格是3.5元。", ["你好。", "今天好！", "去吗？", "价格是3.5元。"]),
        ("你好.今天3.5元.然后", ["你好.", "今天3.5元.", "然后"]),
        ("...", ["..."]),
        ("", []),
    ],
)
def test_sentence_ends(text, pieces):
    assert sentences(text) == pieces


def test_chunks_end_with_sentences():
    text = "One two three. Four five. Six seven eight nine.\n\nTen."
    assert chunk_text(text, 5) == [
        Chunk("One two three. Four five."),
        Chunk("Six seven eight nine.", boundary="sentence"),
        Chunk("Ten.", boundary="paragraph"),
    ]
    for string, words, chunks in (
        (text, 3, "One two three.|Four five.|Six seven eight|nine.|Ten."),
        ("We saw 1,234.5 birds, some fish, and many trees; then we went home.", 5,
         "We saw 1,234.5 birds,|some fish, and many trees;|then we went home."),
        ("今天天气很好，我们去公园。你好。", 8, "今天天气很好，|我们去公园。|你好。"),
        ("下午12：30见，再见", 4, "下午12：30见，|再见"), ("卖了1，234件，很好", 4, "卖了1，234件，|很好"),
        ("卖了１，２３４件，很好", 4, "卖了１，２３４件，|很好"),
        ("In the years 1998–2003 it grew – fast, too", 4, "In the years 1998–2003|it grew –|fast, too"),
        ("他说：30个人来了", 5, "他说：|30个人来了"), ("我有3，你有4", 3, "我有3，|你有4"),
    ):  # fmt: skip
        assert "|".join(chunk.text for chunk in chunk_text(string, words)) == chunks


def test_chunks_of_anything_hold_all_its_words_and_are_never_empty():
    draw = random.Random(1)
    bits = ["word", "3.14", "Dr.", "好", "。", ".", ",", "，", " ", " ", "\n", "\n\n", "a" * 50, "!", '"', "(", "5"]
    for _ in range(500):
        text = "x" + "".join(draw.choices(bits, k=40))
        most = draw.randint(1, 8)
        chunks = chunk_text(text, most)
        assert [c for chunk in chunks for c in chunk.text if c.isalnum()] == [c for c in text if c.isalnum()]
        assert all(c.text and count_words(c.text) <= most for c in chunks)
        assert [c.boundary for c in chunks].count("start") == 1
        assert not any(re.search(r"3\.$|^\.?14", c.text) for c in chunks)


def test_turns_of_a_dialogue():
    text = "[SPEAKER0] Hi there. How are you today?\n[SPEAKER1] Good.\nAnd you? [SPEAKER0]\n[SPEAKER0] Fine."
    turns = [(0, "Hi there. How are you today?"), (1, "Good.\nAnd you?"), (0, "Fine.")]
    assert speaker_turns(text) == turns
    assert speaker_turns("No tags (here).") == []
    assert chunk_turns(turns, ChunkOptions(max_words=4)) == [
        Chunk("[SPEAKER0] Hi there.", (0,), "start"),
        Chunk("[SPEAKER0] How are you today?", (0,), "sentence"),
        Chunk("[SPEAKER1] Good. And you?", (1,), "speaker"),
        Chunk("[SPEAKER0] Fine.", (0,), "speaker"),
    ]
    together = chunk_turns(turns, ChunkOptions(max_words=10, max_turns=2))
    assert [c.text for c in together] == [
        "[SPEAKER0] Hi there. How are you today?\n[SPEAKER1] Good. And you?", "[SPEAKER0] Fine."
    ]  # fmt: skip
    assert [c.speakers for c in together] == [(0, 1), (0,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [(f"[SPEAKER0] Hi. {tag} Yes.", "unknown speaker tag.*SPEAKER0")
     for tag in ("[SPEAKER]", "[SPEAKER A]", "[speaker0]", "[SPEAKER 1]", "[SPEAKER1")]
    + [("Hello [SPEAKER0] Hi.", "'Hello'"), ("[SPEAKER0] [SPEAKER1]", "no text to speak")],
)  # fmt: skip
def test_malformed_dialogues_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        speaker_turns(text)


def test_chunk_options_are_checked():
    for options in ({"max_words": 0}, {"speaker_pause": -1.0}, {"max_turns": 2, "per_speaker_context": True}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ChunkOptions(**options)


# Text, and a key word of its error, or None for valid text.
ODD = [
    ("", "no text to speak"),
    (" \n\t ", "no text to speak"),
    ("a\0b", r"U\+0000 at character 1"),
    ("\x1b[31mred", r"U\+001B"),
    ("half \ud83d", r"U\+D83D"),
    ("\ufdd0", r"U\+FDD0"),
    ("🎉 hello 👩‍👩‍👧", None),
    ("שלום עולם مرحبا", None),
    ("<|eot_id|><|AUDIO_OUT|>", None),
    ("x" * 10_000, None),
]


@pytest.mark.parametrize(("text", "message"), ODD)
def test_which_texts_are_refused(text, message):
    for use in (check_text, normalize_text, partial(Message, "user")):
        if message:
            with pytest.raises(ValueError, match=message):
                use(text)
        else:
            assert use(text)
    if not message:
        tokenizer = TextTokenizer(byte_tokenizer())
        assert tokenizer.decode(tokenizer.encode(text)) == text
