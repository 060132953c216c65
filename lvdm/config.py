"""Configuration: YAML files that extend each other, dotlist overrides, and checked construction of dataclasses.

A configuration is a plain mapping until a dataclass is built from it. Whatever does not fit is a `ConfigError` of one
sentence that names the place and, for a misspelt key, the nearest valid one.
"""

import dataclasses
import difflib
import io
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

from lvdm.errors import ConfigError
from lvdm.files import atomic_path
from lvdm.outside import check_text, check_yaml, checked_path, read_text

T = TypeVar("T", bound="DataclassInstance")

MAX_YAML = 4 * 2**20  # bytes of a config file
MAX_EXTENDS = 20  # files that extend each other in a row


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    overrides: Iterable[str] = (),
    schema: type | types.UnionType | None = None,
) -> dict[str, Any]:
    """Read a YAML file and everything it `extends`, apply overrides, resolve interpolations; return plain containers.

    Of several files, later ones win, as if one extended those before it.

    `extends: other.yaml` (or a list of files, later ones winning) is relative to the file that says it. Mappings are
    merged key by key, lists and scalars are replaced. An override is `dotted.key=value`, its value written as in YAML;
    list items have numbers for keys (`channels.0=64`). Its key must already be in the file or, where `schema` (the
    dataclass that will be built) is given, be one of its fields, or anything beside them where that is `CLASS | dict`.
    A value `???` must be overridden.

    Raises ConfigError for a missing or malformed file, a circular `extends`, an unknown key, a bad interpolation.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    last = paths[-1]
    try:
        config = OmegaConf.merge(*(_load_file(find(each), ()) for each in paths))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config files {', '.join(map(str, paths))} do not fit: {_first_line(error)}") from error
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override '{override}' must be written as key=value")
        _check_override(key, OmegaConf.to_container(config, resolve=False), schema, where=str(last))
        check_yaml(value, f"override '{override[:60]}'", ConfigError)
        try:
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"])["value"], merge=True)
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
            raise ConfigError(f"override '{override}' cannot be applied: {_first_line(error)}") from error
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except (OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{last}: {_first_line(error)}") from error


def find(path: str | os.PathLike[str]) -> Path:
    """A config file: `path` itself or, where that is not there, the shipped config of this name.

    So `configs/aicl_lvdm.yaml`, `aicl_lvdm` and `models/puppets` mean the same in a checkout and in any other folder.
    """
    path = checked_path(path, ConfigError)
    name = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    if not path.is_file() and not path.is_absolute():
        for shipped in (shipped_configs() / name, shipped_configs() / f"{name}.yaml"):
            if shipped.is_file():
                return shipped
    return path


def shipped_configs() -> Path:
    """The folder of the configs that come with the library: inside the installed package, or the checkout's."""
    installed = Path(__file__).with_name("configs")
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "configs"


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "config") -> T:
    """Build dataclass `cls` from a mapping, checking every key and type on the way down.

    Understands nested dataclasses, unions and None, `Literal`, `list[...]`, `tuple[...]`, `dict[str, ...]`, `Path` and
    plain types. An int is accepted for a float; a bool never counts as a number. `where` names the mapping in errors.
    A dataclass says which of its keys had another name before in a class attribute `RENAMED`, {old name: new name}.

    Raises ConfigError for an unknown or renamed key, a missing key or a value of the wrong type.
    """
    if isinstance(mapping, cls):
        return mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where} must be a mapping, got {_shown(mapping)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_keys(mapping, fields, where, renamed_keys(cls))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in mapping:
            raise ConfigError(f"missing key '{name}' in {where}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _checked(hints[name], value, f"{where}.{name}") for name, value in mapping.items()})


def to_mapping(value: Any) -> Any:
    """The reverse of `from_mapping`: dataclasses become dicts, tuples lists, paths strings, all the way down."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_mapping(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: to_mapping(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_mapping(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def save(path: str | os.PathLike[str], mapping: Mapping[str, Any]) -> None:
    """Write a mapping of plain containers as YAML, atomically; `load(path)` gives it back."""
    with atomic_path(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(mapping))), encoding="utf-8")


def renamed_keys(cls: type) -> Mapping[str, str]:
    """Old name -> new name of the keys of dataclass `cls` that were renamed."""
    return getattr(cls, "RENAMED", {})


def with_new_names(mapping: Mapping[str, Any], renamed: Mapping[str, str], where: str) -> dict[str, Any]:
    """A mapping whose renamed keys have their new names: for files that earlier versions wrote and must stay readable.

    Raises ConfigError for a key that is there under both names.
    """
    if twice := next((old for old, new in renamed.items() if old in mapping and new in mapping), None):
        raise ConfigError(f"{where} has both '{renamed[twice]}' and '{twice}', its old name: remove '{twice}'")
    return {renamed.get(key, key): value for key, value in mapping.items()}


def check_keys(
    given: Iterable[str], valid: Iterable[str], where: str, renamed: Mapping[str, str] | None = None
) -> None:
    """Raise ConfigError for the first of `given` that is not in `valid`, naming its new name or the nearest valid key.

    >>> check_keys(["modle_channels"], ["model_channels"], "unet")
    ConfigError: unknown key 'modle_channels' in unet: did you mean 'model_channels'?
    """
    valid = [str(key) for key in valid]
    for key in given:
        if renamed and key in renamed:
            raise ConfigError(f"'{key}' in {where} is called '{renamed[key]}' now: write that instead")
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(valid) or 'none'}"
            raise ConfigError(f"unknown key '{key}' in {where}: {hint}")


def check_at_least(section: Any, least: float, names: Iterable[str], where: str = "") -> None:
    """Raise ConfigError for the first of the fields `names` that is below `least`, infinite or not a number.

    Fields that are None count as left out. `where` names the section, if it has a name.
    """
    for name in names:
        value = getattr(section, name)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"{where and where + '.'}{name} is {value}: it must be at least {least}")


def _load_file(path: Path, chain: tuple[Path, ...]) -> DictConfig:
    """One file merged over the files it extends; `chain` holds the files that led here."""
    path = checked_path(path, ConfigError).resolve()
    if path in chain:
        raise ConfigError(f"config file {path} extends itself by way of {', '.join(p.name for p in chain)}")
    if len(chain) > MAX_EXTENDS:
        raise ConfigError(f"config file {path} is reached over {len(chain)} files that extend each other: too many")
    origin = f", which {chain[-1]} extends," if chain else ""
    text = read_text(path, ConfigError, MAX_YAML, what=f"config file {path}{origin}")
    plain = dict(_parsed(text, path))
    parents = plain.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"config file {path}: extends must be a file or a list of files, got {_shown(parents)}")
    try:
        above = [_load_file(path.parent / checked_path(parent, ConfigError), (*chain, path)) for parent in parents]
        own = OmegaConf.create(plain)
        return cast(DictConfig, OmegaConf.merge(*above, own)) if above else own  # all of them are mappings
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path} does not fit what it extends: {_first_line(error)}") from error


@lru_cache(maxsize=256)  # parsing takes most of the time, and a program reads the same few files many times
def _parsed(text: str, path: Path) -> Mapping[str, Any]:
    """What a file's text holds, as plain containers that nobody may change. Raises ConfigError, which names `path`."""
    if not check_yaml(text, f"config file {path}", ConfigError):
        raise ConfigError(f"config file {path} must hold a mapping at its top level")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False))
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:  # of one or the other
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error


def _check_override(key: str, value: Any, kind: Any, where: str) -> None:
    """Follow a dotted key down what the file holds (`value`) and what the schema allows (`kind`, None: unknown)."""
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or where
        if isinstance(value, list):
            if not (part.isascii() and part.isdigit() and len(part) < 9) or int(part) >= len(value):
                raise ConfigError(f"{where} has items 0..{len(value) - 1}, but an override names '{part}'")
            value, kind = value[int(part)], _item(kind)
            continue
        present, allowed = value if isinstance(value, Mapping) else {}, _fields(kind)
        if part not in present and part not in allowed and _is_free(kind):
            return
        check_keys([part], {**allowed, **present}, where, _renamed(kind))
        value, kind = present.get(part), allowed.get(part, Any if _is_free(kind) else None)


def _fields(kind: Any) -> dict[str, Any]:
    """Names and types of the dataclass that `kind` is or may be; empty for anything else."""
    for option in (kind, *typing.get_args(kind)):
        if dataclasses.is_dataclass(option):
            hints = typing.get_type_hints(option)
            return {field.name: hints[field.name] for field in dataclasses.fields(option) if field.init}
    return {}


def _item(kind: Any) -> Any:
    """What the items of the list are that `kind` is or may be; None for anything else."""
    lists = [option for option in (kind, *typing.get_args(kind)) if typing.get_origin(option) is list]
    return typing.get_args(lists[0])[0] if lists else None


def _renamed(kind: Any) -> Mapping[str, str]:
    """The renamed keys of the dataclass that `kind` is or may be."""
    options = (kind, *typing.get_args(kind))
    return next((renamed_keys(o) for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), {})


def _is_free(kind: Any) -> bool:
    """Whether `kind` is, or may be, anything or a dict: whoever consumes it checks its keys."""
    return any(option in (Any, dict) or typing.get_origin(option) is dict for option in (kind, *typing.get_args(kind)))


def _checked(kind: Any, value: Any, where: str) -> Any:
    """`value` as type `kind`, or a ConfigError that says what `where` must be."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _checked_union(arguments, value, where)
    if origin is Literal:
        if any(type(value) is type(option) and value == option for option in arguments):  # True == 1 in Python
            return value
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_mapping(kind, value, where)
    elif origin in (list, tuple) or kind in (list, tuple):
        if isinstance(value, list | tuple):
            return _checked_items(kind, value, where)
    elif origin is dict or kind is dict:
        if isinstance(value, Mapping):
            inner = arguments[1] if arguments else Any
            return {key: _checked(inner, item, f"{where}.{key}") for key, item in value.items()}
    elif kind is Path:
        if isinstance(value, str | Path):
            return checked_path(value, ConfigError)
    elif kind in (int, float):
        if not isinstance(value, bool) and isinstance(value, (int,) if kind is int else (int, float)):
            if not math.isfinite(value):
                raise ConfigError(f"{where} is {value}: it must be finite")
            if isinstance(value, int) and not abs(value) < 2**63:
                raise ConfigError(f"{where} is {_shown(value)}: it must fit into 64 bits")
            return kind(value)
    elif isinstance(value, kind):
        return check_text(value, where, ConfigError) if kind is str else value
    raise ConfigError(f"{where} must be {_describe(kind)}, got {_shown(value)}")


def _checked_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first option that takes the value; one structured option alone reports its own, more exact error."""
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _checked(options[0], value, where)
    if type(value) in options:  # an int stays an int where both int and float would do
        return value
    for option in options:
        try:
            return _checked(option, value, where)
        except ConfigError:
            continue
    raise ConfigError(f"{where} must be {' or '.join(map(_describe, options))}, got {_shown(value)}")


def _checked_items(kind: Any, value: list[Any] | tuple[Any, ...], where: str) -> Any:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{where} must have {len(arguments)} items, got {len(value)}")
    kinds = arguments if fixed else (arguments[0] if arguments else Any,) * len(value)
    return origin(_checked(item_kind, item, f"{where}.{i}") for i, (item_kind, item) in enumerate(zip(kinds, value)))


def _describe(kind: Any) -> str:
    """A type in words for error messages."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", Path: "a path"}
    origin = typing.get_origin(kind) or kind
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(kind))
    if origin in (list, tuple):
        return "a list"
    return "a mapping" if origin is dict or dataclasses.is_dataclass(kind) else names.get(kind, f"a {kind.__name__}")


def _shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_line(error: Exception) -> str:
    """OmegaConf appends the full key and object type on further lines."""
    return str(error).splitlines()[0].rstrip(".")
