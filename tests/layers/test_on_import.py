"""Actions at the import of another library: they run once for each execution, however it is imported."""

import subprocess
import sys
import textwrap

import pytest


@pytest.fixture
def library(tmp_path):
    """Write a package `other` with a part that it imports itself, one that fails, and one that nobody imports."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "__init__.py").write_text("import other.part\nvalue = 1\n")
    (folder / "part.py").write_text("import other\nloaded = True\n")
    (folder / "late.py").write_text("")
    (folder / "failing.py").write_text("raise ImportError('as ever')\n")
    (folder / "data.txt").write_text("data")
    return tmp_path


def run(library, script):
    """Return what the script prints in a separate process, whose list of finders is fresh."""
    head = (
        "import importlib, sys\n"
        "from gammabeta.layers.integrations.on_import import on_import\n"
        "ran = []\n"
        "note = lambda module: ran.append((module.__name__, getattr(module, 'value', None)))\n"
    )
    words = [sys.executable, "-W", "error", "-c", head + textwrap.dedent(script)]
    path = f"import sys; sys.path.insert(0, {str(library)!r})\n"
    words[-1] = path + words[-1]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_us_imports_neither_library():
    script = "import sys, gammabeta; print([n for n in ('opacus', 'timm', 'torchvision') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_before_and_after_the_import(library):
    assert run(
        library,
        """
        on_import("other", note)
        print(ran)
        import other
        print(ran)
        on_import("other", lambda module: ran.append("at once"))
        print(ran)
        """,
    ) == ["[]", "[('other', 1)]", "[('other', 1), 'at once']"]


def test_parts_that_are_imported_while_the_package_is(library):
    assert run(
        library,
        """
        on_import("other.part", note)
        on_import("other", note)
        from other import part
        print(ran)
        """,
    ) == ["[('other.part', None), ('other', 1)]"]


def test_again_after_a_reload_and_after_the_module_was_dropped(library):
    assert run(
        library,
        """
        on_import("other", note)
        import other
        importlib.reload(other)
        del sys.modules["other"]
        import other
        print(len(ran))
        """,
    ) == ["3"]


def test_the_module_has_the_loader_that_it_would_have(library):
    assert run(
        library,
        """
        import importlib.resources, importlib.util, inspect, runpy
        on_import("other", note)
        on_import("other.late", note)
        import other
        print(type(other.__loader__).__name__, type(other.__spec__.loader).__name__)
        data = importlib.resources.files("other").joinpath("data.txt").read_text()
        print(data, "value = 1" in inspect.getsource(other))
        found = importlib.util.find_spec("other.late")
        print(found.loader.get_filename("other.late") == found.origin, found.loader.is_package("other.late"), ran)
        runpy.run_module("other.late")
        """,
    ) == ["SourceFileLoader SourceFileLoader", "data True", "True False [('other', 1)]"]


def test_an_import_error_stays_what_it_is_and_the_next_try_counts(library):
    assert run(
        library,
        """
        on_import("other.failing", note)
        on_import("nowhere", note)
        for name in ("other.failing", "nowhere"):
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(type(error).__name__, error, name in sys.modules)
        import other
        open(other.__path__[0] + "/failing.py", "w").write("value = 'mended now'\\n")
        importlib.invalidate_caches()
        import other.failing
        print(ran)
        """,
    ) == [
        "ImportError as ever False",
        "ModuleNotFoundError No module named 'nowhere' False",
        "[('other.failing', 'mended now')]",
    ]


def test_an_action_that_fails_warns_and_the_import_goes_on(library):
    assert run(
        library,
        """
        import warnings
        def failing(module):
            raise AttributeError("no such table")
        on_import("other", failing)
        on_import("other", note)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import other
        print(caught[0].message)
        print(other.value, ran)
        """,
    ) == [
        "gammabeta: expected the tables of other in which its layers are registered, got AttributeError: no such "
        "table. other does not know gammabeta's layers: hand it torch's, with gammabeta.release(model).",
        "1 [('other', 1)]",
    ]


def test_other_finders_that_begin_the_search_anew(library):
    assert run(
        library,
        """
        import importlib.abc, importlib.util
        class Hook(importlib.abc.MetaPathFinder):
            inside = False
            def find_spec(self, name, path=None, target=None):
                if name != "other" or self.inside:
                    return None
                self.inside = True
                try:
                    return importlib.util.find_spec(name)
                finally:
                    self.inside = False
        on_import("other", note)
        sys.meta_path.insert(0, Hook())
        sys.meta_path.append(Hook())
        sys.meta_path.insert(2, Hook())
        import other
        print(ran, type(other.__loader__).__name__)
        """,
    ) == ["[('other', 1)] SourceFileLoader"]


def test_lazy_loading_stays_lazy(library):
    assert run(
        library,
        """
        import importlib.util
        on_import("other", note)
        spec = importlib.util.find_spec("other")
        loader = importlib.util.LazyLoader(spec.loader)
        spec.loader = loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["other"] = module
        loader.exec_module(module)
        print(ran)
        module.value
        print(ran)
        """,
    ) == ["[]", "[('other', 1)]"]


def test_many_threads(library):
    assert run(
        library,
        """
        import threading
        on_import("other", note)
        threads = [threading.Thread(target=importlib.import_module, args=("other",)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(ran)
        """,
    ) == ["[('other', 1)]"]
