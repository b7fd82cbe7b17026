"""Words, numbers and UUIDs for the tasks that are made by rule; the same generator gives the same on every machine."""

import numpy as np


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """
    able ancient ample angry arctic basic bitter blind bold brave brief bright broad broken brown calm careful
    cheap civil clean clear clever close cloudy coarse cold common cosy cruel curious curly damp dark dear deep
    dense direct dizzy double dry dull dusty eager early easy empty equal exact fair faint famous fancy fast
    fierce final firm flat fluid fond formal fragile free fresh frosty full funny gentle giant glad golden grand
    gray great green happy hard harsh heavy hidden high hollow honest huge humble hungry icy idle inner ivory
    jolly keen kind large late lazy lean light liquid little lively local lone long loose loud lucky magic main
    mellow merry mild minor misty modern modest narrow neat noble noisy normal odd old open orange outer oval
    pale patient plain polite proud pure purple quick quiet rapid rare raw ready red rich ripe robust rough
    round royal rural rusty sad safe salty scarlet secret sharp short shy silent silver simple single slim slow
    small smart smooth soft solid sour spare square stable steady steep stern still strange strict strong sturdy
    sudden sunny sweet swift tall tame tender thick thin tidy tiny tired tough true upper urban usual vague vast
    vivid warm weak wet white wide wild wise wooden yellow young
    """
)
NOUNS = _words(
    """
    acorn actor anchor angle ankle apple apron arrow artist atlas autumn badge bakery balcony bamboo banana
    banner barn barrel basket beach beacon bean bell bench berry bicycle bird blanket blossom boat bottle bowl
    branch bread bridge brook brush bucket butter button cabin cable camel camera candle canoe canyon captain
    carpet carrot castle cattle cave cedar cellar chair chalk cheese cherry chimney circle citizen clock cloud
    clover coast coffee column comet compass copper coral corner cotton cousin cradle crane cricket crystal
    curtain cushion daisy dancer desert diamond dinner doctor dolphin donkey dragon drawer drum eagle echo elbow
    engine envelope estate falcon farmer feather fence ferry fiddle field finger flame flute forest fossil
    fountain fox garden garlic gate ginger glacier glove goose grape guitar hammer harbor harvest hazel hedge
    helmet hill honey hook horse hotel island jacket jar jewel journal jungle kettle kitchen ladder lagoon lake
    lamp lantern lemon lemonade library lion lizard lobster locket magnet mango maple marble market meadow melon
    mirror monkey motor mountain museum needle nest notebook oak oasis ocean olive onion orchard otter oven owl
    paddle palace panther paper parrot pasture peach pearl pebble pencil pepper piano pigeon pillow pilot pine
    planet plate pocket pond poppy potato prairie puzzle quarry quilt rabbit radio rail raven ribbon river road
    rocket roof rope rose saddle sailor salmon sandal school shadow shell shelter ship shore shovel signal
    sister sparrow spider spoon spring stable stairs station stone stream street summit table tailor teacher
    temple thunder ticket tiger timber tomato torch tower trail train tulip tunnel turtle valley velvet village
    violin wagon walnut water wheat wheel whistle willow window winter wolf
    """
)


def keys(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different pairs such as brave-river."""
    chosen = rng.choice(len(ADJECTIVES) * len(NOUNS), count, replace=False)
    return [f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}" for i in chosen.tolist()]


def numbers(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different numbers of seven digits."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(int(rng.integers(1_000_000, 10_000_000)))] = None
    return list(found)


def uuids(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different random UUIDs (version 4)."""
    found: dict[str, None] = {}
    while len(found) < count:
        digits = rng.bytes(16).hex()
        variant = "89ab"[int(digits[16], 16) % 4]
        digits = f"{digits[:12]}4{digits[13:16]}{variant}{digits[17:]}"
        found[f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"] = None
    return list(found)


def names(rng: np.random.Generator, count: int) -> list[str]:
    """`count` different names of variables, five capital letters each."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(chr(65 + i) for i in rng.integers(0, 26, 5).tolist())] = None
    return list(found)


MAKERS = {"numbers": numbers, "words": keys, "uuids": uuids}
