"""The table [tool.gammabeta] of pyproject.toml."""

import pytest

from gammabeta.cli.configuration import Configuration, ConfigurationError, read_configuration


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def test_the_nearest_table_upwards_counts(tmp_path):
    write(tmp_path, '[tool.gammabeta]\nselect = ["GB1", "GB4"]\nignore = ["GB401:head.*"]\nfail-on = "warning"\n')
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").mkdir()
    expected = Configuration(["GB1", "GB4"], ["GB401:head.*"], "warning")
    assert read_configuration(tmp_path / "a" / "b") == expected
    write(tmp_path / "a", "[tool.other]\n")  # without our table it is skipped
    assert read_configuration(tmp_path / "a" / "b") == expected
    write(tmp_path / "a", "[tool.gammabeta]\n")
    assert read_configuration(tmp_path / "a" / "b") == Configuration()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.gammabeta\n", "cannot be read: "),
        ("tool = 3\n", "expected tool as a table, got 3: write [tool.gammabeta]."),
        ("[tool]\ngammabeta = [1]\n", "expected tool.gammabeta as a table, got [1]: write [tool.gammabeta]."),
        ("a = " + "[" * 5000 + "]" * 5000, "cannot be read: "),
        ('[tool.gammabeta]\nfail_on = "error"\n', "[tool.gammabeta] has an unknown key fail_on: did you "
                                                  "mean fail-on?"),
        ("[tool.gammabeta]\nx = 1\n", "[tool.gammabeta] has an unknown key x: known keys are select, ignore, "
                                      "fail-on."),
        ('[tool.gammabeta]\nselect = "GB1"\n', 'expected select as a list of codes, such as ["GB101"], got \'GB1\'.'),
        ('[tool.gammabeta]\nfail-on = "fatal"\n', "fail-on: expected error, warning or note, got 'fatal'."),
    ],
)  # fmt: skip
def test_what_is_wrong_in_it_is_said(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'pyproject.toml'}: {message}")
