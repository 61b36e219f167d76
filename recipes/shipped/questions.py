"""Makes sentences and questions about a scene, in the manner of NLVR's writers, whose truth is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from recolour import COLOURS
from scenes import Item, Scene

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SHAPES = ("square", "circle", "triangle")
ANSWERS = ("true", "false", *NUMBERS, *COLOURS, *SHAPES)
Box = tuple[Item, ...]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase in the singular and the plural, and what it holds of."""

    one: str
    many: str
    holds: Callable[[Item], bool]


@dataclass(frozen=True)
class BoxPhrase:
    """What follows 'box' or 'tower', and what it holds of."""

    text: str
    holds: Callable[[Box], bool]


def number(draw: Random, value: int) -> str:
    """The number as a word or, as the writers do now and then, in digits."""
    return str(value) if draw.random() < 0.25 else NUMBERS[value]


def nouns(draw: Random, scene: Scene) -> Phrase:
    """A phrase for items: an optional colour, a shape or a general noun, and sometimes where it touches."""
    colour = draw.choice((*COLOURS, *COLOURS, ""))
    if scene.towers:
        return Phrase(f"{colour} block".strip(), f"{colour} blocks".strip(), lambda item: colour in ("", item.colour))
    shape = draw.choice((*SHAPES, draw.choice(("item", "object"))))
    text, texts = f"{colour} {shape}".strip(), f"{colour} {shape}s".strip()

    def plain(item: Item) -> bool:
        return colour in ("", item.colour) and (shape not in SHAPES or item.shape == shape)

    if draw.random() < 0.55:
        return Phrase(text, texts, plain)
    where, touches = draw.choice(TOUCHES)
    return Phrase(f"{text} {where}", f"{texts} {where}", lambda item: plain(item) and touches(item))


def corner(item: Item) -> bool:
    """Whether it touches two walls."""
    return len(item.walls) > 1


TOUCHES: tuple[tuple[str, Callable[[Item], bool]], ...] = (
    ("touching the wall", lambda item: item.touching),
    ("touching the edge", lambda item: item.touching),
    ("closely touching the wall", lambda item: item.touching),
    ("not touching the edge", lambda item: not item.touching),
    ("not touching any edge", lambda item: not item.touching),
    ("touching the base", lambda item: "bottom" in item.walls),
    ("closely touching the bottom of a box", lambda item: "bottom" in item.walls),
    ("touching the top", lambda item: "top" in item.walls),
    ("touching the corner", corner),
    ("closely touching a corner of a box", corner),
)


def quantity(draw: Random, phrase: Phrase, most: int = 4) -> tuple[str, Callable[[int], bool]]:
    """'there are exactly two ...' and the test of the count."""
    kind = draw.choice(("a", "a", "exactly", "exactly", "plain", "least", "most", "only", "no"))
    if kind == "a":
        return f"there is {draw.choice(('a', 'a', 'at least one'))} {phrase.one}", lambda n: n > 0
    if kind == "no":
        return f"there is no {phrase.one}", lambda n: n == 0
    value = draw.randint(1, most)
    word = number(draw, value)
    noun = phrase.one if value == 1 else phrase.many
    verb = "is" if value == 1 else "are"
    if kind == "least":
        return f"there {verb} at least {word} {noun}", lambda n: n >= value
    if kind == "most":
        return f"there {verb} at most {word} {noun}", lambda n: n <= value
    lead = {"exactly": "exactly ", "plain": "exactly " if value == 1 else "", "only": "only "}[kind]
    return f"there {verb} {lead}{word} {noun}", lambda n: n == value


def box_phrase(draw: Random, scene: Scene) -> BoxPhrase:
    """What a box or tower may hold."""
    kinds = TOWER_PHRASES if scene.towers else BOX_PHRASES
    return draw.choice(kinds)(draw, scene)


def holding(draw: Random, scene: Scene) -> BoxPhrase:
    """'with exactly two yellow squares', 'with a black item and two circles'."""
    first = nouns(draw, scene)
    value = draw.randint(1, 4)
    mode = draw.choice(("a", "exactly", "plain", "least"))
    if mode == "a":
        text, test = f"with a {first.one}", lambda n: n > 0
    else:
        lead = {"exactly": "exactly ", "plain": "", "least": "at least "}[mode]
        text = f"with {lead}{number(draw, value)} {first.one if value == 1 else first.many}"
        test = (lambda n: n >= value) if mode == "least" else (lambda n: n == value)

    def holds(box: Box) -> bool:
        return test(sum(map(first.holds, box)))

    if draw.random() < 0.75:
        return BoxPhrase(text, holds)
    second = nouns(draw, scene)
    return BoxPhrase(f"{text} and a {second.one}", lambda box: holds(box) and any(map(second.holds, box)))


def coloured(draw: Random, scene: Scene) -> BoxPhrase:
    """'with only black items', 'with items of only black and blue color', 'with items of 3 different colors'."""
    noun = "blocks" if scene.towers else draw.choice(("items", "objects"))
    kind = draw.choice(("one", "two", "same", "different"))
    if kind == "one":
        colour = draw.choice(COLOURS)
        return BoxPhrase(f"with only {colour} {noun}", lambda box: bool(box) and {i.colour for i in box} == {colour})
    if kind == "two":
        pair = draw.sample(COLOURS, 2)
        text = draw.choice((f"with only {pair[0]} and {pair[1]} {noun}", f"with {noun} of only {pair[0]} and {pair[1]} color"))
        return BoxPhrase(text, lambda box: {i.colour for i in box} == set(pair))
    if kind == "same":
        text = draw.choice((f"where all the {noun} are of same color", f"with all {noun} of the same color"))
        return BoxPhrase(text, lambda box: len({i.colour for i in box}) == 1)
    value = draw.randint(2, 3)
    return BoxPhrase(f"with {noun} of {number(draw, value)} different colors", lambda box: len({i.colour for i in box}) == value)


def tall(draw: Random, scene: Scene) -> BoxPhrase:
    """'with four blocks', 'with exactly three blocks having a blue block at the top'."""
    del scene
    value = draw.randint(1, 4)
    mode = draw.choice(("plain", "exactly", "least"))
    lead = {"plain": "", "exactly": "exactly ", "least": "at least "}[mode]
    text = f"with {lead}{number(draw, value)} block{'s' if value > 1 else ''}"

    def high(box: Box) -> bool:
        return len(box) >= value if mode == "least" else len(box) == value

    if draw.random() < 0.5:
        return BoxPhrase(text, high)
    end = ends(draw)
    joint = draw.choice(("having", "with", "and"))
    return BoxPhrase(f"{text} {joint} {end.text.removeprefix('with ')}", lambda box: high(box) and end.holds(box))


ENDS = (("at the top", -1), ("at the base", 0), ("at the bottom", 0), ("second from the base", 1), ("second from the top", -2))


def ends(draw: Random, scene: Scene | None = None) -> BoxPhrase:
    """'with a blue block at the top', also second from an end."""
    del scene
    colour = draw.choice(COLOURS)
    name, place = draw.choice(ENDS)
    least = place + 1 if place >= 0 else -place
    return BoxPhrase(f"with a {colour} block {name}", lambda box: len(box) >= least and box[place].colour == colour)


def over(draw: Random, scene: Scene | None = None) -> BoxPhrase:
    """'with a yellow block over a blue block' (straight above)."""
    del scene
    upper, lower = draw.choice(COLOURS), draw.choice(COLOURS)
    word = draw.choice(("over", "above", "on", "on top of"))

    def holds(box: Box) -> bool:
        return any(a.colour == lower and b.colour == upper for a, b in zip(box, box[1:], strict=False))

    return BoxPhrase(f"with a {upper} block {word} a {lower} block", holds)


BOX_PHRASES = (holding, holding, holding, coloured)
TOWER_PHRASES = (holding, coloured, tall, tall, ends, ends, over)


def about_items(draw: Random, scene: Scene) -> tuple[str, bool]:
    """A sentence that counts items in the whole picture."""
    phrase = nouns(draw, scene)
    text, test = quantity(draw, phrase)
    return text, test(sum(map(phrase.holds, scene.items)))


def about_boxes(draw: Random, scene: Scene) -> tuple[str, bool]:
    """A sentence that counts boxes or towers of a kind."""
    phrase = box_phrase(draw, scene)
    noun = "tower" if scene.towers else draw.choice(("box", "grey box"))
    nouns = f"{noun}{'s' if scene.towers else 'es'}"
    text, test = quantity(draw, Phrase(f"{noun} {phrase.text}", f"{nouns} {phrase.text}", lambda _: True), most=3)
    return text, test(sum(bool(box) and phrase.holds(box) for box in scene.boxes))


def about_each(draw: Random, scene: Scene) -> tuple[str, bool]:
    """A sentence about every box."""
    phrase = nouns(draw, scene)
    noun = "tower" if scene.towers else draw.choice(("grey box", "box", "grey square"))
    value = draw.choice((1, 1, 1, 2))
    verb = draw.choice(("has", "contains"))
    text = f"{draw.choice(('each', 'every'))} {noun} {verb} at least {number(draw, value)} {phrase.one if value == 1 else phrase.many}"
    return text, all(sum(map(phrase.holds, box)) >= value for box in scene.boxes if box or not scene.towers)


def about_all(draw: Random, scene: Scene) -> tuple[str, bool]:
    """'all blue circles are touching the wall', or a comparison of two counts."""
    first, second = draw.sample(COLOURS, 2)
    noun = "block" if scene.towers else draw.choice(("item", "object", *SHAPES))
    chosen = [item for item in scene.items if noun not in SHAPES or item.shape == noun]
    mine = [item for item in chosen if item.colour == first]
    if scene.towers or draw.random() < 0.4:
        return f"there are more {first} {noun}s than {second} {noun}s", len(mine) > sum(item.colour == second for item in chosen)
    where, touches = draw.choice(TOUCHES[:3])
    return f"all {first} {noun}s are {where}", bool(mine) and all(map(touches, mine))


def about_tower(draw: Random, scene: Scene) -> tuple[str, bool]:
    """Sentences that name a tower by its height, or a pair of blocks."""
    pair, end = over(draw), ends(draw)
    if draw.random() < 0.5:
        holds = any(map(pair.holds, scene.boxes))
        article = draw.choice(("there is a", "there is at least one", "there is no"))
        return f"{article} {pair.text.removeprefix('with a ')}", holds != article.endswith("no")
    value = draw.randint(1, 4)
    named = [box for box in scene.boxes if len(box) == value]
    text = f"the tower with {number(draw, value)} block{'s' if value > 1 else ''} has {end.text.removeprefix('with ')}"
    return text, any(map(end.holds, named))


def sentence(draw: Random, scene: Scene, tries: int = 12) -> tuple[str, str]:
    """A sentence and 'true' or 'false'; the truth is drawn first, so that both are about equally frequent for each kind of sentence."""
    kinds = (about_items, about_boxes, about_boxes, about_each, about_all) if not scene.towers else (
        about_items, about_boxes, about_boxes, about_boxes, about_tower, about_tower, about_each, about_all,
    )  # fmt: skip
    wanted, kind = draw.random() < 0.5, draw.choice(kinds)
    for _ in range(tries):
        text, truth = kind(draw, scene)
        if truth == wanted:
            break
    return text, "true" if truth else "false"


def question(draw: Random, scene: Scene) -> tuple[str, str]:
    """An open question and its one-word answer."""
    kind = draw.choice(("count", "count", "count", "boxes", "end"))
    if kind == "end" and scene.towers:
        heights = sorted(len(box) for box in scene.boxes)
        if heights[-1] > heights[-2]:
            box = max(scene.boxes, key=len)
            end, place = draw.choice((("top", -1), ("base", 0)))
            return f"what color is the {end} of the highest tower?", box[place].colour
        return "how many blocks does the highest tower have?", NUMBERS[heights[-1]]
    if kind == "boxes":
        phrase = box_phrase(draw, scene)
        noun = "towers" if scene.towers else "boxes"
        return f"how many {noun} are there {phrase.text}?", NUMBERS[sum(bool(box) and phrase.holds(box) for box in scene.boxes)]
    best = nouns(draw, scene)
    for _ in range(6):
        if 0 < sum(map(best.holds, scene.items)) <= 10:
            break
        best = nouns(draw, scene)
    return f"how many {best.many} are there?", NUMBERS[min(sum(map(best.holds, scene.items)), 10)]
