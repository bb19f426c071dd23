"""Recipes: the values of a training run, as TOML files. Torch-free.

    about = "one line"
    start = "pretrained"          what a run begins with: see COMMANDS
    extends = "finetune-100"      another recipe, or a file beside this one, whose values hold where this one has none
    scenes = 4000                 a value of the run
    [stages]                      values of every stage
    [student]                     values of one stage, above those of [stages]
    [folder]                      how a folder of labelled pictures is read

The bundled ones are `digseg_engine/assets/recipes/*.toml`. The names and kinds of values are those of the settings that
they become (`TrainConfig`, `FinetuneConfig`, `DistillConfig`, `StageConfig`, `FolderOptions`); what is not among them is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from digseg_engine.errors import UsageError
from digseg_engine.model.folder import CONFIG, text_width
from digseg_engine.named import ASSETS
from digseg_engine.words import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = ASSETS / "recipes"
STORED = "recipe.toml"  # of a run, all values resolved
ABOUT_THE_FILE = ("about", "start", "extends")  # what is no setting of a run
WIDE_TEXT = 1024  # features of a token in Stable Diffusion 2.x
LARGE_TEXT = 768  # in 1.x: nothing that was trained from less is a Stable Diffusion network

Start = Literal["nothing", "pretrained", "reference"]
COMMANDS = {  # start -> what a recipe for it does, and how it is used
    "nothing": "trains from nothing; use it without --init",
    "pretrained": "trains from pretrained weights; use it with --init MODEL",
    "reference": "distils a trained reference; use it with digseg distill",
}
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """Settings of a run that a recipe gives; a subclass says what the run begins with."""

    START: ClassVar[Start]

    recipe: str = ""  # where the values came from
    seed: int = 0
    quality_pictures: int = (
        0  # held-out ones that the finished checkpoint is measured on, see `recipes/measuring.py`; 0: none
    )

    def __post_init__(self) -> None:
        if self.quality_pictures < 0:
            raise UsageError(f"quality_pictures must be 0 or more, got {self.quality_pictures}; 0 measures nothing")


Settings = TypeVar("Settings", bound=RecipeSettings)


@dataclass(frozen=True)
class Recipe:
    """One recipe with what it extends: values by name, those of stages and of the folder in mappings of their own."""

    name: str
    about: str
    start: str
    values: Values


def bundled_recipes() -> list[str]:
    """The names of the recipes that are shipped."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(source: str) -> Recipe:
    """The bundled recipe of this name, or the one in the file `source`.

    Raises UsageError for an unknown name, a file that is not TOML, and recipes that extend each other in a circle.
    """
    return _read(_find(source, Path()), ())


def default_recipe(start: Path | None, student_only: bool = False) -> str:
    """The recipe for a start when none is asked for: a directory, or None for training from nothing."""
    if start is None:
        return "tiny"
    if (start / CONFIG).is_file():
        return "finetune-all" if student_only else "finetune-100"
    return "sd21-ade20k" if text_width(start) >= WIDE_TEXT else "sd15"


def distill_recipe(checkpoint: Path) -> str:
    """The recipe for distilling a checkpoint when none is asked for."""
    return "distill-sd" if text_width(checkpoint) >= LARGE_TEXT else "distill-tiny"


def former_name(asked: str, start: Path | None) -> str | None:
    """What a recipe of earlier releases is called now; None for any other name."""
    if asked == "quick":
        return "finetune-100"
    if asked == "full":
        return "finetune-all" if start is None else default_recipe(start, student_only=True)
    return None


def settings_of(recipe: Recipe, kind: type[Settings]) -> Settings:
    """The recipe's values as settings of this kind.

    Raises UsageError for a recipe for another kind of start, a value that no run has, one of another type, and one that lacks.
    """
    check_kind(recipe, kind.START)
    made: Settings = _build(kind, recipe.values, f"recipe {recipe.name}", "")
    return made


def check_kind(recipe: Recipe, start: Start) -> None:
    """Raises UsageError for a recipe for another kind of start."""
    if recipe.start != start:
        raise UsageError(f"recipe {recipe.name} {COMMANDS[recipe.start]}")


def recipe_settings(name: str, kind: type[Settings]) -> Settings:
    """The settings of the recipe called `name`, or in the file `name`."""
    return settings_of(read_recipe(name), kind)


def as_toml(settings: RecipeSettings) -> str:
    """All values of a run as a recipe that extends nothing and gives the same settings again."""
    head = [f"# every value of a run, as it was resolved; the same again: the same command with --recipe {STORED}",
            f"start = {_toml(settings.START)}"]  # fmt: skip
    plain, tables = _lines(settings)
    for name, table in tables.items():
        plain += ["", f"[{name}]", *table]
    return "\n".join(head + plain) + "\n"


def _find(source: str, beside: Path) -> Path:
    if source in bundled_recipes():
        return RECIPES / f"{source}.toml"
    path = beside / source
    if path.is_file():
        return path
    known = bundled_recipes()
    raise UsageError(
        f"no recipe {source!r}{did_you_mean(source, known)}; expected one of {', '.join(known)}, or a TOML file"
    )


def _read(path: Path, children: tuple[Path, ...]) -> Recipe:
    if path.resolve() in children:
        raise UsageError(f"recipe {path} extends itself; take one of its `extends` away")
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}; expected TOML (docs/training.md, Recipes)") from error
    for name in ABOUT_THE_FILE:
        if not isinstance(body.get(name, ""), str):
            raise UsageError(f"recipe {path}: {name} must be text, got {body[name]!r}")
    extended = body.get("extends")
    base = None if extended is None else _read(_find(extended, path.parent), (*children, path.resolve()))
    start = str(body.get("start", base.start if base else ""))
    if start not in get_args(Start):
        raise UsageError(f"recipe {path}: start must be {' or '.join(get_args(Start))}, got {start!r}")
    values: Values = {"recipe": path.stem, **{key: value for key, value in body.items() if key not in ABOUT_THE_FILE}}
    about = body.get("about", base.about if base else "")
    return Recipe(path.stem, about, start, _merged(base.values if base else {}, values))


def _merged(base: Values, values: Values) -> Values:
    """`values` over `base`; [stages] holds for all stages of both, and is not among the result."""
    everywhere = values.get("stages", {})
    if not isinstance(everywhere, dict):
        return {**base, **values}  # refused by name later
    found: Values = {}
    for name in {**base, **values}:
        mine, theirs = values.get(name), base.get(name)
        if name == "stages":
            continue
        tables = isinstance(mine, dict) or (mine is None and isinstance(theirs, dict))
        if not tables:
            found[name] = theirs if mine is None else mine
        else:
            shared = everywhere if name != "folder" else {}
            found[name] = {**(theirs if isinstance(theirs, dict) else {}), **shared, **(mine or {})}
    return found


def _build(kind: Any, values: Mapping[str, Any], where: str, path: str) -> Any:
    """An instance of the dataclass `kind`; path: of `values` in the file, such as "student."."""
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            raise UsageError(f"{where}: there is no setting {path}{name}{did_you_mean(name, known)}; expected "
                             f"{_listed(path + each for each in known)}")  # fmt: skip
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{where}: {path}{name} lacks; say it, or extend a recipe that does")
    return kind(**{name: _value(hints[name], value, where, path + name) for name, value in values.items()})


def _value(hint: Any, value: Any, where: str, path: str) -> Any:
    """A value of the file as the type `hint`. Raises UsageError when it is of another one."""
    kinds = [kind for kind in (get_args(hint) if get_origin(hint) not in (Literal, tuple) else [hint])
             if kind is not type(None)] or [hint]  # fmt: skip
    kind = kinds[0]
    if is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value, where, f"{path}.")
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_value(get_args(kind)[0], each, where, path) for each in value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    raise UsageError(f"{where}: {path} must be {_said(kind)}, got {value!r}")


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list"
    if is_dataclass(kind):
        return "a table of settings"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _lines(settings: Any) -> tuple[list[str], dict[str, list[str]]]:
    """(lines of the plain values, lines of every table) of a dataclass; what is None is left out."""
    plain: list[str] = []
    tables: dict[str, list[str]] = {}
    for name, value in vars(settings).items():
        if is_dataclass(value):
            tables[name] = _lines(value)[0]
        elif value is not None:
            plain.append(f"{name} = {_toml(value)}")
    return plain, tables


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)  # TOML writes both as JSON does
    return repr(value)
