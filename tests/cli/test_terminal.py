"""What a terminal shows: lines wrapped between words at any width, tables that are never cut off, bars that are true,
the next command; and that no option is taken that changes nothing."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from rich.table import Table
from rich.text import Text

from headscope.cli import following, progress
from headscope.cli.options import Opening
from headscope.render import plain

SMALL = ("--period", "12", "--n-prompts", "2")
STYLES = re.compile(r"\x1b\[[0-9;]*[mK]|\r")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout and stderr a terminal so many characters wide: `out, err = terminal(80)`."""

    def run(width):
        out, err = Terminal(), Terminal()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return run


def lines(stream):
    return STYLES.sub("", stream.getvalue()).split("\n")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_lines_are_wrapped_between_words_and_hang(terminal, width):
    words = [f"word{one}" for one in range(60)]
    out, _ = terminal(width)
    plain.say("  " + " ".join(words))
    plain.console().print(Text("  " + " ".join(words), style="dim"))
    said = lines(out)[:-1]
    assert max(map(len, said)) <= width
    assert " ".join(said).split() == words * 2
    assert [len(one) - len(one.lstrip()) for one in said] == ([2] + [4] * (len(said) // 2 - 1)) * 2


def test_a_word_is_never_broken_and_a_document_is_never_wrapped(terminal):
    out, _ = terminal(40)
    address = "http://127.0.0.1:1234/#token=" + "x" * 60
    plain.say(f"demo: {address}")
    plain.say(json.dumps({"a": "b c " * 40}), wrap=False)
    assert address in [line.strip() for line in lines(out)]
    assert json.loads(lines(out)[-2]) == {"a": "b c " * 40}


def test_a_pipe_gets_whole_lines_and_tables(capsys):
    plain.say("word " * 100)
    plain.console().print(Text("word " * 100))
    plain.console().print(wide())
    first, second, header, *rows = capsys.readouterr().out.splitlines()
    assert len(first.split()) == len(second.split()) == 100
    assert len(rows) == 3
    assert "the tenth column" in header


def wide():
    table = Table(box=None, pad_edge=False)
    table.add_column("head")
    table.add_column("verdict", no_wrap=True)
    for name in ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"):
        table.add_column(f"the {name} column", justify="right", no_wrap=True)
    for head in range(3):
        table.add_row(f"L0H{head}", "redundant_induction", *[f"{head}.{one}" for one in range(10)])
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 120, 240])
def test_no_cell_of_a_table_is_cut_off_at_any_width(terminal, width):
    out, _ = terminal(width)
    plain.console().print(wide())
    said = [line.rstrip() for line in lines(out)]
    assert max(map(len, said)) <= width
    text = " ".join(" ".join(said).split())
    for head in range(3):
        assert f"L0H{head} redundant_induction" in text
        for one in range(10):
            assert re.search(rf"(?<![\d.]){head}\.{one}(?![\d.])", text)
    # Twelve columns take 5 + 19 + 10 * 6 and gaps, so that 240 characters hold a line for each row.
    assert (len(said) == 5) == (width == 240)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_commands_fit_the_terminal_and_say_what_is_next(headscope, terminal, width):
    from headscope.cli.main import main

    for command, after in (("scan", "verify"), ("params", "scan"), ("known", "atlas")):
        out, err = terminal(width)
        given = ("demo", *(SMALL if command == "scan" else ())) if command != "known" else ("gpt2",)
        sys.argv[:] = ["headscope", command, *given]
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        addresses = [line for line in lines(out) if len(line.rstrip()) > width]
        assert all("https://" in one for one in addresses)
        assert "…" not in out.getvalue()
        assert f"Next: headscope {after} " in err.getvalue()


def test_two_roles_of_the_same_rows_have_one_table(headscope):
    said = headscope("scan", "demo", *SMALL).out
    assert "induction_recent: the same heads and scores as induction." in said
    assert len(re.findall(r"\bL1H0\b.*\[", said)) == len(set(re.findall(r"\bL1H0\b.*\[.*", said)))


def test_what_is_next_is_said_to_people_alone(capsys):
    following.suggest(["verify", "demo"], "why")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_the_next_command_opens_the_model_alike():
    opening = Opening(
        model="a b", device="cpu", dtype="auto", revision="main", allow_pickle=True, trust_remote_code=False
    )
    assert shlex.join(opening.words()) == "'a b' --device cpu --revision main --allow-pickle"


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_bar_says_what_is_done_and_how_long_the_rest_takes(terminal, clock):
    _, err = terminal(80)
    with progress.bars() as update:
        update("one", 1, 10)
        clock[0] = 3.0
        update("two", 3, 10)  # the same count under another name: 3 s for 3 of 10, so 7 s are left
        assert lines(err)[0].endswith("two ███████░░░░░░░░░░░░░░░░░  30%  7 s left")
        clock[0] = 4.0
        update("two", 1, 4)  # another count: it began just now
        clock[0] = 6.0
        update("two", 2, 4)
        assert lines(err)[0].endswith("two ████████████░░░░░░░░░░░░  50%  2 s left")
        update("three", 0, 4)
        assert lines(err)[0].endswith("three ░░░░░░░░░░░░░░░░░░░░░░░░   0%")
    assert err.getvalue().endswith("\r\x1b[K")


def test_short_work_shows_no_bar(terminal, clock):
    _, err = terminal(80)
    with progress.bars() as update:
        update("one", 1, 2)
        clock[0] = 1.9
        update("one", 2, 2)
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("scan", "demo", "--text", "FILE", "--period", "9"), "--period is for random prompts, and --text reads yours"),
        (("scan", "demo", "--tokens", "FILE", "--no-jitter"), "--jitter is for random prompts"),
        (("scan", "demo", "--text", "FILE", "--seed", "3"), "--seed is for random prompts"),
        (("sweep", "demo", "--gpus-per-job", "1"), "--gpus-per-job is an option of Ray"),
        (("sweep", "demo", "--address", "auto"), "--address is an option of Ray"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(headscope, tmp_path, arguments, named):
    (tmp_path / "file").write_text("a b a b")
    given = [tmp_path / "file" if one == "FILE" else one for one in arguments]
    ran = headscope(*given, *(("--store", tmp_path / "store") if arguments[0] == "sweep" else ()))
    assert (ran.code, ran.out) == (2, "")
    assert named in ran.err


def test_a_text_has_one_name_in_every_command(headscope):
    for command in ("scan", "verify", "report"):
        assert "--text" in headscope(command, "--help").out
    for command in ("check", "params"):
        assert "--seed" not in headscope(command, "--help").out  # taken, so that one set of options fits all


def test_a_shell_completes_commands_and_options():
    def completed(*words):
        asked = {
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
            "_HEADSCOPE_COMPLETE": "complete_bash",
        }
        code = "from headscope.cli.main import app; app(prog_name='headscope')"
        return subprocess.run(
            [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False
        ).stdout.split()

    assert completed("headscope", "ver") == ["verify"]
    assert completed("headscope", "scan", "--n-pr") == ["--n-prompts"]
