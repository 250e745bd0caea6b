"""Names as people write them have file names that are safe, tell the name, and never meet."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ir3de.names_ir3de import alike, check_name, check_names, file_name, look, name_of_file, problem_of, tidy

PRINTED = st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"))
NAMES = st.text(PRINTED | st.just(" "), min_size=1, max_size=100).filter(lambda name: not problem_of(name))
SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?|=[a-z0-9._=-]*[a-z0-9_-]|\+[0-9a-f]{40}")
RESERVED = ["con", "CON", "nul", "aux.txt", "Com1", "lpt9.x", "prn"]


@given(NAMES)
def test_a_file_name_is_safe_and_tells_the_name(name: str) -> None:
    file = file_name(name)
    assert SAFE.fullmatch(file), "no separator, no dot at an end, ASCII"
    assert len(file) <= 200
    assert file.split(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
    assert name_of_file(file, [name]) == name
    if not file.startswith("+"):
        assert name_of_file(file) == name


@given(NAMES, NAMES)
def test_two_names_have_two_files_on_a_disk_that_ignores_case_and_form(one: str, other: str) -> None:
    for form in ("NFC", "NFD", "NFKC"):
        on_disk = {unicodedata.normalize(form, file_name(name)).casefold() for name in (one, other)}
        assert len(on_disk) == 2 or alike(one, other)


@given(NAMES)
def test_case_and_accents_make_other_names(name: str) -> None:
    others = {name, f"{name} x", f"{name} X"} if len(name) < 98 else {name}
    check_names(others)
    assert alike(name, name)


def test_two_hundred_names_that_differ_by_case_or_accents() -> None:
    letters = ["e", "é", "è", "ê", "E", "É", "È", "Ê", "ë", "Ë", "ē", "Ē", "ę", "Ę", "ė"]
    names = [f"caf{one} n{other}" for one in letters for other in letters][:200]
    check_names(names)
    assert len({file_name(name).lower() for name in names}) == 200


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_windows_reserves(name: str) -> None:
    assert file_name(name).startswith("=")
    assert name_of_file(file_name(name)) == name


def test_old_names_keep_their_files() -> None:
    for name in ("law", "Law", "civil-law", "a.b_c", "x" * 64, "8", "con_"):
        assert file_name(name) == name


def test_file_names_by_hand() -> None:
    expected = {
        "Refund not showing up": "==52efund=20not=20showing=20up",
        "why?": "=why=3f",
        "法律": "==e6=b3=95=e5=be=8b",
        "../law": "=..=2flaw",
        ".law": "=.law",
        "law.": "=law=2e",
        "-x": "=-x",
        "con": "=con",
        "a=b": "=a=3db",
    }
    assert {name: file_name(name) for name in expected} == expected
    assert file_name("法" * 100) == "+" + file_name("法" * 100)[1:]
    with pytest.raises(ValueError, match="too long to be told from it: say the name"):
        name_of_file(file_name("法" * 100))


NO_FILES = ["", "=", "=law", "=52", "==5", "==ff", "==41=", "=Law", "==4C", "a b", "..", "+1", "==20"]


@pytest.mark.parametrize("stem", NO_FILES)
def test_what_follows_from_no_name(stem: str) -> None:
    with pytest.raises(ValueError, match=r"is not named after a domain|too long to be told"):
        name_of_file(stem)


UNUSABLE = {
    "": "has 0 characters",
    "x" * 101: "has 101 characters",
    " law": "begins or ends with a space",
    "law\n": "character 4 is a control character",
    "la\u200dw": r"character 3 is an invisible character \(U\+200D\)",
    "law\u202egnp": "invisible character",
    "a\u00a0b": "an unusual space",
    "\ud800": "half a surrogate pair",
    "\ue000": "private character",
    "\u3164": "nothing of it can be seen",
}


@pytest.mark.parametrize(("name", "message"), UNUSABLE.items(), ids=map(ascii, UNUSABLE))
def test_what_does_not_print_is_no_name(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"cannot name an expert: .*{message}"):
        check_name(name)


def test_all_that_is_wrong_is_said_at_once() -> None:
    names = ["law", "Law", "❤", "❤\ufe0f", "é", "e\u0301", "a\tb", 7, "civil law", "civil  law"]
    with pytest.raises(ValueError, match="--rename OLD=NEW") as raised:
        check_names(names)
    said = str(raised.value)
    for part in (
        "'law' and 'Law': their files differ by case alone.",
        "'❤' and '❤\ufe0f': they look the same.",
        "'é' and 'e\u0301': they look the same.",
        "'a\\tb' cannot name an expert: its character 2 is a control character (U+0009)",
        "7 cannot name an expert: it is no text",
        "'civil law' and 'civil  law': they look the same.",
    ):
        assert part in said
    with pytest.raises(ValueError, match="each name is for one"):
        check_names(["law", "law"])
    check_names(["Civil law", "civil law", "法律", "con", "x" * 100])


def test_names_as_they_are_meant() -> None:
    assert tidy("  law \u00a0school\n") == "law school"
    assert tidy("e\u0301") == "é"
    assert look("❤\ufe0f") == "❤"
