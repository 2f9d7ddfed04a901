"""Everyday English sentences from templates of our own: common words in many combinations."""

import random

PEOPLE = (
    "I|you|we|they|she|he|my sister|my brother|the doctor|our teacher|the children|her mother|his father|"
    "the driver|my friend|the manager|a young woman|an old man|the neighbours|everybody|somebody|the team|"
    "the captain|my uncle|the nurse|our guide|the farmer|the students|the president|the baker"
).split("|")
PAST = (
    "walked to|looked at|found|opened|closed|cleaned|painted|forgot about|talked about|moved|bought|sold|"
    "wanted|needed|liked|remembered|carried|left|reached|saw|watched|dropped|lost|built|fixed|chose|loved|"
    "asked about|paid for|waited for|heard about|wrote about|showed us|visited|crossed|followed|changed"
).split("|")
THINGS = (
    "the house|the old bridge|a small boat|the kitchen door|the garden|the morning paper|a cup of tea|"
    "the school|a new car|the station|that picture|the letter|the long road|a warm coat|the river|the museum|"
    "her birthday cake|a glass of water|the hospital|the blue bag|the computer|the market|a loaf of bread|"
    "the green field|the white horse|a heavy box|the window|the last train|this book|the phone|the bank|"
    "a good song|the big tree|the hotel room|the answer|the price|the whole story|a piece of paper|the keys"
).split("|")
TIMES = (
    "yesterday|this morning|last night|on Monday|on Tuesday|on Wednesday|on Thursday|on Friday|on Saturday|"
    "on Sunday|in January|in March|in April|in the summer|in the winter|after lunch|before dinner|at noon|"
    "at midnight|a week ago|two years ago|every day|once again|at the weekend|in the evening|just now"
).split("|")
ADJECTIVES = (
    "good|bad|small|large|long|short|old|new|early|late|warm|cold|easy|hard|quiet|loud|clean|dark|bright|"
    "happy|sad|strong|weak|quick|slow|full|empty|open|free|ready|safe|strange|simple|clear|deep|high|low|"
    "important|beautiful|different|possible|difficult|expensive|wonderful|terrible|comfortable|dangerous"
).split("|")
NOUNS = (
    "weather|water|food|music|work|road|story|room|question|answer|day|night|week|year|morning|voice|light|"
    "street|city|village|mountain|river|sea|beach|forest|island|garden|kitchen|office|meeting|lesson|game|"
    "party|journey|flight|train|ticket|message|number|address|problem|plan|idea|reason|result|picture"
).split("|")
VERBS = (
    "go|come|stay|wait|eat|drink|read|write|speak|listen|sing|dance|run|walk|swim|drive|cook|sleep|work|play|"
    "rest|begin|stop|help|call|answer|pay|choose|move|travel|study|learn|teach|think|laugh|leave|return"
).split("|")
COMMANDS = (
    "Press the {adj} button and {verb}|Please {verb} after the {noun}|Open {thing} first|"
    "Do not {verb} before the {noun}|Turn left at {thing}|Turn right after the {noun}|"
    "Take {thing} to the {noun}|Please {verb} and {verb2}|Show me {thing}|Tell me about {thing}"
).split("|")
PATTERNS = (
    "{Who} {past} {thing} {when}.|{Who} {past} {thing}.|{When}, {who} {past} {thing}.|"
    "The {noun} is very {adj} today.|The {noun} was {adj}, but the {noun2} was {adj2}.|"
    "It is {adj} to {verb} {when}.|Can you {verb} with us {when}?|Where is {thing}?|"
    "What a {adj} {noun} this is!|Why did {who} {verb} {when}?|I think the {noun} is too {adj}.|"
    "There are {number} {adj} rooms in the {noun}.|It costs {number} dollars.|The time is {hour}.|"
    "My number is {number} {number2}.|We have {number} minutes to {verb}.|Is the {noun} {adj} or {adj2}?|"
    "{Who} will {verb} {when}.|{Who} would like to {verb} and {verb2}.|Hello, how is the {noun}?|"
    "Thank you for the {adj} {noun}.|Good morning, I would like {thing}.|Good evening, is the {noun} open?|"
    "The {adj} {noun} is near {thing}.|Everything about the {noun} was {adj}.|She said the {noun} was {adj}.|"
    "He knows that the {noun} will be {adj}.|{command}.|First we {verb}, then we {verb2}.|"
    "The {noun} and the {noun2} are {adj}.|A {adj} {noun} and a {adj2} {noun2}.|"
    "This is a test of the {adj} {noun}.|Welcome to the {noun}.|See you {when}!|"
    "Chapter {number}, the {adj} {noun}.|Let us {verb} {when}.|Nobody can {verb} in the {adj} {noun}."
).split("|")
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(rng: random.Random) -> str:
    value = rng.choice([rng.randrange(1, 20), rng.randrange(20, 100), rng.randrange(100, 1000)])
    words = []
    if value >= 100:
        words += [UNITS[value // 100], "hundred"]
        value %= 100
    if value >= 20:
        words.append(TENS[value // 10 - 2])
        value %= 10
    if value or not words:
        words.append(UNITS[value])
    return " ".join(words)


def template_sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different sentences, the same for the same seed."""
    rng, made = random.Random(seed), set()
    while len(made) < count:
        pick = {
            "who": rng.choice(PEOPLE), "past": rng.choice(PAST), "thing": rng.choice(THINGS),
            "when": rng.choice(TIMES), "adj": rng.choice(ADJECTIVES), "adj2": rng.choice(ADJECTIVES),
            "noun": rng.choice(NOUNS), "noun2": rng.choice(NOUNS), "verb": rng.choice(VERBS),
            "verb2": rng.choice(VERBS), "number": number_words(rng), "number2": number_words(rng),
            "hour": f"{rng.choice(UNITS[1:13])} {rng.choice(['o clock', 'thirty', 'fifteen'])}",
        }  # fmt: skip
        pick["Who"] = pick["who"][0].upper() + pick["who"][1:]
        pick["When"] = pick["when"][0].upper() + pick["when"][1:]
        pick["command"] = rng.choice(COMMANDS).format(**pick)
        made.add(rng.choice(PATTERNS).format(**pick))
    return sorted(made)
