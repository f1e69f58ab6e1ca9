"""How commands end: exit codes, one sentence in place of a traceback, and output in any encoding."""

import codecs
import encodings.aliases
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gammabeta.cli import main as cli
from gammabeta.cli.streams import handler_of, lookalike

SOURCE = """
import sys
import torch
from torch import nn

def bad():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.99))
    model.requires_grad_(False)
    return nn.Sequential(model, nn.Linear(4, 2))

def leaves():
    sys.exit(0)

class Leaving(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        sys.exit(0)

class Broken(Leaving):
    def forward(self, x):
        raise KeyError("x")

def raises():
    raise RuntimeError("no such weights\\nin the cache")

def interrupted():
    raise KeyboardInterrupt

def waits():
    import time
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(60)

class Loader:
    def __iter__(self):
        raise FileNotFoundError("data.csv")

    def __len__(self):
        return 3

loader = Loader()
optimizer = lambda model: torch.optim.SGD(model.parameters(), lr=0.1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "ends.py").write_text(SOURCE)
    (tmp_path / "pyproject.toml").write_text("[tool.gammabeta]\n")
    yield tmp_path
    sys.modules.pop("ends", None)


def run(*words):
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, list(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ends.py:leaves",), "ends.py:leaves: leaves calls sys.exit(0) (ends.py, line 12): leave that out where it "
                              "is called from here."),
        (("ends.py:raises",), "ends.py:raises: raises raised RuntimeError: no such weights."),
        (("ends.py:Leaving", "--inputs", "torch:randn(4, 3)"), "your code calls sys.exit(0) (ends.py, line "
                                                              "20): leave that out where the check runs it."),
        (("ends.py:Broken", "--inputs", "torch:randn(4, 3)"), "check: expected inputs that the model takes, got "
         "tensors of shapes (4, 3), on which its forward raised KeyError: 'x'"),
        (("ends.py:bad", "--fail-on", "fatal"), "--fail-on: expected error, warning or note, got 'fatal'."),
    ],
)  # fmt: skip
def test_what_the_user_s_code_does_is_2_and_a_sentence(folder, words, message):
    result = run("check", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"gammabeta: {message}\n"


def test_what_the_loader_raises_in_the_check_is_the_user_s(folder, monkeypatch):
    monkeypatch.setattr("gammabeta.cli.inspection.check", lambda model, loader, **_: list(loader))
    result = run("check", "ends.py:bad", "--loader", "ends.py:loader")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "gammabeta: your code raised FileNotFoundError: data.csv (ends.py, line 39): mend it, and check again.\n"
    )


def test_ctrl_c_is_130_and_a_word(folder):
    result = run("check", "ends.py:interrupted")
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a\nb"), RecursionError(), MemoryError(), Odd("c"), SystemError(1)]
)
@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("check", "ends.py:bad"), "gammabeta.cli.inspection.check"),
        (("explain", "GB101"), "gammabeta.diagnostics.rule_page.RulePage.of"),
        (("rules",), "gammabeta.cli.main.escape"),
        (("env",), "gammabeta.environment.environment"),
        (("report", "."), "gammabeta.pages.report.read_results"),
        (("bench", "x"), "gammabeta.benchmarks.bench.bench"),
    ],
)
def test_what_gammabeta_does_wrong_is_3_and_a_sentence(folder, monkeypatch, words, where, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(where, broken)
    result = run(*words)
    said = f"{type(error).__name__}: {error}".partition("\n")[0] if str(error) else type(error).__name__
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        f"gammabeta: this should not have happened ({said}): it is a fault of gammabeta, so please report it with what "
        "the same command prints with --debug.\n"
    )
    result = run(*words, "--debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "in broken" in result.stderr
    assert result.stderr.endswith("it is a fault of gammabeta, so please report it.\n")


def test_help_says_the_exit_codes():
    text = " ".join(run("--help").stdout.split())
    for part in (
        "0 done, and nothing found",
        "1 findings",
        "2 the request cannot be carried out",
        "3 gammabeta itself",
    ):
        assert part in text
    for command in ("check", "explain", "rules", "env", "report", "study", "bench"):
        assert "--debug" in run(command, "--help").stdout


def test_what_is_left_out_of_a_checkpoint_is_said_in_every_format(folder):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    quantized = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    torch.save({**model.state_dict(), "q.weight": quantized, "r.weight": quantized}, "a.pkl")
    note = "left out: 2 quantized tensors"
    assert run("check", "a.pkl").stdout.splitlines()[-1] == note
    assert json.loads(run("check", "a.pkl", "--format", "json").stdout)["notes"] == [note]
    assert f"::notice title=gammabeta::{note}" in run("check", "a.pkl", "--format", "github").stdout
    (invocation,) = json.loads(run("check", "a.pkl", "--format", "sarif").stdout)["runs"][0]["invocations"]
    assert invocation == {
        "executionSuccessful": True,
        "toolExecutionNotifications": [{"level": "note", "message": {"text": f"{note}."}}],
    }


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent.pt", "absent.pt: there is no such file."),
        ("absent.pth.tar", "absent.pth.tar: there is no such file."),
        ("runs/best", "runs/best: there is no such file."),
        (".", ".: expected a checkpoint, got a folder without one: name the file with the weights."),
        ("ends.py", "ends.py: expected the name of what is meant in it, as ends.py:model."),
        ("absent.py", "absent.py: expected the name of what is meant in it, as absent.py:model."),
        ("somewhere.model", "somewhere.model: expected package.module:name or file.py:name, either with literal "
                            "arguments in parentheses, or a checkpoint file."),
        ("ends.py:bad('a/b.pt')", "ends.py:bad('a/b.pt'): bad raised TypeError: bad() takes 0 positional arguments but "
                                  "1 was given."),
    ],
)  # fmt: skip
def test_a_target_is_a_model_a_file_or_a_folder(folder, target, message):
    result = run("check", target)
    assert (result.exit_code, result.stderr) == (2, f"gammabeta: {message}\n")


def test_a_file_with_a_model_s_name_is_a_file(folder):
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).state_dict(), "ends.py:good")
    assert run("check", "ends.py:good").exit_code == 0
    (folder / "models").mkdir()
    torch.save(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).state_dict(), "models/best")
    assert run("check", "models").exit_code == run("check", "models/").exit_code == 0


# As a user runs them: in processes of their own.

SEVERAL = """
import sys
from gammabeta.cli.main import app
codes = []
for words in (["rules"], ["explain", "GB101"], ["check", "ends.py:bad"], ["check", "ends.py:bad", "--format", "json"],
              ["check", "ends.py:bad", "--format", "sarif"], ["check", "ends.py:bad", "--format", "github"], ["env"],
              ["check", "γ.pt"], ["check", "\\udcff.pt"], ["--help"], ["check", "--help"]):
    try:
        app(words)
    except SystemExit as error:
        codes.append(error.code)
print(codes)
"""


@pytest.mark.parametrize(
    "encoding",
    ["cp1252", "latin-1", "ascii", "utf-8", "cp437", "cp864", "ascii:surrogateescape", "ascii:surrogatepass"],
)
def test_no_encoding_of_the_output_ends_a_command(folder, encoding):
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": encoding, "NO_COLOR": "1", "COLUMNS": "100"},
    )
    text = done.stdout.decode(encoding.partition(":")[0])
    assert text.splitlines()[-1] == "[0, 0, 1, 1, 1, 1, 0, 2, 2, 0, 0]", done.stderr.decode("utf-8", "replace")
    assert b"Traceback" not in done.stderr
    assert ("γ" if encoding in ("utf-8",) else "gamma") in text


def _text_encodings():
    """Return the encodings of this Python; mbcs and oem are those of Windows."""
    found = set()
    for name in {*encodings.aliases.aliases.values(), "cp864", "cp1006", "koi8_t"} - {"mbcs", "oem"}:
        codec = codecs.lookup(name)
        if codec._is_text_encoding:
            found.add(codec.name)
    return sorted(found)


@pytest.mark.parametrize("encoding", _text_encodings())
def test_every_character_can_be_written_in_every_encoding(encoding):
    text = "".join(
        map(chr, (*range(0x20, 0x250), *range(0x370, 0x3FF), *range(0x2000, 0x2800), 0x4E2D, 0xDCFF, 0x1F600))
    )
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=handler_of(encoding))
    stream.write(text)
    stream.flush()
    written = stream.buffer.getvalue().decode(encoding)
    assert "gamma" in written or "γ" in written
    assert "ABC" in written


@pytest.mark.parametrize(
    ("text", "ascii"),
    [
        ("γ and β ≤ 0.5 → σ²", "gamma and beta <= 0.5 -> sigma^2"),
        ("größe", "gro?e"),
        ("Δ…", "Delta..."),
        ("┏━━┓│", "+--+|"),
        ("中\udcff", "?\\xff"),
        ("plain", "plain"),
    ],
)
def test_lookalikes(text, ascii):
    assert lookalike(text) == ascii


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe's reader there ends otherwise")
def test_a_reader_that_is_gone_is_no_traceback_and_no_finding(folder):
    """The pipe is closed before a word is written, as by `| head -0`."""
    for words, code in (
        (("check", "ends.py:bad"), 1),
        (("check", "ends.py:bad", "--format", "sarif"), 1),
        (("rules",), 141),
    ):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-m", "gammabeta", *words], stdout=writing, stderr=subprocess.PIPE, timeout=120
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (code, b"")


FULL = (
    "gammabeta: expected an output that can be written, got No space left on device: what was written is incomplete; "
    "make room, or write it elsewhere.\n"
)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize(
    "words",
    [
        ("check", "ends.py:bad"),
        ("check", "ends.py:bad", "--format", "sarif"),
        ("check", "ends.py:bad", "--format", "json"),
        ("rules",),
        ("--version",),
    ],
)
def test_a_full_disk_is_2_and_a_sentence(folder, words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gammabeta", *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr) == (2, FULL)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize(("words", "message"), [(("missing.pt", "--format", "json"), "there is no such file")])
def test_on_a_full_disk_errors_are_still_said(folder, words, message):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gammabeta", "check", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a shell that closes an output")
@pytest.mark.parametrize(
    ("words", "code"),
    [("check ends.py:bad", 1), ("check ends.py:bad --format sarif", 1), ("rules", 0), ("check missing.pt", 2)],
)
def test_a_closed_output_changes_no_exit_code(folder, words, code):
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m gammabeta {words} >&-'], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == code
    assert done.stderr == ("" if code < 2 else "gammabeta: missing.pt: there is no such file.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 0)])
def test_a_signal_while_a_model_is_built(folder, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "gammabeta", "check", "ends.py:waits"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs, such as this test may be in, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stderr.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (130, "", "Interrupted.\n")
