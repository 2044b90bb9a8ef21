"""The words of the built-in miniature tasks: common English, grouped by meaning.

A group of nouns holds synonyms. A group of verbs or adjectives holds synonyms and, after them, its
opposites. Word forms are spelled out: base, past, participle, third person.
"""

from __future__ import annotations


def _groups(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group.split("/")) for group in text.split())


PERSONS = _groups(
    "doctor/physician lawyer/attorney teacher/instructor child/kid farmer/grower policeman/officer "
    "thief/robber boss/manager painter/artist singer/vocalist writer/author sailor/seaman "
    "soldier/fighter traveler/tourist neighbor/resident cook/chef driver/motorist student/pupil "
    "worker/laborer friend/companion scientist/researcher builder/carpenter merchant/trader "
    "judge/magistrate reporter/journalist guard/watchman king/monarch baker/breadmaker "
    "actor/performer gardener/landscaper"
)
OTHER_PERSONS = _groups(
    "pilot/aviator nurse/caregiver engineer/technician director/producer senator/politician "
    "banker/financier coach/trainer clerk/cashier mechanic/repairman fisherman/angler "
    "dentist/orthodontist poet/lyricist butcher/meatman captain/commander priest/clergyman"
)
OBJECTS = _groups(
    "car/automobile house/home picture/photo road/street shop/store boat/ship sofa/couch "
    "gift/present rock/stone letter/note book/novel box/crate cup/mug bag/sack door/gate "
    "fence/barrier clock/timepiece bicycle/bike table/desk shirt/blouse coat/jacket lamp/light "
    "garden/yard bridge/overpass song/tune report/account machine/device ticket/pass bottle/flask "
    "rug/carpet field/meadow forest/woods coin/penny map/chart meal/dinner"
)
OTHER_OBJECTS = _groups(
    "phone/telephone computer/laptop engine/motor plane/aircraft contract/agreement "
    "budget/spending film/movie statue/sculpture wall/partition ladder/stairway hammer/mallet "
    "basket/hamper piano/keyboard tower/turret blanket/quilt"
)
# A line of synonyms, and after it a line of their opposites.
_SIDES = [
    _groups(line)
    for line in (
        "repair/repaired/repaired/repairs fix/fixed/fixed/fixes",
        "break/broke/broken/breaks damage/damaged/damaged/damages",
        "buy/bought/bought/buys purchase/purchased/purchased/purchases",
        "sell/sold/sold/sells",
        "open/opened/opened/opens",
        "close/closed/closed/closes shut/shut/shut/shuts",
        "find/found/found/finds discover/discovered/discovered/discovers",
        "lose/lost/lost/loses misplace/misplaced/misplaced/misplaces",
        "build/built/built/builds construct/constructed/constructed/constructs",
        "destroy/destroyed/destroyed/destroys demolish/demolished/demolished/demolishes",
        "like/liked/liked/likes enjoy/enjoyed/enjoyed/enjoys",
        "hate/hated/hated/hates detest/detested/detested/detests",
        "clean/cleaned/cleaned/cleans wash/washed/washed/washes",
        "stain/stained/stained/stains",
        "lift/lifted/lifted/lifts raise/raised/raised/raises",
        "lower/lowered/lowered/lowers drop/dropped/dropped/drops",
        "hide/hid/hidden/hides conceal/concealed/concealed/conceals",
        "show/showed/shown/shows reveal/revealed/revealed/reveals",
        "praise/praised/praised/praises admire/admired/admired/admires",
        "blame/blamed/blamed/blames criticize/criticized/criticized/criticizes",
        "accept/accepted/accepted/accepts take/took/taken/takes",
        "refuse/refused/refused/refuses reject/rejected/rejected/rejects",
        "push/pushed/pushed/pushes shove/shoved/shoved/shoves",
        "pull/pulled/pulled/pulls drag/dragged/dragged/drags",
    )
]
VERBS = tuple(zip(_SIDES[::2], _SIDES[1::2], strict=True))
_QUALITIES = _groups(
    "big/large small/little old/ancient new/modern fast/quick slow/sluggish happy/glad sad/unhappy "
    "rich/wealthy poor/needy quiet/silent loud/noisy brave/bold timid/fearful clean/spotless "
    "dirty/filthy cheap/inexpensive expensive/costly strong/sturdy weak/fragile famous/renowned "
    "unknown/obscure heavy/weighty light/weightless bright/shiny dark/dim wide/broad narrow/thin "
    "polite/courteous rude/impolite"
)
ADJECTIVES = tuple(zip(_QUALITIES[::2], _QUALITIES[1::2], strict=True))
PLACES = tuple(
    f"{preposition} the {noun}"
    for preposition, noun in _groups(
        "near/river in/market behind/church at/station in/village on/hill beside/lake in/city "
        "under/bridge at/harbor in/kitchen near/school at/airport in/park on/island behind/hotel "
        "in/valley at/office near/museum in/desert"
    )
)
TIMES = tuple(
    (
        "yesterday, last week, on Monday, on Friday, in the morning, in the evening, last year, in "
        "March, in October, two days ago, at noon, at midnight, in winter, in summer, after lunch"
    ).split(", ")
)
POSITIVE = (
    "gripping superb charming delightful brilliant moving funny clever wonderful touching fresh "
    "witty beautiful powerful excellent warm enjoyable smart honest elegant rich lively sharp "
    "great lovely inspired thrilling perfect graceful memorable"
).split()
NEGATIVE = (
    "boring dull awful clumsy tedious flat stale silly terrible lifeless weak shallow predictable "
    "messy annoying bland dreadful empty forgettable horrible lazy painful pointless ugly tired "
    "cold confusing crude false ridiculous"
).split()
NEUTRAL_NOUNS = (
    "plot acting story film script ending cast music dialogue direction movie humor drama comedy "
    "performance camera pacing romance documentary adventure"
).split()
#: (what happens, reason that fits the first noun, reason that fits the second noun), for WNLI.
REASONS = (
    ("did not fit into", "too big", "too small"),
    ("could not hold", "too weak", "too heavy"),
    ("was covered by", "shorter", "taller"),
    ("broke", "very hard", "very fragile"),
    ("was hidden behind", "narrow", "wide"),
    ("rolled away from", "round", "steep"),
)
