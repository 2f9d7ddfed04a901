"""Text as the field meets it: readings by class, sentence ends of 48 kinds, scripts without blanks, linear time."""

import random
import time

import pytest

from benchmarks.text_reading import agreement, read_table
from higgs.data.text.chunks import chunk_text, count_words, sentences
from higgs.data.text.markup import end_lines, plain_text
from higgs.data.text.numbers import spell_out

# The kinds of the golden rules of pragmatic_segmenter, in other words: the sentences of each text.
GOLDEN = [
    ["Good morning, all.", "Our guide is Ada."],
    ["Where is the key?", "The key is here."],
    ["We won!", "Nobody saw it."],
    ["The poem is by Ada B. Stone."],
    ["The map is on p. 12 of it."],
    ["Did Ruth and co. come along?"],
    ["The house was sold to Hill, Marsh & Co. in May."],
    ["We wrote to Ruth and co.", "They wrote back."],
    ["The house was sold to Hill & Co.", "It is empty now."],
    ["The path leads to Mt. Rainier in snow."],
    ["St. Ann's School is on 9th st. by the pond."],
    ["That was Sam Hill Jr.'s hat."],
    ["They flew to the U.S.A. in June."],
    ["They moved to the E.U.", "How are they now?"],
    ["She grew up in the U.S.", "Where did you?"],
    ["He is paid by the U.S. Treasury in Ohio."],
    ["They have been in the U.S. for 5 years."],
    ["At 7 a.m. Mrs. Hill woke up.", "She was asleep at 9 P.M.", "Mrs. Hill slept well."],
    ["The fee is $20.50 for each of us."],
    ["The fee is $20.50.", "Pay at the desk."],
    ["Her aunt (She had been a nurse for years.) lived by the sea."],
    ["Write to Ann.Lee@post.org for more.", "She will answer."],
    ["The page is https://www.post.10.org/new-page/some_text.html.", "Read it soon."],
    ["He looked up, 'It is late.' he said."],
    ['He looked up, "It is late." he said.'],
    ['He looked up, "It is late."', "He put the lamp out."],
    ["Wow!!", "What a day."],
    ["Really??", "Who told you?"],
    ["Really?!", "Who told you?"],
    ["Really!?", "Who told you?"],
    ["1.) Wash the rice", "2.) Boil it"],
    ["1.) Wash the rice.", "2.) Boil it."],
    ["1) Wash the rice", "2) Boil it"],
    ["1) Wash the rice.", "2) Boil it."],
    ["1. Wash the rice", "2. Boil it"],
    ["1. Wash the rice.", "2. Boil it."],
    ["• 9. Wash the rice", "• 10. Boil it"],
    ["⁃9. Wash the rice", "⁃10. Boil it"],
    ["a. Wash the rice", "b. Boil it", "c. Eat it up"],
    ["The line was\nbroken in two by a page."],
    ["It was a long \nroad to the town."],
    ["The well is at N°. 1040.305.201.", "That is where they dug."],
    ["He shops at Yummy! in the old town."],
    ["We are friends, you and I.", "Have you met Carl I. Moss?"],
    ["The author claims that in time, “all of it will seem less hard. . . .”"],
    ['"Hill [...] saw it as a kind of ladder [...]" (Moss 12).'],
    ["A sentence may lack its end, and then the dots come first and the stop comes last . . . .", "The next begins."],
    ["We never knew that....", "He closed the gate."],
    ["I was not ... well, what I say...you see . . . what I want, the point is . . . I did not know."],
    ["A custom which was weak . . . was that of short words. . . .", "The custom was not lost. . . ."],
    ["The sun is up.", "Today is Sunday.", "Mr. Hill paid 2,000.", "That is much."],
    ["maps and plans", "pens, paper", "a red book"],
]  # fmt: skip
GLUED = "The sun is up.Today is Sunday.Mr. Hill paid 2,000.That is much."
BROKEN = [17, 51]  # "p.m. Mrs." is both, an end and none; lists without marks are one sentence


def golden_text(pieces: list[str]) -> str:
    return GLUED if pieces[0] == GLUED[:14] else ("\n" if pieces[0] == "maps and plans" else " ").join(pieces)


@pytest.mark.parametrize("index", range(len(GOLDEN)))
def test_sentence_ends_of_the_golden_rules(index):
    passed = [sentence.strip() for sentence in sentences(golden_text(GOLDEN[index]))] == GOLDEN[index]
    assert passed == (index not in BROKEN)


@pytest.mark.parametrize(
    "pieces",
    [
        ["She got a Ph.D. in law.", "He did not."],
        ["Pens, ink etc. are here.", "Take one."],
        ["Moss Inc. was sold.", "Hill Ltd. bought it."],
        ["Sam Hill Jr. in a hat"],
        ['"Stop!" he said.', '"No!"', "She ran."],
        ['"Stop!"', "She ran."],
        ["Wait... what is that?", "Well... I do not know."],
        ["Open on Mon. and Tue. only.", "On Wed. Ann rests."],
        ["Moss et al. showed it.", "We agree."],
        ["Adm. Smith met Lt. Gen. Hill."],
        ["The train leaves at 5 p.m. Monday.", "The bus waits."],
        ["My phone broke.", "iPhone sales rose."],
        ["(It was late.)", "We left."],
        ["यह एक घर है।", "वह बड़ा है॥", "हाँ"],
        ["هل أنت هنا؟", "نعم۔", "حسنا."],
        ["Բարեւ ձեզ։", "Ես այստեղ եմ։"],
        ["នេះជាផ្ទះ។", "វាធំ។"],
        ["hello there.", "how are you?", "fine"],
        ["Plan B.", "Then we left."],
    ],
)  # fmt: skip
def test_sentence_ends_of_the_field(pieces):
    assert [sentence.strip() for sentence in sentences(" ".join(pieces))] == pieces


def test_sentences_without_blanks():
    assert sentences("これは本です。あれは？「行くの？」と彼は言った。") == [
        "これは本です。",
        "あれは？",
        "「行くの？」と彼は言った。",
    ]
    assert sentences("他说：“走吧！”然后走了。今天（周一。）很好。") == [
        "他说：“走吧！”然后走了。",
        "今天（周一。）很好。",
    ]
    assert count_words("これは本です。") == 3 and count_words("สวัสดีชาวโลก") == 3
    for text in ("สวัสดีชาวโลก" * 200, "これはながいぶんしょう" * 200, "នេះជាផ្ទះធំ" * 200):
        chunks = chunk_text(text, 20)
        assert "".join(chunk.text for chunk in chunks) == text and len(chunks) > 10
        assert max(count_words(chunk.text) for chunk in chunks) <= 20


@pytest.mark.parametrize("name", agreement())
def test_readings_by_class(name):
    """The table lists what a good product reads: at least 95 % of each class."""
    results = agreement()[name]
    assert sum(results) >= 0.95 * len(results)


def test_readings_are_fixed_points():
    for _, text, _ in read_table():
        words = spell_out(text)
        assert spell_out(words) == words


def test_no_token_is_torn():
    """A token of letters and digits is read as a whole or left as it is."""
    draw = random.Random(0)
    for _ in range(3000):
        token = "".join(draw.choices("A1b2.3-c4", k=draw.randint(2, 7))).strip(".-")
        words = spell_out(f"Text {token} text").removeprefix("Text ").removesuffix(" text")
        assert words == token or not any(map(str.isdigit, words)), token


@pytest.mark.parametrize(("text", "words"), [
    ("This is **very** important for us.", "This is very important for us."),
    ("*One*, __two__, ***three*** and ~~four~~; un**believ**able", "One, two, three and four; unbelievable"),
    ("Use `pip` and [the guide](https://a.org/b_(c) \"Guide\") ![a cat](cat.png).", "Use pip and the guide a cat."),
    ("# A Night\n\nIt was dark[^1].", "A Night.\n\nIt was dark."),
    ("- Red\n- [x] Blue\n* Green!\n1. One", "Red.\nBlue.\nGreen!\n1. One."),
    ("> He said\n> nothing.", "He said\nnothing."),
    ("| Name | Age |\n|:--|--:|\n| Ann | six |", "Name, Age.\n\nAnn, six."),
    ("```python\nprint\n```\nDone.", "print\n\nDone."),
    ("<speak>Wait <break time=\"1s\"/> for <emphasis level='strong'>me</emphasis>.</speak>", "Wait, for me."),
    ("<p>One.</p><p>Two<br/>three</p> <sub alias=\"World Wide Web\">WWW</sub>", "One.\n\nTwo\nthree\nWorld Wide Web"),
    ("<!-- no -->Yes<script>var a = '<b>';</script>.", "Yes."),
    ("Salt &amp; pepper &#38; &#x68;erbs &amp;lt;&nbsp;x", "Salt & pepper & herbs < x"),
    ("Great 👍 job👏🏽! 👩\u200d👩\u200d👧 :heart_eyes: →", "Great job!"),
    ("[Laughs] Ha [COUGH] [Singing start] [music]", "[laugh] Ha [cough] [sing start] [music]"),
    ("a\\*b\\_c", "a*b_c"),
    # Nothing of these is markup.
    *((text, text) for text in [
        "2*3*4, 5 * 6 and 2 ** 3", "if x < 3 and y > 2", "snake_case, don't", "a <b and c> d", "I <3 you", "#1 and # 2",
        "10:30:45 a:b:c", "[SPEAKER0] Hi. <|eot_id|> <SE>[Laughter]</SE>", "AT&T; R&D", "well-known - so - what",
        "今天（很）好！“你好”？", "x² ½ € № 5°", "-5 or - 5", "see [1] and [a]", "A  b\n\nc",
    ]),
])  # fmt: skip
def test_markup_is_not_spoken(text, words):
    assert plain_text(text) == words
    assert plain_text(words) == words


@pytest.mark.parametrize(("text", "lines"), [
    ("Red\nBlue\nGreen", "Red.\nBlue.\nGreen"),
    ("Chapter One\nIt was a dark and stormy night, and nobody at all was there to see\nit.",
     "Chapter One.\nIt was a dark and stormy night, and nobody at all was there to see\nit."),
    ("We need:\n- Milk\n- \"Eggs\"\n2 loaves", "We need:\n- Milk.\n- \"Eggs\".\n2 loaves"),
    ("第一章\n那是一个黑夜。", "第一章。\n那是一个黑夜。"),
    ("infor-\nmation, well-\nknown, Jean-\nPaul", "information, well-known, Jean-Paul"),
    *((text, text) for text in [
        "The line was\nbroken in two by a page.", "It was a long \nroad to the town.",
        "They lived for many years in the small town of\nLondon, and then in the one that people call\nNew Town.",
        "One,\nTwo;\nThree!\nFour", "He left.\n\n* * *\n\nIt rained", "A line and\n[SPEAKER1] a turn",
    ]),
])  # fmt: skip
def test_lines_that_were_broken_on_purpose_end_with_a_mark(text, lines):
    assert end_lines(text) == lines
    assert end_lines(lines) == lines


@pytest.mark.parametrize(("text", "words"), [
    ("his/her", "his or her"), ("him/her/them", "him or her or them"), ("and/or", "and or"), ("TCP/IP", "TCP IP"),
    ("w/o salt", "without salt"), ("s/he", "she or he"), ("60 miles/hour", "sixty miles per hour"),
    ("/usr/bin/env", "/usr/bin/env"), ("https://a.org/his/her", "https://a.org/his/her"), ("a.b/c.d", "a.b/c.d"),
])  # fmt: skip
def test_words_on_both_sides_of_a_slash_are_read(text, words):
    assert spell_out(text) == words


@pytest.mark.parametrize(("text", "words"), [
    ("It is 120/80.", "It is one hundred and twenty over eighty."), ("95/100", "ninety-five over one hundred"),
    ("1/100", "one over one hundred"), ("100/1", "one hundred over one"), ("9.5/10", "nine point five over ten"),
    ("1,000/2,000", "one thousand over two thousand"), ("1/2/3", "one slash two slash three"),
    ("1/100th of it", "one one hundredth of it"), ("-1/2 or -3/100", "minus one half or minus three over one hundred"),
    ("3/4, 24/7 and 50/50", "three quarters, twenty-four seven and fifty fifty"), ("$.00", "zero dollars"),
    ("I live on Main St. The house is big.", "I live on Main Street. The house is big."),
    ("They met on 5th St. It was cold.", "They met on fifth Street. It was cold."),
    ("We parked on Elm Dr. She was late.", "We parked on Elm Drive. She was late."),
    ("I saw Dr. Who in St. Louis. Dear Dr. So, hi.", "I saw Doctor Who in Saint Louis. Dear Doctor So, hi."),
    ("我有2½个，１½小时，½个", "我有二又二分之一个，一又二分之一小时，二分之一个"),
    ("9" * 310 + "th", "nine " * 309 + "ninth"),
    ("1" + ",234" * 9 + "th", "one " + "two three four " * 8 + "two three fourth"),
])  # fmt: skip
def test_slashes_streets_and_long_numbers(text, words):
    """What is read in one go must not be read once more: "120/80" is no "one hundred and twenty or eighty"."""
    assert spell_out(text) == words and spell_out(words) == words


@pytest.mark.parametrize("digits", [310, 5000])  # beyond floats, and beyond what Python reads as one integer
@pytest.mark.parametrize("form", ["{}th", "${}.50", "{}/{}", "1/{}", "{}.{}", "{}%", "{} km", "{}½", "1/{}th"])
def test_numbers_of_any_length_are_read(form, digits):
    for language in ("en", "zh"):
        assert spell_out(form.replace("{}", "9" * digits), language)


@pytest.mark.parametrize(
    "unit",
    [
        "<!--",
        "<script>",
        "<a b='",
        "- a\n",
        "a-\n",
        "*a* ",
        "&amp;",
        "👍 ",
        "[a](",
        "| ",
        "1,",
        "1-",
        "1+",
        "1 + ",
        "a.",
        "1.",
        "1:",
        "+11 ",
        "a@",
        "Mr. ",
        "Aa ",
        "½",
        ". ",
        "ไ",
    ],
)
def test_time_is_linear(unit):
    start = time.process_time()
    for repeat in (1, 2):
        text = "x " + unit * (20_000 * repeat // len(unit))
        spell_out(text)
        end_lines(plain_text(text))
        chunk_text(text, 20)
    assert time.process_time() - start < 10
