"""Agreement of `spell_out` with the accepted readings of tests/text_reading.tsv, by class.

python -m benchmarks.text_reading [--failures]
"""

import sys
from collections import defaultdict
from pathlib import Path

from higgs.data.text.numbers import spell_out

TABLE = Path(__file__).parents[1] / "tests/text_reading.tsv"


def read_table(path: Path = TABLE) -> list[tuple[str, str, list[str]]]:
    """-> (class, text, accepted readings)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(name, text, readings.split(" | ")) for name, text, readings in records]


def agreement() -> dict[str, list[bool]]:
    """Class -> for each of its texts, whether the reading is accepted."""
    results = defaultdict(list)
    for name, text, readings in read_table():
        results[name].append(spell_out(text) in readings)
    return dict(results)


def main() -> None:
    results = agreement()
    for name, passed in results.items():
        print(f"{name:14} {sum(passed):3} of {len(passed):3}  {sum(passed) / len(passed):7.1%}")
    total = [passed for group in results.values() for passed in group]
    print(f"{'all':14} {sum(total):3} of {len(total):3}  {sum(total) / len(total):7.1%}")
    if "--failures" in sys.argv:
        for _, text, readings in read_table():
            if spell_out(text) not in readings:
                print(f"{text!r} -> {spell_out(text)!r}, not {readings[0]!r}")


if __name__ == "__main__":
    main()
