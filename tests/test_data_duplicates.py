"""Texts that occur more than once are counted and said."""

from ir3de.scripts.data.columns import Row
from ir3de.scripts.data.duplicates import Duplicates, overlap


def test_duplicates_within_and_across() -> None:
    rows = [
        *(Row(text, "law", split="train") for text in ("Court", "court ", "the  jury", "trial")),
        *(Row(text, "math", split="train") for text in ("cube", "The jury")),
        *(Row(text, "law", split="test") for text in ("COURT", "appeal", "appeal")),
    ]
    found = Duplicates()
    assert list(found.watch(rows)) == rows
    assert found.within == 2
    assert dict(found.across_domains) == {("law", "math"): 1}
    assert dict(found.across_splits) == {("train", "test"): 1}
    assert found.notes() == [
        "2 of 9 rows repeat another row of their domain.",
        "1 text is in both 'law' and 'math', such as 'The jury': of which are they?",
        "1 text of 'test' is in 'train' too: what is measured on them is too good.",
    ]


def test_two_files_are_two_splits() -> None:
    found = Duplicates()
    train = [Row(f"text {i}", "law") for i in range(60)]
    list(found.watch(train, "train"))
    list(found.watch([*train[:6], Row("new", "law")], "test"))
    assert found.notes() == ["6 texts of 'test' are in 'train' too: what is measured on them is too good."]


def test_nothing_is_said_of_nothing_and_memory_is_bounded() -> None:
    found = Duplicates(most=2)
    list(found.watch([Row(text, "law") for text in "abcc"]))
    assert found.notes() == []
    list(found.watch([Row("a", "law")]))
    assert found.notes() == [
        "1 of 5 rows repeat another row of their domain.",
        "Only the first 2 different texts were compared.",
    ]


def test_an_overlap_of_test_and_training_rows() -> None:
    train, test = [Row("court", "law"), Row("cube", "math")], [Row("Court ", "law"), Row("jury", "law")]
    assert overlap(train, test) == ["1 text to measure on is in the training data too: the figures are too good."]
    assert overlap(train, test[1:]) == []
