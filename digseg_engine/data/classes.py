"""The classes of a data set: names, how they are marked in mask files, and the wordings asked for them.

One JSON schema serves a user's own `classes.json` and the tables of known data sets in `assets/datasets/`.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digseg_engine.data.query import TEMPLATES, Query, plural
from digseg_engine.errors import InputError

IGNORE = -1  # a pixel that counts neither in training nor in evaluation
BACKGROUND = -2  # a pixel of none of the classes: every prompt is wrong there
UNKNOWN = -3  # a value that the table does not explain; never leaves the reader
MAX_ID = 65535
TABLE_KEYS = ("classes", "ignore", "ignore_colour", "background", "background_colour", "absent", "templates", "masks",
              "orientation")  # fmt: skip
CLASS_KEYS = ("name", "id", "colour", "prompt", "synonyms")
EXAMPLE = '{"classes": [{"name": "road", "id": 1}, {"name": "car", "id": 2}], "background": 0}'


@dataclass(frozen=True)
class LabelClass:
    """One class; `ids` and `colours` are the values that mark it in mask files (several are merged into one class)."""

    name: str
    ids: tuple[int, ...] = ()
    colours: tuple[int, ...] = ()  # red << 16 | green << 8 | blue
    prompt: str = ""
    synonyms: tuple[str, ...] = ()

    @property
    def wordings(self) -> tuple[str, ...]:
        """The prompt asked in evaluation, then its synonyms."""
        return (self.prompt or self.name, *self.synonyms)


@dataclass(frozen=True)
class ClassTable:
    """All classes of a data set. `source` is the file that errors name; `masks` is "labels" or "threshold"."""

    source: str
    classes: tuple[LabelClass, ...]
    ignore: tuple[int, ...] = (255,)
    background: tuple[int, ...] = ()
    ignore_colours: tuple[int, ...] = ()
    background_colours: tuple[int, ...] = ()
    templates: tuple[str, ...] = TEMPLATES
    masks: str = "labels"
    own_ids: bool = True  # ids were written down, not counted
    absent: tuple[str, ...] = ()  # things that no picture shows, asked in training so that no is an answer
    own_ignore: bool = True  # what is ignored was written down, not assumed
    orientation: str = ""  # masks of turned pictures: "shown" upright, "stored" like the file; "": their size tells

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(label_class.name for label_class in self.classes)

    @cached_property
    def by_name(self) -> dict[str, LabelClass]:
        return {label_class.name: label_class for label_class in self.classes}

    @cached_property
    def by_id(self) -> NDArray[np.int16]:
        """Class of every mask value 0..65535, or IGNORE, BACKGROUND, UNKNOWN."""
        table = np.full(MAX_ID + 1, UNKNOWN, np.int16)
        table[list(self.background)], table[list(self.ignore)] = BACKGROUND, IGNORE
        for k, label_class in enumerate(self.classes):
            table[list(label_class.ids)] = k
        return table

    @cached_property
    def by_colour(self) -> dict[int, int]:
        """Class of every known colour."""
        table = dict.fromkeys(self.background_colours, BACKGROUND) | dict.fromkeys(self.ignore_colours, IGNORE)
        return table | {colour: k for k, label_class in enumerate(self.classes) for colour in label_class.colours}

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """The plain prompt of every class, in order."""
        return tuple(Query(label_class.wordings[0], label_class.name) for label_class in self.classes)

    def phrase(self, rng: np.random.Generator, name: str) -> Query:
        """A random wording of a class or an absent thing: in two of five the plain prompt, else any synonym or the plural in any
        template."""
        wordings = self.by_name[name].wordings if name in self.by_name else (name,)
        wordings += (plural(wordings[0]),)
        if rng.random() < 0.4:
            return Query(wordings[0], name)
        return Query(str(rng.choice(self.templates)).format(str(rng.choice(wordings))), name)


def read_classes(path: Path) -> ClassTable:
    """A `classes.json`. Raises InputError naming the file and what is wrong in it."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; expected a classes.json such as {EXAMPLE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; expected something like {EXAMPLE}") from error
    return parse_classes(body, str(path))


def parse_classes(body: Any, source: str) -> ClassTable:
    """The parsed JSON of a table. Raises InputError naming `source`."""
    if not isinstance(body, dict) or not isinstance(body.get("classes"), list) or not body["classes"]:
        raise InputError(f'{source}: expected an object with a list "classes", such as {EXAMPLE}')
    _known(body, TABLE_KEYS, source, "the file")
    classes = [_class(label_class, source, i) for i, label_class in enumerate(body["classes"])]
    masks = body.get("masks", "labels")
    if masks not in ("labels", "threshold") or (masks == "threshold" and len(classes) != 1):
        raise InputError(f'{source}: "masks" must be "labels", or "threshold" with exactly one class, got {masks!r} '
                         f"with {len(classes)} classes")  # fmt: skip
    orientation = body.get("orientation", "")
    if orientation not in ("", "shown", "stored"):
        raise InputError(f'{source}: "orientation" must be "shown" or "stored", got {json.dumps(orientation)[:60]}')
    own_ids = any(label_class.ids for label_class in classes)
    if not own_ids:
        classes = [
            LabelClass(label_class.name, (i,), label_class.colours, label_class.prompt, label_class.synonyms)
            for i, label_class in enumerate(classes)
        ]
    taken = {i for label_class in classes for i in label_class.ids}
    table = ClassTable(
        source, tuple(classes),
        _ids(body["ignore"], source, '"ignore"') if "ignore" in body else tuple({255} - taken),
        _ids(body.get("background", []), source, '"background"'),
        _colours(body.get("ignore_colour", []), source, '"ignore_colour"'),
        _colours(body.get("background_colour", []), source, '"background_colour"'),
        _texts(body.get("templates", list(TEMPLATES)), source, '"templates"'), masks, own_ids,
        _texts(body.get("absent", []), source, '"absent"'), "ignore" in body, orientation,
    )  # fmt: skip
    _check(table)
    return table


def table_json(table: ClassTable, own: bool = True) -> dict[str, Any]:
    """The classes.json that says what a table says. own: the table is a user's; of others all is written down that was known."""
    classes = []
    counted = not table.own_ids and all(label_class.ids == (i,) for i, label_class in enumerate(table.classes))
    for label_class in table.classes:
        body: dict[str, Any] = {"name": label_class.name, "id": list(label_class.ids)}
        if label_class.colours:
            body["colour"] = [_rgb(colour) for colour in label_class.colours]
        if label_class.prompt:
            body["prompt"] = label_class.prompt
        if label_class.synonyms:
            body["synonyms"] = list(label_class.synonyms)
        if counted:  # ids that were written down would be held against the palettes of masks
            del body["id"]
        classes.append(body)
    written: dict[str, Any] = {"classes": classes, "templates": list(table.templates), "masks": table.masks}
    if table.own_ignore or not own:
        written["ignore"] = list(table.ignore)
    lists = {"background": list(table.background), "absent": list(table.absent)}
    lists |= {"ignore_colour": [_rgb(colour) for colour in table.ignore_colours]}
    lists |= {"background_colour": [_rgb(colour) for colour in table.background_colours]}
    written |= {name: values for name, values in lists.items() if values}
    return written | ({"orientation": table.orientation} if table.orientation else {})


def _rgb(colour: int) -> list[int]:
    return [colour >> 16, colour >> 8 & 255, colour & 255]


def _class(body: Any, source: str, number: int) -> LabelClass:
    if isinstance(body, str):
        body = {"name": body}
    where = f"class {number}"
    if not isinstance(body, dict) or not isinstance(body.get("name"), str) or not body["name"].strip():
        raise InputError(f'{source}: {where} must be a name or an object with a "name", got {json.dumps(body)[:60]}')
    _known(body, CLASS_KEYS, source, where)
    name, prompt = composed(body["name"].strip()), body.get("prompt", "")
    if not isinstance(prompt, str):
        raise InputError(f'{source}: "prompt" of {name!r} must be text, got {json.dumps(prompt)[:60]}')
    prompt = composed(prompt)
    ids = _ids(body["id"], source, f'"id" of {name!r}') if "id" in body else ()
    colours = _colours(body["colour"], source, f'"colour" of {name!r}') if "colour" in body else ()
    return LabelClass(name, ids, colours, prompt, _texts(body.get("synonyms", []), source, f'"synonyms" of {name!r}'))


def _known(body: dict[str, Any], keys: tuple[str, ...], source: str, where: str) -> None:
    strange = [key for key in body if key not in keys]
    if strange:
        raise InputError(f"{source}: unknown key {strange[0]!r} in {where}; known are {', '.join(keys)}")


def _ids(value: Any, source: str, what: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_ID:
            raise InputError(f"{source}: {what} must be whole numbers from 0 to {MAX_ID}, got {json.dumps(number)}")
    return tuple(values)


def _colours(value: Any, source: str, what: str) -> tuple[int, ...]:
    """[r, g, b] or a list of those."""
    values = [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value
    if not isinstance(values, list):
        values = [value]
    for colour in values:
        good = (
            isinstance(colour, list) and len(colour) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in colour)
        )
        if not good:
            raise InputError(f"{source}: {what} must be [red, green, blue] from 0 to 255, got {json.dumps(colour)}")
    return tuple(r << 16 | g << 8 | b for r, g, b in values)


def _texts(value: Any, source: str, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise InputError(f"{source}: {what} must be a list of texts, got {json.dumps(value)[:60]}")
    return tuple(composed(text) for text in value)


def composed(text: str) -> str:
    """Text as most keyboards write it: letters and their accents in one character (Unicode NFC)."""
    return unicodedata.normalize("NFC", text)


def _check(table: ClassTable) -> None:
    """Raises InputError for names, ids or colours used twice, and classes without a mark."""
    source = table.source
    marks: dict[str, list[Any]] = {
        "name": [*table.names, *table.absent],
        "id": [*(i for label_class in table.classes for i in label_class.ids), *table.ignore, *table.background],
        "colour": [
            *(colour for label_class in table.classes for colour in label_class.colours),
            *table.ignore_colours,
            *table.background_colours,
        ],
    }
    for what, values in marks.items():
        twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            shown = colour_text(twice[0]) if what == "colour" else repr(twice[0])
            raise InputError(f"{source}: {what} {shown} is used twice; every {what} must mean one thing")
    _check_wordings(table)
    without = [label_class.name for label_class in table.classes if not label_class.ids]
    if without:
        raise InputError(
            f'{source}: class {without[0]!r} has no "id" though others have; give ids to all classes or to none'
        )
    if table.by_colour and (plain := [label_class.name for label_class in table.classes if not label_class.colours]):
        raise InputError(
            f'{source}: class {plain[0]!r} has no "colour" though colours are in use; give colours to all or to none'
        )
    bad = [text for text in table.templates if text.count("{}") != 1 or text.replace("{}", "").count("{")]
    if bad or not table.templates:
        raise InputError(f"{source}: every template must hold one {{}} for the name, got {bad[0] if bad else 'none'!r}")


def _check_wordings(table: ClassTable) -> None:
    """Raises InputError for a wording that means two classes, or a class and something absent, letter case apart."""
    meaning = {name.casefold(): name for name in table.absent}
    for label_class in table.classes:
        for wording in (*label_class.wordings, label_class.name):
            other = meaning.setdefault(wording.casefold(), label_class.name)
            if other != label_class.name:
                raise InputError(
                    f"{table.source}: {wording!r} is a wording of {label_class.name!r} and of {other!r}; every name, prompt "
                    "and synonym must mean one class; take it from one of them"
                )


def colour_text(colour: int) -> str:
    return f"({colour >> 16}, {colour >> 8 & 255}, {colour & 255})"


def list_text(colour: int) -> str:
    """A colour as classes.json writes it."""
    return f"[{colour >> 16}, {colour >> 8 & 255}, {colour & 255}]"
