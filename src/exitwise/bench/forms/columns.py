"""Which column of a table is what: by its type or its usual names, or as the user says; and a row in the words of `rows`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exitwise.errors import InputError, unknown

from ..items import SKIP, Kind

ROLES: dict[str, tuple[str, ...]] = {  # role -> names under which data sets have it, the first that is there counts
    "image": ("image", "img", "picture", "photo", "jpg", "jpeg", "png"),
    "captions": ("captions", "caption", "sentences", "sentence", "texts", "text", "raw"),
    "hypothesis": ("hypothesis", "sentence2"),
    "sentence": ("sentence", "statement"),
    "question": ("question",),
    "label": ("label", "gold_label", "labels"),
    "answer": ("answer", "multiple_choice_answer"),
    "caption": ("caption", "premise", "sentence1"),
    "candidates": ("candidates", "choices"),
    "group": ("group",),
    "name": ("file_name", "filename", "image_id", "img_id"),
    "licence": ("licence", "license"),
    "source": ("source",),
}
NEEDED: dict[Kind, tuple[tuple[str, ...], ...]] = {  # the forms of a task's rows: the first whose columns are all there counts
    "caption": (("captions",),),
    "answer": (("hypothesis", "label"), ("question", "answer"), ("sentence", "label")),
}
BESIDE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("captions",): (), ("hypothesis", "label"): ("caption",), ("question", "answer"): ("candidates",), ("sentence", "label"): (),
}  # fmt: skip
ALWAYS = ("group", "name", "licence", "source")


@dataclass(frozen=True)
class Columns:
    """Role -> column. labels: names of a label's numbers, from 0; none where it is text or a truth value."""

    columns: Mapping[str, str]
    labels: tuple[str, ...] = ()

    def row(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A row of the table in the words of `rows`, without its image. Raises InputError for a label's number that has no name."""
        told = {role: values[column] for role, column in self.columns.items() if role != "image"}
        if "captions" in told:
            told["captions"] = _texts(told["captions"])
        if self.labels:
            told["label"] = self._label(told["label"], where)
        return {role: value for role, value in told.items() if value is not None}

    def _label(self, number: Any, where: str) -> str:
        if not isinstance(number, int) or not 0 <= number < len(self.labels):
            named = ", ".join(f"{place} {name}" for place, name in enumerate(self.labels))
            raise InputError(f"{where}: the label {number!r} is not among {named}. {SKIP}")
        return self.labels[number]


def known(roles: Sequence[str], source: str, besides: Sequence[str]) -> None:
    """Raises UnknownName for a role that there is not, with the near miss."""
    for role in roles:
        if role not in ROLES:
            raise unknown(f"role of a column (in {source})", role, (*ROLES, *besides))


def resolve(features: Mapping[str, Any], kind: Kind, given: Mapping[str, str], labels: str | None, source: str) -> Columns:
    """Which columns a task of this kind takes. features: column -> its type in `datasets`. Raises InputError that lists the columns."""
    for role, named in given.items():
        if named not in features:
            near = difflib.get_close_matches(named, list(features), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{source} has no column {named!r} (for {role}).{hint} It has: {', '.join(features)}.")
    found = {role: column for role in ROLES if role != "image" and (column := given.get(role) or _usual(role, features))}
    image = given.get("image") or _pictures(features, source)
    form = _form(found, given, kind)
    if image is None or form is None:
        wanted = " or ".join(" and ".join(each) for each in NEEDED[kind])
        lacking = [*(["an image"] if image is None else []), *([wanted] if form is None else [])]
        raise InputError(
            f"{source} has no column that is {' nor '.join(lacking)}, which the task {kind} needs. It has: {', '.join(features)}. Say "
            f"which column is what after commas, such as {source.partition('@')[0]},{form[0] if form else NEEDED[kind][0][0]}=COLUMN."
        )
    if not _holds_images(features[image]):
        raise InputError(
            f"{source}: the column {image!r} holds {_type(features[image])}, no images. Name the one that does: ,image=COLUMN."
        )
    taken = {role: found[role] for role in (*form, *BESIDE[form], *ALWAYS) if role in found}
    return Columns({"image": image, **taken}, _names(features[taken["label"]], labels, source) if "label" in taken else ())


def _form(found: Mapping[str, str], given: Mapping[str, str], kind: Kind) -> tuple[str, ...] | None:
    """The form whose columns are all there; one whose first column the user names goes before the others."""
    whole = [form for form in NEEDED[kind] if all(role in found for role in form)]
    return next((form for form in whole if form[0] in given), whole[0] if whole else None)


def _usual(role: str, features: Mapping[str, Any]) -> str | None:
    return next((name for name in ROLES[role] if name in features and not _holds_images(features[name])), None)


def _pictures(features: Mapping[str, Any], source: str) -> str | None:
    """The column of images: the only one of that type, or the one with a usual name."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) > 1:
        usual = [name for name in ROLES["image"] if name in images]
        if not usual:
            raise InputError(f"{source} has several columns of images: {', '.join(images)}. Choose one: ,image=COLUMN.")
        return usual[0]
    return images[0] if images else next((name for name in ROLES["image"] if name in features), None)


def _holds_images(feature: Any) -> bool:
    return type(feature).__name__ == "Image" or getattr(feature, "dtype", None) in ("binary", "large_binary")


def _type(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _names(feature: Any, labels: str | None, source: str) -> tuple[str, ...]:
    """The names of a label's numbers: as the user says, or the type's own. Raises InputError for numbers without names."""
    numbers = "int" in _type(feature)
    if labels is not None:
        if not numbers:
            raise InputError(f"{source}: labels={labels} names numbers, but the column holds {_type(feature)}. Leave it out.")
        return tuple(name.strip() for name in labels.split("/"))
    if numbers and not getattr(feature, "names", None):
        raise InputError(
            f"{source}: the labels are numbers without names. Say what they mean, in order from 0, such as "
            ",labels=entailment/neutral/contradiction."
        )
    return tuple(feature.names) if numbers else ()


def _texts(value: Any) -> Any:
    """Captions as a list of texts: one text, a list, or Karpathy's {"raw": ...}, alone or in a list."""
    each = value if isinstance(value, list) else [value]
    return [one.get("raw") if isinstance(one, dict) else one for one in each]


def undecoded(table: Any, column: str) -> Any:
    """The table, whose images come as {"bytes", "path"} and not as pictures."""
    if type(table.features[column]).__name__ != "Image":
        return table
    return table.cast_column(column, type(table.features[column])(decode=False))
