"""Ids and names, made of pieces from small pools.

The pools are small so that a tokenizer can hold every piece as one token, and an id has the same
tokens wherever it occurs. No piece is also a word of the conversations.
"""

from __future__ import annotations


def _pool(words: str) -> tuple[str, ...]:
    return tuple(words.split())


FIRST = _pool(
    "ada amir anna ben carla chen dora elif emil farah gina hugo iris ivan jana kofi lena liam "
    "mara mei nora omar pablo rosa sana tariq uma vera yuki zoe"
)
LAST = _pool(
    "abe adler baker costa cruz diaz endo ferro fox garcia haas ito jonas kaya khan kim lopez "
    "meyer nagy novak okoro park perez rossi sato silva tanaka vogel weber young"
)
# The two halves of a reservation id.
LEFT = _pool(
    "amber apple autumn azure bold brave bright bronze calm clear cool copper coral cosy crisp "
    "deep dusty early faded fresh gentle giant golden grand happy hidden icy ivory jolly keen "
    "lucky mellow misty noble olive proud purple quiet rapid royal rustic shiny silent "
    "snowy sunny velvet wild"
)
RIGHT = _pool(
    "acorn anchor arrow basin beach birch bridge canyon castle cedar cliff cloud comet creek "
    "daisy delta dune eagle falcon fern field forest garden glacier harbor heron island lagoon "
    "lake lantern maple meadow moon orchid otter pebble pine planet prairie raven reef river "
    "rocket sparrow summit tiger valley willow"
)
FLEET = _pool(
    "alpha astro atlas aurora cirrus cosmo falke helio jet luna nimbus nova orion sol vega zephyr"
)
CITIES = _pool("athens berlin cairo delhi dublin lima lisbon oslo prague quito rome tokyo")
NUMBERS = tuple(str(number) for number in range(10, 40))  # of users, flights and payment methods

MONTHS = ("june", "july")
TODAY = ("june", "15")
DAYS = tuple(str(day) for day in range(1, 31))

CABINS = ("basic", "economy", "business")  # cheapest first
DEPARTURES = ("morning", "noon", "evening")
MEMBERS = ("regular", "plus", "elite")
METHODS = {"card": "credit card", "gift": "gift card", "cert": "certificate"}
REASONS = ("health", "weather", "work")
TOPICS = ("flown", "pet", "wheelchair", "lost_bag", "child")  # of a hand-off

# The regular expression of each fact in a text.
_NAME = f"(?:{'|'.join(FIRST)}) (?:{'|'.join(LAST)})"
_RESERVATION = f"(?:{'|'.join(LEFT)})-(?:{'|'.join(RIGHT)})"
_CITY = "|".join(CITIES)
FACTS = {
    "user_id": f"(?:{'|'.join(FIRST)})_(?:{'|'.join(LAST)})_[0-9][0-9]",
    "reservation": _RESERVATION,
    "other": _RESERVATION,
    "flight": f"(?:{'|'.join(FLEET)})-[0-9][0-9]",
    "date": f"(?:{'|'.join(MONTHS)})-[0-9]+",
    "origin": _CITY,
    "destination": _CITY,
    "cabin": "|".join(CABINS),
    "departs": "|".join((*DEPARTURES, "cheapest")),
    "passengers": f"{_NAME}(?: and {_NAME})*",
    "payment": "|".join(METHODS.values()),
    "bags": "[0-9]",
    "insurance": "yes|no",
    "reason": "|".join(REASONS),
}
