"""Names of things that configs choose from: added where they are defined, found without a list of modules."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lvdm.errors import ConfigError
from lvdm.registry import Registry


def test_what_is_registered_is_found_under_its_name_and_in_order():
    registry: Registry[object] = Registry("thing")

    @registry.register("second")
    def one():
        return 1

    registry.register("first")(two := object())
    assert registry["second"] is one and one() == 1
    assert list(registry) == ["second", "first"] and registry.values() == [one, two] and len(registry) == 2
    assert "first" in registry and "third" not in registry
    registry.remove("second")
    assert list(registry) == ["first"]
    with pytest.raises(ConfigError, match="unknown thing 'second': choose from first"):
        registry["second"]
    with pytest.raises(ValueError, match="there is a thing 'first' already"):
        registry.register("first")
        registry.register("first")(object())


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose modules add themselves to a registry in it when they are imported."""
    folder = tmp_path / "plugins_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from lvdm.registry import Registry\nTHINGS = Registry('thing', modules='plugins_of_a_test.thing_')\n"
    )
    for name in ("thing_a", "thing_b", "other"):
        (folder / f"{name}.py").write_text(
            f"from plugins_of_a_test import THINGS\nTHINGS.register('{name}')('{name}')\nassert 'none' not in THINGS\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder.name
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


@pytest.mark.parametrize("look", [list, len, lambda things: "thing_a" in things, lambda things: things.values()])
def test_modules_of_a_prefix_are_imported_at_the_first_look(package, look):
    things = __import__(package).THINGS
    assert f"{package}.thing_a" not in sys.modules
    assert look(things)
    assert list(things) == ["thing_a", "thing_b"] and things["thing_b"] == "thing_b"
    assert f"{package}.other" not in sys.modules


def test_threads_that_look_while_modules_are_imported_wait_for_them(package, tmp_path):
    slow = tmp_path / package / "thing_a.py"
    slow.write_text("import time\ntime.sleep(0.3)\n" + slow.read_text())
    things = __import__(package).THINGS
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: things["thing_b"], range(4))) == ["thing_b"] * 4


def test_a_module_that_cannot_be_imported_is_said_at_every_look(package, tmp_path):
    (tmp_path / package / "thing_c.py").write_text("import no_such_module\n")
    things = __import__(package).THINGS
    for _ in range(2):
        with pytest.raises(ImportError, match="no_such_module"):
            things["thing_a"]
