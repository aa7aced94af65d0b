"""Words that the rule knows, by what they do to an answer. Tables alone; engine/rule.py says how they are used."""

import re

from engine.plain import MONTHS

SUBJECTS = set("it there i he she they we you this that these those".split())
RETRACTS = set("nope wait sorry correction oops actually".split())  # take back what was said
CONTRASTS = set("but however instead yet".split())  # put something in its place
CONCLUDES = set("so therefore thus hence altogether".split())  # sum it up
TURNS = RETRACTS | CONTRASTS | CONCLUDES
REASONS = set("because since as while whereas although though if when due reason meaning".split())
UNLIKE = set("unlike than except without before after besides excluding".split())  # deny what follows them
RELATIVES = set("which who whose that".split())
OPENERS = REASONS | CONTRASTS | CONCLUDES | UNLIKE | RELATIVES | {"and"}  # a clause begins with each of them
NOT = set(  # deny their clause
    """not no never neither nor none nobody nothing hardly barely scarcely doubt deny denies exclude excluded eliminate
    eliminated wrong incorrect false untrue mistaken unlikely impossible almost nearly opposite""".split()
)
OPEN = set(  # leave the answer open
    """or either maybe perhaps possibly possible may might could unsure uncertain unclear ambiguous undecided whether
    depends depending alternatively otherwise sometimes /""".split()
)
FILLER = set(  # stand around an answer and say nothing themselves
    """a an the its here is are was were be been being am his her their them our my your can see seen sees show shows
    shown showing depict depicts depicted display displays indicates reveals image picture photo photograph
    chart graph figure diagram bar say says said read reads reading by in on at from to for of with during named called
    titled labeled labelled look looks appear appears seem seems like think believe guess would choose pick select
    chosen have has had contain contains option choice answer correct right final finally exactly only just about
    approximately around roughly probably likely most fairly quite very pretty sure certain clearly definitely simply
    then and also now what where according based do does did must should given all any both value number amount overall
    result equals equal gives get find found count counted conclude step visible each per winner best fit fits order
    word words text""".split()
).union(SUBJECTS, RELATIVES)
DETAILS = set(  # may stand there too; they tell what is asked when the question has them
    """written painted taken made directed created drawn built measures weighs costs lasts length width height weight
    size area volume distance time price cost age temperature speed name measure population line pie product difference
    average mean median perimeter slope solution year month measured reported recorded""".split()
)
FRAME = FILLER | DETAILS | TURNS | OPENERS
ADJECTIVES = set(
    "big small large little young old tall long single red green blue yellow black white grey brown".split()
)
SIGNALS = NOT | OPEN | TURNS | REASONS
NAKED = set("★ ✗ a an the and or nor option together".split())
VERBS = set("is are was were has had have can".split())
BEHIND = VERBS | set(  # what may follow an answer in its clause
    """in on at with from by near behind under over above below beside between along across around against into onto
    through inside during next for to here there 1 ones color colour""".split()
)
RIVALS = [  # words that exclude one another
    "red green blue yellow black white grey gray brown orange pink purple silver gold beige".split(),
    "circle square triangle rectangle pentagon hexagon oval star cube sphere".split(),
    "left right top bottom middle center centre".split(),
    "north south east west".split(),
    "true false".split(),
    "monday tuesday wednesday thursday friday saturday sunday".split(),
    MONTHS,
]

# ------------------------------------------------------------------------------------------------ units
UNITS = {}  # every way to write one: (dimension, size)
for _line in """m m,meter,metre 1|m mm,millimeter,millimetre 1e-3|m cm,centimeter,centimetre 1e-2
    |m km,kilometer,kilometre 1e3|ft ft,foot,feet 1|ft in,inch,inche .08333333333333333|ft mi,mile 5280|ft yd,yard 3
    |g g,gram,gramme 1|g mg,milligram 1e-3|g kg,kilogram,kilo 1e3|g tonne 1e6|lb lb,pound 1|lb oz,ounce .0625
    |s s,sec,second 1|s ms,millisecond 1e-3|s min,minute 60|s h,hr,hour 3600|day day 1|day week 7|month month 1
    |year year,yr 1|l l,liter,litre 1|l ml,milliliter,millilitre 1e-3|c c,celsius 1|f f,fahrenheit 1|kelvin kelvin 1
    |w w,watt 1|w kw,kilowatt 1e3|w mw,megawatt 1e6|v v,volt 1|j j,joule 1|j kj,kilojoule 1e3|n n,newton 1
    |hz hz,hertz 1|hz khz 1e3|hz mhz 1e6|byte kb 1e3|byte mb 1e6|byte gb 1e9|amp amp,ampere 1|% %,percent,per cent 1e-2
    |$ $,us$,usd,dollar 1|$ ¢,cent 1e-2|€ €,eur,euro 1|£ £,gbp 1|¥ ¥,yen,yuan 1|m/s kph,kmh .2777777777777778
    |ft/s mph 1.4666666666666666""".split("|"):
    _dimension, _names, _size = re.match(r"(\S+) (.+) (\S+)", _line.strip()).groups()
    UNITS |= {name + s: (_dimension, float(_size)) for name in _names.split(",") for s in ("", "s")}
ASKED = {"%": "percentage share proportion rate probability chance fraction".split(), "year": "old age".split()}
ASKED |= {c: "cost costs price paid pay revenue money salary income spend spent worth total".split() for c in "$€£¥"}
